//! x = (H + D)^-1 b of every query gradient b, on the exact Gauss-Newton matrix H of a sample of the data.
//!
//! H = (1/n) sum over documents z and their targets t of J_zt^T (diag p - p p^T) J_zt, with J the derivative of the logits by
//! all attributed maps at once and p their softmax; D adds to each module what `precondition` adds to its Lambda. Nothing but
//! the sample is approximate where the solution has converged; EK-FAC, which approximates H, preconditions the iteration:
//! P(V) = Q_S [(Q_S^T V Q_A) / (Lambda + damping)] Q_A^T.
//!
//! reads   gradients, tokens, model, eigenbasis, lambda
//! writes  preconditioned

mod checkpoint;
mod iteration;
pub(crate) mod sample;
pub(crate) mod system;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{
    Artifact, Draft, Eigenbasis, Error, Factors, Gradients, Kind, Lambda, Preconditioned, Row, Stored, Tokens,
    bad_input,
};
use wherefrom_linalg::kernels::product;
use wherefrom_model::{Module, Modules, Precision, Selection};
use wherefrom_pass::{open, place, sizes_of};
use wherefrom_stage::{
    About, Checkpoint, Cost, Exec, Machine, ModelFiles, Planned, Role, Size, Stage, Writes, at_least,
};

use crate::blocks::blocks_of;
use crate::covariance;
use crate::inverse::Curvature;
use crate::method::{Damping, Method, Rank};
use crate::precondition::keep;
use crate::side_by_side::side_by_side;
use crate::tensors::{tensor, values};
use iteration::State;
use sample::Sampling;
use system::{Space, System};

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `solve`.
pub static STAGE: Stage<Config> = Stage {
    about: About { model: Checkpoint::Runs, ..About::new("solve", VERSION) },
    roles: &[
        Role::required("gradients", &[Kind::Gradients]),
        Role::required("tokens", &[Kind::Tokens]),
        Role::required("eigenbasis", &[Kind::Eigenbasis]),
        Role::required("lambda", &[Kind::Lambda]),
    ],
    parse: |knobs| {
        let _least: Config = at_least("steps", 1, knobs.clone())?;
        let mut config: Config = at_least("sample", 1, knobs)?;
        if config.solver == Solver::Neumann {
            config.tolerance = Config::default().tolerance;
        }
        Ok(config)
    },
    check: Config::check,
    writes: Writes::One(Kind::Preconditioned),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| {
        let inputs = Inputs {
            gradients: given.open("gradients")?,
            tokens: given.open("tokens")?,
            model: given.model()?,
            eigenbasis: given.open("eigenbasis")?,
            lambda: given.open("lambda")?,
        };
        run(config, &inputs, exec, draft)
    },
};

/// How the system is solved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Solver {
    /// Conjugate gradients, preconditioned by EK-FAC, on one sample.
    #[default]
    ConjugateGradients,
    /// LiSSA's stochastic Neumann series, preconditioned by EK-FAC: x += s P (b - K x), with a sample of its own for each step.
    Neumann,
}

impl Solver {
    fn name(self) -> &'static str {
        match self {
            Self::ConjugateGradients => "conjugate-gradients",
            Self::Neumann => "neumann",
        }
    }
}

/// What is computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// How the system is solved.
    pub solver: Solver,
    /// What is added to H and Lambda: a share of Lambda's mean in each module (a bare number), or one number for all.
    pub damping: Damping,
    /// Most products with H of each query. The first finds EK-FAC's answer at its best length.
    pub steps: usize,
    /// A query is done where the norm of b - (H + D) x is this share of that of b; conjugate gradients alone.
    pub tolerance: f64,
    /// Documents that H is the mean of, drawn from the tokens; all where there are fewer.
    pub sample: usize,
    /// Seed of the draw.
    pub seed: u64,
    /// How much of the solution is kept: a number of singular directions, or `"full"`.
    pub rank: Rank,
    /// float32, or float16 with a scale for each factor.
    pub store: Stored,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            solver: Solver::default(),
            damping: Damping::default(),
            steps: 20,
            tolerance: 1e-4,
            sample: 256,
            seed: 0,
            rank: Rank::Low(32),
            store: Stored::default(),
        }
    }
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        if !(self.tolerance >= 0.0 && self.tolerance < 1.0) {
            let given = self.tolerance;
            return Err(bad_input(format!(
                "tolerance = {given} is out of range; set it to 0 or more, and less than 1"
            )));
        }
        self.damping.check()
    }
}

