//! The study of `tests/fixtures/golden-few` on a device: 16 queries against 128 rows, from covariances to scores, beside
//! the numbers of an independent float64 implementation.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::json;
use wherefrom_artifact::{Artifact, ArtifactKind, Draft, Recipe, Score, Scores, Silent, Store, Tokens};
use wherefrom_curvature::precondition::{Damping, Method, Rank};
use wherefrom_curvature::{covariance, eigenbasis, lambda, precondition};
use wherefrom_model::{Modules, Precision};
use wherefrom_stage::{Device, Exec};
use wherefrom_tokenize::tokenize;

/// What came out of the study in one precision.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Golden {
    pub(crate) precision: String,
    /// max|score - reference| / max|reference|, queries whole and of rank 32.
    pub(crate) full: f64,
    pub(crate) rank_32: f64,
    /// Pearson's correlation over the rows, the least of all queries and both ranks.
    pub(crate) correlation: f64,
    /// What the two errors may be.
    pub(crate) bound: f64,
    pub(crate) seconds: f64,
}

impl Golden {
    pub(crate) fn met(&self) -> bool {
        self.full <= self.bound && self.rank_32 <= self.bound
    }

    /// Does the study with the fixtures in `golden`, in a new folder below `work`.
    pub(crate) fn study(golden: &Path, work: &Path, device: Device, precision: Precision) -> Result<Self> {
        let start = Instant::now();
        let store = work.join(format!("golden-{}-{}", precision.name(), wherefrom_artifact::unique()));
        let study = Study {
            golden,
            store: Store::new(store.clone()),
            exec: Exec { device, batch_tokens: 2048, ..Exec::default() },
            precision,
        };
        let [full, low] = study.scores()?;
        fs::remove_dir_all(&store)?;
        let reference = fs::read(golden.join("reference_mlp_empirical.safetensors"))?;
        let (whole, rank_32) = (values(&reference, "pairwise")?, values(&reference, "pairwise_rank32")?);
        let rows = full.len() / study.queries()?;
        let correlation = |found: &[f64], expected: &[f64]| {
            let each = found.chunks(rows).zip(expected.chunks(rows)).map(|(found, expected)| pearson(found, expected));
            each.fold(f64::INFINITY, f64::min)
        };
        Ok(Self {
            precision: precision.name().into(),
            full: error(&full, &whole)?,
            rank_32: error(&low, &rank_32)?,
            correlation: correlation(&full, &whole).min(correlation(&low, &rank_32)),
            bound: bound(precision),
            seconds: start.elapsed().as_secs_f64(),
        })
    }
}

/// float32: what the tests ask of every device. float16: three times the 1.3e-3 that the CPU's own float16 arithmetic is off by.
fn bound(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 1e-5,
        Precision::F16 | Precision::Bf16 => 4e-3,
    }
}

struct Study<'a> {
    golden: &'a Path,
    store: Store,
    exec: Exec,
    precision: Precision,
}

