//! Two covariances of every module, as sums.
//!
//! ```text
//! K-FAC    A = E_t[a a^T],      S = E_t[d d^T]      over tokens t (Grosse et al. 2023, section 3.1)
//! Shampoo  A = E_z[G_z^T G_z],  S = E_z[G_z G_z^T]  over examples z, G_z = sum_t d_t a_t^T (Gupta et al. 2018)
//! ```
//!
//! Of what is no linear map of the blocks (tables, the head, norms) S is kept as its diagonal. Of a table that is the head, too,
//! tokens of both uses are summed, each as `‖d‖² a a^T` and `‖a‖² d d^T`: what the token adds to G^T G and to G G^T. Summed as they
//! are, what the head reads would be all of A.
//!
//! reads   tokens, model
//! writes  covariances

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context as _, Result};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Artifact, Covariance, Covariances, Draft, Kind, Row, Side, Tokens, bad_input};
use wherefrom_linalg::kernels::{Form, Ragged, example_products, widen};
use wherefrom_model::{Coverage, Labels, LabelsKind, Module, Modules, Part, Precision, Selection, Tap, fits};
use wherefrom_pass::{Corpus, Counts, Reduction, open, place_beside_sums, planned_passes, sizes_of};
use wherefrom_stage::{
    About, Checkpoint, Cost, Exec, Machine, ModelFiles, Planned, Role, Size, Stage, Writes, at_least,
};

use crate::blocks::{blocks, elements};
use crate::tensors::narrow;

/// Raised when results change.
pub const VERSION: u32 = 2;

/// Numbers of the gradients of examples that are formed at once; one example may have more.
const GRADIENTS: usize = 1 << 24;

/// The stage `covariance`.
pub static STAGE: Stage<Config> = Stage {
    about: About {
        model: Checkpoint::Runs,
        inherits: &["modules", "precision"],
        several_passes: true,
        ..About::new("covariance", VERSION).split()
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
    /// Attributed modules: `"mlp"`, `"all"`, `"everything"`, or globs on their names.
    pub modules: Modules,
    /// Precision of the model's forward and backward pass.
    pub precision: Precision,
    /// Blocks on the diagonal that are kept of each A and S; 1 is the whole matrix.
    pub blocks: usize,
    /// What the covariances are of: inputs and output gradients of tokens, or gradients of examples.
    #[serde(skip_serializing_if = "Factors::is_kfac")]
    #[schemars(!skip_serializing_if)]
    pub factors: Factors,
}

/// Whose covariances.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Factors {
    /// Of the inputs and output gradients of tokens.
    #[default]
    Kfac,
    /// Of the rows and of the columns of the gradients of examples.
    Shampoo,
}

impl Factors {
    fn is_kfac(&self) -> bool {
        *self == Self::Kfac
    }

    /// The modules, each with an A of its own where that is of its gradients.
    pub(crate) fn modules(self, modules: &[Module]) -> Vec<Module> {
        let mut modules = modules.to_vec();
        if self == Self::Shampoo {
            modules.iter_mut().for_each(|module| module.input.clone_from(&module.name));
        }
        modules
    }

    /// Those of the covariances that a planned step goes back to.
    pub(crate) fn planned(planned: &Planned) -> Self {
        planned.nearest(|step| serde_json::from_value(step.config["factors"].clone()).ok()).unwrap_or_default()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            labels: LabelsKind::default(),
            seed: 0,
            modules: Modules::default(),
            precision: Precision::F32,
            blocks: 1,
            factors: Factors::default(),
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
    pub model: ModelFiles,
}

/// Fits with the labels of the config.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    run_with_labels(config, &Labels::new(config.labels, config.seed), inputs, exec, draft)
}

