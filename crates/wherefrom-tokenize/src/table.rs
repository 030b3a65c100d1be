//! Rows of a Parquet file as JSON objects, so that one reader understands both.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use arrow::array::{Array, ArrayRef, AsArray as _, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Field, FieldRef, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    Schema, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader};
use wherefrom_artifact::{ParquetFile, bad_input, caught};
use wherefrom_vocabulary::ordered::{Json, Object};

use crate::corpus::{LONGEST_ROW, too_long};
use crate::row::Names;
use crate::source::CorpusFile;
use crate::words;

/// Rows decoded at once.
const BATCH: usize = 32;
/// Most items of a list.
const ITEMS: u64 = 1 << 22;

/// The column that most likely holds the text.
fn suggested<'a>(found: &[&'a str]) -> &'a str {
    let named = |name: &str| found.iter().copied().find(|own| *own == name);
    let other = || words::called("text", |name| found.contains(&name)).and_then(named);
    let near = || words::near("text", found.iter().copied());
    named("text").or_else(other).or_else(near).or(found.first().copied()).unwrap_or("…")
}

/// Rows of a file in order, the columns of interest alone; a row group at a time.
pub(crate) struct TableRows {
    path: PathBuf,
    file: ParquetFile,
    metadata: ArrowReaderMetadata,
    /// The columns that are read.
    mask: ProjectionMask,
    /// Those that are known to say something and cannot be read, and those whose names a refusal may want: they are said to be
    /// there.
    unreadable: Vec<String>,
    group: usize,
    /// Rows of the next group that were read before.
    skip: usize,
    reader: Option<ParquetRecordBatchReader>,
    batch: Option<RecordBatch>,
    next: usize,
}

impl TableRows {
    /// The rows from `row` on.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] where the file is no Parquet, has no column of a role, or one that says nothing.
    pub(crate) fn open(file: &CorpusFile, names: &Names, row: u64) -> Result<Self> {
        let path = file.path.clone();
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let opened = ParquetFile::open(&path, options.clone()).and_then(|(opened, metadata)| {
            // Texts of a dictionary are shared, however often they occur.
            let views = Schema::new(metadata.schema().fields().iter().map(views).collect::<Vec<_>>());
            let metadata = ArrowReaderMetadata::try_new(metadata.metadata().clone(), options.with_schema(views.into()));
            Ok((opened, metadata.map_err(|error| error.to_string())?))
        });
        let (opened, metadata) = opened.map_err(|what| unread(&path, &what))?;
        let fields = metadata.schema().fields();
        let roles = names.all();
        if !names.keeps() && !fields.iter().any(|field| roles.contains(&&field.name()[..]) || names.reads(field.name()))
        {
            let found: Vec<_> = fields.iter().map(|field| &field.name()[..]).collect();
            return Err(bad_input(format!(
                "{}: has none of the columns {} (it has {}); say which holds what: columns = {{ text = \"{}\" }}",
                path.display(),
                roles.join(", "),
                found.join(", "),
                suggested(&found)
            )));
        }
        let mut read: Vec<_> = fields.iter().map(|field| field.name()).filter(|name| names.reads(name)).collect();
        read.sort();
        if let Some(twice) = read.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(bad_input(format!(
                "{}: has two columns `{}`; rename or drop one of them",
                path.display(),
                twice[0]
            )));
        }
        let (mut wanted, mut unreadable) = (Vec::new(), Vec::new());
        for (index, field) in fields.iter().enumerate().filter(|(_, field)| names.reads(field.name())) {
            if readable(field.data_type()) || names.keeps() && has_text(field.data_type()) {
                wanted.push(index);
            } else if roles.contains(&&field.name()[..]) {
                return Err(bad_input(format!(
                    "{}: the column `{}` is {}, which says nothing here; give text, numbers, lists or structs",
                    path.display(),
                    field.name(),
                    field.data_type()
                )));
            } else {
                unreadable.push(field.name().clone());
            }
        }
        let others = fields.iter().map(|field| field.name()).filter(|name| !names.reads(name));
        unreadable.extend(others.filter(|name| words::resembles(name, roles.iter().copied())).cloned());
        let mask = ProjectionMask::roots(metadata.parquet_schema(), wanted);
        let (mut group, mut skip) = (0, usize::try_from(row)?);
        while let Some(rows) = metadata.metadata().row_groups().get(group).map(|group| group.num_rows() as usize)
            && skip >= rows
        {
            (group, skip) = (group + 1, skip - rows);
        }
        let (reader, batch, next) = (None, None, 0);
        Ok(Self { path, file: opened, metadata, mask, unreadable, group, skip, reader, batch, next })
    }

    /// Rows of the file.
    pub(crate) fn count(&self) -> u64 {
        self.metadata.metadata().row_groups().iter().map(|group| group.num_rows().cast_unsigned()).sum()
    }

    /// The names of all columns.
    pub(crate) fn columns(&self) -> Vec<String> {
        self.metadata.schema().fields().iter().map(|field| field.name().clone()).collect()
    }

    /// The next row; a row that is too long is said to be one.
    pub(crate) fn row(&mut self) -> Result<Option<Result<Object, String>>> {
        while self.batch.as_ref().is_none_or(|batch| self.next == batch.num_rows()) {
            let Some(batch) = self.read()? else { return Ok(None) };
            (self.batch, self.next) = (Some(batch), 0);
        }
        let batch = self.batch.as_ref().context("a batch was read")?;
        let row = self.next;
        self.next += 1;
        let object = || -> Result<Object, String> {
            let mut left = LONGEST_ROW;
            let mut object = Object::new();
            for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
                object.insert(field.name().clone(), value(column, row, &mut left).ok_or_else(too_long)?);
            }
            object.extend(self.unreadable.iter().map(|name| (name.clone(), Json::Bool(true))));
            Ok(object)
        };
        Ok(Some(caught(object).map_err(|what| unread(&self.path, &what))?))
    }

    /// The next batch of this row group or of one after it.
    fn read(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(reader) = &mut self.reader {
                let read =
                    caught(|| reader.next().transpose()).and_then(|read| read.map_err(|error| error.to_string()));
                if let Some(batch) = read.map_err(|what| unread(&self.path, &what))? {
                    return plain(batch).map(Some);
                }
                self.reader = None;
            }
            if self.group == self.metadata.metadata().num_row_groups() {
                return Ok(None);
            }
            self.reader = Some(self.open_group().map_err(|what| unread(&self.path, &what))?);
            (self.group, self.skip) = (self.group + 1, 0);
        }
    }

    fn open_group(&self) -> Result<ParquetRecordBatchReader, String> {
        let columns = self.metadata.metadata().row_group(self.group).columns();
        let mut longest = 1;
        for (index, column) in columns.iter().enumerate() {
            let list = column.column_descr().max_rep_level() > 0 && self.mask.leaf_included(index);
            if list && column.num_values() as u64 > ITEMS {
                longest = longest.max(self.file.longest_row(&self.metadata, self.group, index)?);
            }
        }
        if longest > ITEMS {
            return Err(format!("a row of row group {} has a list of {longest} items, more than {ITEMS}", self.group));
        }
        let batch = BATCH.min((ITEMS / longest) as usize);
        self.file.read(&self.metadata, self.mask.clone(), (self.group, self.skip), batch)
    }
}

