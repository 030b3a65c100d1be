//! Parameters from safetensors, memory-mapped, checked, and as float32.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use burn::tensor::{Device, Tensor, TensorData};
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::config::Config;
use crate::error::bad_input;
use crate::outline::{Outline, Shape};

/// Parameters by Hugging Face name. Maps are [out, in], vectors (gains, biases) [1, n].
pub type Parameters = BTreeMap<String, Tensor<2>>;

/// Reads every parameter of `config` from the folder.
///
/// # Errors
/// As [`check`], and for a value that is no number.
pub(crate) fn load(folder: &Path, config: &Config, device: &Device) -> Result<Parameters> {
    let mut parameters = Parameters::new();
    each(folder, config, &mut |shape, view, path| {
        let values = to_f32(view);
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(bad_input(format!(
                "the tensor `{}` holds {} at index {index}; the checkpoint is broken: {}",
                shape.name,
                values[index],
                path.display()
            )));
        }
        let sizes = if let [n] = view.shape()[..] { [1, n] } else { [view.shape()[0], view.shape()[1]] };
        let tensor = Tensor::<2>::from_data(TensorData::new(values, sizes), device);
        parameters.insert(shape.name.clone(), if shape.transposed { tensor.transpose() } else { tensor });
        Ok(())
    })?;
    Ok(parameters)
}

/// Looks at the headers of a checkpoint and at no weight: whether every tensor is there, of the right shape and of a
/// type that is read.
///
/// # Errors
/// [`crate::BadInput`] for a file that is no safetensors file or not whole, and for a tensor that is missing or has
/// another shape or type.
pub fn check(folder: &Path) -> Result<()> {
    each(folder, &Config::load(folder)?, &mut |_, _, _| Ok(()))
}

/// What is done with one tensor: how it is to be, what the file has, and the file.
type Visit<'a> = dyn FnMut(&Shape, &TensorView<'_>, &Path) -> Result<()> + 'a;

/// Calls `visit` with every tensor of `config`, none of which is read before. Tensors that the model has no use for,
/// such as the masks of old checkpoints, are passed over.
fn each(folder: &Path, config: &Config, visit: &mut Visit<'_>) -> Result<()> {
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
    for shape in Outline::new(config).tensors() {
        let name = &shape.name;
        let Some((view, path)) = spellings(config, name).iter().find_map(|name| tensors.get(name)) else {
            return Err(bad_input(format!("the tensor `{name}` is missing from the checkpoint: {}", folder.display())));
        };
        let mut sizes = shape.sizes.clone();
        if shape.transposed {
            sizes.reverse();
        }
        if view.shape() != sizes {
            return Err(bad_input(format!(
                "the tensor `{name}` has shape {:?}, but config.json asks for {sizes:?}: {}",
                view.shape(),
                path.display()
            )));
        }
        if !matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(bad_input(format!(
                "the tensor `{name}` is {:?}; only F32, F16 and BF16 are read: {}",
                view.dtype(),
                path.display()
            )));
        }
        visit(shape, view, path)?;
    }
    Ok(())
}

/// Names under which a tensor may lie: its own, without the base of the bare model, and other names of the head.
fn spellings(config: &Config, name: &str) -> Vec<String> {
    let layout = config.layout();
    let mut names = vec![name.to_string()];
    if let Some(short) = name.strip_prefix(layout.base).and_then(|name| name.strip_prefix('.')) {
        names.push(short.to_string());
    }
    if name.strip_suffix(".weight") == Some(layout.head[0]) {
        names.extend(layout.head[1..].iter().map(|head| format!("{head}.weight")));
    }
    names
}

/// The safetensors files of a checkpoint: one, or the shards its index names.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = folder.join("model.safetensors.index.json");
    let text = std::fs::read(&index).map_err(|_| {
        if pickled(folder) {
            return no_safetensors(folder);
        }
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

fn pickled(folder: &Path) -> bool {
    ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|name| folder.join(name).exists())
}

/// The refusal of a folder without safetensors, with the remedy where the weights are pickled.
pub fn no_safetensors(folder: &Path) -> anyhow::Error {
    let shown = folder.display();
    bad_input(if pickled(folder) {
        format!(
            "the model folder {shown} has its weights in pytorch_model.bin, which is not read; convert them to safetensors, \
             as AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER) of transformers does"
        )
    } else {
        format!("the model folder {shown} has no *.safetensors file; give a Hugging Face checkpoint")
    })
}

/// Values of a tensor whose type was checked.
fn to_f32(view: &TensorView<'_>) -> Vec<f32> {
    let bytes = view.data();
    match view.dtype() {
        Dtype::F16 => bytes.par_chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::BF16 => bytes.par_chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        _ => bytes.par_chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

/// The parameters as one float32 safetensors file, with the metadata that `transformers` asks for.
pub(crate) fn to_bytes(config: &Config, parameters: &Parameters) -> Result<Vec<u8>> {
    let mut buffers = Vec::new();
    for shape in Outline::new(config).tensors() {
        let tensor = parameters.get(&shape.name).with_context(|| format!("parameter {}", shape.name))?.clone();
        let (tensor, mut sizes) = (if shape.transposed { tensor.transpose() } else { tensor }, shape.sizes.clone());
        if shape.transposed {
            sizes.reverse();
        }
        let values: Vec<f32> = tensor.to_data().try_into_vec().map_err(|error| anyhow::anyhow!("{error:?}"))?;
        buffers.push((shape.name.clone(), sizes, bytemuck::cast_slice::<f32, u8>(&values).to_vec()));
    }
    let views = buffers
        .iter()
        .map(|(name, sizes, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, sizes.clone(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    Ok(safetensors::serialize(views, Some(metadata))?)
}
