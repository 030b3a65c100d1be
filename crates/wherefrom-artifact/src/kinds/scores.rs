//! Influence of every example on every query.

use std::path::Path;

use anyhow::Result;
use arrow::array::ArrayRef;
use arrow::datatypes::{Float32Type, UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;

use crate::kinds::columns::{Columns, batch, numbers};
use crate::kinds::definition::{Column, Definition, INFLUENCES, Once, Values, first};
use crate::kinds::{ArtifactKind, Export, Format, Row, Scores};
use crate::origin::Fact;

pub(super) const DEFINITION: Definition = Definition {
    name: "scores",
    version: 1,
    format: Format::Parquet,
    columns: &[
        Column::new("query", Values::UInt32),
        Column::new("example", Values::UInt64),
        Column::new("influence", Values::Float32),
    ],
    show: |folder, _| show::<Scores>(folder),
    export: Export::None,
    states: INFLUENCES,
    says: |wired| match wired.role {
        // Of the model that the bank's runs make, not of the one that they start from.
        "strongest" => wired.stated(&[Fact::Tokens, Fact::Queries]),
        _ => wired.stated(INFLUENCES),
    },
    once: Once::Pairs,
    check: |_| Ok(()),
};

/// Influence of an example on a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Query number.
    pub query: u32,
    /// Example number.
    pub example: u64,
    /// Nats per added copy (see the part's metadata).
    pub influence: f32,
}

impl Row<Scores> for Score {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(pairs(rows.iter()))
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (query, example, influence) = (columns.u32("query")?, columns.u64("example")?, columns.f32("influence")?);
        let row = |i| Self { query: query.value(i), example: example.value(i), influence: influence.value(i) };
        Ok((0..batch.num_rows()).map(row).collect())
    }
}

/// The columns of a score.
pub(super) fn pairs<'a>(rows: impl Iterator<Item = &'a Score> + Clone) -> Vec<(&'static str, ArrayRef)> {
    vec![
        ("query", numbers::<UInt32Type>(rows.clone().map(|row| row.query))),
        ("example", numbers::<UInt64Type>(rows.clone().map(|row| row.example))),
        ("influence", numbers::<Float32Type>(rows.map(|row| row.influence))),
    ]
}

/// The first pairs, also of a kind that has more to say of them.
pub(super) fn show<K: ArtifactKind>(folder: &Path) -> Result<String>
where
    Score: Row<K>,
{
    first::<K, Score>(folder, |row| {
        format!("query {} example {} influence {:+.4e}", row.query, row.example, row.influence)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kinds::round_trip::*;

    proptest! {
        #![proptest_config(few())]
        #[test]
        fn rows_come_back(query: u32, example: u64, influence in number()) {
            round_trip::<Scores, _>(&[Score { query, example, influence }]);
        }
    }
}
