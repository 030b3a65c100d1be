//! A = E_t[a a^T] and S = E_t[d d^T] of every module (Grosse et al. 2023, section 3.1), as sums over tokens.
//!
//! reads   tokens, model
//! writes  covariances

use std::ops::Range;
use std::path::PathBuf;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Artifact, Covariance, Covariances, Draft, Kind, Row, Side, Tokens, bad_input};
use wherefrom_linalg::kernels::Form;
use wherefrom_model::{Coverage, Labels, LabelsKind, Module, Modules, Precision, Selection, fits};
use wherefrom_pass::{Corpus, Counts, Reduction, open, place_beside_sums, planned_passes, sizes_of};
use wherefrom_stage::{About, Checkpoint, Cost, Exec, Machine, Planned, Role, Stage, Writes, at_least};

use crate::blocks::{blocks, elements};
use crate::tensors::narrow;

/// Raised when results change.
pub const VERSION: u32 = 2;

/// The stage `covariance`.
pub static STAGE: Stage<Config> = Stage {
    about: About {
        model: Checkpoint::Runs,
        inherits: &["modules", "precision"],
        several_passes: true,
        ..About::new("covariance", VERSION)
    },
    roles: &[Role::required("tokens", &[Kind::Tokens])],
    parse: |knobs| {
        let mut config: Config = at_least("blocks", 1, knobs)?;
        config.seed = config.labels.seed(config.seed);
        Ok(config)
    },
    check: Config::check,
    writes: Writes::One(Kind::Covariances),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| {
        run(config, &Inputs { tokens: given.open("tokens")?, model: given.model()? }, exec, draft)
    },
};

/// What is fitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Labels of the loss whose gradients are summed.
    pub labels: LabelsKind,
    /// Seed of sampled labels.
    pub seed: u64,
    /// Attributed modules: `"mlp"`, `"all"`, or globs on their names.
    pub modules: Modules,
    /// Precision of the model's forward and backward pass.
    pub precision: Precision,
    /// Blocks on the diagonal that are kept of each A and S; 1 is the whole matrix.
    pub blocks: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            labels: LabelsKind::default(),
            seed: 0,
            modules: Modules::default(),
            precision: Precision::F32,
            blocks: 1,
        }
    }
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        match self.blocks {
            0 => Err(bad_input("blocks = 0 leaves nothing; set it to 1 (whole matrices) or more")),
            _ => Ok(()),
        }
    }
}

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

/// Fits with any labels; a part per module. Every token that the module saw counts, also one that is no target.
pub(crate) fn run_with_labels(
    config: &Config,
    labels: &Labels,
    inputs: &Inputs,
    exec: &Exec,
    draft: &mut Draft,
) -> Result<()> {
    config.check()?;
    let needs = |modules: &[Module]| bytes(modules, config.blocks);
    let model = open(&inputs.model, config.precision, exec)?;
    let selection = Selection::new(&config.modules, model.modules())?;
    let (model, room) = place_beside_sums(model, &selection, &inputs.tokens, exec, needs)?;
    for module in selection.modules() {
        let side = largest(module, config.blocks);
        fits(&model.device, &format!("the covariance of {}", module.name), side * side)?;
    }
    draft.metadata("blocks", config.blocks.to_string());
    draft.summary("blocks", config.blocks)?;
    draft.summary("coverage", Coverage::new(&model.outline, &selection))?;
    if let Some(counts) = Counts::restore(draft)? {
        counts.note(draft)?;
    }
    let corpus = Corpus::new("covariance", &model, &inputs.tokens, exec);
    for pass in (Reduction { corpus, labels, selection: &selection, room }).passes(draft, needs)? {
        let modules = pass.selection.modules();
        let slots = slots(modules, config.blocks);
        let forms: Vec<_> = slots.iter().map(|slot| Form::Symmetric(slot.block.len())).collect();
        let sums = pass.sum(draft, &forms, |tap, sums| {
            for (index, slot) in slots.iter().enumerate().filter(|(_, slot)| slot.module == tap.index) {
                let x = match slot.side {
                    Side::Activation => &tap.activations,
                    Side::Gradient => &tap.output_gradients,
                };
                sums[index].add_gram(columns(x, &slot.block));
            }
            Ok(())
        })?;
        sums.counts.note(draft)?;
        for (index, module) in modules.iter().enumerate() {
            let own = slots.iter().zip(&sums.slots).filter(|(slot, _)| slot.module == index);
            let rows = own.map(|(slot, sum)| {
                let matrix = narrow(sum, &format!("the {} covariance of {}", slot.side.name(), module.name))?;
                let shared_with = match slot.side {
                    Side::Activation => others(selection.modules(), module),
                    Side::Gradient => Vec::new(),
                };
                let (module, side, count) = (module.name.clone(), slot.side, sums.seen[index]);
                let row = Covariance { module, side, shared_with, count, size: slot.block.len(), matrix };
                <Covariance as Row<Covariances>>::to_batch(&[row])
            });
            if !draft.has(pass.places[index]) {
                draft.write_each(pass.places[index], rows)?;
            }
        }
        pass.end(draft, 1)?;
    }
    Ok(())
}