fn unread(path: &std::path::Path, what: &str) -> anyhow::Error {
    bad_input(format!("{}: is no Parquet that can be read ({what}); give the whole file, undamaged", path.display()))
}

/// Names of the columns that hold text.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] where the file is no Parquet.
pub(crate) fn text_columns(file: &CorpusFile) -> Result<Vec<String>> {
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let (_, metadata) = ParquetFile::open(&file.path, options).map_err(|what| unread(&file.path, &what))?;
    let text = |kind: &DataType| matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let fields = metadata.schema().fields().iter().filter(|field| text(field.data_type()));
    Ok(fields.map(|field| field.name().clone()).collect())
}

/// The field with its texts as views.
fn views(field: &FieldRef) -> FieldRef {
    let kind = match field.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        DataType::List(item) => DataType::List(views(item)),
        DataType::LargeList(item) => DataType::LargeList(views(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(views(item), *size),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(views).collect()),
        DataType::Map(entries, sorted) => DataType::Map(views(entries), *sorted),
        other => other.clone(),
    };
    Arc::new(Field::clone(field).with_data_type(kind))
}

/// Whether values of a type that is not in JSON are plainly said by a text: dates, times, decimals, words of a dictionary.
fn has_text(kind: &DataType) -> bool {
    match kind {
        DataType::Dictionary(_, values) => readable(values) || has_text(values),
        DataType::Date32 | DataType::Date64 | DataType::Time32(_) | DataType::Time64(_) => true,
        DataType::Timestamp(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => true,
        _ => false,
    }
}

/// The batch with texts in place of what [`has_text`]. Times with a zone are in UTC, and end in Z.
fn plain(batch: RecordBatch) -> Result<RecordBatch> {
    if batch.columns().iter().all(|column| !has_text(column.data_type())) {
        return Ok(batch);
    }
    let (schema, columns, _) = batch.into_parts();
    let column = |(field, column): (&FieldRef, ArrayRef)| -> Result<(String, ArrayRef)> {
        let name = field.name().clone();
        let text = |column: &ArrayRef| cast(column, &DataType::Utf8);
        Ok(match column.data_type() {
            DataType::Timestamp(unit, Some(_)) => {
                let texts = text(&cast(&column, &DataType::Timestamp(*unit, None))?)?;
                let zoned = texts.as_string::<i32>().iter().map(|time| time.map(|time| format!("{time}Z")));
                (name, Arc::new(zoned.collect::<StringArray>()))
            }
            DataType::Dictionary(_, values) if readable(values) => (name, cast(&column, values)?),
            kind if has_text(kind) => (name, text(&column)?),
            _ => (name, column),
        })
    };
    let columns = schema.fields().iter().zip(columns).map(column).collect::<Result<Vec<_>>>()?;
    Ok(RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))?)
}

