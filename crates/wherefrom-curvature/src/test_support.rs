//! For tests alone: curvature of labels that another program has drawn.

use anyhow::Result;
use wherefrom_artifact::Draft;
use wherefrom_model::Labels;
use wherefrom_stage::Exec;

use crate::{covariance, lambda};

/// Covariances of any labels, as [`covariance::run`] has them of those that its configuration names.
///
/// # Errors
/// As [`covariance::run`].
pub fn covariance_with_labels(
    config: &covariance::Config,
    labels: &Labels,
    inputs: &covariance::Inputs,
    exec: &Exec,
    draft: &mut Draft,
) -> Result<()> {
    covariance::run_with_labels(config, labels, inputs, exec, draft)
}

/// Lambda of any labels, as [`lambda::run`] has it of those that its configuration names.
///
/// # Errors
/// As [`lambda::run`].
pub fn lambda_with_labels(
    config: &lambda::Config,
    labels: &Labels,
    inputs: &lambda::Inputs,
    exec: &Exec,
    draft: &mut Draft,
) -> Result<()> {
    lambda::run_with_labels(config, labels, inputs, exec, draft)
}
