//! Exact best low-rank approximation.

use anyhow::{Result, ensure};
use faer::{Accum, Mat, Par, linalg::matmul::matmul};

use crate::eigen::symmetric_eigen;

/// The best rank-`rank` approximation of a matrix P, as two factors: P ~ left right^T.
///
/// matrix [rows, cols] row-major -> (left [rows, r], right [cols, r]) row-major, where
/// `r = min(rank, rows, cols)`, strongest direction first.
///
/// With V the top eigenvectors of the smaller Gram matrix: if cols <= rows, P^T P = V diag V^T,
/// left = P V, right = V; otherwise P P^T = U diag U^T, left = U, right = P^T U. Projecting on an
/// orthonormal basis needs no division by singular values, so a rank-deficient P is no special
/// case, and at full rank V V^T = I makes the product exact.
pub fn truncated_svd(matrix: &[f32], rows: usize, cols: usize, rank: usize) -> Result<(Vec<f32>, Vec<f32>)> {
    ensure!(
        matrix.len() == rows * cols,
        "a singular value decomposition of [{rows}, {cols}] got {} values",
        matrix.len()
    );
    let p = Mat::from_fn(rows, cols, |i, j| f64::from(matrix[i * cols + j]));
    let side = rows.min(cols);
    let r = rank.min(side);
    let par = Par::rayon(0);

    let mut gram = Mat::<f64>::zeros(side, side);
    if cols <= rows {
        matmul(&mut gram, Accum::Replace, p.transpose(), &p, 1.0, par);
    } else {
        matmul(&mut gram, Accum::Replace, &p, p.transpose(), 1.0, par);
    }
    let (_, vectors) = symmetric_eigen(&row_major(&gram), side)?;
    let basis = Mat::from_fn(side, r, |i, k| vectors[i * side + side - 1 - k]);

    let mut projected = Mat::<f64>::zeros(rows.max(cols), r);
    let product = if cols <= rows { p.as_ref() } else { p.transpose() };
    matmul(&mut projected, Accum::Replace, product, &basis, 1.0, par);

    let (left, right) = if cols <= rows { (projected, basis) } else { (basis, projected) };
    let narrow = |m: &Mat<f64>| row_major(m).into_iter().map(|x| x as f32).collect();
    Ok((narrow(&left), narrow(&right)))
}

fn row_major(m: &Mat<f64>) -> Vec<f64> {
    (0..m.nrows()).flat_map(|i| (0..m.ncols()).map(move |j| m[(i, j)])).collect()
}
