//! Correlations, a straight line, and intervals by drawing again.

use wherefrom_linalg::random::uniform;
use wherefrom_linalg::ranks;

/// Pearson's correlation; none of fewer than two values, or of values that are all the same.
pub(crate) fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    let [xx, xy, yy] = moments(x, y)?;
    let correlation = xy / (xx * yy).sqrt();
    correlation.is_finite().then_some(correlation)
}

/// Pearson's correlation of the ranks, equal values sharing theirs.
pub(crate) fn spearman(x: &[f64], y: &[f64]) -> Option<f64> {
    pearson(&ranks(x), &ranks(y))
}

/// Slope and intercept of the line y = slope x + intercept that is nearest to y in squares.
pub(crate) fn line(x: &[f64], y: &[f64]) -> Option<[f64; 2]> {
    let [xx, xy, _] = moments(x, y)?;
    let slope = xy / xx;
    slope.is_finite().then(|| [slope, mean(y) - slope * mean(x)])
}

/// The mean; NaN of nothing.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Between which two values 95 in 100 of `statistic` lie where the places 0..count are drawn again with repetition, `draws`
/// times; what has no value is left out.
pub(crate) fn interval(
    count: usize,
    draws: u64,
    stream: u64,
    mut statistic: impl FnMut(&[usize]) -> Option<f64>,
) -> Option<[f64; 2]> {
    let values = (0..draws).filter_map(|draw| {
        let place = |i: usize| (uniform(stream, draw, i as u64) * count as f64) as usize;
        statistic(&(0..count).map(place).collect::<Vec<_>>())
    });
    between(values.collect())
}

/// Between which two values 95 in 100 of them lie; none of nothing.
pub(crate) fn between(mut values: Vec<f64>) -> Option<[f64; 2]> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let at = |share: f64| values[(share * last as f64).round() as usize];
    Some([at(0.025), at(0.975)])
}

/// The mean over queries, and its interval from drawing queries again; none of nothing.
pub(crate) fn mean_with_interval(values: &[f64], draws: u64) -> Option<[f64; 3]> {
    if values.is_empty() {
        return None;
    }
    let again = |places: &[usize]| Some(mean(&places.iter().map(|&place| values[place]).collect::<Vec<_>>()));
    let [low, high] = interval(values.len(), draws, u64::MAX, again)?;
    Some([mean(values), low, high])
}

/// Sums of (x - mean)^2, (x - mean)(y - mean), (y - mean)^2.
fn moments(x: &[f64], y: &[f64]) -> Option<[f64; 3]> {
    if x.len() < 2 || x.len() != y.len() {
        return None;
    }
    let (mean_x, mean_y) = (mean(x), mean(y));
    let mut sums = [0.0; 3];
    for (x, y) in x.iter().zip(y) {
        let (x, y) = (x - mean_x, y - mean_y);
        sums[0] += x * x;
        sums[1] += x * y;
        sums[2] += y * y;
    }
    Some(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlations_are_those_of_scipy() {
        let (x, y) = ([1.0, 2.0, 2.0, 5.0, -3.0], [0.5, 0.1, 4.0, 4.0, -1.0]);
        assert!((pearson(&x, &y).unwrap() - 0.784_475_6).abs() < 1e-6, "{:?}", pearson(&x, &y));
        assert!((spearman(&x, &y).unwrap() - 0.763_157_9).abs() < 1e-6, "{:?}", spearman(&x, &y));
        assert_eq!(pearson(&x, &[1.0; 5]), None, "a constant correlates with nothing");
        assert_eq!(spearman(&[1.0], &[1.0]), None);
        assert_eq!(line(&[0.0, 1.0, 2.0], &[1.0, 3.0, 5.0]), Some([2.0, 1.0]));
    }

    #[test]
    fn an_interval_of_means_is_as_wide_as_their_standard_error() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 20)).collect();
        let mean_of = |places: &[usize]| Some(mean(&places.iter().map(|&i| values[i]).collect::<Vec<_>>()));
        let [low, high] = interval(values.len(), 2000, 7, mean_of).unwrap();
        // Standard deviation 5.766, over the root of 400, times 2 * 1.96.
        assert!((high - low - 1.130).abs() < 0.08, "{low} {high}");
        assert!(low < 9.5 && 9.5 < high);
    }
}
