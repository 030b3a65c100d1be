//! The coordinates of the eigenbasis that an index keeps.

use anyhow::Result;
use arrow::datatypes::{Float32Type, UInt32Type};
use arrow::record_batch::RecordBatch;

use crate::error::Error;
use crate::kinds::columns::{Columns, batch, numbers, strings};
use crate::kinds::definition::{Column, Definition, Once, Values, first};
use crate::kinds::{Coordinates, Export, Format, Row};
use crate::origin::Fact;

pub(super) const DEFINITION: Definition = Definition {
    name: "coordinates",
    version: 1,
    format: Format::Parquet,
    columns: &[
        Column::new("module", Values::Utf8),
        Column::new("row", Values::UInt32),
        Column::new("column", Values::UInt32),
        Column::new("deviation", Values::Float32),
    ],
    show: |folder, _| {
        first::<Coordinates, Coordinate>(folder, |row| {
            format!("{} [{}, {}] deviation {:.3e}", row.module, row.row, row.column, row.deviation)
        })
    },
    export: Export::None,
    // What a curvature was fitted on need not be what is scored.
    states: &[Fact::Model, Fact::Eigenbasis],
    says: |wired| wired.own(Fact::Coordinates, &[Fact::Model, Fact::Eigenbasis]),
    once: Once::Named(&["module", "row", "column"]),
    check: |_| Ok(()),
};

/// One coordinate of Q_S^T G Q_A. Its place in the table is the place of its bit in an index.
#[derive(Debug, Clone, PartialEq)]
pub struct Coordinate {
    /// Module name.
    pub module: String,
    /// Column of Q_S.
    pub row: u32,
    /// Column of Q_A.
    pub column: u32,
    /// sqrt(Lambda): how far the coordinate lies from 0 over the examples of the fit.
    pub deviation: f32,
}

impl Row<Coordinates> for Coordinate {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("module", strings(rows.iter().map(|row| &row.module[..]))),
            ("row", numbers::<UInt32Type>(rows.iter().map(|row| row.row))),
            ("column", numbers::<UInt32Type>(rows.iter().map(|row| row.column))),
            ("deviation", numbers::<Float32Type>(rows.iter().map(|row| row.deviation))),
        ])
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (module, row, column) = (columns.utf8("module")?, columns.u32("row")?, columns.u32("column")?);
        let deviation = columns.f32("deviation")?;
        let coordinate = |i| {
            let deviation = deviation.value(i);
            if !(deviation > 0.0 && deviation.is_finite()) {
                let (module, row, column) = (module.value(i), row.value(i), column.value(i));
                let what = format!("deviation {deviation} of {module} [{row}, {column}] is not above zero");
                return Err(Error::Mismatch(what).into());
            }
            Ok(Self { module: module.value(i).into(), row: row.value(i), column: column.value(i), deviation })
        };
        (0..batch.num_rows()).map(coordinate).collect()
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
        fn rows_come_back(module in text(), row: u32, column: u32, deviation in 1e-30_f32..1e30) {
            round_trip::<Coordinates, _>(&[Coordinate { module, row, column, deviation }]);
        }
    }

    #[test]
    fn a_deviation_that_is_not_above_zero_is_refused() {
        for deviation in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let row = Coordinate { module: "m".into(), row: 1, column: 2, deviation };
            let error = Coordinate::from_batch(&Coordinate::to_batch(&[row]).unwrap()).unwrap_err().to_string();
            assert_eq!(error, format!("deviation {deviation} of m [1, 2] is not above zero"));
        }
    }
}
