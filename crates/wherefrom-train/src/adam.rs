//! AdamW (Loshchilov and Hutter 2019), its learning rates, and clipping by the norm of the whole gradient.

use burn::tensor::Tensor;
use wherefrom_model::Parameters;

use crate::train::Config;

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.95;
const EPSILON: f64 = 1e-8;

/// Running means of the gradient and of its square, by parameter.
#[derive(Debug, Default)]
pub(crate) struct Moments {
    pub(crate) first: Parameters,
    pub(crate) second: Parameters,
}

impl Moments {
    /// Zeros in the shapes of `parameters`.
    pub(crate) fn zeros(parameters: &Parameters) -> Self {
        let zeros = || parameters.iter().map(|(name, tensor)| (name.clone(), tensor.zeros_like())).collect();
        Self { first: zeros(), second: zeros() }
    }

    /// Step `step` (from 0) of `steps`, with the gradient of a loss summed over `targets` tokens.
    ///
    /// With g the mean gradient, clipped: `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`,
    /// `w = (1 - lr decay) w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`; norm gains do not decay.
    pub(crate) fn step(
        &mut self,
        config: &Config,
        step: u64,
        steps: u64,
        parameters: &mut Parameters,
        mut gradients: Parameters,
        targets: usize,
    ) {
        let rate = learning_rate(config, step, steps);
        let time = i32::try_from(step + 1).unwrap_or(i32::MAX);
        let (unbias_1, unbias_2) = (1.0 - BETA_1.powi(time), 1.0 - BETA_2.powi(time));
        let scale = scale(&gradients, targets, config.clip);
        for (name, weight) in std::mem::take(parameters) {
            let Some(gradient) = gradients.remove(&name) else {
                parameters.insert(name, weight);
                continue;
            };
            let gradient = gradient * scale.clone();
            let zeros = || weight.zeros_like();
            let first = self.first.remove(&name).unwrap_or_else(zeros) * BETA_1 + gradient.clone() * (1.0 - BETA_1);
            let square = gradient.clone() * gradient;
            let second = self.second.remove(&name).unwrap_or_else(zeros) * BETA_2 + square * (1.0 - BETA_2);
            let denominator = (second.clone() / unbias_2).sqrt() + EPSILON;
            let update = first.clone() / denominator * (rate / unbias_1);
            let decay = if weight.dims()[0] == 1 { 0.0 } else { config.weight_decay };
            parameters.insert(name.clone(), weight * (1.0 - rate * decay) - update);
            self.first.insert(name.clone(), first);
            self.second.insert(name, second);
        }
    }
}

/// What the summed gradient is multiplied with: 1 / targets, and less where the mean gradient is longer than `clip`. [1, 1]
fn scale(gradients: &Parameters, targets: usize, clip: f64) -> Tensor<2> {
    let squares = gradients.values().map(|gradient| (gradient.clone() * gradient.clone()).sum()).collect();
    let norm: Tensor<1> = Tensor::cat(squares, 0).sum().sqrt() / targets as f64;
    let shorter = (norm.recip() * clip).clamp_max(1.0);
    (shorter / targets as f64).reshape([1, 1])
}

/// Linear warm-up to the peak, then a half cosine down to the minimum.
pub(crate) fn learning_rate(config: &Config, step: u64, steps: u64) -> f64 {
    let warmup = (config.warmup_share * steps as f64).ceil() as u64;
    if step < warmup {
        return config.learning_rate * (step + 1) as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / (steps.saturating_sub(warmup + 1)).max(1) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
    let least = config.minimum_learning_rate_share;
    config.learning_rate * (least + (1.0 - least) * cosine)
}
