//! Products of the queries' matrices with the examples' gradients: two ways, and which of them is the shorter.

use burn::tensor::Tensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::cpu::{contiguous, is_cpu, tensor, values, vectorised};
use super::examples::{paired_sums, products_of};
use super::product::{Accumulate, MatrixRef, View, accumulate, product};

/// Rows and columns of a tile: of a matrix' gradients, one product.
const TILE: usize = 192;
/// Rows of a tile whose gradients lie in the second cache, beside the right factors of a task, while the task's queries
/// pass by.
const STRIP: usize = 16;
/// Numbers of gradients that are held at once: 32 MiB of f32.
const HELD: usize = 1 << 23;
/// Queries, and examples, of one step of the innermost loop: sixteen sums in registers.
const STEP: usize = 4;
/// Queries of one task.
const TASK: usize = 16;

/// What a scan of one module is made of.
#[derive(Debug, Clone, Copy)]
pub struct ScanShape {
    /// Output width.
    pub out: usize,
    /// Input width.
    pub inside: usize,
    /// Directions of each query.
    pub rank: usize,
    /// Queries.
    pub count: usize,
    /// Examples of the batch.
    pub batch: usize,
    /// Tokens of each.
    pub tokens: usize,
}

impl ScanShape {
    /// Multiply-adds by way of the tokens: sum_t (L^T d_t) . (R^T a_t).
    pub fn by_token(&self) -> f64 {
        (self.batch * self.tokens) as f64 * (self.count * self.rank) as f64 * (self.out + self.inside) as f64
    }

    /// Multiply-adds by way of the gradients: G_z of every example, L R^T of every query, and their products.
    pub fn by_gradient(&self) -> f64 {
        let (size, batch, count) = ((self.out * self.inside) as f64, self.batch as f64, self.count as f64);
        size * (batch * self.tokens as f64 + count * self.rank as f64 + count * batch)
    }
}

/// s[z, q] = <L_q R_q^T, sum_t d_t a_t^T> of every example z and query q.
///
/// left `[out, count * rank]`, right `[count * rank, in]`, d `[batch * tokens, out]`, a `[batch * tokens, in]` ->
/// `[batch, count]`. By way of the tokens or of the gradients, whichever takes fewer operations.
pub fn scan(left: &Tensor<2>, right: &Tensor<2>, d: Tensor<2>, a: Tensor<2>, batch: usize, count: usize) -> Tensor<2> {
    let ([rows, out], [_, inside], [_, width]) = (d.dims(), a.dims(), left.dims());
    let shape = ScanShape { out, inside, rank: width / count, count, batch, tokens: rows / batch };
    if shape.by_gradient() < shape.by_token() {
        scan_by_gradient(left, right, d, a, shape)
    } else {
        paired_sums(product(d, left.clone()), product(a, right.clone().transpose()), batch, count)
    }
}

