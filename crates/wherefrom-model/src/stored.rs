//! Weights in their files, in their own format: read at their places, and brought into the format that they are held in.

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use burn::tensor::{Device, Element, FloatDType, Int, Tensor, TensorData};
use half::slice::{HalfBitsSliceExt as _, HalfFloatSliceExt as _};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use wherefrom_linalg::kernels::{add_product, round};

use crate::error::bad_input;
use crate::shard::{Place, Shard};

/// Values of a row that have one scale, where they are of 4 bits.
pub(crate) const GROUP: usize = 32;
/// The values of 4 bits: a sign, two bits of exponent, one of significand.
const FP4: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
/// Numbers that a thread reads at once.
const CHUNK: usize = 1 << 16;

/// The parameters of a checkpoint whose files are open.
#[derive(Debug)]
pub(crate) struct Stored {
    shards: Vec<Shard>,
    /// By the model's own names; whether the file has the tensor as `[in, out]`.
    places: HashMap<String, (Place, bool)>,
    /// What adapters add to a matrix.
    merges: HashMap<String, Vec<Merge>>,
    device: Device,
}

/// An adapter that is added to its matrix as that is read, in float32: W + (s B) A.
#[derive(Debug)]
pub(crate) struct Merge {
    /// A [r, in]
    pub(crate) a: Tensor<2>,
    /// s B [out, r]
    pub(crate) b: Tensor<2>,
}

impl Stored {
    pub(crate) fn new(shards: Vec<Shard>, places: HashMap<String, (Place, bool)>, device: &Device) -> Self {
        Self { shards, places, merges: HashMap::new(), device: device.clone() }
    }

    /// The same with adapters that are merged into these matrices.
    pub(crate) fn merging(self, merges: HashMap<String, Vec<Merge>>) -> Self {
        Self { merges, ..self }
    }

    /// Whether a tensor is more than what its file holds.
    pub(crate) fn is_merged(&self, name: &str) -> bool {
        self.merges.contains_key(name)
    }

    pub(crate) fn into_shards(self) -> Vec<Shard> {
        self.shards
    }

    /// A tensor in float32: a map [out, in], an embedding [rows, width], a vector [1, n].
    ///
    /// # Errors
    /// [`crate::BadInput`] for a file that was written since it was opened, and for a value that is no number.
    pub(crate) fn read(&self, name: &str) -> Result<Tensor<2>> {
        self.read_as(name, FloatDType::F32)
    }

    /// The same in another type, rounded where it has fewer bits.
    ///
    /// # Errors
    /// As [`Stored::read`].
    pub(crate) fn read_as(&self, name: &str, dtype: FloatDType) -> Result<Tensor<2>> {
        if let Some(merges) = self.merges.get(name) {
            let merge = |sum, merge: &Merge| add_product(sum, merge.b.clone(), merge.a.clone());
            return Ok(round(merges.iter().fold(self.read_own(name, FloatDType::F32)?, merge), dtype));
        }
        self.read_own(name, dtype)
    }

    /// The same without what adapters add.
    fn read_own(&self, name: &str, dtype: FloatDType) -> Result<Tensor<2>> {
        let (place, transposed) = self.place(name)?;
        if let Some(scales) = place.scales {
            return Ok(round(self.quantised(name, place, scales)?, dtype));
        }
        let sizes = if let [n] = place.shape[..] { [1, n] } else { [place.shape[0], place.shape[1]] };
        let first = |chunk| chunk * CHUNK;
        let mut tensor = match dtype {
            FloatDType::F16 => self.tensor::<f16>(name, place, sizes, (CHUNK, &first)),
            FloatDType::BF16 => self.tensor::<bf16>(name, place, sizes, (CHUNK, &first)),
            _ => self.tensor::<f32>(name, place, sizes, (CHUNK, &first)),
        }?;
        if let Some([lane, of]) = place.lane {
            let [rows, width] = [sizes[0], sizes[1] / of];
            tensor = tensor.reshape([rows, width, of]).narrow(2, lane, 1).reshape([rows, width]);
        }
        Ok(if *transposed { tensor.transpose() } else { tensor })
    }

    /// The type that a tensor has in its file; of numbers of 4 bits one that holds them exactly, and of what adapters are merged
    /// into float32.
    pub(crate) fn dtype(&self, name: &str) -> FloatDType {
        if self.is_merged(name) {
            return FloatDType::F32;
        }
        match self.places.get(name).map(|(place, _)| (place.dtype, place.scales)) {
            Some((Dtype::F16, None)) => FloatDType::F16,
            Some((Dtype::BF16, _) | (_, Some(_))) => FloatDType::BF16,
            _ => FloatDType::F32,
        }
    }

