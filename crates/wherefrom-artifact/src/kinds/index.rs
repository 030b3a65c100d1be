//! Signs of every example's gradient at the coordinates that an index keeps.

use std::ops::Range;
use std::sync::Arc;

use anyhow::Result;
use arrow::array::{ArrayRef, AsArray as _, BinaryArray};
use arrow::datatypes::{Float32Type, UInt64Type};
use arrow::record_batch::RecordBatch;

use crate::artifact::Artifact;
use crate::error::Error;
use crate::kinds::columns::{Columns, batch, numbers};
use crate::kinds::definition::{Column, Definition, Once, Values, first};
use crate::kinds::{Export, Format, Index, Row};
use crate::origin::Fact;

pub(super) const DEFINITION: Definition = Definition {
    name: "index",
    version: 1,
    format: Format::Arrow,
    columns: &[
        Column::new("example", Values::UInt64),
        Column::new("scale", Values::Float32),
        Column::new("signs", Values::Binary),
    ],
    show: |folder, _| {
        first::<Index, Signs>(folder, |row| {
            format!("example {} scale {:.4} {} bytes of signs", row.example, row.scale, row.signs.len())
        })
    },
    export: Export::None,
    states: &[Fact::Model, Fact::Tokens, Fact::Eigenbasis, Fact::Coordinates],
    says: |wired| wired.stated(&[Fact::Model, Fact::Tokens, Fact::Eigenbasis, Fact::Coordinates]),
    once: Once::Examples,
    check: |_| Ok(()),
};

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

impl Row<Index> for Signs {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        let signs: ArrayRef = Arc::new(BinaryArray::from_iter_values(rows.iter().map(|row| &row.signs)));
        batch(vec![
            ("example", numbers::<UInt64Type>(rows.iter().map(|row| row.example))),
            ("scale", numbers::<Float32Type>(rows.iter().map(|row| row.scale))),
            ("signs", signs),
        ])
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.signs.len()
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kinds::round_trip::*;

    proptest! {
        #![proptest_config(few())]
        #[test]
        fn rows_come_back(example: u64, scale in number(), signs in vec(any::<u8>(), 0..40)) {
            round_trip::<Index, _>(&[Signs { example, scale, signs }]);
        }
    }
}