/// Bytes of the sums over these modules in one pass, and what a matrix takes while it is written.
///
/// The triangle in float64 on the CPU takes as much as the square in float32 on a GPU.
pub(crate) fn bytes(modules: &[Module], blocks: usize) -> u64 {
    let largest = sizes(modules, blocks).max().unwrap_or(0);
    4 * summed(modules, blocks) + 8 * largest.pow(2) as u64
}

/// Numbers of the matrices that are summed over these modules in one pass, and stored.
pub fn summed(modules: &[Module], blocks: usize) -> u64 {
    sizes(modules, blocks).map(|n| n.pow(2) as u64).sum()
}

/// Sizes of those matrices.
pub(crate) fn sizes(modules: &[Module], blocks: usize) -> impl Iterator<Item = usize> {
    slots(modules, blocks).into_iter().map(|slot| slot.block.len())
}

/// Numbers in A and S of one module, or in its Q_A and Q_S.
pub(crate) fn both_sides(module: &Module, blocks: usize) -> u64 {
    (elements(module.in_features, blocks) + elements(module.out_features, blocks)) as u64
}

/// Size of the largest block of a module's A and S.
pub(crate) fn largest(module: &Module, count: usize) -> usize {
    [module.in_features, module.out_features]
        .iter()
        .flat_map(|&n| blocks(n, count))
        .map(|block| block.len())
        .max()
        .unwrap_or(0)
}

fn cost(config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = sizes_of(planned, machine) else { return Cost::new(0.0, 0.0, 0.0) };
    let (tokens, all) = (planned.size_of("tokens").tokens, summed(&sizes.modules, config.blocks) as f64);
    let passes = planned_passes(&sizes, planned, machine, |modules| bytes(modules, config.blocks));
    let flops = passes.count as f64 * sizes.scan(tokens) + 2.0 * tokens * all;
    Cost::new(passes.memory, all * 4.0, flops).note(passes.note)
}

/// One block of one matrix.
struct Slot {
    module: usize,
    side: Side,
    block: Range<usize>,
}

/// The later modules that read the same input, and hence have the same A.
fn others(modules: &[Module], first: &Module) -> Vec<String> {
    let others = modules.iter().filter(|module| module.input == first.name && !module.first_of_input());
    others.map(|module| module.name.clone()).collect()
}

/// What is summed, by module, activation before gradient. Modules with the same input share the A of the first, also where
/// that is of another pass.
fn slots(modules: &[Module], count: usize) -> Vec<Slot> {
    let mut slots = Vec::new();
    for (module, sizes) in modules.iter().enumerate() {
        if sizes.first_of_input() {
            let side = Side::Activation;
            slots.extend(blocks(sizes.in_features, count).into_iter().map(|block| Slot { module, side, block }));
        }
        let side = Side::Gradient;
        slots.extend(blocks(sizes.out_features, count).into_iter().map(|block| Slot { module, side, block }));
    }
    slots
}

/// Columns of x, or x itself.
fn columns(x: &burn::tensor::Tensor<2>, block: &Range<usize>) -> burn::tensor::Tensor<2> {
    let x = x.clone();
    if block.len() == x.dims()[1] { x } else { x.narrow(1, block.start, block.len()) }
}