/// Fits with any labels; a part per module. Of tokens every one that the module saw counts, also one that is no target.
pub(crate) fn run_with_labels(
    config: &Config,
    labels: &Labels,
    inputs: &Inputs,
    exec: &Exec,
    draft: &mut Draft,
) -> Result<()> {
    config.check()?;
    let needs = |modules: &[Module]| bytes(&config.factors.modules(modules), config.blocks) + aside(config, modules);
    let model = open(&inputs.model, config.precision, exec)?;
    let selection = Selection::new(&config.modules, model.modules())?;
    let (model, room) = place_beside_sums(model, &selection, &inputs.tokens, exec, needs)?;
    for module in selection.modules() {
        let side = largest(module, config.blocks);
        fits(&model.device, &format!("the covariance of {}", module.name), side * side)?;
    }
    draft.metadata("blocks", config.blocks.to_string());
    draft.summary("blocks", config.blocks)?;
    if config.factors == Factors::Shampoo {
        draft.summary("factors", config.factors)?;
    }
    draft.summary("coverage", Coverage::new(&model.outline, &selection))?;
    let diagonal: Vec<_> = selection.modules().iter().filter(|module| module.has_diagonal()).collect();
    if !diagonal.is_empty() {
        draft.summary("diagonal", diagonal.iter().map(|module| &module.name).collect::<Vec<_>>())?;
    }
    if let Some(counts) = Counts::restore(draft)? {
        counts.note(draft)?;
    }
    let mut experts: BTreeMap<String, u64> = match draft.restore(EXPERTS)? {
        Some(saved) => serde_json::from_slice(&saved).context("read the experts' tokens")?,
        None => BTreeMap::new(),
    };
    let corpus = Corpus::new("covariance", &model, &inputs.tokens, exec);
    let numbers = |module: &Module| numbers(config, module);
    let reduction = Reduction { corpus, labels, selection: &selection, room, numbers: &numbers };
    for pass in reduction.passes(draft, needs)? {
        let modules = config.factors.modules(pass.selection.modules());
        let slots = slots(&modules, config.blocks);
        let forms: Vec<_> = slots.iter().map(|slot| (slot.module, slot.form())).collect();
        // The slots of each module: there may be thousands.
        let own: Vec<Range<usize>> = (0..modules.len())
            .map(|module| {
                let first = slots.partition_point(|slot| slot.module < module);
                first..slots.partition_point(|slot| slot.module <= module)
            })
            .collect();
        let sums = pass.sum(draft, &forms, |tap, sums| {
            let own = &own[tap.index];
            let mut add = |[activation, gradient]: [&Tensor<2>; 2]| {
                for (slot, sum) in slots[own.clone()].iter().zip(&mut sums[own.clone()]) {
                    let x = if slot.side == Side::Activation { activation } else { gradient };
                    let x = columns(x, &slot.block);
                    if slot.diagonal { sum.add_squares(x) } else { sum.add_gram(x) }
                }
            };
            match config.factors {
                Factors::Kfac => {
                    let both_uses = tap.module.part == Part::Tied;
                    let [d, a] = tap.operands();
                    match both_uses {
                        false => add([&a, &d]),
                        true => {
                            let [by_d, by_a] = [&d, &a].map(|x| widen(x.clone()).square().sum_dim(1).sqrt());
                            add([&(widen(a) * by_d), &(widen(d) * by_a)]);
                        }
                    }
                }
                Factors::Shampoo => gradients(tap, add),
            }
            Ok(())
        })?;
        let Some(sums) = sums else { continue };
        sums.counts.note(draft)?;
        experts
            .extend(modules.iter().zip(&sums.seen).filter_map(|(module, &seen)| Some((module.expert()?.into(), seen))));
        if !experts.is_empty() {
            draft.checkpoint(EXPERTS, &serde_json::to_vec(&experts)?)?;
        }
        for (index, module) in modules.iter().enumerate() {
            let own = slots[own[index].clone()].iter().zip(&sums.slots[own[index].clone()]);
            let rows = own.map(|(slot, sum)| {
                let matrix = narrow(sum, &format!("the {} covariance of {}", slot.side.name(), module.name))?;
                let shared_with = match slot.side {
                    Side::Activation => others(&config.factors.modules(selection.modules()), module),
                    Side::Gradient => Vec::new(),
                };
                let count = if config.factors == Factors::Kfac { sums.seen[index] } else { sums.counts.examples };
                let (module, side, size) = (module.name.clone(), slot.side, slot.block.len());
                let row = Covariance { module, side, shared_with, count, size, matrix };
                <Covariance as Row<Covariances>>::to_batch(&[row])
            });
            if !draft.has(pass.places[index]) {
                draft.write_each(pass.places[index], rows)?;
            }
        }
        pass.end(draft)?;
    }
    if !experts.is_empty() {
        if let Some(few) = few_tokens(selection.modules(), &experts) {
            exec.reporter.warn(&few);
        }
        draft.summary("expert_tokens", experts)?;
    }
    Ok(())
}