    /// An expert's map of numbers of 4 bits (MXFP4): value = fp4 * 2^(scale - 127), with one scale for 32 values of a row, and
    /// of a byte's halves the low one first.
    fn quantised(&self, name: &str, place: &Place, (shard, at): (usize, u64)) -> Result<Tensor<2>> {
        let ([lane, of], width) = (place.lane.unwrap_or([0, 1]), place.shape[1]);
        let (rows, groups) = (place.shape[0], width / GROUP);
        let (mut blocks, mut scales) = (vec![0_u8; rows * width / 2], vec![0_u8; rows * groups]);
        self.shards[place.shard].read(&mut blocks, place.at)?;
        self.shards[shard].read(&mut scales, at)?;
        let own = (rows - lane).div_ceil(of);
        let mut values = vec![0.0_f32; own * width];
        values.par_chunks_mut(width).enumerate().for_each(|(row, values)| {
            let row = row * of + lane;
            let (blocks, scales) = (&blocks[row * width / 2..], &scales[row * groups..]);
            let groups = values.chunks_exact_mut(GROUP).zip(blocks.chunks_exact(GROUP / 2)).zip(scales);
            for ((values, bytes), &scale) in groups {
                let scale = 2.0_f32.powi(i32::from(scale) - 127);
                for (pair, byte) in values.chunks_exact_mut(2).zip(bytes) {
                    pair[0] = scale * FP4[usize::from(byte & 15)];
                    pair[1] = scale * FP4[usize::from(byte >> 4)];
                }
            }
        });
        self.shards[place.shard].unchanged()?;
        self.shards[shard].unchanged()?;
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(Tensor::from_data(TensorData::new(values, [own, width]), &self.device)),
            false => Err(broken(name, &self.shards[place.shard], 0, &values)),
        }
    }

    /// Rows of an embedding, in float32.
    ///
    /// # Errors
    /// As [`Stored::read`].
    pub(crate) fn rows(&self, name: &str, rows: Tensor<1, Int>) -> Result<Tensor<2>> {
        let (place, _) = self.place(name)?;
        let [count, width] = [place.shape[0], place.shape[1]];
        let rows: Vec<usize> = rows.into_data().iter::<i64>().map(|row| row as usize).collect();
        if let Some(row) = rows.iter().find(|&&row| row >= count) {
            ensure!(*row < count, "row {row} of {name}, which has {count}");
        }
        self.tensor::<f32>(name, place, [rows.len(), width], (width, &|index| rows[index] * width))
    }

    fn place(&self, name: &str) -> Result<&(Place, bool)> {
        self.places.get(name).with_context(|| format!("parameter {name}"))
    }

    /// A tensor of pieces of `step` numbers; each begins in the file at the number that `first` gives.
    fn tensor<T: Held>(
        &self,
        name: &str,
        place: &Place,
        sizes: [usize; 2],
        (step, first): (usize, &(dyn Fn(usize) -> usize + Sync)),
    ) -> Result<Tensor<2>> {
        let shard = &self.shards[place.shard];
        let mut values = vec![T::default(); sizes[0] * sizes[1]];
        type Room = (Vec<u16>, Vec<f32>);
        let piece = |(words, wide): &mut Room, (index, piece): (usize, &mut [T])| -> Result<()> {
            let first = first(index);
            wide.resize(piece.len(), 0.0);
            widen(shard, place, first, words, wide)?;
            match wide.iter().fold(true, |all, value| all & value.is_finite()) {
                true => T::round(wide, piece),
                false => return Err(broken(name, shard, first, wide)),
            }
            Ok(())
        };
        let pieces = values.par_chunks_mut(step.max(1)).enumerate();
        let failed = pieces.map_init(Room::default, piece).find_map_first(Result::err);
        // What was written since is the cause of what was found.
        shard.unchanged()?;
        match failed {
            Some(error) => Err(error),
            None => Ok(Tensor::from_data(TensorData::new(values, sizes), (&self.device, T::dtype()))),
        }
    }
}

/// A type that weights are held in.
trait Held: Element + Default {
    /// Each number rounded to the nearest.
    fn round(from: &[f32], to: &mut [Self]);
}

impl Held for f32 {
    fn round(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }
}

impl Held for f16 {
    fn round(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
}

impl Held for bf16 {
    fn round(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
}

/// Numbers of a tensor from `first` on, in float32; `words` is room to read into.
fn widen(shard: &Shard, place: &Place, first: usize, words: &mut Vec<u16>, values: &mut [f32]) -> Result<()> {
    if place.dtype == Dtype::F32 {
        shard.read(bytemuck::cast_slice_mut(values), place.at + 4 * first as u64)?;
        values.iter_mut().for_each(|value| *value = f32::from_bits(u32::from_le(value.to_bits())));
        return Ok(());
    }
    words.resize(values.len(), 0);
    shard.read(bytemuck::cast_slice_mut(words), place.at + 2 * first as u64)?;
    words.iter_mut().for_each(|word| *word = u16::from_le(*word));
    if place.dtype == Dtype::F16 {
        words.reinterpret_cast::<f16>().convert_to_f32_slice(values);
    } else {
        // The upper half of a float32.
        values.iter_mut().zip(words).for_each(|(value, word)| *value = f32::from_bits(u32::from(*word) << 16));
    }
    Ok(())
}

fn broken(name: &str, shard: &Shard, first: usize, values: &[f32]) -> anyhow::Error {
    let place = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
    bad_input(format!(
        "the tensor `{name}` holds {} at index {}; the checkpoint is broken: {}",
        values[place],
        first + place,
        shard.path().display()
    ))
}

/// Whether two tensors hold the same numbers.
pub(crate) fn same(shards: &[Shard], one: &Place, other: &Place) -> Result<bool> {
    if one.shape != other.shape || !one.is_float() || !other.is_float() {
        return Ok(false);
    }
    let numbers = one.numbers();
    let chunks = (0..numbers.div_ceil(CHUNK)).into_par_iter().map(|chunk| -> Result<bool> {
        let first = chunk * CHUNK;
        let read = |place: &Place| {
            let mut values = vec![0.0_f32; CHUNK.min(numbers - first)];
            widen(&shards[place.shard], place, first, &mut Vec::new(), &mut values).map(|()| values)
        };
        Ok(read(one)? == read(other)?)
    });
    chunks.try_reduce(|| true, |one, other| Ok(one && other))
}
