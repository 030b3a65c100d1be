//! Between rows of artifacts and tensors.

use anyhow::{Context as _, Result};
use burn::tensor::{Device, Tensor, TensorData};
use whence_artifact::{Artifact, Basis, Eigenbasis, Error, Side};

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
    pub(crate) activation: Orthogonal,
    pub(crate) gradient: Orthogonal,
}

/// The eigenbasis of a module [out, in]; sizes are checked.
pub(crate) fn rotation(
    eigenbasis: &Artifact<Eigenbasis>,
    module: &str,
    shape: [usize; 2],
    device: &Device,
) -> Result<Rotation> {
    let folder = eigenbasis.folder().display();
    let mut sides = [Vec::new(), Vec::new()];
    for row in eigenbasis.module::<Basis>(module)? {
        let n = row.values.len();
        sides[usize::from(row.side == Side::Activation)].push(tensor(row.vectors, [n, n], device));
    }
    for (blocks, n) in sides.iter().zip(shape) {
        let found: usize = blocks.iter().map(|block| block.dims()[0]).sum();
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
    let [gradient, activation] = sides.map(Orthogonal);
    Ok(Rotation { activation, gradient })
}

/// A sum as the f32 that the schema stores.
pub(crate) fn narrow(sum: &[f64], what: &str) -> Result<Vec<f32>> {
    let values: Vec<f32> = sum.iter().map(|&value| value as f32).collect();
    let finite = values.iter().all(|value| value.is_finite());
    finite
        .then_some(values)
        .with_context(|| format!("{what} is not finite: the model's activations or gradients overflow"))
}
