//! Text token by token: keys and values of what was read are kept, so that a further token costs one token's pass.

use anyhow::Result;
use burn::tensor::Tensor;
use wherefrom_linalg::kernels::KeyValues;

use crate::batch::{Batch, Sequence};
use crate::change::Addition;
use crate::config::Config;
use crate::model::Model;
use crate::rotary::Rotary;

/// Sequences that a model continues, with the keys and values of all their tokens in every layer.
#[derive(Debug, Clone)]
pub struct Cache {
    layers: Vec<KeyValues>,
    open: Vec<Open>,
}

/// One of them.
#[derive(Debug, Clone)]
struct Open {
    /// All of its tokens so far.
    ids: Vec<u32>,
    /// How many of them are its prompt.
    prompt: usize,
    additions: Vec<Addition>,
}

impl Cache {
    /// Sequences that are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Leaves the sequences of these numbers, ascending, and forgets the others.
    pub fn keep(&mut self, sequences: &[usize]) {
        if sequences.len() < self.open.len() {
            self.layers.iter_mut().for_each(|layer| layer.keep(sequences));
            self.open = sequences.iter().map(|&sequence| self.open[sequence].clone()).collect();
        }
    }

    /// Bytes of a token's keys and values in all layers.
    pub fn bytes_of_token(config: &Config) -> u64 {
        let [_, keys] = config.head_widths();
        (2 * 4 * keys * config.num_hidden_layers) as u64
    }
}

impl Model {
    /// Reads prompts, each of one segment, and returns the logits after the last token of each, [prompts, vocabulary], with
    /// what is needed to go on. To each belong vectors that are added to the residual stream, or none.
    ///
    /// # Errors
    /// Those of reading weights.
    pub fn prefill(&self, prompts: &[&[u32]], additions: &[&[Addition]]) -> Result<(Cache, Tensor<2>)> {
        let open = prompts.iter().zip(additions).map(|(ids, additions)| Open {
            ids: ids.to_vec(),
            prompt: ids.len(),
            additions: additions.to_vec(),
        });
        self.read(open.collect())
    }

    fn read(&self, open: Vec<Open>) -> Result<(Cache, Tensor<2>)> {
        let ids: Vec<_> = open.iter().map(|open| &open.ids[..]).collect();
        let batch = self.steered(&ids, &open, &vec![0; open.len()]);
        let mut layers = vec![KeyValues::default(); self.outline.blocks.len()];
        let stream = self.decoder().forward_cached(&batch, &mut layers, None)?;
        let last = batch.tokens.sequences.iter().map(|rows| rows.end - 1).collect();
        let logits = self.head_logits(stream.select(0, self.indices(last)), false)?;
        Ok((Cache { layers, open }, logits))
    }

    /// Adds a token to each open sequence, and returns the logits after it: [sequences, vocabulary].
    ///
    /// # Errors
    /// As [`Model::prefill`].
    pub fn step(&self, cache: &mut Cache, ids: &[u32]) -> Result<Tensor<2>> {
        cache.open.iter_mut().zip(ids).for_each(|(open, &id)| open.ids.push(id));
        let lengths: Vec<_> = cache.open.iter().map(|open| open.ids.len()).collect();
        let mut rotary = self.config.rotary.iter().chain(&self.config.local_rotary);
        let outgrown =
            |rotary: &Rotary| lengths.iter().any(|&length| rotary.is_long(length) && !rotary.is_long(length - 1));
        // Where a sequence becomes a long one, all of its keys turn otherwise.
        if rotary.any(outgrown) {
            let logits;
            (*cache, logits) = self.read(std::mem::take(&mut cache.open))?;
            return Ok(logits);
        }
        let ids: Vec<_> = ids.iter().map(std::slice::from_ref).collect();
        let first: Vec<_> = lengths.iter().map(|length| length - 1).collect();
        let batch = self.steered(&ids, &cache.open, &first);
        let stream = self.decoder().forward_cached(&batch, &mut cache.layers, Some(&lengths))?;
        self.head_logits(stream, true)
    }

    /// Tokens of open sequences that begin at these positions.
    fn steered(&self, ids: &[&[u32]], open: &[Open], first: &[usize]) -> Batch {
        let untargeted: Vec<_> = ids.iter().map(|ids| vec![false; ids.len()]).collect();
        let sequences: Vec<_> =
            ids.iter().zip(&untargeted).map(|(ids, targets)| Sequence::new(0, ids, targets)).collect();
        let batch = Batch::new(&sequences, &self.device).beginning_at(first);
        let additions: Vec<_> = open.iter().map(|open| &open.additions[..]).collect();
        let prompts: Vec<_> = open.iter().map(|open| open.prompt).collect();
        batch.steered(&additions, first, &prompts)
    }
}
