//! Inputs of linear maps with a bias as curvature sees them: a 1 is their last value.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::cpu::{contiguous, is_cpu, rows_per_task, tensor, values};
use super::precision::{reduced, round, widen};

/// [x | 1]: W x + b is [W | b] [x | 1].
///
/// x [rows, width] -> [rows, width + 1]
pub fn append_one(x: Tensor<2>) -> Tensor<2> {
    if let Some(dtype) = reduced(&x) {
        return round(append_one(widen(x)), dtype);
    }
    let [rows, width] = x.dims();
    if !is_cpu(&x.device()) {
        let one = Tensor::ones([rows, 1], &x.device());
        return Tensor::cat(vec![x, one], 1);
    }
    let x = contiguous(x);
    let mut output = vec![1.0f32; rows * (width + 1)];
    let task = rows_per_task(rows, width + 1);
    output.par_chunks_mut(task * (width + 1)).zip(values(&x).par_chunks(task * width)).for_each(|(output, x)| {
        for (y, x) in output.chunks_exact_mut(width + 1).zip(x.chunks_exact(width)) {
            y[..width].copy_from_slice(x);
        }
    });
    tensor(output, [rows, width + 1])
}
