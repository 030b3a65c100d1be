//! A = Q_A diag(l_A) Q_A^T and S = Q_S diag(l_S) Q_S^T of the mean covariances, in float64, block by block.
//!
//! reads   covariances
//! writes  eigenbasis

use std::slice;

use anyhow::{Context as _, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Artifact, Basis, Covariance, Covariances, Draft, Eigenbasis, Kind, Row};
use wherefrom_linalg::{Threads, symmetric_eigen};
use wherefrom_model::Module;
use wherefrom_pass::sizes_of;
use wherefrom_stage::{About, Cost, Device, Exec, Machine, Planned, Role, Stage, Writes};

use crate::blocks::blocks_of;
use crate::covariance::{self, Factors};
use crate::side_by_side::{self, side_by_side};

/// Raised when results change.
pub const VERSION: u32 = 3;

/// The stage `eigenbasis`.
pub static STAGE: Stage<Config> = Stage {
    about: About::new("eigenbasis", VERSION).split(),
    roles: &[Role::required("covariances", &[Kind::Covariances])],
    parse: serde_json::from_value,
    check: |_| Ok(()),
    writes: Writes::One(Kind::Eigenbasis),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| run(config, &Inputs { covariances: given.open("covariances")? }, exec, draft),
};

/// There is nothing to choose.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {}

/// What is decomposed.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Sums over tokens or examples.
    pub covariances: Artifact<Covariances>,
}

/// Decomposes every matrix: eigenvalues ascending, eigenvectors as columns; of a diagonal the mean in its order, and no vectors. A
/// part per part of the covariances.
pub fn run(_config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    for name in ["tokens", "examples", "blocks"] {
        if let Some(count) = inputs.covariances.manifest().count(name) {
            draft.metadata(name, count.to_string());
            draft.summary(name, count)?;
        }
    }
    for name in ["factors", "expert_tokens", "diagonal"] {
        if let Some(value) = inputs.covariances.manifest().summary.get(name) {
            draft.summary(name, value)?;
        }
    }
    let parts: Vec<usize> = draft.plan(|| Ok((0..inputs.covariances.parts()).collect()))?;
    exec.reporter.begin("eigenbasis", "matrices", inputs.covariances.manifest().rows(), 0);
    let pending = parts.into_iter().filter(|&part| !draft.has(part)).collect::<Vec<_>>();
    let work = pending
        .into_iter()
        .map(|part| Ok((part, inputs.covariances.rows_in::<Covariance>(part)?.collect::<Result<Vec<_>>>()?)));
    let size = |(_, rows): &(usize, Vec<Covariance>)| rows.iter().map(|row| bytes(row.matrix.len().isqrt())).sum();
    let decomposed = side_by_side(work, rayon::current_num_threads(), size, Ok, |(part, rows), threads| {
        Ok((part, rows.into_iter().map(|row| decompose(row, threads, exec)).collect::<Result<Vec<_>>>()?))
    });
    for done in decomposed {
        let (part, bases) = done?;
        // A batch for each matrix: the offsets of a batch's lists have 32 bits.
        draft.write_each(part, bases.into_iter().map(|basis| <Basis as Row<Eigenbasis>>::to_batch(&[basis])))?;
    }
    exec.reporter.end();
    Ok(())
}

/// Bytes for one matrix of size n: its sum, its mean, the solver's copies and work space, and the vectors, some in
/// float32 and some in float64.
pub(crate) fn bytes(n: usize) -> u64 {
    60 * (n as u64).pow(2)
}

/// Bytes for one matrix that is read, or decomposed and not yet written, with what is left of the work on it.
pub(crate) fn waiting(n: usize) -> u64 {
    10 * (n as u64).pow(2)
}

fn decompose(mut row: Covariance, threads: Threads, exec: &Exec) -> Result<Basis> {
    let (scale, diagonal) = (1.0 / row.count.max(1) as f64, row.is_diagonal());
    let mean: Vec<f64> = std::mem::take(&mut row.matrix).iter().map(|&value| f64::from(value) * scale).collect();
    let (values, vectors) = match diagonal {
        true => (mean, Vec::new()),
        false => symmetric_eigen(&mean, row.size, threads)
            .with_context(|| format!("the {} covariance of {}", row.side.name(), row.module))?,
    };
    exec.reporter.advance(1);
    let narrow = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
    let Covariance { module, side, shared_with, .. } = row;
    Ok(Basis { module, side, shared_with, values: narrow(values), vectors: narrow(vectors) })
}

fn cost(_config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(model) = sizes_of(planned, machine) else { return Cost::new(0.0, 0.0, 0.0) };
    let (blocks, modules) = (blocks_of(planned), Factors::planned(planned).modules(&model.modules));
    let sizes = |modules: &[Module]| covariance::sizes(modules, blocks).collect::<Vec<_>>();
    // A block of n takes some 9 n³ operations, in float64.
    let flops = 9.0 * sizes(&modules).into_iter().map(|n| (n as f64).powi(3)).sum::<f64>();
    let largest = |bytes: fn(usize) -> u64| {
        let module = |module: &Module| sizes(slice::from_ref(module)).into_iter().map(bytes).sum();
        modules.iter().map(module).max().unwrap_or(0)
    };
    let held = side_by_side::held(largest(bytes), largest(waiting), &Device::cpu());
    Cost::new(held as f64, covariance::summed(&modules, blocks) as f64 * 4.0, flops)
}
