//! AdamW (Loshchilov and Hutter 2019), its learning rates, and clipping by the norm of the whole gradient.

use anyhow::Result;
use burn::tensor::Tensor;
use wherefrom_artifact::bad_input;
use wherefrom_model::Parameters;

use crate::course::Learner;
use crate::reverse::{Adjoint, Values, numbers};

/// The knobs of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct AdamW {
    /// Peak learning rate.
    pub(crate) learning_rate: f64,
    /// Share of the steps in which the learning rate rises.
    pub(crate) warmup_share: f64,
    /// Learning rate of the last step over the peak.
    pub(crate) minimum_share: f64,
    /// b1 and b2: how much of the running means stays.
    pub(crate) betas: [f64; 2],
    /// Added to the root.
    pub(crate) epsilon: f64,
    /// Added under the root, which has no finite derivative at 0.
    pub(crate) epsilon_root: f64,
    /// Decoupled weight decay of matrices.
    pub(crate) weight_decay: f64,
    /// Longest gradient of the mean loss, if there is a limit.
    pub(crate) clip: Option<f64>,
}

/// Running means of the gradient and of its square, by parameter.
#[derive(Debug, Clone, Default)]
pub(crate) struct Moments {
    pub(crate) first: Parameters,
    pub(crate) second: Parameters,
}

impl AdamW {
    /// Refuses knobs out of their range, by name.
    pub(crate) fn check(&self) -> Result<()> {
        let out = |name: &str, value: f64, range: &str| {
            Err(bad_input(format!("{name} = {value} is out of range; set it to a number {range}")))
        };
        let positive = [("learning-rate", Some(self.learning_rate)), ("clip", self.clip)];
        if let Some((name, Some(value))) =
            positive.into_iter().find(|(_, value)| value.is_some_and(|value| !(value > 0.0 && value.is_finite())))
        {
            return out(name, value, "above 0");
        }
        let not_negative = [("eps", self.epsilon), ("eps-root", self.epsilon_root)];
        if let Some((name, value)) = not_negative.into_iter().find(|(_, value)| !(*value >= 0.0 && value.is_finite())) {
            return out(name, value, "of 0 or more");
        }
        let shares = [
            ("warmup-share", self.warmup_share),
            ("minimum-learning-rate-share", self.minimum_share),
            ("weight-decay", self.weight_decay),
        ];
        if let Some((name, value)) = shares.into_iter().find(|(_, value)| !(0.0..=1.0).contains(value)) {
            return out(name, value, "from 0 to 1");
        }
        match self.betas.into_iter().find(|beta| !(0.0..1.0).contains(beta)) {
            Some(beta) => out("betas", beta, "from 0 to less than 1"),
            None => Ok(()),
        }
    }

    /// Linear warm-up to the peak, then a half cosine down to the minimum.
    pub(crate) fn rate(&self, step: u64, steps: u64) -> f64 {
        let warmup = (self.warmup_share * steps as f64).ceil() as u64;
        if step < warmup {
            return self.learning_rate * (step + 1) as f64 / warmup as f64;
        }
        let progress = (step - warmup) as f64 / (steps.saturating_sub(warmup + 1)).max(1) as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        self.learning_rate * (self.minimum_share + (1.0 - self.minimum_share) * cosine)
    }
}

impl AdamW {
    /// What the running means are divided by, since they began at 0: 1 - b1^t, 1 - b2^t.
    fn unbias(&self, step: u64) -> [f64; 2] {
        let time = i32::try_from(step + 1).unwrap_or(i32::MAX);
        self.betas.map(|beta| 1.0 - beta.powi(time))
    }

    /// What decay leaves of a parameter: norm gains do not decay, an A of rank 1 does.
    fn kept(&self, rate: f64, name: &str, weight: &Tensor<2>) -> f64 {
        if weight.dims()[0] == 1 && !name.contains(".lora_") { 1.0 } else { 1.0 - rate * self.weight_decay }
    }

