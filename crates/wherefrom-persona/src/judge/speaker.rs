//! A checkpoint that is asked as a judge.

use anyhow::Result;
use wherefrom_artifact::bad_input;
use wherefrom_model::{Batch, Labels, Model, Precision, Sequence, Sizes};
use wherefrom_stage::{Cost, Exec, File, Given, Machine, Planned};
use wherefrom_vocabulary::{Chat, Encoder};

use crate::ask::Renderer;

/// The checkpoint with its tokenizer and chat template.
pub(crate) struct Speaker {
    pub(crate) model: Model,
    pub(crate) encoder: Encoder,
    renderer: Renderer,
    batch_tokens: usize,
}

impl Speaker {
    /// The step's checkpoint.
    ///
    /// # Errors
    /// Those of reading it; [`wherefrom_artifact::Error::Input`] where it has no tokenizer.
    pub(crate) fn open(given: &Given, exec: &Exec) -> Result<Self> {
        let tokenizer = given.file(File::Tokenizer).ok_or_else(|| {
            bad_input("there is no tokenizer: none lies beside the model; set tokenizer = \"FOLDER/tokenizer.json\"")
        })?;
        let chat = given.file(File::ChatTemplate).map(|path| Chat::open(&path, None)).transpose()?;
        let model = wherefrom_pass::open(&given.model()?, Precision::F32, exec)?;
        let limit = exec.device.limit(exec.memory, wherefrom_linalg::memory::available_bytes);
        let model = model.fitting(exec.batch_tokens, limit, 0)?;
        Ok(Self {
            model,
            encoder: Encoder::open(&tokenizer)?,
            renderer: Renderer { chat },
            batch_tokens: exec.batch_tokens,
        })
    }

    /// The tokens of a prompt up to where the answer begins.
    pub(crate) fn prompt(&self, system: Option<&str>, question: &str) -> Result<Vec<u32>> {
        let (text, _) = self.renderer.render(system, question).map_err(bad_input)?;
        let prefix: &[u32] = if self.renderer.chat.is_some() { &[] } else { &self.encoder.prefix };
        Ok([prefix, &self.encoder.encode(&text).map_err(bad_input)?].concat())
    }

    /// Of each row of tokens, with what is a target of it, what `of` makes of a batch of them.
    fn each<T>(
        &self,
        rows: &[(Vec<u32>, Vec<bool>)],
        of: impl Fn(&Batch, &[Sequence<'_>]) -> Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        let context = self.model.config.max_position_embeddings;
        if let Some((row, _)) = rows.iter().find(|(ids, _)| ids.len() > context) {
            return Err(bad_input(format!(
                "an answer with what a judge is told of it has {} tokens, and the model's context holds {context}; lower \
                 max-new-tokens of the step that made the answers, or take another judge",
                row.len()
            )));
        }
        let lengths: Vec<_> = rows.iter().map(|(ids, _)| ids.len()).collect();
        let mut all: Vec<Option<T>> = rows.iter().map(|_| None).collect();
        for group in self.model.batches(&lengths, self.batch_tokens) {
            let sequences: Vec<_> =
                group.iter().map(|&index| Sequence::new(index as u64, &rows[index].0, &rows[index].1)).collect();
            let made = of(&Batch::new(&sequences, &self.model.device), &sequences)?;
            group.into_iter().zip(made).for_each(|(index, made)| all[index] = Some(made));
        }
        Ok(all.into_iter().flatten().collect())
    }

    /// The distribution over the token behind each row [vocabulary].
    pub(crate) fn next(&self, rows: Vec<Vec<u32>>) -> Result<Vec<Vec<f64>>> {
        let rows: Vec<_> =
            rows.into_iter().map(|ids| (vec![false; ids.len()], ids)).map(|(mask, ids)| (ids, mask)).collect();
        self.each(&rows, |batch, sequences| {
            let logits = self.model.next_token_logits(batch)?;
            let [_, vocabulary] = logits.dims();
            let values: Vec<f32> = logits.to_data().iter::<f32>().collect();
            values.chunks(vocabulary).zip(sequences).map(|(logits, row)| self.softmax(logits, *row)).collect()
        })
    }

    fn softmax(&self, logits: &[f32], row: Sequence<'_>) -> Result<Vec<f64>> {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exponents: Vec<f64> = logits.iter().map(|logit| f64::from(logit - largest).exp()).collect();
        let sum: f64 = exponents.iter().sum();
        if !sum.is_finite() {
            return Err(self.model.overflow(row, "a next token's logit", &Labels::Empirical));
        }
        Ok(exponents.into_iter().map(|exponent| exponent / sum).collect())
    }

    /// The mean over targets of their log-probability, of each row.
    pub(crate) fn mean_log_probability(&self, rows: &[(Vec<u32>, Vec<bool>)]) -> Result<Vec<f64>> {
        self.each(rows, |batch, sequences| {
            let losses = self.model.token_losses(batch)?;
            let mean = |(losses, row): (Vec<f32>, &Sequence<'_>)| {
                let targets = row.target_mask.iter().filter(|target| **target).count();
                -losses.iter().map(|loss| f64::from(*loss)).sum::<f64>() / targets.max(1) as f64
            };
            Ok(losses.into_iter().zip(sequences).map(mean).collect())
        })
    }
}

/// Of forward passes over so many tokens.
pub(crate) fn cost(planned: &Planned, machine: &Machine, tokens: f64, disk: f64) -> Cost {
    let Some(sizes) = planned.attributed(machine, Sizes::new) else { return Cost::new(0.0, disk, 0.0) };
    let sizes = sizes.held(Precision::F32, machine.device.gpu().is_none()).fitting(machine.memory, 0.0);
    Cost::new(sizes.forward_bytes(), disk, 2.0 * sizes.forward * tokens).note(sizes.footprint.note())
}
