//! Taps of what stands outside the blocks: tables of tokens and positions, the last norm and the vocabulary head.
//!
//! ```text
//! head    z = bend(h W^T / s)           dW = sum over targets t of  dz_t h_t^T
//! table   x_t = c E[id_t] + P[place_t]  dE = sum over tokens t of  1[id_t] (c dx_t)^T,  dP likewise
//! tied    E = W                         dW = both sums
//! ```
//!
//! Each of these has a row as long as the vocabulary for every token. So they come sequence by sequence, as many at once as
//! the logits of the loss do, and what the head has made is made again rather than kept.

use std::ops::Range;

use anyhow::Result;
use burn::tensor::{IndexingUpdateOp, Int, Tensor};
use wherefrom_linalg::kernels::{Ragged, widen};

use crate::batch::{Batch, Target, TokenRows};
use crate::decoder::positions_of;
use crate::head::{Chunk, Head, Labels};
use crate::model::Model;
use crate::module::Selection;
use crate::preference::Weighed;
use crate::taps::Tap;

/// A loss whose gradient goes through the head.
pub(crate) struct Predicted<'a> {
    /// The last residual stream of every token: [rows, hidden].
    pub(crate) stream: &'a Tensor<2>,
    pub(crate) labels: &'a Labels,
    pub(crate) pairs: Option<&'a Weighed>,
}

/// What is reported, and to whom.
pub(crate) struct Outside<'a> {
    pub(crate) model: &'a Model,
    pub(crate) batch: &'a Batch,
    pub(crate) selection: &'a Selection,
    /// Numbers of a tap's d, or of those of one sequence.
    pub(crate) numbers: usize,
}

