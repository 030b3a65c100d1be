//! Tensors of float16 and bfloat16: stored rounded, computed with in float32.
//!
//! Every kernel takes them. It widens what it reads, computes as ever, and rounds what it returns to the type of its
//! first argument: what a tensor core does, and on any device the same arithmetic. Only matrix products on a GPU are
//! left to the device, which accumulates them in float32.

use burn::tensor::{DType, FloatDType, Tensor};

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
    if reduced(&x).is_some() { x.cast(FloatDType::F32) } else { x }
}

/// x rounded to the type of another tensor, for a mask or a bias of ones.
pub fn round_like<const D: usize, const E: usize>(x: Tensor<D>, other: &Tensor<E>) -> Tensor<D> {
    round(x, reduced(other).unwrap_or(FloatDType::F32))
}

/// x rounded to the nearest value of a type, ties to even; x itself where it is of that type.
pub fn round<const D: usize>(x: Tensor<D>, dtype: FloatDType) -> Tensor<D> {
    if x.dtype() == DType::from(dtype) { x } else { x.cast(dtype) }
}
