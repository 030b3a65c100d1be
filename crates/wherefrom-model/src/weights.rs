//! Parameters by name, in memory or in a checkpoint's files.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result};
use burn::tensor::{DType, Device, FloatDType, Int, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use wherefrom_linalg::kernels::{is_skinny, product, round, skinny_product, widen};

use crate::checkpoint::{AdapterTensors, Checkpoint};
use crate::config::Config;
use crate::device::fits;
use crate::error::bad_input;
use crate::family::{self, Packed};
use crate::keys::Keys;
use crate::naming::{ExpertTensor, head_names, packed_spellings, quantised_spellings, spellings, written};
use crate::outline::{Outline, Shape};
use crate::precision::Precision;
use crate::shard::{self, Place, Shard};
use crate::stored::{self, GROUP, Stored};

/// Which tensor lies in which shard.
pub const INDEX: &str = "model.safetensors.index.json";

/// The key of a `config.json` that says in what type weights are stored.
pub const STORED: &str = "dtype";

/// Parameters by Hugging Face name. Maps are [out, in], vectors (gains, biases) [1, n].
pub type Parameters = BTreeMap<String, Tensor<2>>;

/// A model's weights: in memory in their own format, or read where they are needed.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    /// Gains and biases, and the matrices that are held.
    pub(crate) parameters: &'a Parameters,
    /// The other matrices.
    pub(crate) stored: Option<&'a Stored>,
    pub(crate) precision: Precision,
    /// Whether a product of a few rows reads its matrix once: where text is generated. Elsewhere a batch of few rows rounds as
    /// any other does.
    pub(crate) once: bool,
}

impl Weights<'_> {
    /// A gain or a bias.
    pub(crate) fn vector(self, name: &str) -> Tensor<2> {
        self.parameters[name].clone()
    }

    /// A map's weight or an embedding, whole, in the type that products of the precision take: one that is held in 16 bits is
    /// widened for float32, and dropped with the product.
    ///
    /// # Errors
    /// As [`Stored::read`].
    pub(crate) fn matrix(self, name: &str) -> Result<Tensor<2>> {
        let weight = match (self.parameters.get(name), self.stored) {
            (None, Some(stored)) => stored.read(name)?,
            (weight, _) => weight.cloned().with_context(|| format!("parameter {name}"))?,
        };
        Ok(round(weight, self.precision.matrices()))
    }

    /// Whether [`Weights::product`] reads a matrix once for these rows, in place of packing it.
    pub(crate) fn reads_once(self, x: &Tensor<2>) -> bool {
        self.once && self.precision != Precision::F16 && is_skinny(x)
    }

    /// x W^T. Of a few rows the matrix is read once, in the type in which it is held.
    ///
    /// # Errors
    /// As [`Weights::matrix`].
    pub(crate) fn product(self, x: &Tensor<2>, name: &str) -> Result<Tensor<2>> {
        let few = match (self.precision, self.parameters.get(name).filter(|_| self.once)) {
            (Precision::F32, Some(weight)) => skinny_product(x, weight),
            (Precision::Bf16, Some(weight)) if weight.dtype() == DType::BF16 => {
                skinny_product(&widen(round(x.clone(), FloatDType::BF16)), weight)
            }
            _ => None,
        };
        match few {
            Some(few) => Ok(few),
            None => {
                let weight = self.matrix(name)?;
                let few = (self.once && self.precision == Precision::F32).then(|| skinny_product(x, &weight)).flatten();
                Ok(few.unwrap_or_else(|| product(x.clone(), weight.transpose())))
            }
        }
    }

    /// Rows of an embedding, in the type of activations.
    ///
    /// # Errors
    /// As [`Stored::read`].
    pub(crate) fn rows(self, name: &str, rows: Tensor<1, Int>) -> Result<Tensor<2>> {
        let rows = match (self.parameters.get(name), self.stored) {
            (None, Some(stored)) => stored.rows(name, rows)?,
            (weight, _) => weight.cloned().with_context(|| format!("parameter {name}"))?.select(0, rows),
        };
        Ok(round(round(rows, self.precision.matrices()), self.precision.activations()))
    }
}

