//! Products of a few rows with a large matrix of weights, as in generating text token by token: the time is that of reading the
//! matrix, so it is read once, in the type in which it lies, and not packed.

use burn::backend::Flex;
use burn::tensor::{DType, Element, Tensor, bf16, f16};
use bytemuck::Pod;
use half::slice::HalfFloatSliceExt as _;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::cpu::{Buffer, contiguous, is_cpu, tensor, values, vectorised};

/// Most rows that are so multiplied: with more of them the arithmetic takes longer than reading.
const ROWS: usize = 16;
/// Rows of the matrix that are widened together: they stay in the first cache, or the second, for all rows of x.
const BLOCK: usize = 4;
/// Numbers of the matrix below which a product stays on the calling thread.
const PARALLEL: usize = 1 << 16;

/// Whether x has few enough rows, is of float32 and on the CPU.
pub fn is_skinny(x: &Tensor<2>) -> bool {
    (1..=ROWS).contains(&x.dims()[0]) && x.dtype() == DType::F32 && is_cpu(&x.device())
}

/// y = x W^T, where x has few rows ([`is_skinny`]) and W lies row by row; else none. W of 16 bits is
/// widened, exactly, and sums are float32, so that the result does not depend on the type in which a number is held.
///
/// x [m, k], w [n, k] of float32, float16 or bfloat16 -> [m, n]
pub fn skinny_product(x: &Tensor<2>, w: &Tensor<2>) -> Option<Tensor<2>> {
    let ([m, k], [n, inner]) = (x.dims(), w.dims());
    assert_eq!(k, inner, "x W^T of [m, k], [n, k]");
    if k == 0 || n == 0 || !is_skinny(x) {
        return None;
    }
    let w = w.clone().try_into_primitive::<Flex>().expect("the device was checked to be the CPU");
    w.layout().contiguous_offsets()?;
    let x = contiguous(x.clone());
    let x: Vec<_> = values(&x).chunks_exact(k).collect();
    let y = match w.dtype() {
        DType::F32 => columns(&x, rows::<f32>(&w, n * k), |w, each| each(w)),
        DType::BF16 => columns(&x, rows::<bf16>(&w, n * k), widened(widen_bf16)),
        DType::F16 => columns(&x, rows::<f16>(&w, n * k), widened(|w: &[f16], to| w.convert_to_f32_slice(to))),
        _ => return None,
    };
    let mut output = vec![0.0f32; m * n];
    for (i, row) in output.chunks_exact_mut(n).enumerate() {
        row.iter_mut().zip(y.chunks_exact(m)).for_each(|(to, column)| *to = column[i]);
    }
    Some(tensor(output, [m, n]))
}

fn widen_bf16(from: &[bf16], to: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || to.iter_mut().zip(from).for_each(|(to, from)| *to = f32::from_bits(u32::from(from.to_bits()) << 16)),
    );
}

fn rows<T: Element + Pod>(w: &Buffer, length: usize) -> &[T] {
    &w.storage::<T>()[w.layout().start_offset()..][..length]
}

/// A block of rows in float32, in memory that is used again.
#[allow(clippy::type_complexity)]
fn widened<T>(widen: impl Fn(&[T], &mut [f32]) + Sync) -> impl Fn(&[T], &mut dyn FnMut(&[f32])) + Sync {
    move |w, each| {
        thread_local!(static WIDE: std::cell::Cell<Vec<f32>> = const { std::cell::Cell::new(Vec::new()) });
        let mut wide = WIDE.take();
        wide.resize(w.len(), 0.0);
        widen(w, &mut wide);
        each(&wide);
        WIDE.set(wide);
    }
}

/// y^T [n, m]; `read` shows a block of rows of the matrix in float32.
fn columns<T: Sync>(x: &[&[f32]], w: &[T], read: impl Fn(&[T], &mut dyn FnMut(&[f32])) + Sync) -> Vec<f32> {
    let (m, k) = (x.len(), x[0].len());
    let n = w.len() / k;
    let mut y = vec![0.0f32; n * m];
    let tasks = if w.len() < PARALLEL { 1 } else { 4 * rayon::current_num_threads() };
    let share = n.div_ceil(tasks).next_multiple_of(BLOCK);
    let task = |(y, w): (&mut [f32], &[T])| {
        for (y, w) in y.chunks_mut(BLOCK * m).zip(w.chunks(BLOCK * k)) {
            read(w, &mut |w| pulp::Arch::new().dispatch(Block { x, w, y: &mut *y }));
        }
    };
    if tasks == 1 {
        task((&mut y, w));
    } else {
        y.par_chunks_mut(share * m).zip(w.par_chunks(share * k)).for_each(task);
    }
    y
}

/// A block of rows of the matrix with all rows of x: y^T = W x^T.
struct Block<'a> {
    x: &'a [&'a [f32]],
    w: &'a [f32],
    /// [rows of w, rows of x]
    y: &'a mut [f32],
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let (mut first, all) = (0, self.x.len());
        while first < all {
            first += match all - first {
                1 => self.some::<S, 4, 1>(simd, first),
                2 => self.some::<S, 4, 2>(simd, first),
                3 => self.some::<S, 2, 3>(simd, first),
                _ if S::REGISTER_COUNT >= 32 => self.some::<S, 4, 4>(simd, first),
                _ => self.some::<S, 2, 4>(simd, first),
            };
        }
    }
}

impl Block<'_> {
    /// M rows of x, with R rows of the matrix at a time: R M sums, which stay in registers.
    #[inline(always)]
    fn some<S: Simd, const R: usize, const M: usize>(&mut self, simd: S, first: usize) -> usize {
        let (k, m) = (self.x[first].len(), self.x.len());
        let count = self.w.len() / k;
        let (mut x, mut x_rest) = ([S::as_simd_f32s(self.x[first]).0; M], [&self.x[first][..0]; M]);
        for i in 0..M {
            (x[i], x_rest[i]) = S::as_simd_f32s(self.x[first + i]);
        }
        for row in (0..count).step_by(R) {
            // Where rows are missing, the last stands for them.
            let (mut w, mut w_rest) = ([x[0]; R], [x_rest[0]; R]);
            for r in 0..R {
                (w[r], w_rest[r]) = S::as_simd_f32s(&self.w[(row + r).min(count - 1) * k..][..k]);
            }
            let mut sums = [[simd.splat_f32s(0.0); M]; R];
            let vectors = x[0].len();
            x.iter_mut().for_each(|x| *x = &x[..vectors]);
            w.iter_mut().for_each(|w| *w = &w[..vectors]);
            for j in 0..vectors {
                for r in 0..R {
                    let own = w[r][j];
                    for i in 0..M {
                        sums[r][i] = simd.mul_add_f32s(own, x[i][j], sums[r][i]);
                    }
                }
            }
            for r in 0..R.min(count - row) {
                for i in 0..M {
                    let mut sum = simd.reduce_sum_f32s(sums[r][i]);
                    for (w, x) in w_rest[r].iter().zip(x_rest[i]) {
                        sum += w * x;
                    }
                    self.y[(row + r) * m + first + i] = sum;
                }
            }
        }
        M
    }
}
