//! A Hugging Face checkpoint folder, and the checkpoints on the way to it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::error::bad_input;
use crate::kinds::definition::Definition;
use crate::manifest::{MANIFEST, Manifest};

pub(super) const DEFINITION: Definition = Definition::folder("model", 1);

/// The file of a folder, of no artifact, that says which checkpoints it keeps, with their learning rates.
pub const CHECKPOINTS: &str = "checkpoints.json";

/// The file of a kept checkpoint that has Adam's moments.
pub const OPTIMIZER: &str = "optimizer.safetensors";

/// Folders of the checkpoints that a model was kept at in training, in order, with the learning rate of the step before each:
/// of a `fine-tune` step by its manifest, of another folder by [`CHECKPOINTS`].
///
/// # Errors
/// [`crate::Error::Input`] for a model that keeps none, and for a list that is malformed or names a folder that is not there.
pub fn kept_checkpoints(model: &Path) -> Result<Vec<(PathBuf, f64)>> {
    let (manifest, listed) = (model.join(MANIFEST), model.join(CHECKPOINTS));
    let kept = if manifest.exists() {
        Manifest::read(model).ok().and_then(|manifest| manifest.summary.get("checkpoints").cloned())
    } else if listed.exists() {
        let malformed = |error| bad_input(format!("{} is not JSON ({error}); train again", listed.display()));
        Some(serde_json::from_slice(&crate::read(&listed)?).map_err(malformed)?)
    } else {
        None
    };
    let Some(kept) = kept else {
        return Err(bad_input(format!(
            "the model keeps no checkpoints: take that of a fine-tune step with checkpoints = 5 or another number, or a folder \
             that wherefrom.trainer.KeepCheckpoints wrote (docs/python.md): {}",
            model.display()
        )));
    };
    let wrong = |what: String| bad_input(format!("{what}: {}", listed.display()));
    let rates: BTreeMap<u64, f64> = serde_json::from_value(kept)
        .map_err(|error| wrong(format!("the list of checkpoints is no object of learning rates by step ({error})")))?;
    let folder = |(step, rate): (u64, f64)| {
        let folder = model.join(format!("checkpoints/{step:06}"));
        if !(rate.is_finite() && rate >= 0.0) {
            return Err(wrong(format!("step {step} has the learning rate {rate}; a rate is a number of 0 or more")));
        }
        if !folder.is_dir() {
            return Err(wrong(format!("step {step} is listed, and there is no folder checkpoints/{step:06}")));
        }
        Ok((folder, rate))
    };
    let kept = rates.into_iter().map(folder).collect::<Result<Vec<_>>>()?;
    if kept.is_empty() {
        return Err(wrong("the list of checkpoints is empty".into()));
    }
    Ok(kept)
}
