//! A query on its way back through the run, and what is kept of it between runs.

use std::io::{Read, Write};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use wherefrom_artifact::Draft;
use wherefrom_train::reverse::{Adjoint, Values};

/// Behind some step of the run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Way {
    /// Steps that are still before it: the next to go back through is `left` - 1.
    pub(super) left: u64,
    /// The gradient of log p at the weights and moments there.
    pub(super) adjoint: Adjoint,
    /// By example, of the steps behind.
    pub(super) influences: Vec<f64>,
}

/// What stands at the head of a checkpoint; the numbers follow: influences, and the adjoint at weights, first and second moments.
#[derive(Serialize, Deserialize)]
struct Header {
    left: u64,
    influences: usize,
    parameters: Vec<(String, usize)>,
}

/// The checkpoint of a query.
fn name(query: usize) -> String {
    format!("back-{query}")
}

impl Way {
    pub(super) fn save(&self, draft: &Draft, query: usize) -> Result<()> {
        draft.checkpoint_each(&name(query), |into| self.write(into))
    }

    /// As an earlier run left it.
    ///
    /// # Errors
    /// As [`Draft::restore_each`].
    pub(super) fn restore(draft: &Draft, query: usize) -> Result<Option<Self>> {
        draft.restore_each(&name(query))?.map(|mut saved| Self::read(&mut saved)).transpose()
    }

    /// The query is done.
    pub(super) fn forget(draft: &Draft, query: usize) -> Result<()> {
        draft.forget(&name(query))
    }

    fn write(&self, into: &mut dyn Write) -> Result<()> {
        let Self { left, adjoint: Adjoint { weights, first, second }, influences } = self;
        let parameters = weights.iter().map(|(name, values)| (name.clone(), values.len())).collect();
        let header = serde_json::to_vec(&Header { left: *left, influences: influences.len(), parameters })?;
        into.write_all(&(header.len() as u64).to_le_bytes())?;
        into.write_all(&header)?;
        let adjoint = [weights, first, second].into_iter().flat_map(Values::values);
        for vector in [influences].into_iter().chain(adjoint) {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            into.write_all(&bytes)?;
        }
        Ok(())
    }

    fn read(from: &mut dyn Read) -> Result<Self> {
        let mut length = [0; 8];
        from.read_exact(&mut length).context("read a checkpoint")?;
        let mut header = vec![0; u64::from_le_bytes(length) as usize];
        from.read_exact(&mut header).context("read a checkpoint")?;
        let Header { left, influences, parameters } = serde_json::from_slice(&header).context("read a checkpoint")?;
        let mut vector = |count: usize| -> Result<Vec<f64>> {
            let mut bytes = vec![0; 8 * count];
            from.read_exact(&mut bytes).context("read a checkpoint")?;
            let number = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().unwrap_or_default());
            Ok(bytes.chunks_exact(8).map(number).collect())
        };
        let influences = vector(influences)?;
        let mut values = || -> Result<Values> {
            parameters.iter().map(|(name, count)| Ok((name.clone(), vector(*count)?))).collect()
        };
        Ok(Self { left, adjoint: Adjoint { weights: values()?, first: values()?, second: values()? }, influences })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_comes_back_as_it_was() {
        let values = |scale: f64| -> Values {
            [("a", vec![scale, -0.0]), ("b", vec![f64::MIN_POSITIVE, 2.0 * scale, 3.0])]
                .map(|(name, values)| (name.to_string(), values))
                .into()
        };
        let adjoint = Adjoint { weights: values(0.1), first: values(-7.0), second: values(1e300) };
        let way = Way { left: 17, adjoint, influences: vec![0.25, -1e-9] };
        let mut bytes = Vec::new();
        way.write(&mut bytes).unwrap();
        assert_eq!(Way::read(&mut &bytes[..]).unwrap(), way);
        assert!(Way::read(&mut &bytes[..bytes.len() - 1]).is_err(), "a checkpoint that is cut short");
    }
}