/// Finds every parameter of a checkpoint, and reads gains and biases, and the adapters that stand beside their maps.
///
/// # Errors
/// As [`check`], for a parameter larger than the device takes in one piece, and for a gain or bias that is no number.
pub(crate) fn open(checkpoint: &Checkpoint, device: &Device) -> Result<(Config, Outline, Parameters, Stored)> {
    let mut config = Config::of(checkpoint)?;
    let tensors = Tensors::of(&checkpoint.folder, &mut config)?;
    let outline = Outline::new(&config);
    let adapters = AdapterTensors::open(checkpoint, &config, &outline)?;
    let mut places = HashMap::new();
    for shape in outline.tensors() {
        fits(device, &format!("the parameter {}", shape.name), shape.sizes.iter().product())?;
        places.insert(shape.name.clone(), tensors.find(&config, shape)?);
    }
    let mut parameters = Parameters::new();
    let stored = adapters.place(&outline, device, (tensors.shards, places), &mut parameters)?;
    // Rows of an embedding are read one by one, and what an adapter adds to it is there whole.
    let held =
        |shape: &&Shape| shape.sizes.len() == 1 || outline.is_embedding(&shape.name) && stored.is_merged(&shape.name);
    for shape in outline.tensors().iter().filter(held) {
        parameters.insert(shape.name.clone(), stored.read(&shape.name)?);
    }
    Ok((config, outline, parameters, stored))
}

/// Looks at the headers of a checkpoint and at no weight but those of a head that stands beside the embedding which it is
/// said to be: whether every tensor is there, of the right shape and of a type that is read. Returns what the user should
/// know: what of the folder is not made use of.
///
/// # Errors
/// [`crate::BadInput`] for a file that is no safetensors file or not whole, and for a tensor that is missing, there twice,
/// or of another shape or type.
pub fn check(checkpoint: impl Into<Checkpoint>) -> Result<Vec<String>> {
    let checkpoint = &checkpoint.into();
    let folder = &*checkpoint.folder;
    let mut notes: Vec<String> = family::unheeded(&Keys::load(folder)?)?.into_iter().collect();
    let mut config = Config::of(checkpoint)?;
    let tied = config.tie_word_embeddings;
    let tensors = Tensors::of(folder, &mut config)?;
    if tied && !tensors.tied {
        notes.push(format!(
            "config.json says `tie_word_embeddings`, and {}.weight differs from the embedding: it is taken as the head, as in \
             transformers: {}",
            config.layout().head[0],
            folder.display()
        ));
    }
    let mut used = HashSet::new();
    let outline = Outline::new(&config);
    let adapters = AdapterTensors::open(checkpoint, &config, &outline)?;
    notes.extend(adapters.notes(&outline)?);
    for shape in outline.tensors() {
        tensors.find(&config, shape)?;
        used.extend(spellings(&config, &shape.name));
        if let Some(tensor) = ExpertTensor::of(&config, &shape.name) {
            used.extend(packed_spellings(&config, &tensor));
            used.extend(quantised_spellings(&config, &tensor).concat());
        }
    }
    if tensors.tied {
        used.extend(spellings(&config, &head_names(&config)[0]));
    }
    let mut others: Vec<_> =
        tensors.by_name.keys().filter(|name| !used.contains(*name) && !is_buffer(name)).map(String::as_str).collect();
    others.sort_unstable();
    if let Some(first) = others.first() {
        notes.push(format!(
            "{} of the checkpoint's tensors belong to no parameter of this model and are not read, {first} among them: {}",
            others.len(),
            folder.display()
        ));
    }
    Ok(notes)
}

/// In what type the matrices of the checkpoint in a folder are, as [`STORED`] has it: float32 if any is; none where its
/// files cannot be read.
pub fn stored_type(folder: &Path) -> Option<&'static str> {
    let (_, places) = shard::open(folder).ok()?;
    let matrices = places.values().filter(|place| place.shape.len() > 1 && place.is_float());
    matrices.map(|place| place.dtype).reduce(|one, other| if one == other { one } else { Dtype::F32 }).map(|dtype| {
        match dtype {
            Dtype::BF16 => "bfloat16",
            Dtype::F16 => "float16",
            _ => "float32",
        }
    })
}

