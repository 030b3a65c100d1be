//! How a model moves along a direction of its weights, and the Gauss-Newton product that this makes.
//!
//! With J the derivative of the logits by the attributed weights and H = diag(p) - p p^T the softmax's Hessian, G v is
//! J^T H J v: a tangent pass, H at every target, and the backward pass that taps have, too. Weights of the loss other than the
//! attributed maps stay where they are.

use anyhow::{Result, ensure};
use burn::tensor::{Int, Tensor, TensorData};
use wherefrom_linalg::kernels::{cross_entropy_tangent, softmax};

use crate::batch::{Batch, Target};
use crate::decoder::{Decoder, Forward, scatter_rows};
use crate::footprint;
use crate::head::HEAD_LOGITS;
use crate::model::Model;
use crate::module::Selection;
use crate::precision::Precision;
use crate::taps::{Event, Goal, Pass, Tap};
use crate::weights::Weights;

/// A direction V of the attributed maps, at the weights of a model.
#[derive(Clone, Copy)]
pub(crate) struct Direction<'a> {
    pub(crate) weights: Weights<'a>,
    selection: &'a Selection,
    /// [out, in] of each module of the selection.
    maps: &'a [Tensor<2>],
}

impl Direction<'_> {
    /// V of a module by its number; none where it is not attributed.
    pub(crate) fn of(self, module: usize) -> Option<Tensor<2>> {
        self.selection.place(module).map(|place| self.maps[place].clone())
    }
}

impl Decoder<'_> {
    /// How the last residual stream moves: [rows, hidden].
    fn tangent(self, forward: &Forward, direction: Direction<'_>) -> Result<Tensor<2>> {
        let mut moved = None;
        for (block, state) in forward.states(self.outline)? {
            moved = block.tangent(state, &forward.places, direction, moved)?;
        }
        Ok(moved.unwrap_or_else(|| forward.output.zeros_like()))
    }
}

/// A model at its weights, over one batch: what many directions share.
pub struct Linearised<'a> {
    model: &'a Model,
    batch: &'a Batch,
    selection: &'a Selection,
    forward: Forward,
    predictions: Vec<Prediction<'a>>,
}

/// What is predicted of some targets.
struct Prediction<'a> {
    targets: &'a [Target],
    rows: Tensor<1, Int>,
    /// The last residual stream [targets, hidden].
    stream: Tensor<2>,
    /// [targets, vocabulary]
    probabilities: Tensor<2>,
    /// The same, where they are bent.
    logits: Option<Tensor<2>>,
}

impl Model {
    /// The forward pass over a batch, kept for any number of products.
    ///
    /// # Errors
    /// Those of reading weights, and a model in reduced precision: products would be of its rounding.
    pub fn linearised<'a>(&'a self, batch: &'a Batch, selection: &'a Selection) -> Result<Linearised<'a>> {
        ensure!(self.precision == Precision::F32, "a Gauss-Newton product is taken in float32");
        batch.without_preferences("a Gauss-Newton product")?;
        let forward = self.decoder().forward(batch, Some(Goal::Taps(selection)))?;
        let chunk = (HEAD_LOGITS / self.config.vocab_size).max(1);
        let predictions = batch.targets.chunks(chunk).map(|targets| {
            let rows = self.indices(targets.iter().map(|target| target.row).collect());
            let stream = forward.output.clone().select(0, rows.clone());
            let logits = self.head_logits(stream.clone(), false)?;
            let bent = self.config.logit_cap.map(|_| logits.clone());
            Ok(Prediction { targets, rows, stream, probabilities: softmax(logits), logits: bent })
        });
        let predictions = predictions.collect::<Result<_>>()?;
        Ok(Linearised { model: self, batch, selection, forward, predictions })
    }

    /// Tokens of a batch that [`Model::linearised`] keeps, probabilities included.
    pub fn linearised_tokens(&self, asked: usize) -> usize {
        footprint::linearised_tokens(&self.outline, asked)
    }
}

impl Linearised<'_> {
    /// G v for a direction with an [out, in] for each module of the selection: `visit` is called for every module, last to
    /// first, and d^T a of its taps is the module's part of the product, sum over targets of w J^T H J v with w the weight of
    /// the target's segment.
    ///
    /// Returns how the loss of each sequence moves along the direction, its gradient times v.
    ///
    /// # Errors
    /// Those of reading weights and of `visit`.
    pub fn product(&self, direction: &[Tensor<2>], visit: &mut dyn FnMut(Tap<'_>) -> Result<()>) -> Result<Vec<f64>> {
        let Self { model, batch, selection, ref forward, .. } = *self;
        let direction = Direction { weights: model.weights(), selection, maps: direction };
        let moved = model.decoder().tangent(forward, direction)?;
        let (d, slopes) = self.curved(&moved)?;
        let visit = &mut |event: Event<'_>| {
            let Event::Map(number, tokens, activations, d) = event else { return Ok(()) };
            let Some(index) = selection.place(number) else { return Ok(()) };
            let (module, precision) = (&model.modules()[number], model.precision);
            visit(Tap { index, module, tokens, activations, output_gradients: d.clone(), precision })
        };
        let mut pass = Pass { weights: model.weights(), goal: Goal::Taps(selection), tokens: &batch.tokens, visit };
        model.decoder().backward(batch, forward.clone(), d, &mut pass)?;
        Ok(slopes)
    }

    /// From how the last residual stream moves to how the loss's gradient there does, and how each sequence's loss does.
    fn curved(&self, moved: &Tensor<2>) -> Result<(Tensor<2>, Vec<f64>)> {
        let Self { model, batch, .. } = self;
        let head = model.head()?;
        let (mut d_output, mut slopes) = (moved.zeros_like(), vec![0.0; batch.len()]);
        for Prediction { targets, rows, stream, probabilities, logits } in &self.predictions {
            // Where nothing is bent logits are not looked at.
            let z = logits.as_ref().unwrap_or(probabilities);
            let t_logits = head.tangent(moved.clone().select(0, rows.clone()), stream.clone(), z);
            let labels: Vec<_> = targets.iter().map(|target| target.id).collect();
            let (slope, mut d_logits) = cross_entropy_tangent(t_logits, probabilities.clone(), &labels);
            for (target, slope) in targets.iter().zip(slope) {
                slopes[target.sequence] += f64::from(target.weight * slope);
            }
            if targets.iter().any(|target| target.weight != 1.0) {
                let weights: Vec<_> = targets.iter().map(|target| target.weight).collect();
                d_logits = d_logits * Tensor::from_data(TensorData::new(weights, [targets.len(), 1]), &model.device);
            }
            let d_x = head.read_backward(head.backward(d_logits, z), stream.clone());
            d_output = scatter_rows(d_output, rows.clone(), d_x);
        }
        Ok((d_output, slopes))
    }
}
