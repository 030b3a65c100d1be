//! Sums over the tokens of each example of a batch: what a scan and Lambda are made of.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::cpu::{contiguous, is_cpu, lane_sum, tensor, values, values_mut, vectorised, wrap, writable};
use super::product::{Accumulate, MatrixRef, View, accumulate};

/// Values of a product from which examples are taken one by one, each with all threads: 16 MiB of f32 a thread.
const LARGE: usize = 1 << 22;

/// s[b, q] = sum over the tokens t of example b, and over r, of x[b t, q r] y[b t, q r].
///
/// x, y `[batch * tokens, count * rank]` -> `[batch, count]`; token sums in float64 on the CPU.
pub fn paired_sums(x: Tensor<2>, y: Tensor<2>, batch: usize, count: usize) -> Tensor<2> {
    let [rows, width] = x.dims();
    assert_eq!(y.dims(), [rows, width], "pairs of one shape");
    assert!(batch > 0 && count > 0 && rows.is_multiple_of(batch) && width.is_multiple_of(count), "whole examples");
    let (tokens, rank) = (rows / batch, width / count);
    if !is_cpu(&x.device()) {
        let by_direction = (x * y).reshape([batch, tokens, width]).sum_dim(1);
        return by_direction.reshape([batch, count, rank]).sum_dim(2).reshape([batch, count]);
    }
    let (x, y) = (contiguous(x), contiguous(y));
    let (x, y) = (values(&x), values(&y));
    let mut sums = vec![0.0f32; batch * count];
    let example = tokens * width;
    sums.par_chunks_mut(count).zip(x.par_chunks(example).zip(y.par_chunks(example))).for_each(|(sums, (x, y))| {
        let mut exact = vec![0.0f64; count];
        vectorised(
            #[inline(always)]
            || {
                for (x, y) in x.chunks_exact(width).zip(y.chunks_exact(width)) {
                    for ((sum, x), y) in exact.iter_mut().zip(x.chunks_exact(rank)).zip(y.chunks_exact(rank)) {
                        *sum += f64::from(lane_sum(
                            rank,
                            #[inline(always)]
                            |r| x[r] * y[r],
                        ));
                    }
                }
            },
        );
        sums.iter_mut().zip(exact).for_each(|(sum, exact)| *sum = exact as f32);
    });
    tensor(sums, [batch, count])
}

/// sum + sum over the examples z of (d_z^T a_z)^2, elementwise.
///
/// sum `[out, in]`, d `[batch * tokens, out]`, a `[batch * tokens, in]` -> `[out, in]`
pub fn add_squared_products(sum: Tensor<2>, d: Tensor<2>, a: Tensor<2>, batch: usize) -> Tensor<2> {
    let ([rows, out], [other, inside]) = (d.dims(), a.dims());
    assert!(rows == other && sum.dims() == [out, inside] && batch > 0 && rows.is_multiple_of(batch), "whole examples");
    let tokens = rows / batch;
    if !is_cpu(&d.device()) {
        let step = (4 * LARGE / (out * inside)).clamp(1, batch);
        return (0..batch).step_by(step).fold(sum, |sum, start| {
            let length = step.min(batch - start);
            let chosen = |x: &Tensor<2>, width| {
                x.clone().narrow(0, start * tokens, length * tokens).reshape([length, tokens, width])
            };
            let products = chosen(&d, out).swap_dims(1, 2).matmul(chosen(&a, inside));
            sum + products.square().sum_dim(0).reshape([out, inside])
        });
    }
    let (d, a) = (contiguous(d), contiguous(a));
    let (d, a) = (values(&d), values(&a));
    let mut buffer = writable(sum);
    let sum = values_mut(&mut buffer);
    let (workers, parallelism) = match out * inside >= LARGE {
        true => (1, gemm::Parallelism::Rayon(0)),
        false => (rayon::current_num_threads().min(batch), gemm::Parallelism::None),
    };
    // Each worker has examples and a sum of its own, in an order that depends on their number alone.
    let share = batch.div_ceil(workers) * tokens;
    let sums: Vec<Vec<f32>> = (d.par_chunks(share * out).zip(a.par_chunks(share * inside)))
        .map(|(d, a)| {
            let (mut own, mut product) = (vec![0.0f32; out * inside], vec![0.0f32; out * inside]);
            for (d, a) in d.chunks_exact(tokens * out).zip(a.chunks_exact(tokens * inside)) {
                let (d, a) = (MatrixRef::rows(d, tokens, out, out), MatrixRef::rows(a, tokens, inside, inside));
                let mut view = View::rows(&mut product, out, inside);
                accumulate(&mut view, &d.transposed(), &a, Accumulate::Replace, parallelism);
                add_squares(&mut own, &product);
            }
            own
        })
        .collect();
    for own in sums {
        sum.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
    }
    wrap(buffer)
}

fn add_squares(sum: &mut [f32], x: &[f32]) {
    vectorised(
        #[inline(always)]
        || sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x * x),
    );
}
