//! How few sequences hold the positive influence.

use serde::Serialize;

/// Shares of the strongest, and the number of sequences that would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Concentration {
    /// Held by the strongest 0.1 %, 1 % and 10 %.
    pub(crate) shares: Vec<Share>,
    /// (sum x)^2 / (sum x^2): as many equal influences would be as concentrated.
    pub(crate) participation_ratio: f64,
}

/// What the strongest hold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Share {
    /// Of the sequences with positive influence: 0.01 is one in a hundred.
    pub(crate) fraction: f64,
    /// How many sequences that is, rounded up.
    pub(crate) sequences: usize,
    /// Their part of the sum.
    pub(crate) share: f64,
}

/// Of positive influences, strongest first; none where there are none.
pub(crate) fn concentration(positive: &[f64]) -> Option<Concentration> {
    let sum: f64 = positive.iter().sum();
    if sum <= 0.0 {
        return None;
    }
    let squares: f64 = positive.iter().map(|value| value * value).sum();
    let share = |fraction: f64| {
        let sequences = ((positive.len() as f64 * fraction).ceil() as usize).clamp(1, positive.len());
        Share { fraction, sequences, share: positive[..sequences].iter().sum::<f64>() / sum }
    };
    Some(Concentration { shares: [0.001, 0.01, 0.1].map(share).to_vec(), participation_ratio: sum * sum / squares })
}
