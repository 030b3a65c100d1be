//! P(V) = Q_S [(Q_S^T V Q_A) / (Lambda + damping)] Q_A^T of every query gradient (Grosse et al. 2023, Eq. 21).
//!
//! reads   gradients, eigenbasis, lambda
//! writes  preconditioned

use std::sync::Arc;

use anyhow::{Context as _, Result};
use burn::tensor::{Device, Tensor};
use wherefrom_artifact::{
    Artifact, Draft, Eigenbasis, Error, Factors, Gradients, Kind, Lambda, Preconditioned, Row, bad_input,
};
use wherefrom_linalg::kernels::product;
use wherefrom_linalg::{Threads, truncated_svd};
use wherefrom_model::{Module, open_device};
use wherefrom_pass::sizes_of;
use wherefrom_stage::{About, Cost, Exec, Machine, Planned, Role, Size, Stage, Writes};

use crate::blocks::blocks_of;
use crate::covariance;
use crate::inverse::{Curvature, Inverse};
pub use crate::method::{Config, Damping, Method, Rank};
use crate::side_by_side::{self, side_by_side};
use crate::tensors::{Rotation, tensor, values};

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `precondition`.
pub static STAGE: Stage<Config> = Stage {
    about: About::new("precondition", VERSION).on_device().split(),
    roles: &[
        Role::required("gradients", &[Kind::Gradients]),
        Role::when("eigenbasis", &[Kind::Eigenbasis], |config| config.method.uses_eigenbasis()),
        Role::when("lambda", &[Kind::Lambda], |config| config.method.uses_lambda()),
    ],
    parse: |knobs| {
        let mut config: Config = serde_json::from_value(knobs)?;
        config.damping = config.method.damping(config.damping);
        Ok(config)
    },
    check: Config::check,
    writes: Writes::One(Kind::Preconditioned),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| {
        let (eigenbasis, lambda) = (given.maybe("eigenbasis")?, given.maybe("lambda")?);
        run(config, &Inputs { gradients: given.open("gradients")?, eigenbasis, lambda }, exec, draft)
    },
};

/// What it is computed from.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Query gradients.
    pub gradients: Artifact<Gradients>,
    /// Needed by `kfac` and `ekfac`.
    pub eigenbasis: Option<Artifact<Eigenbasis>>,
    /// Needed by `diagonal` and `ekfac`.
    pub lambda: Option<Artifact<Lambda>>,
}

/// Preconditions every gradient, module by module, with the curvature of those in work and of those that come next in
/// memory; a part per module and part of the gradients.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let device = open_device(exec.device.gpu())?;
    let curvature = Curvature::new(config.method, config.damping, inputs.eigenbasis.as_ref(), inputs.lambda.as_ref())?;
    draft.store(config.store);
    draft.metadata("method", config.method.name());
    draft.metadata("damping", serde_json::to_string(&config.damping)?);
    draft.metadata("rank", serde_json::to_string(&config.rank)?);
    for name in ["coverage", "measured"] {
        if let Some(value) = inputs.gradients.manifest().summary.get(name) {
            draft.summary(name, value)?;
        }
    }
    let modules = inputs.gradients.modules()?;
    let parts: Vec<(usize, usize)> = draft.plan(|| {
        let parts = 0..inputs.gradients.parts();
        Ok((0..modules.len()).flat_map(|module| parts.clone().map(move |part| (module, part))).collect())
    })?;
    exec.reporter.begin("precondition", "gradients", inputs.gradients.manifest().rows(), 0);
    let pending: Vec<_> = parts.into_iter().enumerate().filter(|(number, _)| !draft.has(*number)).collect();
    let work = pending.iter().map(|&(number, (index, part))| {
        let name = modules.get(index).context("the gradients have fewer modules than the draft was begun with")?;
        let rows = inputs.gradients.rows_of::<Factors>(part, name)?;
        Ok(rows.map(move |row| Ok((number, row?))))
    });
    let work = work.flat_map(|rows: Result<_>| {
        let (rows, error) = rows.map_or_else(|error| (None, Some(Err(error))), |rows| (Some(rows), None));
        rows.into_iter().flatten().chain(error)
    });
    let most = exec.device.side_by_side();
    let low_rank = matches!(config.rank, Rank::Low(_));
    let standard = inputs.eigenbasis.as_ref().and_then(|basis| basis.manifest().summary.get("diagonal"));
    let standard: Vec<String> = standard.map_or(Ok(Vec::new()), |names| serde_json::from_value(names.clone()))?;
    let size = |(_, row): &(usize, Factors)| {
        let [out, inside] = [row.left_shape[0], row.right_shape[0]];
        let gradient = if standard.contains(&row.module) { 0 } else { out * out };
        let rotations = if config.method.uses_eigenbasis() { gradient + inside * inside } else { 0 };
        bytes(out, inside, rotations as u64, row.rank, low_rank)
    };
    // A module's curvature is read once for all of its queries.
    let mut last: Option<(String, Arc<Inverse>)> = None;
    let prepare = |(number, row): (usize, Factors)| {
        let inverse = match &last {
            Some((name, inverse)) if *name == row.module => inverse.clone(),
            _ => {
                last = None;
                let shape = [row.left_shape[0], row.right_shape[0]];
                let inverse = Arc::new(curvature.of(&row.module, shape, &device, &*exec.reporter)?);
                last.insert((row.module.clone(), inverse)).1.clone()
            }
        };
        Ok((number, row, inverse))
    };
    let done = side_by_side(work, most, size, prepare, |(number, row, inverse), threads| {
        let name = row.module.clone();
        let row = precondition(row, &inverse, config.rank, threads, &device);
        exec.reporter.advance(1);
        // A batch for each matrix: the offsets of a batch's lists have 32 bits.
        let row = row.with_context(|| format!("module {name}"))?;
        Ok((number, <Factors as Row<Preconditioned>>::to_batch(&[row])?))
    });
    let mut done = done.peekable();
    for (number, _) in &pending {
        let own = std::iter::from_fn(|| done.next_if(|row| row.as_ref().map_or(true, |(of, _)| of == number)));
        draft.write_each(*number, own.map(|row| Ok(row?.1)))?;
    }
    exec.reporter.end();
    Ok(())
}

