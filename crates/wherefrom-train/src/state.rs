//! A training run between two steps: everything that the next step depends on, to bytes and back.

use std::collections::HashMap;

use anyhow::{Context as _, Result, anyhow, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use wherefrom_model::Parameters;

use crate::adam::Moments;

/// Points of the loss curve.
const POINTS: u64 = 50;
const METADATA: &str = "progress";

/// How far the run is, and how it went.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Steps done.
    pub(crate) step: u64,
    /// Tokens read.
    pub(crate) tokens: u64,
    /// (steps done, tokens read, mean loss per target since the point before).
    pub(crate) curve: Vec<(u64, u64, f64)>,
    loss: f64,
    targets: u64,
}

impl Progress {
    /// One more step of `steps`.
    pub(crate) fn count(&mut self, steps: u64, tokens: u64, loss: f64, targets: usize) {
        let point = |step: u64| step * POINTS.min(steps) / steps;
        self.step += 1;
        self.tokens += tokens;
        self.loss += loss;
        self.targets += targets as u64;
        if point(self.step) > point(self.step - 1) {
            self.curve.push((self.step, self.tokens, self.loss / self.targets as f64));
            (self.loss, self.targets) = (0.0, 0);
        }
    }
}

/// One safetensors file with weights, moments and progress.
pub(crate) fn to_bytes(parameters: &Parameters, moments: &Moments, progress: &Progress) -> Result<Vec<u8>> {
    let mut buffers = Vec::new();
    for (group, tensors) in [("weight", parameters), ("first", &moments.first), ("second", &moments.second)] {
        for (name, tensor) in tensors {
            let values: Vec<f32> = tensor.to_data().try_into_vec().map_err(|error| anyhow!("{error:?}"))?;
            let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
            buffers.push((format!("{group}/{name}"), tensor.dims(), bytes));
        }
    }
    let views = buffers
        .iter()
        .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([(METADATA.to_string(), serde_json::to_string(progress)?)]);
    Ok(safetensors::serialize(views, Some(metadata))?)
}

/// What [`to_bytes`] wrote.
pub(crate) fn from_bytes(bytes: &[u8], device: &Device) -> Result<(Parameters, Moments, Progress)> {
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    let progress = header.metadata().as_ref().and_then(|metadata| metadata.get(METADATA));
    let progress = serde_json::from_str(progress.context("a checkpoint says how far it is")?)?;
    let (mut parameters, mut moments) = (Parameters::new(), Moments::default());
    for (name, view) in SafeTensors::deserialize(bytes)?.tensors() {
        let (group, name) = name.split_once('/').context("a tensor of a checkpoint has a group")?;
        let &[rows, columns] = view.shape() else { return Err(anyhow!("{name} has shape {:?}", view.shape())) };
        ensure!(view.dtype() == Dtype::F32, "{name} is {:?}", view.dtype());
        let values: Vec<f32> =
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let tensor = Tensor::from_data(TensorData::new(values, [rows, columns]), device);
        match group {
            "weight" => parameters.insert(name.into(), tensor),
            "first" => moments.first.insert(name.into(), tensor),
            _ => moments.second.insert(name.into(), tensor),
        };
    }
    Ok((parameters, moments, progress))
}
