//! What the values of a part must be beyond their types, whoever wrote them: numbers that are finite, rows that are there
//! once, sums of squares that are not negative.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context as _, Result};
use arrow::array::{Array, AsArray as _};
use arrow::datatypes::{DataType, Float16Type, Float32Type, UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;

use crate::error::Error;
use crate::kinds::{Basis, Covariance, LambdaSum, Row};
use crate::kinds::{Covariances, Eigenbasis, Kind, Lambda};

/// How much an element of a covariance may differ from its mirror image, over the geometric mean of the diagonal's two.
const ASYMMETRY: f64 = 1e-3;
/// How much the length of an eigenvector may differ from 1.
const LENGTH: f64 = 1e-3;

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
            if let Some(row) = not_finite(column) {
                let (name, row) = (field.name(), place(batch, row, self.rows));
                return Err(refuse(format!("column `{name}` has a value that is not finite in {row}")).into());
            }
        }
        self.numbers(batch).map_err(refuse)?;
        self.matrices(batch).with_context(|| path.display().to_string())?;
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    /// Tokens are numbered by their rows; what is about examples, queries or modules has one row for each.
    fn numbers(&mut self, batch: &RecordBatch) -> Result<(), String> {
        let numbers =
            |name: &str| batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<UInt64Type>());
        if self.kind == Kind::Tokens {
            let examples = numbers("example").into_iter().flat_map(|column| column.values());
            for (row, &example) in (self.rows..).zip(examples) {
                if example != row {
                    return Err(format!(
                        "row {row} has example {example}: `example` numbers the rows from 0, across parts"
                    ));
                }
            }
        }
        let paired = matches!(self.kind, Kind::Scores | Kind::Details);
        if paired || matches!(self.kind, Kind::Losses | Kind::SelfInfluence | Kind::Index) {
            let queries = batch.column_by_name("query").and_then(|column| column.as_primitive_opt::<UInt32Type>());
            let queries = queries.filter(|_| paired);
            for (row, &example) in numbers("example").into_iter().flat_map(|column| column.values()).enumerate() {
                let query = queries.map_or(0, |queries| queries.value(row));
                let (bits, bit) = (self.pairs.entry((query, example / 64)).or_default(), 1 << (example % 64));
                if *bits & bit != 0 {
                    return Err(match paired {
                        true => format!("query {query} and example {example} are there twice"),
                        false => format!("{} is there twice", place(batch, row, self.rows)),
                    });
                }
                *bits |= bit;
            }
        }
        let named: &[&str] = match self.kind {
            Kind::Gradients => &["example", "module"],
            Kind::Preconditioned => &["query", "module"],
            Kind::Lambda => &["module"],
            Kind::Coordinates => &["module", "row", "column"],
            Kind::Ranking => &["query", "sign", "rank"],
            _ => return Ok(()),
        };
        for row in 0..batch.num_rows() {
            let name: Vec<String> = named.iter().filter_map(|name| value(batch, name, row)).collect();
            if !self.seen.insert(name) {
                return Err(format!("{} is there twice", place(batch, row, self.rows)));
            }
        }
        Ok(())
    }

    fn matrices(&self, batch: &RecordBatch) -> Result<()> {
        match self.kind {
            Kind::Covariances => {
                <Covariance as Row<Covariances>>::from_batch(batch)?.iter().try_for_each(check_covariance)
            }
            Kind::Eigenbasis => <Basis as Row<Eigenbasis>>::from_batch(batch)?.iter().try_for_each(check_basis),
            Kind::Lambda => <LambdaSum as Row<Lambda>>::from_batch(batch)?.iter().try_for_each(check_lambda),
            _ => Ok(()),
        }
    }
}

/// The first row with a float that is no number or infinite.
fn not_finite(column: &dyn Array) -> Option<usize> {
    match column.data_type() {
        DataType::Float32 => column.as_primitive::<Float32Type>().values().iter().position(|value| !value.is_finite()),
        DataType::Float16 => column.as_primitive::<Float16Type>().values().iter().position(|value| !value.is_finite()),
        DataType::List(_) => {
            let lists = column.as_list::<i32>();
            let place = not_finite(lists.values())?;
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

fn mismatch<T>(what: String) -> Result<T> {
    Err(Error::Mismatch(what).into())
}

fn check_covariance(row: &Covariance) -> Result<()> {
    let (name, n) = (format!("the {} covariance of {}", row.side.name(), row.module), row.size);
    let at = |i: usize, j: usize| f64::from(row.matrix[i * n + j]);
    if row.count == 0 && row.matrix.iter().any(|&value| value != 0.0) {
        return mismatch(format!("{name} is the sum over no tokens and is not zero"));
    }
    if let Some(i) = (0..n).find(|&i| at(i, i) < 0.0) {
        return mismatch(format!("{name} has {} at [{i}, {i}]: a sum of squares is not negative", at(i, i)));
    }
    for i in 0..n {
        for j in 0..i {
            let scale = (at(i, i) * at(j, j)).sqrt();
            let (element, mirrored) = (at(i, j), at(j, i));
            if (element - mirrored).abs() > ASYMMETRY * scale + f64::from(f32::MIN_POSITIVE) {
                return mismatch(format!("{name} is not symmetric: {element} at [{i}, {j}], {mirrored} at [{j}, {i}]"));
            }
        }
    }
    Ok(())
}

fn check_basis(row: &Basis) -> Result<()> {
    let (name, n) = (format!("the {} eigenbasis of {}", row.side.name(), row.module), row.values.len());
    let mut squares = vec![0.0_f64; n];
    for vectors in row.vectors.chunks_exact(n.max(1)) {
        squares.iter_mut().zip(vectors).for_each(|(sum, &value)| *sum += f64::from(value).powi(2));
    }
    match squares.iter().position(|square| (square.sqrt() - 1.0).abs() > LENGTH) {
        Some(column) => mismatch(format!("{name}: eigenvector {column} has length {}, not 1", squares[column].sqrt())),
        None => Ok(()),
    }
}

fn check_lambda(row: &LambdaSum) -> Result<()> {
    let name = format!("lambda of {}", row.module);
    match row.lambda.iter().position(|&value| value < 0.0) {
        Some(place) => {
            let (column, value) = (row.shape[1].max(1), row.lambda[place]);
            let (i, j) = (place / column, place % column);
            mismatch(format!("{name} has {value} at [{i}, {j}]: a sum of squares is not negative"))
        }
        None if row.count == 0 => mismatch(format!("{name} is the sum over no examples")),
        None => Ok(()),
    }
}
