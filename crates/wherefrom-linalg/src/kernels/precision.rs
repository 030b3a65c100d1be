//! Tensors of float16 and bfloat16: stored rounded, computed with in float32.
//!
//! Every kernel takes them. It widens what it reads, computes as ever, and rounds what it returns to the type of its
//! first argument: what a tensor core does, and on any device the same arithmetic. Only matrix products on a GPU are
//! left to the device, which accumulates them in float32.

use burn::backend::Flex;
use burn::tensor::{DType, Element, FloatDType, Tensor, TensorData, bf16, f16};
use bytemuck::Pod;
use half::slice::HalfFloatSliceExt as _;
use rayon::prelude::*;

use super::bf16::Number as _;
use super::cpu::{Buffer, PARALLEL_FROM, is_cpu, vectorised, wrap};

/// The type to round to; none for float32.
pub(super) fn reduced<const D: usize>(x: &Tensor<D>) -> Option<FloatDType> {
    match x.dtype() {
        DType::F16 => Some(FloatDType::F16),
        DType::BF16 => Some(FloatDType::BF16),
        _ => None,
    }
}

/// x as float32, exactly; x itself where it is.
pub fn widen<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match reduced(&x) {
        None => x,
        Some(FloatDType::BF16) if is_cpu(&x.device()) => converted(
            x,
            each(
                #[inline(always)]
                |x: bf16| f32::from_bits(u32::from(x.to_bits()) << 16),
            ),
        ),
        Some(FloatDType::F16) if is_cpu(&x.device()) => converted(x, |x: &[f16], to| x.convert_to_f32_slice(to)),
        Some(_) => x.cast(FloatDType::F32),
    }
}

/// x rounded to the type of another tensor, for a mask or a bias of ones.
pub fn round_like<const D: usize, const E: usize>(x: Tensor<D>, other: &Tensor<E>) -> Tensor<D> {
    round(x, reduced(other).unwrap_or(FloatDType::F32))
}

/// x rounded to the nearest value of a type, ties to even; x itself where it is of that type.
pub fn round<const D: usize>(x: Tensor<D>, dtype: FloatDType) -> Tensor<D> {
    match (x.dtype(), dtype) {
        (from, to) if from == DType::from(to) => x,
        (DType::F32, FloatDType::BF16) if is_cpu(&x.device()) => converted(
            x,
            each(
                #[inline(always)]
                |x: f32| bf16::from_bits(x.word()),
            ),
        ),
        (DType::F32, _) => x.cast(dtype),
        // Of 16 bits to others: exact on the way.
        _ => round(widen(x), dtype),
    }
}

/// Numbers one by one, in vectors.
fn each<T: Copy, U>(convert: impl Fn(T) -> U) -> impl Fn(&[T], &mut [U]) {
    move |from, to| {
        vectorised(
            #[inline(always)]
            || to.iter_mut().zip(from).for_each(|(to, &from)| *to = convert(from)),
        );
    }
}

/// The numbers of a CPU tensor converted, in the order in which they lie in memory.
fn converted<const D: usize, T: Element + Pod, U: Element + Default>(
    x: Tensor<D>,
    convert: impl Fn(&[T], &mut [U]) + Sync,
) -> Tensor<D> {
    let buffer = x.try_into_primitive::<Flex>().expect("the device was checked to be the CPU");
    let whole = buffer.storage::<T>().len() == buffer.layout().num_elements();
    let buffer = if whole { buffer } else { buffer.to_contiguous() };
    let from = buffer.storage::<T>();
    let mut to = vec![U::default(); from.len()];
    to.par_chunks_mut(PARALLEL_FROM).zip(from.par_chunks(PARALLEL_FROM)).for_each(|(to, from)| convert(from, to));
    let data = TensorData::new(to, buffer.layout().shape().clone());
    wrap(Buffer::from_data(data).with_layout(buffer.layout().clone()))
}
