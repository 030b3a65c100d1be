//! How the influence of a corpus on one query is distributed.

mod concentration;
#[cfg(test)]
mod laws;
mod power_law;
mod random;
mod rivals;

use serde::Serialize;

pub(crate) use concentration::{Concentration, concentration};
pub(crate) use power_law::{PowerLaw, bootstrap, fit};
pub(crate) use random::Random;
pub(crate) use rivals::{Rival, rivals};

/// Points of the complementary distribution that are kept for drawing.
const POINTS: usize = 160;
/// Bins of the histogram in each power of ten.
const BINS: f64 = 4.0;

/// Influences of one query on the corpus, by sign.
#[derive(Debug, Clone, Default)]
pub(crate) struct Influences {
    /// Above 0, strongest first.
    pub(crate) positive: Vec<f64>,
    /// Sizes of those below 0, strongest first.
    pub(crate) negative: Vec<f64>,
    /// How many are exactly 0.
    pub(crate) zero: u64,
}

impl Influences {
    /// Takes one influence.
    pub(crate) fn push(&mut self, influence: f32) {
        match influence {
            value if value > 0.0 => self.positive.push(f64::from(value)),
            value if value < 0.0 => self.negative.push(f64::from(-value)),
            _ => self.zero += 1,
        }
    }

    /// Puts the strongest first.
    pub(crate) fn sort(&mut self) {
        self.positive.sort_by(|left, right| right.total_cmp(left));
        self.negative.sort_by(|left, right| right.total_cmp(left));
    }
}

/// What the page says of one query's influences.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Distribution {
    /// Sequences with influence above, below and at 0.
    pub(crate) counts: [u64; 3],
    /// Sums of influence above and (as a size) below 0.
    pub(crate) sums: [f64; 2],
    /// The lower ends of the bins, as log10 of the size.
    pub(crate) bins: Vec<f64>,
    /// Sequences in each bin, above and below 0.
    pub(crate) histogram: [Vec<u64>; 2],
    /// Points (x, share of the positive influences that are x or more), thinned evenly in log rank.
    pub(crate) tail: Vec<(f64, f64)>,
    /// How few sequences hold the positive influence.
    pub(crate) concentration: Option<Concentration>,
    /// The power law of the strongest; none where there are too few.
    pub(crate) power_law: Option<PowerLaw>,
    /// Its rivals in the same tail.
    pub(crate) rivals: Vec<Rival>,
}

/// Describes the influences of query `query`; `samples` synthetic sets, drawn from `seed`, test the power law.
pub(crate) fn describe(influences: &Influences, samples: usize, seed: u64, query: u32) -> Distribution {
    let Influences { positive, negative, zero } = influences;
    let (bins, histogram) = histogram(positive, negative);
    let law = fit(positive);
    let rivals = law.as_ref().map(|law| rivals(&positive[..law.tail], law)).unwrap_or_default();
    let power_law = law.map(|law| bootstrap(positive, law, samples, seed, query));
    Distribution {
        counts: [positive.len() as u64, negative.len() as u64, *zero],
        sums: [positive.iter().sum(), negative.iter().sum()],
        bins,
        histogram,
        tail: tail(positive),
        concentration: concentration(positive),
        power_law,
        rivals,
    }
}

/// Equal bins in log10 of the size, from the smallest to the largest; the smallest ones, below a millionth of the largest,
/// share the first bin.
fn histogram(positive: &[f64], negative: &[f64]) -> (Vec<f64>, [Vec<u64>; 2]) {
    let largest = positive.iter().chain(negative).copied().fold(0.0, f64::max);
    let smallest = positive.iter().chain(negative).copied().fold(f64::INFINITY, f64::min);
    if largest == 0.0 {
        return Default::default();
    }
    let place = |value: f64| (value.max(largest * 1e-6).log10() * BINS).floor() as i64;
    let (first, last) = (place(smallest), place(largest));
    let count = |values: &[f64]| {
        let mut counts = vec![0; usize::try_from(last - first + 1).unwrap_or(1)];
        for &value in values {
            counts[usize::try_from(place(value) - first).unwrap_or(0)] += 1;
        }
        counts
    };
    ((first..=last).map(|place| place as f64 / BINS).collect(), [count(positive), count(negative)])
}

fn tail(positive: &[f64]) -> Vec<(f64, f64)> {
    let n = positive.len();
    let ranks: std::collections::BTreeSet<usize> = (0..POINTS)
        .map(|point| ((n as f64).powf(point as f64 / (POINTS - 1) as f64).round() as usize).clamp(1, n.max(1)))
        .collect();
    ranks.into_iter().filter(|&rank| rank <= n).map(|rank| (positive[rank - 1], rank as f64 / n as f64)).collect()
}
