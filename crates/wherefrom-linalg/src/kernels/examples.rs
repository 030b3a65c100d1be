//! Sums over the tokens of each example of a batch: what a scan and Lambda are made of.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::bf16::Operand;
use super::cpu::{contiguous, is_cpu, lane_sum, tensor, values, vectorised};
use super::precision::widen;
use super::product::{Accumulate, View, accumulate};
use super::ragged::Ragged;

/// Values of a product from which examples are taken one by one, each with all threads: 16 MiB of f32 a thread.
const LARGE: usize = 1 << 22;

/// s[b, q] = sum over the tokens t of example b, and over r, of x[t, q r] y[t, q r].
///
/// x, y `[rows, count * rank]` -> `[examples, count]`; token sums in float64 on the CPU.
pub fn paired_sums(x: Tensor<2>, y: Tensor<2>, examples: &Ragged, count: usize) -> Tensor<2> {
    let [rows, width] = x.dims();
    assert_eq!(y.dims(), [rows, width], "pairs of one shape");
    assert!(rows == examples.rows() && count > 0 && width.is_multiple_of(count), "whole examples and queries");
    let (batch, rank) = (examples.len(), width / count);
    if !is_cpu(&x.device()) {
        let by_direction = examples.padded(&(x * y), 0..batch).sum_dim(1);
        return by_direction.reshape([batch, count, rank]).sum_dim(2).reshape([batch, count]);
    }
    let (x, y) = (contiguous(x), contiguous(y));
    let (x, y) = (values(&x), values(&y));
    let mut sums = vec![0.0f32; batch * count];
    sums.par_chunks_mut(count).enumerate().for_each(|(example, sums)| {
        let (x, y) = (examples.slice(x, width, example), examples.slice(y, width, example));
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

/// sum over the elements of w (d_z^T a_z)^2, for each example z; without weights w is 1.
///
/// w `[out, in]`, d `[rows, out]`, a `[rows, in]` -> `[examples, 1]`; sums in float64 on the CPU.
pub fn weighted_squares(weights: Option<Tensor<2>>, d: Tensor<2>, a: Tensor<2>, examples: &Ragged) -> Tensor<2> {
    let ([rows, out], [other, inside]) = (d.dims(), a.dims());
    assert!(rows == other && rows == examples.rows(), "a row for each token of the examples");
    assert!(weights.as_ref().is_none_or(|weights| weights.dims() == [out, inside]), "a weight for each element");
    if !is_cpu(&d.device()) {
        let sums = products_of(&d, &a, examples).map(|products| {
            let length = products.dims()[0];
            let squares = products.square().reshape([length, out * inside]);
            let weighted = match &weights {
                Some(weights) => squares * weights.clone().reshape([1, out * inside]),
                None => squares,
            };
            weighted.sum_dim(1)
        });
        return Tensor::cat(sums.collect(), 0);
    }
    let weights = weights.map(contiguous);
    let weights = weights.as_ref().map(values);
    let mut sums = vec![0.0f32; examples.len()];
    each_product(d, a, examples, &mut sums, |sum, product| *sum = weighted_square(product, weights, inside) as f32);
    tensor(sums, [examples.len(), 1])
}

/// d_z^T a_z of each example z, zero where it has no rows: d `[rows, out]`, a `[rows, in]` -> `[examples, out * in]`.
pub fn example_products(d: Tensor<2>, a: Tensor<2>, examples: &Ragged) -> Tensor<2> {
    let ([rows, out], [other, inside]) = (d.dims(), a.dims());
    assert!(rows == other && rows == examples.rows(), "a row for each token of the examples");
    let size = out * inside;
    if !is_cpu(&d.device()) {
        let products = products_of(&d, &a, examples).map(|products| {
            let length = products.dims()[0];
            products.reshape([length, size])
        });
        return Tensor::cat(products.collect(), 0);
    }
    let mut products = vec![0.0f32; examples.len() * size];
    let mut states: Vec<_> = products.chunks_exact_mut(size).collect();
    each_product(d, a, examples, &mut states, |state, product| state.copy_from_slice(product));
    tensor(products, [examples.len(), size])
}

/// Hands d_z^T a_z `[out * in]` of each example z to `visit`, with its state, on the CPU.
pub(super) fn each_product<S: Send>(
    d: Tensor<2>,
    a: Tensor<2>,
    examples: &Ragged,
    states: &mut [S],
    visit: impl Fn(&mut S, &[f32]) + Sync,
) {
    let ([_, out], [_, inside], batch) = (d.dims(), a.dims(), states.len());
    assert_eq!(batch, examples.len(), "a state for each example");
    let (d, a) = (contiguous(d), contiguous(a));
    let (d, a) = (Operand::of(&d), Operand::of(&a));
    let (workers, parallelism) = workers(out, inside, batch);
    let share = batch.div_ceil(workers).max(1);
    states.par_chunks_mut(share).enumerate().for_each(|(chunk, states)| {
        let mut product = vec![0.0f32; out * inside];
        for (example, state) in (chunk * share..).zip(states) {
            let tokens = examples.of(example);
            let (d, a) = (d.part(tokens.clone(), 0..out), a.part(tokens, 0..inside));
            let mut view = View::rows(&mut product, out, inside);
            accumulate(&mut view, d.transposed(), a, Accumulate::Replace, parallelism);
            visit(state, &product);
        }
    });
}

/// d_z^T a_z of the examples z in order, `[some, out, in]` at a time, by burn's operations.
pub(super) fn products_of(d: &Tensor<2>, a: &Tensor<2>, examples: &Ragged) -> impl Iterator<Item = Tensor<3>> {
    let ([_, out], [_, inside], batch) = (d.dims(), a.dims(), examples.len());
    let (d, a) = (widen(d.clone()), widen(a.clone()));
    let step = (4 * LARGE / (out * inside)).clamp(1, batch.max(1));
    (0..batch).step_by(step).map(move |start| {
        let some = start..batch.min(start + step);
        examples.padded(&d, some.clone()).swap_dims(1, 2).matmul(examples.padded(&a, some))
    })
}

/// How many examples are taken at once, and how many threads each product has.
fn workers(out: usize, inside: usize, batch: usize) -> (usize, gemm::Parallelism) {
    match out * inside >= LARGE {
        true => (1, gemm::Parallelism::Rayon(0)),
        false => (rayon::current_num_threads().min(batch), gemm::Parallelism::None),
    }
}

/// Rows of `width` values are summed in float32 lanes, and their sums in float64.
fn weighted_square(x: &[f32], weights: Option<&[f32]>, width: usize) -> f64 {
    let mut exact = 0.0;
    vectorised(
        #[inline(always)]
        || match weights {
            Some(weights) => {
                for (x, w) in x.chunks_exact(width).zip(weights.chunks_exact(width)) {
                    exact += f64::from(lane_sum(
                        width,
                        #[inline(always)]
                        |i| w[i] * (x[i] * x[i]),
                    ));
                }
            }
            None => {
                for x in x.chunks_exact(width) {
                    exact += f64::from(lane_sum(
                        width,
                        #[inline(always)]
                        |i| x[i] * x[i],
                    ));
                }
            }
        },
    );
    exact
}
