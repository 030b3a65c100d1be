//! What is kept of the iteration between runs.

use std::io::Read;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use wherefrom_artifact::Draft;

use super::Config;
use super::iteration::{Query, State, Told};

const CHECKPOINT: &str = "solve";

/// What stands at the head of a checkpoint; the vectors follow.
#[derive(Serialize, Deserialize)]
struct Header {
    steps: usize,
    length: Option<f64>,
    queries: Vec<Told>,
}

impl State {
    pub(super) fn save(&self, draft: &Draft, config: &Config) -> Result<()> {
        draft.checkpoint_each(CHECKPOINT, |into| {
            let queries = self.queries.iter().map(|query| query.told.clone()).collect();
            let header = serde_json::to_vec(&Header { steps: self.steps, length: self.length, queries })?;
            into.write_all(&(header.len() as u64).to_le_bytes())?;
            into.write_all(&header)?;
            for vector in self.queries.iter().flat_map(|query| [&query.x, &query.r, &query.p]) {
                into.write_all(&(vector.len() as u64).to_le_bytes())?;
                let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                into.write_all(&bytes)?;
            }
            Ok(())
        })?;
        // For `wherefrom plan`; written after the vectors, so it never promises too much.
        draft.checkpoint("done", format!("{}/{}", self.steps, config.steps).as_bytes())
    }

    /// As an earlier run left it, with vectors of that size.
    ///
    /// # Errors
    /// As [`Draft::restore_each`], and vectors of another size.
    pub(super) fn restore(draft: &Draft, size: usize) -> Result<Option<Self>> {
        let Some(mut saved) = draft.restore_each(CHECKPOINT)? else { return Ok(None) };
        let mut header = vec![0; length(&mut saved)?];
        saved.read_exact(&mut header).context("read a checkpoint")?;
        let Header { steps, length: s, queries } = serde_json::from_slice(&header).context("read a checkpoint")?;
        let mut query = |told: Told| -> Result<Query> {
            let mut vector = || -> Result<Vec<f64>> {
                let found = length(&mut saved)?;
                ensure!(found == size || found == 0, "the checkpoint has vectors of {found} numbers: remove the draft");
                let mut bytes = vec![0; 8 * found];
                saved.read_exact(&mut bytes).context("read a checkpoint")?;
                let number = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().unwrap_or_default());
                Ok(bytes.chunks_exact(8).map(number).collect())
            };
            Ok(Query { x: vector()?, r: vector()?, p: vector()?, told })
        };
        let queries = queries.into_iter().map(&mut query).collect::<Result<_>>()?;
        Ok(Some(Self { queries, steps, length: s }))
    }
}

fn length(from: &mut impl Read) -> Result<usize> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes).context("read a checkpoint")?;
    let length = u64::from_le_bytes(bytes);
    ensure!(length < 1 << 40, "a checkpoint has no such length: remove the draft");
    Ok(length as usize)
}
