//! Matrix products, and the one call into `gemm` that the CPU paths share.
//!
//! The type of the operands says which product is taken: of float32 by `gemm`; where one of them is bfloat16, the other is
//! rounded to it (`bf16`), and sums and result are float32.
//!
//! burn's own product on the CPU first clears its output and copies it to a stricter alignment,
//! which costs as much as a tenth of a small model's time.

use std::ops::Range;

use burn::backend::Flex;
use burn::tensor::{DType, FloatDType, Tensor, bf16};

use super::bf16::{Operand, multiply_bf16};
use super::cpu::{Buffer, contiguous, is_cpu, tensor, values_mut, wrap, writable};
use super::precision::{reduced, round, widen};

/// a b.
///
/// a [m, k], b [k, n] -> [m, n]; `a` and `b` may be views such as a transpose. Of float16 the product is float16; where either
/// is bfloat16 it is that of both rounded to bfloat16, in float32.
pub fn product(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let of_bf16 = is_bf16(&a) || is_bf16(&b);
    if !is_cpu(&a.device()) {
        return match of_bf16 {
            true => widen(round(a, FloatDType::BF16).matmul(round(b, FloatDType::BF16))),
            false => a.matmul(b),
        };
    }
    if let Some(dtype) = reduced(&a).filter(|_| !of_bf16) {
        return round(product(widen(a), widen(b)), dtype);
    }
    let ([m, k], [inner, n]) = (a.dims(), b.dims());
    assert_eq!(k, inner, "a b of [m, k], [k, n]");
    let (a, b) = (strided(a), strided(b));
    let mut values: Vec<f32> = Vec::with_capacity(m * n);
    let (a, b) = (Operand::of(&a), Operand::of(&b));
    // SAFETY: m n values were reserved, and the product writes every one of them.
    #[allow(unsafe_code)]
    unsafe {
        multiply(values.as_mut_ptr(), n, &a, &b, Accumulate::Replace, threads(m, n, k));
        values.set_len(m * n);
    }
    tensor(values, [m, n])
}

/// c + a b, written into c's own memory where nobody else holds it.
///
/// c [m, n], a [m, k], b [k, n] -> [m, n]; `a` and `b` may be views such as a transpose, of types as in [`product`].
pub fn add_product(c: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    if !is_cpu(&c.device()) || reduced(&c).is_some() {
        return c + product(a, b);
    }
    let ([m, n], [rows, k], [inner, cols]) = (c.dims(), a.dims(), b.dims());
    assert_eq!((m, k, n), (rows, inner, cols), "c + a b of [m, n], [m, k], [k, n]");
    let (a, b) = (strided(a), strided(b));
    let mut buffer = writable(c);
    let mut view = View::rows(values_mut(&mut buffer), m, n);
    accumulate(&mut view, Operand::of(&a), Operand::of(&b), Accumulate::Add, threads(m, n, k));
    wrap(buffer)
}

fn is_bf16(x: &Tensor<2>) -> bool {
    x.dtype() == DType::BF16
}

/// All threads for a large product; below some 7 million multiply-adds waking them costs more.
fn threads(m: usize, n: usize, k: usize) -> gemm::Parallelism {
    if m * n * k >= 192 * 192 * 192 { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None }
}

fn strided(tensor: Tensor<2>) -> Buffer {
    let buffer = tensor.clone().try_into_primitive::<Flex>().expect("the device was checked to be the CPU");
    if buffer.layout().strides().iter().all(|&s| s >= 0) { buffer } else { contiguous(tensor) }
}

/// What a product does with what its destination holds.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Accumulate {
    Replace,
    Add,
}

/// A read-only matrix inside a slice.
#[derive(Clone, Copy)]
pub(super) struct MatrixRef<'a, T = f32> {
    pub(super) values: &'a [T],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a, T> MatrixRef<'a, T> {
    /// A matrix whose rows of `cols` values lie `row_stride` apart.
    pub(super) fn rows(values: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { values, rows, cols, row_stride, col_stride: 1 }
    }

    /// The whole of a CPU tensor, as its layout says.
    fn of(buffer: &Buffer, storage: &'a [T]) -> Self {
        let (shape, strides) = (buffer.layout().shape(), buffer.layout().strides());
        Self {
            values: &storage[buffer.layout().start_offset()..],
            rows: shape[0],
            cols: shape[1],
            row_stride: strides[0] as usize,
            col_stride: strides[1] as usize,
        }
    }

    /// Some of its rows and columns.
    pub(super) fn part(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.end <= self.rows && cols.end <= self.cols, "a part of a matrix");
        let from = rows.start * self.row_stride + cols.start * self.col_stride;
        Self { values: &self.values[from.min(self.values.len())..], rows: rows.len(), cols: cols.len(), ..self }
    }

    /// The same values read the other way round.
    pub(super) fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    pub(super) fn fits(&self) -> bool {
        self.rows == 0
            || self.cols == 0
            || (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride < self.values.len()
    }
}

