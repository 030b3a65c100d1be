//! For tests alone: curvature of labels that another program has drawn, and of models that are no language models.

use anyhow::Result;
use wherefrom_artifact::{Artifact, Draft, Eigenbasis, Lambda, Silent};
use wherefrom_model::{Labels, Module, resolve_device};
use wherefrom_stage::Exec;

use crate::inverse::Curvature;
use crate::method::{Damping, Method};
use crate::solve::system::Space;
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

/// EK-FAC of the maps of any model, as `precondition`, `solve` and `proximal` have it. Vectors are the maps one after another, each row
/// by row.
pub struct Ekfac(Space);

impl Ekfac {
    /// Of maps with these names and sizes.
    ///
    /// # Errors
    /// Maps that eigenbasis or Lambda do not have.
    pub fn new(
        damping: Damping,
        eigenbasis: &Artifact<Eigenbasis>,
        lambda: &Artifact<Lambda>,
        modules: &[Module],
    ) -> Result<Self> {
        let curvature = Curvature::new(Method::Ekfac, damping, Some(eigenbasis), Some(lambda))?;
        Ok(Self(Space::new(&curvature, modules, &resolve_device("cpu")?, &Silent)?))
    }

    /// (H + D)^-1 v, as EK-FAC approximates it.
    ///
    /// # Errors
    /// Those of the device.
    pub fn precondition(&self, v: &[f64]) -> Result<Vec<f64>> {
        self.0.precondition(v)
    }

    /// into += D v.
    pub fn add_damping(&self, into: &mut [f64], v: &[f64]) {
        self.0.add_damping(into, v);
    }
}
