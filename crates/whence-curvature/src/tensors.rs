//! Between rows of artifacts and tensors.

use anyhow::{Context as _, Result};
use burn::tensor::{Device, Tensor, TensorData};
use whence_artifact::{Artifact, Basis, Eigenbasis, Error, Side};
use whence_model::Module;

/// A row-major matrix on a device.
pub(crate) fn tensor(values: &[f32], shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// A tensor's values, row-major.
pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    tensor.into_data().try_into_vec().map_err(|error| anyhow::anyhow!("{error:?}"))
}

/// Q_A [in, in] and Q_S [out, out] of a module.
#[derive(Clone)]
pub(crate) struct Rotation {
    pub(crate) activation: Tensor<2>,
    pub(crate) gradient: Tensor<2>,
}

/// The eigenbasis of every module, in the order given; sizes are checked.
pub(crate) fn rotations(
    eigenbasis: &Artifact<Eigenbasis>,
    modules: &[(String, [usize; 2])],
    device: &Device,
) -> Result<Vec<Rotation>> {
    let mut sides: Vec<[Option<Tensor<2>>; 2]> = vec![[None, None]; modules.len()];
    for row in eigenbasis.rows::<Basis>()? {
        let row = row?;
        let Some(index) = modules.iter().position(|(name, _)| *name == row.module) else { continue };
        let [out_features, in_features] = modules[index].1;
        let n = if row.side == Side::Activation { in_features } else { out_features };
        if row.vectors.len() != n * n {
            return Err(Error::Mismatch(format!(
                "the eigenbasis of {} has {} values where the module asks for {n} x {n}: {}",
                row.module,
                row.vectors.len(),
                eigenbasis.folder().display()
            ))
            .into());
        }
        sides[index][usize::from(row.side == Side::Gradient)] = Some(tensor(&row.vectors, [n, n], device));
    }
    let missing = |name: &str| {
        Error::Mismatch(format!(
            "the eigenbasis has nothing for module {name}: fit the curvature with the same `modules`: {}",
            eigenbasis.folder().display()
        ))
    };
    sides
        .into_iter()
        .zip(modules)
        .map(|([activation, gradient], (name, _))| {
            Ok(Rotation {
                activation: activation.ok_or_else(|| missing(name))?,
                gradient: gradient.ok_or_else(|| missing(name))?,
            })
        })
        .collect()
}

/// Name and [out, in] of each module.
pub(crate) fn shapes(modules: &[Module]) -> Vec<(String, [usize; 2])> {
    modules.iter().map(|module| (module.name.clone(), [module.out_features, module.in_features])).collect()
}

/// A sum as the f32 that the schema stores.
pub(crate) fn narrow(sum: &[f64], what: &str) -> Result<Vec<f32>> {
    let values: Vec<f32> = sum.iter().map(|&value| value as f32).collect();
    let finite = values.iter().all(|value| value.is_finite());
    finite
        .then_some(values)
        .with_context(|| format!("{what} is not finite: the model's activations or gradients overflow"))
}
