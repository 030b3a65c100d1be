//! How far a model's predictions are from those of the same model at other weights.

use anyhow::{Result, ensure};
use burn::tensor::{Tensor, TensorData};
use wherefrom_linalg::kernels::softmax;

use crate::batch::Batch;
use crate::decoder::scatter_rows;
use crate::head::HEAD_LOGITS;
use crate::model::Model;
use crate::module::Selection;
use crate::precision::Precision;
use crate::taps::{Event, Goal, Pass, Tap};

impl Model {
    /// The gradient of sum over targets of KL(p of `before` || p), where `before` is the model at other weights: calls `visit`
    /// with each module's tap, last to first. At the logits the gradient is p - p of `before`, and 0 at equal weights.
    ///
    /// # Errors
    /// Those of reading weights and of `visit`, and a model in reduced precision.
    pub fn divergence_taps(
        &self,
        batch: &Batch,
        before: &Model,
        selection: &Selection,
        visit: &mut dyn FnMut(Tap<'_>) -> Result<()>,
    ) -> Result<()> {
        ensure!(self.precision == Precision::F32, "a divergence is taken in float32");
        batch.without_preferences("a divergence")?;
        let goal = Goal::Taps(selection);
        let forward = self.decoder().forward(batch, Some(goal))?;
        let reference = before.decoder().forward(batch, None)?.output;
        let head = self.head()?;
        let mut d = forward.output.zeros_like();
        let chunk = (HEAD_LOGITS / self.config.vocab_size).max(1);
        for targets in batch.targets.chunks(chunk) {
            let rows = self.indices(targets.iter().map(|target| target.row).collect());
            let x = forward.output.clone().select(0, rows.clone());
            let logits = head.logits(head.read(x.clone()));
            let p = softmax(logits.clone());
            let was = softmax(before.head_logits(reference.clone().select(0, rows.clone()), false)?);
            let weight: Vec<_> = targets.iter().map(|target| target.weight).collect();
            let weight = Tensor::<2>::from_data(TensorData::new(weight, [targets.len(), 1]), &self.device);
            let d_hidden = head.backward((p - was) * weight, &logits);
            d = scatter_rows(d, rows, head.read_backward(d_hidden, x));
        }
        let visit = &mut |event: Event<'_>| {
            let Event::Map(number, tokens, activations, d) = event else { return Ok(()) };
            let Some(index) = selection.place(number) else { return Ok(()) };
            let (module, precision) = (&self.modules()[number], self.precision);
            visit(Tap { index, module, tokens, activations, output_gradients: d.clone(), precision })
        };
        self.decoder().backward(
            batch,
            forward,
            d,
            &mut Pass { weights: self.weights(), goal, tokens: &batch.tokens, visit },
        )
    }

    /// The model with matrices [out, in] added to the maps of a selection, in its order; a bias is the last column.
    ///
    /// # Errors
    /// Those of reading weights.
    pub fn moved(&self, selection: &Selection, by: impl IntoIterator<Item = Tensor<2>>) -> Result<Self> {
        let mut moved = self.clone();
        for (module, by) in selection.modules().iter().zip(by) {
            let width = module.in_features - usize::from(module.bias);
            let weight = self.weights().matrix(&module.weight())? + by.clone().narrow(1, 0, width);
            moved.parameters.insert(module.weight(), weight);
            if module.bias {
                let bias = self.weights().vector(&module.bias()) + by.narrow(1, width, 1).transpose();
                moved.parameters.insert(module.bias(), bias);
            }
        }
        Ok(moved)
    }
}
