//! A = E_t[a a^T] and S = E_t[d d^T] of every module (Grosse et al. 2023, section 3.1), as sums over tokens.
//!
//! reads   tokens, model
//! writes  covariances

use std::path::PathBuf;

use anyhow::Result;
use whence_artifact::{Artifact, Covariance, Covariances, Draft, Exec, Row, Side, Tokens};
use whence_model::{Coverage, Labels, Model, Selection, resolve_device};

pub use crate::fit::Config;
use crate::reduce::{Pass, Reduction};
use crate::tensors::narrow;

/// Raised when results change.
pub const VERSION: u32 = 1;

/// What it is fitted on.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Training sequences.
    pub tokens: Artifact<Tokens>,
    /// Hugging Face folder.
    pub model: PathBuf,
}

/// Fits with the labels of the config.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    run_with_labels(config, &Labels::new(config.labels, config.seed), inputs, exec, draft)
}

/// Fits with any labels. Every real token counts, also one that is no target.
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

    // Slot 2m is A of module m, slot 2m + 1 its S. Modules with the same input share one A: `owner` has it.
    let owner = |m: usize| modules.iter().position(|other| other.input == modules[m].input).unwrap_or(m);
    let lengths: Vec<usize> = (0..modules.len())
        .flat_map(|m| {
            let activation = if owner(m) == m { modules[m].in_features.pow(2) } else { 0 };
            [activation, modules[m].out_features.pow(2)]
        })
        .collect();
    let mut sums = Reduction::restore(draft, &lengths)?;
    let pass = Pass { task: "covariance", tokens: &inputs.tokens, exec, draft, device: &device };
    sums.run(&pass, |batch, pending| {
        model.taps(batch, labels, &selection, &mut |tap| {
            if owner(tap.index) == tap.index {
                pending.add_outer(2 * tap.index, tap.activations);
            }
            pending.add_outer(2 * tap.index + 1, tap.output_gradients);
            Ok(())
        })?;
        Ok(())
    })?;

    draft.metadata("tokens", sums.tokens.to_string());
    draft.metadata("examples", sums.examples.to_string());
    draft.summary("tokens", sums.tokens)?;
    draft.summary("examples", sums.examples)?;
    draft.summary("coverage", Coverage::new(&model.config, &selection))?;
    let rows = (0..modules.len()).flat_map(|m| [(m, Side::Activation), (m, Side::Gradient)]);
    draft.write_each(
        0,
        rows.map(|(m, side)| {
            let (slot, size) = match side {
                Side::Activation => (2 * owner(m), modules[m].in_features),
                Side::Gradient => (2 * m + 1, modules[m].out_features),
            };
            let name = &modules[m].name;
            let matrix = narrow(&sums.sums[slot], &format!("the {} covariance of {name}", side.name()))?;
            let row = Covariance { module: name.clone(), side, count: sums.tokens, size, matrix };
            <Covariance as Row<Covariances>>::to_batch(&[row])
        }),
    )
}
