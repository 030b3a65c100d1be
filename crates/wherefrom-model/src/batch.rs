//! Sequences side by side: bucketed by length so that almost nothing is padding.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData};

/// One training sequence or query.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// Its number, which seeds its sampled labels.
    pub example: u64,
    /// Token ids, at least one.
    pub input_ids: &'a [u32],
    /// True where a token is a prediction target; the first of a segment is never one.
    pub target_mask: &'a [bool],
    /// First token of each segment, ascending from 0; segments do not see each other. Empty: the sequence is one.
    pub segments: &'a [u32],
    /// w of each segment in L = sum over segments s of w_s L_s. Empty: all 1.
    pub weights: &'a [f32],
}

impl<'a> Sequence<'a> {
    /// A sequence of one segment with weight 1.
    pub fn new(example: u64, input_ids: &'a [u32], target_mask: &'a [bool]) -> Self {
        Self { example, input_ids, target_mask, segments: &[], weights: &[] }
    }

    /// Tokens of each segment and its weight.
    fn parts(&self) -> impl Iterator<Item = (Range<usize>, f32)> {
        let starts = if self.segments.is_empty() { &[0] } else { self.segments };
        let ends = starts[1..].iter().map(|&end| end as usize).chain([self.input_ids.len()]);
        let weights = self.weights.iter().copied().chain(std::iter::repeat(1.0));
        starts.iter().zip(ends).zip(weights).map(|((&start, end), weight)| (start as usize..end, weight))
    }
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
    /// Position of each row in its segment, 0 on padding: [batch * tokens].
    pub positions: Vec<usize>,
    /// Rows of each segment: what attends to itself alone.
    pub(crate) spans: Vec<Range<usize>>,
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
    /// Weight of its segment.
    pub(crate) weight: f32,
}

impl Batch {
    /// Puts sequences side by side on a device.
    pub fn new(sequences: &[Sequence<'_>], device: &Device) -> Self {
        let lengths: Vec<_> = sequences.iter().map(|sequence| sequence.input_ids.len()).collect();
        let tokens = lengths.iter().copied().max().unwrap_or(0);
        let mut ids = vec![0_i32; sequences.len() * tokens];
        let mut positions = vec![0; sequences.len() * tokens];
        let (mut spans, mut targets) = (Vec::new(), Vec::new());
        for (b, sequence) in sequences.iter().enumerate() {
            for (part, weight) in sequence.parts() {
                let first = b * tokens + part.start;
                spans.push(first..b * tokens + part.end);
                for (position, t) in part.enumerate() {
                    let (row, id) = (first + position, sequence.input_ids[t]);
                    ids[row] = id.cast_signed();
                    positions[row] = position;
                    if position > 0 && sequence.target_mask[t] {
                        targets.push(Target { row: row - 1, sequence: b, position: t, id, weight });
                    }
                }
            }
        }
        let ids = Tensor::from_data(TensorData::new(ids, [sequences.len() * tokens]), device);
        let examples = sequences.iter().map(|sequence| sequence.example).collect();
        Self { examples, lengths, tokens, positions, spans, targets, ids, device: device.clone() }
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Whether a sequence has more than one segment.
    pub fn segmented(&self) -> bool {
        self.spans.len() > self.len()
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
