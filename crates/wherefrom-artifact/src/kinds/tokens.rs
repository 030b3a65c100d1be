//! Token windows with their targets and text.

use std::ops::Range;

use anyhow::Result;
use arrow::datatypes::{Float32Type, UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::kinds::columns::{
    Columns, batch, bool_lists, bools, floats, lists, numbers, string_lists, strings, texts, values,
};
use crate::kinds::definition::{Column, Definition, Once, Values, first};
use crate::kinds::ranking::asked;
use crate::kinds::{Export, Format, Row, Tokens};
use crate::origin::{Fact, Origin};
use crate::text::{BOUNDARY, excerpt, is_marked};

pub(super) const DEFINITION: Definition = Definition {
    name: "tokens",
    version: 3,
    format: Format::Parquet,
    columns: &[
        Column::new("example", Values::UInt64),
        Column::new("docs", Values::ListOfUtf8),
        Column::new("doc_starts", Values::ListOfUInt32),
        Column::new("rows", Values::ListOfUInt64).optional(),
        Column::new("input_ids", Values::ListOfUInt32),
        Column::new("target_mask", Values::ListOfBoolean),
        Column::new("segments", Values::ListOfUInt32).optional(),
        Column::new("weights", Values::ListOfFloat32).optional(),
        Column::new("preference", Values::ListOfFloat32).optional(),
        Column::new("segment_texts", Values::ListOfUtf8).optional(),
        Column::new("completion_start", Values::UInt32).optional(),
        Column::new("text", Values::Utf8),
    ],
    show: |folder, _| {
        let said = |row: &Example| if row.completion_start > 0 { asked(row) } else { excerpt(&row.text) };
        let rows = first::<Tokens, Example>(folder, |row| {
            format!("{} {:?} {} tokens: {}", row.example, row.docs, row.input_ids.len(), said(row))
        })?;
        Ok(if is_marked(&rows) { format!("{BOUNDARY}\n{rows}") } else { rows })
    },
    export: Export::None,
    states: &[],
    says: |wired| match wired.role {
        "queries" => wired.own(Fact::Queries, &[]),
        "tokens" => wired.own(Fact::Tokens, &[]),
        _ => Origin::new(),
    },
    once: Once::Numbered,
    check: |_| Ok(()),
};

/// Facts about some rows, as the summary of tokens states them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowCounts {
    /// Rows.
    pub examples: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Those that are targets.
    pub targets: u64,
    /// Tokens of the longest segment.
    pub longest: u64,
    /// The largest token id.
    pub largest_id: u32,
    /// The first example that has it.
    pub largest_id_example: u64,
}

impl RowCounts {
    /// Of these rows.
    pub fn of(examples: &[Example]) -> Self {
        let each = |example: &Example| Self {
            examples: 1,
            tokens: example.input_ids.len() as u64,
            targets: example.target_mask.iter().filter(|&&target| target).count() as u64,
            longest: example.longest_segment() as u64,
            largest_id: example.input_ids.iter().max().copied().unwrap_or(0),
            largest_id_example: example.example,
        };
        examples.iter().map(each).fold(Self::default(), Self::and)
    }

    /// Of these rows and those that follow them.
    #[must_use]
    pub fn and(self, next: Self) -> Self {
        let largest = if self.examples == 0 || next.largest_id > self.largest_id { next } else { self };
        Self {
            examples: self.examples + next.examples,
            tokens: self.tokens + next.tokens,
            targets: self.targets + next.targets,
            longest: self.longest.max(next.longest),
            largest_id: largest.largest_id,
            largest_id_example: largest.largest_id_example,
        }
    }
}

/// One token window, or one query: its measurement is f = sum over segments s of w_s log p(targets of s).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Example {
    /// Row number.
    pub example: u64,
    /// Documents in the window.
    pub docs: Vec<String>,
    /// First token of each document.
    pub doc_starts: Vec<u32>,
    /// Row of the corpus that each document is or is of, counted over all of its files from 0. Empty: not known.
    pub rows: Vec<u64>,
    /// Token ids, no padding.
    pub input_ids: Vec<u32>,
    /// True where the token is a prediction target; never at the first of a segment.
    pub target_mask: Vec<bool>,
    /// First token of each segment, ascending from 0; segments do not see each other. Empty: one segment.
    pub segments: Vec<u32>,
    /// w of each segment. Empty: all 1.
    pub weights: Vec<f32>,
    /// Of a pair of a preference under the DPO loss: beta, and log p(chosen) − log p(rejected) of the reference. Empty: none.
    pub preference: Vec<f32>,
    /// Text of each segment of a query that has several; empty otherwise.
    pub segment_texts: Vec<String>,
    /// Byte of `text` where the completion begins; 0 where there is no prompt.
    pub completion_start: u32,
    /// The text the tokens came from, or their decoding.
    pub text: String,
}

