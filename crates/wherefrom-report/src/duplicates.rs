//! Sequences that say nearly the same: shared runs of tokens.

use std::collections::BTreeSet;

use serde::Serialize;

/// Tokens of a run.
const RUN: usize = 3;
/// From this Jaccard similarity on two sequences are near-duplicates.
pub(crate) const NEAR: f64 = 0.5;

/// The runs of [`RUN`] tokens of a sequence.
#[derive(Debug, Clone, Default)]
pub(crate) struct Runs(BTreeSet<[u32; RUN]>);

/// A stronger sequence that says nearly the same.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Near {
    /// Its place in the list.
    pub(crate) place: usize,
    /// |shared runs| / |runs of either|.
    pub(crate) jaccard: f64,
}

impl Runs {
    /// Of these tokens.
    pub(crate) fn new(ids: &[u32]) -> Self {
        let run = |window: &[u32]| <[u32; RUN]>::try_from(window).unwrap_or_default();
        Self(ids.windows(RUN).map(run).collect())
    }

    /// |A and B| / |A or B|; 0 where either is empty.
    pub(crate) fn jaccard(&self, other: &Self) -> f64 {
        let shared = self.0.intersection(&other.0).count();
        let either = self.0.len() + other.0.len() - shared;
        if either == 0 { 0.0 } else { shared as f64 / either as f64 }
    }

    /// Share of these runs that `other` has, too; 0 where there are none.
    pub(crate) fn found_in(&self, other: &Self) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.intersection(&other.0).count() as f64 / self.0.len() as f64 }
    }
}

/// For each sequence the most similar of those before it, if it is near.
pub(crate) fn near(sequences: &[Runs]) -> Vec<Option<Near>> {
    let most_similar = |index: usize| {
        let before = sequences[..index].iter().map(|other| other.jaccard(&sequences[index])).enumerate();
        let near = before.filter(|(_, jaccard)| *jaccard >= NEAR);
        near.max_by(|left, right| left.1.total_cmp(&right.1).then(right.0.cmp(&left.0)))
    };
    (0..sequences.len()).map(|index| most_similar(index).map(|(place, jaccard)| Near { place, jaccard })).collect()
}
