//! Sums that several processes make: a share is a group of modules over a group of spans, and leaves a sum of each of its
//! modules in the draft, with its shape and digest. Whoever has them all adds them in a fixed tree.

use std::io::Read;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Draft, Share, bad_input};
use wherefrom_stage::Sums;

use crate::sums::{CHUNK, read_values};

/// Name of the state that says how the shares lie.
const GRID: &str = "shares";

/// How the shares of a sum lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Grid {
    /// How many shares there are.
    of: usize,
    /// Groups of spans: span i is in group i modulo this.
    pub(crate) span_groups: usize,
    /// Places of the modules of each group.
    modules: Vec<Vec<usize>>,
}

impl Grid {
    /// Of modules whose sums have so many bytes each, as [`Sums::groups`] has them.
    pub(crate) fn new(of: usize, bytes: &[u64], limit: u64) -> Self {
        let total: u64 = bytes.iter().sum();
        let (groups, span_groups) = Sums { modules: bytes.len(), bytes: total }.groups(of, limit);
        let mut modules = vec![Vec::new(); groups];
        let mut before = 0;
        for (place, bytes) in bytes.iter().enumerate() {
            // By where its middle lies: in order, and about equally much.
            let middle = before as f64 + *bytes as f64 / 2.0;
            let group = (groups as f64 * middle / total.max(1) as f64) as usize;
            modules[group.min(groups - 1)].push(place);
            before += bytes;
        }
        Self { of, span_groups, modules }
    }

    /// As the first share of the draft laid them.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] where that was for another number of shares.
    pub(crate) fn agreed(draft: &Draft, make: impl FnOnce() -> Self) -> Result<Self> {
        let own = make();
        draft.hand_over(GRID, |into| Ok(serde_json::to_writer(into, &own)?))?;
        let found = Self::found(draft)?.unwrap_or(own);
        match found.of == draft.share().of {
            true => Ok(found),
            false => Err(bad_input(format!(
                "the step was begun with {} shares and not {}; go on with --shard K/{}, or without --shard, which makes what is \
                 missing alone",
                found.of,
                draft.share().of,
                found.of
            ))),
        }
    }

    /// How they lie in the draft, if shares were done there.
    pub(crate) fn found(draft: &Draft) -> Result<Option<Self>> {
        let read = |bytes: Vec<u8>| Ok(serde_json::from_slice(&bytes)?);
        draft.restore(GRID)?.map(read).transpose()
    }

    /// The places of a share's modules, and its group of spans.
    pub(crate) fn of_share(&self, share: Share) -> (&[usize], usize) {
        (&self.modules[share.index / self.span_groups], share.index % self.span_groups)
    }

    /// The name of the sums of a module over a group of spans.
    pub(crate) fn name(&self, place: usize, group: usize) -> String {
        format!("sums-of-{place:05}-over-{group}-of-{}", self.span_groups)
    }

    /// Whether the sums of a module are all there.
    pub(crate) fn has_all(&self, draft: &Draft, place: usize) -> bool {
        (0..self.span_groups).all(|group| draft.has_state(&self.name(place, group)))
    }
}

/// Fills the chunks of `sums` from as many numbers of each reader, added in pairs of neighbours, pairs of pairs, and so on.
pub(crate) fn add_in_pairs<'a>(readers: &mut [impl Read], sums: impl Iterator<Item = &'a mut [f64]>) -> Result<()> {
    ensure!(!readers.is_empty(), "a sum of nothing");
    for values in sums.flat_map(|values| values.chunks_mut(CHUNK)) {
        let mut level = Vec::with_capacity(readers.len());
        for reader in &mut *readers {
            let mut own = vec![0.0; values.len()];
            read_values(reader, &mut own)?;
            level.push(own);
        }
        while level.len() > 1 {
            let mut pairs = level.into_iter();
            let mut above = Vec::new();
            while let Some(mut first) = pairs.next() {
                let second = pairs.next().unwrap_or_default();
                first.iter_mut().zip(second).for_each(|(sum, value)| *sum += value);
                above.push(first);
            }
            level = above;
        }
        values.copy_from_slice(&level[0]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_spans_until_their_sums_have_no_room() {
        let bytes = [10, 20, 30, 40];
        let grid = |limit| Grid::new(6, &bytes, limit);
        assert_eq!((grid(600).span_groups, grid(600).modules.len()), (6, 1));
        assert_eq!((grid(300).span_groups, grid(300).modules), (3, vec![vec![0, 1, 2], vec![3]]));
        // Four modules make no six groups.
        assert_eq!((grid(1).span_groups, grid(1).modules.len()), (2, 3));
        for limit in [600, 300, 1] {
            let grid = grid(limit);
            let mut units: Vec<(usize, usize)> = Vec::new();
            for index in 0..6 {
                let (modules, group) = grid.of_share(Share { index, of: 6 });
                units.extend(modules.iter().map(|&place| (place, group)));
            }
            units.sort_unstable();
            let all: Vec<_> = (0..4).flat_map(|place| (0..grid.span_groups).map(move |group| (place, group))).collect();
            assert_eq!(units, all, "every module over every group of spans once");
        }
    }
}
