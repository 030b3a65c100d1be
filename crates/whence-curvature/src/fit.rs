//! What `covariance` and `lambda` are fitted with.

use serde::{Deserialize, Serialize};
use whence_model::{LabelsKind, Modules};

/// What is fitted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Labels of the loss whose gradients are summed.
    pub labels: LabelsKind,
    /// Seed of sampled labels.
    pub seed: u64,
    /// Attributed modules.
    pub modules: Modules,
}
