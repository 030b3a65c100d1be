use wherefrom_linalg::random::normal;
use wherefrom_linalg::signs::{BLOCK, PLANES, SignSums, row_bytes};

fn weights(seed: u64, n: usize) -> Vec<f32> {
    (0..n as u64).map(|i| normal(seed, 0, i) as f32).collect()
}

/// Rows of bits that look random, and a one for each bit beyond `count`, which must not matter.
fn rows(rows: usize, count: usize) -> Vec<u8> {
    let width = row_bytes(count);
    let bit = |row: usize, i: usize| i >= count || normal(9, row as u64, i as u64) < 0.0;
    let byte = |at: usize| (0..8).fold(0, |byte, b| byte | u8::from(bit(at / width, at % width * 8 + b)) << b);
    (0..rows * width).map(byte).collect()
}

/// sum_i w_i s_i in float64.
fn expected(weights: &[f32], row: &[u8]) -> f64 {
    let sign = |i: usize| if row[i / 8] >> (i % 8) & 1 == 1 { -1.0 } else { 1.0 };
    weights.iter().enumerate().map(|(i, &weight)| sign(i) * f64::from(weight)).sum()
}

#[test]
fn sums_by_signs_are_exact_for_weights_that_have_few_digits() {
    // Rows that do and do not fill a group, blocks that do and do not fill a line.
    for (count, some) in [(1, 1), (37, 3), (512, 4), (1300, 71)] {
        let sets: Vec<f32> = (0..3 * count).map(|i| ((i * 31 % 255) as f32 - 127.0) / 8.0).collect();
        let mut sets = sets;
        // The largest of every block is 127 steps.
        sets.chunks_exact_mut(count).for_each(|set| set.chunks_mut(BLOCK).for_each(|block| block[0] = -127.0 / 8.0));
        let rows = rows(some, count);
        let found = SignSums::new(&sets, count).of(&rows);
        for (row, found) in rows.chunks_exact(row_bytes(count)).zip(found.chunks_exact(3)) {
            for (set, &found) in sets.chunks_exact(count).zip(found) {
                assert_eq!(f64::from(found), expected(set, row), "{count} weights");
            }
        }
    }
}

#[test]
fn a_rounded_weight_is_off_by_half_a_step_at_most() {
    let count = 4 * BLOCK;
    let set = weights(1, count);
    let rows = rows(50, count);
    let found = SignSums::new(&set, count).of(&rows);
    let halves = set.chunks(BLOCK).map(|block| {
        let largest = block.iter().fold(0.0f32, |largest, weight| largest.max(weight.abs()));
        f64::from(largest) / f64::from((1 << PLANES) - 1) / 2.0
    });
    let halves: Vec<f64> = halves.collect();
    let most: f64 = halves.iter().map(|half| half * BLOCK as f64).sum();
    // Rounding errors are spread evenly over a step: half a step / sqrt(3) each.
    let likely = (halves.iter().map(|half| half * half / 3.0 * BLOCK as f64).sum::<f64>()).sqrt();
    for (row, &found) in rows.chunks_exact(row_bytes(count)).zip(&found) {
        let error = (f64::from(found) - expected(&set, row)).abs();
        assert!(error <= 5.0 * likely && likely < most / 20.0, "{error} where {likely} is likely");
    }
}

#[test]
fn weights_of_zero_sum_to_zero() {
    assert_eq!(SignSums::new(&[0.0; 40], 20).of(&rows(2, 20)), [0.0; 4]);
}
