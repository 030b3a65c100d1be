//! What a query's gradient is taken of.

use anyhow::{Result, ensure};
use burn::tensor::{Tensor, TensorData};
use wherefrom_linalg::kernels::{round_like, widen};

use crate::batch::Batch;
use crate::decoder::scatter_rows;
use crate::head::Labels;
use crate::model::Model;
use crate::outline::Outline;
use crate::preference::Weighed;
use crate::site::Site;

/// A function f of one sequence. What is handed out is the gradient of -f, which of log-probabilities is that of a loss.
///
/// A further measurement is a variant, and its answer in each `match` below.
#[derive(Debug, Clone, PartialEq)]
pub enum Measurement {
    /// Log-probability of all targets, each times the weight of its segment. By weights it is a contrast (1 for the
    /// completion, -1 for its rival) or a mean of n completions (1/n each).
    LogProbability,
    /// Mean over the target tokens of the residual stream at a site, projected on a direction; of several segments each one's
    /// mean times its weight.
    Projection {
        /// Where the stream is read.
        site: Site,
        /// As wide as the stream, and taken as it is: of length 1 where the projection is to be in the stream's unit.
        direction: Vec<f32>,
    },
}

impl Measurement {
    /// What its values are counted in.
    pub fn unit(&self) -> &'static str {
        match self {
            Self::LogProbability => "nats",
            Self::Projection { .. } => "projection",
        }
    }

    /// What a positive influence raises.
    pub fn sign(&self) -> &'static str {
        match self {
            Self::LogProbability => "log p(completion)",
            Self::Projection { .. } => "the projection on the direction",
        }
    }

    /// The stream at which the backward pass starts: after so many blocks. Modules behind it have no gradient.
    ///
    /// # Errors
    /// [`crate::BadInput`] for a site that the model does not have.
    pub fn stream(&self, outline: &Outline) -> Result<usize> {
        match self {
            Self::LogProbability => Ok(outline.blocks.len()),
            Self::Projection { site, .. } => site.stream(outline.blocks.len()),
        }
    }
}

/// A measurement of a batch.
pub(crate) struct Measured {
    /// -f of each sequence.
    pub(crate) values: Vec<f32>,
    /// Its gradient at the stream where the backward pass starts: [rows, hidden]
    pub(crate) d: Tensor<2>,
    /// Of preferences.
    pub(crate) pairs: Option<Weighed>,
}

impl Model {
    /// -f of each sequence, and its gradient at the stream where the backward pass starts.
    pub(crate) fn measured(
        &self,
        measurement: &Measurement,
        stream: &Tensor<2>,
        batch: &Batch,
        labels: &Labels,
    ) -> Result<Measured> {
        match measurement {
            Measurement::LogProbability => {
                let loss = self.head_loss(stream, batch, labels, false)?;
                let mut values = vec![0.0; batch.len()];
                for (target, loss) in batch.targets.iter().zip(&loss.by_target) {
                    values[target.sequence] += target.weight * loss;
                }
                if batch.has_preferences() {
                    for (sequence, value) in values.iter_mut().enumerate() {
                        *value = loss.of(batch, sequence, f64::from(*value)) as f32;
                    }
                }
                Ok(Measured { values, d: loss.d, pairs: loss.pairs })
            }
            Measurement::Projection { site, direction } => {
                let (values, d) = self.projected(*site, direction, stream, batch)?;
                Ok(Measured { values, d, pairs: None })
            }
        }
    }

    /// -(w/n) sum over the n target tokens t of a segment of <h_t, direction>, w its weight, summed over segments.
    fn projected(
        &self,
        site: Site,
        direction: &[f32],
        stream: &Tensor<2>,
        batch: &Batch,
    ) -> Result<(Vec<f32>, Tensor<2>)> {
        let width = self.outline.hidden();
        ensure!(direction.len() == width, "a direction of {} values in a stream of {width}", direction.len());
        let direction = Tensor::from_data(TensorData::new(direction.to_vec(), [1, width]), &self.device);
        // By segment: a contrast of two completions is the difference of their means.
        let segment = |row: usize| batch.spans.partition_point(|span| span.end <= row);
        let mut counts = vec![0_usize; batch.spans.len()];
        batch.targets.iter().for_each(|target| counts[segment(target.row)] += 1);
        let weights: Vec<f32> =
            batch.targets.iter().map(|target| -target.weight / counts[segment(target.row)] as f32).collect();
        let weighted = Tensor::<2>::from_data(TensorData::new(weights.clone(), [weights.len(), 1]), &self.device);

        // A target's own row: its stream is read where it stands, and not where it is predicted.
        let rows = self.indices(batch.targets.iter().map(|target| target.row + 1).collect());
        let x = stream.clone().select(0, rows.clone());
        let norm = (site == Site::PostNorm).then_some(&self.outline.final_norm);
        let read = norm.map_or_else(|| x.clone(), |norm| norm.forward(self.weights(), x.clone()));
        let products: Vec<f32> = (widen(read) * direction.clone())
            .sum_dim(1)
            .into_data()
            .try_into_vec()
            .map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let mut values = vec![0.0; batch.len()];
        for ((target, weight), product) in batch.targets.iter().zip(weights).zip(products) {
            values[target.sequence] += weight * product;
        }
        let d = round_like(self.scaled(weighted * direction), stream);
        let d =
            norm.map_or_else(|| d.clone(), |norm| norm.backward(self.weights(), x.zeros_like(), d.clone(), x.clone()));
        Ok((values, scatter_rows(stream.zeros_like(), rows, d)))
    }
}