    /// Goes back over a step that nothing clipped, but for what g owes to the weights: `adjoint` is that behind the step, and
    /// then that before it. df/dg, g being the gradient of the mean loss as a variable of its own.
    ///
    /// With `s = sqrt(v' / (1 - b2^t) + eps_root)`, `c = lr / (1 - b1^t)`, and x^ for df/dx:
    ///
    /// ```text
    /// M = m'^ - c w'^ / (s + eps)                              m^ = b1 M
    /// V = v'^ + c w'^ m' / ((s + eps)^2 2 s (1 - b2^t))        v^ = b2 V
    /// g^ = (1 - b1) M + 2 (1 - b2) g V                         w^ = (1 - lr decay) w'^
    /// ```
    pub(crate) fn back(
        &self,
        step: u64,
        steps: u64,
        before: &Learner,
        gradients: &Parameters,
        targets: usize,
        adjoint: &mut Adjoint,
    ) -> Result<Values> {
        let (rate, [b1, b2], [unbias_1, unbias_2]) = (self.rate(step, steps), self.betas, self.unbias(step));
        let mut direction = Values::new();
        let Adjoint { weights, first, second, .. } = adjoint;
        for (((name, weights), ahead_1), ahead_2) in weights.iter_mut().zip(first.values_mut()).zip(second.values_mut())
        {
            // What has no gradient stays as it is.
            let Some(gradient) = gradients.get(name) else { continue };
            let (kept, gradient) = (self.kept(rate, name, gradient), numbers(gradient)?);
            let [first, second] = [&before.moments.first, &before.moments.second].map(|means| numbers(&means[name]));
            let (first, second) = (first?, second?);
            let back = |place: usize| {
                let (m, v) = (f64::from(first[place]), f64::from(second[place]));
                let g = f64::from(gradient[place]) / targets as f64;
                let (m, v) = (b1 * m + (1.0 - b1) * g, b2 * v + (1.0 - b2) * g * g);
                let root = (v / unbias_2 + self.epsilon_root).sqrt();
                let (below, moved) = (root + self.epsilon, weights[place] * rate / unbias_1);
                let at_first = ahead_1[place] - moved / below;
                let at_second = ahead_2[place] + moved * m / (below * below * 2.0 * root * unbias_2);
                (weights[place], ahead_1[place], ahead_2[place]) =
                    (weights[place] * kept, b1 * at_first, b2 * at_second);
                (1.0 - b1) * at_first + 2.0 * (1.0 - b2) * g * at_second
            };
            direction.insert(name.clone(), (0..gradient.len()).map(back).collect());
        }
        Ok(direction)
    }
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
    /// `w = (1 - lr decay) w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t) + eps_root) + eps)`; norm gains do not decay.
    pub(crate) fn step(
        &mut self,
        adam: &AdamW,
        step: u64,
        steps: u64,
        parameters: &mut Parameters,
        mut gradients: Parameters,
        targets: usize,
    ) {
        let (rate, [b1, b2], [unbias_1, unbias_2]) = (adam.rate(step, steps), adam.betas, adam.unbias(step));
        let clipped = adam.clip.map(|clip| scale(&gradients, targets, clip));
        for (name, weight) in std::mem::take(parameters) {
            let Some(gradient) = gradients.remove(&name) else {
                parameters.insert(name, weight);
                continue;
            };
            let gradient = match &clipped {
                Some(scale) => gradient * scale.clone(),
                None => gradient / targets as f64,
            };
            let zeros = || weight.zeros_like();
            let first = self.first.remove(&name).unwrap_or_else(zeros) * b1 + gradient.clone() * (1.0 - b1);
            let square = gradient.clone() * gradient;
            let second = self.second.remove(&name).unwrap_or_else(zeros) * b2 + square * (1.0 - b2);
            let mut under_root = second.clone() / unbias_2;
            if adam.epsilon_root > 0.0 {
                under_root = under_root + adam.epsilon_root;
            }
            let update = first.clone() / (under_root.sqrt() + adam.epsilon) * (rate / unbias_1);
            let kept = adam.kept(rate, &name, &weight);
            parameters.insert(name.clone(), weight * kept - update);
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
