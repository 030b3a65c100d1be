//! Sequences side by side: bucketed by length so that almost nothing is padding.

use burn::tensor::{Device, Int, Tensor, TensorData};

/// One training sequence or query.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// Its number, which seeds its sampled labels.
    pub example: u64,
    /// Token ids, at least one.
    pub input_ids: &'a [u32],
    /// True where a token is a prediction target; position 0 is never one.
    pub target_mask: &'a [bool],
}

/// Sequences padded on the right to the longest. Row b * tokens + t is token t of sequence b.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Example numbers.
    pub examples: Vec<u64>,
    /// Real tokens of each sequence.
    pub lengths: Vec<usize>,
    /// Padded length.
    pub tokens: usize,
    /// Rows that predict a target, with the target's sequence, position and id.
    pub(crate) targets: Vec<Target>,
    /// Token ids, padded with 0: [batch * tokens].
    pub(crate) ids: Tensor<1, Int>,
    device: Device,
}

/// A token to be predicted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// Row of the position before it.
    pub(crate) row: usize,
    /// Sequence in the batch.
    pub(crate) sequence: usize,
    /// Its own position.
    pub(crate) position: usize,
    /// Its id in the text.
    pub(crate) id: u32,
}

impl Batch {
    /// Puts sequences side by side on a device.
    pub fn new(sequences: &[Sequence<'_>], device: &Device) -> Self {
        let lengths: Vec<_> = sequences.iter().map(|sequence| sequence.input_ids.len()).collect();
        let tokens = lengths.iter().copied().max().unwrap_or(0);
        let mut ids = vec![0_i32; sequences.len() * tokens];
        let mut targets = Vec::new();
        for (b, sequence) in sequences.iter().enumerate() {
            for (t, &id) in sequence.input_ids.iter().enumerate() {
                ids[b * tokens + t] = id.cast_signed();
                if t > 0 && sequence.target_mask[t] {
                    targets.push(Target { row: b * tokens + t - 1, sequence: b, position: t, id });
                }
            }
        }
        let ids = Tensor::from_data(TensorData::new(ids, [sequences.len() * tokens]), device);
        let examples = sequences.iter().map(|sequence| sequence.example).collect();
        Self { examples, lengths, tokens, targets, ids, device: device.clone() }
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Real tokens.
    pub fn real_tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// 1 on real tokens, 0 on padding: [batch * tokens, 1]; none where nothing is padding.
    pub(crate) fn real(&self) -> Option<Tensor<2>> {
        if self.lengths.iter().all(|&length| length == self.tokens) {
            return None;
        }
        let mask: Vec<f32> = self
            .lengths
            .iter()
            .flat_map(|&length| (0..self.tokens).map(move |t| if t < length { 1.0 } else { 0.0 }))
            .collect();
        let rows = mask.len();
        Some(Tensor::from_data(TensorData::new(mask, [rows, 1]), &self.device))
    }
}

/// Groups sequences of like length: each batch has at most `batch_tokens` padded tokens, or one sequence.
/// Depends on lengths and order alone.
pub fn batches(lengths: &[usize], batch_tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<_> = (0..lengths.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(lengths[index]));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for index in order {
        match batches.last_mut() {
            // The first of a batch is its longest.
            Some(batch) if (batch.len() + 1) * lengths[batch[0]] <= batch_tokens => batch.push(index),
            _ => batches.push(vec![index]),
        }
    }
    batches
}
