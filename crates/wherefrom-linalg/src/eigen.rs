//! Eigendecomposition of symmetric matrices in float64.
//!
//! `faer` 0.24 divides and conquers, and of some matrices leaves vectors that are a few 1e-4 off: C Q - Q diag(values)
//! is then ten orders above rounding. So its answer is checked, and refined where it has to be.

use anyhow::{Result, bail, ensure};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::matmul::matmul;
use faer::traits::ComplexField;
use faer::{Accum, Mat, MatRef, Par};

/// Residual of an eigenvector, over the norm of the matrix, from which on it is refined.
const RESIDUAL: f64 = 1e-11;
/// An element of Q^T Q - I from which on Q is made orthonormal.
const DEFECT: f64 = 1e-12;
/// Residual, or element of Q^T Q - I, with which eigenvectors are none.
const WRONG: f64 = 1e-9;
/// Coupling of two eigenvectors, over the norm of the matrix, that is left alone.
const COUPLING: f64 = 1e-13;
/// Largest tangent of an angle that one step turns by: many at once must stay near a rotation.
const TANGENT: f64 = 0.1;
/// The error is squared with each.
const STEPS: usize = 4;
/// Element beside the diagonal, over the norm of the matrix, that Jacobi's method leaves alone.
const TURNED: f64 = 3e-24;
/// Times that every element is made zero; some ten do.
const SWEEPS: usize = 30;

/// C = Q diag(values) Q^T of `(matrix + matrix^T) / 2`, with one thread or all of them.
///
/// matrix `[n, n]` row-major -> (values `[n]` ascending, vectors `[n, n]` row-major with the
/// eigenvectors as columns).
///
/// # Errors
/// Values that are not finite, by place; a solver that does not converge, or leaves an eigenvector that is none.
pub fn symmetric_eigen(matrix: &[f64], n: usize, threads: Threads) -> Result<(Vec<f64>, Vec<f64>)> {
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
    let (values, vectors) = decompose(symmetric.as_ref(), threads.par())?;
    let mut rows = vec![0.0; n * n];
    for j in 0..n {
        for i in 0..n {
            rows[i * n + j] = vectors[(i, j)];
        }
    }
    Ok((values, rows))
}

/// How many threads one decomposition has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The caller's: others decompose other matrices.
    One,
    /// All of them.
    All,
}

impl Threads {
    pub(crate) fn par(self) -> Par {
        match self {
            Self::One => Par::Seq,
            Self::All => Par::rayon(0),
        }
    }
}

/// Values ascending, and vectors as columns, of a symmetric matrix.
pub(crate) fn decompose(matrix: MatRef<'_, f64>, par: Par) -> Result<(Vec<f64>, Mat<f64>)> {
    // By a power of two, which rounds nothing: faer takes what is small for zero, and fails where all is.
    let largest = matrix.norm_max().max(f64::MIN_POSITIVE);
    let power = 2_f64.powi((largest.log2() as i32).clamp(-1000, 1000));
    let scaled = Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)] / power);
    let (mut values, vectors) = decompose_scaled(scaled.as_ref(), par)?;
    values.iter_mut().for_each(|value| *value *= power);
    Ok((values, vectors))
}

/// The same, of a matrix whose largest element is near 1.
fn decompose_scaled(matrix: MatRef<'_, f64>, par: Par) -> Result<(Vec<f64>, Mat<f64>)> {
    let n = matrix.nrows();
    let solved = solved(matrix, par).map(|found| found.improved(matrix, par));
    // faer leaves some matrices of few directions with vectors that no refinement mends.
    let (found, defect) = solved
        .filter(|(found, defect)| found.is_good(*defect))
        .unwrap_or_else(|| jacobi(matrix, par).improved(matrix, par));
    let residual = found.residual / found.norm().max(f64::MIN_POSITIVE);
    ensure!(
        found.is_good(defect),
        "the eigenvectors of a matrix of size {n} did not converge: residual {residual:.0e} of its norm, off orthonormal \
         by {defect:.0e}"
    );
    Ok((found.values, found.vectors))
}