/// Tokens that each expert saw, of the passes that are over.
const EXPERTS: &str = "expert-tokens";

/// Experts that saw fewer tokens than a map of theirs is wide: their covariances have less than full rank.
fn few_tokens(modules: &[Module], experts: &BTreeMap<String, u64>) -> Option<String> {
    let mut widths = BTreeMap::new();
    for module in modules {
        if let Some(expert) = module.expert() {
            let width = module.in_features.max(module.out_features) as u64;
            widths.entry(expert).and_modify(|widest: &mut u64| *widest = width.max(*widest)).or_insert(width);
        }
    }
    let few: Vec<_> =
        experts.iter().filter(|(expert, seen)| widths.get(&expert[..]).is_some_and(|width| seen < &width)).collect();
    let first: Vec<_> = few.iter().take(8).map(|(expert, seen)| format!("{expert} ({seen})")).collect();
    let more = if few.len() > first.len() { format!(" and {} more", few.len() - first.len()) } else { String::new() };
    (!few.is_empty()).then(|| {
        format!(
            "covariance: {} of {} experts saw fewer tokens than their maps are wide, so that damping decides where they saw \
             nothing: {}{more}; all counts are in the manifest (`expert_tokens`), and more training sequences raise them",
            few.len(),
            experts.len(),
            first.join(", ")
        )
    })
}

/// Bytes of the sums over these modules in one pass, and what a matrix takes while it is written.
///
/// The triangle in float64 on the CPU takes as much as the square in float32 on a GPU.
pub(crate) fn bytes(modules: &[Module], blocks: usize) -> u64 {
    let largest = slots(modules, blocks).iter().map(Slot::stored).max().unwrap_or(0);
    4 * summed(modules, blocks) + 8 * largest
}

/// Bytes of the gradients of examples that are there at once, each by rows and by columns, beside their product.
fn aside(config: &Config, modules: &[Module]) -> u64 {
    let largest = modules.iter().map(|module| module.in_features * module.out_features).max().unwrap_or(0);
    if config.factors == Factors::Kfac { 0 } else { 12 * largest.max(GRADIENTS) as u64 }
}

/// Numbers of the triangles that are summed for a module.
fn numbers(config: &Config, module: &Module) -> u64 {
    let own = config.factors.modules(std::slice::from_ref(module));
    slots(&own, config.blocks).iter().map(|slot| slot.form().len() as u64).sum()
}

/// Numbers of the matrices that are summed over these modules in one pass, and stored.
pub fn summed(modules: &[Module], blocks: usize) -> u64 {
    slots(modules, blocks).iter().map(Slot::stored).sum()
}

/// The same of one token: of experts those that see it.
pub(crate) fn summed_by_token(modules: &[Module], blocks: usize) -> f64 {
    slots(modules, blocks).iter().map(|slot| modules[slot.module].share() * slot.stored() as f64).sum()
}

/// Sizes of those matrices of which more than the diagonal is there.
pub(crate) fn sizes(modules: &[Module], blocks: usize) -> impl Iterator<Item = usize> {
    slots(modules, blocks).into_iter().filter(|slot| !slot.diagonal).map(|slot| slot.block.len())
}