impl Outside<'_> {
    /// Taps of the head that has a matrix of its own, and of the norm before it.
    pub(crate) fn head(&self, predicted: &Predicted<'_>, visit: &mut dyn FnMut(Tap<'_>) -> Result<()>) -> Result<()> {
        let (model, outline) = (self.model, &self.model.outline);
        let (head, norm) = (self.chosen(outline.head_module), self.chosen(outline.final_norm.number));
        if head.is_none() && norm.is_none() {
            return Ok(());
        }
        let matrix = model.head()?;
        for (sequences, targets) in
            self.groups(outline.vocabulary()).into_iter().filter(|(_, targets)| !targets.is_empty())
        {
            let made = self.made(&matrix, predicted, targets)?;
            let tokens = self.tokens(&sequences, targets.iter().map(|target| (target.sequence, target.row)));
            if let Some(number) = head {
                let d = model.unscaled(&made.d_logits);
                visit(self.tap(number, &tokens, [d, widen(made.hidden)]))?;
            }
            if let Some(number) = norm {
                let d = matrix.divided(matrix.through(made.d_logits));
                let d = model.unscaled(&outline.final_norm.by_row(&d, &made.x));
                let ones = Tensor::ones([targets.len(), 1], &model.device);
                visit(self.tap(number, &tokens, [d, ones]))?;
            }
        }
        Ok(())
    }

    /// Taps of tables, given the gradient d at the embeddings [rows, hidden]; of one that is the head, too, with the head's rows
    /// where the loss goes through it.
    pub(crate) fn tables(
        &self,
        d: &Tensor<2>,
        predicted: Option<&Predicted<'_>>,
        visit: &mut dyn FnMut(Tap<'_>) -> Result<()>,
    ) -> Result<()> {
        let (model, outline, batch) = (self.model, &self.model.outline, self.batch);
        let (table, positions) = (self.chosen(outline.table), self.chosen(outline.position_table));
        let d = model.unscaled(d);
        let tied = predicted.filter(|_| table.is_some() && outline.head == outline.embedding);
        let tied = tied.map(|predicted| Ok::<_, anyhow::Error>((predicted, model.head()?))).transpose()?;
        for (sequences, targets) in self.groups(outline.vocabulary()) {
            let rows = self.rows(&sequences);
            let own = d.clone().narrow(0, rows.start, rows.len());
            let of = |indices: Tensor<1, Int>, size: usize| one_hot(indices.narrow(0, rows.start, rows.len()), size);
            let every = || sequences.clone().flat_map(|b| batch.tokens.sequences.of(b).map(move |row| (b, row)));
            if let Some(number) = positions {
                let places = of(positions_of(batch, &own), model.config.max_position_embeddings);
                visit(self.tap(number, &self.tokens(&sequences, every()), [places, own.clone()]))?;
            }
            let Some(number) = table else { continue };
            let read = own * model.decoder().embedding_scale();
            let ids = of(batch.ids.clone(), outline.vocabulary());
            let Some((predicted, matrix)) = tied.as_ref().filter(|_| !targets.is_empty()) else {
                visit(self.tap(number, &self.tokens(&sequences, every()), [ids, read]))?;
                continue;
            };
            let made = self.made(matrix, predicted, targets)?;
            let (d_logits, hidden) = (model.unscaled(&made.d_logits), widen(made.hidden));
            // Of each sequence what is predicted, then what is read.
            let (mut left, mut right, mut both) = (Vec::new(), Vec::new(), Vec::new());
            for b in sequences.clone() {
                let first = targets.partition_point(|target| target.sequence < b);
                let count = targets.partition_point(|target| target.sequence <= b) - first;
                let own = batch.tokens.sequences.of(b);
                both.extend(targets[first..first + count].iter().map(|target| (b, target.row)));
                both.extend(own.clone().map(|row| (b, row)));
                let (start, length) = (own.start - rows.start, own.len());
                if count > 0 {
                    left.push(d_logits.clone().narrow(0, first, count));
                    right.push(hidden.clone().narrow(0, first, count));
                }
                left.push(ids.clone().narrow(0, start, length));
                right.push(read.clone().narrow(0, start, length));
            }
            let tokens = self.tokens(&sequences, both.into_iter());
            visit(self.tap(number, &tokens, [Tensor::cat(left, 0), Tensor::cat(right, 0)]))?;
        }
        Ok(())
    }

    fn made(&self, head: &Head<'_>, predicted: &Predicted<'_>, targets: &[Target]) -> Result<Chunk> {
        let Predicted { stream, labels, pairs } = *predicted;
        self.model.head_chunk(head, stream, self.batch, targets, labels, pairs)
    }

    /// The number, if it is of a chosen module.
    fn chosen(&self, number: Option<usize>) -> Option<usize> {
        number.filter(|&number| self.selection.place(number).is_some())
    }

    fn tap<'a>(&'a self, number: usize, tokens: &'a TokenRows, [d, a]: [Tensor<2>; 2]) -> Tap<'a> {
        Tap {
            index: self.selection.place(number).expect("the module is chosen"),
            module: &self.model.modules()[number],
            tokens,
            activations: a,
            output_gradients: d,
            precision: self.model.precision,
        }
    }

    /// Sequences, some at a time, with their targets: as many as have room where each token has `width` numbers, or one.
    fn groups(&self, width: usize) -> Vec<(Range<usize>, &[Target])> {
        let (most, sequences) = (self.numbers / width.max(1), &self.batch.tokens.sequences);
        let (mut groups, mut first, mut rows) = (Vec::<Range<usize>>::new(), 0, 0);
        for b in 0..self.batch.len() {
            let own = sequences.of(b).len();
            if b > first && rows + own > most {
                groups.push(first..b);
                (first, rows) = (b, 0);
            }
            rows += own;
        }
        groups.push(first..self.batch.len());
        let targets = &self.batch.targets;
        let from = |b: usize| targets.partition_point(|target| target.sequence < b);
        groups.into_iter().map(|group| (group.clone(), &targets[from(group.start)..from(group.end)])).collect()
    }

    /// The batch's rows of consecutive sequences.
    fn rows(&self, sequences: &Range<usize>) -> Range<usize> {
        let of = |b: usize| self.batch.tokens.sequences.of(b);
        of(sequences.start).start..of(sequences.end - 1).end
    }

    /// Rows of the batch, with the sequence that each is of, in order, as what a tap has seen.
    fn tokens(&self, sequences: &Range<usize>, rows: impl Iterator<Item = (usize, usize)>) -> TokenRows {
        let (mut lengths, mut positions) = (vec![0; self.batch.len()], Vec::new());
        for (b, row) in rows {
            debug_assert!(sequences.contains(&b), "a row of these sequences");
            lengths[b] += 1;
            positions.push(self.batch.tokens.positions[row]);
        }
        TokenRows { sequences: Ragged::new(lengths), positions }
    }
}

