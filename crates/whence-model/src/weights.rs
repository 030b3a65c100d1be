//! Parameters from safetensors, memory-mapped, checked, and as float32.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use burn::tensor::{Device, Tensor, TensorData};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::config::Config;
use crate::error::bad_input;

/// Parameters by Hugging Face name. Vectors (norm gains) are [1, n].
pub type Parameters = BTreeMap<String, Tensor<2>>;

/// Reads every parameter of `config` from the folder.
pub(crate) fn load(folder: &Path, config: &Config, device: &Device) -> Result<Parameters> {
    let mut parameters = Parameters::new();
    read(folder, config, &mut |name, shape, values| {
        parameters.insert(name, Tensor::from_data(TensorData::new(values, shape), device));
    })?;
    Ok(parameters)
}

/// Reads a checkpoint through, one tensor in memory at a time, and keeps nothing: what would be refused is refused.
pub fn check(folder: &Path) -> Result<()> {
    read(folder, &Config::load(folder)?, &mut |_, _, _| {})
}

/// Calls `visit` with name, shape and values of every parameter of `config`.
fn read(folder: &Path, config: &Config, visit: &mut dyn FnMut(String, [usize; 2], Vec<f32>)) -> Result<()> {
    let files = files(folder)?;
    let mut maps = Vec::new();
    for path in &files {
        let file = File::open(path).map_err(|error| bad_input(format!("cannot read {} ({error})", path.display())))?;
        // SAFETY: the map is read-only; a file changed by somebody else while it is read can give wrong
        // values, as with any reader, and the checkpoint's digest is part of every key.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.with_context(|| format!("map {}", path.display()))?;
        maps.push((path, map));
    }
    let mut tensors = HashMap::new();
    for (path, map) in &maps {
        let header = SafeTensors::deserialize(map).map_err(|error| {
            bad_input(format!("not a whole safetensors file ({error}); fetch it again: {}", path.display()))
        })?;
        tensors.extend(header.tensors().into_iter().map(|(name, view)| (name, (view, *path))));
    }
    for (name, shape) in config.shapes() {
        let short = name.strip_prefix("model.").unwrap_or(&name);
        let Some((view, path)) = tensors.get(&name).or_else(|| tensors.get(short)) else {
            return Err(bad_input(format!("the tensor `{name}` is missing from the checkpoint: {}", folder.display())));
        };
        if view.shape() != shape {
            return Err(bad_input(format!(
                "the tensor `{name}` has shape {:?}, but config.json asks for {shape:?}: {}",
                view.shape(),
                path.display()
            )));
        }
        let values =
            to_f32(view).map_err(|what| bad_input(format!("the tensor `{name}` {what}: {}", path.display())))?;
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(bad_input(format!(
                "the tensor `{name}` holds {} at index {index}; the checkpoint is broken: {}",
                values[index],
                path.display()
            )));
        }
        let shape = if let [n] = shape[..] { [1, n] } else { [shape[0], shape[1]] };
        visit(name, shape, values);
    }
    Ok(())
}

/// The safetensors files of a checkpoint: one, or the shards its index names.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = folder.join("model.safetensors.index.json");
    let text = std::fs::read(&index).map_err(|_| {
        bad_input(format!("neither model.safetensors nor model.safetensors.index.json is in {}", folder.display()))
    })?;
    let json: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| bad_input(format!("not JSON ({error}): {}", index.display())))?;
    let names = json["weight_map"].as_object().into_iter().flatten().filter_map(|(_, file)| file.as_str());
    let mut files: Vec<_> = names.map(|name| folder.join(name)).collect();
    files.sort_unstable();
    files.dedup();
    if files.is_empty() {
        return Err(bad_input(format!("the index has no `weight_map`: {}", index.display())));
    }
    Ok(files)
}

fn to_f32(view: &TensorView<'_>) -> Result<Vec<f32>, String> {
    let bytes = view.data();
    match view.dtype() {
        Dtype::F32 => Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
        Dtype::F16 => Ok(bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()),
        Dtype::BF16 => Ok(bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()),
        other => Err(format!("is {other:?}; only F32, F16 and BF16 are read")),
    }
}

/// The parameters as one float32 safetensors file, with the metadata that `transformers` asks for.
pub(crate) fn to_bytes(config: &Config, parameters: &Parameters) -> Result<Vec<u8>> {
    let mut buffers = Vec::new();
    for (name, shape) in config.shapes() {
        let tensor = parameters.get(&name).with_context(|| format!("parameter {name}"))?;
        let values: Vec<f32> = tensor.to_data().try_into_vec().map_err(|error| anyhow::anyhow!("{error:?}"))?;
        buffers.push((name, shape, bytemuck::cast_slice::<f32, u8>(&values).to_vec()));
    }
    let views = buffers
        .iter()
        .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    Ok(safetensors::serialize(views, Some(metadata))?)
}
