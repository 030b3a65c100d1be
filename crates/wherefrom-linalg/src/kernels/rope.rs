//! Rotary position embedding (Su et al. 2021) in the half-split layout of `transformers`.

use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use super::cpu::{is_cpu, values_mut, wrap, writable};
use super::precision::{reduced, round, widen};

/// Rows of a task.
const ROWS: usize = 128;

/// Which way to turn: backward is the transpose of forward, a rotation by the negative angle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// Rotate queries and keys.
    Forward,
    /// Rotate their gradients back.
    Backward,
}

/// cos and sin of position x frequency, for positions 0..tokens or those that [`RotationTable::at`] names.
#[derive(Debug, Clone)]
pub struct RotationTable {
    tokens: usize,
    head_dim: usize,
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RotationTable {
    /// angle(t, i) = t frequency(i), computed in float64. The first 2 x frequencies values of each head turn, the rest stay.
    pub fn new(tokens: usize, head_dim: usize, frequencies: &[f64]) -> Self {
        let half = frequencies.len();
        assert!(2 * half <= head_dim, "two values of a head turn together");
        let angles = (0..tokens).flat_map(|t| frequencies.iter().map(move |frequency| t as f64 * frequency));
        let (cos, sin) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        Self { tokens, head_dim, half, cos, sin }
    }

    /// The table with a row for each of `positions`, all below `tokens`: for rows that do not count from 0.
    pub fn at(&self, positions: &[usize]) -> Self {
        let half = self.half;
        let rows = |table: &[f32]| positions.iter().flat_map(|&t| &table[t * half..(t + 1) * half]).copied().collect();
        Self { tokens: positions.len(), head_dim: self.head_dim, half, cos: rows(&self.cos), sin: rows(&self.sin) }
    }

    fn tensors(&self, device: &Device) -> (Tensor<4>, Tensor<4>) {
        let shape = [1, self.tokens, 1, self.half];
        let build = |values: &Vec<f32>| Tensor::from_data(TensorData::new(values.clone(), shape), device);
        (build(&self.cos), build(&self.sin))
    }
}

/// For each head, with (a, b) the halves of the part that turns: (a cos - b sin, b cos + a sin).
///
/// x [batch * tokens, heads * head_dim], row r turned by row r mod tokens of the table -> the same shape
pub fn rotate(x: Tensor<2>, table: &RotationTable, rotation: Rotation) -> Tensor<2> {
    if let Some(dtype) = reduced(&x) {
        return round(rotate(widen(x), table, rotation), dtype);
    }
    let [rows, width] = x.dims();
    let (dim, half) = (table.head_dim, table.half);
    let sign = if rotation == Rotation::Forward { 1.0 } else { -1.0 };
    if !is_cpu(&x.device()) {
        let (cos, sin) = table.tensors(&x.device());
        let sin = sin * sign;
        let x = x.reshape([rows / table.tokens, table.tokens, width / dim, dim]);
        let (a, b) = (x.clone().narrow(3, 0, half), x.clone().narrow(3, half, half));
        let mut parts = vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin];
        if 2 * half < dim {
            parts.push(x.narrow(3, 2 * half, dim - 2 * half));
        }
        return Tensor::cat(parts, 3).reshape([rows, width]);
    }
    let mut buffer = writable(x);
    values_mut(&mut buffer).par_chunks_mut(width.max(1) * ROWS).enumerate().for_each(|(chunk, rows)| {
        for (row, values) in rows.chunks_exact_mut(width).enumerate() {
            let t = (chunk * ROWS + row) % table.tokens;
            let cos = &table.cos[t * half..(t + 1) * half];
            let sin = &table.sin[t * half..(t + 1) * half];
            for head in values.chunks_exact_mut(dim) {
                let (first, second) = head.split_at_mut(half);
                for i in 0..half {
                    let (a, b) = (first[i], second[i]);
                    first[i] = a * cos[i] - sign * b * sin[i];
                    second[i] = b * cos[i] + sign * a * sin[i];
                }
            }
        }
    });
    wrap(buffer)
}
