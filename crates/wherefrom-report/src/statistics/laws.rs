//! Fits of samples from known laws.

use super::{Influences, Random, bootstrap, concentration, describe, fit, rivals};

/// Values drawn by `quantile` from uniform numbers in (0, 1], largest first.
fn sample(count: usize, seed: u64, quantile: impl Fn(f64) -> f64) -> Vec<f64> {
    let mut random = Random::new(seed, 0, 0);
    let mut values: Vec<f64> = (0..count).map(|_| quantile(1.0 - random.uniform())).collect();
    values.sort_by(|left, right| right.total_cmp(left));
    values
}

#[test]
fn the_exponent_of_a_power_law_is_recovered() {
    let mut rejected = 0;
    for (seed, alpha) in [(1, 1.8), (2, 2.2), (3, 2.5), (4, 3.0), (5, 3.5)] {
        // P(X >= x) = (x / 0.01)^(1 - alpha)
        let values = sample(9_000, seed, |above| 0.01 * above.powf(-1.0 / (alpha - 1.0)));
        let law = fit(&values).unwrap();
        assert!((law.alpha / alpha - 1.0).abs() < 0.03, "{} is not {alpha}", law.alpha);
        rejected += usize::from(bootstrap(&values, law, 100, 0, 0).p < 0.1);
    }
    // Of sets that do follow the law one in ten has p below 0.1.
    assert!(rejected <= 1, "{rejected} of 5 are rejected");
}

#[test]
fn a_power_law_above_a_body_is_found_where_it_begins() {
    // The body is uniform below 1, the tail of a fifth follows the law from 1 on.
    let values = sample(10_000, 6, |u| if u > 0.2 { (u - 0.2) / 0.8 } else { (u / 0.2).powf(-1.0 / 1.4) });
    let law = fit(&values).unwrap();
    assert!((law.x_min - 1.0).abs() < 0.15, "x_min = {}", law.x_min);
    assert!((law.alpha / 2.4 - 1.0).abs() < 0.03, "alpha = {}", law.alpha);
}

#[test]
fn a_power_law_is_rejected_for_exponential_values() {
    for seed in [7, 8, 9] {
        let values = sample(10_000, seed, |above| -above.ln());
        let law = fit(&values).unwrap();
        let p = bootstrap(&values, law, 100, 0, 0).p;
        assert!(p < 0.1, "p = {p}");
        // Over the larger part of the values the likelihoods say whose they are.
        let whole = fit_from(&values, 0.5);
        let exponential = &rivals(&values[..whole.tail], &whole)[0];
        assert!(
            exponential.name == "exponential" && exponential.ratio < 0.0 && exponential.p < 0.01,
            "{exponential:?}"
        );
    }
}

/// The law with x_min given.
fn fit_from(values: &[f64], x_min: f64) -> super::PowerLaw {
    let tail = values.iter().filter(|value| **value >= x_min).count();
    let sum: f64 = values[..tail].iter().map(|value| (value / x_min).ln()).sum();
    super::PowerLaw { alpha: 1.0 + tail as f64 / sum, alpha_error: 0.0, x_min, tail, distance: 0.0, p: 0.0, samples: 0 }
}

#[test]
fn rivals_recover_their_own_parameters() {
    // exponential, rate 2; Weibull, shape 0.6 and scale 3; log-normal, mu 0.5 and sigma 0.8. From x_min on, all of them.
    let parameter = |values: &[f64], rival: usize, name: &str| {
        let law = fit_from(values, 0.3);
        let rival = rivals(&values[..law.tail], &law).swap_remove(rival);
        let found = rival.parameters.iter().find(|(known, _)| *known == name).unwrap().1;
        assert!(rival.ratio < 0.0 && rival.p < 0.1, "{rival:?}");
        found
    };
    let exponential = sample(40_000, 10, |above| -above.ln() / 2.0);
    assert!((parameter(&exponential, 0, "rate") - 2.0).abs() < 0.05);
    let weibull = sample(40_000, 11, |above| 3.0 * (-above.ln()).powf(1.0 / 0.6));
    assert!((parameter(&weibull, 2, "shape") - 0.6).abs() < 0.02);
    assert!((parameter(&weibull, 2, "scale") - 3.0).abs() < 0.15);
    let mut random = Random::new(12, 0, 0);
    let mut normal = || {
        // Box and Muller.
        let (u, v) = (1.0 - random.uniform(), random.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    };
    let mut log_normal: Vec<f64> = (0..40_000).map(|_| (0.5 + 0.8 * normal()).exp()).collect();
    log_normal.sort_by(|left, right| right.total_cmp(left));
    assert!((parameter(&log_normal, 1, "mu") - 0.5).abs() < 0.03);
    assert!((parameter(&log_normal, 1, "sigma") - 0.8).abs() < 0.03);
}

#[test]
fn equal_influences_are_spread_and_one_alone_is_not() {
    let equal = concentration(&[2.0; 1000]).unwrap();
    assert!((equal.participation_ratio - 1000.0).abs() < 1e-9);
    assert_eq!(equal.shares.iter().map(|share| share.sequences).collect::<Vec<_>>(), [1, 10, 100]);
    equal.shares.iter().for_each(|share| assert!((share.share - share.fraction).abs() < 1e-12));
    let mut alone = vec![0.0001; 1000];
    alone[0] = 1000.0;
    let alone = concentration(&alone).unwrap();
    assert!(alone.participation_ratio < 1.001 && alone.shares[0].share > 0.999);
    assert_eq!(concentration(&[]), None);
}

#[test]
fn every_influence_is_in_the_histogram() {
    let mut influences = Influences::default();
    for value in [0.0, 3.0, -0.25, 1e-12, 0.03, -7.0, 0.0] {
        influences.push(value);
    }
    influences.sort();
    let found = describe(&influences, 20, 0, 0);
    assert_eq!(found.counts, [3, 2, 2]);
    assert_eq!(found.histogram.each_ref().map(|counts| counts.iter().sum::<u64>()), [3, 2]);
    assert_eq!(found.bins.len(), found.histogram[0].len());
    assert_eq!((found.power_law, found.rivals.len()), (None, 0), "three values make no tail");
    // Nothing at all is nothing.
    let none = describe(&Influences::default(), 20, 0, 0);
    assert!(none.bins.is_empty() && none.tail.is_empty() && none.concentration.is_none());
}

#[test]
fn the_p_value_depends_on_seed_and_query_alone() {
    let values = sample(2_000, 13, |above| above.powf(-1.0 / 1.5));
    let law = fit(&values).unwrap();
    let p = |seed, query| bootstrap(&values, law, 60, seed, query).p;
    assert_eq!(p(3, 4), p(3, 4));
    assert!((0..6).any(|query| p(3, query) != p(3, 4)) && (0..6).any(|seed| p(seed, 4) != p(3, 4)));
}
