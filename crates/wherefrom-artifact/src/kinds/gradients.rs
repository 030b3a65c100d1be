//! Gradients of the loss, as factors.

use anyhow::Result;
use arrow::datatypes::UInt64Type;
use arrow::record_batch::RecordBatch;

use crate::kinds::columns::{Columns, numbers};
use crate::kinds::definition::{Column, Definition, Once, Values};
use crate::kinds::{Export, Factors, Format, Gradients, Row, factors};
use crate::origin::Fact;

pub(super) const DEFINITION: Definition = Definition {
    name: "gradients",
    version: 1,
    format: Format::Arrow,
    columns: &[
        Column::new("example", Values::UInt64),
        Column::new("module", Values::Utf8),
        Column::new("rank", Values::UInt32),
        Column::new("left_shape", Values::ListOfUInt32),
        Column::new("left", Values::ListOfFloat32),
        Column::new("right_shape", Values::ListOfUInt32),
        Column::new("right", Values::ListOfFloat32),
    ],
    show: |folder, _| factors::show::<Gradients>(folder),
    export: Export::Tensors(factors::tensors::<Gradients>),
    states: &[Fact::Model, Fact::Tokens],
    says: |wired| wired.numbered(),
    once: Once::Named(&["example", "module"]),
    check: |_| Ok(()),
};

impl Row<Gradients> for Factors {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        factors::to_batch(rows, "example", numbers::<UInt64Type>(rows.iter().map(|row| row.row)))
    }
    fn bytes(&self) -> usize {
        size_of::<Self>() + 4 * (self.left.len() + self.right.len())
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let numbers = Columns(batch).u64("example")?;
        factors::from_batch(batch, |i| numbers.value(i))
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
        fn rows_come_back(row in any::<u64>(), module in text(), left in many_numbers(6), right in many_numbers(4)) {
            let low_rank = Factors {
                row, module, rank: 2, left_shape: [3, 2], left: left.clone(), right_shape: [2, 2], right,
            };
            let (row, module) = (low_rank.row, format!("{} whole", low_rank.module));
            let whole = Factors {
                row, module, rank: 0, left_shape: [2, 3], left, right_shape: [0, 0], right: vec![],
            };
            round_trip::<Gradients, _>(&[low_rank, whole]);
        }
    }
}