impl Study<'_> {
    fn make<K: ArtifactKind>(&self, name: &str, fill: impl FnOnce(&mut Draft) -> Result<()>) -> Result<Artifact<K>> {
        let recipe =
            Recipe { stage: name.into(), version: 1, config: json!(null), inputs: BTreeMap::new(), model: None };
        let (folder, _) = self.store.produce(K::KIND, recipe, &Silent, fill)?;
        Artifact::open(&folder)
    }

    fn tokens(&self, name: &str) -> Result<Artifact<Tokens>> {
        let inputs = tokenize::Inputs {
            corpus: self.golden.join(format!("{name}.jsonl")),
            tokenizer: None,
            chat_template: None,
        };
        self.make(name, |draft| tokenize::run(&tokenize::Config::new(96), &inputs, &self.exec, draft))
    }

    fn queries(&self) -> Result<usize> {
        Ok(fs::read_to_string(self.golden.join("queries.jsonl"))?.lines().count())
    }

    /// Raw scores, [queries, rows] row by row: queries whole, and of rank 32.
    fn scores(&self) -> Result<[Vec<f64>; 2]> {
        let model = self.golden.join("model");
        let (train, asked) = (self.tokens("train")?, self.tokens("queries")?);
        let (precision, exec, modules) = (self.precision, &self.exec, Modules::default());
        let covariances = self.make("covariances", |draft| {
            let inputs = covariance::Inputs { tokens: train.clone(), model: model.clone().into() };
            let config = covariance::Config {
                labels: wherefrom_model::LabelsKind::Empirical,
                modules: modules.clone(),
                precision,
                ..Default::default()
            };
            covariance::run(&config, &inputs, exec, draft)
        })?;
        let basis = self.make("eigenbasis", |draft| {
            eigenbasis::run(&eigenbasis::Config {}, &eigenbasis::Inputs { covariances }, exec, draft)
        })?;
        let lambda = self.make("lambda", |draft| {
            let inputs =
                lambda::Inputs { tokens: train.clone(), eigenbasis: Some(basis.clone()), model: model.clone().into() };
            let config = lambda::Config {
                labels: wherefrom_model::LabelsKind::Empirical,
                modules: modules.clone(),
                precision,
                ..Default::default()
            };
            lambda::run(&config, &inputs, exec, draft)
        })?;
        let gradients = self.make("gradients", |draft| {
            let inputs = wherefrom_gradients::Inputs { tokens: asked, vectors: None, model: model.clone().into() };
            let config = wherefrom_gradients::Config { modules: modules.clone(), precision, ..Default::default() };
            wherefrom_gradients::run(&config, &inputs, exec, draft)
        })?;
        let scores = |name: &str, rank: Rank| -> Result<Vec<f64>> {
            let queries = self.make(name, |draft| {
                let config = precondition::Config {
                    method: Method::Ekfac,
                    damping: Damping::Relative(0.1),
                    rank,
                    ..Default::default()
                };
                let inputs = precondition::Inputs {
                    gradients: gradients.clone(),
                    eigenbasis: Some(basis.clone()),
                    lambda: Some(lambda.clone()),
                };
                precondition::run(&config, &inputs, exec, draft)
            })?;
            let scores: Artifact<Scores> = self.make(name, |draft| {
                let config = wherefrom_score::Config { precision, ..Default::default() };
                let (tokens, model) = (train.clone(), model.clone().into());
                let inputs = wherefrom_score::Inputs { queries, tokens, model, candidates: None };
                wherefrom_score::run(&config, &inputs, exec, draft)
            })?;
            let examples = train.examples() as usize;
            let mut matrix = vec![f64::NAN; self.queries()? * examples];
            for row in scores.rows::<Score>()? {
                let row = row?;
                let place = row.query as usize * examples + row.example as usize;
                matrix[place] = f64::from(row.influence) * examples as f64;
            }
            ensure!(matrix.iter().all(|value| value.is_finite()), "a pair has no score");
            Ok(matrix)
        };
        Ok([scores("full", Rank::Full)?, scores("rank-32", Rank::Low(32))?])
    }
}

/// A float64 tensor of a safetensors file.
fn values(file: &[u8], name: &str) -> Result<Vec<f64>> {
    let tensors = SafeTensors::deserialize(file)?;
    let tensor = tensors.tensor(name)?;
    ensure!(tensor.dtype() == Dtype::F64, "{name} is {:?}", tensor.dtype());
    let number = |bytes: &[u8]| Some(f64::from_le_bytes(bytes.try_into().ok()?));
    tensor.data().chunks_exact(8).map(number).collect::<Option<_>>().context("eight bytes a number")
}

/// max|found - reference| / max|reference|.
fn error(found: &[f64], reference: &[f64]) -> Result<f64> {
    ensure!(found.len() == reference.len(), "{} scores for {}", found.len(), reference.len());
    let scale = reference.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
    Ok(found.iter().zip(reference).fold(0.0_f64, |most, (x, y)| most.max((x - y).abs())) / scale)
}

fn pearson(x: &[f64], y: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mx, my) = (mean(x), mean(y));
    let product = |f: &dyn Fn(f64, f64) -> f64| x.iter().zip(y).map(|(x, y)| f(x - mx, y - my)).sum::<f64>();
    product(&|x, y| x * y) / (product(&|x, _| x * x) * product(&|_, y| y * y)).sqrt()
}