/// A query in words. Texts that it lacks are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Its documents, joined.
    pub id: String,
    /// What is given.
    pub prompt: String,
    /// What is measured: of a query of several measurements, that of the first.
    pub completion: String,
    /// What it is measured against.
    pub contrast: String,
}

impl Example {
    /// Tokens of each segment and its weight, in order.
    pub fn parts(&self) -> impl Iterator<Item = (Range<usize>, f32)> {
        let starts = if self.segments.is_empty() { &[0] } else { &self.segments[..] };
        let ends = starts[1..].iter().map(|&end| end as usize).chain([self.input_ids.len()]);
        let weights = self.weights.iter().copied().chain(std::iter::repeat(1.0));
        starts.iter().zip(ends).zip(weights).map(|((&start, end), weight)| (start as usize..end, weight))
    }

    /// As a query: its name, and what is measured of it.
    pub fn asked(&self) -> Asked {
        let (prompt, completion) =
            self.text.split_at_checked(self.completion_start as usize).unwrap_or(("", &self.text));
        let rival = self.parts().zip(&self.segment_texts).find(|((_, weight), _)| *weight < 0.0);
        let contrast = match (rival, self.segments.len()) {
            (Some((_, rival)), 2) => rival.strip_prefix(prompt).unwrap_or(rival),
            _ => "",
        };
        Asked {
            id: self.docs.join(" + "),
            prompt: prompt.into(),
            completion: completion.into(),
            contrast: contrast.into(),
        }
    }

    /// Its loss, of those of its tokens, in float64: L = the sum over each segment, times the segment's weight; of a pair under
    /// the DPO loss -log sigmoid(beta (-L - margin)) (Rafailov et al. 2023, Eq. 7), margin that of the reference.
    pub fn loss(&self, by_token: &[f32]) -> f32 {
        let sum = |tokens: Range<usize>| by_token[tokens].iter().map(|&loss| f64::from(loss)).sum::<f64>();
        let loss: f64 = self.parts().map(|(tokens, weight)| f64::from(weight) * sum(tokens)).sum();
        match self.preference[..] {
            [beta, margin] => softplus(f64::from(beta) * (loss + f64::from(margin))) as f32,
            _ => loss as f32,
        }
    }

    /// Tokens of the longest segment: what has to fit in a model's context.
    pub fn longest_segment(&self) -> usize {
        self.parts().map(|(tokens, _)| tokens.len()).max().unwrap_or(0)
    }

    /// Refuses what no model can read: no tokens, a mask of another length, a target with nothing before it.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Mismatch(format!("example {}: {what}", self.example)).into());
        if self.input_ids.is_empty() {
            return refuse("it has no tokens".into());
        }
        let (tokens, mask) = (self.input_ids.len(), &self.target_mask);
        if mask.len() != tokens {
            return refuse(format!("target_mask has {} entries for {tokens} tokens", mask.len()));
        }
        let starts = &self.segments;
        let ascending = starts.is_sorted_by(|left, right| left < right);
        if starts.first().is_some_and(|&first| first != 0)
            || starts.last().is_some_and(|&last| last as usize >= tokens)
            || !ascending
        {
            return refuse(format!("segments {starts:?} do not ascend from 0 to below {tokens}, the number of tokens"));
        }
        let segments = starts.len().max(1);
        if !self.weights.is_empty() && self.weights.len() != segments {
            return refuse(format!("weights has {} entries for {segments} segments", self.weights.len()));
        }
        if let Some(weight) = self.weights.iter().find(|weight| !weight.is_finite()) {
            return refuse(format!("weights has {weight}, which is no number to multiply with"));
        }
        match (&self.preference[..], &self.weights[..]) {
            ([], _) => {}
            ([beta, margin], [1.0, -1.0]) if *beta > 0.0 && beta.is_finite() && margin.is_finite() => {}
            ([_, _], [1.0, -1.0]) => {
                return refuse(format!(
                    "preference is {:?}; it is beta, above 0, and a finite margin",
                    self.preference
                ));
            }
            _ => {
                return refuse("preference is two numbers, beside two segments with the weights 1 and -1".into());
            }
        }
        if let Some((segment, _)) = self.parts().find(|(segment, _)| mask[segment.start]) {
            let place = segment.start;
            return refuse(format!(
                "target_mask is true at position {place}, which begins a segment and can never be a target"
            ));
        }
        Ok(())
    }
}

