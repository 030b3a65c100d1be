//! Rotary position embedding (Su et al. 2021) in the half-split layout of `transformers`.

use burn::tensor::{Device, Int, Tensor, TensorData};
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

/// cos and sin of position x frequency, and the place in them of each row.
#[derive(Debug, Clone)]
pub struct RotationTable {
    positions: Vec<usize>,
    head_dim: usize,
    half: usize,
    /// By position, `half` values each; of several lists of frequencies one after the other.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RotationTable {
    /// angle(t, i) = t frequency(i), computed in float64. The first 2 x frequencies values of each head turn, the rest stay.
    pub fn new(positions: Vec<usize>, head_dim: usize, frequencies: &[f64]) -> Self {
        let half = frequencies.len();
        assert!(2 * half <= head_dim, "two values of a head turn together");
        let tokens = positions.iter().max().map_or(0, |&last| last + 1);
        let angles = (0..tokens).flat_map(|t| frequencies.iter().map(move |frequency| t as f64 * frequency));
        let (cos, sin) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        Self { positions, head_dim, half, cos, sin }
    }

    /// The same of one of several lists of frequencies for each row, by its number and its position; and cos and sin times a
    /// factor, so that turning back is still the transpose.
    pub fn of_several(rows: &[(usize, usize)], head_dim: usize, lists: &[Vec<f64>], factor: f64) -> Self {
        let half = lists.first().map_or(0, Vec::len);
        assert!(2 * half <= head_dim && lists.iter().all(|list| list.len() == half), "frequencies of one head");
        let tokens = rows.iter().map(|&(_, position)| position + 1).max().unwrap_or(0);
        let angle = |list: &'_ Vec<f64>, t: usize| list.iter().map(move |frequency| t as f64 * frequency).collect();
        let angles = lists.iter().flat_map(|list| (0..tokens).flat_map(move |t| -> Vec<f64> { angle(list, t) }));
        let (cos, sin) = angles.map(|angle| ((factor * angle.cos()) as f32, (factor * angle.sin()) as f32)).unzip();
        Self { positions: rows.iter().map(|&(list, t)| list * tokens + t).collect(), head_dim, half, cos, sin }
    }

    /// The same for a few rows at high positions: cos and sin of no other position are computed.
    pub fn of_rows(rows: &[(usize, usize)], head_dim: usize, lists: &[Vec<f64>], factor: f64) -> Self {
        let half = lists.first().map_or(0, Vec::len);
        assert!(2 * half <= head_dim && lists.iter().all(|list| list.len() == half), "frequencies of one head");
        let angles = rows.iter().flat_map(|&(list, t)| lists[list].iter().map(move |frequency| t as f64 * frequency));
        let (cos, sin) = angles.map(|angle| ((factor * angle.cos()) as f32, (factor * angle.sin()) as f32)).unzip();
        Self { positions: (0..rows.len()).collect(), head_dim, half, cos, sin }
    }

    /// cos and sin of every row: [rows, 1, half]
    fn tensors(&self, device: &Device) -> (Tensor<3>, Tensor<3>) {
        let (rows, half) = (self.positions.len(), self.half);
        let positions: Vec<_> = self.positions.iter().map(|&position| position as i32).collect();
        let positions = Tensor::<1, Int>::from_data(TensorData::new(positions, [rows]), device);
        let build = |values: &Vec<f32>| {
            let table = TensorData::new(values.clone(), [values.len() / half.max(1), half]);
            Tensor::<2>::from_data(table, device).select(0, positions.clone()).reshape([rows, 1, half])
        };
        (build(&self.cos), build(&self.sin))
    }
}

/// For each head, with (a, b) the halves of the part that turns: (a cos - b sin, b cos + a sin).
///
/// x [rows, heads * head_dim], each row turned by its position -> the same shape
pub fn rotate(x: Tensor<2>, table: &RotationTable, rotation: Rotation) -> Tensor<2> {
    if let Some(dtype) = reduced(&x) {
        return round(rotate(widen(x), table, rotation), dtype);
    }
    let [rows, width] = x.dims();
    let (dim, half) = (table.head_dim, table.half);
    assert_eq!(rows, table.positions.len(), "a position for each row");
    let sign = if rotation == Rotation::Forward { 1.0 } else { -1.0 };
    if !is_cpu(&x.device()) {
        let (cos, sin) = table.tensors(&x.device());
        let sin = sin * sign;
        let x = x.reshape([rows, width / dim, dim]);
        let (a, b) = (x.clone().narrow(2, 0, half), x.clone().narrow(2, half, half));
        let mut parts = vec![a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin];
        if 2 * half < dim {
            parts.push(x.narrow(2, 2 * half, dim - 2 * half));
        }
        return Tensor::cat(parts, 2).reshape([rows, width]);
    }
    let mut buffer = writable(x);
    let chunks = values_mut(&mut buffer).par_chunks_mut(width.max(1) * ROWS).zip(table.positions.par_chunks(ROWS));
    chunks.for_each(|(rows, positions)| {
        for (values, &t) in rows.chunks_exact_mut(width).zip(positions) {
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
