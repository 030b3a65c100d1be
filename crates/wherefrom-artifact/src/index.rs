//! The index: which coordinates of the eigenbasis it keeps, and the signs of every example's gradient there.

use std::ops::Range;

use anyhow::Result;
use arrow::array::{ArrayRef, AsArray as _, BinaryArray, RecordBatch};
use arrow::datatypes::{Float32Type, UInt32Type, UInt64Type};

use crate::artifact::Artifact;
use crate::columns::{Columns, batch, numbers, strings};
use crate::error::Error;
use crate::kind::{Coordinates, Index};
use crate::rows::Row;

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

/// One example of an index: its gradient is about scale * deviation * (1, or -1 where the bit is set) at each coordinate.
#[derive(Debug, Clone, PartialEq)]
pub struct Signs {
    /// Row number.
    pub example: u64,
    /// Mean over the coordinates of |gradient| / deviation.
    pub scale: f32,
    /// Coordinate i has bit i % 8 of byte i / 8.
    pub signs: Vec<u8>,
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

impl Row<Index> for Signs {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        let signs: ArrayRef = std::sync::Arc::new(BinaryArray::from_iter_values(rows.iter().map(|row| &row.signs)));
        batch(vec![
            ("example", numbers::<UInt64Type>(rows.iter().map(|row| row.example))),
            ("scale", numbers::<Float32Type>(rows.iter().map(|row| row.scale))),
            ("signs", signs),
        ])
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (example, scale) = (columns.u64("example")?, columns.f32("scale")?);
        let signs = columns.any("signs")?.as_binary::<i32>();
        let row = |i| Self { example: example.value(i), scale: scale.value(i), signs: signs.value(i).to_vec() };
        Ok((0..batch.num_rows()).map(row).collect())
    }
}

/// Some rows of an index, as they lie in the mapped file.
#[derive(Debug, Clone)]
pub struct SignsOf {
    batch: RecordBatch,
    width: usize,
}

impl Artifact<Index> {
    /// The rows of one part, digest checked, without a copy; each has `width` bytes of signs.
    pub fn signs(&self, part: usize, width: usize) -> Result<Vec<SignsOf>> {
        let of = |batch: Result<RecordBatch>| {
            let batch = batch?;
            let offsets = Columns(&batch).any("signs")?.as_binary::<i32>().value_offsets();
            if let Some(pair) = offsets.windows(2).find(|pair| (pair[1] - pair[0]) as usize != width) {
                let (found, folder) = (pair[1] - pair[0], self.folder().display());
                let what =
                    format!("a row of the index has {found} bytes where its coordinates ask for {width}: {folder}");
                return Err(Error::Mismatch(what).into());
            }
            Ok(SignsOf { batch, width })
        };
        self.batches(part, &[])?.map(of).collect()
    }
}

impl SignsOf {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.batch.num_rows()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Example numbers.
    pub fn examples(&self) -> Result<&[u64]> {
        Ok(Columns(&self.batch).u64("example")?.values())
    }

    /// Scales.
    pub fn scales(&self) -> Result<&[f32]> {
        Ok(Columns(&self.batch).f32("scale")?.values())
    }

    /// Signs of those rows, one after the other.
    pub fn signs(&self, rows: Range<usize>) -> Result<&[u8]> {
        let column = Columns(&self.batch).any("signs")?.as_binary::<i32>();
        let start = column.value_offsets()[0] as usize + rows.start * self.width;
        Ok(&column.value_data()[start..start + rows.len() * self.width])
    }
}
