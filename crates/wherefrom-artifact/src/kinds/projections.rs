//! How far texts lie along directions of the residual stream.

use anyhow::Result;
use arrow::datatypes::{Float32Type, UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact::Artifact;
use crate::error::bad_input;
use crate::kinds::columns::{Columns, batch, floats, lists, numbers};
use crate::kinds::definition::{Column, Definition, Once, Values, first};
use crate::kinds::{Export, Format, Projections, Row, Score};
use crate::origin::{Fact, Origin};

pub(super) const DEFINITION: Definition = Definition {
    name: "projections",
    version: 1,
    format: Format::Parquet,
    columns: &[
        Column::new("query", Values::UInt32),
        Column::new("example", Values::UInt64),
        Column::new("projection", Values::Float32),
        Column::new("cosine", Values::Float32),
        Column::new("difference", Values::Float32).with_gaps(),
        Column::new("by_token", Values::ListOfFloat32),
    ],
    show: |folder, _| {
        first::<Projections, Projection>(folder, |row| {
            let difference =
                if row.difference.is_nan() { String::new() } else { format!(", difference {:+.3}", row.difference) };
            let Projection { query, example, projection, cosine, .. } = row;
            format!("direction {query} example {example}: {projection:+.3}, cosine {cosine:+.3}{difference}")
        })
    },
    export: Export::None,
    states: &[Fact::Model, Fact::Tokens],
    // Another model's answers may be what a difference is against.
    says: |wired| match wired.role {
        "scores" | "projections" => wired.stated(&[Fact::Tokens]),
        _ => Origin::new(),
    },
    once: Once::Pairs,
    check: |_| Ok(()),
};

/// The projection of one text on one direction.
#[derive(Debug, Clone)]
pub struct Projection {
    /// Which of the directions, by their order in the input `vectors` among those that were asked for.
    pub query: u32,
    /// Row number of the text.
    pub example: u64,
    /// ⟨h, v / ‖v‖⟩ of the mean over its answer, or of the last token of its prompt.
    pub projection: f32,
    /// The same over ‖h‖.
    pub cosine: f32,
    /// The projection less that of the baseline; NaN without one.
    pub difference: f32,
    /// ⟨h_t, v / ‖v‖⟩ of every token; empty where it was not asked for.
    pub by_token: Vec<f32>,
}

/// Two are equal where they say the same, also that there is no baseline.
impl PartialEq for Projection {
    fn eq(&self, other: &Self) -> bool {
        let numbers = |row: &Self| [row.projection, row.cosine, row.difference].map(f32::to_bits);
        (self.query, self.example, &self.by_token) == (other.query, other.example, &other.by_token)
            && numbers(self) == numbers(other)
    }
}

/// Which number of a projection counts, where texts are put in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Reading {
    /// The projection less that of the baseline.
    Difference,
    /// The projection.
    Projection,
    /// The cosine.
    Cosine,
}

impl Artifact<Projections> {
    /// The names of the directions, `TRAIT.OVER.SITE`, by their numbers as queries.
    ///
    /// # Errors
    /// What serde says of a summary that has others than texts there.
    pub fn directions(&self) -> Result<Vec<String>> {
        let names = self.manifest().summary.get("directions").cloned();
        Ok(names.map_or(Ok(Vec::new()), serde_json::from_value)?)
    }
}

impl Reading {
    /// The difference where there is one.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn of(projections: &Artifact<Projections>) -> Result<Self> {
        let first = projections.rows::<Projection>()?.next().transpose()?;
        Ok(if first.is_some_and(|row| !row.difference.is_nan()) { Self::Difference } else { Self::Projection })
    }

    /// What its numbers are.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Difference => "projection difference",
            Self::Projection => "projection",
            Self::Cosine => "projection as a cosine",
        }
    }

    /// What a positive one says.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Difference => "positive = the text lies further along the direction than its baseline",
            Self::Projection | Self::Cosine => "positive = the text lies along the direction",
        }
    }

    /// The number, as that of a pair of a query, which is a direction, and an example.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for a difference that is not there.
    pub fn score(self, row: &Projection) -> Result<Score> {
        let influence = match self {
            Self::Difference if row.difference.is_nan() => {
                return Err(bad_input(
                    "the projections have no difference: give the step `project` a baseline, or let by = \"projection\" count",
                ));
            }
            Self::Difference => row.difference,
            Self::Projection => row.projection,
            Self::Cosine => row.cosine,
        };
        Ok(Score { query: row.query, example: row.example, influence })
    }
}

impl Row<Projections> for Projection {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("query", numbers::<UInt32Type>(rows.iter().map(|row| row.query))),
            ("example", numbers::<UInt64Type>(rows.iter().map(|row| row.example))),
            ("projection", numbers::<Float32Type>(rows.iter().map(|row| row.projection))),
            ("cosine", numbers::<Float32Type>(rows.iter().map(|row| row.cosine))),
            ("difference", numbers::<Float32Type>(rows.iter().map(|row| row.difference))),
            ("by_token", lists::<Float32Type>(rows.iter().map(|row| &row.by_token))),
        ])
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + 4 * self.by_token.len()
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (query, example) = (columns.u32("query")?, columns.u64("example")?);
        let [projection, cosine, difference] = ["projection", "cosine", "difference"].map(|name| columns.f32(name));
        let (projection, cosine, difference, by_token) = (projection?, cosine?, difference?, columns.list("by_token")?);
        let row = |i| Self {
            query: query.value(i),
            example: example.value(i),
            projection: projection.value(i),
            cosine: cosine.value(i),
            difference: difference.value(i),
            by_token: floats(by_token, i),
        };
        Ok((0..batch.num_rows()).map(row).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kinds::round_trip::*;

    proptest! {
        #![proptest_config(few())]
        #[test]
        fn rows_come_back(query: u32, example: u64, by_token in many_numbers(3)) {
            let row = |difference| Projection { query, example, projection: -1.5, cosine: 0.25, difference, by_token: by_token.clone() };
            round_trip::<Projections, _>(&[row(f32::NAN)]);
            round_trip::<Projections, _>(&[row(0.5)]);
        }
    }
}
