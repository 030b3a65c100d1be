//! Reading one part, Parquet or Arrow IPC, and checking its columns.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use arrow::array::{Array as _, AsArray as _};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader};

use crate::error::Error;
use crate::foreign::{caught, foreign};
use crate::ipc::{Access, Ipc};
use crate::kinds::{Format, Kind};
use crate::parquet_file::ParquetFile;
use crate::sound::Sound;
use crate::stored::{Losses, scale_of};

/// Rows of a Parquet part decoded at once.
const BATCH: usize = 1024;

/// In the footer of an Arrow part: what float16 has changed.
pub(crate) const LOSSES: &str = "wherefrom.stored";

/// Metadata of a part, as written. Parts of a folder have none.
pub(crate) fn metadata(kind: Kind, path: &Path, access: Access) -> Result<HashMap<String, String>> {
    match kind.format() {
        Format::Folder => Ok(HashMap::new()),
        Format::Parquet => Ok(parquet(path)?.1.schema().metadata().clone().into()),
        Format::Arrow => Ok(arrow(path, access)?.schema.metadata().clone().into()),
    }
}

/// Checks all of a part that was just written, perhaps by a stranger's program, or sealed elsewhere: columns, metadata, that
/// every row can be read and has a value in every column, and that the values are [`Sound`]. Returns its rows (0 for a
/// folder's file).
pub(crate) fn check_rows(path: &Path, access: Access, sound: &mut Sound) -> Result<u64> {
    let kind = sound.kind();
    if kind.format() == Format::Folder {
        return Ok(0);
    }
    // Texts of what is sealed were read when it was, and are long.
    let schema = kind.schema();
    let fields = schema.fields().iter().filter(|field| access == Access::Open || field.name() != "text");
    let columns: Vec<&str> = fields.map(|field| &field.name()[..]).collect();
    let mut rows = 0;
    for batch in read(kind, path, access, &columns, None)? {
        let batch = batch?;
        for field in schema.fields() {
            let column = batch.column_by_name(field.name());
            let items =
                column.and_then(|column| column.as_list_opt::<i32>()).map_or(0, |list| list.values().null_count());
            if column.is_some_and(|column| column.null_count() + items > 0) {
                let what = format!("column `{}` has nulls; give every row a value", field.name());
                return Err(Error::Schema { path: path.into(), what }.into());
            }
        }
        sound.check(path, &batch)?;
        rows += batch.num_rows() as u64;
    }
    Ok(rows)
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> anyhow::Error {
    Error::Corrupt { path: path.into(), what: format!("the part cannot be read ({error})") }.into()
}

fn arrow(path: &Path, access: Access) -> Result<Ipc> {
    foreign(path, || Ipc::open(path, access).map_err(|error| unreadable(path, &error)))
}

fn parquet(path: &Path) -> Result<(ParquetFile, ArrowReaderMetadata)> {
    ParquetFile::open(path, ArrowReaderOptions::new()).map_err(|what| unreadable(path, &what))
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
    let part = arrow(path, Access::Open)?;
    let found = part.metadata.iter().find(|(name, _)| name == LOSSES);
    found.map(|(_, text)| serde_json::from_str(text).context("read what float16 has changed")).transpose()
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

/// The record batches of a part, in order; its columns and metadata are checked first. `columns` and `rows` limit what is
/// read of a Parquet part.
pub(crate) fn read(
    kind: Kind,
    path: &Path,
    access: Access,
    columns: &[&str],
    rows: Option<Rows>,
) -> Result<Box<dyn Iterator<Item = Result<RecordBatch>>>> {
    let owned = path.to_path_buf();
    match kind.format() {
        Format::Parquet => {
            let (file, metadata) = parquet(path)?;
            check_schema(kind, metadata.schema(), path)?;
            let mask = match columns {
                [] => ProjectionMask::all(),
                _ => ProjectionMask::columns(metadata.parquet_schema(), columns.iter().copied()),
            };
            let rows = rows.unwrap_or(Rows { start: 0, length: usize::MAX });
            let batches = RowGroups { file, metadata, mask, group: 0, rows, reader: None };
            Ok(Box::new(batches.map(move |batch| narrowed(kind, batch.map_err(|e| unreadable(&owned, &e))?))))
        }
        Format::Arrow => {
            let part = arrow(path, access)?;
            check_schema(kind, &part.schema, path)?;
            // What the kind does not know may be of any type, and is not read.
            let schema = kind.schema();
            let known =
                |name: &str| schema.fields().iter().any(|field| name == field.name() || name == scale_of(field.name()));
            let fields = part.schema.fields().iter().enumerate();
            let columns = fields.filter(|(_, field)| known(field.name())).map(|(index, _)| index).collect();
            let batches = part.batches(columns);
            Ok(guarded(path, batches.map(move |batch| narrowed(kind, batch.map_err(|e| unreadable(&owned, &e))?))))
        }
        Format::Folder => Err(anyhow::anyhow!("{} has files, not parts", kind.name())).context("read"),
    }
}

/// The record batches of a Parquet part, a row group at a time; an error ends them.
struct RowGroups {
    file: ParquetFile,
    metadata: ArrowReaderMetadata,
    mask: ProjectionMask,
    /// The next one.
    group: usize,
    /// What is still to be read, counted from the next row group on.
    rows: Rows,
    reader: Option<ParquetRecordBatchReader>,
}

impl RowGroups {
    fn batch(&mut self) -> Result<Option<RecordBatch>, String> {
        while self.rows.length > 0 {
            if let Some(reader) = &mut self.reader {
                let read = caught(|| reader.next().transpose())?.map_err(|error| error.to_string())?;
                if let Some(batch) = read {
                    let batch = batch.slice(0, batch.num_rows().min(self.rows.length));
                    self.rows.length -= batch.num_rows();
                    return Ok(Some(batch));
                }
                self.reader = None;
            }
            let Some(group) = self.metadata.metadata().row_groups().get(self.group) else { break };
            let (count, skip) = (group.num_rows() as usize, self.rows.start);
            if skip < count {
                self.reader = Some(self.file.read(&self.metadata, self.mask.clone(), (self.group, skip), BATCH)?);
            }
            self.rows.start -= skip.min(count);
            self.group += 1;
        }
        Ok(None)
    }
}

impl Iterator for RowGroups {
    type Item = Result<RecordBatch, String>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.batch().transpose();
        if matches!(batch, Some(Err(_))) {
            (self.reader, self.rows.length) = (None, 0);
        }
        batch
    }
}

/// The batches, and an error at the end where their reader panics.
fn guarded(
    path: &Path,
    mut batches: impl Iterator<Item = Result<RecordBatch>> + 'static,
) -> Box<dyn Iterator<Item = Result<RecordBatch>>> {
    let (path, mut over) = (path.to_path_buf(), false);
    Box::new(std::iter::from_fn(move || {
        if over {
            return None;
        }
        let next = foreign(&path, || batches.next().transpose()).transpose();
        over = !matches!(next, Some(Ok(_)));
        next
    }))
}
