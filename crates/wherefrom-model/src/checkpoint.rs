//! A checkpoint: the folder of a base, and those of the adapters on it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use burn::tensor::Device;

use crate::adapter::{ADAPTER_WEIGHTS, Adapters, Attribute, Lora};
use crate::config::Config;
use crate::device::{fits, open_device};
use crate::error::bad_input;
use crate::outline::{Adapted, Outline, Shape};
use crate::shard::{self, Place, Shard};
use crate::stored::{Merge, Stored};
use crate::weights::{Parameters, float32_file};

/// What a model is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The Hugging Face folder of the base.
    pub folder: PathBuf,
    /// The folders of PEFT on it, in order.
    pub adapters: Vec<PathBuf>,
    /// What is attributed where there are any.
    pub attribute: Attribute,
}

impl<P: AsRef<Path> + ?Sized> From<&P> for Checkpoint {
    fn from(folder: &P) -> Self {
        Self { folder: folder.as_ref().into(), adapters: Vec::new(), attribute: Attribute::default() }
    }
}

impl Checkpoint {
    /// A base with adapters; `attribute` is a word of [`Attribute::ALL`].
    ///
    /// # Errors
    /// As [`Attribute::named`].
    pub fn new(folder: &Path, adapters: &[PathBuf], attribute: &str) -> Result<Self> {
        Ok(Self { folder: folder.into(), adapters: adapters.into(), attribute: Attribute::named(attribute)? })
    }

    /// Reads what describes its adapters.
    ///
    /// # Errors
    /// As [`Lora::load`].
    pub fn adapters(&self) -> Result<Adapters> {
        let list = self.adapters.iter().map(|folder| Lora::load(folder)).collect::<Result<_>>()?;
        Ok(Adapters { list, attribute: self.attribute })
    }
}

/// The tensors of a model's adapters, of which none is read before it is asked for.
pub(crate) struct AdapterTensors {
    shards: Vec<Shard>,
    /// A and B by the model's names, as [rows, columns] of the map; whether the file has them the other way round.
    halves: HashMap<String, (Place, bool)>,
    /// What replaces the base's.
    saved: HashMap<String, Place>,
}

impl AdapterTensors {
    /// Reads the headers of the adapters' files.
    ///
    /// # Errors
    /// [`crate::BadInput`] for a file that is missing or not whole, a tensor that nothing in `adapter_config.json` asks for, one
    /// that is asked for and missing, and one of another shape or type.
    pub(crate) fn open(checkpoint: &Checkpoint, config: &Config, outline: &Outline) -> Result<Self> {
        let mut all = Self { shards: Vec::new(), halves: HashMap::new(), saved: HashMap::new() };
        for (adapter, folder) in checkpoint.adapters.iter().enumerate() {
            let (shard, mut places) = open(folder, all.shards.len())?;
            let file = shard.path().to_path_buf();
            all.shards.push(shard);
            let taken = outline.adapted.iter().filter(|adapted| adapted.adapter == adapter);
            for (adapted, side) in taken.flat_map(|adapted| [(adapted, 0), (adapted, 1)]) {
                let (key, half) = (key(adapted, side), &adapted.halves[side]);
                let place = places.remove(&key).ok_or_else(|| {
                    bad_input(format!(
                        "the adapter has no tensor `{key}`, and its adapter_config.json adapts {}; give the whole adapter: {}",
                        adapted.path,
                        file.display()
                    ))
                })?;
                let mut sizes = half.sizes.clone();
                if adapted.embedding {
                    sizes.reverse();
                }
                fitting(&place, &key, &sizes, &file)?;
                all.halves.insert(half.name.clone(), (place, adapted.embedding));
            }
            let of = &config.adapters.list[adapter];
            for shape in outline.tensors() {
                let path = shape.name.rsplit_once('.').map_or(&shape.name[..], |(path, _)| path);
                // PEFT saves an adapted embedding or head itself as well.
                let whole =
                    |adapted: &&Adapted| adapted.adapter == adapter && !adapted.in_blocks && adapted.path == path;
                let beside = outline.adapted.iter().find(whole).map(|_| format!("{PREFIX}{path}.base_layer.weight"));
                let (key, asked) = match beside.filter(|key| places.contains_key(key)) {
                    Some(key) => (key, true),
                    None => (format!("{PREFIX}{}", shape.name), of.saves(path)),
                };
                match (places.remove(&key), asked) {
                    (Some(place), true) => {
                        let mut sizes = shape.sizes.clone();
                        if shape.transposed {
                            sizes.reverse();
                        }
                        fitting(&place, &key, &sizes, &file)?;
                        all.saved.insert(shape.name.clone(), place);
                    }
                    (None, true) => {
                        return Err(bad_input(format!(
                            "the adapter has no tensor `{key}`, and `modules_to_save` names it; give the whole adapter: {}",
                            file.display()
                        )));
                    }
                    (Some(_), false) => return Err(unasked(&key, &file)),
                    (None, false) => {}
                }
            }
            if let Some(key) = places.keys().min() {
                return Err(unasked(key, &file));
            }
        }
        Ok(all)
    }