/// log(1 + e^x) = -log sigmoid(-x).
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

impl Row<Tokens> for Example {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("example", numbers::<UInt64Type>(rows.iter().map(|row| row.example))),
            ("docs", string_lists(rows.iter().map(|row| &row.docs[..]))),
            ("doc_starts", lists::<UInt32Type>(rows.iter().map(|row| &row.doc_starts))),
            ("rows", lists::<UInt64Type>(rows.iter().map(|row| &row.rows))),
            ("input_ids", lists::<UInt32Type>(rows.iter().map(|row| &row.input_ids))),
            ("target_mask", bool_lists(rows.iter().map(|row| &row.target_mask[..]))),
            ("segments", lists::<UInt32Type>(rows.iter().map(|row| &row.segments))),
            ("weights", lists::<Float32Type>(rows.iter().map(|row| &row.weights))),
            ("preference", lists::<Float32Type>(rows.iter().map(|row| &row.preference))),
            ("segment_texts", string_lists(rows.iter().map(|row| &row.segment_texts[..]))),
            ("completion_start", numbers::<UInt32Type>(rows.iter().map(|row| row.completion_start))),
            ("text", strings(rows.iter().map(|row| &row.text[..]))),
        ])
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.text.len() + 5 * self.input_ids.len()
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (examples, docs, starts) = (columns.u64("example")?, columns.list("docs")?, columns.list("doc_starts")?);
        let (ids, mask, text) = (columns.list("input_ids")?, columns.list("target_mask")?, columns.utf8("text")?);
        // Columns that a stranger may leave out.
        let (segments, weights) = (columns.list("segments").ok(), columns.list("weights").ok());
        let preference = columns.list("preference").ok();
        let corpus_rows = columns.list("rows").ok();
        let completion_start = columns.u32("completion_start").ok();
        let row = |i: usize| {
            let row = Self {
                example: examples.value(i),
                docs: texts(docs, i),
                doc_starts: values::<UInt32Type>(starts, i),
                rows: corpus_rows.map(|rows| values::<UInt64Type>(rows, i)).unwrap_or_default(),
                input_ids: values::<UInt32Type>(ids, i),
                target_mask: bools(mask, i),
                segments: segments.map(|starts| values::<UInt32Type>(starts, i)).unwrap_or_default(),
                weights: weights.map(|weights| floats(weights, i)).unwrap_or_default(),
                preference: preference.map(|numbers| floats(numbers, i)).unwrap_or_default(),
                segment_texts: columns.texts("segment_texts", i),
                completion_start: completion_start.map_or(0, |start| start.value(i)),
                text: text.value(i).into(),
            };
            row.check().map(|()| row)
        };
        (0..batch.num_rows()).map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kinds::round_trip::*;

    proptest! {
        #![proptest_config(few())]
        #[test]
        fn rows_come_back(
            docs in many_texts(0..3), input_ids in vec(any::<u32>(), 4..9), weights in many_numbers(2), margin in number(),
            preferred: bool, segment_texts in many_texts(2), completion_start: u32, text in text(),
        ) {
            let (weights, preference) = if preferred { (vec![1.0, -1.0], vec![0.1, margin]) } else { (weights, vec![]) };
            let target_mask = (0..input_ids.len()).map(|token| token % 3 == 1).collect();
            let doc_starts = (0..docs.len() as u32).collect();
            let rows = (0..docs.len() as u64).collect();
            round_trip::<Tokens, _>(&[Example {
                example: 0, docs, doc_starts, rows, input_ids, target_mask, segments: vec![0, 3], weights, preference,
                segment_texts, completion_start, text,
            }]);
        }
    }

    #[test]
    fn what_no_model_can_read_is_refused() {
        let row = Example { input_ids: vec![5, 6, 7], target_mask: vec![false, true, true], ..Example::default() };
        row.check().unwrap();
        for (wrong, said) in [
            (Example { input_ids: vec![], ..row.clone() }, "no tokens"),
            (Example { target_mask: vec![false], ..row.clone() }, "1 entries for 3 tokens"),
            (Example { target_mask: vec![true; 3], ..row.clone() }, "position 0"),
            (Example { segments: vec![0, 3], ..row.clone() }, "do not ascend"),
            (Example { segments: vec![0, 1], ..row.clone() }, "position 1"),
            (Example { weights: vec![1.0, 1.0], ..row.clone() }, "2 entries for 1 segments"),
            (Example { weights: vec![f32::NAN], ..row.clone() }, "no number"),
            (Example { preference: vec![0.1, 0.0], ..row.clone() }, "two segments"),
        ] {
            let error = wrong.check().unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
