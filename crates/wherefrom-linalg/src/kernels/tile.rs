//! Inner products of low-rank matrices with gradients, over one tile of both. The matrices are multiplied out in registers
//! and never stored whole: each step's values meet the gradients of every example, which lie in the first cache.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::bf16::Operand;
use super::product::{Accumulate, View, accumulate};
use super::queries::ScanShape;

/// Rows of a step: with two or four vectors of columns, as many sums as the registers hold.
pub(super) const ROWS: usize = 6;
/// Queries whose steps wait for the gradients, in the first cache.
pub(super) const QUERIES: usize = 4;
/// Values of a cache line, and of the widest vector.
const LINE: usize = 16;
/// Values added to the distance between gradients, else often a multiple of the cache's size, where all would want one place.
const APART: usize = 4 * LINE;

/// Gradients of the examples of a batch, in some rows and columns.
pub(super) struct Tile {
    rows: Range<usize>,
    columns: Range<usize>,
    /// `[examples, rows, width]`, and some distance between examples. Rows and width are rounded up; what that adds is zero.
    gradients: Vec<f32>,
    /// Values before the first, which begins a cache line.
    start: usize,
    width: usize,
    distance: usize,
}

impl Tile {
    /// d_z^T a_z of the examples z: d `[rows, out]`, a `[rows, in]`.
    pub(super) fn new(
        rows: Range<usize>,
        columns: Range<usize>,
        [d, a]: [&Operand<'_>; 2],
        shape: ScanShape<'_>,
    ) -> Self {
        let ScanShape { examples, .. } = shape;
        let width = columns.len().next_multiple_of(LINE);
        let distance = rows.len().next_multiple_of(ROWS) * width + APART;
        let mut gradients = vec![0.0f32; LINE + examples.len() * distance];
        let start = gradients.as_ptr().align_offset(size_of::<[f32; LINE]>()).min(LINE);
        let own = gradients[start..].par_chunks_exact_mut(distance).enumerate().take(examples.len());
        own.filter(|(example, _)| !examples.of(*example).is_empty()).for_each(|(example, gradient)| {
            let tokens = examples.of(example);
            let (d, a) = (d.part(tokens.clone(), rows.clone()), a.part(tokens, columns.clone()));
            let mut view = View { values: gradient, rows: rows.len(), cols: columns.len(), row_stride: width };
            accumulate(&mut view, d.transposed(), a, Accumulate::Replace, gemm::Parallelism::None);
        });
        Self { rows, columns, gradients, start, width, distance }
    }

    /// s[z, q] = <L_q R_q^T, G_z> over the tile, of every example z and some queries q.
    ///
    /// left `[out, count * rank]`, right `[count * rank, in]` -> `[batch, queries]`; summed in float32 over a strip, then
    /// in float64.
    pub(super) fn inner_products(
        &self,
        left: &[f32],
        right: &[f32],
        queries: Range<usize>,
        shape: ScanShape<'_>,
    ) -> Vec<f64> {
        pulp::Arch::new().dispatch(InnerProducts { tile: self, left, right, queries, shape })
    }
}

struct InnerProducts<'a> {
    tile: &'a Tile,
    left: &'a [f32],
    right: &'a [f32],
    queries: Range<usize>,
    shape: ScanShape<'a>,
}

impl WithSimd for InnerProducts<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f64> {
        let mut sums = vec![0.0; self.shape.examples.len() * self.queries.len()];
        let vectors = self.tile.width / S::F32_LANES;
        let mut first = 0;
        while first < vectors {
            first += match vectors - first {
                4.. if S::REGISTER_COUNT >= 32 => self.strip::<S, 4, 4>(simd, first, &mut sums),
                2.. => self.strip::<S, 2, 2>(simd, first, &mut sums),
                _ => self.strip::<S, 1, 2>(simd, first, &mut sums),
            };
        }
        sums
    }
}

