//! Products of the queries' matrices with the examples' gradients: two ways, and which of them is the shorter.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::bf16::Operand;
use super::cpu::{contiguous, is_cpu, tensor, values};
use super::examples::{paired_sums, products_of};
use super::product::product;
use super::ragged::Ragged;
use super::tile::{QUERIES, ROWS, Tile};

/// Rows and columns of a tile, at most.
const TILE: [usize; 2] = [768, 192];
/// Numbers of gradients that a thread holds at once: 16 MiB of f32.
const HELD: usize = 1 << 22;
/// Numbers of whole queries at once on another device: 32 MiB of f32.
const HELD_ON_DEVICE: usize = 1 << 23;
/// Queries of one task, at most: a strip of their right factors lies in the second cache.
const TASK: usize = 64;

/// What a scan of one module is made of.
#[derive(Debug, Clone, Copy)]
pub struct ScanShape<'a> {
    /// Output width.
    pub out: usize,
    /// Input width.
    pub inside: usize,
    /// Directions of each query.
    pub rank: usize,
    /// Queries.
    pub count: usize,
    /// The tokens of each example.
    pub examples: &'a Ragged,
}

impl ScanShape<'_> {
    /// Multiply-adds by way of the tokens: sum_t (L^T d_t) . (R^T a_t).
    pub fn by_token(&self) -> f64 {
        self.examples.rows() as f64 * (self.count * self.rank) as f64 * (self.out + self.inside) as f64
    }

    /// Multiply-adds by way of the gradients: G_z of every example, L R^T of every query, and their products.
    pub fn by_gradient(&self) -> f64 {
        let (size, count) = ((self.out * self.inside) as f64, self.count as f64);
        size * (self.examples.rows() as f64 + count * self.rank as f64 + count * self.examples.len() as f64)
    }
}

/// s[z, q] = <L_q R_q^T, sum_t d_t a_t^T> of every example z and query q.
///
/// left `[out, count * rank]`, right `[count * rank, in]`, d `[rows, out]`, a `[rows, in]` -> `[examples, count]`. By way of the tokens or of the gradients,
/// whichever takes fewer operations. Where d and a are bfloat16, so are the products that they are in.
pub fn scan(
    left: &Tensor<2>,
    right: &Tensor<2>,
    d: Tensor<2>,
    a: Tensor<2>,
    examples: &Ragged,
    count: usize,
) -> Tensor<2> {
    let ([_, out], [_, inside], [_, width]) = (d.dims(), a.dims(), left.dims());
    if examples.rows() == 0 {
        return Tensor::zeros([examples.len(), count], &d.device());
    }
    let shape = ScanShape { out, inside, rank: width / count, count, examples };
    if shape.by_gradient() < shape.by_token() {
        scan_by_gradient(left, right, d, a, shape)
    } else {
        paired_sums(product(d, left.clone()), product(a, right.clone().transpose()), examples, count)
    }
}

/// [`scan`] by way of the gradients.
pub fn scan_by_gradient(
    left: &Tensor<2>,
    right: &Tensor<2>,
    d: Tensor<2>,
    a: Tensor<2>,
    shape: ScanShape<'_>,
) -> Tensor<2> {
    let (ScanShape { out, inside, count, .. }, batch) = (shape, shape.examples.len());
    if !is_cpu(&d.device()) {
        return on_device(left, right, &d, &a, shape);
    }
    let (left, right, d, a) = (contiguous(left.clone()), contiguous(right.clone()), contiguous(d), contiguous(a));
    let (left, right, d, a) = (values(&left), values(&right), Operand::of(&d), Operand::of(&a));
    let mut sums = vec![0.0f64; batch * count];
    let parts = |n: usize, step: usize| (0..n).step_by(step).map(move |first| first..n.min(first + step));
    // Of batches side by side each has a thread.
    let threads = if rayon::current_thread_index().is_some() { 1 } else { rayon::current_num_threads() };
    let width = inside.min(TILE[1]);
    let height = (HELD / (batch * width)).clamp(ROWS, TILE[0].min(out.next_multiple_of(ROWS))) / ROWS * ROWS;
    let places: Vec<_> =
        parts(out, height).flat_map(|rows| parts(inside, width).map(move |columns| (rows.clone(), columns))).collect();
    let queries: Vec<_> = parts(count, count.div_ceil(threads).clamp(2 * QUERIES, TASK)).collect();
    // As many as have room for their gradients.
    for places in places.chunks((threads * HELD / (batch * height * width)).max(1)) {
        let tiles: Vec<_> = places
            .par_iter()
            .map(|(rows, columns)| Tile::new(rows.clone(), columns.clone(), [&d, &a], shape))
            .collect();
        let tasks: Vec<_> = tiles.iter().flat_map(|tile| queries.iter().map(move |queries| (tile, queries))).collect();
        let partial: Vec<_> = tasks
            .par_iter()
            .map(|(tile, queries)| tile.inner_products(left, right, (*queries).clone(), shape))
            .collect();
        for ((_, queries), partial) in tasks.iter().zip(&partial) {
            for (sums, partial) in sums.chunks_exact_mut(count).zip(partial.chunks_exact(queries.len())) {
                sums[(*queries).clone()].iter_mut().zip(partial).for_each(|(sum, partial)| *sum += partial);
            }
        }
    }
    tensor(sums.into_iter().map(|sum| sum as f32).collect(), [batch, count])
}

fn on_device(left: &Tensor<2>, right: &Tensor<2>, d: &Tensor<2>, a: &Tensor<2>, shape: ScanShape<'_>) -> Tensor<2> {
    let ScanShape { out, inside, rank, count, examples } = shape;
    let size = out * inside;
    let left = left.clone().reshape([out, count, rank]).swap_dims(0, 1);
    let right = right.clone().reshape([count, rank, inside]);
    let together = (HELD_ON_DEVICE / size).clamp(1, count);
    let products = products_of(d, a, examples).map(|gradients| {
        let gradients = gradients.clone().reshape([gradients.dims()[0], size]);
        let sums = (0..count).step_by(together).map(|first| {
            let many = together.min(count - first);
            let whole = left.clone().narrow(0, first, many).matmul(right.clone().narrow(0, first, many));
            gradients.clone().matmul(whole.reshape([many, size]).transpose())
        });
        Tensor::cat(sums.collect(), 1)
    });
    Tensor::cat(products.collect(), 0)
}
