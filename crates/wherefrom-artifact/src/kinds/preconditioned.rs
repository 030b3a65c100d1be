//! Preconditioned query gradients, as factors.

use anyhow::Result;
use arrow::datatypes::UInt32Type;
use arrow::record_batch::RecordBatch;

use crate::kinds::columns::{Columns, numbers};
use crate::kinds::definition::{Column, Definition, Once, Values};
use crate::kinds::{Export, Factors, Format, Preconditioned, Row, factors};
use crate::origin::Fact;

pub(super) const DEFINITION: Definition = Definition {
    name: "preconditioned",
    version: 1,
    format: Format::Arrow,
    columns: &[
        Column::new("query", Values::UInt32),
        Column::new("module", Values::Utf8),
        Column::new("rank", Values::UInt32),
        Column::new("left_shape", Values::ListOfUInt32),
        Column::new("left", Values::ListOfFloat32).halved(),
        Column::new("right_shape", Values::ListOfUInt32),
        Column::new("right", Values::ListOfFloat32).halved(),
    ],
    show: |folder, _| factors::show::<Preconditioned>(folder),
    export: Export::Tensors(factors::tensors::<Preconditioned>),
    states: &[Fact::Model, Fact::Queries, Fact::Eigenbasis],
    says: |wired| wired.stated(&[Fact::Model, Fact::Queries, Fact::Eigenbasis]),
    once: Once::Named(&["query", "module"]),
    check: |_| Ok(()),
};

impl Row<Preconditioned> for Factors {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        let queries = rows.iter().map(|row| u32::try_from(row.row).unwrap_or(u32::MAX));
        factors::to_batch(rows, "query", numbers::<UInt32Type>(queries))
    }
    fn bytes(&self) -> usize {
        size_of::<Self>() + 4 * (self.left.len() + self.right.len())
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let numbers = Columns(batch).u32("query")?;
        factors::from_batch(batch, |i| u64::from(numbers.value(i)))
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
        fn rows_come_back(row in 0..=u64::from(u32::MAX), module in text(), left in many_numbers(6), right in many_numbers(4)) {
            let low_rank = Factors {
                row, module, rank: 2, left_shape: [3, 2], left: left.clone(), right_shape: [2, 2], right,
            };
            let (row, module) = (low_rank.row, format!("{} whole", low_rank.module));
            let whole = Factors {
                row, module, rank: 0, left_shape: [2, 3], left, right_shape: [0, 0], right: vec![],
            };
            round_trip::<Preconditioned, _>(&[low_rank, whole]);
        }
    }
}
