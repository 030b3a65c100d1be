//! Inputs of linear maps as curvature sees them: zero on padding, and with a 1 where the map has a bias.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::cpu::{contiguous, is_cpu, rows_per_task, tensor, values};
use super::precision::{reduced, round, widen};

/// [x | 1] on real rows, zero on padding: W x + b is [W | b] [x | 1].
///
/// x [rows, width]; real [rows, 1], 1 or 0, none where nothing is padding -> [rows, width + 1]
pub fn append_one(x: Tensor<2>, real: Option<&Tensor<2>>) -> Tensor<2> {
    if let Some(dtype) = reduced(&x) {
        return round(append_one(widen(x), real), dtype);
    }
    let [rows, width] = x.dims();
    if !is_cpu(&x.device()) {
        let one = real.cloned().unwrap_or_else(|| Tensor::ones([rows, 1], &x.device()));
        return Tensor::cat(vec![x * one.clone(), one], 1);
    }
    let x = contiguous(x);
    let real = real.cloned().map(contiguous);
    let real = real.as_ref().map(values);
    let mut output = vec![0.0f32; rows * (width + 1)];
    let task = rows_per_task(rows, width + 1);
    output.par_chunks_mut(task * (width + 1)).zip(values(&x).par_chunks(task * width)).enumerate().for_each(
        |(index, (output, x))| {
            for (i, (y, x)) in output.chunks_exact_mut(width + 1).zip(x.chunks_exact(width)).enumerate() {
                if real.is_none_or(|real| real[index * task + i] != 0.0) {
                    y[..width].copy_from_slice(x);
                    y[width] = 1.0;
                }
            }
        },
    );
    tensor(output, [rows, width + 1])
}
