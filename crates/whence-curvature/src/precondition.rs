//! P(V) = Q_S [(Q_S^T V Q_A) / (Lambda + damping)] Q_A^T of every query gradient (Grosse et al. 2023, Eq. 21).
//!
//! reads   gradients, eigenbasis, lambda
//! writes  preconditioned

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use burn::tensor::{Device, Tensor};
use whence_artifact::{
    Artifact, Basis, Draft, Eigenbasis, Error, Exec, Factors, Gradients, Lambda, LambdaSum, Preconditioned, Row, Side,
};
use whence_linalg::truncated_svd;
use whence_model::resolve_device;

pub use crate::method::{Config, Damping, Method, Rank};
use crate::tensors::{Rotation, rotations, tensor, values};

/// Raised when results change.
pub const VERSION: u32 = 1;

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

/// One module's curvature, ready to divide by.
struct Curvature {
    rotation: Option<Rotation>,
    /// Lambda + damping [out, in]; none for the identity, and where Lambda is zero.
    divisor: Option<Tensor<2>>,
    zero: bool,
}

/// Preconditions every gradient; a part per part of the gradients.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let device = resolve_device(&exec.device)?;
    draft.metadata("method", config.method.name());
    draft.metadata("damping", serde_json::to_string(&config.damping)?);
    draft.metadata("rank", serde_json::to_string(&config.rank)?);
    if let Some(coverage) = inputs.gradients.manifest().summary.get("coverage") {
        draft.summary("coverage", coverage)?;
    }
    let parts: Vec<usize> = draft.plan(|| Ok((0..inputs.gradients.parts()).collect()))?;
    let mut curvature: Option<BTreeMap<String, Curvature>> = None;
    exec.reporter.begin("precondition", "gradients", inputs.gradients.manifest().rows(), 0);
    for part in parts {
        if draft.has(part) {
            continue;
        }
        let rows = inputs.gradients.batches(part, &[])?;
        // A batch for each matrix: the offsets of a batch's lists have 32 bits.
        let mut of_batch = |batch: Result<_>| {
            let rows = <Factors as Row<Gradients>>::from_batch(&batch?)?;
            if curvature.is_none() {
                curvature = Some(load(config, inputs, &rows, exec, &device)?);
            }
            let curvature = curvature.as_ref().context("loaded above")?;
            let precondition = |row: Factors| {
                let name = row.module.clone();
                let module = curvature.get(&name).with_context(|| format!("curvature of module {name}"))?;
                exec.reporter.advance(1);
                let row = precondition(row, module, config.rank, &device).with_context(|| format!("module {name}"))?;
                <Factors as Row<Preconditioned>>::to_batch(&[row])
            };
            rows.into_iter().map(precondition).collect::<Result<Vec<_>>>()
        };
        let batches = rows.flat_map(|batch| match of_batch(batch) {
            Ok(batches) => batches.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        });
        draft.write_each(part, batches)?;
    }
    exec.reporter.end();
    Ok(())
}

/// The curvature of the modules that the first example's rows name.
fn load(
    config: &Config,
    inputs: &Inputs,
    rows: &[Factors],
    exec: &Exec,
    device: &Device,
) -> Result<BTreeMap<String, Curvature>> {
    let modules: Vec<_> =
        rows.iter().map(|row| (row.module.clone(), [row.left_shape[0], row.right_shape[0]])).collect();
    let needs = |role: &str| {
        Error::Input(format!("method {} needs an input `{role}`: wire it to a step", config.method.name()))
    };
    let mut bases = match (&inputs.eigenbasis, config.method.uses_eigenbasis()) {
        (Some(eigenbasis), true) => rotations(eigenbasis, &modules, device)?.into_iter().map(Some).collect(),
        (None, true) => return Err(needs("eigenbasis").into()),
        (_, false) => vec![None; modules.len()],
    };
    let lambdas = match (config.method, &inputs.lambda) {
        (Method::Identity, _) => BTreeMap::new(),
        (Method::Kfac, _) => kronecker(inputs.eigenbasis.as_ref().ok_or_else(|| needs("eigenbasis"))?)?,
        (_, Some(lambda)) => fitted(lambda)?,
        (_, None) => return Err(needs("lambda").into()),
    };
    let mut curvature = BTreeMap::new();
    for ((name, shape), rotation) in modules.into_iter().zip(bases.drain(..)) {
        if config.method == Method::Identity {
            curvature.insert(name, Curvature { rotation: None, divisor: None, zero: false });
            continue;
        }
        let lambda = lambdas.get(&name).filter(|lambda| lambda.len() == shape[0] * shape[1]).ok_or_else(|| {
            Error::Mismatch(format!(
                "lambda has no [{}, {}] for module {name}: fit it with the same `modules`",
                shape[0], shape[1]
            ))
        })?;
        let mean = lambda.iter().sum::<f64>() / lambda.len() as f64;
        let zero = lambda.iter().all(|&value| value == 0.0);
        if zero {
            exec.reporter.warn(&format!("lambda of {name} is all zero: the module contributes nothing"));
        }
        let damping = match config.damping {
            Damping::Relative(share) => share * mean,
            Damping::Absolute(value) => value,
        };
        // The reciprocal is taken in float64.
        let divisor: Vec<f32> = lambda.iter().map(|&value| (1.0 / (value + damping)) as f32).collect();
        if !zero && divisor.iter().any(|value| !value.is_finite()) {
            return Err(Error::Input(format!(
                "Lambda + damping of {name} reaches zero: raise `damping` (the default is {{ relative = 0.1 }})"
            ))
            .into());
        }
        curvature.insert(name, Curvature { rotation, divisor: Some(tensor(&divisor, shape, device)), zero });
    }
    Ok(curvature)
}

