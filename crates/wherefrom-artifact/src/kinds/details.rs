//! Influence of chosen pairs, by module and by token.

use anyhow::Result;
use arrow::datatypes::Float32Type;
use arrow::record_batch::RecordBatch;

use crate::error::Error;
use crate::kinds::columns::{Columns, batch, floats, lists};
use crate::kinds::definition::{Column, Definition, INFLUENCES, Once, Values};
use crate::kinds::scores::{pairs, show};
use crate::kinds::{Details, Export, Format, Row, Score, Scores};

pub(super) const DEFINITION: Definition = Definition {
    name: "details",
    version: 1,
    format: Format::Parquet,
    columns: &[
        Column::new("query", Values::UInt32),
        Column::new("example", Values::UInt64),
        Column::new("influence", Values::Float32),
        Column::new("by_module", Values::ListOfFloat32),
        Column::new("by_token", Values::ListOfFloat32),
    ],
    show: |folder, _| show::<Details>(folder),
    export: Export::None,
    states: INFLUENCES,
    says: |wired| wired.stated(INFLUENCES),
    once: Once::Pairs,
    check: |_| Ok(()),
};

/// Influence of an example on a query, taken apart.
#[derive(Debug, Clone, PartialEq)]
pub struct Detail {
    /// The pair and its total.
    pub score: Score,
    /// In the order of the part's `wherefrom.modules`.
    pub by_module: Vec<f32>,
    /// By position whose activation carried it; the predicted token is the next one.
    pub by_token: Vec<f32>,
}

impl Row<Details> for Detail {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        let mut columns = pairs(rows.iter().map(|row| &row.score));
        columns.push(("by_module", lists::<Float32Type>(rows.iter().map(|row| &row.by_module))));
        columns.push(("by_token", lists::<Float32Type>(rows.iter().map(|row| &row.by_token))));
        batch(columns)
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + 4 * (self.by_module.len() + self.by_token.len())
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (by_module, by_token) = (columns.list("by_module")?, columns.list("by_token")?);
        let scores = <Score as Row<Scores>>::from_batch(batch)?;
        let row = |(i, score)| Self { score, by_module: floats(by_module, i), by_token: floats(by_token, i) };
        Ok(scores.into_iter().enumerate().map(row).collect())
    }
}

/// The pairs of a `details` artifact without their detail.
impl Row<Details> for Score {
    fn to_batch(_rows: &[Self]) -> Result<RecordBatch> {
        Err(Error::Mismatch("a details row needs its detail".into()).into())
    }
    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        <Self as Row<Scores>>::from_batch(batch)
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
        fn rows_come_back(query: u32, example: u64, influence in number(), by_module in many_numbers(0..4), by_token in many_numbers(0..6)) {
            let score = Score { query, example, influence };
            round_trip::<Details, _>(&[Detail { score, by_module, by_token }]);
        }
    }
}
