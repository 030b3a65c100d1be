//! The vocabulary head: logits, and the cross-entropy of targets with its gradient at the residual stream.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use burn::tensor::{Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_linalg::kernels::{cross_entropy, product, sample_rows};
use wherefrom_linalg::random;

use crate::batch::{Batch, Target};
use crate::decoder::scatter_rows;
use crate::model::{Model, add};
use crate::precision::Precision;
use crate::preference::Weighed;
use crate::weights::Parameters;

/// Logits in memory at once: 48 MiB of f32. A third less cost a twentieth of the speed.
pub(crate) const HEAD_LOGITS: usize = 3 << 22;

/// Which labels the loss is taken against, as a knob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LabelsKind {
    /// One draw per token from the model's own next-token distribution (Grosse et al. 2023, section 2.3).
    #[default]
    Sampled,
    /// The text's own tokens.
    Empirical,
}

impl LabelsKind {
    /// The seed where labels are drawn; else 0, for it does nothing.
    pub fn seed(self, given: u64) -> u64 {
        if self == Self::Empirical { 0 } else { given }
    }
}

/// Which labels the loss is taken against.
#[derive(Debug, Clone)]
pub enum Labels {
    /// The text's own tokens.
    Empirical,
    /// Drawn from the model; the uniform number is a hash of (seed, example, position of the target).
    Sampled {
        /// The seed.
        seed: u64,
    },
    /// Given by example: entry t replaces token t as the target of position t - 1.
    Given(Arc<HashMap<u64, Vec<i64>>>),
}

impl Labels {
    /// The labels of a knob and its seed.
    pub fn new(kind: LabelsKind, seed: u64) -> Self {
        match kind {
            LabelsKind::Sampled => Self::Sampled { seed },
            LabelsKind::Empirical => Self::Empirical,
        }
    }
}

/// Cross-entropy of a batch's targets.
pub(crate) struct HeadLoss {
    /// Of each target, without its weight.
    pub(crate) by_target: Vec<f32>,
    /// Of pairs of a preference; none where the batch has none.
    pub(crate) pairs: Option<Weighed>,
    /// Gradient of the loss, summed over sequences, at the last residual stream, before the final norm: [rows, hidden].
    pub(crate) d: Tensor<2>,
    /// Gradients of head and final norm, if they were asked for.
    pub(crate) gradients: Parameters,
}

impl HeadLoss {
    /// The loss of a sequence: that of its pair, or else `sum`, its weighted cross-entropies.
    pub(crate) fn of(&self, batch: &Batch, sequence: usize, sum: f64) -> f64 {
        let pairs = self.pairs.as_ref().filter(|_| batch.preferences[sequence].is_some());
        pairs.map_or(sum, |pairs| pairs.losses[sequence])
    }
}

impl Model {
    /// Logits of rows of the last residual stream.
    pub(crate) fn head_logits(&self, stream: Tensor<2>) -> Result<Tensor<2>> {
        let head = self.weights().matrix(&self.outline.head)?;
        Ok(product(self.outline.final_norm.forward(self.weights(), stream), head.transpose()))
    }

    /// Cross-entropy at the positions that predict a target, in chunks; with `parameters`, also the gradients of head and
    /// final norm.
    pub(crate) fn head_loss(
        &self,
        output: &Tensor<2>,
        batch: &Batch,
        labels: &Labels,
        parameters: bool,
    ) -> Result<HeadLoss> {
        let (weights, norm) = (self.weights(), &self.outline.final_norm);
        let head = weights.matrix(&self.outline.head)?;
        let pairs = self.pairs(output, batch, labels)?;
        let mut d_output = output.zeros_like();
        let mut by_target = Vec::with_capacity(batch.targets.len());
        let mut gradients = Parameters::new();
        let chunk = (HEAD_LOGITS / self.config.vocab_size).max(1);
        for targets in batch.targets.chunks(chunk) {
            let rows = self.indices(targets.iter().map(|target| target.row).collect());
            let x = output.clone().select(0, rows.clone());
            let hidden = norm.forward(weights, x.clone());
            let logits = product(hidden.clone(), head.clone().transpose());
            let own = self.labels(&logits, batch, targets, labels)?;
            let (loss, mut d_logits) = cross_entropy(logits, &own);
            // Training has a remedy of its own.
            if !parameters || self.precision != Precision::F32 {
                self.finite(&loss, targets, batch)?;
            }
            by_target.extend(loss);
            if targets.iter().any(|target| target.weight != 1.0) {
                let factor = |target: &Target| pairs.as_ref().map_or(1.0, |pairs| pairs.factors[target.sequence]);
                let weights: Vec<_> = targets.iter().map(|target| target.weight * factor(target)).collect();
                d_logits = d_logits * Tensor::from_data(TensorData::new(weights, [targets.len(), 1]), &self.device);
            }
            let d_logits = self.scaled(d_logits);
            let d_hidden = product(d_logits.clone(), head.clone());
            if parameters {
                add(&mut gradients, self.outline.head.clone(), product(d_logits.transpose(), hidden));
                for (name, gradient) in norm.gradients(&d_hidden, &x) {
                    add(&mut gradients, name, gradient);
                }
            }
            let d_x = norm.backward(weights, x.zeros_like(), d_hidden, x);
            d_output = scatter_rows(d_output, rows, d_x);
        }
        Ok(HeadLoss { by_target, pairs, d: d_output, gradients })
    }

    /// The losses of pairs: what they are has to be known before the gradient of a target is.
    fn pairs(&self, output: &Tensor<2>, batch: &Batch, labels: &Labels) -> Result<Option<Weighed>> {
        if !batch.has_preferences() {
            return Ok(None);
        }
        let targets = batch.preferred_targets();
        let mut sums = vec![0.0; batch.len()];
        for targets in targets.chunks((HEAD_LOGITS / self.config.vocab_size).max(1)) {
            let rows = self.indices(targets.iter().map(|target| target.row).collect());
            let logits = self.head_logits(output.clone().select(0, rows))?;
            let own: Vec<_> = targets.iter().map(|target| target.id).collect();
            for (target, loss) in targets.iter().zip(cross_entropy(logits, &own).0) {
                sums[target.sequence] += f64::from(target.weight) * f64::from(loss);
            }
        }
        batch.weigh(&sums, labels).map(Some)
    }

    fn labels(&self, logits: &Tensor<2>, batch: &Batch, targets: &[Target], labels: &Labels) -> Result<Vec<u32>> {
        match labels {
            Labels::Empirical => Ok(targets.iter().map(|target| target.id).collect()),
            Labels::Sampled { seed } => {
                let uniform =
                    |target: &Target| random::uniform(*seed, batch.examples[target.sequence], target.position as u64);
                let mut drawn = sample_rows(logits.clone(), &targets.iter().map(uniform).collect::<Vec<_>>());
                // Of a pair it is drawn which answer is preferred, not what they say.
                for (label, target) in drawn.iter_mut().zip(targets) {
                    if batch.preferences[target.sequence].is_some() {
                        *label = target.id;
                    }
                }
                Ok(drawn)
            }
            Labels::Given(given) => {
                let label = |target: &Target| {
                    let example = batch.examples[target.sequence];
                    let label = given.get(&example).and_then(|labels| labels.get(target.position));
                    let label = label.and_then(|label| u32::try_from(*label).ok());
                    label.with_context(|| {
                        format!("example {example} has no given label at position {}", target.position)
                    })
                };
                targets.iter().map(label).collect()
            }
        }
    }
}