impl InnerProducts<'_> {
    /// Adds what N vectors of columns have, of all rows, for Z examples at a time.
    #[inline(always)]
    fn strip<S: Simd, const N: usize, const Z: usize>(&self, simd: S, first: usize, sums: &mut [f64]) -> usize {
        let Self { tile, left, queries, shape: ScanShape { rank, count, examples, .. }, .. } = self;
        let (rank, batch) = (*rank, examples.len());
        let (many, column) = (queries.len(), first * S::F32_LANES);
        let right = self.right_factors::<S, N>(simd, column);
        let mut lanes = vec![[[simd.splat_f32s(0.0); QUERIES]; Z]; many.div_ceil(QUERIES) * batch.div_ceil(Z)];
        let mut wholes = [[[simd.splat_f32s(0.0); N]; ROWS]; QUERIES];
        for row in (0..tile.rows.len()).step_by(ROWS) {
            // Where rows are missing, gradients are zero and the last row stands for the factors.
            let left: [&[f32]; ROWS] = std::array::from_fn(|i| {
                let row = tile.rows.start + (row + i).min(tile.rows.len() - 1);
                &left[(row * count + queries.start) * rank..][..many * rank]
            });
            let gradients = &tile.gradients[tile.start + row * tile.width + column..];
            let gradient = |z: usize, i: usize| {
                let from = z.min(batch - 1) * tile.distance + i * tile.width;
                S::as_simd_f32s(&gradients[from..][..N * S::F32_LANES]).0
            };
            for (q, lanes) in (0..many).step_by(QUERIES).zip(lanes.chunks_exact_mut(batch.div_ceil(Z))) {
                for (q, whole) in (q..many).zip(&mut wholes) {
                    let left = left.map(|left| &left[q * rank..][..rank]);
                    *whole = multiply_rows(simd, left, &right[q * rank..][..rank]);
                }
                for (z, lanes) in (0..).step_by(Z).zip(lanes) {
                    let mut sums = *lanes;
                    for i in 0..ROWS {
                        let rows: [&[S::f32s]; Z] = std::array::from_fn(|example| gradient(z + example, i));
                        for n in 0..N {
                            for (sums, row) in sums.iter_mut().zip(rows) {
                                for (sum, whole) in sums.iter_mut().zip(&wholes) {
                                    *sum = simd.mul_add_f32s(row[n], whole[i][n], *sum);
                                }
                            }
                        }
                    }
                    *lanes = sums;
                }
            }
        }
        for (q, lanes) in (0..many).step_by(QUERIES).zip(lanes.chunks_exact(batch.div_ceil(Z))) {
            for (sums, lanes) in sums.chunks_exact_mut(many).zip(lanes.iter().flatten()) {
                for (sum, &lanes) in sums[q..].iter_mut().zip(lanes) {
                    *sum += f64::from(simd.reduce_sum_f32s(lanes));
                }
            }
        }
        N
    }

    /// N vectors of columns of the right factors, `[queries * rank]`, beside one another.
    #[inline(always)]
    fn right_factors<S: Simd, const N: usize>(&self, simd: S, column: usize) -> Vec<[S::f32s; N]> {
        let Self { tile, right, queries, shape: ScanShape { inside, rank, .. }, .. } = self;
        let (start, end) = (tile.columns.start + column, tile.columns.end);
        let rows = right[queries.start * rank * inside..].chunks_exact(*inside).take(queries.len() * rank);
        let mut factors = Vec::with_capacity(queries.len() * rank);
        for row in rows {
            let mut vectors = [simd.splat_f32s(0.0); N];
            for (n, vector) in vectors.iter_mut().enumerate() {
                let from = (start + n * S::F32_LANES).min(end);
                *vector = match S::as_simd_f32s(&row[from..end.min(from + S::F32_LANES)]) {
                    ([vector], _) => *vector,
                    (_, rest) => simd.partial_load_f32s(rest),
                };
            }
            factors.push(vectors);
        }
        factors
    }
}

/// Six rows of L R^T, N vectors of each; they stay in registers while they grow.
#[inline(always)]
fn multiply_rows<S: Simd, const N: usize>(
    simd: S,
    left: [&[f32]; ROWS],
    right: &[[S::f32s; N]],
) -> [[S::f32s; N]; ROWS] {
    let mut whole = [[simd.splat_f32s(0.0); N]; ROWS];
    for (k, right) in right.iter().enumerate() {
        for i in 0..ROWS {
            let left = simd.splat_f32s(left[i][k]);
            for n in 0..N {
                whole[i][n] = simd.mul_add_f32s(left, right[n], whole[i][n]);
            }
        }
    }
    whole
}
