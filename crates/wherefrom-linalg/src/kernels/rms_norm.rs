//! Root-mean-square normalisation, and its derivatives.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::cpu::{contiguous, is_cpu, lane_sum, rows_per_task, tensor, values, values_mut, vectorised, wrap, writable};
use super::layer_norm::{defined, inverse};
use super::precision::{reduced, round, widen};

/// y = x / sqrt(mean(x^2) + epsilon) * gain, row by row.
///
/// x [rows, width], gain [1, width] -> [rows, width]
pub fn rms_norm(x: Tensor<2>, gain: Tensor<2>, epsilon: f32) -> Tensor<2> {
    if let Some(dtype) = reduced(&x) {
        return round(rms_norm(widen(x), widen(gain), epsilon), dtype);
    }
    if !is_cpu(&x.device()) {
        return x.clone() * inverse_rms(x, epsilon) * gain;
    }
    let [rows, width] = x.dims();
    let (x, gain) = (contiguous(x), contiguous(gain));
    let gain = values(&gain);
    let mut output = vec![0.0f32; rows * width];
    let task = rows_per_task(rows, width) * width;
    output.par_chunks_mut(task).zip(values(&x).par_chunks(task)).for_each(|(output, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (y, x) in output.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let r = row_inverse_rms(x, epsilon);
                    for ((y, &x), &g) in y.iter_mut().zip(x).zip(gain) {
                        *y = x * r * g;
                    }
                }
            },
        );
    });
    tensor(output, [rows, width])
}

/// residual + dL/dx, with r = 1 / sqrt(mean(x^2) + epsilon) and e = dL/dy * gain:
/// dL/dx = r e - x r^3 mean(e x).
///
/// residual, x, d [rows, width], gain [1, width] -> [rows, width]; `d` is dL/dy, and the residual
/// stream's own gradient is added because every norm of a transformer sits on a branch of it.
pub fn rms_norm_backward(residual: Tensor<2>, d: Tensor<2>, x: Tensor<2>, gain: Tensor<2>, epsilon: f32) -> Tensor<2> {
    if let Some(dtype) = reduced(&x) {
        return round(rms_norm_backward(widen(residual), widen(d), widen(x), widen(gain), epsilon), dtype);
    }
    if !is_cpu(&x.device()) {
        let r = inverse_rms(x.clone(), epsilon);
        let e = d * gain;
        let mean = (e.clone() * x.clone()).mean_dim(1);
        return residual + e * r.clone() - x * (r.clone() * r.clone() * r * mean);
    }
    let [rows, width] = x.dims();
    let (x, d, gain) = (contiguous(x), contiguous(d), contiguous(gain));
    let gain = values(&gain);
    let mut buffer = writable(residual);
    let output = values_mut(&mut buffer);
    let task = rows_per_task(rows, width) * width;
    output.par_chunks_mut(task).zip(values(&x).par_chunks(task)).zip(values(&d).par_chunks(task)).for_each(
        |((output, x), d)| {
            vectorised(
                #[inline(always)]
                || {
                    let rows = output.chunks_exact_mut(width);
                    for ((out, x), d) in rows.zip(x.chunks_exact(width)).zip(d.chunks_exact(width)) {
                        let r = row_inverse_rms(x, epsilon);
                        let dot = lane_sum(
                            width,
                            #[inline(always)]
                            |i| d[i] * gain[i] * x[i],
                        );
                        let pull = r * r * r * dot / width as f32;
                        for i in 0..width {
                            out[i] += r * d[i] * gain[i] - x[i] * pull;
                        }
                    }
                },
            );
        },
    );
    wrap(buffer)
}

/// dL/dgain = sum over rows of dL/dy * x / sqrt(mean(x^2) + epsilon).
///
/// d, x [rows, width] -> [1, width]
pub fn rms_norm_gain_gradient(d: Tensor<2>, x: Tensor<2>, epsilon: f32) -> Tensor<2> {
    let ones = Tensor::ones([1, x.dims()[1]], &x.device());
    (d * rms_norm(x, ones, epsilon)).sum_dim(0)
}

fn inverse_rms(x: Tensor<2>, epsilon: f32) -> Tensor<2> {
    defined(((x.clone() * x).mean_dim(1) + epsilon).sqrt().recip())
}

#[inline(always)]
fn row_inverse_rms(x: &[f32], epsilon: f32) -> f32 {
    let squares = lane_sum(
        x.len(),
        #[inline(always)]
        |i| x[i] * x[i],
    );
    inverse(squares / x.len() as f32 + epsilon)
}
