//! Reading one part, Parquet or Arrow IPC, and checking its columns.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use arrow::array::{Array as _, AsArray as _};
use arrow::buffer::Buffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::convert::try_fb_to_schema;
use arrow::ipc::reader::{FileDecoder, FileReader, read_footer_length};
use arrow::ipc::{Block, root_as_footer};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use memmap2::Mmap;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::error::Error;
use crate::kinds::{Format, Kind};
use crate::stored::{Losses, scale_of};

/// In the footer of an Arrow part: what float16 has changed.
pub(crate) const LOSSES: &str = "wherefrom.stored";

/// Columns and metadata of a part, as written.
pub(crate) fn schema(kind: Kind, path: &Path) -> Result<SchemaRef> {
    match kind.format() {
        Format::Folder => Ok(Arc::new(Schema::empty())),
        Format::Parquet => {
            let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?);
            Ok(builder.map_err(|e| unreadable(path, &e))?.schema().clone())
        }
        Format::Arrow => {
            let reader = FileReader::try_new(BufReader::new(File::open(path)?), None);
            Ok(reader.map_err(|e| unreadable(path, &e))?.schema())
        }
    }
}

/// Checks that the part has the kind's columns and metadata.
pub(crate) fn check(kind: Kind, path: &Path) -> Result<()> {
    if kind.format() == Format::Folder { Ok(()) } else { check_schema(kind, &*schema(kind, path)?, path) }
}

/// Checks all of a part that was just written, perhaps by a stranger's program: columns, metadata, and that every row
/// can be read and has a value in every column. Returns its rows (0 for a folder's file).
pub(crate) fn check_rows(kind: Kind, path: &Path) -> Result<u64> {
    if kind.format() == Format::Folder {
        return Ok(0);
    }
    check(kind, path)?;
    let mut rows = 0;
    for batch in read(kind, path, &[], None)? {
        let batch = batch?;
        for field in kind.schema().fields() {
            let column = batch.column_by_name(field.name());
            let items =
                column.and_then(|column| column.as_list_opt::<i32>()).map_or(0, |list| list.values().null_count());
            if column.is_some_and(|column| column.null_count() + items > 0) {
                let what = format!("column `{}` has nulls; give every row a value", field.name());
                return Err(Error::Schema { path: path.into(), what }.into());
            }
        }
        rows += batch.num_rows() as u64;
    }
    Ok(rows)
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> anyhow::Error {
    Error::Corrupt { path: path.into(), what: format!("the part cannot be read ({error})") }.into()
}

fn check_schema(kind: Kind, found: &Schema, path: &Path) -> Result<()> {
    let refuse = |what: String| Err(Error::Schema { path: path.into(), what }.into());
    for expected in kind.schema().fields() {
        let Ok(field) = found.field_with_name(expected.name()) else {
            if kind.optional(expected.name()) {
                continue;
            }
            return refuse(format!(
                "{} needs a column `{}` of type {}",
                kind.name(),
                expected.name(),
                expected.data_type()
            ));
        };
        if kind.halved(expected.name()) && halves(field.data_type()) {
            let scale = scale_of(expected.name());
            if found.field_with_name(&scale).is_ok_and(|field| *field.data_type() == DataType::Float32) {
                continue;
            }
            return refuse(format!(
                "column `{}` is float16 and needs a column `{scale}` of type Float32",
                expected.name()
            ));
        }
        if !same_type(field.data_type(), expected.data_type()) {
            return refuse(format!(
                "column `{}` is {}, not {}",
                expected.name(),
                field.data_type(),
                expected.data_type()
            ));
        }
    }
    for (key, expected) in
        [("wherefrom.kind", kind.name().to_string()), ("wherefrom.version", kind.version().to_string())]
    {
        // A stranger's program may leave them out: the manifest says it too.
        if let Some(value) = found.metadata().get(key)
            && *value != expected
        {
            return refuse(format!("metadata {key} is `{value}`, not `{expected}`"));
        }
    }
    Ok(())
}

/// What float16 has changed in a part that wherefrom wrote.
pub(crate) fn losses(path: &Path) -> Result<Option<Losses>> {
    let reader = FileReader::try_new(BufReader::new(File::open(path)?), None).map_err(|e| unreadable(path, &e))?;
    let found = reader.custom_metadata().get(LOSSES);
    found.map(|text| serde_json::from_str(text).context("read what float16 has changed")).transpose()
}

/// Whether it is a list of float16.
fn halves(found: &DataType) -> bool {
    matches!(found, DataType::List(item) | DataType::LargeList(item) if *item.data_type() == DataType::Float16)
}

/// List items may have any field name (`item`, `element`) and nullability, and offsets any width: programs differ in it.
fn same_type(found: &DataType, expected: &DataType) -> bool {
    match (found, expected) {
        (DataType::List(found) | DataType::LargeList(found), DataType::List(expected)) => {
            same_type(found.data_type(), expected.data_type())
        }
        (DataType::LargeUtf8 | DataType::Utf8View, DataType::Utf8) => true,
        _ => found == expected,
    }
}

/// The batch with offsets of the kind's width; columns that the kind does not know are left alone.
fn narrowed(kind: Kind, batch: RecordBatch) -> Result<RecordBatch> {
    let (schema, mut columns, _) = batch.into_parts();
    let mut fields = schema.fields().to_vec();
    for expected in kind.schema().fields() {
        if let Some((index, field)) = schema.column_with_name(expected.name())
            && wide(field.data_type())
        {
            columns[index] = cast(&columns[index], expected.data_type())?;
            fields[index] = expected.clone();
        }
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone())), columns)?)
}

