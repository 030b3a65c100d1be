//! Corrected eigenvalues, summed over examples.

use anyhow::Result;
use arrow::datatypes::{Float32Type, UInt64Type};
use arrow::record_batch::RecordBatch;

use crate::kinds::columns::{Columns, batch, filled, lists, numbers, shape, shapes, strings};
use crate::kinds::definition::{Column, Definition, Once, Tensors, Values, first, mismatch};
use crate::kinds::{Export, Format, Lambda, Row};
use crate::origin::Fact;

pub(super) const DEFINITION: Definition = Definition {
    name: "lambda",
    version: 1,
    format: Format::Arrow,
    columns: &[
        Column::new("module", Values::Utf8),
        Column::new("count", Values::UInt64),
        Column::new("shape", Values::ListOfUInt32),
        Column::new("lambda", Values::ListOfFloat32).halved(),
    ],
    show: |folder, _| {
        first::<Lambda, LambdaSum>(folder, |row| format!("{} {:?} over {} examples", row.module, row.shape, row.count))
    },
    export: Export::Tensors(|folder| {
        Tensors::of::<Lambda, LambdaSum>(folder, |tensors, row| {
            tensors.count(&row.module, row.count);
            tensors.push(format!("{}.sum", row.module), row.shape.to_vec(), row.lambda);
        })
    }),
    // What a curvature was fitted on need not be what is scored.
    states: &[Fact::Model, Fact::Eigenbasis],
    says: |wired| wired.stated(&[Fact::Model, Fact::Eigenbasis]),
    once: Once::Named(&["module"]),
    check: |batch| <LambdaSum as Row<Lambda>>::from_batch(batch)?.iter().try_for_each(LambdaSum::check),
};

/// Corrected eigenvalues of a module, summed over `count` examples: [out, in], row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct LambdaSum {
    /// Module name.
    pub module: String,
    /// Examples summed over.
    pub count: u64,
    /// [out, in].
    pub shape: [usize; 2],
    /// Row-major values.
    pub lambda: Vec<f32>,
}

impl LambdaSum {
    /// Refuses what is no sum of squares over examples.
    fn check(&self) -> Result<()> {
        let name = format!("lambda of {}", self.module);
        match self.lambda.iter().position(|&value| value < 0.0) {
            Some(place) => {
                let (column, value) = (self.shape[1].max(1), self.lambda[place]);
                let (i, j) = (place / column, place % column);
                mismatch(format!("{name} has {value} at [{i}, {j}]: a sum of squares is not negative"))
            }
            None if self.count == 0 => mismatch(format!("{name} is the sum over no examples")),
            None => Ok(()),
        }
    }
}

impl Row<Lambda> for LambdaSum {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("module", strings(rows.iter().map(|row| &row.module[..]))),
            ("count", numbers::<UInt64Type>(rows.iter().map(|row| row.count))),
            ("shape", shapes(rows.iter().map(|row| row.shape))),
            ("lambda", lists::<Float32Type>(rows.iter().map(|row| &row.lambda))),
        ])
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + 4 * self.lambda.len()
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (module, count) = (columns.utf8("module")?, columns.u64("count")?);
        let shapes = columns.list("shape")?;
        let row = |i| -> Result<Self> {
            let (module, shape, lambda) = (module.value(i), shape(shapes, i)?, columns.matrix("lambda", i)?);
            filled(&format!("lambda of {module}"), shape, &lambda)?;
            Ok(Self { module: module.into(), count: count.value(i), shape, lambda })
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
        fn rows_come_back(module in text(), count in 1..=u64::MAX, lambda in vec(0.0_f32..f32::MAX, 6)) {
            round_trip::<Lambda, _>(&[LambdaSum { module, count, shape: [2, 3], lambda }]);
        }
    }
}