/// E_z[...]: the sums over their counts.
fn fitted(lambda: &Artifact<Lambda>) -> Result<BTreeMap<String, Vec<f64>>> {
    let mut lambdas = BTreeMap::new();
    for row in lambda.rows::<LambdaSum>()? {
        let row = row?;
        let scale = 1.0 / row.count.max(1) as f64;
        lambdas.insert(row.module, row.lambda.iter().map(|&value| f64::from(value) * scale).collect());
    }
    Ok(lambdas)
}

/// Lambda = (tokens / examples) l_S l_A^T: the factors are means per token, Lambda is per sequence.
fn kronecker(eigenbasis: &Artifact<Eigenbasis>) -> Result<BTreeMap<String, Vec<f64>>> {
    let count = |name: &str| {
        eigenbasis.manifest().count(name).with_context(|| format!("the eigenbasis' manifest has no summary `{name}`"))
    };
    let scale = count("tokens")? as f64 / count("examples")?.max(1) as f64;
    let mut sides: BTreeMap<String, [Vec<f32>; 2]> = BTreeMap::new();
    for row in eigenbasis.rows::<Basis>()? {
        let row = row?;
        sides.entry(row.module).or_default()[usize::from(row.side == Side::Activation)] = row.values;
    }
    let outer = |[s, a]: &[Vec<f32>; 2]| {
        let positive = |value: f32| f64::from(value).max(0.0);
        s.iter().flat_map(|&s| a.iter().map(move |&a| scale * positive(s) * positive(a))).collect()
    };
    Ok(sides.iter().map(|(name, sides)| (name.clone(), outer(sides))).collect())
}

/// P(left right^T), whole or truncated. The truncation is taken in the eigenbasis, where P is rotated and not dense again:
/// rotate the factors, multiply, divide, decompose, and rotate back only what is kept.
fn precondition(row: Factors, curvature: &Curvature, rank: Rank, device: &Device) -> Result<Factors> {
    if row.rank == 0 {
        let what = format!("gradient {} of {} is a whole matrix: give its factors", row.row, row.module);
        return Err(Error::Mismatch(what).into());
    }
    let [out_features, in_features] = [row.left_shape[0], row.right_shape[0]];
    let left = tensor(&row.left, row.left_shape, device);
    let right = tensor(&row.right, row.right_shape, device);
    let (left, right) = match &curvature.rotation {
        Some(basis) => {
            (basis.gradient.clone().transpose().matmul(left), basis.activation.clone().transpose().matmul(right))
        }
        None => (left, right),
    };
    let mut product = left.matmul(right.transpose());
    product = match &curvature.divisor {
        _ if curvature.zero => product.zeros_like(),
        Some(reciprocal) => product * reciprocal.clone(),
        None => product,
    };
    let name = row.module;
    let side = out_features.min(in_features);
    match rank {
        Rank::Low(rank) if rank < side => {
            let (left, right) = truncated_svd(&values(product)?, out_features, in_features, rank)?;
            let (mut left, mut right) =
                (tensor(&left, [out_features, rank], device), tensor(&right, [in_features, rank], device));
            if let Some(basis) = &curvature.rotation {
                left = basis.gradient.clone().matmul(left);
                right = basis.activation.clone().matmul(right);
            }
            Ok(Factors {
                row: row.row,
                module: name,
                rank,
                left_shape: [out_features, rank],
                left: values(left)?,
                right_shape: [in_features, rank],
                right: values(right)?,
            })
        }
        Rank::Low(_) | Rank::Full => {
            if let Some(basis) = &curvature.rotation {
                product = basis.gradient.clone().matmul(product).matmul(basis.activation.clone().transpose());
            }
            Ok(Factors {
                row: row.row,
                module: name,
                rank: 0,
                left_shape: [out_features, in_features],
                left: values(product)?,
                right_shape: [0, 0],
                right: Vec::new(),
            })
        }
    }
}
