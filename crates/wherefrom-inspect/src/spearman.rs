//! Rank correlation.

use wherefrom_linalg::ranks;

/// Spearman's rank correlation, ties at their mean rank; 1 where both are constant, not a number where a value is.
pub fn spearman(x: &[f64], y: &[f64]) -> f64 {
    if x.iter().chain(y).any(|value| !value.is_finite()) {
        return f64::NAN;
    }
    let (x, y) = (ranks(x), ranks(y));
    let mean = (x.len() as f64 - 1.0) / 2.0;
    let sum = |f: &dyn Fn(f64, f64) -> f64| x.iter().zip(&y).map(|(x, y)| f(x - mean, y - mean)).sum::<f64>();
    let (xx, yy) = (sum(&|x, _| x * x), sum(&|_, y| y * y));
    if xx == 0.0 && yy == 0.0 { 1.0 } else { sum(&|x, y| x * y) / (xx * yy).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_correlation_knows_ties_and_what_is_not_a_number() {
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[10.0, 20.0, 30.0]), 1.0);
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), -1.0);
        assert_eq!(ranks(&[5.0, 1.0, 5.0]), [1.5, 0.0, 1.5]);
        assert_eq!(spearman(&[0.0, 0.0], &[0.0, 0.0]), 1.0);
        assert!(spearman(&[f64::NAN, 1.0], &[1.0, 2.0]).is_nan());
    }
}
