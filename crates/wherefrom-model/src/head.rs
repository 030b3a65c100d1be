//! The vocabulary head: logits, and the cross-entropy of targets with its gradient at the residual stream.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use burn::tensor::{Int, Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_linalg::kernels::{
    cross_entropy, cross_entropy_on_device, is_cpu, on_device, product, round_like, sample_rows, sample_rows_on_device,
};
use wherefrom_linalg::random;

use crate::batch::{Batch, Target};
use crate::decoder::scatter_rows;
use crate::model::{Model, add};
use crate::precision::Precision;
use crate::preference::Weighed;
use crate::weights::{Parameters, Weights};

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

/// Cross-entropies of targets: a GPU keeps its own, `[targets, 1]`, until those of the whole batch are asked for.
pub(crate) enum Losses {
    Here(Vec<f32>),
    OnDevice(Box<Tensor<2>>),
}

/// What the head makes of some targets.
pub(crate) struct Chunk {
    /// Their rows.
    rows: Tensor<1, Int>,
    /// The last residual stream there: [targets, hidden].
    pub(crate) x: Tensor<2>,
    /// What the head reads of it: [targets, hidden].
    pub(crate) hidden: Tensor<2>,
    /// Of each target, without its weight.
    losses: Losses,
    /// Gradient of the loss before logits are bent, scaled: [targets, vocabulary].
    pub(crate) d_logits: Tensor<2>,
}

impl HeadLoss {
    /// The loss of a sequence: that of its pair, or else `sum`, its weighted cross-entropies.
    pub(crate) fn of(&self, batch: &Batch, sequence: usize, sum: f64) -> f64 {
        let pairs = self.pairs.as_ref().filter(|_| batch.preferences[sequence].is_some());
        pairs.map_or(sum, |pairs| pairs.losses[sequence])
    }
}

/// The vocabulary head at a model's weights: z = bend(W norm(x) / s), with s the divisor of the logits, and bend(z) = c tanh(z / c)
/// where they are capped.
pub(crate) struct Head<'a> {
    model: &'a Model,
    matrix: Tensor<2>,
}

impl Head<'_> {
    /// norm(x) / s.
    pub(crate) fn read(&self, x: Tensor<2>) -> Tensor<2> {
        self.divided(self.model.outline.final_norm.forward(self.model.weights(), x))
    }

    /// Logits of what was read.
    pub(crate) fn logits(&self, read: Tensor<2>) -> Tensor<2> {
        self.model.capped(product(read, self.matrix.clone().transpose()))
    }

    /// From how x moves to how the logits z do.
    pub(crate) fn tangent(&self, moved: Tensor<2>, x: Tensor<2>, z: &Tensor<2>) -> Tensor<2> {
        let moved = self.divided(self.model.outline.final_norm.tangent(self.model.weights(), moved, x));
        self.bent(product(moved, self.matrix.clone().transpose()), z)
    }

    /// From the gradient at the logits z to that at what was read.
    pub(crate) fn backward(&self, d: Tensor<2>, z: &Tensor<2>) -> Tensor<2> {
        self.through(self.bent(d, z))
    }

    /// The same where nothing is bent any more.
    pub(crate) fn through(&self, d: Tensor<2>) -> Tensor<2> {
        product(d, self.matrix.clone())
    }

    /// From there to that at x.
    pub(crate) fn read_backward(&self, d: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
        self.model.outline.final_norm.backward(self.model.weights(), x.zeros_like(), self.divided(d), x)
    }

    /// Times the slope of the bend at logits z: 1 - (z / c)^2.
    fn bent(&self, d: Tensor<2>, z: &Tensor<2>) -> Tensor<2> {
        match self.model.config.logit_cap {
            Some(cap) => d.clone() * ((round_like(z.clone(), &d) / cap).square().neg() + 1.0),
            None => d,
        }
    }

    pub(crate) fn divided(&self, x: Tensor<2>) -> Tensor<2> {
        self.model.divided(x)
    }
}

