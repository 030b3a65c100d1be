//! One study on the golden model, through the stages as a library.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;
use wherefrom_artifact::{
    Artifact, ArtifactKind, Basis, Candidate, Candidates, Coordinate, Detail, Details, Draft, Eigenbasis, Example,
    Gradients, Lambda, LambdaSum, Over, OwnInfluence, Preconditioned, Recipe, Row, Score, Scores, SelfInfluence, Signs,
    Silent, Store, Stored, Tokens, TraitVector, Vectors,
};
use wherefrom_curvature::precondition::{Damping, Method, Rank};
use wherefrom_curvature::test_support::{covariance_with_labels, lambda_with_labels};
use wherefrom_curvature::{
    coordinates, covariance, eigenbasis, index, lambda, precondition, score_index, self_influence,
};
use wherefrom_gradients::measure::Measure;
use wherefrom_model::{LabelsKind, Modules, Site, adapters};
use wherefrom_score::Pairs;
use wherefrom_stage::{Device, Exec, ModelFiles};
use wherefrom_tokenize::tokenize;

/// The same tests run on the first adapter of a build that can reach one (`just test-gpu`).
const DEVICE: &str = if cfg!(feature = "wgpu") { "gpu:0" } else { "cpu" };

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Labels {
    Empirical,
    Sampled,
}

impl Labels {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Empirical => "empirical",
            Self::Sampled => "sampled",
        }
    }
}

pub(crate) struct Choice {
    pub(crate) modules: &'static str,
    pub(crate) labels: Labels,
    /// Of the covariances.
    pub(crate) blocks: usize,
    /// Of lambda and the queries.
    pub(crate) store: Stored,
}

impl Choice {
    /// Whole factors in float32: the reference's own choice.
    pub(crate) fn whole(modules: &'static str, labels: Labels) -> Self {
        Self { modules, labels, blocks: 1, store: Stored::F32 }
    }
}

/// Some nine whole queries of the golden model, so that the 16 are scored in groups.
const QUERY_BYTES: usize = 20 << 20;

/// Training rows with their reference, and where the study of them runs.
#[derive(Clone)]
pub(crate) struct Set {
    folder: PathBuf,
    model: PathBuf,
    device: &'static str,
    /// Rows that queries 0 to 5 come from.
    memorised: [usize; 6],
    /// The site of the stream whose projection on a vector is measured, where the queries are no completions.
    site: Option<usize>,
}

impl Set {
    /// 1,536 rows; on the CPU where the only adapter is a software one, which would take an hour.
    pub(crate) fn whole() -> Self {
        let own = fixtures().join("golden");
        let folder = std::env::var_os("WHEREFROM_GOLDEN").map_or(own, PathBuf::from);
        let device = if software_adapter() { "cpu" } else { DEVICE };
        let model = fixtures().join("golden/model");
        Self { folder, model, device, memorised: [3, 100, 256, 511, 777, 1200], site: None }
    }

    /// 64 rows, and three queries that are the projection of an answer on a vector (tests/fixtures/persona/README.md).
    pub(crate) fn persona() -> Self {
        let folder = fixtures().join("persona");
        Self { model: folder.join("model"), folder, device: DEVICE, memorised: [0; 6], site: Some(3) }
    }

    /// The whole set; for a software adapter 128 rows with a reference of their own.
    pub(crate) fn for_device() -> Self {
        match software_adapter() {
            true => Self {
                folder: fixtures().join("golden-few"),
                device: DEVICE,
                memorised: [1, 10, 24, 46, 69, 105],
                ..Self::whole()
            },
            false => Self::whole(),
        }
    }
}

impl Set {
    fn model(&self) -> ModelFiles {
        self.model.clone().into()
    }
}

/// The vector at a site, as a stage would have written it, but four times as long.
fn vector(set: &Set, site: usize, store: &Path) -> Artifact<Vectors> {
    let reference = Reference::read(set, "vector");
    let width = reference.shape("response_avg")[1];
    let vector: Vec<f32> =
        reference.values("response_avg")[site * width..][..width].iter().map(|x| 4.0 * *x as f32).collect();
    let row = TraitVector {
        trait_name: "marker".into(),
        over: Over::ResponseAvg,
        site: site.to_string(),
        layer: site as u32,
        norm: 4.0 * reference.values("norms")[site] as f32,
        vector,
        positive: vec![],
        negative: vec![],
        deviation: f32::NAN,
        median_norm: f32::NAN,
        pairs: 0,
    };
    Study::produce(store, "vectors", |draft| draft.write(0, &[TraitVector::to_batch(&[row])?]))
}

