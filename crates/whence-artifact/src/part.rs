//! Reading one part, Parquet or Arrow IPC, and checking its columns.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context as _, Result};
use arrow::datatypes::{DataType, Schema};
use arrow::ipc::reader::FileReader;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::error::Error;
use crate::kind::{Format, Kind};

/// Checks that the part has the kind's columns and returns its number of rows (0 for a folder's file).
pub(crate) fn check(kind: Kind, path: &Path) -> Result<u64> {
    let (schema, rows) = match kind.format() {
        Format::Folder => return Ok(0),
        Format::Parquet => {
            let builder =
                ParquetRecordBatchReaderBuilder::try_new(File::open(path)?).map_err(|e| unreadable(path, &e))?;
            let rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
            (builder.schema().as_ref().clone(), rows)
        }
        Format::Arrow => {
            let reader =
                FileReader::try_new(BufReader::new(File::open(path)?), None).map_err(|e| unreadable(path, &e))?;
            let schema = reader.schema().as_ref().clone();
            let rows = reader.map(|batch| batch.map(|batch| batch.num_rows() as u64)).sum::<Result<u64, _>>();
            (schema, rows.map_err(|e| unreadable(path, &e))?)
        }
    };
    check_schema(kind, &schema, path)?;
    Ok(rows)
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> anyhow::Error {
    Error::Corrupt { path: path.into(), what: format!("the part cannot be read ({error})") }.into()
}

fn check_schema(kind: Kind, found: &Schema, path: &Path) -> Result<()> {
    let refuse = |what: String| Err(Error::Schema { path: path.into(), what }.into());
    for expected in kind.schema().fields() {
        let Ok(field) = found.field_with_name(expected.name()) else {
            return refuse(format!(
                "{} needs a column `{}` of type {}",
                kind.name(),
                expected.name(),
                expected.data_type()
            ));
        };
        if !same_type(field.data_type(), expected.data_type()) {
            return refuse(format!(
                "column `{}` is {}, not {}",
                expected.name(),
                field.data_type(),
                expected.data_type()
            ));
        }
    }
    for (key, expected) in [("whence.kind", kind.name().to_string()), ("whence.version", kind.version().to_string())] {
        if let Some(value) = found.metadata().get(key)
            && *value != expected
        {
            return refuse(format!("metadata {key} is `{value}`, not `{expected}`"));
        }
    }
    Ok(())
}

/// List items may have any field name (`item`, `element`) and nullability: programs differ in it.
fn same_type(left: &DataType, right: &DataType) -> bool {
    match (left, right) {
        (DataType::List(left), DataType::List(right)) => same_type(left.data_type(), right.data_type()),
        _ => left == right,
    }
}

/// Rows `start..start + length` of a part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) start: usize,
    pub(crate) length: usize,
}

/// The record batches of a part, in order. `columns` and `rows` limit what is read of a Parquet part.
pub(crate) fn read(
    kind: Kind,
    path: &Path,
    columns: &[&str],
    rows: Option<Rows>,
) -> Result<Box<dyn Iterator<Item = Result<RecordBatch>>>> {
    let owned = path.to_path_buf();
    match kind.format() {
        Format::Parquet => {
            let mut builder =
                ParquetRecordBatchReaderBuilder::try_new(File::open(path)?).map_err(|e| unreadable(path, &e))?;
            if !columns.is_empty() {
                let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
                builder = builder.with_projection(mask);
            }
            if let Some(rows) = rows {
                builder = builder.with_offset(rows.start).with_limit(rows.length);
            }
            let reader = builder.build().map_err(|e| unreadable(path, &e))?;
            Ok(Box::new(reader.map(move |batch| batch.map_err(|e| unreadable(&owned, &e)))))
        }
        Format::Arrow => {
            let file = BufReader::with_capacity(1 << 20, File::open(path)?);
            let reader = FileReader::try_new(file, None).map_err(|e| unreadable(path, &e))?;
            Ok(Box::new(reader.map(move |batch| batch.map_err(|e| unreadable(&owned, &e)))))
        }
        Format::Folder => Err(anyhow::anyhow!("{} has files, not parts", kind.name())).context("read"),
    }
}