/// What old checkpoints hold beside their parameters: masks and frequencies.
fn is_buffer(name: &str) -> bool {
    [".inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

/// The tensors of a checkpoint, none of which is read before it is asked for. Those that the model has no use for are
/// passed over.
struct Tensors<'a> {
    folder: &'a Path,
    shards: Vec<Shard>,
    by_name: HashMap<String, Place>,
    /// Whether the base's head is its embedding.
    tied: bool,
}

impl<'a> Tensors<'a> {
    /// Reads the headers, and unties `config` where the checkpoint has a head that is not the embedding, or an adapter changes
    /// one of the two.
    fn of(folder: &'a Path, config: &mut Config) -> Result<Self> {
        let (shards, by_name) = shard::open(folder)?;
        let mut tensors = Self { folder, shards, by_name, tied: config.tie_word_embeddings };
        if config.tie_word_embeddings {
            let embedding = tensors.only(&spellings(config, &format!("{}.weight", config.layout().embedding)))?;
            let head = tensors.only(&spellings(config, &head_names(config)[0]))?;
            if let (Some(embedding), Some(head)) = (embedding, head) {
                tensors.tied = stored::same(&tensors.shards, embedding, head)?;
            }
            config.tie_word_embeddings = tensors.tied && !config.is_untied_by_adapters()?;
        }
        Ok(tensors)
    }

    /// The one of these names that is there.
    fn only(&self, names: &[String]) -> Result<Option<&Place>> {
        let mut found = names.iter().filter_map(|name| Some((name, self.by_name.get(name)?)));
        match (found.next(), found.next()) {
            (Some((name, _)), Some((other, _))) => Err(bad_input(format!(
                "the checkpoint has both `{name}` and `{other}`, which are one parameter; remove one: {}",
                self.folder.display()
            ))),
            (found, _) => Ok(found.map(|(_, found)| found)),
        }
    }

    /// Where the tensor of that shape lies, and whether as [in, out].
    fn find(&self, config: &Config, shape: &Shape) -> Result<(Place, bool)> {
        let name = &shape.name;
        let mut found = self.only(&spellings(config, name))?;
        // A tied checkpoint holds the one tensor under one of its names.
        if found.is_none() && self.tied {
            let (module, layout) = (name.strip_suffix(".weight"), config.layout());
            if module == Some(layout.embedding) {
                found = self.only(&spellings(config, &head_names(config)[0]))?;
            } else if module == Some(layout.head[0]) {
                found = self.only(&spellings(config, &format!("{}.weight", layout.embedding)))?;
            }
        }
        let (mut sizes, mut transposed, mut part) = (shape.sizes.clone(), shape.transposed, None);
        if shape.transposed {
            sizes.reverse();
        }
        if let (Some(tensor), Some(experts)) = (ExpertTensor::of(config, name), &config.experts)
            && let Some(packed) = self.only(&packed_spellings(config, &tensor))?
        {
            if found.is_some() {
                let packed = tensor.packed(config);
                return Err(bad_input(format!(
                    "the checkpoint has both `{name}` and `{packed}`, which has it, too; remove one: {}",
                    self.folder.display()
                )));
            }
            let place = tensor.place(experts.count, &shape.sizes);
            (sizes, transposed) = (place.shape.clone(), place.transposed);
            (found, part) = (Some(packed), Some(place));
        }
        if let (None, Some(tensor), Some(experts)) = (found, ExpertTensor::of(config, name), &config.experts)
            && let Some(place) = self.quantised(config, &tensor, experts.count, &shape.sizes)?
        {
            return Ok((place, false));
        }
        let Some(place) = found else {
            let folder = self.folder.display();
            return Err(bad_input(format!("the tensor `{name}` is missing from the checkpoint: {folder}")));
        };
        let file = self.shards[place.shard].path().display();
        if place.shape != sizes {
            return Err(bad_input(format!(
                "the tensor `{name}` has shape {:?}, but config.json asks for {sizes:?}: {file}",
                place.shape
            )));
        }
        if !place.is_float() {
            return Err(bad_input(format!(
                "the tensor `{name}` is {:?}; only F32, F16 and BF16 are read: {file}",
                place.dtype
            )));
        }
        let place = part.map_or_else(|| place.clone(), |part| place.part(part.first, part.own, part.lane));
        Ok((place, transposed))
    }
}

impl Tensors<'_> {
    /// Where an expert's map lies as numbers of 4 bits (MXFP4), of all experts: blocks [experts, rows, groups, 16], each byte two
    /// numbers, and a scale for each group [experts, rows, groups]. Rows of gate and up take turns.
    fn quantised(
        &self,
        config: &Config,
        tensor: &ExpertTensor,
        count: usize,
        sizes: &[usize],
    ) -> Result<Option<Place>> {
        let [blocks, scales] = quantised_spellings(config, tensor);
        let (&[out, inside], Some(blocks), Some(scales)) = (sizes, self.only(&blocks)?, self.only(&scales)?) else {
            return Ok(None);
        };
        let beside = if tensor.map == 2 { 1 } else { 2 };
        let (rows, groups) = (beside * out, inside / GROUP);
        let right = blocks.shape == [count, rows, groups, GROUP / 2] && scales.shape == [count, rows, groups];
        if !right || !inside.is_multiple_of(GROUP) || blocks.dtype != Dtype::U8 || scales.dtype != Dtype::U8 {
            return Err(bad_input(format!(
                "the tensors `{0}_blocks` and `{0}_scales` are {1:?} and {2:?}; config.json asks for {3:?} and {4:?}, of bytes: {5}",
                tensor.packed(config),
                blocks.shape,
                scales.shape,
                [count, rows, groups, GROUP / 2],
                [count, rows, groups],
                self.folder.display()
            )));
        }
        let expert = (tensor.expert * rows * groups) as u64;
        Ok(Some(Place {
            shape: vec![rows, inside],
            at: blocks.at + expert * GROUP as u64 / 2,
            lane: (beside == 2).then_some([tensor.map, 2]),
            scales: Some((scales.shard, scales.at + expert)),
            ..blocks.clone()
        }))
    }
}

