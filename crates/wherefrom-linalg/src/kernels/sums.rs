//! Sums in float64 of what is computed in float32: covariances and corrected eigenvalues.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::bf16::Operand;
use super::cpu::{contiguous, is_cpu, values as floats, vectorised};
use super::examples::products_of;
use super::precision::widen;
use super::product::{Accumulate, View, accumulate, product};
use super::ragged::Ragged;

/// Rows of a triangle that one task takes: fewer make products slow, more leave less of the square out.
const BAND: usize = 96;
/// Rows whose products are added in float32 one after the other; each further run is added to their sum.
const RUN: usize = 256;
/// Columns of a diagonal that one task sums.
const COLUMNS: usize = 1 << 10;
/// Numbers of a product that one task holds.
const TILE: usize = 1 << 20;

/// Which numbers a sum has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A symmetric matrix `[n, n]` by its lower triangle: (i, j), j <= i, at i (i + 1) / 2 + j.
    Symmetric(usize),
    /// A matrix `[rows, columns]`, row by row.
    Full([usize; 2]),
}

impl Form {
    /// How many numbers that is.
    pub fn len(self) -> usize {
        match self {
            Self::Symmetric(n) => n * (n + 1) / 2,
            Self::Full([rows, columns]) => rows * columns,
        }
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// A sum of matrices. On the CPU each product is added in float64 as it leaves the cache; a GPU sums in float32, compensated, until
/// [`Sum::settle`].
#[derive(Debug, Clone)]
pub struct Sum {
    form: Form,
    values: Vec<f64>,
    pending: Option<Compensated>,
}

/// A sum in float32 on a device, and what its last addition made too much of (Kahan 1965):
///
/// ```text
/// y = x - c      t = s + y      c = (t - s) - y      s = t
/// ```
///
/// After n additions it is off by 2 roundings of the sum, not by n.
#[derive(Debug, Clone)]
struct Compensated {
    sum: Tensor<2>,
    excess: Option<Tensor<2>>,
}

impl Compensated {
    /// `sum` + x, or x alone.
    fn add(sum: Option<Self>, x: Tensor<2>) -> Self {
        let Some(Self { sum, excess }) = sum else { return Self { sum: x, excess: None } };
        let y = match excess {
            Some(excess) => x - excess,
            None => x,
        };
        let total = sum.clone() + y.clone();
        Self { excess: Some(total.clone() - sum - y), sum: total }
    }
}

impl Sum {
    /// Nothing yet.
    pub fn zeros(form: Form) -> Self {
        Self { form, values: vec![0.0; form.len()], pending: None }
    }

    /// += x^T x, x `[tokens, n]`, for a symmetric sum.
    ///
    /// On the CPU half of the product is formed, which is tokens n (n + 1) operations. Of bfloat16 it is a product of bfloat16.
    ///
    /// # Panics
    /// Where the sum has another form.
    pub fn add_gram(&mut self, x: Tensor<2>) {
        let [tokens, n] = x.dims();
        assert_eq!(self.form, Form::Symmetric(n), "x^T x of [tokens, n]");
        if !is_cpu(&x.device()) {
            let gram = product(x.clone().transpose(), x);
            self.pending = Some(Compensated::add(self.pending.take(), gram));
            return;
        }
        let x = contiguous(x);
        let x = Operand::of(&x);
        let mut bands = split(&mut self.values, n);
        // The longest first, so that no thread is left with it at the end.
        bands.reverse();
        bands.into_par_iter().with_max_len(1).for_each(|(first, sum)| {
            let end = band_end(first, n);
            let mut tile = vec![0.0f32; (end - first) * end];
            for start in (0..tokens).step_by(RUN) {
                let run = start..tokens.min(start + RUN);
                let mut view = View::rows(&mut tile, end - first, end);
                let (rows, columns) = (x.part(run.clone(), first..end), x.part(run, 0..end));
                let mode = if start == 0 { Accumulate::Replace } else { Accumulate::Add };
                accumulate(&mut view, rows.transposed(), columns, mode, gemm::Parallelism::None);
            }
            add_triangle(sum, first, &tile, end);
        });
    }

    /// += sum over the rows of x^2, elementwise, x `[tokens, n]`, for a full sum `[1, n]`: the diagonal of x^T x.
    ///
    /// # Panics
    /// Where the sum has another form.
    pub fn add_squares(&mut self, x: Tensor<2>) {
        let [_, n] = x.dims();
        assert_eq!(self.form, Form::Full([1, n]), "the squares of [tokens, n]");
        let x = widen(x);
        if !is_cpu(&x.device()) {
            let squares = x.square().sum_dim(0);
            self.pending = Some(Compensated::add(self.pending.take(), squares));
            return;
        }
        let x = contiguous(x);
        let x = floats(&x);
        self.values.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, sum)| {
            for row in x.chunks_exact(n) {
                sum.iter_mut().zip(&row[chunk * COLUMNS..]).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
            }
        });
    }

