//! Best low-rank approximation.

use anyhow::{Result, ensure};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, ColMut, Mat, MatRef, Par, Scale};

use crate::eigen::{Threads, decompose, times};
use crate::random::uniform;

/// Vectors that the Krylov space grows by at once: the fewer, the smaller it ends; more are multiplied at a better rate.
const BLOCK: usize = 8;
/// A singular pair's residual over the largest singular value: what float32 leaves of P itself. Of real gradients the
/// residual stays above 1e-8 whatever the space.
const TOLERANCE: f64 = 1e-7;
/// Length of a vector over what it was before the space was taken out of it, from which on it is rounding.
const ROUNDING: f32 = 1e-5;

/// The best rank-`rank` approximation of a matrix P, as two factors: P ~ left right^T.
///
/// matrix [rows, cols] row-major -> (left [rows, r], right [cols, r]) row-major, where
/// `r = min(rank, rows, cols)`, strongest direction first.
///
/// With V the right singular vectors of the higher of P and P^T: if cols <= rows, left = P V, right = V; otherwise
/// left = V, right = P^T V. Projecting on an orthonormal basis needs no division by singular values, so a rank-deficient P
/// is no special case, and at full rank V V^T = I makes the product exact.
///
/// A few directions are found in a Krylov space, in float32 and to its precision; nearly all of them, or few that are hard
/// to tell from the rest, by decomposing the smaller Gram matrix in float64.
///
/// # Errors
/// Values that are not finite; an eigensolver that does not converge.
pub fn truncated_svd(
    matrix: &[f32],
    rows: usize,
    cols: usize,
    rank: usize,
    threads: Threads,
) -> Result<(Vec<f32>, Vec<f32>)> {
    ensure!(
        matrix.len() == rows * cols,
        "a singular value decomposition of [{rows}, {cols}] got {} values",
        matrix.len()
    );
    ensure!(matrix.iter().all(|value| value.is_finite()), "a matrix to be truncated holds a value that is not finite");
    let p = MatRef::from_row_major_slice(matrix, rows, cols);
    let tall = if cols <= rows { p } else { p.transpose() };
    let (rank, par) = (rank.min(tall.ncols()), threads.par());
    let (image, basis) = match in_krylov_space(tall, rank, par)? {
        Some(found) => found,
        None => by_gram_matrix(tall, rank, par)?,
    };
    let (image, basis) = (row_major(image.as_ref()), row_major(basis.as_ref()));
    Ok(if cols <= rows { (image, basis) } else { (basis, image) })
}

/// (P V, V) of the first `rank` right singular vectors V, from P^T P = V diag V^T; P is no wider than high.
fn by_gram_matrix(p: MatRef<'_, f32>, rank: usize, par: Par) -> Result<(Mat<f32>, Mat<f32>)> {
    let n = p.ncols();
    let p = Mat::from_fn(p.nrows(), n, |i, j| f64::from(p[(i, j)]));
    let (_, vectors) = decompose(gram(p.as_ref(), par).as_ref(), par)?;
    let v = Mat::from_fn(n, rank, |i, k| vectors[(i, n - 1 - k)]);
    let narrow = |x: Mat<f64>| Mat::from_fn(x.nrows(), rank, |i, k| x[(i, k)] as f32);
    Ok((narrow(times(p.as_ref(), v.as_ref(), par)), narrow(v)))
}

/// The same from the space of V_0, (P^T P) V_0, (P^T P)^2 V_0, … (block Lanczos, Golub and Kahan's two-sided form with
/// full orthogonalisation): V_j orthonormal, W_j = P V_j, V_(j+1) from P^T W_j. The space's own singular vectors are those
/// of W = P V; the residual of one with coefficients y is what P^T W_j y_j has outside the space, W_j the last.
///
/// None where the space would have to be half of everything, or squares of P leave float32's range.
fn in_krylov_space(p: MatRef<'_, f32>, rank: usize, par: Par) -> Result<Option<(Mat<f32>, Mat<f32>)>> {
    let (m, n) = (p.nrows(), p.ncols());
    // Blocks until it is worth a look.
    let mut wait = (4 * rank).div_ceil(BLOCK);
    let largest = p.norm_max();
    if wait * BLOCK > n / 2 || !(1e-15..1e15).contains(&largest) {
        return Ok(None);
    }
    let (mut v, mut w) = (Mat::<f32>::zeros(n, n / 2), Mat::<f32>::zeros(m, n / 2));
    let start = Mat::from_fn(m, BLOCK, |i, j| uniform(0, j as u64, i as u64) as f32 - 0.5);
    let mut next = times(p.transpose(), start.as_ref(), par);
    let mut size = 0;
    while size + BLOCK <= n / 2 {
        let block = orthonormal(next, v.subcols(0, size), par);
        let image = times(p, block.as_ref(), par);
        next = times(p.transpose(), image.as_ref(), par);
        v.subcols_mut(size, BLOCK).copy_from(block);
        w.subcols_mut(size, BLOCK).copy_from(image);
        size += BLOCK;
        wait -= 1;
        if wait == 0 {
            let (v, w) = (v.subcols(0, size), w.subcols(0, size));
            let (y, residual) = singular_vectors(w, outside(&next, v, par), rank, par)?;
            if residual <= TOLERANCE {
                return Ok(Some((times(w, y.as_ref(), par), times(v, y.as_ref(), par))));
            }
            // A block is worth a digit, or more.
            wait = (residual / TOLERANCE).log10().ceil() as usize;
        }
    }
    Ok(None)
}

