//! Influence within a random projection of the gradients: TRAK's kernel (Park et al. 2023, arXiv 2303.14186), and with
//! `cosine` TrackStar's (Chang et al. 2024, arXiv 2410.17413).
//!
//! ```text
//! K = (1/N) sum over examples z of phi_z phi_z^T,   influence(q, z) = (1/N) phi_q^T (K + damping)^-1 phi_z
//! cosine(q, z) = y_q . y_z / (|y_q| |y_z|),         y = (K + damping)^-1/2 phi
//! ```
//!
//! K is the empirical Gauss-Newton matrix of the projected gradients. Of TRAK it leaves out the factor 1 - p, which belongs to
//! its margin and not to log p, and the mean over models; of TrackStar the second moments and the mixing of two K.
//!
//! reads   projections of the queries and of the corpus
//! writes  scores, a part per part of the corpus' projections

use anyhow::Result;
use burn::tensor::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{
    Artifact, Draft, Error, Kind, Projected, ProjectedGradients, Score, Scores, bad_input, check_training_examples,
};
use wherefrom_linalg::kernels::{Form, Sum, product};
use wherefrom_linalg::{Threads, symmetric_eigen};
use wherefrom_model::open_device;
use wherefrom_stage::{About, Cost, Exec, Role, Stage, Writes, at_least};

use crate::method::Damping;
use crate::tensors::{tensor, values};

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `score-projected-gradients`.
pub static STAGE: Stage<Config> = Stage {
    about: About::new("score-projected-gradients", VERSION).on_device().split(),
    roles: &[
        Role::required("queries", &[Kind::ProjectedGradients]),
        Role::required("projections", &[Kind::ProjectedGradients]),
    ],
    parse: |knobs| {
        let config: Config = at_least("training-examples", 1, knobs)?;
        // A cosine is of no number of examples.
        Ok(Config { training_examples: config.training_examples.filter(|_| !config.cosine), ..config })
    },
    check: Config::check,
    writes: Writes::One(Kind::Scores),
    makes_model: |_| None,
    cost: |_, planned, _| {
        let side = planned.input("projections").and_then(|step| step.config["side"].as_f64()).unwrap_or(32.0);
        let (size, pairs, rows) = (side * side, planned.scored_pairs(), planned.size_of("projections").rows);
        let flops = 9.0 * size.powi(3) + 4.0 * rows * size * size + 2.0 * pairs * size;
        Cost::new(60.0 * size * size + 16.0 * ROWS as f64 * size, 12.0 * pairs, flops)
    },
    run: |config, given, exec, draft| {
        let inputs = Inputs { queries: given.open("queries")?, projections: given.open("projections")? };
        run(config, &inputs, exec, draft)
    },
};

/// Rows that are multiplied at once.
const ROWS: usize = 1024;

/// What is computed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// What is added to K: a share of its mean eigenvalue (a bare number), or one number.
    pub damping: Damping,
    /// Divide by the lengths of both.
    pub cosine: bool,
    /// N of the influence; by default the rows of the projections.
    pub training_examples: Option<u64>,
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        check_training_examples(self.training_examples)?;
        self.damping.check()
    }
}

/// What is scored.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Of the queries.
    pub queries: Artifact<ProjectedGradients>,
    /// Of the training sequences, by the same projection.
    pub projections: Artifact<ProjectedGradients>,
}

