//! A table as CSV (RFC 4180): a line of names, then a line a row; a list is JSON in its cell.

use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use arrow::array::{Array, AsArray as _};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Int64Type, UInt32Type, UInt64Type};
use serde_json::json;
use wherefrom_artifact::{replace, table};

/// Writes the table in `folder` to the file `output`.
///
/// # Errors
/// What opening the artifact is refused for, and what writing fails for.
pub(crate) fn write(folder: &Path, output: &Path) -> Result<()> {
    let batches = table(folder)?;
    replace(output, |file| {
        let mut into = BufWriter::new(file);
        for (number, batch) in batches.enumerate() {
            let batch = batch?;
            if number == 0 {
                let names: Vec<_> = batch.schema().fields().iter().map(|field| quoted(field.name())).collect();
                into.write_all(format!("{}\r\n", names.join(",")).as_bytes())?;
            }
            for row in 0..batch.num_rows() {
                let cells: Vec<_> =
                    batch.columns().iter().map(|column| Ok(quoted(&cell(column, row)?))).collect::<Result<_>>()?;
                into.write_all(format!("{}\r\n", cells.join(",")).as_bytes())?;
            }
        }
        into.flush().context("write the last rows")
    })
}

fn quoted(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.into() }
}

fn cell(column: &dyn Array, row: usize) -> Result<String> {
    if column.is_null(row) {
        return Ok(String::new());
    }
    Ok(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).into(),
        DataType::LargeUtf8 => column.as_string::<i64>().value(row).into(),
        DataType::Utf8View => column.as_string_view().value(row).into(),
        DataType::Dictionary(..) => {
            let dictionary = column.as_any_dictionary();
            cell(dictionary.values(), dictionary.normalized_keys()[row])?
        }
        DataType::Boolean => column.as_boolean().value(row).to_string(),
        DataType::UInt32 => column.as_primitive::<UInt32Type>().value(row).to_string(),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row).to_string(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row).to_string(),
        DataType::Float32 => column.as_primitive::<Float32Type>().value(row).to_string(),
        DataType::List(_) => {
            let items = column.as_list::<i32>().value(row);
            let text = matches!(items.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
            let item = |item| cell(&items, item).map(|cell| if text { json!(cell).to_string() } else { cell });
            format!("[{}]", (0..items.len()).map(item).collect::<Result<Vec<_>>>()?.join(", "))
        }
        other => anyhow::bail!("a column of {other} has no form in CSV"),
    })
}