fn software_adapter() -> bool {
    adapters().first().is_some_and(|adapter| !adapter.hardware)
}

fn fixtures() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures"))
}

/// Tensors of a safetensors file, as float64.
pub(crate) struct Reference {
    bytes: Vec<u8>,
}

impl Reference {
    pub(crate) fn read(set: &Set, name: &str) -> Self {
        let path = set.folder.join(format!("{name}.safetensors"));
        Self { bytes: std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())) }
    }

    pub(crate) fn shape(&self, name: &str) -> Vec<usize> {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(name).unwrap().shape().to_vec()
    }

    pub(crate) fn values(&self, name: &str) -> Vec<f64> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = tensors.tensor(name).unwrap();
        let bytes = view.data();
        match view.dtype() {
            Dtype::F64 => bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
            Dtype::I16 => bytes.chunks_exact(2).map(|b| i16::from_le_bytes(b.try_into().unwrap()).into()).collect(),
            Dtype::I32 => bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
            other => panic!("{name} is {other:?}"),
        }
    }

    pub(crate) fn modules(&self) -> Vec<String> {
        let (_, metadata) = SafeTensors::read_metadata(&self.bytes).unwrap();
        let names = &metadata.metadata().as_ref().unwrap()["module_names"];
        serde_json::from_str(names).unwrap()
    }
}

pub(crate) struct Study {
    set: Set,
    folder: TempDir,
    exec: Exec,
    train: Artifact<Tokens>,
    gradients: Artifact<Gradients>,
    curvature: Option<(PathBuf, PathBuf)>,
    modules: Modules,
    store: Stored,
    reference: Option<String>,
    pub(crate) queries: usize,
}

impl Study {
    pub(crate) fn produce<K: ArtifactKind>(
        folder: &Path,
        name: &str,
        fill: impl FnOnce(&mut Draft) -> Result<()>,
    ) -> Artifact<K> {
        let recipe =
            Recipe { stage: name.into(), version: 1, config: Value::Null, inputs: BTreeMap::new(), model: None };
        let (path, _) = Store::new(folder).produce(K::KIND, recipe, &Silent, fill).unwrap();
        Artifact::open(&path).unwrap()
    }

    /// Tokens and query gradients only: the identity method.
    pub(crate) fn without_curvature(set: &Set, modules: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let device = match wherefrom_model::choose_adapter(set.device).unwrap() {
            None => Device::cpu(),
            Some((index, adapter)) => Device::Gpu { index, name: adapter.name, memory: adapter.memory },
        };
        let exec = Exec { device, batch_tokens: 2048, ..Exec::default() };
        let config: tokenize::Config = serde_json::from_value(serde_json::json!({ "max-tokens": 96 })).unwrap();
        let tokens = |name: &str| {
            let inputs = tokenize::Inputs {
                corpus: set.folder.join(format!("{name}.jsonl")),
                tokenizer: None,
                chat_template: None,
            };
            Self::produce::<Tokens>(folder.path(), name, |draft| tokenize::run(&config, &inputs, &exec, draft))
        };
        let (train, asked) = (tokens("train"), tokens("queries"));
        let measure =
            set.site.map(|site| Measure { projection: Site::Stream(site), over: Over::ResponseAvg, of: None });
        let config =
            wherefrom_gradients::Config { modules: Modules::Named(modules.into()), measure, ..Default::default() };
        let vectors = set.site.map(|site| vector(set, site, folder.path()));
        let inputs = wherefrom_gradients::Inputs { tokens: asked.clone(), vectors, model: set.model() };
        let gradients =
            Self::produce(folder.path(), "g", |draft| wherefrom_gradients::run(&config, &inputs, &exec, draft));
        let queries = usize::try_from(asked.examples()).unwrap();
        let modules = Modules::Named(modules.into());
        Self {
            set: set.clone(),
            folder,
            exec,
            train,
            gradients,
            curvature: None,
            modules,
            store: Stored::F32,
            reference: None,
            queries,
        }
    }