/// What it is computed from.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Query gradients b.
    pub gradients: Artifact<Gradients>,
    /// The data that H is of.
    pub tokens: Artifact<Tokens>,
    /// Hugging Face folder.
    pub model: ModelFiles,
    /// EK-FAC's basis.
    pub eigenbasis: Artifact<Eigenbasis>,
    /// EK-FAC's corrected eigenvalues, whose mean damping is a share of.
    pub lambda: Artifact<Lambda>,
}

/// Solves for all queries side by side; a part per module and part of the gradients, as `precondition` writes them.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let Inputs { gradients, tokens, eigenbasis, lambda, .. } = inputs;
    let curvature = Curvature::new(Method::Ekfac, config.damping, Some(eigenbasis), Some(lambda))?;
    draft.store(config.store);
    draft.metadata("method", config.solver.name());
    draft.metadata("damping", serde_json::to_string(&config.damping)?);
    draft.metadata("rank", serde_json::to_string(&config.rank)?);
    for name in ["coverage", "measured"] {
        if let Some(value) = gradients.manifest().summary.get(name) {
            draft.summary(name, value)?;
        }
    }
    let names = match gradients.manifest().summary.get("modules") {
        Some(names) => serde_json::from_value(names.clone()).context("the gradients' manifest")?,
        None => gradients.modules()?,
    };
    let parts: Vec<(usize, usize)> = draft.plan(|| {
        let parts = 0..gradients.parts();
        Ok((0..names.len()).flat_map(|module| parts.clone().map(move |part| (module, part))).collect())
    })?;
    let model = open(&inputs.model, Precision::F32, exec)?;
    let chosen = Modules::Globs(names.iter().map(|name| globset::escape(name)).collect());
    let selection = Selection::new(&chosen, model.modules())?;
    selection.maps_alone("solve")?;
    let modules = selection.modules();
    let blocks = eigenbasis.manifest().count("blocks").unwrap_or(1) as usize;
    let numbers = (0..gradients.parts()).map(|part| queries_of(gradients, part)).collect::<Result<Vec<_>>>()?;
    let queries = numbers.iter().map(Vec::len).sum::<usize>() as u64;
    let (model, _) = place(model, modules, tokens, exec, bytes(modules, queries, blocks))?;

    let space = Space::new(&curvature, modules, &model.device, &*exec.reporter)?;
    let system = System { space: &space, model: &model, selection: &selection, exec };
    let sampling = Sampling { model: &model, tokens, exec, documents: config.sample, seed: config.seed };
    let mut state = match State::restore(draft, space.size())? {
        Some(state) => state,
        None => State::new(right_sides(gradients, &space)?),
    };
    state.solve(config, &system, &sampling, draft)?;
    draft.summary("documents", tokens.examples().min(config.sample as u64))?;
    draft.summary("queries", state.queries.iter().map(|query| query.told.number).collect::<Vec<_>>())?;
    draft.summary("residual", state.by_query(|settled| settled.residual))?;
    draft.summary("change", state.by_query(|settled| settled.change))?;

    exec.reporter.begin("solve", "parts", parts.len() as u64, 0);
    for (number, (place, part)) in parts.into_iter().enumerate() {
        if !draft.has(number) {
            let name = names.get(place).context("the gradients have fewer modules than the draft was begun with")?;
            let module = space.place(name)?;
            // Also those whose gradient here is zero, as of an expert: the system joins all modules.
            let queries = numbers[part].iter().map(|&query| Ok(query));
            let prepare = |query: u64| Ok((query, space.matrix(name, &state.of(query)?.x)?));
            let (most, bytes) = (exec.device.side_by_side(), |_: &u64| 20 * module.len() as u64);
            let rows = side_by_side(queries, most, bytes, prepare, |(query, whole), threads| {
                let row = keep(whole, None, (query, name.clone()), config.rank, threads, &model.device)?;
                // A batch for each matrix: the offsets of a batch's lists have 32 bits.
                <Factors as Row<Preconditioned>>::to_batch(&[row])
            });
            draft.write_each(number, rows)?;
        }
        exec.reporter.advance(1);
    }
    exec.reporter.end();
    Ok(())
}