/// As faer has it, if it converges.
fn solved(matrix: MatRef<'_, f64>, par: Par) -> Option<Found> {
    let n = matrix.nrows();
    let (mut vectors, mut values) = (Mat::zeros(n, n), Diag::zeros(n));
    let scratch = self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, par, Default::default());
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    self_adjoint_evd(matrix, values.as_mut(), Some(vectors.as_mut()), par, stack, Default::default()).ok()?;
    drop(memory);
    let image = times(matrix, vectors.as_ref(), par);
    Some(Found::new((0..n).map(|i| values[i]).collect(), vectors, image))
}

/// By plane rotations, each of which makes one element zero (Jacobi's cyclic method): slow (two seconds of 576 rows, minutes
/// of 2,048), and sure.
fn jacobi(matrix: MatRef<'_, f64>, par: Par) -> Found {
    let n = matrix.nrows();
    let (mut c, mut q) = (matrix.to_owned(), Mat::<f64>::identity(n, n));
    let small = TURNED * matrix.norm_l2();
    for _ in 0..SWEEPS {
        let mut turned = false;
        for j in 1..n {
            for i in 0..j {
                if c[(i, j)].abs() <= small {
                    continue;
                }
                turned = true;
                let cot = (c[(j, j)] - c[(i, i)]) / (2.0 * c[(i, j)]);
                let tan = cot.signum() / (cot.abs() + cot.hypot(1.0));
                let cos = 1.0 / tan.hypot(1.0);
                let sin = cos * tan;
                let turn = |m: &mut Mat<f64>| {
                    for k in 0..n {
                        let (x, y) = (m[(k, i)], m[(k, j)]);
                        (m[(k, i)], m[(k, j)]) = (cos * x - sin * y, sin * x + cos * y);
                    }
                };
                turn(&mut c);
                turn(&mut q);
                for k in 0..n {
                    let (x, y) = (c[(i, k)], c[(j, k)]);
                    (c[(i, k)], c[(j, k)]) = (cos * x - sin * y, sin * x + cos * y);
                }
            }
        }
        if !turned {
            break;
        }
    }
    Found::of(q, matrix, par)
}

/// Nearly an eigendecomposition of C.
struct Found {
    values: Vec<f64>,
    vectors: Mat<f64>,
    /// C Q.
    image: Mat<f64>,
    /// The largest norm of a column of C Q - Q diag(values).
    residual: f64,
}

impl Found {
    fn new(values: Vec<f64>, vectors: Mat<f64>, image: Mat<f64>) -> Self {
        let n = values.len();
        let residual = |j: usize| {
            let squares = (0..n).map(|i| (image[(i, j)] - values[j] * vectors[(i, j)]).powi(2));
            let norm = squares.sum::<f64>().sqrt();
            if norm.is_finite() { norm } else { f64::INFINITY }
        };
        let residual = (0..n).map(residual).fold(0.0, f64::max);
        Self { values, vectors, image, residual }
    }

    /// Orthonormal, and refined where that helps; with what its vectors are off orthonormal.
    fn improved(self, matrix: MatRef<'_, f64>, par: Par) -> (Self, f64) {
        let (mut found, mut defect) = self.orthonormal(matrix, par);
        let mut refined = false;
        for _ in 0..STEPS {
            if found.residual <= RESIDUAL * found.norm() {
                break;
            }
            let next = found.refined(matrix, par);
            if next.residual >= found.residual {
                break;
            }
            (found, refined) = (next, true);
        }
        if refined {
            defect = found.off_orthonormal(par).1;
        }
        (found, defect)
    }

    /// A matrix of zeros has neither norm nor residual.
    fn is_good(&self, defect: f64) -> bool {
        defect <= WRONG && (self.residual <= WRONG * self.norm() || self.residual == 0.0)
    }

    fn norm(&self) -> f64 {
        self.values.iter().map(|value| value * value).sum::<f64>().sqrt()
    }

