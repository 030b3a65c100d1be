//! Sequences one after another, without padding, and which of them go together.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData};
use wherefrom_linalg::kernels::Ragged;

use crate::change::Change;
use crate::preference::Preference;

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
    /// Of two segments with weights 1 and -1: their loss is that of the preference. None: it is L.
    pub preference: Option<Preference>,
}

impl<'a> Sequence<'a> {
    /// A sequence of one segment with weight 1.
    pub fn new(example: u64, input_ids: &'a [u32], target_mask: &'a [bool]) -> Self {
        Self { example, input_ids, target_mask, segments: &[], weights: &[], preference: None }
    }

    /// Tokens of each segment and its weight.
    fn parts(&self) -> impl Iterator<Item = (Range<usize>, f32)> {
        let starts = if self.segments.is_empty() { &[0] } else { self.segments };
        let ends = starts[1..].iter().map(|&end| end as usize).chain([self.input_ids.len()]);
        let weights = self.weights.iter().copied().chain(std::iter::repeat(1.0));
        starts.iter().zip(ends).zip(weights).map(|((&start, end), weight)| (start as usize..end, weight))
    }
}

/// Sequences one after another: a row for each token.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Example numbers.
    pub examples: Vec<u64>,
    /// Every row, by sequence.
    pub tokens: TokenRows,
    /// Position of each row in its segment.
    pub(crate) positions: Vec<usize>,
    /// Rows of each segment: what attends to itself alone.
    pub(crate) spans: Vec<Range<usize>>,
    /// Rows that predict a target, with the target's sequence, position and id.
    pub(crate) targets: Vec<Target>,
    /// Of each sequence.
    pub(crate) preferences: Vec<Option<Preference>>,
    /// Token ids: [rows].
    pub(crate) ids: Tensor<1, Int>,
    /// The largest of them, and the example it is in.
    pub(crate) largest_id: (u32, u64),
    /// What is done to the residual stream.
    pub(crate) changes: Vec<Change>,
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
        let tokens = TokenRows::whole(sequences.iter().map(|sequence| sequence.input_ids.len()));
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        let (mut spans, mut targets) = (Vec::new(), Vec::new());
        for (b, sequence) in sequences.iter().enumerate() {
            for (part, weight) in sequence.parts() {
                let first = ids.len();
                spans.push(first..first + part.len());
                for (position, t) in part.enumerate() {
                    let id = sequence.input_ids[t];
                    ids.push(id.cast_signed());
                    positions.push(position);
                    if position > 0 && sequence.target_mask[t] {
                        targets.push(Target { row: first + position - 1, sequence: b, position: t, id, weight });
                    }
                }
            }
        }
        let largest = |sequence: &Sequence<'_>| Some((*sequence.input_ids.iter().max()?, sequence.example));
        let largest_id = sequences.iter().filter_map(largest).max().unwrap_or_default();
        let rows = ids.len();
        let ids = Tensor::from_data(TensorData::new(ids, [rows]), device);
        let examples = sequences.iter().map(|sequence| sequence.example).collect();
        let preferences = sequences.iter().map(|sequence| sequence.preference).collect();
        Self { examples, tokens, positions, spans, targets, preferences, ids, largest_id, changes: Vec::new() }
    }

    /// The same where the tokens of each sequence, which is one segment, come after so many others.
    pub(crate) fn beginning_at(mut self, first: &[usize]) -> Self {
        for (own, &first) in self.tokens.sequences.iter().zip(first) {
            self.positions[own].iter_mut().for_each(|position| *position += first);
        }
        self
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether the loss of a sequence is that of a preference.
    pub fn has_preferences(&self) -> bool {
        self.preferences.iter().any(Option::is_some)
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// Tokens of all sequences.
    pub fn rows(&self) -> usize {
        self.positions.len()
    }
}

/// The rows of a tensor by sequence, and which token each is of: all tokens of the batch, or those that a module saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRows {
    /// Rows of each sequence, in the batch's order.
    pub sequences: Ragged,
    /// Place of each row's token in its sequence.
    pub positions: Vec<usize>,
}

impl TokenRows {
    /// Every token of sequences of these lengths.
    pub(crate) fn whole(lengths: impl Iterator<Item = usize> + Clone) -> Self {
        Self { sequences: Ragged::new(lengths.clone()), positions: lengths.flat_map(|length| 0..length).collect() }
    }
}

/// Groups sequences of like length: in each batch as many sequences as have at most `batch_tokens` tokens where all are as
/// long as its longest, or one. Depends on lengths and order alone.
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
