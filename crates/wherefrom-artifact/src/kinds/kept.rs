//! Values that come with the rows of a corpus, beside their tokens.

use anyhow::Result;
use arrow::datatypes::UInt64Type;
use arrow::record_batch::RecordBatch;

use crate::artifact::Artifact;
use crate::cells::{Cells, arrays, cells};
use crate::kinds::columns::{Columns as Found, batch, numbers, strings};
use crate::kinds::definition::{Column, Definition, Once, Values, first};
use crate::kinds::{Columns, Export, Format, Kind, Row};
use crate::origin::Fact;

pub(super) const DEFINITION: Definition = Definition {
    name: "columns",
    version: 1,
    format: Format::Parquet,
    columns: &[Column::new("example", Values::UInt64), Column::new("doc", Values::Utf8)],
    show: |folder, _| {
        first::<Columns, Kept>(folder, |row| {
            let cells: Vec<_> = row.cells.iter().map(|(name, cell)| format!("{name} = {cell}")).collect();
            format!("{} {}: {}", row.example, row.doc, cells.join(", "))
        })
    },
    export: Export::None,
    states: &[Fact::Tokens],
    says: |wired| if wired.role == "query-columns" { wired.numbered() } else { wired.stated(&[Fact::Tokens]) },
    once: Once::Never,
    check: |_| Ok(()),
};

/// What is kept of a document in a window.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// Example number.
    pub example: u64,
    /// The document.
    pub doc: String,
    /// Its values.
    pub cells: Cells,
}

impl Row<Columns> for Kept {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        let kept = arrays(rows.iter().map(|row| &row.cells));
        let mut columns = vec![
            ("example", numbers::<UInt64Type>(rows.iter().map(|row| row.example))),
            ("doc", strings(rows.iter().map(|row| &row.doc[..]))),
        ];
        columns.extend(kept.iter().map(|(name, array)| (&name[..], array.clone())));
        batch(columns)
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.doc.len() + self.cells.bytes()
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Found(batch);
        let (example, doc) = (columns.u64("example")?, columns.utf8("doc")?);
        let row = |(i, cells)| Self { example: example.value(i), doc: doc.value(i).into(), cells };
        Ok(cells(Kind::Columns, batch)?.into_iter().enumerate().map(row).collect())
    }
}

impl Artifact<Columns> {
    /// Each example with its values; of a window of several documents those that all of them have.
    ///
    /// # Errors
    /// As [`Artifact::rows`].
    pub fn by_example(&self) -> Result<impl Iterator<Item = Result<(u64, Cells)>>> {
        let mut rows = self.rows::<Kept>()?.peekable();
        Ok(std::iter::from_fn(move || {
            let first = match rows.next()? {
                Ok(row) => row,
                Err(error) => return Some(Err(error)),
            };
            let mut cells = first.cells;
            while let Some(Ok(row)) = rows.next_if(|row| row.as_ref().is_ok_and(|row| row.example == first.example)) {
                cells.merge(&row.cells);
            }
            Some(Ok((first.example, cells)))
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cells::{Cell, CellColumn, CellType};

    fn kept(example: u64, values: [Cell; 3]) -> Kept {
        let column = |(name, values): (&str, CellType)| CellColumn { name: name.into(), values };
        let columns = [("lang", CellType::Text), ("year", CellType::Integer), ("score", CellType::Number)].map(column);
        Kept { example, doc: "d".into(), cells: Cells { columns: Arc::new(columns), values: values.into() } }
    }

    #[test]
    fn rows_come_back_with_what_they_lack() {
        let rows = [
            kept(0, [Cell::Text("en".into()), Cell::Integer(-3), Cell::Null]),
            kept(1, [Cell::Null, Cell::Null, Cell::Number(0.5)]),
        ];
        assert_eq!(Kept::from_batch(&Kept::to_batch(&rows).unwrap()).unwrap(), rows);
    }

    #[test]
    fn a_window_has_what_all_of_its_documents_have() {
        let mut first = kept(0, [Cell::Text("en".into()), Cell::Integer(1), Cell::Null]).cells;
        first.merge(&kept(0, [Cell::Text("en".into()), Cell::Integer(2), Cell::Null]).cells);
        assert_eq!(first.values, [Cell::Text("en".into()), Cell::Several, Cell::Null]);
    }
}
