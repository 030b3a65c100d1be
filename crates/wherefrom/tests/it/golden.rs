//! The reference numbers through the command line (tests/fixtures/golden/README.md).

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use wherefrom_artifact::{
    Artifact, Candidate, Candidates, Detail, Details, Draft, Kind, Ranked, Ranking, Recipe, Row, Score, Scores, Silent,
    Store,
};

use crate::bench::{Bench, fixture};

const QUERIES: usize = 16;
const EXAMPLES: usize = 1536;

/// Tensors of a safetensors file, as float64.
pub(crate) struct Reference {
    bytes: Vec<u8>,
}

impl Reference {
    fn read(name: &str) -> Self {
        Self::open(&fixture(&format!("{name}.safetensors")))
    }

    pub(crate) fn open(path: &Path) -> Self {
        Self { bytes: fs::read(path).unwrap() }
    }

    /// Shape and values.
    pub(crate) fn tensor(&self, name: &str) -> (Vec<usize>, Vec<f64>) {
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
pub(crate) fn error(found: &[f64], reference: &[f64]) -> f64 {
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

/// Rows that are taken apart and scored at full rank; the fit is on all, and so is the scan.
const SLICE: usize = 128;

/// Writes `golden.toml`. The pairs that the reference takes apart are candidates made outside the pipeline.
///
/// One fit on every module serves both choices: curvature is module by module.
fn write(bench: &Bench, pairs: usize) {
    let rows = (0..QUERIES as u32).flat_map(|query| (0..pairs as u64).map(move |example| (query, example)));
    let rows = rows.map(|(query, example)| Candidate { query, example, score: 1.0, source: "reference".into() });
    let batch = <Candidate as Row<Candidates>>::to_batch(&rows.collect::<Vec<_>>()).unwrap();
    let config = serde_json::Value::Null;
    let recipe = Recipe { stage: "reference".into(), version: 1, config, inputs: BTreeMap::new(), model: None };
    let fill = |draft: &mut Draft| draft.write(0, &[batch]);
    let (pairs, _) = Store::new(bench.path("pairs")).produce(Kind::Candidates, recipe, &Silent, fill).unwrap();

    let train = fs::read_to_string(fixture("train.jsonl")).unwrap();
    bench.file("slice.jsonl", train.lines().take(SLICE).flat_map(|line| [line, "\n"]).collect::<String>());
    let mut text = format!(
        r#"
[model]
path = {model:?}
modules = "all"
[steps.train]
stage = "tokenize"
corpus = {train:?}
max-tokens = 96
[steps.slice]
stage = "tokenize"
corpus = "slice.jsonl"
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
"#,
        model = fixture("model"),
        train = fixture("train.jsonl"),
        queries = fixture("queries.jsonl"),
    );
    for modules in ["mlp", "all"] {
        text += &format!(
            r#"
[steps.{modules}-gradients]
stage = "gradients"
inputs = {{ tokens = "queries" }}
modules = "{modules}"
[steps.{modules}-ihvp]
stage = "precondition"
inputs = {{ gradients = "{modules}-gradients", eigenbasis = "basis", lambda = "lambda" }}
method = "ekfac"
damping = {{ relative = 0.1 }}
rank = 32
[steps.{modules}-ihvp-full]
stage = "precondition"
inputs = {{ gradients = "{modules}-gradients", eigenbasis = "basis", lambda = "lambda" }}
method = "ekfac"
damping = {{ relative = 0.1 }}
rank = "full"
[steps.{modules}-plain]
stage = "precondition"
inputs = {{ gradients = "{modules}-gradients" }}
method = "identity"
rank = "full"
[steps.{modules}-scan]
stage = "score"
inputs = {{ queries = "{modules}-ihvp", tokens = "train" }}
[steps.{modules}-slice]
stage = "score"
inputs = {{ queries = "{modules}-ihvp", tokens = "slice" }}
training-examples = {EXAMPLES}
[steps.{modules}-slice-full]
stage = "score"
inputs = {{ queries = "{modules}-ihvp-full", tokens = "slice" }}
training-examples = {EXAMPLES}
[steps.{modules}-slice-plain]
stage = "score"
inputs = {{ queries = "{modules}-plain", tokens = "slice" }}
training-examples = {EXAMPLES}
[steps.{modules}-details]
stage = "score"
inputs = {{ queries = "{modules}-ihvp-full", tokens = "train", candidates = {pairs:?} }}
detail = true
[steps.{modules}-top]
stage = "rank"
inputs = {{ scores = "{modules}-scan", tokens = "train" }}
top = 5
"#
        );
    }
    bench.file("golden.toml", text);
}

/// Makes a step; its folder, as a script asks for it.
fn folder(bench: &Bench, step: &str) -> PathBuf {
    bench.made("golden.toml", step)
}

fn raw(influence: f32) -> f64 {
    f64::from(influence) * EXAMPLES as f64
}

/// Raw scores (influence x N), by query and example.
fn scores(bench: &Bench, step: &str, examples: usize) -> Vec<Vec<f64>> {
    let mut matrix = vec![vec![f64::NAN; examples]; QUERIES];
    let artifact = Artifact::<Scores>::open(&folder(bench, step)).unwrap();
    assert_eq!(artifact.manifest().rows() as usize, QUERIES * examples);
    for row in artifact.rows::<Score>().unwrap() {
        let row = row.unwrap();
        matrix[row.query as usize][row.example as usize] = raw(row.influence);
    }
    assert!(matrix.iter().flatten().all(|value| value.is_finite()), "a pair has no score");
    matrix
}

/// The scores of a step against the reference's of as many examples.
fn scores_agree(bench: &Bench, step: &str, examples: usize, reference: &[f64]) {
    let found = scores(bench, step, examples);
    let expected: Vec<_> = reference.chunks(EXAMPLES).map(|row| row[..examples].to_vec()).collect();
    let worst = error(&found.concat(), &expected.concat());
    assert!(worst <= 1e-5, "{step}: {worst:.2e}");
    for (found, expected) in found.iter().zip(&expected) {
        let correlation = spearman(found, expected);
        assert!(correlation >= 0.99999, "{step}: Spearman {correlation}");
    }
}

fn details_agree(bench: &Bench, step: &str, reference: &Reference) {
    let details = Artifact::<Details>::open(&folder(bench, step)).unwrap();
    let names: Vec<String> = serde_json::from_value(details.manifest().summary["modules"].clone()).unwrap();
    assert_eq!(names, reference.modules());
    let rows: HashMap<_, _> = (details.rows::<Detail>().unwrap().map(Result::unwrap))
        .map(|row| ((row.score.query as usize, row.score.example as usize), row))
        .collect();
    let (shape, expected) = reference.tensor("per_module");
    let [modules, QUERIES, examples] = shape[..] else { panic!("{shape:?}") };
    assert_eq!(rows.len(), QUERIES * examples);
    let mut found = Vec::new();
    for module in 0..modules {
        for query in 0..QUERIES {
            found.extend((0..examples).map(|example| raw(rows[&(query, example)].by_module[module])));
        }
    }
    let worst = error(&found, &expected);
    assert!(worst <= 1e-5, "{step}, by module: {worst:.2e}");

    let (shape, expected) = reference.tensor("per_token");
    let [QUERIES, examples, tokens] = shape[..] else { panic!("{shape:?}") };
    let mut found = Vec::new();
    for query in 0..QUERIES {
        for example in 0..examples {
            let row = &rows[&(query, example)].by_token;
            found.extend((0..tokens).map(|token| row.get(token).map_or(0.0, |&influence| raw(influence))));
        }
    }
    let worst = error(&found, &expected);
    assert!(worst <= 5e-5, "{step}, by token: {worst:.2e}");
}

#[test]
fn the_reference_numbers_come_out_of_the_command_line() {
    let bench = Bench::new();
    let references = ["mlp", "all"].map(|name| (name, Reference::read(&format!("reference_{name}_empirical"))));
    write(&bench, references[0].1.tensor("per_module").0[2]);
    for (modules, reference) in &references {
        let (full, low) = (reference.tensor("pairwise").1, reference.tensor("pairwise_rank32").1);
        scores_agree(&bench, &format!("{modules}-slice-full"), SLICE, &full);
        scores_agree(&bench, &format!("{modules}-slice"), SLICE, &low);
        details_agree(&bench, &format!("{modules}-details"), reference);
    }
    scores_agree(&bench, "mlp-slice-plain", SLICE, &Reference::read("identity_mlp").tensor("identity").1);

    // The whole scan. Queries 0 to 5 are training rows, which find themselves.
    scores_agree(&bench, "mlp-scan", EXAMPLES, &references[0].1.tensor("pairwise_rank32").1);
    let top = Artifact::<Ranking>::open(&folder(&bench, "mlp-top")).unwrap();
    let first = top.rows::<Ranked>().unwrap().map(Result::unwrap).filter(|row| row.positive && row.rank == 1);
    let first: Vec<_> = first.filter(|row| row.query < 6).map(|row| row.example).collect();
    assert_eq!(first, [3, 100, 256, 511, 777, 1200]);
}
