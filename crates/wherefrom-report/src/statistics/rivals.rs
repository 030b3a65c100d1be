//! Other laws for the same tail, against the power law by likelihood ratio (Vuong 1989; Clauset et al. 2009, appendix C).

use serde::Serialize;

use super::PowerLaw;

/// Another law, fitted by maximum likelihood to the values from x_min on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Rival {
    /// `exponential`, `log-normal` or `Weibull`.
    pub(crate) name: &'static str,
    /// Its parameters, by name, in the units of the values.
    pub(crate) parameters: Vec<(&'static str, f64)>,
    /// Log-likelihood of the power law less that of this law: above 0 speaks for the power law.
    pub(crate) ratio: f64,
    /// Probability of a ratio at least as far from 0 if both laws were equally close; above 0.1 neither is preferred.
    pub(crate) p: f64,
}

/// Fits each rival to `tail`, every value at least x_min, and compares.
pub(crate) fn rivals(tail: &[f64], law: &PowerLaw) -> Vec<Rival> {
    // In units of x_min, so that every law begins at 1.
    let scaled: Vec<f64> = tail.iter().map(|value| value / law.x_min).collect();
    let power: Vec<f64> = scaled.iter().map(|x| (law.alpha - 1.0).ln() - law.alpha * x.ln()).collect();
    let rival = |name, parameters, density: &dyn Fn(f64) -> f64| {
        let differences: Vec<f64> = scaled.iter().zip(&power).map(|(&x, power)| power - density(x)).collect();
        let (ratio, p) = vuong(&differences);
        Rival { name, parameters, ratio, p }
    };
    let (rate, mu, sigma, (shape, theta)) = {
        let (mu, sigma) = log_normal(&scaled);
        (exponential(&scaled), mu, sigma, weibull(&scaled))
    };
    let above = log_normal_above(mu, sigma);
    vec![
        // rate · exp(-rate (x - 1))
        rival("exponential", vec![("rate", rate / law.x_min)], &|x| rate.ln() - rate * (x - 1.0)),
        // The log-normal density over its part above 1.
        rival("log-normal", vec![("mu", mu + law.x_min.ln()), ("sigma", sigma)], &|x| {
            log_normal_density(x.ln(), mu, sigma) - above
        }),
        // shape · theta · x^(shape - 1) · exp(-theta (x^shape - 1))
        rival("Weibull", vec![("shape", shape), ("scale", law.x_min * theta.powf(-1.0 / shape))], &|x| {
            shape.ln() + theta.ln() + (shape - 1.0) * x.ln() - theta * (x.powf(shape) - 1.0)
        }),
    ]
}

/// The sum of the differences, and how likely one so far from 0 would be: erfc(|R| / (sqrt(2 n) s)).
fn vuong(differences: &[f64]) -> (f64, f64) {
    let n = differences.len() as f64;
    let ratio: f64 = differences.iter().sum();
    let variance = differences.iter().map(|value| (value - ratio / n).powi(2)).sum::<f64>() / n;
    let p = if variance > 0.0 { libm::erfc(ratio.abs() / (2.0 * n * variance).sqrt()) } else { 1.0 };
    (ratio, p)
}

/// rate = 1 / mean(x - 1).
fn exponential(scaled: &[f64]) -> f64 {
    scaled.len() as f64 / scaled.iter().map(|x| x - 1.0).sum::<f64>().max(f64::MIN_POSITIVE)
}

/// Given the shape, theta = n / sum(x^shape - 1); the shape by golden section over its logarithm.
fn weibull(scaled: &[f64]) -> (f64, f64) {
    let (n, logs) = (scaled.len() as f64, scaled.iter().map(|x| x.ln()).sum::<f64>());
    let theta = |shape: f64| n / scaled.iter().map(|x| x.powf(shape) - 1.0).sum::<f64>().max(f64::MIN_POSITIVE);
    let likelihood = |log_shape: f64| {
        let shape = log_shape.exp();
        n * (shape.ln() + theta(shape).ln()) + (shape - 1.0) * logs - n
    };
    let shape = golden_section(&likelihood, (1e-3_f64).ln(), (10.0_f64).ln()).exp();
    (shape, theta(shape))
}

/// mu by golden section inside a golden section over ln sigma. mu is bounded below: towards minus infinity the law above 1
/// becomes the power law itself.
fn log_normal(scaled: &[f64]) -> (f64, f64) {
    let n = scaled.len() as f64;
    let logs: Vec<f64> = scaled.iter().map(|x| x.ln()).collect();
    let mean = logs.iter().sum::<f64>() / n;
    let square = logs.iter().map(|log| log * log).sum::<f64>() / n;
    let spread = (square - mean * mean).max(1e-12).sqrt();
    // Mean of ln p over the tail, from its mean and mean square.
    let likelihood = |mu: f64, sigma: f64| {
        let squares = square - 2.0 * mu * mean + mu * mu;
        -mean - sigma.ln() - HALF_LOG_TAU - squares / (2.0 * sigma * sigma) - log_normal_above(mu, sigma)
    };
    let inner = |log_sigma: f64| {
        let sigma = log_sigma.exp();
        golden_section(&|mu| likelihood(mu, sigma), mean - 30.0 * sigma, mean + spread)
    };
    let log_sigma = golden_section(
        &|log_sigma| likelihood(inner(log_sigma), log_sigma.exp()),
        (spread * 0.1).ln(),
        (spread * 30.0).ln(),
    );
    (inner(log_sigma), log_sigma.exp())
}

const HALF_LOG_TAU: f64 = 0.918_938_533_204_672_8;

/// ln of the log-normal density at e^log.
fn log_normal_density(log: f64, mu: f64, sigma: f64) -> f64 {
    -log - sigma.ln() - HALF_LOG_TAU - ((log - mu) / sigma).powi(2) / 2.0
}

/// ln P(X >= 1) = ln erfc(-mu / (sigma sqrt 2)) / 2.
fn log_normal_above(mu: f64, sigma: f64) -> f64 {
    let z = -mu / (sigma * std::f64::consts::SQRT_2);
    if z < 25.0 {
        return (libm::erfc(z) / 2.0).ln();
    }
    // erfc(z) = exp(-z^2) / (z sqrt(pi)) · (1 - 1 / (2 z^2) + 3 / (4 z^4) - …)
    let inverse = 1.0 / (z * z);
    -z * z - (z * std::f64::consts::PI.sqrt()).ln() + (1.0 - inverse / 2.0 + 0.75 * inverse * inverse).ln()
        - std::f64::consts::LN_2
}

/// Where a function with one peak between `low` and `high` has it, to some 1e-9 of the interval.
fn golden_section(function: &dyn Fn(f64) -> f64, mut low: f64, mut high: f64) -> f64 {
    let ratio = (5.0_f64.sqrt() - 1.0) / 2.0;
    let (mut left, mut right) = (high - ratio * (high - low), low + ratio * (high - low));
    let (mut at_left, mut at_right) = (function(left), function(right));
    for _ in 0..44 {
        if at_left > at_right {
            (high, right, at_right) = (right, left, at_left);
            left = high - ratio * (high - low);
            at_left = function(left);
        } else {
            (low, left, at_left) = (left, right, at_right);
            right = low + ratio * (high - low);
            at_right = function(right);
        }
    }
    (low + high) / 2.0
}
