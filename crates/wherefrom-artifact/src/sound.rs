//! What the values of a part must be beyond their types, whoever wrote them: numbers that are finite, rows that are there
//! once, sums of squares that are not negative.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context as _, Result};
use arrow::array::{Array, AsArray as _};
use arrow::datatypes::{DataType, Float16Type, Float32Type, UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;

use crate::error::Error;
use crate::kinds::{Kind, Once};

/// A check of the parts of one artifact, in order.
pub(crate) struct Sound {
    kind: Kind,
    /// Rows so far.
    rows: u64,
    /// Names of the rows so far, where a name is there once.
    seen: HashSet<Vec<String>>,
    /// Rows so far by query (0 where there is none), example / 64, and a bit for each of 64 examples.
    pairs: std::collections::HashMap<(u32, u64), u64>,
}

impl Sound {
    /// Of parts that come after so many rows.
    pub(crate) fn new(kind: Kind, rows: u64) -> Self {
        Self { kind, rows, seen: HashSet::new(), pairs: Default::default() }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Refuses the next rows.
    ///
    /// # Errors
    /// [`Error::Schema`] with the file, the column and the row.
    pub(crate) fn check(&mut self, path: &Path, batch: &RecordBatch) -> Result<()> {
        let refuse = |what: String| Error::Schema { path: path.into(), what };
        for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
            let gaps = self.kind.has_gaps(field.name());
            if let Some(row) = not_finite(column, gaps) {
                let (name, row) = (field.name(), place(batch, row, self.rows));
                return Err(refuse(format!("column `{name}` has a value that is not finite in {row}")).into());
            }
        }
        self.numbers(batch).map_err(refuse)?;
        self.kind.check(batch).with_context(|| path.display().to_string())?;
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    /// Rows that are there twice, of what there is one each.
    fn numbers(&mut self, batch: &RecordBatch) -> Result<(), String> {
        let examples = batch.column_by_name("example").and_then(|column| column.as_primitive_opt::<UInt64Type>());
        let examples = || examples.into_iter().flat_map(|column| column.values());
        match self.kind.once() {
            Once::Never => {}
            Once::Numbered => {
                if let Some((row, example)) = (self.rows..).zip(examples()).find(|(row, example)| row != *example) {
                    return Err(format!(
                        "row {row} has example {example}: `example` numbers the rows from 0, across parts"
                    ));
                }
            }
            once @ (Once::Examples | Once::Pairs) => {
                let queries = batch.column_by_name("query").and_then(|column| column.as_primitive_opt::<UInt32Type>());
                let queries = queries.filter(|_| once == Once::Pairs);
                for (row, &example) in examples().enumerate() {
                    let query = queries.map_or(0, |queries| queries.value(row));
                    let (bits, bit) = (self.pairs.entry((query, example / 64)).or_default(), 1 << (example % 64));
                    if *bits & bit != 0 {
                        return Err(match once {
                            Once::Pairs => format!("query {query} and example {example} are there twice"),
                            _ => format!("{} is there twice", place(batch, row, self.rows)),
                        });
                    }
                    *bits |= bit;
                }
            }
            Once::Named(columns) => {
                for row in 0..batch.num_rows() {
                    let name: Vec<String> = columns.iter().filter_map(|name| value(batch, name, row)).collect();
                    if !self.seen.insert(name) {
                        return Err(format!("{} is there twice", place(batch, row, self.rows)));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The first row with a float that is infinite, or no number where the column has no gaps.
fn not_finite(column: &dyn Array, gaps: bool) -> Option<usize> {
    match column.data_type() {
        DataType::Float32 => {
            let refused = |value: &f32| !(value.is_finite() || gaps && value.is_nan());
            column.as_primitive::<Float32Type>().values().iter().position(refused)
        }
        DataType::Float16 => column.as_primitive::<Float16Type>().values().iter().position(|value| !value.is_finite()),
        DataType::List(_) => {
            let lists = column.as_list::<i32>();
            let place = not_finite(lists.values(), gaps)?;
            // Values before the first list and after the last are nobody's.
            let ends = lists.value_offsets().iter().skip(1);
            let before = ends.take_while(|&&end| end as usize <= place).count();
            (before < lists.len() && place >= lists.value_offsets()[0] as usize).then_some(before)
        }
        _ => None,
    }
}

/// A number or name of a row.
fn value(batch: &RecordBatch, name: &str, row: usize) -> Option<String> {
    let column = batch.column_by_name(name)?;
    Some(match column.data_type() {
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row).to_string(),
        DataType::UInt32 => column.as_primitive::<UInt32Type>().value(row).to_string(),
        DataType::Utf8 => column.as_string::<i32>().value(row).into(),
        _ => return None,
    })
}

/// How a message calls a row: by its number, and by what it is about.
fn place(batch: &RecordBatch, row: usize, before: u64) -> String {
    let about = ["query", "example", "module", "side", "sign", "rank"];
    let about = about.iter().filter_map(|name| Some(format!("{name} {}", value(batch, name, row)?)));
    let about: Vec<_> = about.collect();
    let number = before + row as u64;
    if about.is_empty() { format!("row {number}") } else { format!("row {number} ({})", about.join(", ")) }
}