fn wide(found: &DataType) -> bool {
    match found {
        DataType::LargeUtf8 | DataType::Utf8View | DataType::LargeList(_) => true,
        DataType::List(item) => wide(item.data_type()),
        _ => false,
    }
}

/// Rows `start..start + length` of a part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) start: usize,
    pub(crate) length: usize,
}

/// The record batches of an Arrow IPC file, as views of its mapped pages: what is not looked at is not read.
fn mapped(path: &Path) -> Result<impl Iterator<Item = Result<RecordBatch, ArrowError>> + use<>, ArrowError> {
    let file = File::open(path)?;
    // SAFETY: the map is read-only, and a sealed part is never written again; whoever changes it while it is read gets
    // wrong values, as with any reader.
    #[allow(unsafe_code)]
    let map = unsafe { Mmap::map(&file)? };
    let file = Buffer::from(Bytes::from_owner(map));
    let cut = || ArrowError::IpcError("the file is cut short".into());
    // At the end: the footer, its length (4 bytes), and the magic word (6 bytes).
    let end = file.len().checked_sub(10).ok_or_else(cut)?;
    let length = read_footer_length(file[end..].try_into().map_err(|_| cut())?)?;
    let footer = &file[end.checked_sub(length).ok_or_else(cut)?..end];
    let footer = root_as_footer(footer).map_err(|error| ArrowError::IpcError(error.to_string()))?;
    let schema = try_fb_to_schema(footer.schema().ok_or_else(cut)?)?;
    let mut decoder = FileDecoder::new(Arc::new(schema), footer.version());
    let piece = |block: &Block| {
        let (offset, length) = (block.offset() as usize, block.bodyLength() as usize + block.metaDataLength() as usize);
        let inside = offset.checked_add(length).is_some_and(|end| end <= file.len());
        inside.then(|| file.slice_with_length(offset, length)).ok_or_else(cut)
    };
    for block in footer.dictionaries().iter().flatten() {
        decoder.read_dictionary(block, &piece(block)?)?;
    }
    let mut blocks = Vec::new();
    for block in footer.recordBatches().iter().flatten() {
        blocks.push((*block, piece(block)?));
    }
    Ok(blocks.into_iter().filter_map(move |(block, piece)| decoder.read_record_batch(&block, &piece).transpose()))
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
            Ok(Box::new(reader.map(move |batch| narrowed(kind, batch.map_err(|e| unreadable(&owned, &e))?))))
        }
        Format::Arrow => {
            let batches = mapped(path).map_err(|e| unreadable(path, &e))?;
            Ok(Box::new(batches.map(move |batch| narrowed(kind, batch.map_err(|e| unreadable(&owned, &e))?))))
        }
        Format::Folder => Err(anyhow::anyhow!("{} has files, not parts", kind.name())).context("read"),
    }
}
