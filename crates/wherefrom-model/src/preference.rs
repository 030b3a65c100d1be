//! Pairs of a preference, and the loss that direct preference optimisation has of them (Rafailov et al. 2023, Eq. 7).
//!
//! L = -log sigmoid(beta D), with D = (log p(chosen) - log p(rejected)) - margin, summed log-probabilities, and margin the same
//! difference under the reference. D moves with the loss L_0 = -log p(chosen) + log p(rejected), the sum of the cross-entropies
//! of the segments times their weights 1 and -1: D = -L_0 - margin, so that dL = beta sigmoid(-beta D) dL_0.

use anyhow::{Result, ensure};
use wherefrom_linalg::random;

use crate::batch::{Batch, Target};
use crate::error::bad_input;
use crate::head::Labels;

/// The loss of a pair, whose segments are the chosen answer and the rejected one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preference {
    /// beta.
    pub beta: f32,
    /// log p(chosen) - log p(rejected) of the reference, nats.
    pub margin: f32,
}

impl Preference {
    /// The one of a tokens artifact: beta and margin, or nothing.
    pub fn of(numbers: &[f32]) -> Option<Self> {
        if let [beta, margin] = *numbers { Some(Self { beta, margin }) } else { None }
    }

    /// The probability that the chosen one is preferred, sigmoid(beta D), where the segments' losses sum to `loss`.
    fn chosen(self, loss: f64) -> f64 {
        sigmoid(f64::from(self.beta) * (-loss - f64::from(self.margin)))
    }

    /// L and dL / dL_0 where the segments' losses sum to `loss`, L_0: of the choice that was made, or else of the other.
    fn loss(self, loss: f64, as_chosen: bool) -> (f64, f64) {
        let chosen = self.chosen(loss);
        let beta = f64::from(self.beta);
        match as_chosen {
            true => (-log_sigmoid(beta * (-loss - f64::from(self.margin))), beta * (1.0 - chosen)),
            false => (-log_sigmoid(beta * (loss + f64::from(self.margin))), -beta * chosen),
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    log_sigmoid(x).exp()
}

/// log sigmoid(x) = min(x, 0) - log(1 + e^-|x|).
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// The loss of each sequence, and what its gradient is that of the weighted cross-entropies times.
pub(crate) struct Weighed {
    pub(crate) losses: Vec<f64>,
    pub(crate) factors: Vec<f32>,
}

impl Batch {
    /// The targets of pairs.
    pub(crate) fn preferred_targets(&self) -> Vec<Target> {
        let of_pair = |target: &&Target| self.preferences[target.sequence].is_some();
        self.targets.iter().filter(of_pair).copied().collect()
    }

    /// Losses of pairs, whose weighted cross-entropies sum to `sums`; 0 and a factor of 1 for other sequences. Drawn labels are
    /// draws of which answer is preferred: the chosen one with the probability that the model gives it.
    pub(crate) fn weigh(&self, sums: &[f64], labels: &Labels) -> Result<Weighed> {
        let mut weighed = Weighed { losses: vec![0.0; self.len()], factors: vec![1.0; self.len()] };
        for (sequence, preference) in self.preferences.iter().enumerate() {
            let Some(preference) = preference else { continue };
            let as_chosen = match labels {
                Labels::Empirical => true,
                Labels::Sampled { seed } => {
                    let uniform = random::uniform(*seed, self.examples[sequence], 0);
                    uniform < preference.chosen(sums[sequence])
                }
                Labels::Given(_) => return Err(bad_input("labels that are given are none of a pair of a preference")),
            };
            let (loss, factor) = preference.loss(sums[sequence], as_chosen);
            ensure!(loss.is_finite(), "example {}: the loss of the pair is no number", self.examples[sequence]);
            (weighed.losses[sequence], weighed.factors[sequence]) = (loss, factor as f32);
        }
        Ok(weighed)
    }

    /// Refuses pairs, for whose loss something is not made.
    ///
    /// # Errors
    /// [`crate::BadInput`] with the first of them.
    pub fn without_preferences(&self, what: &str) -> Result<()> {
        match self.preferences.iter().position(Option::is_some) {
            None => Ok(()),
            Some(pair) => Err(bad_input(format!(
                "example {}: {what} takes no pairs of a preference under the DPO loss; give it tokens without them",
                self.examples[pair]
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_is_the_slope_of_its_loss() {
        for (beta, margin, loss) in [(0.1, 0.0, 3.0), (2.0, -1.5, 0.4), (0.5, 4.0, -60.0), (1.0, 0.0, 900.0)] {
            let preference = Preference { beta, margin };
            for as_chosen in [true, false] {
                let step = 1e-5;
                let [above, below] = [loss + step, loss - step].map(|loss| preference.loss(loss, as_chosen).0);
                let (value, slope) = preference.loss(loss, as_chosen);
                assert!(value >= 0.0 && ((above - below) / (2.0 * step) - slope).abs() < 1e-6, "{value} {slope}");
            }
        }
    }

    #[test]
    fn drawn_labels_have_a_mean_gradient_of_zero() {
        let preference = Preference { beta: 0.7, margin: 0.3 };
        let loss = 1.1;
        let chosen = preference.chosen(loss);
        let [own, other] = [true, false].map(|as_chosen| preference.loss(loss, as_chosen).1);
        assert!((chosen * own + (1.0 - chosen) * other).abs() < 1e-12);
    }
}