    /// Covariances, eigenbasis and lambda on the whole training set.
    pub(crate) fn new(set: &Set, choice: &Choice) -> Self {
        let mut study = Self::without_curvature(set, choice.modules);
        let modules = Modules::Named(choice.modules.into());
        let labels = match choice.labels {
            Labels::Empirical => wherefrom_model::Labels::Empirical,
            Labels::Sampled => wherefrom_model::Labels::Given(Arc::new(given(set))),
        };
        let (folder, exec, model) = (study.folder.path(), &study.exec, set.model());
        let kind = LabelsKind::Empirical;
        let config = covariance::Config {
            labels: kind,
            seed: 0,
            modules: modules.clone(),
            blocks: choice.blocks,
            ..Default::default()
        };
        let inputs = covariance::Inputs { tokens: study.train.clone(), model: model.clone() };
        let covariances =
            Self::produce(folder, "covariance", |draft| covariance_with_labels(&config, &labels, &inputs, exec, draft));
        let inputs = eigenbasis::Inputs { covariances };
        let basis =
            Self::produce(folder, "eigenbasis", |draft| eigenbasis::run(&eigenbasis::Config {}, &inputs, exec, draft));
        let config = lambda::Config { labels: kind, seed: 0, modules, store: choice.store, ..Default::default() };
        let basis_folder = basis.folder().to_path_buf();
        let inputs = lambda::Inputs { tokens: study.train.clone(), eigenbasis: Some(basis), model };
        let lambda: Artifact<Lambda> =
            Self::produce(folder, "lambda", |draft| lambda_with_labels(&config, &labels, &inputs, exec, draft));
        study.curvature = Some((basis_folder, lambda.folder().to_path_buf()));
        study.store = choice.store;
        study.reference = Some(match set.site {
            Some(_) => "influence".into(),
            None => format!("reference_{}_{}", choice.modules, choice.labels.name()),
        });
        study
    }

    pub(crate) fn reference(&self) -> Reference {
        Reference::read(&self.set, self.reference.as_ref().unwrap())
    }

    pub(crate) fn identity(&self) -> Vec<f64> {
        Reference::read(&self.set, "identity_mlp").values("identity")
    }

    fn preconditioned(&self, rank: &str) -> Artifact<Preconditioned> {
        let method = if self.curvature.is_some() { Method::Ekfac } else { Method::Identity };
        let rank_knob = rank.parse().map_or(Rank::Full, Rank::Low);
        let config =
            precondition::Config { method, damping: Damping::Relative(0.1), rank: rank_knob, store: self.store };
        let inputs = precondition::Inputs {
            gradients: self.gradients.clone(),
            eigenbasis: self.curvature.as_ref().map(|(basis, _)| Artifact::open(basis).unwrap()),
            lambda: self.curvature.as_ref().map(|(_, lambda)| Artifact::open(lambda).unwrap()),
        };
        Self::produce(self.folder.path(), rank, |draft| precondition::run(&config, &inputs, &self.exec, draft))
    }

    /// Scores of every pair, or the details of the candidates.
    fn score<K: ArtifactKind>(&self, name: &str, rank: &str, candidates: Option<Pairs>) -> Artifact<K> {
        let config =
            wherefrom_score::Config { detail: candidates.is_some(), training_examples: None, ..Default::default() };
        let inputs = wherefrom_score::Inputs {
            queries: self.preconditioned(rank),
            tokens: self.train.clone(),
            model: self.set.model(),
            candidates,
        };
        Self::produce(self.folder.path(), name, |draft| {
            wherefrom_score::test_support::run_in_groups(&config, &inputs, &self.exec, draft, QUERY_BYTES)
        })
    }

    /// Raw scores (influence x N), [queries, examples] row-major.
    pub(crate) fn scores(&self, rank: &str) -> Vec<f64> {
        let scores: Artifact<Scores> = self.score(rank, rank, None);
        let examples = usize::try_from(self.train.examples()).unwrap();
        let mut matrix = vec![f64::NAN; self.queries * examples];
        for row in scores.rows::<Score>().unwrap() {
            let row = row.unwrap();
            matrix[row.query as usize * examples + row.example as usize] = f64::from(row.influence) * examples as f64;
        }
        assert!(matrix.iter().all(|value| value.is_finite()), "a pair has no score");
        matrix
    }