/// The queries of a part, in order.
fn queries_of(gradients: &Artifact<Gradients>, part: usize) -> Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for row in gradients.rows_in::<Factors>(part)? {
        let number = row?.row;
        if !numbers.contains(&number) {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

/// The query gradients, whole, by number.
fn right_sides(gradients: &Artifact<Gradients>, space: &Space) -> Result<BTreeMap<u64, Vec<f64>>> {
    let mut sides: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for row in gradients.rows::<Factors>()? {
        let row = row?;
        if row.rank == 0 {
            let what = format!("gradient {} of {} is a whole matrix: give its factors", row.row, row.module);
            return Err(Error::Mismatch(what).into());
        }
        let left = tensor(row.left, row.left_shape, &space.device);
        let whole = values(product(left, tensor(row.right, row.right_shape, &space.device).transpose()))?;
        let side = sides.entry(row.row).or_insert_with(|| vec![0.0; space.size()]);
        let own = &mut side[space.place(&row.module)?];
        ensure!(own.len() == whole.len(), "gradient {} of {} has the shape of the module", row.row, row.module);
        own.iter_mut().zip(whole).for_each(|(own, value)| *own = value.into());
    }
    sides.values_mut().for_each(|side| space.only_curved(side));
    Ok(sides)
}

/// Bytes beside model and batches: of each query its solution, residual, direction and product in float64, and the
/// direction in float32; and the curvature of all modules.
fn bytes(modules: &[Module], queries: u64, blocks: usize) -> u64 {
    let size: u64 = modules.iter().map(|module| (module.in_features * module.out_features) as u64).sum();
    let rotations: u64 = modules.iter().map(|module| covariance::both_sides(module, blocks)).sum();
    queries * 36 * size + 4 * (rotations + size)
}

fn cost(config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = sizes_of(planned, machine) else { return Cost::new(0.0, 0.0, 0.0) };
    let (Size { rows: queries, .. }, data) = (planned.size_of("gradients"), planned.size_of("tokens"));
    let tokens = data.tokens * (config.sample as f64 / data.rows.max(1.0)).min(1.0);
    let beside = bytes(&sizes.modules, queries as u64, blocks_of(planned));
    let sizes = sizes.fitting(machine.memory, beside as f64);
    // Of a query and token: tangents through the model and of the attributed maps, and the same backward.
    let each = queries * 4.0 * (sizes.forward + sizes.products);
    let rotated = |module: &Module| {
        let (inside, out) = (module.in_features as f64, module.out_features as f64);
        4.0 * inside * out * (inside + out)
    };
    let rotations = queries * sizes.modules.iter().map(rotated).sum::<f64>();
    let flops = config.steps as f64 * (tokens * (2.0 * sizes.forward + each) + rotations);
    let query = sizes.query(config.rank.number()) * config.store.bytes();
    let threads = machine.device.side_by_side() as f64;
    let memory = sizes.footprint.total() as f64
        + threads * (sizes.footprint.activations + sizes.footprint.widened) as f64
        + beside as f64;
    Cost::new(memory, queries * query, flops)
        .note(sizes.footprint.note())
        .note(format!("{} a query", wherefrom_artifact::bytes(query)))
}
