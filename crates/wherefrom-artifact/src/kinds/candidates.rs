//! Pairs worth scoring.

use anyhow::Result;
use arrow::datatypes::{Float32Type, UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;

use crate::kinds::columns::{Columns, batch, numbers, strings};
use crate::kinds::definition::{Column, Definition, Once, Values, first};
use crate::kinds::{Candidates, Export, Format, Row};
use crate::origin::Fact;

pub(super) const DEFINITION: Definition = Definition {
    name: "candidates",
    version: 1,
    format: Format::Parquet,
    columns: &[
        Column::new("query", Values::UInt32),
        Column::new("example", Values::UInt64),
        Column::new("score", Values::Float32),
        Column::new("source", Values::Utf8),
    ],
    show: |folder, _| {
        first::<Candidates, Candidate>(folder, |row| {
            format!("query {} example {} {:.4} {}", row.query, row.example, row.score, row.source)
        })
    },
    export: Export::None,
    states: &[Fact::Tokens, Fact::Queries],
    says: |wired| wired.stated(&[Fact::Tokens, Fact::Queries]),
    once: Once::Never,
    check: |_| Ok(()),
};

/// A pair worth scoring.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Query number.
    pub query: u32,
    /// Example number.
    pub example: u64,
    /// What the source thinks of it.
    pub score: f32,
    /// Who proposed it (`bm25`, `ranking`).
    pub source: String,
}

impl Row<Candidates> for Candidate {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("query", numbers::<UInt32Type>(rows.iter().map(|row| row.query))),
            ("example", numbers::<UInt64Type>(rows.iter().map(|row| row.example))),
            ("score", numbers::<Float32Type>(rows.iter().map(|row| row.score))),
            ("source", strings(rows.iter().map(|row| &row.source[..]))),
        ])
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (query, example) = (columns.u32("query")?, columns.u64("example")?);
        let (score, source) = (columns.f32("score")?, columns.utf8("source")?);
        let row = |i| Self {
            query: query.value(i),
            example: example.value(i),
            score: score.value(i),
            source: source.value(i).into(),
        };
        Ok((0..batch.num_rows()).map(row).collect())
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
        fn rows_come_back(query: u32, example: u64, score in number(), source in text()) {
            round_trip::<Candidates, _>(&[Candidate { query, example, score, source }]);
        }
    }
}