/// The safetensors files of a checkpoint: model.safetensors, or the shards that its index names; in name order.
///
/// # Errors
/// [`crate::BadInput`] where there is neither, and for an index that is malformed or names a file outside the folder.
pub fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = folder.join(INDEX);
    if !index.exists() {
        return Err(no_index(folder));
    }
    let keys = Keys::read(index)?;
    let Some(map) = keys.value("weight_map").as_object().filter(|map| !map.is_empty()) else {
        return Err(keys.refuse("the index has no `weight_map`"));
    };
    let mut files = BTreeSet::new();
    for (tensor, file) in map {
        let named = file.as_str().map(Path::new).filter(|name| {
            name.file_name().is_some() && name.components().all(|part| matches!(part, Component::Normal(_)))
        });
        let named = named.ok_or_else(|| {
            keys.refuse(&format!("`weight_map` gives `{tensor}` the file {file}, which is none in the model's folder"))
        })?;
        files.insert(folder.join(named));
    }
    let absent: Vec<_> = files.iter().filter(|file| !file.exists()).collect();
    if let Some(first) = absent.first() {
        return Err(keys.refuse(&format!(
            "{} of the {} files that the index names {} not there, the first {}; fetch what is missing (`hf download`) into the \
             folder",
            absent.len(),
            files.len(),
            if absent.len() == 1 { "is" } else { "are" },
            first.display()
        )));
    }
    Ok(files.into_iter().collect())
}

/// The refusal of a folder with neither the whole model nor an index.
fn no_index(folder: &Path) -> anyhow::Error {
    let mut entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    if entries.any(|entry| entry.path().extension().is_some_and(|ending| ending == "safetensors")) {
        return bad_input(format!(
            "{} has weights and neither a model.safetensors nor the {INDEX} that says which file has which tensor; fetch what \
             is missing of the checkpoint (`hf download`) into the folder",
            folder.display()
        ));
    }
    no_safetensors(folder)
}

/// The first file of the folder that PyTorch has pickled.
fn pickled(folder: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let pickled = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        [".bin", ".pt", ".pth", ".ckpt", ".bin.index.json"].iter().any(|ending| name.ends_with(ending))
    };
    files.filter(pickled).min()
}