    /// += sum over the examples z of (d_z^T a_z)^2, elementwise, for a full sum `[out, in]`.
    ///
    /// d `[rows, out]`, a `[rows, in]`; an example without rows adds nothing. Products are of types as in [`product`].
    ///
    /// # Panics
    /// Where the sum has another form.
    pub fn add_squared_products(&mut self, d: Tensor<2>, a: Tensor<2>, examples: &Ragged) {
        let ([rows, out], [other, inside]) = (d.dims(), a.dims());
        assert_eq!(self.form, Form::Full([out, inside]), "d^T a of [tokens, out] and [tokens, in]");
        assert!(rows == other && rows == examples.rows(), "a row for each token of the examples");
        if !is_cpu(&d.device()) {
            for products in products_of(&d, &a, examples) {
                let squares = products.square().sum_dim(0).reshape([out, inside]);
                self.pending = Some(Compensated::add(self.pending.take(), squares));
            }
            return;
        }
        let (d, a) = (contiguous(d), contiguous(a));
        let (d, a) = (Operand::of(&d), Operand::of(&a));
        let band = band_of(out, inside);
        self.values.par_chunks_mut(band * inside).enumerate().for_each(|(index, sum)| {
            let (first, height) = (index * band, sum.len() / inside);
            let (mut squares, mut tile) = (vec![0.0f32; sum.len()], vec![0.0f32; sum.len()]);
            for rows in examples.iter().filter(|rows| !rows.is_empty()) {
                let (d, a) = (d.part(rows.clone(), first..first + height), a.part(rows, 0..inside));
                let mut view = View::rows(&mut tile, height, inside);
                accumulate(&mut view, d.transposed(), a, Accumulate::Replace, gemm::Parallelism::None);
                add_squares(&mut squares, &tile);
            }
            widen_into(sum, &squares);
        });
    }

    /// Adds what a GPU still holds.
    ///
    /// # Errors
    /// Where the device does not hand it out.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        let Some(Compensated { sum, .. }) = self.pending.take() else { return Ok(()) };
        let pending: Vec<f32> = sum.into_data().try_into_vec().map_err(|error| anyhow::anyhow!("{error:?}"))?;
        match self.form {
            Form::Full(_) => widen_into(&mut self.values, &pending),
            Form::Symmetric(n) => add_triangle(&mut self.values, 0, &pending, n),
        }
        Ok(())
    }

    /// The numbers of its form.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The same, to be set.
    pub fn values_mut(&mut self) -> &mut [f64] {
        &mut self.values
    }

    /// The whole matrix in float32, row by row.
    pub fn matrix(&self) -> Vec<f32> {
        match self.form {
            Form::Full(_) => self.values.iter().map(|&value| value as f32).collect(),
            Form::Symmetric(n) => {
                let at = |i: usize, j: usize| self.values[i * (i + 1) / 2 + j];
                (0..n).flat_map(|i| (0..n).map(move |j| at(i.max(j), i.min(j)) as f32)).collect()
            }
        }
    }
}

/// Bytes that [`Sum::add_squared_products`] takes for a module `[out, in]` beside its sum.
pub fn squared_products_bytes(out: usize, inside: usize) -> usize {
    8 * inside * (band_of(out, inside) * rayon::current_num_threads()).min(out)
}

/// Rows of a product `[out, in]` for one task: a share for each thread, if that is not too much.
fn band_of(out: usize, inside: usize) -> usize {
    out.div_ceil(rayon::current_num_threads()).min(TILE.div_ceil(inside.max(1))).max(1)
}

fn band_end(first: usize, n: usize) -> usize {
    (first + BAND).min(n)
}

/// A packed triangle in bands of rows, with the first row of each.
fn split(mut values: &mut [f64], n: usize) -> Vec<(usize, &mut [f64])> {
    let mut bands = Vec::new();
    for first in (0..n).step_by(BAND) {
        let length = Form::Symmetric(band_end(first, n)).len() - Form::Symmetric(first).len();
        let (band, rest) = values.split_at_mut(length);
        bands.push((first, band));
        values = rest;
    }
    bands
}

/// Adds rows first, first + 1, … of a matrix, `width` values each, to those of a packed triangle.
fn add_triangle(mut sum: &mut [f64], first: usize, rows: &[f32], width: usize) {
    for (row, values) in (first..).zip(rows.chunks_exact(width)) {
        let (own, rest) = sum.split_at_mut(row + 1);
        widen_into(own, values);
        sum = rest;
    }
}

fn widen_into(sum: &mut [f64], x: &[f32]) {
    vectorised(
        #[inline(always)]
        || sum.iter_mut().zip(x).for_each(|(sum, &x)| *sum += f64::from(x)),
    );
}

fn add_squares(sum: &mut [f32], x: &[f32]) {
    vectorised(
        #[inline(always)]
        || sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x * x),
    );
}
