//! The reference numbers through the command line (tests/fixtures/golden/README.md).

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;

use safetensors::{Dtype, SafeTensors};
use whence_artifact::{
    Artifact, Candidate, Candidates, Detail, Details, Kind, Ranked, Ranking, Recipe, Row as _, Score, Scores, Silent,
    Store,
};

use crate::bench::{Bench, fixture};

const QUERIES: usize = 16;
const EXAMPLES: usize = 1536;

/// Tensors of a safetensors file, as float64.
struct Reference {
    bytes: Vec<u8>,
}

impl Reference {
    fn read(name: &str) -> Self {
        Self { bytes: fs::read(fixture(&format!("{name}.safetensors"))).unwrap() }
    }

    /// Shape and values.
    fn tensor(&self, name: &str) -> (Vec<usize>, Vec<f64>) {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = tensors.tensor(name).unwrap();
        let bytes = view.data();
        let values = match view.dtype() {
            Dtype::F64 => bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
            other => panic!("{name} is {other:?}"),
        };
        (view.shape().to_vec(), values)
    }

    fn modules(&self) -> Vec<String> {
        let (_, metadata) = SafeTensors::read_metadata(&self.bytes).unwrap();
        serde_json::from_str(&metadata.metadata().as_ref().unwrap()["module_names"]).unwrap()
    }
}

/// max|found - reference| / max|reference|.
fn error(found: &[f64], reference: &[f64]) -> f64 {
    assert_eq!(found.len(), reference.len());
    let scale = reference.iter().fold(0.0_f64, |max, value| max.max(value.abs()));
    assert!(scale > 0.0, "a reference of zeros proves nothing");
    found.iter().zip(reference).fold(0.0_f64, |max, (x, y)| max.max((x - y).abs())) / scale
}

/// Spearman's rank correlation; influences have no ties.
fn spearman(x: &[f64], y: &[f64]) -> f64 {
    let ranks = |values: &[f64]| {
        let mut order: Vec<_> = (0..values.len()).collect();
        order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
        let mut ranks = vec![0.0; values.len()];
        order.into_iter().enumerate().for_each(|(rank, index)| ranks[index] = rank as f64);
        ranks
    };
    let n = x.len() as f64;
    let distance: f64 = ranks(x).iter().zip(ranks(y)).map(|(a, b)| (a - b).powi(2)).sum();
    1.0 - 6.0 * distance / (n * (n * n - 1.0))
}

/// Writes `golden.toml`. The pairs that the reference takes apart are candidates made outside the pipeline.
fn write(bench: &Bench, modules: &str, pairs: usize) {
    let rows = (0..QUERIES as u32).flat_map(|query| (0..pairs as u64).map(move |example| (query, example)));
    let rows = rows.map(|(query, example)| Candidate { query, example, score: 1.0, source: "reference".into() });
    let rows: Vec<_> = rows.collect();
    let recipe = Recipe {
        stage: "reference".into(),
        version: 1,
        config: serde_json::Value::Null,
        inputs: BTreeMap::new(),
        model: None,
    };
    let store = Store::new(bench.path("pairs"));
    let batch = <Candidate as whence_artifact::Row<Candidates>>::to_batch(&rows).unwrap();
    let fill = |draft: &mut whence_artifact::Draft| draft.write(0, &[batch]);
    let (pairs, _) = store.produce(Kind::Candidates, recipe, &Silent, fill).unwrap();
    let text = format!(
        r#"
[model]
path = {model:?}
modules = "{modules}"
[steps.train]
stage = "tokenize"
corpus = {train:?}
max-tokens = 96
[steps.queries]
stage = "tokenize"
corpus = {queries:?}
max-tokens = 96
[steps.covariances]
stage = "covariance"
inputs = {{ tokens = "train" }}
labels = "empirical"
[steps.basis]
stage = "eigenbasis"
inputs = {{ covariances = "covariances" }}
[steps.lambda]
stage = "lambda"
inputs = {{ tokens = "train", eigenbasis = "basis" }}
labels = "empirical"
[steps.gradients]
stage = "gradients"
inputs = {{ tokens = "queries" }}
[steps.ihvp]
stage = "precondition"
inputs = {{ gradients = "gradients", eigenbasis = "basis", lambda = "lambda" }}
method = "ekfac"
damping = {{ relative = 0.1 }}
rank = 32
[steps.ihvp-full]
stage = "precondition"
inputs = {{ gradients = "gradients", eigenbasis = "basis", lambda = "lambda" }}
method = "ekfac"
damping = {{ relative = 0.1 }}
rank = "full"
[steps.plain]
stage = "precondition"
inputs = {{ gradients = "gradients" }}
method = "identity"
rank = "full"
[steps.scores]
stage = "score"
inputs = {{ queries = "ihvp", tokens = "train" }}
[steps.scores-full]
stage = "score"
inputs = {{ queries = "ihvp-full", tokens = "train" }}
[steps.scores-plain]
stage = "score"
inputs = {{ queries = "plain", tokens = "train" }}
[steps.details]
stage = "score"
inputs = {{ queries = "ihvp-full", tokens = "train", candidates = {pairs:?} }}
detail = true
[steps.top]
stage = "rank"
inputs = {{ scores = "scores", tokens = "train" }}
top = 5
"#,
        model = fixture("model"),
        train = fixture("train.jsonl"),
        queries = fixture("queries.jsonl"),
    );
    bench.file("golden.toml", text);
}

