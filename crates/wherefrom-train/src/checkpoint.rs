//! The files of a step's model, as a model is opened of them.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_model::{Checkpoint, Lora};
use wherefrom_stage::ModelFiles;

/// The base and its adapters.
///
/// # Errors
/// As [`Checkpoint::new`].
pub fn checkpoint(files: &ModelFiles) -> Result<Checkpoint> {
    Checkpoint::new(&files.folder, &files.adapters, &files.attribute)
}

/// A LoRA adapter that is trained in place of the model's own weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Adapter {
    /// Rows of A, and columns of B.
    pub rank: usize,
    /// What alpha / rank is made of, by which the adapter's part is multiplied.
    pub alpha: f64,
    /// What the names of its maps end in; without it, every linear map of the blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Vec<String>>,
    /// Multiply by alpha / sqrt(rank) instead.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(!skip_serializing_if)]
    pub rslora: bool,
}

impl Default for Adapter {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, targets: None, rslora: false }
    }
}

impl Adapter {
    /// As a model takes it.
    ///
    /// # Errors
    /// As [`Lora::new`].
    pub fn lora(&self) -> Result<Lora> {
        Lora::new(self.rank, self.alpha, self.rslora, self.targets.clone())
    }
}