/// The line that makes safetensors of what PyTorch has pickled: of a checkpoint of `transformers` by that, of a file of tensors
/// by name by itself.
pub fn unpickle(file: &Path) -> String {
    unpickle_to(file, "model.safetensors")
}

/// The same, into a file of that name beside it.
pub(crate) fn unpickle_to(file: &Path, name: &str) -> String {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    if file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pytorch_model")) {
        return format!(
            "python3 -c \"import sys; from transformers import AutoModelForCausalLM as M; \
             M.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])\" {}",
            quoted(folder)
        );
    }
    format!(
        "python3 -c \"import sys, torch; from safetensors.torch import save_file; w = torch.load(sys.argv[1], \
         map_location='cpu'); w = w.get('state_dict', w); save_file({{k: v.clone().contiguous() for k, v in w.items() if \
         torch.is_tensor(v)}}, sys.argv[2])\" {} {}",
        quoted(file),
        quoted(&folder.join(name))
    )
}

/// The refusal of a folder without safetensors, with the remedy where the weights are pickled.
fn no_safetensors(folder: &Path) -> anyhow::Error {
    let shown = folder.display();
    bad_input(if let Some(file) = pickled(folder) {
        format!(
            "the model folder {shown} has its weights in {}, which PyTorch has pickled and is not read; convert them to \
             safetensors: {}",
            file.file_name().unwrap_or_default().to_string_lossy(),
            unpickle(&file)
        )
    } else {
        let mut files = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let gguf = files.any(|file| file.path().extension().is_some_and(|ending| ending == "gguf"));
        let gguf = if gguf { " but one of llama.cpp (.gguf), which is not read" } else { "" };
        format!("the model folder {shown} has no *.safetensors file{gguf}; give a Hugging Face checkpoint")
    })
}

/// The parameters as one float32 safetensors file, with the metadata that `transformers` asks for.
pub(crate) fn to_bytes(config: &Config, parameters: &Parameters) -> Result<Vec<u8>> {
    let (mut buffers, mut packed) = (Vec::new(), BTreeMap::<String, (Vec<usize>, Vec<f32>)>::new());
    for shape in Outline::new(config).tensors() {
        let tensor = parameters.get(&shape.name).with_context(|| format!("parameter {}", shape.name))?.clone();
        let (tensor, mut sizes) = (if shape.transposed { tensor.transpose() } else { tensor }, shape.sizes.clone());
        if shape.transposed {
            sizes.reverse();
        }
        let values: Vec<f32> = tensor.to_data().try_into_vec().map_err(|error| anyhow::anyhow!("{error:?}"))?;
        match (ExpertTensor::of(config, &shape.name), &config.experts) {
            (Some(expert), Some(experts)) if expert.packing == Packed::Columns => {
                let part = expert.place(experts.count, &shape.sizes);
                let name = expert.packed(config);
                let (_, numbers) = packed.entry(name).or_insert_with(|| {
                    let count = part.shape.iter().product();
                    (part.shape.clone(), vec![0.0_f32; count])
                });
                let values = if part.transposed { transpose(&values, &shape.sizes) } else { values };
                let [lane, of] = part.lane.unwrap_or([0, 1]);
                let own = numbers[part.first..].iter_mut().skip(lane).step_by(of);
                own.zip(values).for_each(|(number, value)| *number = value);
            }
            _ => buffers.push((written(config, &shape.name), sizes, bytemuck::cast_slice::<f32, u8>(&values).to_vec())),
        }
    }
    buffers.extend(
        packed
            .into_iter()
            .map(|(name, (sizes, values))| (name, sizes, bytemuck::cast_slice::<f32, u8>(&values).to_vec())),
    );
    float32_file(&buffers)
}

/// A safetensors file of float32 tensors by name, with the metadata that `transformers` asks for.
pub(crate) fn float32_file(buffers: &[(String, Vec<usize>, Vec<u8>)]) -> Result<Vec<u8>> {
    let views = buffers
        .iter()
        .map(|(name, sizes, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, sizes.clone(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    Ok(safetensors::serialize(views, Some(metadata))?)
}

/// [rows, columns] as [columns, rows].
fn transpose(values: &[f32], sizes: &[usize]) -> Vec<f32> {
    let [rows, columns] = [sizes[0], sizes[1]];
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}