/// [`scan`] by way of the gradients.
pub fn scan_by_gradient(
    left: &Tensor<2>,
    right: &Tensor<2>,
    d: Tensor<2>,
    a: Tensor<2>,
    shape: ScanShape,
) -> Tensor<2> {
    let ScanShape { out, inside, rank, count, batch, tokens } = shape;
    if !is_cpu(&d.device()) {
        return on_device(left, right, &d, &a, shape);
    }
    let (left, right, d, a) = (contiguous(left.clone()), contiguous(right.clone()), contiguous(d), contiguous(a));
    let (left, right, d, a) = (values(&left), values(&right), values(&d), values(&a));
    let mut sums = vec![0.0f64; batch * count];
    let bands = |n: usize| (0..n).step_by(TILE).map(move |first| first..n.min(first + TILE));
    let tiles: Vec<_> = bands(out).flat_map(|rows| bands(inside).map(move |columns| (rows.clone(), columns))).collect();
    // As many as have room for their gradients; at least one.
    for tiles in tiles.chunks((HELD / (batch * TILE * TILE)).max(1)) {
        let gradients: Vec<Vec<f32>> = tiles
            .par_iter()
            .map(|(rows, columns)| {
                let size = rows.len() * columns.len();
                let mut gradients = vec![0.0f32; batch * size];
                let examples = d.chunks_exact(tokens * out).zip(a.chunks_exact(tokens * inside));
                for (gradient, (d, a)) in gradients.chunks_exact_mut(size).zip(examples) {
                    let d = MatrixRef::rows(&d[rows.start..], tokens, rows.len(), out);
                    let a = MatrixRef::rows(&a[columns.start..], tokens, columns.len(), inside);
                    let mut view = View::rows(gradient, rows.len(), columns.len());
                    accumulate(&mut view, &d.transposed(), &a, Accumulate::Replace, gemm::Parallelism::None);
                }
                gradients
            })
            .collect();
        let queries: Vec<usize> = (0..count).step_by(TASK).collect();
        let tasks: Vec<(usize, usize)> =
            (0..tiles.len()).flat_map(|tile| queries.iter().map(move |&query| (tile, query))).collect();
        let partial: Vec<Vec<f32>> = tasks
            .par_iter()
            .map(|&(tile, query)| {
                let ((rows, columns), many) = (&tiles[tile], TASK.min(count - query));
                let (width, size) = (columns.len(), rows.len() * columns.len());
                let (mut lefts, mut whole) = (vec![0.0f32; many * STRIP * rank], vec![0.0f32; STEP * STRIP * width]);
                let mut sums = vec![0.0f32; batch * many];
                for strip in (0..rows.len()).step_by(STRIP) {
                    let strip = strip..rows.len().min(strip + STRIP);
                    let length = strip.len() * width;
                    let gradient = |z: usize| &gradients[tile][z * size + strip.start * width..][..length];
                    // A query's rows lie far apart in `left`: here, one after the other.
                    for (row, i) in strip.clone().enumerate() {
                        let own = &left[((rows.start + i) * count + query) * rank..][..many * rank];
                        for (q, own) in own.chunks_exact(rank).enumerate() {
                            lefts[(q * STRIP + row) * rank..][..rank].copy_from_slice(own);
                        }
                    }
                    for start in (0..many).step_by(STEP) {
                        let step = STEP.min(many - start);
                        for (q, whole) in (start..).zip(whole.chunks_exact_mut(length)).take(step) {
                            let right = &right[(query + q) * rank * inside + columns.start..];
                            multiply_out(&lefts[q * STRIP * rank..], (right, inside), rank, whole, width);
                        }
                        dots(batch, gradient, &whole[..step * length], |z, q, dot| sums[z * many + start + q] += dot);
                    }
                }
                sums
            })
            .collect();
        for (&(_, query), partial) in tasks.iter().zip(&partial) {
            let many = TASK.min(count - query);
            for (sums, partial) in sums.chunks_exact_mut(count).zip(partial.chunks_exact(many)) {
                sums[query..].iter_mut().zip(partial).for_each(|(sum, &partial)| *sum += f64::from(partial));
            }
        }
    }
    tensor(sums.into_iter().map(|sum| sum as f32).collect(), [batch, count])
}

/// whole = left right, for a few directions: left `[rows, rank]`, right `[rank, width]` with rows `stride` apart, whole
/// `[rows, width]`. A product this thin is not worth packing.
fn multiply_out(left: &[f32], (right, stride): (&[f32], usize), rank: usize, whole: &mut [f32], width: usize) {
    for (whole, left) in whole.chunks_mut(STEP * width).zip(left.chunks(STEP * rank)) {
        pulp::Arch::new().dispatch(Rows { left, right, stride, rank, whole, width });
    }
}

/// Up to four rows of a thin product.
struct Rows<'a> {
    left: &'a [f32],
    right: &'a [f32],
    stride: usize,
    rank: usize,
    whole: &'a mut [f32],
    width: usize,
}

impl WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (rows, lanes) = (self.whole.len() / self.width, S::F32_LANES);
        let mut column = 0;
        while rows == STEP && column + STEP * lanes <= self.width {
            self.columns::<S, STEP>(simd, column);
            column += STEP * lanes;
        }
        while rows == STEP && column + lanes <= self.width {
            self.columns::<S, 1>(simd, column);
            column += lanes;
        }
        let Self { left, right, stride, rank, whole, width } = self;
        for i in 0..rows {
            for j in column..width {
                whole[i * width + j] = (0..rank).map(|k| left[i * rank + k] * right[k * stride + j]).sum();
            }
        }
    }
}

impl Rows<'_> {
    /// Four rows of N vectors: their sums stay in registers.
    #[inline(always)]
    fn columns<S: Simd, const N: usize>(&mut self, simd: S, column: usize) {
        let length = N * S::F32_LANES;
        let mut sums = [[simd.splat_f32s(0.0); N]; STEP];
        for k in 0..self.rank {
            let (right, _) = S::as_simd_f32s(&self.right[k * self.stride + column..][..length]);
            for (i, sums) in sums.iter_mut().enumerate() {
                let left = simd.splat_f32s(self.left[i * self.rank + k]);
                for (sum, &right) in sums.iter_mut().zip(right) {
                    *sum = simd.mul_add_f32s(left, right, *sum);
                }
            }
        }
        for (whole, sums) in self.whole.chunks_exact_mut(self.width).zip(&sums) {
            let (into, _) = S::as_mut_simd_f32s(&mut whole[column..][..length]);
            into.copy_from_slice(sums);
        }
    }
}

