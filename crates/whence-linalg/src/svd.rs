//! Best low-rank approximation.

use anyhow::{Result, ensure};
use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::{Accum, Mat, MatRef};

use crate::eigen::{Threads, largest, times};

/// The best rank-`rank` approximation of a matrix P, as two factors: P ~ left right^T.
///
/// matrix [rows, cols] row-major -> (left [rows, r], right [cols, r]) row-major, where
/// `r = min(rank, rows, cols)`, strongest direction first.
///
/// With V the top eigenvectors of the smaller Gram matrix: if cols <= rows, P^T P = V diag V^T,
/// left = P V, right = V; otherwise P P^T = U diag U^T, left = U, right = P^T U. Projecting on an
/// orthonormal basis needs no division by singular values, so a rank-deficient P is no special
/// case, and at full rank V V^T = I makes the product exact.
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
    // The higher of P and P^T, column by column.
    let (tall, side) = match cols <= rows {
        true => (Mat::from_fn(rows, cols, |i, j| f64::from(matrix[i * cols + j])), cols),
        false => (Mat::from_fn(cols, rows, |i, j| f64::from(matrix[j * cols + i])), rows),
    };
    let (r, par) = (rank.min(side), threads.par());
    let mut gram = Mat::<f64>::zeros(side, side);
    matmul(
        &mut gram,
        BlockStructure::TriangularLower,
        Accum::Replace,
        tall.transpose(),
        BlockStructure::Rectangular,
        &tall,
        BlockStructure::Rectangular,
        1.0,
        par,
    );
    for j in 0..side {
        for i in 0..j {
            gram[(i, j)] = gram[(j, i)];
        }
    }
    let basis = largest(gram.as_ref(), r, par)?;
    let projected = times(tall.as_ref(), basis.as_ref(), par);
    let (projected, basis) = (row_major(projected.as_ref()), row_major(basis.as_ref()));
    Ok(if cols <= rows { (projected, basis) } else { (basis, projected) })
}

fn row_major(m: MatRef<'_, f64>) -> Vec<f32> {
    (0..m.nrows()).flat_map(|i| (0..m.ncols()).map(move |j| m[(i, j)] as f32)).collect()
}