/// The folder of a step, as a script asks for it.
fn folder(bench: &Bench, step: &str) -> PathBuf {
    bench.path(bench.ok(&["path", "golden.toml", step]).trim_end())
}

/// Raw scores (influence x N), [queries, examples] row-major.
fn scores(bench: &Bench, step: &str) -> Vec<f64> {
    bench.ok(&["run", "golden.toml", "--to", step]);
    let mut matrix = vec![f64::NAN; QUERIES * EXAMPLES];
    let artifact = Artifact::<Scores>::open(&folder(bench, step)).unwrap();
    assert_eq!(artifact.manifest().rows() as usize, QUERIES * EXAMPLES);
    for row in artifact.rows::<Score>().unwrap() {
        let row = row.unwrap();
        matrix[row.query as usize * EXAMPLES + row.example as usize] = f64::from(row.influence) * EXAMPLES as f64;
    }
    assert!(matrix.iter().all(|value| value.is_finite()), "a pair has no score");
    matrix
}

fn agrees(modules: &str) {
    let reference = Reference::read(&format!("reference_{modules}_empirical"));
    let (shape, by_module) = reference.tensor("per_module");
    let (token_shape, by_token) = reference.tensor("per_token");
    let [count, QUERIES, pairs] = shape[..] else { panic!("{shape:?}") };
    let bench = Bench::new();
    write(&bench, modules, pairs);

    for (step, name) in [("scores-full", "pairwise"), ("scores", "pairwise_rank32")] {
        let (found, expected) = (scores(&bench, step), reference.tensor(name).1);
        let worst = error(&found, &expected);
        assert!(worst <= 1e-5, "{modules}, {name}: {worst:.2e}");
        for (found, expected) in found.chunks(EXAMPLES).zip(expected.chunks(EXAMPLES)) {
            let correlation = spearman(found, expected);
            assert!(correlation >= 0.99999, "{modules}, {name}: Spearman {correlation}");
        }
    }

    bench.ok(&["run", "golden.toml", "--to", "details"]);
    let details = Artifact::<Details>::open(&folder(&bench, "details")).unwrap();
    assert_eq!(details.manifest().rows() as usize, QUERIES * pairs);
    let names: Vec<String> = serde_json::from_value(details.manifest().summary["modules"].clone()).unwrap();
    assert_eq!(names, reference.modules());
    let rows: HashMap<_, _> = (details.rows::<Detail>().unwrap().map(Result::unwrap))
        .map(|row| ((row.score.query as usize, row.score.example as usize), row))
        .collect();
    let raw = |influence: f32| f64::from(influence) * EXAMPLES as f64;
    let mut found = Vec::new();
    for module in 0..count {
        for query in 0..QUERIES {
            found.extend((0..pairs).map(|example| raw(rows[&(query, example)].by_module[module])));
        }
    }
    let worst = error(&found, &by_module);
    assert!(worst <= 1e-5, "{modules}, by module: {worst:.2e}");
    let [QUERIES, examples, tokens] = token_shape[..] else { panic!("{token_shape:?}") };
    let mut found = Vec::new();
    for query in 0..QUERIES {
        for example in 0..examples {
            let row = &rows[&(query, example)].by_token;
            found.extend((0..tokens).map(|token| row.get(token).map_or(0.0, |&influence| raw(influence))));
        }
    }
    let worst = error(&found, &by_token);
    assert!(worst <= 5e-5, "{modules}, by token: {worst:.2e}");

    // Queries 0 to 5 are training rows, which find themselves.
    bench.ok(&["run", "golden.toml", "--to", "top"]);
    let top = Artifact::<Ranking>::open(&folder(&bench, "top")).unwrap();
    let first: Vec<_> = (top.rows::<Ranked>().unwrap().map(Result::unwrap))
        .filter(|row| row.positive && row.rank == 1 && row.query < 6)
        .map(|row| row.example)
        .collect();
    assert_eq!(first, [3, 100, 256, 511, 777, 1200]);

    if modules == "mlp" {
        let worst = error(&scores(&bench, "scores-plain"), &Reference::read("identity_mlp").tensor("identity").1);
        assert!(worst <= 1e-5, "identity: {worst:.2e}");
    }
}

#[test]
fn mlp_through_the_command_line_agrees() {
    agrees("mlp");
}

#[test]
fn all_through_the_command_line_agrees() {
    agrees("all");
}