/// A row with a 1 at each index: [rows, size].
fn one_hot(indices: Tensor<1, Int>, size: usize) -> Tensor<2> {
    let ([rows], device) = (indices.dims(), indices.device());
    let places = indices.reshape([rows, 1]);
    Tensor::zeros([rows, size], &device).scatter(1, places, Tensor::ones([rows, 1], &device), IndexingUpdateOp::Add)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::batch::Sequence;
    use crate::config::Config;
    use crate::module::Modules;

    /// One sequence at a time and all at once: the same rows of each, in the same order.
    #[test]
    fn taps_of_some_sequences_have_the_rows_of_taps_of_all() {
        for tied in [false, true] {
            let config = json!({
                "model_type": "gpt2", "vocab_size": 11, "n_embd": 6, "n_head": 2, "n_layer": 1, "n_positions": 8,
                "tie_word_embeddings": tied,
            });
            let device = burn::tensor::Device::flex();
            let model = Model::random(Config::from_json(&config).unwrap(), 3, &device);
            // The second predicts nothing.
            let ids = [&[1, 4, 4, 2][..], &[3, 5], &[7, 1, 0]];
            let masks = [&[false, true, true, true][..], &[false, false], &[false, false, true]];
            let sequences: Vec<_> = (0..3).map(|i| Sequence::new(i as u64, ids[i], masks[i])).collect();
            let batch = Batch::new(&sequences, &device);
            let selection = Selection::new(&Modules::Named("everything".into()), model.modules()).unwrap();
            let stream = model.decoder().forward(&batch, None).unwrap().output;
            let predicted = Predicted { stream: &stream, labels: &Labels::Empirical, pairs: None };
            let values = |x: Tensor<2>| x.into_data().try_to_vec::<f32>().unwrap();
            // (module, sequence, positions, d, a) in order.
            let taps = |numbers: usize| {
                let outside = Outside { model: &model, batch: &batch, selection: &selection, numbers };
                let (mut seen, mut count) = (Vec::new(), 0);
                let visit = &mut |tap: Tap<'_>| {
                    count += 1;
                    for (b, rows) in tap.tokens.sequences.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
                        let own = |x: &Tensor<2>| values(x.clone().narrow(0, rows.start, rows.len()));
                        let positions = tap.tokens.positions[rows.clone()].to_vec();
                        seen.push((tap.index, b, positions, own(&tap.output_gradients), own(&tap.activations)));
                    }
                    Ok(())
                };
                outside.head(&predicted, visit).unwrap();
                outside.tables(&stream, Some(&predicted), visit).unwrap();
                seen.sort_by_key(|(index, b, ..)| (*index, *b));
                (seen, count)
            };
            let ((all, few), (single, many)) = (taps(usize::MAX), taps(1));
            // Nothing is tapped of the head, or of the norm before it, for the sequence that predicts nothing.
            assert_eq!((few, many), if tied { (3, 8) } else { (4, 10) });
            assert_eq!(all.len(), single.len());
            for (one, other) in all.iter().zip(&single) {
                assert_eq!((one.0, one.1, &one.2), (other.0, other.1, &other.2));
                for (x, y) in one.3.iter().chain(&one.4).zip(other.3.iter().chain(&other.4)) {
                    assert!((x - y).abs() < 1e-6, "{x} and {y}");
                }
            }
            let of_table = all.iter().find(|(index, b, ..)| (*index, *b) == (0, 0)).unwrap();
            assert_eq!(of_table.2, if tied { vec![0, 1, 2, 0, 1, 2, 3] } else { vec![0, 1, 2, 3] });
        }
    }
}