impl Model {
    pub(crate) fn head(&self) -> Result<Head<'_>> {
        Ok(Head { model: self, matrix: self.weights().matrix(&self.outline.head)? })
    }

    pub(crate) fn divided(&self, x: Tensor<2>) -> Tensor<2> {
        let divisor = self.config.logit_divisor;
        if divisor == 1.0 { x } else { x / divisor }
    }

    fn capped(&self, z: Tensor<2>) -> Tensor<2> {
        match self.config.logit_cap {
            Some(cap) => (z / cap).tanh() * cap,
            None => z,
        }
    }

    /// Logits of rows of the last residual stream; where text is generated the matrix is read once.
    pub(crate) fn head_logits(&self, stream: Tensor<2>, once: bool) -> Result<Tensor<2>> {
        let weights = Weights { once, ..self.weights() };
        if weights.reads_once(&stream) {
            let read = self.divided(self.outline.final_norm.forward(weights, stream));
            return Ok(self.capped(weights.product(&read, &self.outline.head)?));
        }
        let head = self.head()?;
        Ok(head.logits(head.read(stream)))
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
        let head = self.head()?;
        let pairs = self.pairs(output, batch, labels)?;
        let mut d_output = output.zeros_like();
        let mut by_target = Vec::with_capacity(batch.targets.len());
        // Of a GPU, which hands out those of a batch at once.
        let mut losses = Vec::new();
        let mut gradients = Parameters::new();
        // Training has a remedy of its own.
        let refuses = !parameters || self.precision != Precision::F32;
        let chunk = (HEAD_LOGITS / self.config.vocab_size).max(1);
        for targets in batch.targets.chunks(chunk) {
            let made = self.head_chunk(&head, output, batch, targets, labels, pairs.as_ref())?;
            match made.losses {
                Losses::Here(own) => {
                    if refuses {
                        self.finite(&own, targets, batch)?;
                    }
                    by_target.extend(own);
                }
                Losses::OnDevice(own) => losses.push(*own),
            }
            let d_hidden = head.through(made.d_logits.clone());
            if parameters && !self.trains_adapters() {
                let d_logits = self.precision.operand(made.d_logits).transpose();
                add(&mut gradients, self.outline.head.clone(), product(d_logits, made.hidden));
                for (name, gradient) in self.outline.final_norm.gradients(&head.divided(d_hidden.clone()), &made.x) {
                    add(&mut gradients, name, gradient);
                }
            }
            let d_x = head.read_backward(d_hidden, made.x);
            d_output = scatter_rows(d_output, made.rows, d_x);
        }
        if !losses.is_empty() {
            let losses = Tensor::cat(losses, 0).into_data();
            by_target = losses.try_into_vec().map_err(|error| anyhow::anyhow!("{error:?}"))?;
            if refuses {
                self.finite(&by_target, &batch.targets, batch)?;
            }
        }
        Ok(HeadLoss { by_target, pairs, d: d_output, gradients })
    }

    /// What the head makes of some targets, given the last residual stream [rows, hidden] and, of preferences, their losses.
    pub(crate) fn head_chunk(
        &self,
        head: &Head<'_>,
        stream: &Tensor<2>,
        batch: &Batch,
        targets: &[Target],
        labels: &Labels,
        pairs: Option<&Weighed>,
    ) -> Result<Chunk> {
        let rows = self.indices(targets.iter().map(|target| target.row).collect());
        let x = stream.clone().select(0, rows.clone());
        let hidden = head.read(x.clone());
        let logits = head.logits(hidden.clone());
        // Of what is bent, which the loss would be made in the place of.
        let bent = self.config.logit_cap.map(|_| logits.clone());
        let (losses, mut d_logits) = if is_cpu(&self.device) {
            let own = self.labels(&logits, batch, targets, labels)?;
            let (losses, d_logits) = cross_entropy(logits, &own);
            (Losses::Here(losses), d_logits)
        } else {
            let own = self.labels_on_device(&logits, batch, targets, labels)?;
            let (losses, d_logits) = cross_entropy_on_device(logits, own);
            (Losses::OnDevice(Box::new(losses)), d_logits)
        };
        // The chosen answers of pairs may be all that there is here.
        if pairs.is_some() || targets.iter().any(|target| target.weight != 1.0) {
            let factor = |target: &Target| pairs.map_or(1.0, |pairs| pairs.factors[target.sequence]);
            let weights: Vec<_> = targets.iter().map(|target| target.weight * factor(target)).collect();
            d_logits = d_logits * Tensor::from_data(TensorData::new(weights, [targets.len(), 1]), &self.device);
        }
        let d_logits = self.scaled(match &bent {
            Some(z) => head.bent(d_logits, z),
            None => d_logits,
        });
        Ok(Chunk { rows, x, hidden, losses, d_logits })
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
            let logits = self.head_logits(output.clone().select(0, rows), false)?;
            let own: Vec<_> = targets.iter().map(|target| target.id).collect();
            for (target, loss) in targets.iter().zip(cross_entropy(logits, &own).0) {
                sums[target.sequence] += f64::from(target.weight) * f64::from(loss);
            }
        }
        batch.weigh(&sums, labels).map(Some)
    }

    /// [`Model::labels`] as `[rows, 1]` on the device; what is drawn from the model does not leave it.
    fn labels_on_device(
        &self,
        logits: &Tensor<2>,
        batch: &Batch,
        targets: &[Target],
        labels: &Labels,
    ) -> Result<Tensor<2, Int>> {
        match labels {
            Labels::Sampled { seed } if !batch.has_preferences() => {
                Ok(sample_rows_on_device(logits.clone(), &uniforms(*seed, batch, targets)))
            }
            _ => Ok(on_device(&self.labels(logits, batch, targets, labels)?, &self.device)),
        }
    }

    fn labels(&self, logits: &Tensor<2>, batch: &Batch, targets: &[Target], labels: &Labels) -> Result<Vec<u32>> {
        match labels {
            Labels::Empirical => Ok(targets.iter().map(|target| target.id).collect()),
            Labels::Sampled { seed } => {
                let mut drawn = sample_rows(logits.clone(), &uniforms(*seed, batch, targets));
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

/// The number in [0, 1) that each target's label is drawn by.
fn uniforms(seed: u64, batch: &Batch, targets: &[Target]) -> Vec<f64> {
    let uniform = |target: &Target| random::uniform(seed, batch.examples[target.sequence], target.position as u64);
    targets.iter().map(uniform).collect()
}
