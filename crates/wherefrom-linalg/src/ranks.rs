//! Ranks of values, which rank correlations are taken of.

/// Ranks from 0, ties at their mean.
pub fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<_> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for tie in order.chunk_by(|&i, &j| values[i] == values[j]) {
        let rank = start as f64 + (tie.len() as f64 - 1.0) / 2.0;
        tie.iter().for_each(|&index| ranks[index] = rank);
        start += tie.len();
    }
    ranks
}
