//! Sums over a corpus that survive a kill: one checkpoint {sums, next span}, replaced atomically every so often.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use burn::tensor::{Device, Tensor};
use whence_artifact::{Artifact, Draft, Example, Exec, Span, Tokens};
use whence_linalg::kernels::{add_product, add_squared_products, product};
use whence_model::{Batch, Sequence, batches};

use crate::tensors::values;

/// Seconds between checkpoints at least; writing one may take a twentieth of the time.
const INTERVAL: Duration = Duration::from_secs(20);

/// What is read, and how.
pub(crate) struct Pass<'a> {
    /// For the reporter.
    pub(crate) task: &'a str,
    pub(crate) tokens: &'a Artifact<Tokens>,
    pub(crate) exec: &'a Exec,
    pub(crate) draft: &'a Draft,
    pub(crate) device: &'a Device,
}

/// float32 sums of one span, by slot, on the device.
pub(crate) struct Pending(Vec<Option<Tensor<2>>>);

impl Pending {
    /// slot += sum over the examples z of (d_z^T a_z)^2, elementwise.
    pub(crate) fn add_squares(&mut self, slot: usize, d: Tensor<2>, a: Tensor<2>, examples: usize) {
        let shape = [d.dims()[1], a.dims()[1]];
        let sum = self.0[slot].take().unwrap_or_else(|| Tensor::zeros(shape, &d.device()));
        self.0[slot] = Some(add_squared_products(sum, d, a, examples));
    }

    /// slot += x^T x, x [tokens, n]: padding rows are zero and add nothing.
    pub(crate) fn add_outer(&mut self, slot: usize, x: Tensor<2>) {
        let transposed = x.clone().transpose();
        self.0[slot] = Some(match self.0[slot].take() {
            Some(sum) => add_product(sum, transposed, x),
            None => product(transposed, x),
        });
    }
}

/// float64 sums, by slot.
pub(crate) struct Reduction {
    pub(crate) sums: Vec<Vec<f64>>,
    pub(crate) tokens: u64,
    pub(crate) examples: u64,
    next: usize,
}

impl Reduction {
    /// Slots of the given lengths, zero, or as an earlier run of this draft left them.
    pub(crate) fn restore(draft: &Draft, lengths: &[usize]) -> Result<Self> {
        let mut reduction =
            Self { sums: lengths.iter().map(|&n| vec![0.0; n]).collect(), tokens: 0, examples: 0, next: 0 };
        if let Some(bytes) = draft.restore("sums")? {
            let (header, body) = bytes.split_at_checked(24).context("a checkpoint has a header")?;
            let word = |i: usize| u64::from_le_bytes(header[8 * i..8 * i + 8].try_into().unwrap_or_default());
            let values: &[u8] = body;
            ensure!(
                values.len() == 8 * lengths.iter().sum::<usize>(),
                "the checkpoint has another size: remove the draft"
            );
            (reduction.next, reduction.tokens, reduction.examples) = (word(0) as usize, word(1), word(2));
            let mut values = values.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap_or_default()));
            for sum in &mut reduction.sums {
                sum.iter_mut().for_each(|sum| *sum = values.next().unwrap_or_default());
            }
        }
        Ok(reduction)
    }

    fn save(&self, draft: &Draft) -> Result<()> {
        let mut bytes = Vec::new();
        for word in [self.next as u64, self.tokens, self.examples] {
            bytes.extend(word.to_le_bytes());
        }
        for sum in &self.sums {
            bytes.extend(sum.iter().flat_map(|value| value.to_le_bytes()));
        }
        draft.checkpoint("sums", &bytes)?;
        // For `whence plan`; written after the sums, so it never promises too much.
        draft.checkpoint("done", self.next.to_string().as_bytes())
    }

    /// Runs `batch` over every span that is not yet summed; what a span left on the device is added to the sums.
    pub(crate) fn run(
        &mut self,
        pass: &Pass<'_>,
        mut batch: impl FnMut(&Batch, &mut Pending) -> Result<()>,
    ) -> Result<()> {
        let &Pass { task, tokens, exec, draft, device } = pass;
        let mut pending = Pending(vec![None; self.sums.len()]);
        let spans: Vec<Span> = draft.plan(|| tokens.spans())?;
        exec.reporter.begin(task, "tokens", tokens.tokens(), self.tokens);
        let (mut saved, mut cost) = (Instant::now(), Duration::ZERO);
        for (index, span) in spans.iter().enumerate().skip(self.next) {
            let examples = tokens.read_span(span)?;
            let sequences: Vec<_> = examples.iter().map(sequence).collect();
            let lengths: Vec<_> = sequences.iter().map(|sequence| sequence.input_ids.len()).collect();
            for chosen in batches(&lengths, exec.batch_tokens) {
                let chosen: Vec<_> = chosen.into_iter().map(|index| sequences[index]).collect();
                let made = Batch::new(&chosen, device);
                batch(&made, &mut pending)?;
                self.tokens += made.real_tokens() as u64;
                exec.reporter.advance(made.real_tokens() as u64);
            }
            for (sum, pending) in self.sums.iter_mut().zip(&mut pending.0) {
                if let Some(pending) = pending.take() {
                    sum.iter_mut().zip(values(pending)?).for_each(|(sum, value)| *sum += f64::from(value));
                }
            }
            self.examples += examples.len() as u64;
            self.next = index + 1;
            if self.next < spans.len() && saved.elapsed() > INTERVAL.max(20 * cost) {
                let start = Instant::now();
                self.save(draft)?;
                (saved, cost) = (Instant::now(), start.elapsed());
            }
        }
        exec.reporter.end();
        Ok(())
    }
}

fn sequence(example: &Example) -> Sequence<'_> {
    Sequence {
        example: example.example,
        input_ids: &example.input_ids,
        target_mask: &example.target_mask,
        segments: &example.segments,
        weights: &example.weights,
    }
}
