//! What became of the queries where the model was trained again on other data.

use anyhow::Result;
use arrow::datatypes::{Float32Type, UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;

use crate::kinds::columns::{Columns, batch, floats, lists, numbers, values};
use crate::kinds::definition::{Column, Definition, Once, Values, first};
use crate::kinds::{Export, Format, Retrainings, Row};
use crate::origin::Fact;

pub(super) const DEFINITION: Definition = Definition {
    name: "retrainings",
    version: 1,
    format: Format::Parquet,
    columns: &[
        Column::new("subset", Values::UInt32),
        Column::new("seed", Values::UInt64),
        Column::new("weight", Values::Float32),
        Column::new("examples", Values::ListOfUInt64),
        Column::new("loss", Values::ListOfFloat32),
        Column::new("by_token", Values::ListOfFloat32),
    ],
    show: |folder, _| {
        first::<Retrainings, Retraining>(folder, |row| {
            format!(
                "subset {} seed {}: {} examples of weight {}, losses {:.3?}",
                row.subset,
                row.seed,
                row.examples.len(),
                row.weight,
                row.loss
            )
        })
    },
    export: Export::None,
    states: &[Fact::Tokens, Fact::Queries],
    says: |wired| wired.stated(&[Fact::Tokens, Fact::Queries]),
    once: Once::Named(&["subset", "seed"]),
    check: |_| Ok(()),
};

/// One training run.
#[derive(Debug, Clone, PartialEq)]
pub struct Retraining {
    /// Number of the subset; 0 is the whole data.
    pub subset: u32,
    /// Of the order of the rows.
    pub seed: u64,
    /// The weight of the examples of the subset; every other has 1.
    pub weight: f32,
    /// The examples of the subset; none of the whole data.
    pub examples: Vec<u64>,
    /// By query: -f in nats, summed over its targets times the weight of their segment.
    pub loss: Vec<f32>,
    /// -log p of every token of every query, one query after another; 0 where it is no target.
    pub by_token: Vec<f32>,
}

impl Row<Retrainings> for Retraining {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("subset", numbers::<UInt32Type>(rows.iter().map(|row| row.subset))),
            ("seed", numbers::<UInt64Type>(rows.iter().map(|row| row.seed))),
            ("weight", numbers::<Float32Type>(rows.iter().map(|row| row.weight))),
            ("examples", lists::<UInt64Type>(rows.iter().map(|row| &row.examples))),
            ("loss", lists::<Float32Type>(rows.iter().map(|row| &row.loss))),
            ("by_token", lists::<Float32Type>(rows.iter().map(|row| &row.by_token))),
        ])
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + 8 * self.examples.len() + 4 * (self.loss.len() + self.by_token.len())
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (subset, seed, weight) = (columns.u32("subset")?, columns.u64("seed")?, columns.f32("weight")?);
        let (examples, loss, by_token) = (columns.list("examples")?, columns.list("loss")?, columns.list("by_token")?);
        let row = |i| Self {
            subset: subset.value(i),
            seed: seed.value(i),
            weight: weight.value(i),
            examples: values::<UInt64Type>(examples, i),
            loss: floats(loss, i),
            by_token: floats(by_token, i),
        };
        Ok((0..batch.num_rows()).map(row).collect())
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
            subset: u32, seed: u64, weight in number(), examples in vec(any::<u64>(), 0..5), loss in many_numbers(0..5),
            by_token in many_numbers(0..9),
        ) {
            round_trip::<Retrainings, _>(&[Retraining { subset, seed, weight, examples, loss, by_token }]);
        }
    }
}
