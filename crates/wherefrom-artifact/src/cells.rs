//! What comes with a row of the corpus beside its text: values of the columns that a user keeps, under the user's own names.

use std::fmt;
use std::sync::Arc;

use anyhow::Result;
use arrow::array::{
    Array, ArrayRef, AsArray as _, BooleanBuilder, Float64Builder, Int64Builder, RecordBatch, StringBuilder,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type};
use serde::{Deserialize, Serialize, Serializer};

use crate::kinds::Kind;

/// The type of a kept column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CellType {
    /// `Utf8`; dates and times too, as ISO 8601.
    Text,
    /// `Int64`.
    Integer,
    /// `Float64`.
    Number,
    /// `Boolean`.
    Boolean,
}

impl CellType {
    /// What holds values of both: numbers are widened, anything else becomes text.
    pub fn join(self, other: Self) -> Self {
        match (self, other) {
            (Self::Integer | Self::Number, Self::Integer | Self::Number) if self != other => Self::Number,
            _ if self == other => self,
            _ => Self::Text,
        }
    }

    fn arrow(self) -> DataType {
        match self {
            Self::Text => DataType::Utf8,
            Self::Integer => DataType::Int64,
            Self::Number => DataType::Float64,
            Self::Boolean => DataType::Boolean,
        }
    }
}

/// A kept column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellColumn {
    /// As the user has it.
    pub name: String,
    /// Of its values.
    pub values: CellType,
}

impl CellColumn {
    /// A column that may be null: rows of other files may lack it.
    pub(crate) fn field(&self) -> Field {
        Field::new(&self.name, self.values.arrow(), true)
    }
}

/// One value.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Cell {
    /// The row has none.
    #[default]
    Null,
    /// The documents of a window have different ones; null in a table.
    Several,
    /// Text.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A finite number.
    Number(f64),
    /// True or false.
    Boolean(bool),
}

impl Cell {
    /// As a value of the type.
    pub fn of(self, kind: CellType) -> Self {
        match (self, kind) {
            (Self::Integer(value), CellType::Number) => Self::Number(value as f64),
            (value @ (Self::Integer(_) | Self::Number(_) | Self::Boolean(_)), CellType::Text) => {
                Self::Text(value.to_string())
            }
            (value, _) => value,
        }
    }
}

/// Nothing for null.
impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => Ok(()),
            Self::Several => f.write_str("(several)"),
            Self::Text(text) => f.write_str(text),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value}"),
            Self::Boolean(value) => write!(f, "{value}"),
        }
    }
}

/// As in JSON.
impl Serialize for Cell {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null | Self::Several => serializer.serialize_none(),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Integer(value) => serializer.serialize_i64(*value),
            Self::Number(value) => serializer.serialize_f64(*value),
            Self::Boolean(value) => serializer.serialize_bool(*value),
        }
    }
}

/// The kept values of a row: as many as there are columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Cells {
    /// Shared by all rows.
    pub columns: Arc<[CellColumn]>,
    /// One for each column.
    pub values: Vec<Cell>,
}

impl Default for Cells {
    fn default() -> Self {
        Self { columns: Arc::new([]), values: Vec::new() }
    }
}

impl Cells {
    /// Name and value, in the user's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Cell)> {
        self.columns.iter().map(|column| &column.name[..]).zip(&self.values)
    }

    /// The value of a column.
    pub fn get(&self, name: &str) -> Option<&Cell> {
        self.iter().find(|(column, _)| *column == name).map(|(_, cell)| cell)
    }

    /// Takes in those of another document of the same window: what differs is [`Cell::Several`].
    pub fn merge(&mut self, other: &Self) {
        let pairs = self.values.iter_mut().zip(&other.values);
        pairs.filter(|(mine, other)| mine != other).for_each(|(mine, _)| *mine = Cell::Several);
    }

    pub(crate) fn bytes(&self) -> usize {
        let of = |cell: &Cell| size_of::<Cell>() + if let Cell::Text(text) = cell { text.len() } else { 0 };
        self.values.iter().map(of).sum()
    }
}

/// The columns of rows that all have the same ones.
pub(crate) fn arrays<'a>(rows: impl Iterator<Item = &'a Cells> + Clone) -> Vec<(String, ArrayRef)> {
    let columns = rows.clone().next().map(|row| row.columns.clone()).unwrap_or_default();
    let array = |(index, column): (usize, &CellColumn)| {
        let values = rows.clone().map(|row| row.values.get(index).unwrap_or(&Cell::Null));
        (column.name.clone(), array(column.values, values))
    };
    columns.iter().enumerate().map(array).collect()
}

fn array<'a>(kind: CellType, values: impl Iterator<Item = &'a Cell>) -> ArrayRef {
    macro_rules! built {
        ($builder:ty, $variant:pat => $value:expr) => {{
            let mut builder = <$builder>::new();
            values.for_each(|cell| builder.append_option(if let $variant = cell { Some($value) } else { None }));
            Arc::new(builder.finish())
        }};
    }
    match kind {
        CellType::Text => built!(StringBuilder, Cell::Text(text) => text),
        CellType::Integer => built!(Int64Builder, Cell::Integer(value) => *value),
        CellType::Number => built!(Float64Builder, Cell::Number(value) => *value),
        CellType::Boolean => built!(BooleanBuilder, Cell::Boolean(value) => *value),
    }
}

/// What a batch has beside the columns of its kind, row by row. Numbers of other widths are widened, dates become text, and
/// what has no plain value is left out.
pub(crate) fn cells(kind: Kind, batch: &RecordBatch) -> Result<Vec<Cells>> {
    let own = kind.schema();
    let (mut columns, mut arrays) = (Vec::new(), Vec::new());
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let values = match field.data_type() {
            _ if own.field_with_name(field.name()).is_ok() => None,
            DataType::Boolean => Some(CellType::Boolean),
            DataType::UInt64 => Some(CellType::Text),
            found if found.is_integer() => Some(CellType::Integer),
            found if found.is_floating() => Some(CellType::Number),
            found if found.is_nested() || found.is_null() => None,
            _ => Some(CellType::Text),
        };
        if let Some(values) = values
            && let Ok(array) = cast(column, &values.arrow())
        {
            columns.push(CellColumn { name: field.name().clone(), values });
            arrays.push(array);
        }
    }
    let columns: Arc<[CellColumn]> = columns.into();
    let row = |row: usize| {
        let values = arrays.iter().map(|array| cell(array, row)).collect();
        Cells { columns: columns.clone(), values }
    };
    Ok((0..batch.num_rows()).map(row).collect())
}

fn cell(array: &dyn Array, row: usize) -> Cell {
    if array.is_null(row) {
        return Cell::Null;
    }
    match array.data_type() {
        DataType::Utf8 => Cell::Text(array.as_string::<i32>().value(row).into()),
        DataType::Int64 => Cell::Integer(array.as_primitive::<Int64Type>().value(row)),
        DataType::Float64 => {
            let value = array.as_primitive::<Float64Type>().value(row);
            if value.is_finite() { Cell::Number(value) } else { Cell::Null }
        }
        DataType::Boolean => Cell::Boolean(array.as_boolean().value(row)),
        _ => Cell::Null,
    }
}
