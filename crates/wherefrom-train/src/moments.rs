//! The stage `moments`: Adam's second moments where training ended, as a diagonal curvature in the standard basis.
//!
//! ```text
//! v  =  running mean of (gradient of the mean loss of a batch)^2, by parameter
//! ```
//!
//! `precondition` with method `adam` divides by sqrt(v) + damping, as a step of Adam does. v is not freed of the bias of its
//! beginning: one factor for all, which no ranking sees.
//!
//! reads   a model that keeps checkpoints
//! writes  lambda, a part a module

use anyhow::{Context as _, Result, anyhow};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Draft, Kind, Lambda, LambdaSum, OPTIMIZER, bad_input};
use wherefrom_model::{Coverage, Model, Modules, Part, Selection, Sizes, open_device};
use wherefrom_stage::{About, Checkpoint, Cost, Exec, ModelFiles, Stage, Writes};

use crate::checkpoint::checkpoint;
use crate::state;

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `moments`.
pub static STAGE: Stage<Config> = Stage {
    about: About { model: Checkpoint::Runs, inherits: &["modules"], ..About::new("moments", VERSION) },
    roles: &[],
    parse: serde_json::from_value,
    check: |_| Ok(()),
    writes: Writes::One(Kind::Lambda),
    makes_model: |_| None,
    cost: |_, planned, machine| {
        let Some(sizes) = planned.attributed(machine, Sizes::new) else { return Cost::new(0.0, 0.0, 0.0) };
        Cost::new(3.0 * sizes.footprint.weights as f64, 4.0 * sizes.products, 0.0)
    },
    run: |config, given, exec, draft| run(config, &Inputs { model: given.model()? }, exec, draft),
};

/// Of which modules.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Attributed modules: `"mlp"`, `"all"`, `"everything"`, or globs on their names.
    pub modules: Modules,
}

/// What is read.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The folder of a model that a `fine-tune` step made, or of another that keeps checkpoints.
    pub model: ModelFiles,
}

/// Takes the moments of the last checkpoint, module by module.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a model that keeps no checkpoints.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    let device = open_device(exec.device.gpu())?;
    let checkpoints = inputs.model.kept()?;
    let (files, _) = checkpoints.last().context("a model that keeps checkpoints keeps one")?;
    let model = Model::open(checkpoint(files)?, &device)?;
    let selection = Selection::new(&config.modules, model.modules())?;
    draft.summary("coverage", Coverage::new(&model.outline, &selection))?;
    let path = files.adapters.last().unwrap_or(&files.folder).join(OPTIMIZER);
    let wrong = |what: String| bad_input(format!("{what}: {}", path.display()));
    let bytes = std::fs::read(&path).map_err(|error| wrong(format!("the moments cannot be read ({error})")))?;
    let (_, moments, _) =
        state::from_bytes(&bytes, &device).map_err(|error| wrong(format!("this holds no moments ({error:#})")))?;
    draft.parts(selection.modules().len());
    for (part, module) in selection.modules().iter().enumerate().filter(|(part, _)| !draft.has(*part)) {
        // Of a square matrix no shape tells whether it is transposed: whoever writes moments has them as [out, in].
        let of = |name: &str, shape: [usize; 2]| match moments.second.get(name) {
            Some(second) if second.dims() == shape => Ok(second.clone()),
            Some(second) => {
                Err(wrong(format!("the moment of {name} has shape {:?}, and not {shape:?}", second.dims())))
            }
            None => {
                Err(wrong(format!("there is no moment of {name}, so it was not trained; leave it out of `modules`")))
            }
        };
        let mut second = match module.part {
            // Gain, then bias, as one column.
            Part::Norm => {
                let width = module.out_features / (1 + usize::from(module.bias));
                let names = [Some(module.weight()), module.bias.then(|| module.bias())];
                let own = names.iter().flatten().map(|name| of(name, [1, width])).collect::<Result<Vec<_>>>()?;
                Tensor::cat(own, 1).transpose()
            }
            _ => of(&module.weight(), [module.out_features, module.in_features - usize::from(module.bias)])?,
        };
        if module.bias && module.part.is_map() {
            second = Tensor::cat(vec![second, of(&module.bias(), [1, module.out_features])?.transpose()], 1);
        }
        let (name, shape) = (module.name.clone(), [module.out_features, module.in_features]);
        let lambda = second.into_data().try_into_vec().map_err(|error| anyhow!("{error:?}"))?;
        draft.write_rows::<Lambda, _>(part, &[LambdaSum { module: name, count: 1, shape, lambda }])?;
    }
    Ok(())
}
