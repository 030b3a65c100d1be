//! Between rows of artifacts and tensors.

use std::sync::Arc;

use anyhow::Result;
use burn::tensor::{Device, Tensor, TensorData};
use wherefrom_artifact::{Artifact, Basis, Eigenbasis, Error, Side, bad_input};
use wherefrom_linalg::kernels::Sum;
use wherefrom_model::Module;

use crate::blocks::Orthogonal;

/// A row-major matrix on a device.
pub(crate) fn tensor(values: Vec<f32>, shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// A tensor's values, row-major.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    tensor.into_data().try_into_vec().map_err(|error| anyhow::anyhow!("{error:?}"))
}

/// Q_A [in, in] and Q_S [out, out] of a module.
#[derive(Clone)]
pub(crate) struct Rotation {
    pub(crate) activation: Arc<Orthogonal>,
    pub(crate) gradient: Orthogonal,
}

/// The eigenbases of modules [out, in], in order; sizes are checked. Modules with the same input have one Q_A in memory.
pub(crate) fn rotations(
    eigenbasis: &Artifact<Eigenbasis>,
    modules: &[Module],
    device: &Device,
) -> Result<Vec<Rotation>> {
    let mut last: Option<(String, Vec<Vec<f32>>, Arc<Orthogonal>)> = None;
    let each = modules.iter().map(|module| {
        let [gradient, activation] = sides(eigenbasis, &module.name, [module.out_features, module.in_features])?;
        let activation = match last.take() {
            Some((input, values, shared)) if input == module.input && values == activation => {
                last = Some((input, values, shared.clone()));
                shared
            }
            _ => {
                let own = Arc::new(orthogonal(activation.clone(), device));
                last = Some((module.input.clone(), activation, own.clone()));
                own
            }
        };
        Ok(Rotation { activation, gradient: orthogonal(gradient, device) })
    });
    each.collect()
}

/// The eigenbasis of a module [out, in]; sizes are checked.
pub(crate) fn rotation(
    eigenbasis: &Artifact<Eigenbasis>,
    module: &str,
    shape: [usize; 2],
    device: &Device,
) -> Result<Rotation> {
    let [gradient, activation] = sides(eigenbasis, module, shape)?;
    Ok(Rotation { activation: Arc::new(orthogonal(activation, device)), gradient: orthogonal(gradient, device) })
}

fn orthogonal(blocks: Vec<Vec<f32>>, device: &Device) -> Orthogonal {
    let block = |values: Vec<f32>| {
        let n = values.len().isqrt();
        tensor(values, [n, n], device)
    };
    Orthogonal(blocks.into_iter().map(block).collect())
}

/// Vectors of Q_S and of Q_A, block by block; none of the standard basis.
fn sides(eigenbasis: &Artifact<Eigenbasis>, module: &str, shape: [usize; 2]) -> Result<[Vec<Vec<f32>>; 2]> {
    let folder = eigenbasis.folder().display();
    let mut sides = [Vec::new(), Vec::new()];
    let mut sizes = [0, 0];
    for row in eigenbasis.module::<Basis>(module)? {
        let side = usize::from(row.side == Side::Activation);
        sizes[side] += row.values.len();
        sides[side].extend((!row.is_standard()).then_some(row.vectors));
    }
    for (found, n) in sizes.into_iter().zip(shape) {
        if found == 0 {
            return Err(Error::Mismatch(format!(
                "the eigenbasis has nothing for module {module}: fit the curvature with the same `modules`: {folder}"
            ))
            .into());
        }
        if found != n {
            return Err(Error::Mismatch(format!(
                "the eigenbasis of {module} has size {found} where the module asks for {n}: {folder}"
            ))
            .into());
        }
    }
    Ok(sides)
}

/// A sum as the whole float32 matrix that the schema stores.
pub(crate) fn narrow(sum: &Sum, what: &str) -> Result<Vec<f32>> {
    let values = sum.matrix();
    let finite = values.iter().all(|value| value.is_finite());
    finite.then_some(values).ok_or_else(|| {
        bad_input(format!("{what} is a sum beyond float32; fit it on fewer tokens, or attribute fewer `modules`"))
    })
}