/// Numbers in A and S of one module, or in its Q_A and Q_S.
pub(crate) fn both_sides(module: &Module, blocks: usize) -> u64 {
    let gradient = if module.has_diagonal() { 0 } else { elements(module.out_features, blocks) };
    (elements(module.in_features, blocks) + gradient) as u64
}

/// Size of the largest block of a module's A and S.
pub(crate) fn largest(module: &Module, count: usize) -> usize {
    let gradient = (!module.has_diagonal()).then_some(module.out_features);
    [Some(module.in_features), gradient]
        .into_iter()
        .flatten()
        .flat_map(|n| blocks(n, count))
        .map(|block| block.len())
        .max()
        .unwrap_or(0)
}

fn cost(config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = sizes_of(planned, machine) else { return Cost::new(0.0, 0.0, 0.0) };
    let Size { tokens, rows } = planned.size_of("tokens");
    let all = summed(&config.factors.modules(&sizes.modules), config.blocks) as f64;
    let needs = |modules: &[Module]| bytes(&config.factors.modules(modules), config.blocks) + aside(config, modules);
    let passes = planned_passes(&sizes, planned, machine, needs, |module| numbers(config, module));
    let work = match config.factors {
        Factors::Kfac => 2.0 * tokens * summed_by_token(&sizes.modules, config.blocks),
        Factors::Shampoo => {
            let grams = |module: &Module| {
                let (inside, out) = (module.in_features as f64, module.out_features as f64);
                inside * out * (inside + out)
            };
            2.0 * tokens * sizes.token_products + rows * sizes.modules.iter().map(grams).sum::<f64>()
        }
    };
    let flops = passes.count as f64 * sizes.scan(tokens) + work;
    Cost::new(passes.memory, all * 4.0, flops).sums(passes.sums).note(passes.note)
}

/// One block of one matrix, or the diagonal of all of it.
struct Slot {
    module: usize,
    side: Side,
    block: Range<usize>,
    diagonal: bool,
}

impl Slot {
    fn form(&self) -> Form {
        if self.diagonal { Form::Full([1, self.block.len()]) } else { Form::Symmetric(self.block.len()) }
    }

    /// Numbers that are stored.
    fn stored(&self) -> u64 {
        let n = self.block.len() as u64;
        if self.diagonal { n } else { n.pow(2) }
    }
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
            let own = |block| Slot { module, side, block, diagonal: false };
            slots.extend(blocks(sizes.in_features, count).into_iter().map(own));
        }
        let diagonal = sizes.has_diagonal();
        let own = |block| Slot { module, side: Side::Gradient, block, diagonal };
        slots.extend(blocks(sizes.out_features, if diagonal { 1 } else { count }).into_iter().map(own));
    }
    slots
}

/// Gradients of the examples of a tap, some at a time: one below the other [examples * out, in], and their transposes
/// [examples * in, out]. The Gram matrix of the first is the sum of G^T G, that of the other the sum of G G^T.
fn gradients(tap: Tap<'_>, mut visit: impl FnMut([&Tensor<2>; 2])) {
    let sequences: Vec<_> = tap.tokens.sequences.iter().collect();
    let [d, a] = tap.operands();
    let ([_, out], [_, inside]) = (d.dims(), a.dims());
    for some in sequences.chunks((GRADIENTS / (out * inside)).max(1)) {
        let (first, last, count) = (some[0].start, some[some.len() - 1].end, some.len());
        let own = |x: &Tensor<2>| x.clone().narrow(0, first, last - first);
        let lengths = Ragged::new(some.iter().map(ExactSizeIterator::len));
        let products = example_products(own(&d), own(&a), &lengths);
        let transposed = products.clone().reshape([count, out, inside]).swap_dims(1, 2);
        visit([&products.reshape([count * out, inside]), &transposed.reshape([count * inside, out])]);
    }
}

/// Columns of x, or x itself.
fn columns(x: &Tensor<2>, block: &Range<usize>) -> Tensor<2> {
    let x = x.clone();
    if block.len() == x.dims()[1] { x } else { x.narrow(1, block.start, block.len()) }
}