/// Bytes for one module [out, in] and one query of so many tokens: what waits, and the product on its way through the
/// decomposition (a Gram matrix of the smaller side in float64 and its eigenvectors) or the rotations; or Lambda and its
/// mean in float64.
pub(crate) fn bytes(out_features: usize, in_features: usize, rotations: u64, tokens: usize, low_rank: bool) -> u64 {
    let (size, sum) = ((out_features * in_features) as u64, (out_features + in_features) as u64);
    let side = (out_features.min(in_features) as u64).pow(2);
    let product = if low_rank { 16 * size + 48 * side } else { 20 * size };
    waiting(out_features, in_features, rotations, tokens) + (12 * size).max(product) + 8 * sum * tokens as u64
}

/// Bytes of them before the work begins: curvature and factors.
pub(crate) fn waiting(out_features: usize, in_features: usize, rotations: u64, tokens: usize) -> u64 {
    let (size, sum) = ((out_features * in_features) as u64, (out_features + in_features) as u64);
    4 * (rotations + size + sum * tokens as u64)
}

fn cost(config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = sizes_of(planned, machine) else { return Cost::new(0.0, 0.0, 0.0) };
    let Size { tokens, rows: queries } = planned.size_of("gradients");
    let (each, blocks) = ((tokens / queries.max(1.0)) as usize, blocks_of(planned));
    let work = |module: &Module| {
        let (inside, out) = (module.in_features as f64, module.out_features as f64);
        let (side, size) = (inside.min(out), inside * out);
        match config.rank {
            Rank::Low(_) => 2.0 * size * (each as f64 + side) + 9.0 * side.powi(3),
            Rank::Full => 2.0 * size * (each as f64 + inside + out),
        }
    };
    let (mut largest, mut waits) = (0, 0);
    for module in &sizes.modules {
        let ([out, inside], rotations) =
            ([module.out_features, module.in_features], covariance::both_sides(module, blocks));
        largest = bytes(out, inside, rotations, each, matches!(config.rank, Rank::Low(_))).max(largest);
        waits = waiting(out, inside, rotations, each).max(waits);
    }
    let query = sizes.query(config.rank.number()) * config.store.bytes();
    let flops = queries * sizes.modules.iter().map(work).sum::<f64>();
    let held = side_by_side::held(largest, waits, &machine.device);
    Cost::new(held as f64, queries * query, flops).note(format!("{} a query", wherefrom_artifact::bytes(query)))
}

/// P(left right^T), whole or truncated. The truncation is taken in the eigenbasis, where P is rotated and not dense again:
/// rotate the factors, multiply, divide, decompose, and rotate back only what is kept.
fn precondition(row: Factors, inverse: &Inverse, rank: Rank, threads: Threads, device: &Device) -> Result<Factors> {
    if row.rank == 0 {
        let what = format!("gradient {} of {} is a whole matrix: give its factors", row.row, row.module);
        return Err(Error::Mismatch(what).into());
    }
    let mut left = tensor(row.left, row.left_shape, device);
    let mut right = tensor(row.right, row.right_shape, device);
    if let Some(basis) = &inverse.rotation {
        (left, right) = (basis.gradient.columns_into(left), basis.activation.columns_into(right));
    }
    let mut whole = product(left, right.transpose());
    if let Some(reciprocal) = &inverse.reciprocal {
        whole = whole * reciprocal.clone();
    }
    keep(whole, inverse.rotation.as_ref(), (row.row, row.module), rank, threads, device)
}

/// What is kept of a query's matrix [out, in], which is rotated back where it is in an eigenbasis.
pub(crate) fn keep(
    mut whole: Tensor<2>,
    rotation: Option<&Rotation>,
    (number, module): (u64, String),
    rank: Rank,
    threads: Threads,
    device: &Device,
) -> Result<Factors> {
    let [out_features, in_features] = whole.dims();
    let finite = |values: Vec<f32>| match values.iter().all(|value| value.is_finite()) {
        true => Ok(values),
        false => Err(bad_input(format!(
            "the preconditioned gradient of query {number} overflows float32 in {module}; raise `damping`, or give the \
             query's gradient without this module"
        ))),
    };
    let side = out_features.min(in_features);
    match rank {
        Rank::Low(rank) if rank < side => {
            let (left, right) = truncated_svd(&finite(values(whole)?)?, out_features, in_features, rank, threads)?;
            let (mut left, mut right) =
                (tensor(left, [out_features, rank], device), tensor(right, [in_features, rank], device));
            if let Some(basis) = rotation {
                (left, right) = (basis.gradient.columns_back(left), basis.activation.columns_back(right));
            }
            let (left_shape, right_shape) = ([out_features, rank], [in_features, rank]);
            let (left, right) = (finite(values(left)?)?, finite(values(right)?)?);
            Ok(Factors { row: number, module, rank, left_shape, left, right_shape, right })
        }
        Rank::Low(_) | Rank::Full => {
            if let Some(basis) = rotation {
                whole = basis.activation.rows_back(basis.gradient.columns_back(whole));
            }
            let (left, left_shape) = (finite(values(whole)?)?, [out_features, in_features]);
            Ok(Factors { row: number, module, rank: 0, left_shape, left, right_shape: [0, 0], right: Vec::new() })
        }
    }
}
