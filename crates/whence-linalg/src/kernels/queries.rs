//! Products of the queries' matrices with the examples' gradients: two ways, and which of them is the shorter.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::cpu::{contiguous, is_cpu, tensor, values};
use super::examples::{paired_sums, products_of};
use super::product::{Accumulate, MatrixRef, View, accumulate, product};
use super::thin::{STEP, dots, multiply_out};

/// Rows and columns of a tile: of a matrix' gradients, one product.
const TILE: usize = 192;
/// Rows of a tile whose gradients lie in the second cache, beside the right factors of a task, while the task's queries
/// pass by.
const STRIP: usize = 16;
/// Numbers of gradients that are held at once: 32 MiB of f32.
const HELD: usize = 1 << 23;
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
                        let whole: Vec<&[f32]> = whole[..step * length].chunks_exact(length).collect();
                        dots(batch, gradient, &whole, |z, q, dot| sums[z * many + start + q] += dot);
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
