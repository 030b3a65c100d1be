//! Gradients of examples, projected at random.

use anyhow::Result;
use arrow::datatypes::{Float32Type, UInt64Type};
use arrow::record_batch::RecordBatch;

use crate::kinds::columns::{Columns, batch, floats, lists, numbers};
use crate::kinds::definition::{Column, Definition, Once, Tensors, Values, first};
use crate::kinds::{Export, Format, ProjectedGradients, Row};
use crate::origin::Fact;

pub(super) const DEFINITION: Definition = Definition {
    name: "projected-gradients",
    version: 1,
    format: Format::Arrow,
    columns: &[Column::new("example", Values::UInt64), Column::new("values", Values::ListOfFloat32)],
    show: |folder, _| {
        first::<ProjectedGradients, Projected>(folder, |row| {
            format!("example {} of {} dimensions", row.example, row.values.len())
        })
    },
    export: Export::Tensors(|folder| {
        Tensors::of::<ProjectedGradients, Projected>(folder, |tensors, row| {
            tensors.push(row.example.to_string(), vec![row.values.len()], row.values);
        })
    }),
    states: &[Fact::Model, Fact::Tokens],
    says: |wired| match wired.role {
        "queries" => wired.numbered(),
        _ => wired.stated(&[Fact::Model, Fact::Tokens]),
    },
    once: Once::Examples,
    check: |_| Ok(()),
};

/// The gradient of an example in the dimensions of a projection.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Projected {
    /// Row number.
    pub example: u64,
    /// Its values.
    pub values: Vec<f32>,
}

impl Row<ProjectedGradients> for Projected {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("example", numbers::<UInt64Type>(rows.iter().map(|row| row.example))),
            ("values", lists::<Float32Type>(rows.iter().map(|row| &row.values))),
        ])
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + 4 * self.values.len()
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (example, values) = (columns.u64("example")?, columns.list("values")?);
        let row = |i| Self { example: example.value(i), values: floats(values, i) };
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
        fn rows_come_back(example: u64, values in many_numbers(6)) {
            round_trip::<ProjectedGradients, _>(&[Projected { example, values }]);
        }
    }
}
