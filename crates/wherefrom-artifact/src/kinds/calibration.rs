//! What retrainings have been seen to make of influences, by query.

use anyhow::Result;
use arrow::datatypes::{Float32Type, UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;

use crate::kinds::columns::{Columns, batch, floats, lists, numbers, values};
use crate::kinds::definition::{Column, Definition, Once, Values, first};
use crate::kinds::{Calibration, Export, Format, Row};
use crate::origin::Fact;

pub(super) const DEFINITION: Definition = Definition {
    name: "calibration",
    version: 1,
    format: Format::Parquet,
    columns: &[
        Column::new("query", Values::UInt32),
        Column::new("slope", Values::ListOfFloat32),
        Column::new("reach", Values::Float32),
        Column::new("covered", Values::ListOfUInt32),
        Column::new("example", Values::ListOfUInt64),
        Column::new("influence", Values::ListOfFloat32),
        Column::new("nats", Values::ListOfFloat32),
        Column::new("low", Values::ListOfFloat32),
        Column::new("high", Values::ListOfFloat32),
    ],
    show: |folder, _| first::<Calibration, Calibrated>(folder, said),
    export: Export::None,
    states: &[Fact::Tokens, Fact::Queries],
    says: |wired| wired.stated(&[Fact::Tokens, Fact::Queries]),
    once: Once::Named(&["query"]),
    check: |_| Ok(()),
};

/// The influences of one query in nats of a retraining.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibrated {
    /// Query number.
    pub query: u32,
    /// Nats measured for one nat foretold, and the ends of its interval.
    pub slope: Vec<f32>,
    /// The largest change that was foretold where the slope was fitted: beyond it, the line is a guess.
    pub reach: f32,
    /// Subsets that the slope has not seen: how many of the measured changes lay within their intervals, and of how many.
    pub covered: Vec<u32>,
    /// The ranked examples, in the ranking's order.
    pub example: Vec<u64>,
    /// Their influences, as ranked.
    pub influence: Vec<f32>,
    /// The influences times the slope.
    pub nats: Vec<f32>,
    /// Lower ends of the intervals of what one retraining would measure …
    pub low: Vec<f32>,
    /// … and upper ends.
    pub high: Vec<f32>,
}

/// `query 3: 0.104 (0.071 to 0.140) nats measured for one foretold, 30 of 32 within the interval; strongest +65.01 is +6.761
/// (+2.1 to +11.2), beyond what was measured`.
fn said(row: &Calibrated) -> String {
    let [slope, low, high] = [0, 1, 2].map(|place| row.slope.get(place).copied().unwrap_or(f32::NAN));
    let [held, of] = [0, 1].map(|place| row.covered.get(place).copied().unwrap_or_default());
    let strongest =
        (0..row.influence.len()).max_by(|&left, &right| row.influence[left].total_cmp(&row.influence[right]));
    let strongest = strongest.map_or(String::new(), |place| {
        let guess = if row.influence[place].abs() > row.reach { ", beyond what was measured" } else { "" };
        format!(
            "; strongest {:+.2} is {:+.2} ({:+.2} to {:+.2}){guess}",
            row.influence[place], row.nats[place], row.low[place], row.high[place]
        )
    });
    format!(
        "query {}: {slope:.3} ({low:.3} to {high:.3}) nats measured for one foretold, {held} of {of} within the \
         interval{strongest}",
        row.query
    )
}

impl Row<Calibration> for Calibrated {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("query", numbers::<UInt32Type>(rows.iter().map(|row| row.query))),
            ("slope", lists::<Float32Type>(rows.iter().map(|row| &row.slope))),
            ("reach", numbers::<Float32Type>(rows.iter().map(|row| row.reach))),
            ("covered", lists::<UInt32Type>(rows.iter().map(|row| &row.covered))),
            ("example", lists::<UInt64Type>(rows.iter().map(|row| &row.example))),
            ("influence", lists::<Float32Type>(rows.iter().map(|row| &row.influence))),
            ("nats", lists::<Float32Type>(rows.iter().map(|row| &row.nats))),
            ("low", lists::<Float32Type>(rows.iter().map(|row| &row.low))),
            ("high", lists::<Float32Type>(rows.iter().map(|row| &row.high))),
        ])
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + 24 * self.example.len()
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (query, reach) = (columns.u32("query")?, columns.f32("reach")?);
        let of = |name: &str, i: usize| Ok::<_, anyhow::Error>(floats(columns.list(name)?, i));
        let row = |i| {
            Ok(Self {
                query: query.value(i),
                slope: of("slope", i)?,
                reach: reach.value(i),
                covered: values::<UInt32Type>(columns.list("covered")?, i),
                example: values::<UInt64Type>(columns.list("example")?, i),
                influence: of("influence", i)?,
                nats: of("nats", i)?,
                low: of("low", i)?,
                high: of("high", i)?,
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
            query: u32, slope in many_numbers(3..4), reach in number(), covered in vec(any::<u32>(), 2..3),
            example in vec(any::<u64>(), 0..5), influence in many_numbers(0..5), nats in many_numbers(0..5),
            low in many_numbers(0..5), high in many_numbers(0..5),
        ) {
            round_trip::<Calibration, _>(&[Calibrated {
                query, slope, reach, covered, example, influence, nats, low, high,
            }]);
        }
    }
}
