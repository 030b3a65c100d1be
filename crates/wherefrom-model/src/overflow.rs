//! Numbers that are not finite: which row, and at which module they arise, in the words of a refusal.

use anyhow::{Error, Result};
use burn::tensor::Tensor;

use crate::batch::{Batch, Sequence, Target};
use crate::error::bad_input;
use crate::head::Labels;
use crate::model::Model;
use crate::module::{Modules, Selection};
use crate::precision::Precision;
use crate::taps::{Event, Goal, Pass, Tap};

impl Model {
    /// Refuses a sequence: what is made of it (`what`, as in "its influence on query 3") is not finite.
    pub fn overflow(&self, sequence: Sequence<'_>, what: &str, labels: &Labels) -> Error {
        let example = sequence.example;
        self.refusal(example, what, self.first_overflow(sequence, labels))
    }

    /// The first module of a sequence whose input is not finite, or at whose output the gradient is not; none where all are.
    pub fn first_overflow(&self, sequence: Sequence<'_>, labels: &Labels) -> Option<String> {
        let batch = Batch::new(&[sequence], &self.device);
        self.input_overflow(&batch).or_else(|| self.gradient_overflow(&batch, labels))
    }

    /// Refuses losses that are not finite.
    pub(crate) fn finite(&self, losses: &[f32], targets: &[Target], batch: &Batch) -> Result<()> {
        match losses.iter().position(|loss| !loss.is_finite()) {
            None => Ok(()),
            Some(place) => {
                let example = batch.examples[targets[place].sequence];
                let module = self.input_overflow(batch).unwrap_or_else(|| "the final norm or the head".into());
                Err(self.refusal(example, "the model's loss", Some(module)))
            }
        }
    }

    fn refusal(&self, example: u64, what: &str, place: Option<String>) -> Error {
        let place = place.map_or_else(String::new, |place| format!(", and first {place}"));
        let name = self.precision.name();
        let remedy = match self.precision {
            Precision::F32 => "float32 overflows; leave the row out, or mend the checkpoint".into(),
            _ => format!(
                "precision = \"{name}\": its activations overflow; use \"bf16\" or \"f32\" (`wherefrom check` compares them)"
            ),
        };
        bad_input(format!("example {example}: {what} is not a finite number{place}; {remedy}"))
    }

    fn input_overflow(&self, batch: &Batch) -> Option<String> {
        let all = Selection::new(&Modules::Named("all".into()), self.modules()).ok()?;
        let goal = Goal::Taps(&all);
        let forward = self.decoder().forward(batch, Some(goal)).ok()?;
        let d = forward.output.zeros_like();
        // Modules come last to first: what is found last is the first.
        let mut found = None;
        let visit = &mut |event: Event<'_>| {
            if let Event::Map(number, _, activations, _) = event
                && !is_finite(activations)
            {
                found = Some(format!("the input of {}", self.modules()[number].name));
            }
            Ok(())
        };
        self.decoder()
            .backward(batch, forward, d, &mut Pass { weights: self.weights(), goal, tokens: &batch.tokens, visit })
            .ok()?;
        found
    }

    /// Of a batch whose loss is finite.
    fn gradient_overflow(&self, batch: &Batch, labels: &Labels) -> Option<String> {
        let all = Selection::new(&Modules::Named("all".into()), self.modules()).ok()?;
        let mut found = None;
        let visit = &mut |tap: Tap<'_>| {
            if found.is_none() && !is_finite(tap.output_gradients) {
                found = Some(format!("the gradient at the output of {}", tap.module.name));
            }
            Ok(())
        };
        self.taps(batch, labels, &all, visit).ok()?;
        found
    }
}

fn is_finite(tensor: Tensor<2>) -> bool {
    let data = tensor.into_data().convert::<f32>();
    data.as_slice::<f32>().is_ok_and(|values| values.iter().all(|value| value.is_finite()))
}
