//! Next-token loss, its gradient, and labels drawn from the model's own distribution.

use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData, activation};
use rayon::prelude::*;

use super::cpu::{
    contiguous, exp, is_cpu, lane_max, lane_sum, rows_per_task, values, values_mut, vectorised, wrap, writable,
};
use super::precision::widen;

/// loss_i = log sum_j e^(z_ij) - z_i,label and dL/dz = softmax(z) - onehot(label).
///
/// logits `[rows, vocab]`, labels `[rows]` -> (loss per row in nats, d_logits `[rows, vocab]`).
/// On the CPU the gradient replaces the logits in their own memory. It is float32 whatever the logits are: the caller
/// scales it before it is rounded.
pub fn cross_entropy(logits: Tensor<2>, labels: &[u32]) -> (Vec<f32>, Tensor<2>) {
    let logits = widen(logits);
    let [rows, vocab] = logits.dims();
    assert_eq!(rows, labels.len(), "one label a row");
    let device = logits.device();
    if !is_cpu(&device) {
        let (loss, d) = cross_entropy_on_device(logits, on_device(labels, &device));
        return (host(loss), d);
    }
    let mut z = writable(logits);
    let mut loss = vec![0.0f32; rows];
    let task = rows_per_task(rows, vocab);
    values_mut(&mut z)
        .par_chunks_mut(task * vocab)
        .zip(loss.par_chunks_mut(task))
        .zip(labels.par_chunks(task))
        .for_each(|((z, loss), labels)| {
            vectorised(
                #[inline(always)]
                || {
                    for ((z, loss), &label) in z.chunks_exact_mut(vocab).zip(loss).zip(labels) {
                        *loss = row_cross_entropy(z, label as usize);
                    }
                },
            );
        });
    (loss, wrap(z))
}

/// The same of labels `[rows, 1]` on the device, where the losses `[rows, 1]` stay: the host waits for neither.
pub fn cross_entropy_on_device(logits: Tensor<2>, labels: Tensor<2, Int>) -> (Tensor<2>, Tensor<2>) {
    let log_p = activation::log_softmax(widen(logits), 1);
    let loss = log_p.clone().gather(1, labels.clone()).neg();
    let minus_one = Tensor::full(labels.dims(), -1.0, &labels.device());
    (loss, log_p.exp().scatter(1, labels, minus_one, IndexingUpdateOp::Add))
}

/// Labels as `[rows, 1]` on a device.
pub fn on_device(labels: &[u32], device: &Device) -> Tensor<2, Int> {
    let index = labels.iter().map(|&label| i64::from(label)).collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(index, [labels.len(), 1]), device)
}

/// Probabilities p = softmax(z), row by row.
///
/// logits `[rows, vocab]` -> `[rows, vocab]`
pub fn softmax(logits: Tensor<2>) -> Tensor<2> {
    if !is_cpu(&logits.device()) {
        return activation::softmax(logits, 1);
    }
    let [rows, vocab] = logits.dims();
    let mut z = writable(logits);
    values_mut(&mut z).par_chunks_mut(rows_per_task(rows, vocab) * vocab).for_each(|z| {
        vectorised(
            #[inline(always)]
            || {
                for z in z.chunks_exact_mut(vocab) {
                    row_softmax(z);
                }
            },
        );
    });
    wrap(z)
}

/// Where logits move by t: how the loss of each label moves, p . t - t_label, and how the loss's gradient does,
/// H t = p (t - p . t) with H = diag(p) - p p^T.
///
/// t and p, the probabilities, `[rows, vocab]`, labels `[rows]` -> (slope of each row, `[rows, vocab]`)
pub fn cross_entropy_tangent(t: Tensor<2>, p: Tensor<2>, labels: &[u32]) -> (Vec<f32>, Tensor<2>) {
    let [rows, vocab] = t.dims();
    assert_eq!(rows, labels.len(), "one label a row");
    let device = t.device();
    if !is_cpu(&device) {
        let index = on_device(labels, &device);
        let mean = (p.clone() * t.clone()).sum_dim(1);
        return (host(mean.clone() - t.clone().gather(1, index)), p * (t - mean));
    }
    let (mut t, p) = (writable(t), contiguous(p));
    let mut slopes = vec![0.0f32; rows];
    let task = rows_per_task(rows, vocab);
    let inputs = values(&p).par_chunks(task * vocab).zip(labels.par_chunks(task));
    values_mut(&mut t).par_chunks_mut(task * vocab).zip(slopes.par_chunks_mut(task)).zip(inputs).for_each(
        |((t, slopes), (p, labels))| {
            vectorised(
                #[inline(always)]
                || {
                    let rows = t.chunks_exact_mut(vocab).zip(p.chunks_exact(vocab));
                    for (((t, p), slope), &label) in rows.zip(slopes).zip(labels) {
                        let mean = lane_sum(
                            vocab,
                            #[inline(always)]
                            |i| p[i] * t[i],
                        );
                        *slope = mean - t[label as usize];
                        for (t, p) in t.iter_mut().zip(p) {
                            *t = p * (*t - mean);
                        }
                    }
                },
            );
        },
    );
    (slopes, wrap(t))
}

