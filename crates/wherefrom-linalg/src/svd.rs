//! Best low-rank approximation.

use anyhow::{Result, ensure};
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, ColMut, Mat, MatRef, Par, Scale};
use rayon::prelude::*;

use crate::eigen::{Threads, decompose, times};
use crate::kernels::{dots, multiply_out};
use crate::random::uniform;

/// Vectors that the Krylov space grows by at once: the fewer, the smaller it ends; more are multiplied at a better rate.
const BLOCK: usize = 8;
/// A singular pair's residual over the largest singular value: what float32 leaves of P itself. Of real gradients the
/// residual stays above 1e-8 whatever the space.
const TOLERANCE: f64 = 1e-7;
/// Length of a vector over what it was before the space was taken out of it, from which on it is rounding.
const ROUNDING: f32 = 1e-5;
/// Rows of a matrix that are read twice while they are in the cache.
const ROWS: usize = 64;

/// The best rank-`rank` approximation of a matrix P, as two factors: P ~ left right^T.
///
/// matrix [rows, cols] row-major -> (left [rows, r], right [cols, r]) row-major, where
/// `r = min(rank, rows, cols)`, strongest direction first.
///
/// left = P V and right = V, V the right singular vectors; or left = U and right = P^T U, U the left ones. Projecting on an
/// orthonormal basis needs no division by singular values, so a rank-deficient P is no special case, and at full rank
/// V V^T = I makes the product exact.
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
    let largest = largest(matrix);
    ensure!(largest.is_finite(), "a matrix to be truncated holds a value that is not finite");
    let (rank, par) = (rank.min(rows).min(cols), threads.par());
    // Beyond, float64 is worth its time.
    let usual = (1e-15..1e15).contains(&largest);
    let found = if usual { scaled_in_krylov_space(matrix, largest, [rows, cols], rank, par)? } else { None };
    let (left, right) = match found {
        Some(found) => found,
        None if cols <= rows => by_gram_matrix(MatRef::from_row_major_slice(matrix, rows, cols), rank, par)?,
        None => {
            let (right, left) = by_gram_matrix(MatRef::from_column_major_slice(matrix, cols, rows), rank, par)?;
            (left, right)
        }
    };
    Ok((row_major(left.as_ref()), row_major(right.as_ref())))
}

/// [`in_krylov_space`] of the matrix over a power of two that brings its largest magnitude near 1: in float32 the squares of
/// squares of what is below 1e-10 are zero. Most matrices are taken as they are.
fn scaled_in_krylov_space(
    matrix: &[f32],
    largest: f32,
    [rows, cols]: [usize; 2],
    rank: usize,
    par: Par,
) -> Result<Option<(Mat<f32>, Mat<f32>)>> {
    if (1e-3..1e3).contains(&largest) {
        return in_krylov_space(matrix, rows, cols, rank, par);
    }
    let power = largest.log2().floor().exp2();
    let scaled: Vec<f32> = matrix.iter().map(|value| value / power).collect();
    let found = in_krylov_space(&scaled, rows, cols, rank, par)?;
    Ok(found.map(|(left, right)| (Scale(power) * left, right)))
}

