//! Rows of a Parquet file as JSON objects, so that one reader understands both.

use std::fs::File;

use anyhow::{Context as _, Result};
use arrow::array::{Array, AsArray as _, RecordBatch};
use arrow::datatypes::{
    DataType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use serde_json::{Map, Value};
use wherefrom_artifact::bad_input;

use crate::source::CorpusFile;

/// Rows decoded at once.
const BATCH: usize = 256;

/// Rows of a file in order, the columns of interest alone.
pub(crate) struct TableRows {
    reader: ParquetRecordBatchReader,
    batch: Option<RecordBatch>,
    next: usize,
}

impl TableRows {
    /// The rows from `row` on.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] where the file is no Parquet, or has none of `columns`.
    pub(crate) fn open(file: &CorpusFile, columns: &[&str], row: u64) -> Result<Self> {
        let shown = file.path.display();
        let refused =
            |error: &dyn std::fmt::Display| bad_input(format!("{shown}: is no Parquet that can be read ({error})"));
        let open = File::open(&file.path).map_err(|error| bad_input(format!("{shown}: cannot be read ({error})")))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(open).map_err(|error| refused(&error))?;
        let names: Vec<_> = builder.schema().fields().iter().map(|field| field.name().clone()).collect();
        let wanted: Vec<_> = (0..names.len()).filter(|&index| columns.contains(&&names[index][..])).collect();
        if wanted.is_empty() {
            return Err(bad_input(format!(
                "{shown}: has none of the columns {} (it has {}); say which holds what: columns = {{ text = \"{}\" }}",
                columns.join(", "),
                names.join(", "),
                names.first().map_or("…", String::as_str)
            )));
        }
        let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
        let builder = builder.with_projection(mask).with_batch_size(BATCH).with_offset(usize::try_from(row)?);
        Ok(Self { reader: builder.build().map_err(|error| refused(&error))?, batch: None, next: 0 })
    }

    /// The next row; a row that cannot be an object is said to be one, with what is wrong.
    pub(crate) fn row(&mut self) -> Result<Option<Result<Map<String, Value>, String>>> {
        while self.batch.as_ref().is_none_or(|batch| self.next == batch.num_rows()) {
            let Some(batch) = self.reader.next() else { return Ok(None) };
            (self.batch, self.next) = (Some(batch?), 0);
        }
        let batch = self.batch.as_ref().context("a batch was read")?;
        let row = self.next;
        self.next += 1;
        let (schema, columns) = (batch.schema(), batch.columns());
        let object = || {
            let mut object = Map::new();
            for (field, column) in schema.fields().iter().zip(columns) {
                let value = value(column, row).ok_or_else(|| {
                    let (name, kind) = (field.name(), field.data_type());
                    format!(
                        "the column `{name}` is {kind}, which says nothing here; give text, numbers, lists or structs"
                    )
                })?;
                object.insert(field.name().clone(), value);
            }
            Ok(object)
        };
        Ok(Some(object()))
    }
}

/// The value of a row, if its type has a place in JSON.
fn value(array: &dyn Array, row: usize) -> Option<Value> {
    if array.is_null(row) {
        return Some(Value::Null);
    }
    let items = |items: &dyn Array| (0..items.len()).map(|item| value(items, item)).collect::<Option<Value>>();
    macro_rules! number {
        ($kind:ty) => {
            array.as_primitive::<$kind>().value(row).into()
        };
    }
    Some(match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(row).into(),
        DataType::Utf8View => array.as_string_view().value(row).into(),
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => number!(UInt64Type),
        DataType::Float32 => number!(Float32Type),
        DataType::Float64 => number!(Float64Type),
        DataType::List(_) => items(&array.as_list::<i32>().value(row))?,
        DataType::LargeList(_) => items(&array.as_list::<i64>().value(row))?,
        DataType::FixedSizeList(..) => items(&array.as_fixed_size_list().value(row))?,
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            let key = value(dictionary.keys(), row)?.as_u64()?;
            value(dictionary.values(), usize::try_from(key).ok()?)?
        }
        DataType::Struct(fields) => {
            let columns = fields.iter().zip(array.as_struct().columns());
            let object = columns.map(|(field, column)| Some((field.name().clone(), value(column, row)?)));
            Value::Object(object.collect::<Option<_>>()?)
        }
        _ => return None,
    })
}
