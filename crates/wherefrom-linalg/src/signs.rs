//! Sums of weights by the signs of stored bits: one bit of a row for each weight, and many rows.
//!
//! A weight is its sign and a magnitude of [`PLANES`] bits, a plane of bits for each. Where the row's bit b and the weight's
//! sign bit g are the same the magnitude counts, else it is taken away:
//!
//! sum_i w_i s_i = sum_i |w_i| - 2 sum_p 2^p popcount((b ^ g) & plane_p)

use rayon::prelude::*;

/// Bits of a magnitude: its error is at most 1 / 254 of the largest of its block.
pub const PLANES: usize = 7;
/// Weights that share one step: a cache line of bits.
pub const BLOCK: usize = 512;
/// Rows that share a load of the weights.
const ROWS: usize = 4;

/// 512 bits, a cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u64; 8]);

const EMPTY: Line = Line([0; 8]);

/// One block of one set of weights.
#[derive(Clone)]
struct Block {
    /// Set where the weight is negative.
    signs: Line,
    /// Bit p of the magnitudes.
    planes: [Line; PLANES],
    /// What one unit of the magnitudes is worth.
    step: f32,
}

/// Sets of weights, ready to be summed by the signs of rows.
pub struct SignSums {
    /// Blocks of a row.
    blocks: usize,
    /// Set by set.
    weights: Vec<Block>,
    /// Sum of |w| of each set, as rounded.
    totals: Vec<f64>,
}

/// Bytes of a row with a bit for each of so many weights: whole lines, so that rows stay aligned.
pub fn row_bytes(weights: usize) -> usize {
    weights.div_ceil(BLOCK) * BLOCK / 8
}

impl SignSums {
    /// Rounds sets of `count` weights, one after the other. Bits of a row beyond `count` have weight 0.
    pub fn new(weights: &[f32], count: usize) -> Self {
        assert!(count > 0 && weights.len().is_multiple_of(count), "whole sets of weights");
        let blocks: Vec<Block> =
            weights.chunks_exact(count).flat_map(|set| set.chunks(BLOCK).map(Block::new)).collect();
        let per_row = count.div_ceil(BLOCK);
        let totals = blocks.chunks_exact(per_row).map(|set| set.iter().map(Block::total).sum()).collect();
        Self { blocks: per_row, weights: blocks, totals }
    }

    /// Number of sets.
    pub fn sets(&self) -> usize {
        self.totals.len()
    }

    /// s[row, set] = sum_i w_i s_i with s_i = -1 where bit i of the row is set, else 1: `[rows, sets]`.
    ///
    /// `rows` are [`row_bytes`] bytes each; bit i is bit i % 8 of byte i / 8.
    pub fn of(&self, rows: &[u8]) -> Vec<f32> {
        let (width, sets) = (self.blocks * BLOCK / 8, self.sets());
        assert!(rows.len().is_multiple_of(width), "whole rows");
        let mut sums = vec![0.0; rows.len() / width * sets];
        sums.par_chunks_mut(64 * sets).zip(rows.par_chunks(64 * width)).for_each(|(sums, rows)| self.task(sums, rows));
        sums
    }

    /// Some rows on one thread, compiled for the widest population count of this processor.
    fn task(&self, sums: &mut [f32], rows: &[u8]) {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq")]
            fn wide(own: &SignSums, sums: &mut [f32], rows: &[u8]) {
                own.some(sums, rows);
            }
            if is_x86_feature_detected!("avx512vpopcntdq")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
            {
                // SAFETY: the processor has what the function was compiled for.
                #[allow(unsafe_code)]
                return unsafe { wide(self, sums, rows) };
            }
        }
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || self.some(sums, rows),
        );
    }

    #[inline(always)]
    fn some(&self, sums: &mut [f32], rows: &[u8]) {
        let (width, sets) = (self.blocks * BLOCK / 8, self.sets());
        for (sums, rows) in sums.chunks_mut(ROWS * sets).zip(rows.chunks(ROWS * width)) {
            for (set, weights) in self.weights.chunks_exact(self.blocks).enumerate() {
                match rows.len() / width {
                    ROWS => self.group::<ROWS>(sums, rows, set, weights),
                    some => (0..some).for_each(|row| {
                        self.group::<1>(&mut sums[row * sets..], &rows[row * width..], set, weights);
                    }),
                }
            }
        }
    }

    #[inline(always)]
    fn group<const N: usize>(&self, sums: &mut [f32], rows: &[u8], set: usize, weights: &[Block]) {
        let (width, sets) = (self.blocks * BLOCK / 8, self.sets());
        let mut differing = [[0.0f32; 8]; N];
        for (place, block) in weights.iter().enumerate() {
            for (row, differing) in differing.iter_mut().enumerate() {
                let bits = line(&rows[row * width + place * BLOCK / 8..][..BLOCK / 8]);
                let mut magnitudes = [0u64; 8];
                for plane in block.planes.iter().rev() {
                    for (lane, magnitude) in magnitudes.iter_mut().enumerate() {
                        let counted = (bits.0[lane] ^ block.signs.0[lane]) & plane.0[lane];
                        *magnitude = 2 * *magnitude + u64::from(counted.count_ones());
                    }
                }
                for (sum, magnitude) in differing.iter_mut().zip(magnitudes) {
                    // Below 2^13: exact.
                    *sum += block.step * magnitude as u32 as f32;
                }
            }
        }
        for (row, differing) in differing.iter().enumerate() {
            let differing: f64 = differing.iter().map(|&sum| f64::from(sum)).sum();
            sums[row * sets + set] = (self.totals[set] - 2.0 * differing) as f32;
        }
    }
}

impl Block {
    fn new(weights: &[f32]) -> Self {
        let largest = weights.iter().fold(0.0f32, |largest, weight| largest.max(weight.abs()));
        let step = largest / ((1 << PLANES) - 1) as f32;
        let mut block = Self { signs: EMPTY, planes: [EMPTY; PLANES], step };
        for (i, &weight) in weights.iter().enumerate() {
            let magnitude = if step > 0.0 { (weight.abs() / step).round() as u64 } else { 0 };
            let (lane, bit) = (i / 64, i % 64);
            block.signs.0[lane] |= u64::from(weight < 0.0) << bit;
            for (p, plane) in block.planes.iter_mut().enumerate() {
                plane.0[lane] |= (magnitude >> p & 1) << bit;
            }
        }
        block
    }

    /// Sum of |w|.
    fn total(&self) -> f64 {
        let ones = |plane: &Line| plane.0.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        let sum: u64 = self.planes.iter().enumerate().map(|(p, plane)| ones(plane) << p).sum();
        f64::from(self.step) * sum as f64
    }
}

#[inline(always)]
fn line(bytes: &[u8]) -> Line {
    let mut words = [0; 8];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    Line(words)
}
