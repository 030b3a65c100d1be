//! Layer normalisation (Ba et al. 2016), and its derivatives.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::cpu::{contiguous, is_cpu, lane_sum, rows_per_task, tensor, values, values_mut, vectorised, wrap, writable};
use super::precision::{reduced, round, widen};

/// y = (x - mean(x)) / sqrt(variance(x) + epsilon) * gain + bias, row by row.
///
/// x [rows, width], gain and bias [1, width] -> [rows, width]
pub fn layer_norm(x: Tensor<2>, gain: Tensor<2>, bias: Tensor<2>, epsilon: f32) -> Tensor<2> {
    if let Some(dtype) = reduced(&x) {
        return round(layer_norm(widen(x), widen(gain), widen(bias), epsilon), dtype);
    }
    if !is_cpu(&x.device()) {
        return normalised(x, epsilon).0 * gain + bias;
    }
    let [rows, width] = x.dims();
    let (x, gain, bias) = (contiguous(x), contiguous(gain), contiguous(bias));
    let (gain, bias) = (values(&gain), values(&bias));
    let mut output = vec![0.0f32; rows * width];
    let task = rows_per_task(rows, width) * width;
    output.par_chunks_mut(task).zip(values(&x).par_chunks(task)).for_each(|(output, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (y, x) in output.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let (mean, r) = row_statistics(x, epsilon);
                    for i in 0..width {
                        y[i] = (x[i] - mean) * r * gain[i] + bias[i];
                    }
                }
            },
        );
    });
    tensor(output, [rows, width])
}

/// residual + dL/dx, with r = 1 / sqrt(variance(x) + epsilon), n = (x - mean(x)) r and e = dL/dy * gain:
/// dL/dx = r (e - mean(e) - n mean(e n)).
///
/// residual, x, d [rows, width], gain [1, width] -> [rows, width]; `d` is dL/dy
pub fn layer_norm_backward(
    residual: Tensor<2>,
    d: Tensor<2>,
    x: Tensor<2>,
    gain: Tensor<2>,
    epsilon: f32,
) -> Tensor<2> {
    if let Some(dtype) = reduced(&x) {
        return round(layer_norm_backward(widen(residual), widen(d), widen(x), widen(gain), epsilon), dtype);
    }
    if !is_cpu(&x.device()) {
        let (n, r) = normalised(x, epsilon);
        let e = d * gain;
        let along = (e.clone() * n.clone()).mean_dim(1);
        return residual + (e.clone() - e.mean_dim(1) - n * along) * r;
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
                        let (mean, r) = row_statistics(x, epsilon);
                        let level = lane_sum(
                            width,
                            #[inline(always)]
                            |i| d[i] * gain[i],
                        ) / width as f32;
                        let along = lane_sum(
                            width,
                            #[inline(always)]
                            |i| d[i] * gain[i] * (x[i] - mean),
                        ) * r
                            / width as f32;
                        for i in 0..width {
                            out[i] += r * (d[i] * gain[i] - level - (x[i] - mean) * r * along);
                        }
                    }
                },
            );
        },
    );
    wrap(buffer)
}

/// dL/dgain = sum over rows of dL/dy n; dL/dbias is the sum of dL/dy.
///
/// d, x [rows, width] -> [1, width]
pub fn layer_norm_gain_gradient(d: Tensor<2>, x: Tensor<2>, epsilon: f32) -> Tensor<2> {
    (d * normalised(x, epsilon).0).sum_dim(0)
}

/// (n, r) of [`layer_norm_backward`], [rows, width] and [rows, 1].
fn normalised(x: Tensor<2>, epsilon: f32) -> (Tensor<2>, Tensor<2>) {
    let centred = x.clone() - x.mean_dim(1);
    let r = defined(((centred.clone() * centred.clone()).mean_dim(1) + epsilon).sqrt().recip());
    (centred * r.clone(), r)
}

/// (mean, 1 / sqrt(variance + epsilon)) of a row.
#[inline(always)]
fn row_statistics(x: &[f32], epsilon: f32) -> (f32, f32) {
    let mean = lane_sum(
        x.len(),
        #[inline(always)]
        |i| x[i],
    ) / x.len() as f32;
    let squares = lane_sum(
        x.len(),
        #[inline(always)]
        |i| (x[i] - mean) * (x[i] - mean),
    );
    (mean, inverse(squares / x.len() as f32 + epsilon))
}

/// 1 / sqrt(square); where squares have overflowed no number, rather than a norm of zeros.
#[inline(always)]
pub(super) fn inverse(square: f32) -> f32 {
    if square == f32::INFINITY { f32::NAN } else { 1.0 / square.sqrt() }
}

/// r, or no number where it is zero: there squares have overflowed.
pub(super) fn defined(r: Tensor<2>) -> Tensor<2> {
    let overflowed = r.clone().equal_elem(0.0);
    r.mask_fill(overflowed, f32::NAN)
}
