//! How well scores foretold retrainings, by query.

use anyhow::Result;
use arrow::datatypes::{Float32Type, UInt32Type};
use arrow::record_batch::RecordBatch;

use crate::kinds::columns::{Columns, batch, floats, lists, numbers, values};
use crate::kinds::definition::{Column, Definition, Once, Values, first};
use crate::kinds::{Agreement, Export, Format, Row};
use crate::origin::Fact;

pub(super) const DEFINITION: Definition = Definition {
    name: "agreement",
    version: 1,
    format: Format::Parquet,
    columns: &[
        Column::new("query", Values::UInt32),
        Column::new("spearman", Values::ListOfFloat32),
        Column::new("pearson", Values::ListOfFloat32),
        Column::new("line", Values::ListOfFloat32),
        Column::new("ceiling", Values::ListOfFloat32),
        Column::new("subset", Values::ListOfUInt32),
        Column::new("predicted", Values::ListOfFloat32),
        Column::new("measured", Values::ListOfFloat32),
    ],
    show: |folder, _| {
        first::<Agreement, Agreed>(folder, |row| {
            let number = |values: &[f32]| values.first().map_or("-".into(), |value| format!("{value:.3}"));
            format!(
                "query {}: Spearman {}, Pearson {}, ceiling {}, over {} subsets",
                row.query,
                number(&row.spearman),
                number(&row.pearson),
                number(&row.ceiling),
                row.subset.len()
            )
        })
    },
    export: Export::None,
    states: &[Fact::Tokens, Fact::Queries],
    says: |wired| wired.stated(&[Fact::Tokens, Fact::Queries]),
    once: Once::Named(&["query"]),
    check: |_| Ok(()),
};

/// Predicted against measured changes of one query.
#[derive(Debug, Clone, PartialEq)]
pub struct Agreed {
    /// Query number.
    pub query: u32,
    /// Spearman's correlation over subsets (its mean over queries is the LDS), and its interval: low, high. Empty where there is
    /// none: a constant correlates with nothing.
    pub spearman: Vec<f32>,
    /// Pearson's correlation, likewise.
    pub pearson: Vec<f32>,
    /// Slope and intercept of measured over predicted nats.
    pub line: Vec<f32>,
    /// Spearman's correlation of what the seeds of one half measured with what the other half did, if there are several.
    pub ceiling: Vec<f32>,
    /// Number of each subset.
    pub subset: Vec<u32>,
    /// Change of the query's log p that the scores foretell, in their unit.
    pub predicted: Vec<f32>,
    /// Change of the query's log p in nats, mean over seeds.
    pub measured: Vec<f32>,
}

impl Row<Agreement> for Agreed {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("query", numbers::<UInt32Type>(rows.iter().map(|row| row.query))),
            ("spearman", lists::<Float32Type>(rows.iter().map(|row| &row.spearman))),
            ("pearson", lists::<Float32Type>(rows.iter().map(|row| &row.pearson))),
            ("line", lists::<Float32Type>(rows.iter().map(|row| &row.line))),
            ("ceiling", lists::<Float32Type>(rows.iter().map(|row| &row.ceiling))),
            ("subset", lists::<UInt32Type>(rows.iter().map(|row| &row.subset))),
            ("predicted", lists::<Float32Type>(rows.iter().map(|row| &row.predicted))),
            ("measured", lists::<Float32Type>(rows.iter().map(|row| &row.measured))),
        ])
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + 12 * self.subset.len()
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let query = columns.u32("query")?;
        let of = |name: &str, i: usize| Ok::<_, anyhow::Error>(floats(columns.list(name)?, i));
        let row = |i| {
            Ok(Self {
                query: query.value(i),
                spearman: of("spearman", i)?,
                pearson: of("pearson", i)?,
                line: of("line", i)?,
                ceiling: of("ceiling", i)?,
                subset: values::<UInt32Type>(columns.list("subset")?, i),
                predicted: of("predicted", i)?,
                measured: of("measured", i)?,
            })
        };
        (0..batch.num_rows()).map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::kinds::round_trip::*;

    proptest! {
        #![proptest_config(few())]
        #[test]
        fn rows_come_back(
            query: u32, spearman in many_numbers(0..3), pearson in many_numbers(0..3), line in many_numbers(0..2),
            ceiling in many_numbers(0..1), subset in vec(any::<u32>(), 0..5), predicted in many_numbers(0..5),
            measured in many_numbers(0..5),
        ) {
            round_trip::<Agreement, _>(&[Agreed {
                query, spearman, pearson, line, ceiling, subset, predicted, measured,
            }]);
        }
    }
}