    /// Q^T Q, and the largest magnitude of an element of Q^T Q - I.
    fn off_orthonormal(&self, par: Par) -> (Mat<f64>, f64) {
        let (n, gram) = (self.values.len(), times(self.vectors.transpose(), self.vectors.as_ref(), par));
        let defect = |i: usize, j: usize| (gram[(i, j)] - if i == j { 1.0 } else { 0.0 }).abs();
        let largest = (0..n).flat_map(|j| (0..n).map(move |i| (i, j)));
        let largest = largest.map(|(i, j)| defect(i, j)).fold(0.0, |a: f64, b| if b > a || b.is_nan() { b } else { a });
        (gram, largest)
    }

    /// The same with orthonormal vectors, and what they are still off. faer leaves some of the null space too short, which
    /// their residual cannot show.
    fn orthonormal(mut self, matrix: MatRef<'_, f64>, par: Par) -> (Self, f64) {
        let (mut gram, mut defect) = self.off_orthonormal(par);
        if defect <= DEFECT || defect.is_nan() {
            return (self, defect);
        }
        for _ in 0..2 * STEPS {
            self.vectors = nearer_orthonormal(&self.vectors, &gram, par);
            (gram, defect) = self.off_orthonormal(par);
            if defect <= DEFECT || defect.is_nan() {
                break;
            }
        }
        (Self::of(self.vectors, matrix, par), defect)
    }

    /// Of orthonormal vectors: values by Rayleigh's quotient, in order.
    fn of(vectors: Mat<f64>, matrix: MatRef<'_, f64>, par: Par) -> Self {
        let n = vectors.ncols();
        let image = times(matrix, vectors.as_ref(), par);
        let value = |j: usize| {
            let (own, square): (f64, f64) = (0..n).fold((0.0, 0.0), |(own, square), i| {
                (own + vectors[(i, j)] * image[(i, j)], square + vectors[(i, j)].powi(2))
            });
            own / square
        };
        let mut order: Vec<(f64, usize)> = (0..n).map(|j| (value(j), j)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        let sorted = |columns: &Mat<f64>| Mat::from_fn(n, n, |i, j| columns[(i, order[j].1)]);
        Self::new(order.iter().map(|(value, _)| *value).collect(), sorted(&vectors), sorted(&image))
    }

    /// One step nearer.
    ///
    /// With H = Q^T C Q, diagonal but for small h_ij: Q <- Q Z, where Z is the rotation next to I + X and
    /// x_ij = h_ij / (h_jj - h_ii), or the tangent of Jacobi's rotation where the two are close (the idea is Ogita and
    /// Aishima's, 2018).
    fn refined(&self, matrix: MatRef<'_, f64>, par: Par) -> Self {
        let (n, norm) = (self.values.len(), self.norm());
        let h = times(self.vectors.transpose(), self.image.as_ref(), par);
        let mut z = Mat::from_fn(n, n, |i, j| {
            let (coupling, gap) = (0.5 * (h[(i, j)] + h[(j, i)]), h[(j, j)] - h[(i, i)]);
            match i == j {
                true => 1.0,
                false if coupling.abs() <= COUPLING * norm => 0.0,
                false => {
                    let sign = if gap == 0.0 { j as f64 - i as f64 } else { gap };
                    (2.0 * coupling / (gap + gap.hypot(2.0 * coupling).copysign(sign))).clamp(-TANGENT, TANGENT)
                }
            }
        });
        for _ in 0..3 {
            let gram = times(z.transpose(), z.as_ref(), par);
            z = nearer_orthonormal(&z, &gram, par);
        }
        Self::of(times(self.vectors.as_ref(), z.as_ref(), par), matrix, par)
    }
}

/// A step of Newton and Schulz, given Q^T Q: Q (3 I - Q^T Q) / 2.
fn nearer_orthonormal(q: &Mat<f64>, gram: &Mat<f64>, par: Par) -> Mat<f64> {
    let n = gram.nrows();
    let step = Mat::from_fn(n, n, |i, j| 0.5 * ((if i == j { 3.0 } else { 0.0 }) - gram[(i, j)]));
    times(q.as_ref(), step.as_ref(), par)
}

pub(crate) fn times<T: ComplexField>(a: MatRef<'_, T>, b: MatRef<'_, T>, par: Par) -> Mat<T> {
    let mut product = Mat::zeros(a.nrows(), b.ncols());
    matmul(&mut product, Accum::Replace, a, b, T::one_impl(), par);
    product
}
