//! Corrected eigenvalues Lambda = E_z[(Q_S^T G_z Q_A)^2] (Grosse et al. 2023, Eq. 20 and 26), as sums over examples.
//!
//! Without an eigenbasis, E_z[G_z^2] in the standard basis: the `diagonal` method.
//!
//! reads   tokens, model, eigenbasis
//! writes  lambda

use std::sync::Arc;

use anyhow::Result;
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Artifact, Draft, Eigenbasis, Kind, Lambda, LambdaSum, Row, Stored, Tokens};
use wherefrom_linalg::kernels::{Form, squared_products_bytes};
use wherefrom_model::{Coverage, Labels, LabelsKind, Module, Modules, Precision, Selection, fits};
use wherefrom_pass::{Corpus, Counts, Reduction, number_bytes, open, place_beside_sums, planned_passes, sizes_of};
use wherefrom_stage::{About, Cost, Exec, Machine, ModelFiles, Planned, Role, Stage, Writes};

use crate::blocks::{Orthogonal, blocks_of};
use crate::covariance;
use crate::tensors::{narrow, rotations};

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `lambda`.
pub static STAGE: Stage<Config> = Stage {
    about: About { name: "lambda", version: VERSION, ..covariance::STAGE.about },
    roles: &[Role::required("tokens", &[Kind::Tokens]), Role::optional("eigenbasis", &[Kind::Eigenbasis])],
    parse: |knobs| {
        let mut config: Config = serde_json::from_value(knobs)?;
        config.seed = config.labels.seed(config.seed);
        Ok(config)
    },
    check: |_| Ok(()),
    writes: Writes::One(Kind::Lambda),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| {
        let (tokens, eigenbasis) = (given.open("tokens")?, given.maybe("eigenbasis")?);
        run(config, &Inputs { tokens, eigenbasis, model: given.model()? }, exec, draft)
    },
};

/// What is fitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Labels of the loss whose gradients are summed.
    pub labels: LabelsKind,
    /// Seed of sampled labels; 1 by default, where that of the covariances is 0. With one seed both would draw the same labels:
    /// the basis would fit the very sample that lambda is measured on, and the curvature would be further from the exact Fisher.
    pub seed: u64,
    /// Attributed modules: `"mlp"`, `"all"`, `"everything"`, or globs on their names.
    pub modules: Modules,
    /// Precision of the model's forward and backward pass.
    pub precision: Precision,
    /// float32, or float16 with a scale for each module.
    pub store: Stored,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            labels: LabelsKind::default(),
            seed: 1,
            modules: Modules::default(),
            precision: Precision::default(),
            store: Stored::default(),
        }
    }
}

/// What it is fitted on.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Training sequences.
    pub tokens: Artifact<Tokens>,
    /// The basis to correct in; none for the diagonal of the standard basis.
    pub eigenbasis: Option<Artifact<Eigenbasis>>,
    /// Hugging Face folder.
    pub model: ModelFiles,
}

/// Fits with the labels of the config.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    run_with_labels(config, &Labels::new(config.labels, config.seed), inputs, exec, draft)
}

