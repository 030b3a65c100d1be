//! A Hugging Face checkpoint folder, and the checkpoints on the way to it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::error::bad_input;
use crate::kinds::definition::Definition;
use crate::manifest::Manifest;

pub(super) const DEFINITION: Definition = Definition::folder("model", 1);

/// Folders of the checkpoints that a fine-tuned model was kept at, in order, with the learning rate of the step before each.
///
/// # Errors
/// [`crate::Error::Input`] for a model that keeps none.
pub fn kept_checkpoints(model: &Path) -> Result<Vec<(PathBuf, f64)>> {
    let kept = Manifest::read(model).ok().and_then(|manifest| manifest.summary.get("checkpoints").cloned());
    let Some(kept) = kept else {
        return Err(bad_input(format!(
            "the model keeps no checkpoints: take that of a fine-tune step with checkpoints = 5 or another number: {}",
            model.display()
        )));
    };
    let rates: BTreeMap<u64, f64> =
        serde_json::from_value(kept).context("read the learning rates of the checkpoints")?;
    Ok(rates.into_iter().map(|(step, rate)| (model.join(format!("checkpoints/{step:06}")), rate)).collect())
}