/// x_z . y_q of every example z and query q; y holds the queries one after the other.
fn dots<'a>(batch: usize, x: impl Fn(usize) -> &'a [f32], y: &[f32], mut put: impl FnMut(usize, usize, f32)) {
    let size = x(0).len();
    let y: Vec<&[f32]> = y.chunks_exact(size).collect();
    for first in (0..batch).step_by(STEP) {
        let x: Vec<&[f32]> = (first..batch.min(first + STEP)).map(&x).collect();
        match (<[&[f32]; STEP]>::try_from(&x[..]), <[&[f32]; STEP]>::try_from(&y[..])) {
            (Ok(x), Ok(y)) => {
                for (z, sums) in pulp::Arch::new().dispatch(Step { x, y }).into_iter().enumerate() {
                    sums.into_iter().enumerate().for_each(|(q, sum)| put(first + z, q, sum));
                }
            }
            _ => {
                for (z, x) in x.iter().enumerate() {
                    y.iter().enumerate().for_each(|(q, y)| put(first + z, q, dot(x, y)));
                }
            }
        }
    }
}

/// Four rows with four rows: sixteen sums, which stay in registers.
struct Step<'a> {
    x: [&'a [f32]; STEP],
    y: [&'a [f32]; STEP],
}

impl WithSimd for Step<'_> {
    type Output = [[f32; STEP]; STEP];

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let ([x0, x1, x2, x3], [y0, y1, y2, y3]) = (self.x.map(S::as_simd_f32s), self.y.map(S::as_simd_f32s));
        let mut sums = [[simd.splat_f32s(0.0); STEP]; STEP];
        let heads = x0.0.iter().zip(x1.0).zip(x2.0).zip(x3.0).zip(y0.0.iter().zip(y1.0).zip(y2.0).zip(y3.0));
        for ((((&x0, &x1), &x2), &x3), (((&y0, &y1), &y2), &y3)) in heads {
            let (x, y) = ([x0, x1, x2, x3], [y0, y1, y2, y3]);
            for z in 0..STEP {
                for q in 0..STEP {
                    sums[z][q] = simd.mul_add_f32s(x[z], y[q], sums[z][q]);
                }
            }
        }
        // Taken apart by known places alone: an index at run time would keep the sums in memory through the loop.
        let [z0, z1, z2, z3] = sums;
        let mut sums = [reduce(simd, z0), reduce(simd, z1), reduce(simd, z2), reduce(simd, z3)];
        let (x, y) = ([x0.1, x1.1, x2.1, x3.1], [y0.1, y1.1, y2.1, y3.1]);
        for (sums, x) in sums.iter_mut().zip(x) {
            for (sum, y) in sums.iter_mut().zip(y) {
                *sum += x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>();
            }
        }
        sums
    }
}

/// Written out, for closures are not compiled for the vector unit.
#[inline(always)]
fn reduce<S: Simd>(simd: S, [q0, q1, q2, q3]: [S::f32s; STEP]) -> [f32; STEP] {
    [simd.reduce_sum_f32s(q0), simd.reduce_sum_f32s(q1), simd.reduce_sum_f32s(q2), simd.reduce_sum_f32s(q3)]
}

fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut sum = 0.0;
    vectorised(
        #[inline(always)]
        || {
            sum = super::cpu::lane_sum(
                x.len(),
                #[inline(always)]
                |k| x[k] * y[k],
            );
        },
    );
    sum
}

fn on_device(left: &Tensor<2>, right: &Tensor<2>, d: &Tensor<2>, a: &Tensor<2>, shape: ScanShape) -> Tensor<2> {
    let ScanShape { out, inside, rank, count, batch, .. } = shape;
    let size = out * inside;
    let left = left.clone().reshape([out, count, rank]).swap_dims(0, 1);
    let right = right.clone().reshape([count, rank, inside]);
    let together = (HELD / size).clamp(1, count);
    let examples = products_of(d, a, batch).map(|gradients| {
        let gradients = gradients.clone().reshape([gradients.dims()[0], size]);
        let sums = (0..count).step_by(together).map(|first| {
            let many = together.min(count - first);
            let whole = left.clone().narrow(0, first, many).matmul(right.clone().narrow(0, first, many));
            gradients.clone().matmul(whole.reshape([many, size]).transpose())
        });
        Tensor::cat(sums.collect(), 1)
    });
    Tensor::cat(examples.collect(), 0)
}