impl<'a> Operand<'a> {
    /// The whole of a CPU tensor, as its layout says.
    pub(super) fn of(buffer: &'a Buffer) -> Self {
        match buffer.dtype() {
            DType::BF16 => MatrixRef::of(buffer, buffer.storage::<bf16>()).into(),
            _ => MatrixRef::of(buffer, buffer.storage::<f32>()).into(),
        }
    }
}

/// A writable matrix of row-major rows, `row_stride` apart.
pub(super) struct View<'a> {
    pub(super) values: &'a mut [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
}

impl<'a> View<'a> {
    /// A dense matrix.
    pub(super) fn rows(values: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self { values, rows, cols, row_stride: cols }
    }
}

/// destination (+)= a b, of types as in [`product()`].
pub(super) fn accumulate<'a>(
    destination: &mut View<'_>,
    a: impl Into<Operand<'a>>,
    b: impl Into<Operand<'a>>,
    mode: Accumulate,
    parallelism: gemm::Parallelism,
) {
    let (m, n, stride) = (destination.rows, destination.cols, destination.row_stride);
    let (a, b) = (a.into(), b.into());
    assert_eq!(
        (a.sizes().map(|[rows, _]| rows), b.sizes().map(|[_, cols]| cols)),
        (Some(m), Some(n)),
        "shapes of a product"
    );
    assert!(
        m == 0 || n == 0 || (n <= stride && (m - 1) * stride + n <= destination.values.len()),
        "a destination inside its slice"
    );
    // SAFETY: the destination was just measured, and is borrowed for it.
    #[allow(unsafe_code)]
    unsafe {
        multiply(destination.values.as_mut_ptr(), stride, &a, &b, mode, parallelism);
    }
}

/// destination (+)= a b.
///
/// # Safety
/// The caller owns a.rows rows of b.cols values, `stride` apart; they are read only where `mode` adds to them.
#[allow(unsafe_code)]
unsafe fn multiply(
    destination: *mut f32,
    stride: usize,
    a: &Operand<'_>,
    b: &Operand<'_>,
    mode: Accumulate,
    parallelism: gemm::Parallelism,
) {
    // SAFETY: the caller's.
    unsafe {
        match (a, b) {
            (Operand::F32(a), Operand::F32(b)) => multiply_f32(destination, stride, a, b, mode, parallelism),
            _ => multiply_bf16(destination, stride, a, b, mode, parallelism),
        }
    }
}

/// destination (+)= a b.
///
/// # Safety
/// As [`multiply`].
#[allow(unsafe_code)]
pub(super) unsafe fn multiply_f32(
    destination: *mut f32,
    stride: usize,
    a: &MatrixRef<'_>,
    b: &MatrixRef<'_>,
    mode: Accumulate,
    parallelism: gemm::Parallelism,
) {
    assert!(a.cols == b.rows && a.fits() && b.fits(), "operands of a product");
    // `gemm` gives its threads columns: of a narrow product, those of the transpose.
    let ((left, right), (row_stride, col_stride)) = match b.cols < a.rows {
        true => ((b.transposed(), a.transposed()), (1, stride)),
        false => ((*a, *b), (stride, 1)),
    };
    // SAFETY: `fits` keeps every element that `gemm` reads inside the two slices; the destination is
    // the caller's own, so it overlaps neither, and it is read only when `mode` adds to what is there.
    unsafe {
        gemm::gemm(
            left.rows,
            right.cols,
            left.cols,
            destination,
            col_stride as isize,
            row_stride as isize,
            mode == Accumulate::Add,
            left.values.as_ptr(),
            left.col_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.col_stride as isize,
            right.row_stride as isize,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            parallelism,
        );
    }
}
