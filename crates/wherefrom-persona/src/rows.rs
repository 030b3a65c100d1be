//! Facts about rows of tokens, as every stage that makes some states them.

use anyhow::Result;
use wherefrom_artifact::{Draft, Example};

/// What the summary of tokens has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    examples: u64,
    tokens: u64,
    targets: u64,
    longest: u64,
    largest_id: u32,
    largest_id_example: u64,
}

impl Counts {
    /// Of these rows.
    pub(crate) fn of(examples: &[Example]) -> Self {
        let mut counts = Self::default();
        for example in examples {
            let largest = example.input_ids.iter().max().copied().unwrap_or(0);
            if counts.examples == 0 || largest > counts.largest_id {
                (counts.largest_id, counts.largest_id_example) = (largest, example.example);
            }
            counts.examples += 1;
            counts.tokens += example.input_ids.len() as u64;
            counts.targets += example.target_mask.iter().filter(|&&target| target).count() as u64;
            counts.longest = counts.longest.max(example.longest_segment() as u64);
        }
        counts
    }

    /// Writes them.
    pub(crate) fn summarise(&self, draft: &mut Draft) -> Result<()> {
        let Self { examples, tokens, targets, longest, largest_id, largest_id_example } = self;
        draft.summary("examples", examples)?;
        draft.summary("rows", examples)?;
        draft.summary("tokens", tokens)?;
        draft.summary("targets", targets)?;
        draft.summary("truncated", 0)?;
        draft.summary("lost_tokens", 0)?;
        draft.summary("longest", longest)?;
        draft.summary("largest_id", largest_id)?;
        draft.summary("largest_id_example", largest_id_example)
    }
}
