//! The row of `gradients` and of `preconditioned`: a matrix as two factors.

use std::path::Path;

use anyhow::Result;
use arrow::array::ArrayRef;
use arrow::datatypes::{Float32Type, UInt32Type};
use arrow::record_batch::RecordBatch;

use crate::error::Error;
use crate::kinds::columns::{Columns, batch, filled, lists, numbers, shape, shapes, strings, to_u32};
use crate::kinds::definition::{Tensors, first};
use crate::kinds::{ArtifactKind, Row};

/// A matrix [out, in] as left · right^T, or whole in `left` where `rank` is 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// Example or query number.
    pub row: u64,
    /// Module name.
    pub module: String,
    /// Columns of both factors; 0 = `left` is the whole [out, in] matrix.
    pub rank: usize,
    /// Rows and columns of `left`.
    pub left_shape: [usize; 2],
    /// [out, rank], row-major.
    pub left: Vec<f32>,
    /// Rows and columns of `right`.
    pub right_shape: [usize; 2],
    /// [in, rank], row-major.
    pub right: Vec<f32>,
}

pub(super) fn to_batch(rows: &[Factors], name: &str, numbered: ArrayRef) -> Result<RecordBatch> {
    batch(vec![
        (name, numbered),
        ("module", strings(rows.iter().map(|row| &row.module[..]))),
        ("rank", numbers::<UInt32Type>(rows.iter().map(|row| to_u32(row.rank)))),
        ("left_shape", shapes(rows.iter().map(|row| row.left_shape))),
        ("left", lists::<Float32Type>(rows.iter().map(|row| &row.left))),
        ("right_shape", shapes(rows.iter().map(|row| row.right_shape))),
        ("right", lists::<Float32Type>(rows.iter().map(|row| &row.right))),
    ])
}

pub(super) fn from_batch(batch: &RecordBatch, number: impl Fn(usize) -> u64) -> Result<Vec<Factors>> {
    let columns = Columns(batch);
    let (module, rank) = (columns.utf8("module")?, columns.u32("rank")?);
    let (left_shape, right_shape) = (columns.list("left_shape")?, columns.list("right_shape")?);
    let row = |i| -> Result<Factors> {
        let row = Factors {
            row: number(i),
            module: module.value(i).into(),
            rank: rank.value(i) as usize,
            left_shape: shape(left_shape, i)?,
            left: columns.matrix("left", i)?,
            right_shape: shape(right_shape, i)?,
            right: columns.matrix("right", i)?,
        };
        filled(&format!("left of row {}, {}", row.row, row.module), row.left_shape, &row.left)?;
        filled(&format!("right of row {}, {}", row.row, row.module), row.right_shape, &row.right)?;
        if row.rank > 0 && [row.left_shape[1], row.right_shape[1]] != [row.rank; 2] {
            let what = format!("row {}, {}: rank {} is not that of its factors", row.row, row.module, row.rank);
            return Err(Error::Mismatch(what).into());
        }
        Ok(row)
    };
    (0..batch.num_rows()).map(row).collect()
}

pub(super) fn show<K: ArtifactKind>(folder: &Path) -> Result<String>
where
    Factors: Row<K>,
{
    first::<K, Factors>(folder, |row| {
        format!("row {} {} rank {} {:?} {:?}", row.row, row.module, row.rank, row.left_shape, row.right_shape)
    })
}

/// `ROW.MODULE.left` [out, r] and `ROW.MODULE.right` [in, r]; whole matrices [out, in] have a left only.
pub(super) fn tensors<K: ArtifactKind>(folder: &Path) -> Result<Tensors>
where
    Factors: Row<K>,
{
    Tensors::of::<K, Factors>(folder, |tensors, row| {
        let name = format!("{}.{}", row.row, row.module);
        tensors.push(format!("{name}.left"), row.left_shape.to_vec(), row.left);
        if row.rank > 0 {
            tensors.push(format!("{name}.right"), row.right_shape.to_vec(), row.right);
        }
    })
}
