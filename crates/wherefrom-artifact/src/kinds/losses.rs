//! Loss per example and token.

use anyhow::Result;
use arrow::datatypes::{Float32Type, UInt64Type};
use arrow::record_batch::RecordBatch;

use crate::kinds::columns::{Columns, batch, floats, lists, numbers};
use crate::kinds::definition::{Column, Definition, Once, Values, first};
use crate::kinds::{Export, Format, Losses, Row};
use crate::origin::Fact;

pub(super) const DEFINITION: Definition = Definition {
    name: "losses",
    version: 1,
    format: Format::Parquet,
    columns: &[
        Column::new("example", Values::UInt64),
        Column::new("loss", Values::Float32),
        Column::new("by_token", Values::ListOfFloat32),
    ],
    show: |folder, _| first::<Losses, Loss>(folder, |row| format!("example {} loss {:.4}", row.example, row.loss)),
    export: Export::None,
    states: &[Fact::Model, Fact::Tokens],
    says: |wired| match wired.role {
        // Those of a reference are of the very tokens beside them, and of another model than those that follow.
        "reference" => wired.stated(&[Fact::Tokens]),
        _ => wired.numbered(),
    },
    once: Once::Examples,
    check: |_| Ok(()),
};

/// Summed loss of an example and the loss of each token (0 where it is no target).
#[derive(Debug, Clone, PartialEq)]
pub struct Loss {
    /// Row number.
    pub example: u64,
    /// As [`crate::Example::loss`] has it, nats.
    pub loss: f32,
    /// By position of the predicted token, without weights.
    pub by_token: Vec<f32>,
}

impl Row<Losses> for Loss {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("example", numbers::<UInt64Type>(rows.iter().map(|row| row.example))),
            ("loss", numbers::<Float32Type>(rows.iter().map(|row| row.loss))),
            ("by_token", lists::<Float32Type>(rows.iter().map(|row| &row.by_token))),
        ])
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + 4 * self.by_token.len()
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (example, loss, by_token) = (columns.u64("example")?, columns.f32("loss")?, columns.list("by_token")?);
        let row = |i| Self { example: example.value(i), loss: loss.value(i), by_token: floats(by_token, i) };
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
        fn rows_come_back(example: u64, loss in number(), by_token in many_numbers(0..5)) {
            round_trip::<Losses, _>(&[Loss { example, loss, by_token }]);
        }
    }
}