    /// Of every query and the reference's first examples.
    pub(crate) fn details(&self, reference: &Reference) -> DetailRows {
        let examples = reference.shape("per_token")[1].max(reference.shape("per_module")[2]);
        let pairs = (0..self.queries).flat_map(|query| (0..examples).map(move |example| (query, example)));
        let rows: Vec<_> = pairs
            .map(|(query, example)| Candidate {
                query: query as u32,
                example: example as u64,
                score: 0.0,
                source: "reference".into(),
            })
            .collect();
        let candidates = Self::produce(self.folder.path(), "candidates", |draft| {
            draft.write(0, &[<Candidate as Row<Candidates>>::to_batch(&rows)?])
        });
        let details: Artifact<Details> = self.score("details", "full", Some(Pairs::Candidates(candidates)));
        let names: Vec<String> = serde_json::from_value(details.manifest().summary["modules"].clone()).unwrap();
        let rows = details.rows::<Detail>().unwrap();
        let rows = rows.map(|row| row.map(|row| ((row.score.query as usize, row.score.example as usize), row)));
        DetailRows { rows: rows.collect::<Result<_>>().unwrap(), names, examples: self.train.examples() as f64 }
    }

    /// What float16 has changed, as the manifests say it: of lambda, and of the queries at rank 32.
    pub(crate) fn stored(&self) -> String {
        let lambda: Artifact<Lambda> = Artifact::open(&self.curvature.as_ref().unwrap().1).unwrap();
        let queries = self.preconditioned("32");
        let said = [&lambda.manifest().summary["stored"], &queries.manifest().summary["stored"]];
        let [lambda, queries] = said.map(|stored| {
            let error = stored["rms_relative_error"].as_f64().unwrap();
            assert!(error > 1e-5 && error < 1e-3, "float16 has eleven binary digits: {stored}");
            stored.to_string()
        });
        format!("lambda {lambda}, queries {queries}")
    }

    /// Raw self-influence of every training row, with the fit or, without one, by plain products; and whether its shares
    /// by module add up.
    pub(crate) fn own(&self) -> Vec<f64> {
        let method = if self.curvature.is_some() { Method::Ekfac } else { Method::Identity };
        let modules = self.modules.clone();
        let config = self_influence::Config {
            method,
            damping: Damping::Relative(0.1),
            modules,
            training_examples: Some(1),
            ..Default::default()
        };
        let inputs = self_influence::Inputs {
            tokens: self.train.clone(),
            model: self.set.model(),
            eigenbasis: self.curvature.as_ref().map(|(basis, _)| Artifact::open(basis).unwrap()),
            lambda: self.curvature.as_ref().map(|(_, lambda)| Artifact::open(lambda).unwrap()),
        };
        let own: Artifact<SelfInfluence> =
            Self::produce(self.folder.path(), "own", |draft| self_influence::run(&config, &inputs, &self.exec, draft));
        let row = |row: Result<OwnInfluence>| {
            let row = row.unwrap();
            let sum: f64 = row.by_module.iter().map(|&share| f64::from(share)).sum();
            assert!((sum - f64::from(row.influence)).abs() <= 1e-6 * sum, "shares of {}", row.example);
            f64::from(row.influence)
        };
        own.rows::<OwnInfluence>().unwrap().map(row).collect()
    }

    pub(crate) fn mean_lambda(&self) -> Vec<f64> {
        let lambda: Artifact<Lambda> = Artifact::open(&self.curvature.as_ref().unwrap().1).unwrap();
        let mean = |row: LambdaSum| {
            row.lambda.iter().map(|&value| f64::from(value)).sum::<f64>() / row.lambda.len() as f64 / row.count as f64
        };
        lambda.rows::<LambdaSum>().unwrap().map(|row| mean(row.unwrap())).collect()
    }
}

/// An index and what it scores, [queries, examples] row-major, raw.
pub(crate) struct Indexed {
    pub(crate) table: Vec<Coordinate>,
    pub(crate) rows: Vec<Signs>,
    pub(crate) scores: Vec<f64>,
}

impl Study {
    fn basis(&self) -> Artifact<Eigenbasis> {
        Artifact::open(&self.curvature.as_ref().unwrap().0).unwrap()
    }

    fn lambda(&self) -> Artifact<Lambda> {
        Artifact::open(&self.curvature.as_ref().unwrap().1).unwrap()
    }

    pub(crate) fn fit(&self) -> (Vec<Basis>, Vec<LambdaSum>) {
        let basis = self.basis().rows::<Basis>().unwrap().collect::<Result<_>>().unwrap();
        (basis, self.lambda().rows::<LambdaSum>().unwrap().collect::<Result<_>>().unwrap())
    }

    pub(crate) fn train(&self) -> &Artifact<Tokens> {
        &self.train
    }

    /// The training rows that the first queries come from.
    pub(crate) fn memorised(&self) -> [usize; 6] {
        self.set.memorised
    }

