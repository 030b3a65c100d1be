//! Products of matrices that are rounded to bfloat16, with sums in float32.
//!
//! c_ij (+)= sum_k r(a_ik) r(b_kj), where r rounds to the nearest bfloat16, ties to even, and leaves bfloat16 as it is. Where
//! the processor multiplies bfloat16 (AVX512-BF16), operands are rounded while they are packed; elsewhere they are rounded and
//! multiplied in float32, which is the same arithmetic. The instruction takes subnormal numbers (below 1.2e-38) for zero,
//! operands and sums alike, and adds the two products of a pair one after the other.

#[cfg(target_arch = "x86_64")]
mod blocks;
#[cfg(target_arch = "x86_64")]
mod pack;
#[cfg(target_arch = "x86_64")]
mod tile;

use std::cell::Cell;
use std::ops::Range;

use burn::tensor::bf16;

use super::product::{Accumulate, MatrixRef, multiply_f32};

/// A number that an operand may have.
#[cfg(not(target_arch = "x86_64"))]
pub(super) trait Number: Copy + Send + Sync {
    /// The bits of the nearest bfloat16.
    fn word(self) -> u16;
}

/// A number that an operand may have.
#[cfg(target_arch = "x86_64")]
pub(super) trait Number: Copy + Send + Sync + Loads {
    /// The bits of the nearest bfloat16.
    fn word(self) -> u16;
}

/// How vectors of rounded numbers are read.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub(super) trait Loads: Sized {
    /// Numbers that lie together, as many as the mask has, as bfloat16.
    ///
    /// # Safety
    /// Numbers of the mask may be read, and the processor has what [`instructions`] asks for.
    unsafe fn load(first: *const Self, mask: u32) -> std::arch::x86_64::__m512i;

    /// Sixteen words: numbers from `first` on in their lower halves, from `second` on in their upper.
    ///
    /// # Safety
    /// As [`Loads::load`], each with its mask.
    unsafe fn interleaved(first: *const Self, mask: u16, second: *const Self, other: u16)
    -> std::arch::x86_64::__m512i;
}

impl Number for f32 {
    #[inline(always)]
    fn word(self) -> u16 {
        let bits = self.to_bits();
        match self.is_nan() {
            true => (bits >> 16) as u16 | 0x40,
            false => ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16,
        }
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn word(self) -> u16 {
        self.to_bits()
    }
}

/// An operand of a product, of either type.
#[derive(Clone, Copy)]
pub(super) enum Operand<'a> {
    F32(MatrixRef<'a>),
    Bf16(MatrixRef<'a, bf16>),
}

impl<'a> From<MatrixRef<'a>> for Operand<'a> {
    fn from(matrix: MatrixRef<'a>) -> Self {
        Self::F32(matrix)
    }
}

impl<'a> From<&MatrixRef<'a>> for Operand<'a> {
    fn from(matrix: &MatrixRef<'a>) -> Self {
        Self::F32(*matrix)
    }
}

impl<'a> From<MatrixRef<'a, bf16>> for Operand<'a> {
    fn from(matrix: MatrixRef<'a, bf16>) -> Self {
        Self::Bf16(matrix)
    }
}

impl Operand<'_> {
    /// Rows and columns; none where the operand leaves its slice.
    pub(super) fn sizes(&self) -> Option<[usize; 2]> {
        match self {
            Self::F32(matrix) => matrix.fits().then_some([matrix.rows, matrix.cols]),
            Self::Bf16(matrix) => matrix.fits().then_some([matrix.rows, matrix.cols]),
        }
    }

    /// Some of its rows and columns.
    pub(super) fn part(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        match self {
            Self::F32(matrix) => Self::F32(matrix.part(rows, cols)),
            Self::Bf16(matrix) => Self::Bf16(matrix.part(rows, cols)),
        }
    }

    /// The same values read the other way round.
    pub(super) fn transposed(self) -> Self {
        match self {
            Self::F32(matrix) => Self::F32(matrix.transposed()),
            Self::Bf16(matrix) => Self::Bf16(matrix.transposed()),
        }
    }

    /// Rounded, in float32 and row by row.
    fn rounded(&self) -> Vec<f32> {
        fn rows<T: Number>(matrix: &MatrixRef<'_, T>) -> Vec<f32> {
            let MatrixRef { values, rows, cols, row_stride, col_stride } = *matrix;
            let value = |at: usize| f32::from_bits(u32::from(values[at].word()) << 16);
            (0..rows).flat_map(|i| (0..cols).map(move |j| value(i * row_stride + j * col_stride))).collect()
        }
        match self {
            Self::F32(matrix) => rows(matrix),
            Self::Bf16(matrix) => rows(matrix),
        }
    }
}

thread_local! {
    static WITHOUT: Cell<bool> = const { Cell::new(false) };
}

/// As [`crate::test_support::without_bf16_instructions`].
pub(crate) fn without_instructions<R>(body: impl FnOnce() -> R) -> R {
    WITHOUT.set(true);
    let result = body();
    WITHOUT.set(false);
    result
}

/// The instructions by which the processor multiplies bfloat16, if it has any that are made use of here.
pub fn instructions() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16")
    {
        return Some("AVX512-BF16");
    }
    None
}

/// destination (+)= a b.
///
/// # Safety
/// The caller owns a.rows rows of b.cols values, `stride` apart; they are read only where `mode` adds to them.
#[allow(unsafe_code)]
pub(super) unsafe fn multiply_bf16(
    destination: *mut f32,
    stride: usize,
    a: &Operand<'_>,
    b: &Operand<'_>,
    mode: Accumulate,
    parallelism: gemm::Parallelism,
) {
    #[cfg(target_arch = "x86_64")]
    if instructions().is_some() && !WITHOUT.get() {
        let parallel = !matches!(parallelism, gemm::Parallelism::None);
        // SAFETY: the processor was asked; the rest is the caller's.
        unsafe { blocks::multiply(destination, stride, a, b, mode, parallel) };
        return;
    }
    // SAFETY: the caller's.
    unsafe { multiply_rounded(destination, stride, a, b, mode, parallelism) }
}

/// The same by rounded copies and a product of float32.
///
/// # Safety
/// As [`multiply_bf16`].
#[allow(unsafe_code)]
pub(super) unsafe fn multiply_rounded(
    destination: *mut f32,
    stride: usize,
    a: &Operand<'_>,
    b: &Operand<'_>,
    mode: Accumulate,
    parallelism: gemm::Parallelism,
) {
    let (Some([m, k]), Some([_, n])) = (a.sizes(), b.sizes()) else { panic!("operands of a product") };
    let (a, b) = (a.rounded(), b.rounded());
    let (a, b) = (MatrixRef::rows(&a, m, k, k), MatrixRef::rows(&b, k, n, n));
    // SAFETY: the caller's.
    unsafe { multiply_f32(destination, stride, &a, &b, mode, parallelism) }
}
