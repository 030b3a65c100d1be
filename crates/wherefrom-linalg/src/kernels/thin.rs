//! Products of a few rows on the CPU: a packed copy of the other matrix, which `gemm` and `faer` make, would take longer than
//! the product.

use pulp::{Simd, WithSimd};

/// Rows of either side in one step of the innermost loop: sixteen sums in registers.
const STEP: usize = 4;

/// whole = left right, for a few directions: left `[rows, rank]`, right `[rank, width]` with rows `stride` apart, whole
/// `[rows, width]`. A product this thin is not worth packing.
pub(crate) fn multiply_out(
    left: &[f32],
    (right, stride): (&[f32], usize),
    rank: usize,
    whole: &mut [f32],
    width: usize,
) {
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

/// x_z . y_q of so many rows x and of every row y; all are of one length. Where a step lacks rows, the last stands for them.
pub(crate) fn dots<'a>(
    rows: usize,
    x: impl Fn(usize) -> &'a [f32],
    y: &[&[f32]],
    mut put: impl FnMut(usize, usize, f32),
) {
    for first in (0..rows).step_by(STEP) {
        let last = rows.min(first + STEP) - 1;
        let x = std::array::from_fn(|i| x(last.min(first + i)));
        for (start, y) in (0..).step_by(STEP).zip(y.chunks(STEP)) {
            let step = Step { x, y: std::array::from_fn(|i| y[i.min(y.len() - 1)]) };
            for (z, sums) in (first..=last).zip(pulp::Arch::new().dispatch(step)) {
                (start..).zip(sums).take(y.len()).for_each(|(q, sum)| put(z, q, sum));
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
