//! Products of the queries' matrices with the examples' gradients: two ways, and which of them is the shorter.

use burn::tensor::Tensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::cpu::{contiguous, is_cpu, tensor, values, vectorised};
use super::examples::{paired_sums, products_of};
use super::product::{Accumulate, MatrixRef, View, accumulate, product};

/// Rows of a matrix that are worked on at once.
const BAND: usize = 96;
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
    // Bands whose gradients fit; at least one.
    let bands: Vec<usize> = (0..out).step_by(BAND).collect();
    let together = (HELD / (batch * BAND * inside)).max(1);
    for bands in bands.chunks(together) {
        let height = |first: usize| BAND.min(out - first);
        let gradients: Vec<Vec<f32>> = bands
            .par_iter()
            .map(|&first| {
                let size = height(first) * inside;
                let mut gradients = vec![0.0f32; batch * size];
                let examples = d.chunks_exact(tokens * out).zip(a.chunks_exact(tokens * inside));
                for (gradient, (d, a)) in gradients.chunks_exact_mut(size).zip(examples) {
                    let d = MatrixRef::rows(&d[first..], tokens, height(first), out);
                    let a = MatrixRef::rows(a, tokens, inside, inside);
                    let mut view = View::rows(gradient, height(first), inside);
                    accumulate(&mut view, &d.transposed(), &a, Accumulate::Replace, gemm::Parallelism::None);
                }
                gradients
            })
            .collect();
        let queries: Vec<usize> = (0..count).step_by(TASK).collect();
        let tasks: Vec<(usize, usize)> =
            (0..bands.len()).flat_map(|band| queries.iter().map(move |&query| (band, query))).collect();
        let partial: Vec<Vec<f32>> = tasks
            .par_iter()
            .map(|&(band, query)| {
                let (first, many) = (bands[band], TASK.min(count - query));
                let size = height(first) * inside;
                let mut whole = vec![0.0f32; STEP * size];
                let mut sums = vec![0.0f32; batch * many];
                for start in (0..many).step_by(STEP) {
                    let step = STEP.min(many - start);
                    for (q, whole) in (query + start..).zip(whole.chunks_exact_mut(size)).take(step) {
                        let left = &left[first * count * rank + q * rank..];
                        let right = &right[q * rank * inside..(q + 1) * rank * inside];
                        multiply_out(left, count * rank, right, rank, whole, inside);
                    }
                    dots(&gradients[band], &whole[..step * size], size, |z, q, dot| sums[z * many + start + q] = dot);
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

/// whole = left right, for a few directions: left has `rank` values in each row, rows lie `stride` apart, right
/// `[rank, in]`, whole `[rows, in]`. A product this thin is not worth packing.
fn multiply_out(left: &[f32], stride: usize, right: &[f32], rank: usize, whole: &mut [f32], inside: usize) {
    for (block, whole) in whole.chunks_mut(STEP * inside).enumerate() {
        let left = &left[block * STEP * stride..];
        pulp::Arch::new().dispatch(Rows { left, stride, right, rank, whole, inside });
    }
}

/// Up to four rows of a thin product.
struct Rows<'a> {
    left: &'a [f32],
    stride: usize,
    right: &'a [f32],
    rank: usize,
    whole: &'a mut [f32],
    inside: usize,
}

impl WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { left, stride, right, rank, whole, inside } = self;
        let lanes = S::F32_LANES;
        let rows = whole.len() / inside;
        let body = if rows == STEP { inside / (STEP * lanes) * (STEP * lanes) } else { 0 };
        for column in (0..body).step_by(STEP * lanes) {
            let mut sums = [[simd.splat_f32s(0.0); STEP]; STEP];
            for k in 0..rank {
                let (right, _) = S::as_simd_f32s(&right[k * inside + column..][..STEP * lanes]);
                for i in 0..STEP {
                    let left = simd.splat_f32s(left[i * stride + k]);
                    for j in 0..STEP {
                        sums[i][j] = simd.mul_add_f32s(left, right[j], sums[i][j]);
                    }
                }
            }
            for i in 0..STEP {
                let (into, _) = S::as_mut_simd_f32s(&mut whole[i * inside + column..][..STEP * lanes]);
                into.copy_from_slice(&sums[i]);
            }
        }
        for i in 0..rows {
            for j in body..inside {
                whole[i * inside + j] = (0..rank).map(|k| left[i * stride + k] * right[k * inside + j]).sum();
            }
        }
    }
}

/// x_z . y_q of every row z of x and q of y, which are `size` long.
fn dots(x: &[f32], y: &[f32], size: usize, mut put: impl FnMut(usize, usize, f32)) {
    for (block, x) in x.chunks(STEP * size).enumerate() {
        let sums = if x.len() == STEP * size && y.len() == STEP * size {
            step(x, y, size)
        } else {
            let mut sums = [[0.0; STEP]; STEP];
            for (sums, x) in sums.iter_mut().zip(x.chunks_exact(size)) {
                for (sum, y) in sums.iter_mut().zip(y.chunks_exact(size)) {
                    *sum = dot(x, y);
                }
            }
            sums
        };
        for (z, sums) in sums.iter().enumerate().take(x.len() / size) {
            for (q, &sum) in sums.iter().enumerate().take(y.len() / size) {
                put(block * STEP + z, q, sum);
            }
        }
    }
}

/// Four rows with four rows: sixteen sums, which stay in registers.
fn step(x: &[f32], y: &[f32], size: usize) -> [[f32; STEP]; STEP] {
    let row = |i: usize| i * size..(i + 1) * size;
    let (x, y) = (std::array::from_fn(|i| &x[row(i)]), std::array::from_fn(|i| &y[row(i)]));
    pulp::Arch::new().dispatch(Step { x, y })
}

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
        let (x, y) = ([x0.1, x1.1, x2.1, x3.1], [y0.1, y1.1, y2.1, y3.1]);
        let tail = |z: usize, q: usize| x[z].iter().zip(y[q]).map(|(x, y)| x * y).sum::<f32>();
        std::array::from_fn(|z| std::array::from_fn(|q| simd.reduce_sum_f32s(sums[z][q]) + tail(z, q)))
    }
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
