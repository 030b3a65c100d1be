//! Matrix products, and the one call into `gemm` that the CPU paths share.
//!
//! burn's own product on the CPU first clears its output and copies it to a stricter alignment,
//! which costs as much as a tenth of a small model's time.

use burn::backend::Flex;
use burn::tensor::Tensor;

use super::cpu::{Buffer, contiguous, is_cpu, tensor, values_mut, wrap, writable};
use super::precision::{reduced, round, widen};

/// a b.
///
/// a [m, k], b [k, n] -> [m, n]; `a` and `b` may be views such as a transpose.
pub fn product(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    if !is_cpu(&a.device()) {
        return a.matmul(b);
    }
    if let Some(dtype) = reduced(&a) {
        return round(product(widen(a), widen(b)), dtype);
    }
    let ([m, k], [inner, n]) = (a.dims(), b.dims());
    assert_eq!(k, inner, "a b of [m, k], [k, n]");
    let (a, b) = (strided(a), strided(b));
    let mut values: Vec<f32> = Vec::with_capacity(m * n);
    multiply(values.as_mut_ptr(), n, &MatrixRef::of(&a), &MatrixRef::of(&b), Accumulate::Replace, threads(m, n, k));
    // SAFETY: m n values were reserved, and the product wrote every one of them.
    #[allow(unsafe_code)]
    unsafe {
        values.set_len(m * n);
    }
    tensor(values, [m, n])
}

/// c + a b, written into c's own memory where nobody else holds it.
///
/// c [m, n], a [m, k], b [k, n] -> [m, n]; `a` and `b` may be views such as a transpose.
pub fn add_product(c: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    if !is_cpu(&c.device()) || reduced(&c).is_some() {
        return c + product(a, b);
    }
    let ([m, n], [rows, k], [inner, cols]) = (c.dims(), a.dims(), b.dims());
    assert_eq!((m, k, n), (rows, inner, cols), "c + a b of [m, n], [m, k], [k, n]");
    let (a, b) = (strided(a), strided(b));
    let mut buffer = writable(c);
    let mut view = View::rows(values_mut(&mut buffer), m, n);
    accumulate(&mut view, &MatrixRef::of(&a), &MatrixRef::of(&b), Accumulate::Add, threads(m, n, k));
    wrap(buffer)
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
pub(super) struct MatrixRef<'a> {
    pub(super) values: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a> MatrixRef<'a> {
    /// A matrix whose rows of `cols` values lie `row_stride` apart.
    pub(super) fn rows(values: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { values, rows, cols, row_stride, col_stride: 1 }
    }

    /// The whole of a CPU tensor, as its layout says.
    fn of(buffer: &'a Buffer) -> Self {
        let (shape, strides) = (buffer.layout().shape(), buffer.layout().strides());
        Self {
            values: &buffer.storage::<f32>()[buffer.layout().start_offset()..],
            rows: shape[0],
            cols: shape[1],
            row_stride: strides[0] as usize,
            col_stride: strides[1] as usize,
        }
    }

    /// The same values read the other way round.
    pub(super) fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    fn fits(&self) -> bool {
        self.rows == 0
            || self.cols == 0
            || (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride < self.values.len()
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

/// destination (+)= a b.
pub(super) fn accumulate(
    destination: &mut View<'_>,
    a: &MatrixRef<'_>,
    b: &MatrixRef<'_>,
    mode: Accumulate,
    parallelism: gemm::Parallelism,
) {
    let (m, n, stride) = (destination.rows, destination.cols, destination.row_stride);
    assert_eq!((a.rows, b.cols), (m, n), "shapes of a product");
    assert!(
        m == 0 || n == 0 || (n <= stride && (m - 1) * stride + n <= destination.values.len()),
        "a destination inside its slice"
    );
    multiply(destination.values.as_mut_ptr(), stride, a, b, mode, parallelism);
}

/// destination (+)= a b; the caller owns a.rows rows of b.cols values, `stride` apart.
fn multiply(
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
    // the caller's own memory (a mutable borrow or a fresh vector), so it overlaps neither, and it is
    // read only when `mode` adds to what is there.
    #[allow(unsafe_code)]
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