    /// What the user should know: adapters whose B is still zero, as before the first step of training.
    pub(crate) fn notes(self, outline: &Outline) -> Result<Vec<String>> {
        let (halves, _) = Self::read(self.shards, self.halves, &open_device(None)?)?;
        let untrained = outline.adapted.iter().filter(|adapted| {
            // Of an embedding A begins with zeros: it stands in the place of B here.
            let b = halves.get(&adapted.halves[1].name);
            b.is_some_and(|b| b.clone().abs().max().into_scalar::<f32>() == 0.0)
        });
        let paths: Vec<_> = untrained.map(|adapted| adapted.path.as_str()).collect();
        let note = paths.first().map(|first| {
            format!(
                "B is zero in {} of {} adapted maps ({first} among them), as before training: the adapter changes nothing there, \
                 and the gradient of its A is zero",
                paths.len(),
                outline.adapted.len()
            )
        });
        Ok(note.into_iter().collect())
    }

    /// A and B of every adapter, in float32.
    fn read(
        shards: Vec<Shard>,
        halves: HashMap<String, (Place, bool)>,
        device: &Device,
    ) -> Result<(Parameters, Vec<Shard>)> {
        let names: Vec<_> = halves.keys().cloned().collect();
        let stored = Stored::new(shards, halves, device);
        let read = |name: String| Ok((name.clone(), stored.read(&name)?));
        let read = names.into_iter().map(read).collect::<Result<_>>()?;
        Ok((read, stored.into_shards()))
    }

    /// Puts the adapters' tensors where a model looks for them: A and B into `parameters` where they stand beside their maps,
    /// else to what is added as a matrix is read; and what replaces the base's among the places, with its files.
    pub(crate) fn place(
        self,
        outline: &Outline,
        device: &Device,
        base: (Vec<Shard>, HashMap<String, (Place, bool)>),
        parameters: &mut Parameters,
    ) -> Result<Stored> {
        let (mut shards, mut places) = base;
        for half in outline.halves() {
            fits(device, &format!("the parameter {}", half.name), half.sizes.iter().product())?;
        }
        let (mut halves, own) = Self::read(self.shards, self.halves, device)?;
        for (name, mut place) in self.saved {
            place.shard += shards.len();
            if let Some((found, _)) = places.get_mut(&name) {
                *found = place;
            }
        }
        shards.extend(own);
        let mut merges: HashMap<String, Vec<Merge>> = HashMap::new();
        for Adapted { path, halves: [a, b], scale, in_effect, .. } in &outline.adapted {
            let mut take = |half: &Shape| halves.remove(&half.name).expect("every half is read");
            let (a_values, b_values) = (take(a), take(b));
            if *in_effect {
                parameters.insert(a.name.clone(), a_values);
                parameters.insert(b.name.clone(), b_values);
            } else {
                let merge = Merge { a: a_values, b: b_values * *scale };
                merges.entry(format!("{path}.weight")).or_default().push(merge);
            }
        }
        Ok(Stored::new(shards, places, device).merging(merges))
    }
}