/// The largest magnitude; NaN where there is one. Bits without the sign are in the order of what they stand for.
fn largest(values: &[f32]) -> f32 {
    f32::from_bits(values.iter().fold(0, |largest, value| largest.max(value.abs().to_bits())))
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
/// None where the space would have to be half of everything.
fn in_krylov_space(p: &[f32], m: usize, n: usize, rank: usize, par: Par) -> Result<Option<(Mat<f32>, Mat<f32>)>> {
    let most = m.min(n) / 2;
    // Blocks until it is worth a look.
    let mut wait = (4 * rank).div_ceil(BLOCK);
    if wait * BLOCK > most {
        return Ok(None);
    }
    // A vector after the other.
    let (mut v, mut w) = (Vec::with_capacity(most * n), Vec::with_capacity(most * m));
    let start = Mat::from_fn(n, BLOCK, |i, j| uniform(0, j as u64, i as u64) as f32 - 0.5);
    let (_, mut next) = there_and_back(p, n, &start, par);
    let mut size = 0;
    while size + BLOCK <= most {
        let block = orthonormal(next, &v, par);
        let image;
        (image, next) = there_and_back(p, n, &block, par);
        block.col_iter().for_each(|vector| v.extend(vector.iter()));
        image.col_iter().for_each(|vector| w.extend(vector.iter()));
        size += BLOCK;
        wait -= 1;
        if wait == 0 {
            let (y, residual) = singular_vectors(&w, m, outside(&next, &v, par), rank, par)?;
            if residual <= TOLERANCE {
                let of = |space, rows| times(MatRef::from_column_major_slice(space, rows, size), y.as_ref(), par);
                return Ok(Some((of(&w, m), of(&v, n))));
            }
            // A block is worth half a digit, or more; another look costs as much as six of them. The last is not left out.
            wait = (2.0 * (residual / TOLERANCE).log10()).ceil() as usize;
            wait = wait.min(((most - size) / BLOCK).max(1));
        }
    }
    Ok(None)
}

/// (P X, P^T P X), P [m, n] row-major and X [n, BLOCK], in one pass over P.
fn there_and_back(p: &[f32], n: usize, x: &Mat<f32>, par: Par) -> (Mat<f32>, Mat<f32>) {
    let columns: Vec<&[f32]> = (0..BLOCK).map(|j| x.col_as_slice(j)).collect();
    // P X [rows, BLOCK] transposed, and what these rows add to P^T P X, transposed too.
    let some = |p: &[f32]| {
        let rows = p.len() / n;
        let (mut image, mut back) = (vec![0.0; BLOCK * rows], vec![0.0; BLOCK * n]);
        dots(rows, |i| &p[i * n..(i + 1) * n], &columns, |i, j, dot| image[j * rows + i] = dot);
        multiply_out(&image, (p, n), rows, &mut back, n);
        (image, back)
    };
    let parts: Vec<_> = match par {
        Par::Seq => p.chunks(ROWS * n).map(some).collect(),
        Par::Rayon(_) => p.par_chunks(ROWS * n).map(some).collect(),
    };
    let (mut there, mut back) = (Mat::zeros(p.len() / n, BLOCK), Mat::<f32>::zeros(n, BLOCK));
    for (part, (image, added)) in parts.iter().enumerate() {
        let rows = image.len() / BLOCK;
        for j in 0..BLOCK {
            let into = &mut there.col_as_slice_mut(j)[part * ROWS..][..rows];
            into.copy_from_slice(&image[j * rows..][..rows]);
            let added = &added[j * n..][..n];
            back.col_as_slice_mut(j).iter_mut().zip(added).for_each(|(sum, added)| *sum += added);
        }
    }
    (there, back)
}

/// The first `rank` right singular vectors of W, and the largest of their residuals, each over its singular value and the
/// first; `rest` is what P^T W_j has outside the space.
fn singular_vectors(w: &[f32], m: usize, rest: Mat<f32>, rank: usize, par: Par) -> Result<(Mat<f32>, f64)> {
    let (size, w) = (w.len() / m, w.iter().copied().map(f64::from).collect::<Vec<_>>());
    let w = MatRef::from_column_major_slice(&w, m, size);
    let (squares, vectors) = decompose(gram(w, par).as_ref(), par)?;
    let y = Mat::from_fn(size, rank, |i, k| vectors[(i, size - 1 - k)] as f32);
    let rest = times(rest.as_ref(), y.subrows(size - BLOCK, BLOCK), par);
    let sigma = |k: usize| squares[size - 1 - k].max(f64::MIN_POSITIVE).sqrt();
    // What is smaller than rounding is as good as found.
    let scale = |k: usize| sigma(0) * sigma(k).max(1e-7 * sigma(0));
    let residual = (0..rank).map(|k| f64::from(rest.col(k).norm_l2()) / scale(k)).fold(0.0, f64::max);
    Ok((y, residual))
}

/// z without its part in the space of the vectors v, which are orthonormal.
fn outside(z: &Mat<f32>, v: &[f32], par: Par) -> Mat<f32> {
    if v.is_empty() {
        return z.clone();
    }
    z - there_and_back(v, z.nrows(), z, par).1
}

/// An orthonormal basis of what the columns of z have outside the space of v, filled up with other directions where they
/// have too little. Each is orthogonalised twice, which is enough.
fn orthonormal(z: Mat<f32>, v: &[f32], par: Par) -> Mat<f32> {
    let (least, seed): (Vec<f32>, _) = (z.col_iter().map(|z| ROUNDING * z.norm_l2()).collect(), v.len() / z.nrows());
    let once = gram_schmidt(outside(&z, v, par), &least, seed);
    gram_schmidt(outside(&once, v, par), &[ROUNDING; BLOCK], seed)
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
    let mut values = vec![0.0; m.nrows() * m.ncols()];
    for (j, column) in m.col_iter().enumerate() {
        values[j..].iter_mut().step_by(m.ncols()).zip(column.iter()).for_each(|(value, x)| *value = *x);
    }
    values
}
