//! Where the known sources of each query rank.

use anyhow::Result;
use arrow::datatypes::{Float32Type, UInt32Type};
use arrow::record_batch::RecordBatch;

use crate::kinds::columns::{Columns, batch, floats, lists, numbers, values};
use crate::kinds::definition::{Column, Definition, Once, Values, first};
use crate::kinds::{Export, Format, Retrieval, Row};
use crate::origin::Fact;

pub(super) const DEFINITION: Definition = Definition {
    name: "retrieval",
    version: 1,
    format: Format::Parquet,
    columns: &[
        Column::new("query", Values::UInt32),
        Column::new("sources", Values::UInt32),
        Column::new("reciprocal_rank", Values::Float32),
        Column::new("ranks", Values::ListOfUInt32),
        Column::new("recall", Values::ListOfFloat32),
        Column::new("influence", Values::Float32),
        Column::new("strongest", Values::Float32),
    ],
    show: |folder, _| {
        first::<Retrieval, Retrieved>(folder, |row| {
            let ranks: Vec<_> = row.ranks.iter().take(10).map(u32::to_string).collect();
            format!(
                "query {}: {} sources, average precision {:.3}, at ranks {}; influence of all {:+.3}, of the strongest example {:+.3}",
                row.query,
                row.sources,
                row.average_precision(),
                if ranks.is_empty() { "-".into() } else { ranks.join(", ") },
                row.influence,
                row.strongest
            )
        })
    },
    export: Export::None,
    states: &[Fact::Tokens, Fact::Queries],
    says: |wired| wired.stated(&[Fact::Tokens, Fact::Queries]),
    once: Once::Named(&["query"]),
    check: |_| Ok(()),
};

/// Sources of one query: the examples that its answer is known to come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Retrieved {
    /// Query number.
    pub query: u32,
    /// How many there are; 0 of a query whose answer comes from nowhere.
    pub sources: u32,
    /// 1 over the rank of the first; 0 where there is none.
    pub reciprocal_rank: f32,
    /// Their ranks by influence, from 1, in order.
    pub ranks: Vec<u32>,
    /// Share of them among the k strongest examples, or of k where they are more, for every k of the stage's `at`.
    pub recall: Vec<f32>,
    /// Sum of their influences, in the scores' unit.
    pub influence: f32,
    /// Influence of the strongest example.
    pub strongest: f32,
}

impl Retrieved {
    /// Mean over the sources, the k-th of them at rank r, of k / r: the precision there. 0 where there is none.
    pub fn average_precision(&self) -> f64 {
        let sum: f64 = (1..).zip(&self.ranks).map(|(found, &rank)| f64::from(found) / f64::from(rank)).sum();
        sum / self.ranks.len().max(1) as f64
    }
}

impl Row<Retrieval> for Retrieved {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("query", numbers::<UInt32Type>(rows.iter().map(|row| row.query))),
            ("sources", numbers::<UInt32Type>(rows.iter().map(|row| row.sources))),
            ("reciprocal_rank", numbers::<Float32Type>(rows.iter().map(|row| row.reciprocal_rank))),
            ("ranks", lists::<UInt32Type>(rows.iter().map(|row| &row.ranks))),
            ("recall", lists::<Float32Type>(rows.iter().map(|row| &row.recall))),
            ("influence", numbers::<Float32Type>(rows.iter().map(|row| row.influence))),
            ("strongest", numbers::<Float32Type>(rows.iter().map(|row| row.strongest))),
        ])
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + 4 * (self.ranks.len() + self.recall.len())
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (query, sources) = (columns.u32("query")?, columns.u32("sources")?);
        let reciprocal_rank = columns.f32("reciprocal_rank")?;
        let (influence, strongest) = (columns.f32("influence")?, columns.f32("strongest")?);
        let row = |i| {
            Ok(Self {
                query: query.value(i),
                sources: sources.value(i),
                reciprocal_rank: reciprocal_rank.value(i),
                ranks: values::<UInt32Type>(columns.list("ranks")?, i),
                recall: floats(columns.list("recall")?, i),
                influence: influence.value(i),
                strongest: strongest.value(i),
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
            query: u32, sources: u32, ranks in vec(any::<u32>(), 0..5), recall in many_numbers(0..4),
            numbers in many_numbers(3..4),
        ) {
            let [reciprocal_rank, influence, strongest] = numbers[..] else { unreachable!() };
            round_trip::<Retrieval, _>(&[Retrieved {
                query, sources, reciprocal_rank, ranks, recall, influence, strongest,
            }]);
        }
    }
}
