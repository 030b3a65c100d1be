//! What the CPU paths share: access to a tensor's memory, a vectorised exponential, and dispatch
//! to the widest vector unit.

use std::cell::Cell;

use burn::{
    backend::{BackendTypes, Flex},
    tensor::{Device, Tensor, TensorData},
};

/// The CPU backend's own tensor.
pub(super) type Buffer = <Flex as BackendTypes>::FloatTensorPrimitive;

/// Elements below which a kernel stays on the calling thread: 64 KiB of f32.
pub(super) const PARALLEL_FROM: usize = 16 * 1024;

thread_local! {
    static BURN_ONLY: Cell<bool> = const { Cell::new(false) };
}

/// As [`crate::test_support::with_burn_operations`].
pub(crate) fn with_burn_operations<R>(body: impl FnOnce() -> R) -> R {
    BURN_ONLY.set(true);
    let result = body();
    BURN_ONLY.set(false);
    result
}

/// Whether kernels on this device take the CPU path: the host has what they compute as soon as they return.
pub fn is_cpu(device: &Device) -> bool {
    !BURN_ONLY.get() && *device == Device::flex()
}

/// The tensor's memory, row-major; copies only views that are not.
pub(super) fn contiguous<const D: usize>(tensor: Tensor<D>) -> Buffer {
    let buffer = tensor.try_into_primitive::<Flex>().expect("the device was checked to be the CPU");
    if buffer.layout().contiguous_offsets().is_some() { buffer } else { buffer.to_contiguous() }
}

/// The values of a row-major buffer.
pub(super) fn values(buffer: &Buffer) -> &[f32] {
    buffer.as_slice().expect("a contiguous f32 buffer")
}

/// A row-major buffer to write into: the tensor's own memory where nobody else holds it, else a copy.
pub(super) fn writable<const D: usize>(tensor: Tensor<D>) -> Buffer {
    let buffer = contiguous(tensor);
    if buffer.storage::<f32>().len() == values(&buffer).len() {
        return buffer;
    }
    let data = TensorData::new(values(&buffer).to_vec(), buffer.layout().shape().clone());
    Buffer::from_data(data)
}

/// The values of a [`writable`] buffer; copies them first where another tensor shares the memory.
pub(super) fn values_mut(buffer: &mut Buffer) -> &mut [f32] {
    buffer.storage_mut()
}

/// The tensor that a buffer is.
pub(super) fn wrap<const D: usize>(buffer: Buffer) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(buffer)
}

/// A CPU tensor that takes over `values`, row-major.
pub(super) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

/// Runs `body` compiled for the widest vector unit of this processor.
#[inline(always)]
pub(super) fn vectorised<R>(body: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(body)
}

/// Rows for one task: about four tasks a thread, and never less than 16 Ki elements.
pub(super) fn rows_per_task(rows: usize, width: usize) -> usize {
    let spread = rows.div_ceil(4 * rayon::current_num_threads());
    spread.max(PARALLEL_FROM.div_ceil(width.max(1))).max(1)
}

/// e^x to 1e-7 relative, without branches or calls so that loops over it vectorise.
///
/// x = n ln 2 + r with n = round(x / ln 2); e^r by the degree-6 polynomial of Cephes' `expf`;
/// 2^n by writing the exponent bits. Below -87.3 it stays at 1e-38, above 88.3 it saturates.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // 1.5 * 2^23: adding it rounds to the nearest integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.3 { 88.3 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5e-1;
    let power = f32::from_bits((shifted.to_bits().wrapping_add(127)) << 23);
    (p * r * r + r + 1.0) * power
}

/// erf(x) to 2e-7, by the rational approximation of XLA on [-4, 4], beyond which it is 1 to float32.
#[inline(always)]
pub(super) fn erf(x: f32) -> f32 {
    if x <= -4.0 {
        return -1.0;
    }
    if x >= 4.0 {
        return 1.0;
    }
    let square = x * x;
    let mut p = -2.726_142_4e-10;
    p = p * square + 2.770_681_4e-8;
    p = p * square + -2.101_024e-6;
    p = p * square + -5.692_506_4e-5;
    p = p * square + -7.349_906_3e-4;
    p = p * square + -2.954_6e-3;
    p = p * square + -1.609_603_3e-2;
    let mut q = -1.456_607_2e-5;
    q = q * square + -2.133_740_6e-4;
    q = q * square + -1.682_827e-3;
    q = q * square + -7.373_329_2e-3;
    q = q * square + -1.426_473_9e-2;
    x * p / q
}

/// Sum of `f(i)` over a row in sixteen lanes, which is what lets an f32 reduction vectorise.
#[inline(always)]
pub(super) fn lane_sum(len: usize, mut f: impl FnMut(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let body = len / 16 * 16;
    let mut i = 0;
    while i < body {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(i + lane);
        }
        i += 16;
    }
    let mut total: f32 = lanes.iter().sum();
    for j in body..len {
        total += f(j);
    }
    total
}

/// Largest value of a row, in sixteen lanes.
#[inline(always)]
pub(super) fn lane_max(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = row.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (max, &x) in lanes.iter_mut().zip(chunk) {
            *max = if x > *max { x } else { *max };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max })
}
