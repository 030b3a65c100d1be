//! Corrected eigenvalues Lambda = E_z[(Q_S^T G_z Q_A)^2] (Grosse et al. 2023, Eq. 20 and 26), as sums over examples.
//!
//! Without an eigenbasis, E_z[G_z^2] in the standard basis: the `diagonal` method.
//!
//! reads   tokens, model, eigenbasis
//! writes  lambda

use std::path::PathBuf;

use anyhow::Result;
use whence_artifact::{Artifact, Draft, Eigenbasis, Exec, Lambda, LambdaSum, Row, Tokens};
use whence_linalg::kernels::product;
use whence_model::{Coverage, Labels, Model, Selection, Tap, resolve_device};

pub use crate::fit::Config;
use crate::reduce::{Pass, Reduction};
use crate::tensors::{narrow, rotations, shapes};

/// Raised when results change.
pub const VERSION: u32 = 1;

/// What it is fitted on.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Training sequences.
    pub tokens: Artifact<Tokens>,
    /// The basis to correct in; none for the diagonal of the standard basis.
    pub eigenbasis: Option<Artifact<Eigenbasis>>,
    /// Hugging Face folder.
    pub model: PathBuf,
}

/// Fits with the labels of the config.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    run_with_labels(config, &Labels::new(config.labels, config.seed), inputs, exec, draft)
}

/// Fits with any labels.
pub fn run_with_labels(
    config: &Config,
    labels: &Labels,
    inputs: &Inputs,
    exec: &Exec,
    draft: &mut Draft,
) -> Result<()> {
    let device = resolve_device(&exec.device)?;
    let model = Model::load(&inputs.model, &device)?;
    let selection = Selection::new(&config.modules, model.modules())?;
    let modules = selection.modules();
    let bases = match &inputs.eigenbasis {
        Some(eigenbasis) => Some(rotations(eigenbasis, &shapes(modules), &device)?),
        None => None,
    };
    let lengths: Vec<_> = modules.iter().map(|module| module.out_features * module.in_features).collect();
    let mut sums = Reduction::restore(draft, &lengths)?;
    let pass = Pass { task: "lambda", tokens: &inputs.tokens, exec, draft, device: &device };
    sums.run(&pass, |batch, pending| {
        model.taps(batch, labels, &selection, &mut |tap: Tap<'_>| {
            // Tokens are rotated before the product: (d Q_S)^T (a Q_A) = Q_S^T G Q_A.
            let (mut a, mut d) = (tap.activations, tap.output_gradients);
            if let Some(bases) = &bases {
                a = product(a, bases[tap.index].activation.clone());
                d = product(d, bases[tap.index].gradient.clone());
            }
            pending.add_squares(tap.index, d, a, batch.len());
            Ok(())
        })?;
        Ok(())
    })?;

    draft.summary("examples", sums.examples)?;
    draft.summary("tokens", sums.tokens)?;
    draft.summary("coverage", Coverage::new(&model.config, &selection))?;
    draft.metadata("examples", sums.examples.to_string());
    draft.write_each(
        0,
        modules.iter().zip(&sums.sums).map(|(module, sum)| {
            let lambda = narrow(sum, &format!("lambda of {}", module.name))?;
            let shape = [module.out_features, module.in_features];
            let row = LambdaSum { module: module.name.clone(), count: sums.examples, shape, lambda };
            <LambdaSum as Row<Lambda>>::to_batch(&[row])
        }),
    )
}
