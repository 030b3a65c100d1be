//! A = Q_A diag(l_A) Q_A^T and S = Q_S diag(l_S) Q_S^T of the means over tokens, in float64, block by block.
//!
//! reads   covariances
//! writes  eigenbasis

use anyhow::{Context as _, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use whence_artifact::{Artifact, Basis, Covariance, Covariances, Draft, Eigenbasis, Exec, Row};
use whence_linalg::{Threads, symmetric_eigen};

/// Raised when results change.
pub const VERSION: u32 = 1;

/// There is nothing to choose.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {}

/// What is decomposed.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Sums over tokens.
    pub covariances: Artifact<Covariances>,
}

/// Decomposes every matrix: eigenvalues ascending, eigenvectors as columns; a part per part of the covariances.
pub fn run(_config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    for name in ["tokens", "examples", "blocks"] {
        if let Some(count) = inputs.covariances.manifest().count(name) {
            draft.metadata(name, count.to_string());
            draft.summary(name, count)?;
        }
    }
    let parts: Vec<usize> = draft.plan(|| Ok((0..inputs.covariances.parts()).collect()))?;
    exec.reporter.begin("eigenbasis", "matrices", inputs.covariances.manifest().rows(), 0);
    let (mut waiting, mut held) = (Vec::new(), 0);
    for part in parts.into_iter().filter(|&part| !draft.has(part)).collect::<Vec<_>>() {
        let rows = inputs.covariances.rows_in::<Covariance>(part)?.collect::<Result<Vec<_>>>()?;
        let own: u64 = rows.iter().map(|row| bytes(row.size)).sum();
        if held + own > TOGETHER {
            decompose_all(&mut waiting, exec, draft)?;
            held = 0;
        }
        waiting.push((part, rows));
        held += own;
        if waiting.len() >= rayon::current_num_threads() {
            decompose_all(&mut waiting, exec, draft)?;
            held = 0;
        }
    }
    decompose_all(&mut waiting, exec, draft)?;
    exec.reporter.end();
    Ok(())
}

/// Bytes for one matrix of size n: its sum, its mean, the solver's copies and work space, and the vectors, some in
/// float32 and some in float64.
pub fn bytes(n: usize) -> u64 {
    60 * (n as u64).pow(2)
}

/// Bytes for matrices that are decomposed side by side, where one of them does not need more.
pub const TOGETHER: u64 = 1 << 30;

/// Decomposes what waits, a thread a matrix if there are several parts, and writes it.
fn decompose_all(waiting: &mut Vec<(usize, Vec<Covariance>)>, exec: &Exec, draft: &mut Draft) -> Result<()> {
    let threads = if waiting.len() > 1 { Threads::One } else { Threads::All };
    let done: Vec<(usize, Vec<Result<Basis>>)> = std::mem::take(waiting)
        .into_par_iter()
        .map(|(part, rows)| (part, rows.into_par_iter().map(|row| decompose(row, threads, exec)).collect()))
        .collect();
    for (part, bases) in done {
        // A batch for each matrix: the offsets of a batch's lists have 32 bits.
        draft.write_each(part, bases.into_iter().map(|basis| <Basis as Row<Eigenbasis>>::to_batch(&[basis?])))?;
    }
    Ok(())
}

fn decompose(row: Covariance, threads: Threads, exec: &Exec) -> Result<Basis> {
    let scale = 1.0 / row.count.max(1) as f64;
    let mean: Vec<f64> = row.matrix.iter().map(|&value| f64::from(value) * scale).collect();
    drop(row.matrix);
    let (values, vectors) = symmetric_eigen(&mean, row.size, threads)
        .with_context(|| format!("the {} covariance of {}", row.side.name(), row.module))?;
    exec.reporter.advance(1);
    let narrow = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
    Ok(Basis { module: row.module, side: row.side, values: narrow(values), vectors: narrow(vectors) })
}
