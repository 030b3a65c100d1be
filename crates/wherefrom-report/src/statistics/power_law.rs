//! The power law of the strongest influences, after Clauset, Shalizi and Newman 2009 (arXiv 0706.1062).
//!
//! Density convention: p(x) = (alpha - 1) / x_min · (x / x_min)^-alpha for x >= x_min, so that P(X >= x) =
//! (x / x_min)^(1 - alpha). alpha by maximum likelihood, x_min by the smallest Kolmogorov-Smirnov distance, the p-value by
//! their semi-parametric bootstrap.

use rayon::prelude::*;
use serde::Serialize;

use super::Random;

/// x_min is one of so many values, evenly spaced in rank, and not each value in turn.
pub(crate) const CANDIDATES: usize = 100;
/// A tail has at least so many values, and a tenth of those looked at: a smaller one passes for almost any law.
pub(crate) const LEAST_TAIL: usize = 50;
/// Only the strongest so many are looked at: the law is one of the tail, and the bootstrap fits hundreds of sets.
pub(crate) const STRONGEST: usize = 10_000;

/// A fitted law.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct PowerLaw {
    /// Exponent of the density.
    pub(crate) alpha: f64,
    /// (alpha - 1) / sqrt(tail).
    pub(crate) alpha_error: f64,
    /// Where the tail begins.
    pub(crate) x_min: f64,
    /// Values in the tail.
    pub(crate) tail: usize,
    /// Largest distance between the tail's distribution and the law's.
    pub(crate) distance: f64,
    /// Share of synthetic sets that lie farther from their own fit than the data from theirs; below 0.1 the law is rejected.
    pub(crate) p: f64,
    /// Synthetic sets.
    pub(crate) samples: usize,
}

/// Fits the law to positive values, largest first; none where fewer than [`LEAST_TAIL`] are positive. `p` is left at 0.
pub(crate) fn fit(values: &[f64]) -> Option<PowerLaw> {
    let values = &values[..values.len().min(STRONGEST)];
    let n = values.len();
    if n < LEAST_TAIL {
        return None;
    }
    let least = LEAST_TAIL.max(n / 10);
    // logs[i] = ln of the i-th largest; sums[i] = the sum of the i + 1 largest.
    let logs: Vec<f64> = values.iter().map(|value| value.ln()).collect();
    let sums: Vec<f64> = logs
        .iter()
        .scan(0.0, |sum, log| {
            *sum += log;
            Some(*sum)
        })
        .collect();
    let ends = (0..CANDIDATES).map(|i| least + (n - least) * i / (CANDIDATES - 1));
    let mut best: Option<PowerLaw> = None;
    for mut tail in ends {
        // Equal values are all in the tail, or none is.
        while tail < n && values[tail] == values[tail - 1] {
            tail += 1;
        }
        let start = logs[tail - 1];
        // alpha = 1 + n / sum ln(x / x_min)
        let alpha = 1.0 + tail as f64 / (sums[tail - 1] - tail as f64 * start);
        if !alpha.is_finite() {
            continue;
        }
        let distance = distance(&logs[..tail], alpha, start, best.map_or(f64::INFINITY, |best| best.distance));
        if best.is_none_or(|best| distance < best.distance) {
            let alpha_error = (alpha - 1.0) / (tail as f64).sqrt();
            best = Some(PowerLaw { alpha, alpha_error, x_min: values[tail - 1], tail, distance, p: 0.0, samples: 0 });
        }
    }
    best
}

/// max |S(x) - P(x)| over a tail given as logs, largest first; stops where it is more than `enough`.
fn distance(logs: &[f64], alpha: f64, start: f64, enough: f64) -> f64 {
    let n = logs.len() as f64;
    let mut largest = 0.0_f64;
    for (above, log) in logs.iter().enumerate() {
        // P(X >= x) of the law against the shares above x with and without x itself.
        let law = ((1.0 - alpha) * (log - start)).exp();
        let (without, with) = (above as f64 / n, (above + 1) as f64 / n);
        largest = largest.max((law - without).abs()).max((law - with).abs());
        if largest > enough {
            break;
        }
    }
    largest
}

/// The law with its p-value: synthetic sets follow the law above x_min and repeat the data below it, and each is fitted anew.
pub(crate) fn bootstrap(values: &[f64], law: PowerLaw, samples: usize, seed: u64, query: u32) -> PowerLaw {
    let values = &values[..values.len().min(STRONGEST)];
    let (n, below) = (values.len(), &values[law.tail..]);
    let share = law.tail as f64 / n as f64;
    let farther = (0..samples).into_par_iter().filter(|&sample| {
        let mut random = Random::new(seed, query, sample);
        let mut synthetic: Vec<f64> = (0..n)
            .map(|_| {
                if below.is_empty() || random.uniform() < share {
                    law.x_min * (1.0 - random.uniform()).powf(-1.0 / (law.alpha - 1.0))
                } else {
                    below[random.below(below.len())]
                }
            })
            .collect();
        synthetic.sort_unstable_by(|left, right| right.total_cmp(left));
        fit(&synthetic).is_some_and(|fitted| fitted.distance >= law.distance)
    });
    let p = farther.count() as f64 / samples.max(1) as f64;
    PowerLaw { p, samples, ..law }
}