/// The first `rank` right singular vectors of W, and the largest of their residuals, each over its singular value and the
/// first; `rest` is what P^T W_j has outside the space.
fn singular_vectors(w: MatRef<'_, f32>, rest: Mat<f32>, rank: usize, par: Par) -> Result<(Mat<f32>, f64)> {
    let size = w.ncols();
    let w = Mat::from_fn(w.nrows(), size, |i, j| f64::from(w[(i, j)]));
    let (squares, vectors) = decompose(gram(w.as_ref(), par).as_ref(), par)?;
    let y = Mat::from_fn(size, rank, |i, k| vectors[(i, size - 1 - k)] as f32);
    let rest = times(rest.as_ref(), y.subrows(size - BLOCK, BLOCK), par);
    let sigma = |k: usize| squares[size - 1 - k].max(f64::MIN_POSITIVE).sqrt();
    // What is smaller than rounding is as good as found.
    let scale = |k: usize| sigma(0) * sigma(k).max(1e-7 * sigma(0));
    let residual = (0..rank).map(|k| f64::from(rest.col(k).norm_l2()) / scale(k)).fold(0.0, f64::max);
    Ok((y, residual))
}

/// z without its part in the space of v.
fn outside(z: &Mat<f32>, v: MatRef<'_, f32>, par: Par) -> Mat<f32> {
    let inside = times(v.transpose(), z.as_ref(), par);
    let mut rest = z.clone();
    matmul(&mut rest, Accum::Add, v, inside.as_ref(), -1.0, par);
    rest
}

/// An orthonormal basis of what the columns of z have outside the space of v, filled up with other directions where they
/// have too little. Each is orthogonalised twice, which is enough.
fn orthonormal(z: Mat<f32>, v: MatRef<'_, f32>, par: Par) -> Mat<f32> {
    let least: Vec<f32> = (0..z.ncols()).map(|j| ROUNDING * z.col(j).norm_l2()).collect();
    let once = gram_schmidt(outside(&z, v, par), &least, v.ncols());
    gram_schmidt(outside(&once, v, par), &[ROUNDING; BLOCK], v.ncols())
}

/// An orthonormal basis of the columns, in their order; one that is no longer than `least` without those before it is
/// made up.
fn gram_schmidt(mut q: Mat<f32>, least: &[f32], seed: usize) -> Mat<f32> {
    for (j, least) in least.iter().enumerate() {
        let (before, own) = q.as_mut().split_at_col_mut(j);
        let (before, mut own) = (before.as_ref(), own.col_mut(0));
        take_out(before, own.as_mut());
        if own.norm_l2() <= *least {
            let made_up = |i: usize| uniform(1, (seed + j) as u64, i as u64) as f32 - 0.5;
            own.as_mut().iter_mut().enumerate().for_each(|(i, x)| *x = made_up(i));
            take_out(before, own.as_mut());
        }
        let norm = own.norm_l2();
        own /= Scale(norm);
    }
    q
}

/// x without what it has of orthonormal columns, twice for what rounding leaves.
fn take_out(columns: MatRef<'_, f32>, mut x: ColMut<'_, f32>) {
    for _ in 0..2 {
        for column in columns.col_iter() {
            let inside = column.transpose() * x.as_ref();
            x -= Scale(inside) * column;
        }
    }
}

/// x^T x.
fn gram(x: MatRef<'_, f64>, par: Par) -> Mat<f64> {
    let n = x.ncols();
    let mut gram = Mat::zeros(n, n);
    let (lower, whole) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
    triangular::matmul(&mut gram, lower, Accum::Replace, x.transpose(), whole, x, whole, 1.0, par);
    for j in 0..n {
        for i in 0..j {
            gram[(i, j)] = gram[(j, i)];
        }
    }
    gram
}

fn row_major(m: MatRef<'_, f32>) -> Vec<f32> {
    (0..m.nrows()).flat_map(|i| (0..m.ncols()).map(move |j| m[(i, j)])).collect()
}