    /// The first training sequences.
    pub(crate) fn slice(&self, examples: usize) -> Artifact<Tokens> {
        let rows: Vec<Example> = self.train.rows::<Example>().unwrap().take(examples).collect::<Result<_>>().unwrap();
        Self::produce(self.folder.path(), "slice", |draft| {
            draft.write(0, &[<Example as Row<Tokens>>::to_batch(&rows)?])
        })
    }

    pub(crate) fn query_gradients(&self) -> &Artifact<Gradients> {
        &self.gradients
    }

    pub(crate) fn gradients(&self, tokens: &Artifact<Tokens>) -> Artifact<Gradients> {
        let config = wherefrom_gradients::Config { modules: self.modules.clone(), ..Default::default() };
        let inputs = wherefrom_gradients::Inputs { tokens: tokens.clone(), vectors: None, model: self.set.model() };
        Self::produce(self.folder.path(), "of-slice", |draft| {
            wherefrom_gradients::run(&config, &inputs, &self.exec, draft)
        })
    }

    /// An index of these tokens, of so many of which every query is scored.
    pub(crate) fn indexed(&self, dimensions: usize, tokens: &Artifact<Tokens>, examples: usize) -> Indexed {
        let (folder, model) = (self.folder.path(), self.set.model());
        let (eigenbasis, lambda) = (self.basis(), self.lambda());
        let inputs = coordinates::Inputs { lambda: lambda.clone() };
        let chosen: Artifact<wherefrom_artifact::Coordinates> = Self::produce(folder, "coordinates", |draft| {
            coordinates::run(&coordinates::Config { dimensions }, &inputs, &self.exec, draft)
        });
        let inputs = index::Inputs {
            tokens: tokens.clone(),
            model,
            eigenbasis: eigenbasis.clone(),
            coordinates: chosen.clone(),
        };
        let made: Artifact<wherefrom_artifact::Index> =
            Self::produce(folder, "index", |draft| index::run(&index::Config::default(), &inputs, &self.exec, draft));
        let rows = made.rows::<Signs>().unwrap().collect::<Result<_>>().unwrap();
        let table = chosen.rows::<Coordinate>().unwrap().collect::<Result<_>>().unwrap();
        let queries = self.gradients.clone();
        let inputs = score_index::Inputs { queries, index: made, coordinates: chosen, eigenbasis, lambda };
        let config = score_index::Config { training_examples: Some(1), ..Default::default() };
        let scores: Artifact<Scores> =
            Self::produce(folder, "index-scores", |draft| score_index::run(&config, &inputs, &self.exec, draft));
        let mut matrix = vec![f64::NAN; self.queries * examples];
        for row in scores.rows::<Score>().unwrap() {
            let row = row.unwrap();
            matrix[row.query as usize * examples + row.example as usize] = f64::from(row.influence);
        }
        assert!(matrix.iter().all(|value| value.is_finite()), "a pair has no score");
        Indexed { table, rows, scores: matrix }
    }
}

pub(crate) struct DetailRows {
    rows: HashMap<(usize, usize), Detail>,
    names: Vec<String>,
    examples: f64,
}

impl DetailRows {
    /// As the reference: [modules, queries, examples].
    pub(crate) fn by_module(&self, reference: &Reference) -> Vec<f64> {
        assert_eq!(self.names, reference.modules());
        let shape = reference.shape("per_module");
        let mut values = Vec::new();
        for m in 0..shape[0] {
            for q in 0..shape[1] {
                values.extend((0..shape[2]).map(|z| f64::from(self.rows[&(q, z)].by_module[m]) * self.examples));
            }
        }
        values
    }

    /// As the reference: [queries, examples, tokens], zero on padding.
    pub(crate) fn by_token(&self, reference: &Reference) -> Vec<f64> {
        let shape = reference.shape("per_token");
        let mut values = Vec::new();
        for q in 0..shape[0] {
            for z in 0..shape[1] {
                let tokens = &self.rows[&(q, z)].by_token;
                values.extend((0..shape[2]).map(|t| tokens.get(t).map_or(0.0, |&x| f64::from(x) * self.examples)));
            }
        }
        values
    }
}

/// The fixed draw of the fixture, by example.
fn given(set: &Set) -> HashMap<u64, Vec<i64>> {
    let file = Reference::read(set, "sampled_labels");
    let width = file.shape("sampled_labels")[1];
    let labels = file.values("sampled_labels");
    labels.chunks(width).enumerate().map(|(z, row)| (z as u64, row.iter().map(|&x| x as i64).collect())).collect()
}
