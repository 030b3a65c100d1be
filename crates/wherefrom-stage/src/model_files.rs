//! The files of the model that a step runs.

use std::path::{Path, PathBuf};

use anyhow::Result;
use wherefrom_artifact::kept_checkpoints;

/// What is attributed of a model with adapters, where nobody says otherwise.
pub const ATTRIBUTE: &str = "adapter";

/// A checkpoint: a base, and adapters on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// The Hugging Face folder.
    pub folder: PathBuf,
    /// Folders of PEFT on it, in order.
    pub adapters: Vec<PathBuf>,
    /// What is attributed where there are any: `adapter`, `merged` or `base`.
    pub attribute: String,
}

impl<P: Into<PathBuf>> From<P> for ModelFiles {
    fn from(folder: P) -> Self {
        Self { folder: folder.into(), adapters: Vec::new(), attribute: ATTRIBUTE.into() }
    }
}

impl ModelFiles {
    /// Every folder.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        [&self.folder].into_iter().chain(&self.adapters).map(PathBuf::as_path)
    }

    /// What was kept on the way to it: of its last adapter, or of the model itself; with the learning rate of the step before
    /// each.
    ///
    /// # Errors
    /// As [`kept_checkpoints`].
    pub fn kept(&self) -> Result<Vec<(Self, f64)>> {
        let last = self.adapters.last().unwrap_or(&self.folder);
        let at = |(folder, rate)| {
            let mut kept = self.clone();
            *kept.adapters.last_mut().unwrap_or(&mut kept.folder) = folder;
            (kept, rate)
        };
        Ok(kept_checkpoints(last)?.into_iter().map(at).collect())
    }
}
