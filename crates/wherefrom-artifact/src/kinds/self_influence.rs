//! Influence of every example on itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use arrow::datatypes::{Float32Type, UInt64Type};
use arrow::record_batch::RecordBatch;

use crate::artifact::Artifact;
use crate::kinds::columns::{Columns, batch, floats, lists, numbers};
use crate::kinds::definition::{Column, Definition, Once, Values};
use crate::kinds::ranking::WIDEST;
use crate::kinds::{Example, Export, Format, Row, SelfInfluence, Tokens};
use crate::lineage::Lineage;
use crate::origin::Fact;
use crate::text::{clipped, excerpt, influence_in, one_line, significant};

pub(super) const DEFINITION: Definition = Definition {
    name: "self-influence",
    version: 1,
    format: Format::Parquet,
    columns: &[
        Column::new("example", Values::UInt64),
        Column::new("influence", Values::Float32),
        Column::new("by_module", Values::ListOfFloat32),
    ],
    show: strongest,
    export: Export::None,
    states: &[Fact::Model, Fact::Tokens, Fact::Eigenbasis],
    says: |wired| wired.stated(&[Fact::Model, Fact::Tokens]),
    once: Once::Examples,
    check: |_| Ok(()),
};

/// Rows shown.
const STRONGEST: usize = 10;

/// Influence of an example on itself.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnInfluence {
    /// Row number.
    pub example: u64,
    /// Nats per added copy (see the part's metadata).
    pub influence: f32,
    /// Its shares, in the order of the part's `wherefrom.modules`.
    pub by_module: Vec<f32>,
}

impl Row<SelfInfluence> for OwnInfluence {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("example", numbers::<UInt64Type>(rows.iter().map(|row| row.example))),
            ("influence", numbers::<Float32Type>(rows.iter().map(|row| row.influence))),
            ("by_module", lists::<Float32Type>(rows.iter().map(|row| &row.by_module))),
        ])
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + 4 * self.by_module.len()
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (example, influence, by_module) =
            (columns.u64("example")?, columns.f32("influence")?, columns.list("by_module")?);
        let row =
            |i| Self { example: example.value(i), influence: influence.value(i), by_module: floats(by_module, i) };
        Ok((0..batch.num_rows()).map(row).collect())
    }
}

/// The examples that influence themselves most, with their texts where the tokens are still there.
fn strongest(folder: &Path, lineage: &Lineage<'_>) -> Result<String> {
    let artifact = Artifact::<SelfInfluence>::open(folder)?;
    let mut rows = artifact.rows::<OwnInfluence>()?.collect::<Result<Vec<_>>>()?;
    rows.sort_by(|one, two| two.influence.total_cmp(&one.influence).then(one.example.cmp(&two.example)));
    rows.truncate(STRONGEST);
    let mut texts = BTreeMap::new();
    if let Some(folder) = lineage.input(artifact.manifest(), "tokens") {
        for row in Artifact::<Tokens>::open(&folder)?.rows::<Example>()? {
            let row = row?;
            if rows.iter().any(|found| found.example == row.example) {
                texts.insert(row.example, (row.docs.join(" + "), row.text));
            }
        }
    }
    let mut text = String::new();
    if let Some(unit) = artifact.metadata("unit")? {
        writeln!(text, "influence on itself in {}", influence_in(&unit, artifact.metadata("sign")?.as_deref()))?;
    }
    let widest = texts.values().map(|(doc, _)| doc.chars().count()).max().unwrap_or(0).min(WIDEST);
    for (rank, row) in rows.iter().enumerate() {
        let (doc, said) = texts.get(&row.example).map_or(("", ""), |(doc, text)| (doc, text));
        let (rank, influence, doc) = (rank + 1, significant(row.influence), clipped(&one_line(doc), WIDEST));
        writeln!(text, "  {rank:>2} {influence:>10}  example {:<6}  {doc:<widest$}  {}", row.example, excerpt(said))?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kinds::round_trip::*;

    proptest! {
        #![proptest_config(few())]
        #[test]
        fn rows_come_back(example: u64, influence in number(), by_module in many_numbers(0..4)) {
            round_trip::<SelfInfluence, _>(&[OwnInfluence { example, influence, by_module }]);
        }
    }
}