/// Fits K to the training examples and scores every pair.
///
/// # Errors
/// [`wherefrom_artifact::Error::Mismatch`] for two projections, [`wherefrom_artifact::Error::Input`] for a damping below what
/// rounding leaves of K.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let Inputs { queries, projections } = inputs;
    for name in ["side", "seed", "modules"] {
        let [asked, given] = [queries.metadata(name)?, projections.metadata(name)?];
        if asked != given {
            let [asked, given] = [asked, given].map(Option::unwrap_or_default);
            return Err(Error::Mismatch(format!(
                "the queries are projected with {name} = {asked}, the training examples with {name} = {given}; give both \
                 projections steps the same"
            ))
            .into());
        }
    }
    let unit = "nats per added copy, within the projection";
    draft.metadata("unit", if config.cosine { "cosine of projected gradients" } else { unit });
    draft.metadata("sign", "positive = one more copy raises log p(completion)");
    draft.metadata("method", "projections");
    draft.metadata("modules", projections.metadata("modules")?.unwrap_or_default());
    for name in ["modules", "coverage"] {
        if let Some(value) = projections.manifest().summary.get(name) {
            draft.summary(name, value)?;
        }
    }
    let parts: usize = draft.plan(|| Ok(projections.parts()))?;
    let examples = projections.manifest().rows();
    exec.reporter.begin("score-projected-gradients", "examples", 2 * examples, 0);
    let device = open_device(exec.device.gpu())?;
    let whitening = whitening(config, projections, &device, exec)?;
    let whitened = |rows: &[Projected]| -> Result<Tensor<2>> {
        let y = product(stacked(rows, &device)?, whitening.clone());
        let lengths = y.clone().square().sum_dim(1).sqrt().clamp_min(f32::MIN_POSITIVE);
        Ok(if config.cosine { y / lengths } else { y })
    };
    let asked: Vec<Projected> = queries.rows()?.collect::<Result<_>>()?;
    let directions = whitened(&asked)?.transpose();
    let count = config.training_examples.unwrap_or(examples).max(1) as f32;
    let scale = if config.cosine { 1.0 } else { count.recip() };
    for part in 0..parts {
        let rows: Vec<Projected> = projections.rows_in(part)?.collect::<Result<_>>()?;
        exec.reporter.advance(rows.len() as u64);
        if draft.has(part) {
            continue;
        }
        let mut scores = Vec::new();
        for rows in rows.chunks(ROWS) {
            let products = values(product(whitened(rows)?, directions.clone()))?;
            for (row, products) in rows.iter().zip(products.chunks_exact(asked.len().max(1))) {
                let score = |(query, value): (&Projected, &f32)| Score {
                    query: query.example as u32,
                    example: row.example,
                    influence: scale * value,
                };
                scores.extend(asked.iter().zip(products).map(score));
            }
        }
        scores.sort_by_key(|row| (row.query, row.example));
        draft.write_rows::<Scores, _>(part, &scores)?;
    }
    exec.reporter.end();
    Ok(())
}

/// Q (Lambda + damping)^-1/2 of K = Q Lambda Q^T: [dimensions, dimensions].
fn whitening(
    config: &Config,
    projections: &Artifact<ProjectedGradients>,
    device: &Device,
    exec: &Exec,
) -> Result<Tensor<2>> {
    let mut sum: Option<Sum> = None;
    for part in 0..projections.parts() {
        let rows: Vec<Projected> = projections.rows_in(part)?.collect::<Result<_>>()?;
        for rows in rows.chunks(ROWS) {
            let x = stacked(rows, device)?;
            sum.get_or_insert_with(|| Sum::zeros(Form::Symmetric(x.dims()[1]))).add_gram(x);
        }
        exec.reporter.advance(rows.len() as u64);
    }
    let Some(mut sum) = sum else { return Err(bad_input("there are no projections of training examples")) };
    sum.settle()?;
    let count = projections.manifest().rows() as f64;
    let matrix: Vec<f64> = sum.matrix().into_iter().map(|value| f64::from(value) / count).collect();
    let size = matrix.len().isqrt();
    let (eigenvalues, vectors) = symmetric_eigen(&matrix, size, Threads::All)?;
    let mean = eigenvalues.iter().sum::<f64>() / size as f64;
    let damping = match config.damping {
        Damping::Relative(share) => share * mean,
        Damping::Absolute(value) => value,
    };
    let rounding = f64::from(f32::EPSILON) * eigenvalues.last().copied().unwrap_or_default();
    let roots: Vec<f64> = eigenvalues.iter().map(|value| (value.max(0.0) + damping).sqrt()).collect();
    if damping < rounding && eigenvalues[0] + damping < rounding {
        return Err(bad_input(format!(
            "damping {damping:.0e} is below what float32 leaves of a zero of the projections' Gauss-Newton matrix \
             ({rounding:.0e}); raise `damping` (0.1 is usual)"
        )));
    }
    let scaled =
        vectors.chunks_exact(size).flat_map(|row| row.iter().zip(&roots).map(|(value, root)| (value / root) as f32));
    Ok(tensor(scaled.collect(), [size, size], device))
}

/// Rows one below the other: [rows, dimensions].
fn stacked(rows: &[Projected], device: &Device) -> Result<Tensor<2>> {
    let size = rows.first().map_or(0, |row| row.values.len());
    if let Some(row) = rows.iter().find(|row| row.values.len() != size) {
        let what = format!("example {} has {} dimensions, others have {size}", row.example, row.values.len());
        return Err(Error::Mismatch(what).into());
    }
    Ok(tensor(rows.iter().flat_map(|row| &row.values).copied().collect(), [rows.len(), size], device))
}
