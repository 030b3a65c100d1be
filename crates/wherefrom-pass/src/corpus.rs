//! A model and the sequences that it runs over.

use anyhow::Result;
use wherefrom_artifact::{Artifact, Draft, Example, Span, Tokens};
use wherefrom_model::{
    ACTIVATION_BYTES, Batch, Checkpoint, Labels, Model, Precision, Preference, Selection, Sequence, Tap, batches,
    open_device,
};
use wherefrom_stage::{Exec, ModelFiles};

use crate::units::Units;

/// A checkpoint, on the device of the run, in that precision, its matrices in their files: [`place`] and
/// [`place_beside_sums`] bring them into memory where there is room.
///
/// [`place`]: crate::place
/// [`place_beside_sums`]: crate::place_beside_sums
///
/// # Errors
/// As [`Model::open`] and [`Model::with_precision`].
pub fn open(files: &ModelFiles, precision: Precision, exec: &Exec) -> Result<Model> {
    let checkpoint = Checkpoint::new(&files.folder, &files.adapters, &files.attribute)?;
    Model::open(checkpoint, &open_device(exec.device.gpu())?)?.with_precision(precision)
}

/// The row of a tokens artifact as the model takes it.
pub fn sequence(example: &Example) -> Sequence<'_> {
    Sequence {
        example: example.example,
        input_ids: &example.input_ids,
        target_mask: &example.target_mask,
        segments: &example.segments,
        weights: &example.weights,
        preference: Preference::of(&example.preference),
    }
}

/// A model over the sequences of a tokens artifact.
#[derive(Clone, Copy)]
pub struct Corpus<'a> {
    /// What is being done, for the reporter.
    pub task: &'a str,
    /// The model.
    pub model: &'a Model,
    /// Its sequences.
    pub tokens: &'a Artifact<Tokens>,
    /// How it runs.
    pub exec: &'a Exec,
}

impl<'a> Corpus<'a> {
    /// A model over these tokens.
    pub fn new(task: &'a str, model: &'a Model, tokens: &'a Artifact<Tokens>, exec: &'a Exec) -> Self {
        Self { task, model, tokens, exec }
    }

    /// The units of a stage that writes a part for each span.
    ///
    /// # Errors
    /// As [`Units::plan`].
    pub fn spans(&self, draft: &Draft) -> Result<Units<Span>> {
        Units::plan(draft, || self.tokens.spans(draft.share()), |span| span.len() as u64)
    }

    /// Reads the examples of each span that is left, for `write` to make its part of them.
    ///
    /// # Errors
    /// Those of reading and of `write`.
    pub fn parts(&self, spans: Units<Span>, mut write: impl FnMut(usize, &[Example]) -> Result<()>) -> Result<()> {
        spans.each(self.task, self.exec, |part, span| write(part, &self.tokens.read_span(&span)?))
    }

    /// The examples in batches of like length and so many tokens, each with their places in `examples`.
    pub fn batches_of(&self, examples: &[Example], tokens: usize) -> impl Iterator<Item = (Vec<usize>, Batch)> {
        let lengths: Vec<_> = examples.iter().map(|example| example.input_ids.len()).collect();
        batches(&lengths, tokens).into_iter().map(|group| {
            let sequences: Vec<_> = group.iter().map(|&index| sequence(&examples[index])).collect();
            let batch = Batch::new(&sequences, &self.model.device);
            (group, batch)
        })
    }

    /// Calls `visit` with every batch of the examples, of as many tokens as the run says and the model allows.
    ///
    /// # Errors
    /// Those of `visit`.
    pub fn batches(&self, examples: &[Example], mut visit: impl FnMut(&[usize], &Batch) -> Result<()>) -> Result<()> {
        for (group, batch) in
            self.batches_of(examples, self.model.batch_tokens(self.exec.batch_tokens, ACTIVATION_BYTES))
        {
            visit(&group, &batch)?;
            self.exec.reporter.advance(group.len() as u64);
        }
        Ok(())
    }

    /// The gradients of the text's own loss: calls `visit` with every batch and each of its taps, last module to first.
    ///
    /// # Errors
    /// Those of the model and of `visit`.
    pub fn taps(
        &self,
        examples: &[Example],
        selection: &Selection,
        mut visit: impl FnMut(&[usize], Tap<'_>) -> Result<()>,
    ) -> Result<()> {
        self.batches(examples, |group, batch| {
            self.model.taps(batch, &Labels::Empirical, selection, &mut |tap| visit(group, tap))?;
            Ok(())
        })
    }
}

/// The mean of the stream of some tokens, `[width]` each, summed in float64; of none zeros.
pub fn mean<'a>(tokens: impl Iterator<Item = &'a [f32]>, width: usize) -> impl Iterator<Item = f32> {
    let (mut sum, mut count) = (vec![0.0_f64; width], 0.0_f64);
    for token in tokens {
        sum.iter_mut().zip(token).for_each(|(sum, &value)| *sum += f64::from(value));
        count += 1.0;
    }
    sum.into_iter().map(move |sum| (sum / count.max(1.0)) as f32)
}
