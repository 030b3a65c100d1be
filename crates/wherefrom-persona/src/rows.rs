//! The summary of tokens, as every stage here that makes some states it.

use anyhow::Result;
use wherefrom_artifact::{Draft, Example, RowCounts};

/// States the facts about these rows.
pub(crate) fn summarise(rows: &[Example], draft: &mut Draft) -> Result<()> {
    let RowCounts { examples, tokens, targets, longest, largest_id, largest_id_example } = RowCounts::of(rows);
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