/// A and B of every adapter as one float32 safetensors file, by PEFT's names.
pub(crate) fn to_bytes(outline: &Outline, parameters: &Parameters) -> Result<Vec<u8>> {
    let mut buffers = Vec::new();
    for adapted in &outline.adapted {
        for (side, half) in adapted.halves.iter().enumerate() {
            let tensor = parameters.get(&half.name).with_context(|| format!("parameter {}", half.name))?;
            let values: Vec<f32> = tensor.to_data().try_into_vec().map_err(|error| anyhow::anyhow!("{error:?}"))?;
            buffers.push((key(adapted, side), half.sizes.clone(), bytemuck::cast_slice::<f32, u8>(&values).to_vec()));
        }
    }
    float32_file(&buffers)
}

/// Begins the name of every tensor in an adapter's file.
const PREFIX: &str = "base_model.model.";

/// How PEFT calls A (0) or B (1).
fn key(Adapted { path, embedding, .. }: &Adapted, side: usize) -> String {
    match embedding {
        // There B is [width, r] and A [r, rows]: each stands in the place of the other.
        true => format!("{PREFIX}{path}.lora_embedding_{}", ["B", "A"][side]),
        false => format!("{PREFIX}{path}.lora_{}.weight", ["A", "B"][side]),
    }
}

/// The file of an adapter's tensors.
///
/// # Errors
/// [`crate::BadInput`] where it is not there, with what there is instead.
pub fn adapter_weights(folder: &Path) -> Result<PathBuf> {
    let path = folder.join(ADAPTER_WEIGHTS);
    if path.exists() {
        return Ok(path);
    }
    let (shown, pickled) = (folder.display(), folder.join("adapter_model.bin"));
    Err(bad_input(if pickled.exists() {
        format!(
            "the adapter {shown} has its weights in adapter_model.bin, which PyTorch has pickled and is not read; convert them to \
             safetensors: {}",
            crate::weights::unpickle_to(&pickled, ADAPTER_WEIGHTS)
        )
    } else {
        format!("the adapter {shown} has no {ADAPTER_WEIGHTS}; give a folder that PEFT has written")
    }))
}

fn open(folder: &Path, number: usize) -> Result<(Shard, HashMap<String, Place>)> {
    let mut shards = Vec::new();
    let mut places = HashMap::new();
    shard::open_into(adapter_weights(folder)?, &mut shards, &mut places)?;
    places.values_mut().for_each(|place| place.shard = number);
    Ok((shards.remove(0), places))
}

fn fitting(place: &Place, key: &str, sizes: &[usize], file: &Path) -> Result<()> {
    if place.shape != sizes {
        return Err(bad_input(format!(
            "the tensor `{key}` has shape {:?}, but adapter_config.json and the base ask for {sizes:?}; give the base that it was \
             trained on and the config that was saved with it: {}",
            place.shape,
            file.display()
        )));
    }
    match place.is_float() {
        true => Ok(()),
        false => Err(bad_input(format!(
            "the tensor `{key}` is {:?}; only F32, F16 and BF16 are read: {}",
            place.dtype,
            file.display()
        ))),
    }
}

fn unasked(key: &str, file: &Path) -> anyhow::Error {
    bad_input(format!(
        "the adapter has the tensor `{key}`, which nothing in its adapter_config.json asks for, or which the base does not have; \
         give the base that it was trained on, add its module to `modules_to_save` if it replaces the base's, or merge it into its \
         base: {}",
        file.display()
    ))
}