/// Fits with any labels; a part per module.
pub(crate) fn run_with_labels(
    config: &Config,
    labels: &Labels,
    inputs: &Inputs,
    exec: &Exec,
    draft: &mut Draft,
) -> Result<()> {
    let blocks = inputs.eigenbasis.as_ref().map(|basis| basis.manifest().count("blocks").unwrap_or(1) as usize);
    let needs = |modules: &[Module]| bytes(modules, blocks, number_bytes(&exec.device));
    let model = open(&inputs.model, config.precision, exec)?;
    let selection = Selection::new(&config.modules, model.modules())?;
    let (model, room) = place_beside_sums(model, &selection, &inputs.tokens, exec, needs)?;
    for module in selection.modules() {
        fits(&model.device, &format!("lambda of {}", module.name), module.in_features * module.out_features)?;
    }
    draft.store(config.store);
    draft.summary("coverage", Coverage::new(&model.outline, &selection))?;
    if let Some(counts) = Counts::restore(draft)? {
        counts.note(draft)?;
    }
    let corpus = Corpus::new("lambda", &model, &inputs.tokens, exec);
    let reduction = Reduction { corpus, labels, selection: &selection, room, numbers: &numbers };
    for pass in reduction.passes(draft, needs)? {
        let modules = pass.selection.modules();
        let shapes: Vec<_> = modules.iter().map(|module| [module.out_features, module.in_features]).collect();
        let rotations = match &inputs.eigenbasis {
            Some(basis) => rotations(basis, modules, &model.device)?,
            None => Vec::new(),
        };
        let forms: Vec<_> = shapes.iter().map(|&shape| Form::Full(shape)).enumerate().collect();
        let mut shared = SharedInput::default();
        let sums = pass.sum(draft, &forms, |tap, sums| {
            // Tokens are rotated before the product: (d Q_S)^T (a Q_A) = Q_S^T G Q_A.
            let (index, tokens) = (tap.index, tap.tokens);
            let [mut d, mut a] = tap.operands();
            if let Some(basis) = rotations.get(index) {
                a = config.precision.operand(shared.rotated(index, &basis.activation, a));
                d = config.precision.operand(basis.gradient.rows_into(d));
            }
            sums[index].add_squared_products(d, a, &tokens.sequences);
            Ok(())
        })?;
        let Some(sums) = sums else { continue };
        drop(rotations);
        sums.counts.note(draft)?;
        for (index, (module, sum)) in modules.iter().zip(&sums.slots).enumerate() {
            if draft.has(pass.places[index]) {
                continue;
            }
            let lambda = narrow(sum, &format!("lambda of {}", module.name))?;
            let (module, count, shape) = (module.name.clone(), sums.counts.examples, shapes[index]);
            let row = LambdaSum { module, count, shape, lambda };
            draft.write(pass.places[index], &[<LambdaSum as Row<Lambda>>::to_batch(&[row])?])?;
        }
        pass.end(draft)?;
    }
    Ok(())
}

/// The last rotated input: modules that read the same one come one after the other.
#[derive(Default)]
struct SharedInput(Option<(usize, Arc<Orthogonal>, Tensor<2>)>);

impl SharedInput {
    /// a Q_A for the module `index`. Modules of a batch come last to first, so that a number that does not fall is of
    /// another batch.
    fn rotated(&mut self, index: usize, basis: &Arc<Orthogonal>, a: Tensor<2>) -> Tensor<2> {
        let rotated = match self.0.take() {
            Some((before, of, rotated)) if index < before && Arc::ptr_eq(&of, basis) => rotated,
            _ => basis.rows_into(a),
        };
        self.0 = Some((index, basis.clone(), rotated.clone()));
        rotated
    }
}

/// Bytes of the sums over these modules in one pass, of `number` bytes each, their rotations (of so many blocks; none in
/// the standard basis), and what one module takes while its gradients are squared and written.
pub(crate) fn bytes(modules: &[Module], blocks: Option<usize>, number: u64) -> u64 {
    let size = |module: &Module| number * (module.out_features * module.in_features) as u64;
    let rotation = |module: &Module| blocks.map_or(0, |count| 4 * covariance::both_sides(module, count));
    let held: u64 = modules.iter().map(|module| size(module) + rotation(module)).sum();
    let squared =
        |module: &Module| (squared_products_bytes(module.out_features, module.in_features) as u64).max(size(module));
    held + modules.iter().map(squared).max().unwrap_or(0)
}

/// Numbers that are summed for a module.
fn numbers(module: &Module) -> u64 {
    (module.out_features * module.in_features) as u64
}

fn cost(config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = sizes_of(planned, machine) else { return Cost::new(0.0, 0.0, 0.0) };
    let rotated = planned.input("eigenbasis").map(|_| blocks_of(planned));
    let number = number_bytes(&machine.device);
    let passes = planned_passes(&sizes, planned, machine, |modules| bytes(modules, rotated, number), numbers);
    let tokens = planned.size_of("tokens").tokens;
    let rotations = |blocks| covariance::summed_by_token(&sizes.modules, blocks);
    let work = sizes.token_products + rotated.map_or(0.0, rotations);
    let flops = passes.count as f64 * sizes.scan(tokens) + 2.0 * tokens * work;
    Cost::new(passes.memory, sizes.products * config.store.bytes(), flops).sums(passes.sums).note(passes.note)
}
