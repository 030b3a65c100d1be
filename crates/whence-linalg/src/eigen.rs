//! Eigendecomposition of symmetric matrices in float64.

use anyhow::{Result, bail, ensure};
use faer::{Mat, Side};

/// C = Q diag(values) Q^T of `(matrix + matrix^T) / 2`.
///
/// matrix `[n, n]` row-major -> (values `[n]` ascending, vectors `[n, n]` row-major with the
/// eigenvectors as columns).
pub fn symmetric_eigen(matrix: &[f64], n: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    ensure!(
        matrix.len() == n * n,
        "an eigendecomposition of size {n} got {} values instead of {}",
        matrix.len(),
        n * n
    );
    if let Some(index) = matrix.iter().position(|value| !value.is_finite()) {
        bail!("the matrix of an eigendecomposition holds {} at row {}, column {}", matrix[index], index / n, index % n);
    }
    let symmetric = Mat::from_fn(n, n, |i, j| 0.5 * (matrix[i * n + j] + matrix[j * n + i]));
    let Ok(eigen) = symmetric.self_adjoint_eigen(Side::Lower) else {
        bail!("the eigensolver did not converge on a matrix of size {n}");
    };
    let (values, vectors) = (eigen.S(), eigen.U());
    let mut rows = vec![0.0; n * n];
    for j in 0..n {
        for i in 0..n {
            rows[i * n + j] = vectors[(i, j)];
        }
    }
    Ok(((0..n).map(|i| values[i]).collect(), rows))
}