/// Whether values of a type have a place in JSON. Fields of a struct that have none are left out.
fn readable(kind: &DataType) -> bool {
    match kind {
        DataType::Null | DataType::Boolean | DataType::Struct(_) => true,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => true,
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => true,
        DataType::Float16 | DataType::Float32 | DataType::Float64 => true,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            readable(item.data_type())
        }
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) => fields.iter().all(|field| readable(field.data_type())),
            _ => false,
        },
        _ => false,
    }
}

/// The value of a row, or nothing where more than `left` bytes would be needed for it.
fn value(array: &dyn Array, row: usize, left: &mut usize) -> Option<Json> {
    /// What a value takes beside its text.
    const OVERHEAD: usize = 4;
    *left = left.checked_sub(OVERHEAD)?;
    if array.is_null(row) {
        return Some(Json::Null);
    }
    macro_rules! number {
        ($kind:ty, $wide:ty) => {
            <$wide>::from(array.as_primitive::<$kind>().value(row)).into()
        };
    }
    Some(match array.data_type() {
        DataType::Null => Json::Null,
        DataType::Utf8 => text(array.as_string::<i32>().value(row), left)?,
        DataType::LargeUtf8 => text(array.as_string::<i64>().value(row), left)?,
        DataType::Utf8View => text(array.as_string_view().value(row), left)?,
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int8 => number!(Int8Type, i64),
        DataType::Int16 => number!(Int16Type, i64),
        DataType::Int32 => number!(Int32Type, i64),
        DataType::Int64 => number!(Int64Type, i64),
        DataType::UInt8 => number!(UInt8Type, u64),
        DataType::UInt16 => number!(UInt16Type, u64),
        DataType::UInt32 => number!(UInt32Type, u64),
        DataType::UInt64 => number!(UInt64Type, u64),
        DataType::Float16 => number!(Float16Type, f64),
        DataType::Float32 => number!(Float32Type, f64),
        DataType::Float64 => number!(Float64Type, f64),
        DataType::List(_) => items(&array.as_list::<i32>().value(row), left)?,
        DataType::LargeList(_) => items(&array.as_list::<i64>().value(row), left)?,
        DataType::FixedSizeList(..) => items(&array.as_fixed_size_list().value(row), left)?,
        DataType::Map(..) => {
            let entries = array.as_map().value(row);
            let mut object = Object::new();
            for entry in 0..entries.len() {
                let key = match value(entries.column(0), entry, left)? {
                    Json::String(key) => key,
                    other => other.shown(),
                };
                object.insert(key, value(entries.column(1), entry, left)?);
            }
            Json::Object(object)
        }
        DataType::Struct(fields) => {
            let mut object = Object::new();
            for (field, column) in fields.iter().zip(array.as_struct().columns()) {
                if readable(field.data_type()) {
                    *left = left.checked_sub(field.name().len())?;
                    let value = value(column, row, left)?;
                    // A struct has the fields of all rows: what is null in one is not there, but for a turn's content.
                    if !value.is_null() || field.name() == "content" {
                        object.insert(field.name().clone(), value);
                    }
                }
            }
            Json::Object(object)
        }
        _ => Json::Null,
    })
}

fn text(text: &str, left: &mut usize) -> Option<Json> {
    *left = left.checked_sub(text.len())?;
    Some(Json::from(text))
}

fn items(items: &dyn Array, left: &mut usize) -> Option<Json> {
    (0..items.len()).map(|item| value(items, item, left)).collect::<Option<_>>().map(Json::Array)
}
