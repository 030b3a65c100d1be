//! The gradient of every example in a few random dimensions: what TRAK (Park et al. 2023, arXiv 2303.14186) and TrackStar (Chang
//! et al. 2024, arXiv 2410.17413) keep of it.
//!
//! ```text
//! phi_z = sum over modules of vec(L^T G_z R),  L [out, side], R [in, side],  elements +-1 / sqrt(side)
//! ```
//!
//! G_z = sum_t d_t a_t^T is the gradient of the summed loss. The mean of phi_y . phi_z over draws of L and R is the product of
//! the whole gradients.
//!
//! reads   tokens, model
//! writes  projections

use anyhow::Result;
use burn::tensor::{Device, Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Artifact, Draft, Kind, Projected, ProjectedGradients, Tokens, bad_input};
use wherefrom_linalg::kernels::{example_products, product};
use wherefrom_linalg::random::uniform;
use wherefrom_model::{Coverage, Labels, Model, Module, Modules, Precision, Selection};
use wherefrom_pass::{Corpus, open, place, sequence, sizes_of};
use wherefrom_stage::{
    About, Checkpoint, Cost, Exec, Machine, ModelFiles, Planned, Role, Size, Stage, Writes, at_least,
};

use crate::values;

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `projections`.
pub static STAGE: Stage<Config> = Stage {
    about: About {
        model: Checkpoint::Runs,
        inherits: &["modules", "precision"],
        ..About::new("project-gradients", VERSION).split()
    },
    roles: &[Role::required("tokens", &[Kind::Tokens])],
    parse: |knobs| at_least("side", 1, knobs),
    check: Config::check,
    writes: Writes::One(Kind::ProjectedGradients),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| {
        run(config, &Inputs { tokens: given.open("tokens")?, model: given.model()? }, exec, draft)
    },
};

/// What is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Rows and columns that are left of a gradient: its square is the number of dimensions.
    pub side: usize,
    /// Seed of the projection: the same for queries and training examples.
    pub seed: u64,
    /// Attributed modules: `"mlp"`, `"all"`, `"everything"`, or globs on their names.
    pub modules: Modules,
    /// Precision of the model's forward and backward pass.
    pub precision: Precision,
}

impl Default for Config {
    fn default() -> Self {
        Self { side: 32, seed: 0, modules: Modules::default(), precision: Precision::default() }
    }
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        match self.side {
            1..=256 => Ok(()),
            side => Err(bad_input(format!("side = {side} is out of range; set it to 1 to 256 (its square is kept)"))),
        }
    }
}

/// What they are taken of.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Queries, or training sequences.
    pub tokens: Artifact<Tokens>,
    /// Hugging Face folder.
    pub model: ModelFiles,
}

/// Projects the gradient of every example with the text's own labels; a part per span of examples.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let model = open(&inputs.model, config.precision, exec)?;
    let selection = Selection::new(&config.modules, model.modules())?;
    let beside = bytes(selection.modules(), config.side);
    let (model, _) = place(model, selection.modules(), &inputs.tokens, exec, beside)?;
    let names: Vec<_> = selection.modules().iter().map(|module| &module.name).collect();
    draft.metadata("side", config.side.to_string());
    draft.metadata("seed", config.seed.to_string());
    draft.metadata("modules", serde_json::to_string(&names)?);
    draft.summary("modules", &names)?;
    draft.summary("coverage", Coverage::new(&model.outline, &selection))?;
    let corpus = Corpus::new("projections", &model, &inputs.tokens, exec);
    let sides: Vec<[Tensor<2>; 2]> =
        selection.modules().iter().map(|module| sides(config, &model, module)).collect::<Vec<_>>();
    corpus.parts(corpus.spans(draft)?, |part, examples| {
        let dimensions = config.side * config.side;
        let mut sums = vec![vec![0.0_f64; dimensions]; examples.len()];
        corpus.taps(examples, &selection, |group, tap| {
            let ([left, right], tokens) = (&sides[tap.index], tap.tokens);
            let [d, a] = tap.operands();
            let (d, a) = (product(d, left.clone()), product(a, right.clone()));
            let projected = values(example_products(d, a, &tokens.sequences))?;
            for (&index, projected) in group.iter().zip(projected.chunks_exact(dimensions)) {
                sums[index].iter_mut().zip(projected).for_each(|(sum, &value)| *sum += f64::from(value));
            }
            Ok(())
        })?;
        let mut rows = Vec::new();
        for (example, sums) in examples.iter().zip(sums) {
            let values: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
            if !values.iter().all(|value| value.is_finite()) {
                return Err(model.overflow(sequence(example), "its projected gradient", &Labels::Empirical));
            }
            rows.push(Projected { example: example.example, values });
        }
        draft.write_rows::<ProjectedGradients, _>(part, &rows)
    })
}

/// L [out, side] and R [in, side] of a module: the same whatever others are chosen.
fn sides(config: &Config, model: &Model, module: &Module) -> [Tensor<2>; 2] {
    // Maps of the blocks first, as they were before there was anything else.
    let (maps, others): (Vec<_>, Vec<_>) = model.modules().iter().partition(|module| module.part.is_map());
    let number = maps.iter().chain(&others).position(|other| other.name == module.name).unwrap_or(0) as u64;
    [
        signs(config, 2 * number, module.out_features, &model.device),
        signs(config, 2 * number + 1, module.in_features, &model.device),
    ]
}

/// A matrix [rows, side] of +-1 / sqrt(side), a stream of random numbers of its own.
fn signs(config: &Config, stream: u64, rows: usize, device: &Device) -> Tensor<2> {
    let value = (config.side as f32).sqrt().recip();
    let sign = |place: usize| if uniform(config.seed, stream, place as u64) < 0.5 { -value } else { value };
    let values: Vec<f32> = (0..rows * config.side).map(sign).collect();
    Tensor::from_data(TensorData::new(values, [rows, config.side]), device)
}

/// Bytes of L and R of every module.
fn bytes(modules: &[Module], side: usize) -> u64 {
    modules.iter().map(|module| 4 * (side * (module.in_features + module.out_features)) as u64).sum()
}

fn cost(config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = sizes_of(planned, machine) else { return Cost::new(0.0, 0.0, 0.0) };
    let Size { tokens, rows } = planned.size_of("tokens");
    let (side, beside) = (config.side as f64, bytes(&sizes.modules, config.side) as f64);
    let sizes = sizes.fitting(machine.memory, beside);
    let note = format!("{} a sequence", wherefrom_artifact::bytes(4.0 * side * side));
    let flops = sizes.scan(tokens) + 2.0 * tokens * side * (sizes.sums + side * sizes.modules.len() as f64);
    let memory = sizes.footprint.total() as f64 + beside;
    Cost::new(memory, rows * (4.0 * side * side + 8.0), flops).note(sizes.footprint.note()).note(note)
}