/// One row of [`cross_entropy`] in place: logits become softmax minus one-hot; returns the loss.
#[inline(always)]
fn row_cross_entropy(z: &mut [f32], label: usize) -> f32 {
    let target = z[label];
    let logarithm = row_softmax(z);
    z[label] -= 1.0;
    logarithm - target
}

/// Logits become probabilities; returns log sum_j e^(z_j).
#[inline(always)]
fn row_softmax(z: &mut [f32]) -> f32 {
    let max = lane_max(z);
    for z in z.iter_mut() {
        *z = exp(*z - max);
    }
    let sum = lane_sum(
        z.len(),
        #[inline(always)]
        |i| z[i],
    );
    let scale = 1.0 / sum;
    for z in z.iter_mut() {
        *z *= scale;
    }
    sum.ln() + max
}

/// One label a row by inverse distribution function: the first index whose cumulative probability
/// exceeds the row's uniform number.
///
/// logits `[rows, vocab]`, uniforms `[rows]` in `[0, 1)` -> labels `[rows]`. Sums in float64 on the CPU.
pub fn sample_rows(logits: Tensor<2>, uniforms: &[f64]) -> Vec<u32> {
    let logits = widen(logits);
    let [rows, vocab] = logits.dims();
    assert_eq!(rows, uniforms.len(), "one uniform number a row");
    let device = logits.device();
    if !is_cpu(&device) {
        let drawn = sample_rows_on_device(logits, uniforms).into_data();
        return drawn.iter::<i64>().map(|label| label as u32).collect();
    }
    let logits = contiguous(logits);
    let task = rows_per_task(rows, vocab);
    let mut labels = vec![0u32; rows];
    labels.par_chunks_mut(task).zip(values(&logits).par_chunks(task * vocab)).zip(uniforms.par_chunks(task)).for_each(
        |((labels, z), uniforms)| {
            let mut weights = vec![0.0f32; vocab];
            for ((label, z), &u) in labels.iter_mut().zip(z.chunks_exact(vocab)).zip(uniforms) {
                vectorised(
                    #[inline(always)]
                    || {
                        let max = lane_max(z);
                        for (w, &z) in weights.iter_mut().zip(z) {
                            *w = exp(z - max);
                        }
                    },
                );
                *label = inverse_distribution(&weights, u);
            }
        },
    );
    labels
}

/// First index at which the running sum of `weights` exceeds `u` times their total; the last index
/// with any weight if rounding leaves none.
fn inverse_distribution(weights: &[f32], u: f64) -> u32 {
    let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
    let threshold = u * total;
    let mut sum = 0.0;
    for (index, &w) in weights.iter().enumerate() {
        sum += f64::from(w);
        if sum > threshold {
            return index as u32;
        }
    }
    weights.iter().rposition(|&w| w > 0.0).unwrap_or(0) as u32
}

/// [`sample_rows`] as `[rows, 1]` on the device: the label is the number of indices whose cumulative probability does not exceed u.
pub fn sample_rows_on_device(logits: Tensor<2>, uniforms: &[f64]) -> Tensor<2, Int> {
    let ([rows, vocab], device) = (logits.dims(), logits.device());
    let u = uniforms.iter().map(|&u| u as f32).collect::<Vec<_>>();
    let u = Tensor::<2>::from_data(TensorData::new(u, [rows, 1]), &device);
    let below = activation::softmax(widen(logits), 1).cumsum(1).lower_equal(u.expand([rows, vocab]));
    below.float().sum_dim(1).int().clamp_max(vocab as i64 - 1)
}

fn host(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().expect("an f32 tensor")
}
