//! The residual stream of every example at chosen sites: means, and the last token of the prompt.

use anyhow::Result;
use arrow::datatypes::{Float32Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kinds::columns::{Columns, batch, filled, floats, lists, numbers, shape, shapes};
use crate::kinds::definition::{Column, Definition, Once, Tensors, Values, first};
use crate::kinds::{Activations, Export, Format, Row};
use crate::origin::Fact;

pub(super) const DEFINITION: Definition = Definition {
    name: "activations",
    version: 1,
    format: Format::Arrow,
    columns: &[
        Column::new("example", Values::UInt64),
        Column::new("shape", Values::ListOfUInt32),
        Column::new("all_mean", Values::ListOfFloat32),
        Column::new("target_mean", Values::ListOfFloat32),
        Column::new("prompt_last", Values::ListOfFloat32),
    ],
    show: |folder, _| {
        first::<Activations, Streams>(folder, |row| {
            let there: Vec<_> =
                row.positions().iter().filter(|(_, values)| !values.is_empty()).map(|(name, _)| *name).collect();
            let [sites, width] = row.shape;
            format!("example {} {sites} sites of {width}: {}", row.example, there.join(", "))
        })
    },
    export: Export::Tensors(|folder| {
        Tensors::of::<Activations, Streams>(folder, |tensors, row| {
            for (name, values) in row.positions() {
                if !values.is_empty() {
                    tensors.push(format!("{}.{name}", row.example), row.shape.to_vec(), values.clone());
                }
            }
        })
    }),
    states: &[Fact::Model, Fact::Tokens],
    says: |wired| match wired.role {
        "query-activations" => wired.numbered(),
        _ => wired.stated(&[Fact::Model, Fact::Tokens]),
    },
    once: Once::Examples,
    check: |batch| Streams::from_batch(batch).map(drop),
};

/// The residual stream of an example, by site in the order of the part's `wherefrom.sites`: [sites, width], row-major; empty
/// where the step does not keep the position.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Streams {
    /// Row number.
    pub example: u64,
    /// [sites, width].
    pub shape: [usize; 2],
    /// Mean over all tokens.
    pub all_mean: Vec<f32>,
    /// Mean over the target tokens.
    pub target_mean: Vec<f32>,
    /// At the token before the first target.
    pub prompt_last: Vec<f32>,
}

/// What is kept of a sequence at a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Position {
    /// The mean over all tokens.
    AllMean,
    /// The mean over the target tokens, each read where it stands itself.
    TargetMean,
    /// The token before the first target; the last one where there is no target.
    PromptLast,
}

impl Streams {
    /// The stream at a position and the `site`-th of the sites: `[width]`; none where the step does not keep it.
    pub fn at(&self, site: usize, position: Position) -> Option<&[f32]> {
        let values = match position {
            Position::AllMean => &self.all_mean,
            Position::TargetMean => &self.target_mean,
            Position::PromptLast => &self.prompt_last,
        };
        values.chunks_exact(self.shape[1].max(1)).nth(site)
    }

    fn positions(&self) -> [(&'static str, &Vec<f32>); 3] {
        [("all_mean", &self.all_mean), ("target_mean", &self.target_mean), ("prompt_last", &self.prompt_last)]
    }
}

impl Row<Activations> for Streams {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("example", numbers::<UInt64Type>(rows.iter().map(|row| row.example))),
            ("shape", shapes(rows.iter().map(|row| row.shape))),
            ("all_mean", lists::<Float32Type>(rows.iter().map(|row| &row.all_mean))),
            ("target_mean", lists::<Float32Type>(rows.iter().map(|row| &row.target_mean))),
            ("prompt_last", lists::<Float32Type>(rows.iter().map(|row| &row.prompt_last))),
        ])
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + 4 * self.positions().iter().map(|(_, values)| values.len()).sum::<usize>()
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (example, shapes) = (columns.u64("example")?, columns.list("shape")?);
        let [all_mean, target_mean, prompt_last] =
            ["all_mean", "target_mean", "prompt_last"].map(|name| columns.list(name));
        let (all_mean, target_mean, prompt_last) = (all_mean?, target_mean?, prompt_last?);
        let row = |i| -> Result<Self> {
            let row = Self {
                example: example.value(i),
                shape: shape(shapes, i)?,
                all_mean: floats(all_mean, i),
                target_mean: floats(target_mean, i),
                prompt_last: floats(prompt_last, i),
            };
            for (name, values) in row.positions() {
                if !values.is_empty() {
                    filled(&format!("{name} of example {}", row.example), row.shape, values)?;
                }
            }
            Ok(row)
        };
        (0..batch.num_rows()).map(row).collect()
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
        fn rows_come_back(example: u64, all_mean in many_numbers(6), prompt_last in many_numbers(6)) {
            let row = Streams { example, shape: [2, 3], all_mean, prompt_last, ..Streams::default() };
            round_trip::<Activations, _>(&[row]);
        }
    }

    #[test]
    fn a_row_of_another_shape_is_refused() {
        let row = Streams { shape: [2, 3], target_mean: vec![0.0; 5], ..Streams::default() };
        let error = Streams::from_batch(&Streams::to_batch(&[row]).unwrap()).unwrap_err().to_string();
        assert_eq!(error, "target_mean of example 0 has 5 values, not 2 x 3");
    }
}
