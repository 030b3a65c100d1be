//! Directions of the residual stream that stand for a trait: a mean of answers that show it less a mean of answers that do not.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Error, Result};
use arrow::datatypes::{Float32Type, UInt32Type};
use arrow::record_batch::RecordBatch;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact::Artifact;
use crate::error::bad_input;
use crate::kinds::columns::{Columns, batch, floats, lists, numbers, strings};
use crate::kinds::definition::{Column, Definition, Once, Tensors, Values, first, mismatch};
use crate::kinds::{Export, Format, Row, Vectors};
use crate::origin::Origin;

pub(super) const DEFINITION: Definition = Definition {
    name: "vectors",
    version: 1,
    format: Format::Arrow,
    columns: &[
        Column::new("trait", Values::Utf8),
        Column::new("over", Values::Utf8),
        Column::new("site", Values::Utf8),
        Column::new("layer", Values::UInt32),
        Column::new("vector", Values::ListOfFloat32),
        Column::new("positive", Values::ListOfFloat32),
        Column::new("negative", Values::ListOfFloat32),
        Column::new("deviation", Values::Float32).with_gaps(),
        Column::new("norm", Values::Float32),
        Column::new("median_norm", Values::Float32).with_gaps(),
        Column::new("pairs", Values::UInt32),
    ],
    show: |folder, _| {
        first::<Vectors, TraitVector>(folder, |row| {
            let spread = if row.deviation.is_nan() {
                String::new()
            } else {
                format!(" ± {:.3} over {} pairs", row.deviation, row.pairs)
            };
            let stream = if row.median_norm.is_nan() {
                String::new()
            } else {
                format!(", median norm of the stream {:.3}", row.median_norm)
            };
            let TraitVector { trait_name, over, site, norm, .. } = row;
            format!("{trait_name} {over} at site {site}: norm {norm:.3}{spread}{stream}")
        })
    },
    export: Export::Tensors(tensors),
    // A vector of one model is read beside another that was trained from it.
    states: &[],
    says: |_| Origin::new(),
    once: Once::Named(&["trait", "over", "site"]),
    check: |batch| {
        for TraitVector { trait_name, site, vector, norm, .. } in TraitVector::from_batch(batch)? {
            let sum: f64 = vector.iter().map(|&value| f64::from(value).powi(2)).sum();
            if (sum.sqrt() - f64::from(norm)).abs() > 1e-3 * f64::from(norm).max(f64::MIN_POSITIVE) {
                return mismatch(format!("{trait_name} at site {site} states the norm {norm} and has {}", sum.sqrt()));
            }
        }
        Ok(())
    },
};

/// Over which tokens of an answer the stream is averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Over {
    /// The answer: the mean over its target tokens, each read where it stands itself.
    ResponseAvg,
    /// The prompt: the mean over the tokens before the first target.
    PromptAvg,
    /// The last token of the prompt.
    PromptLast,
}

impl Over {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ResponseAvg, Self::PromptAvg, Self::PromptLast];

    /// As in the column.
    pub fn name(self) -> &'static str {
        match self {
            Self::ResponseAvg => "response-avg",
            Self::PromptAvg => "prompt-avg",
            Self::PromptLast => "prompt-last",
        }
    }
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Over {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|over| over.name() == word);
        known.ok_or_else(|| bad_input(format!("`{word}` is none of {}", Self::ALL.map(Self::name).join(", "))))
    }
}

/// A direction at one site: v = mean of the positive answers less mean of the negative ones, not normalised.
#[derive(Debug, Clone, PartialEq)]
pub struct TraitVector {
    /// The trait.
    pub trait_name: String,
    /// Which tokens of an answer count.
    pub over: Over,
    /// Where in the residual stream: `0` (the embeddings), `l` (after l blocks, before the final norm), or `post-norm`.
    pub site: String,
    /// How many blocks come before the site.
    pub layer: u32,
    /// v: as wide as the stream, in its unit.
    pub vector: Vec<f32>,
    /// Mean of the positive answers; empty of a vector that was imported.
    pub positive: Vec<f32>,
    /// Mean of the negative answers; empty of a vector that was imported.
    pub negative: Vec<f32>,
    /// Standard error of the projection of v on its own direction, over pairs; NaN where it is not known.
    pub deviation: f32,
    /// ‖v‖₂.
    pub norm: f32,
    /// Median of ‖h‖₂ at the site over all tokens of the answers and their prompts; NaN where it is not known.
    pub median_norm: f32,
    /// Pairs of answers; 0 where it is not known.
    pub pairs: u32,
}

impl TraitVector {
    /// `TRAIT.OVER.SITE`.
    pub fn name(&self) -> String {
        format!("{}.{}.{}", self.trait_name, self.over, self.site)
    }

    /// v / ‖v‖.
    ///
    /// # Errors
    /// [`crate::Error::Input`] for a vector of zeros.
    pub fn direction(&self) -> Result<Vec<f32>> {
        let norm = self.vector.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
        if norm == 0.0 {
            let Self { trait_name, over, site, .. } = self;
            return Err(bad_input(format!(
                "the vector of {trait_name} over {over} at site {site} is zero: it has no direction"
            )));
        }
        Ok(self.vector.iter().map(|&value| (f64::from(value) / norm) as f32).collect())
    }
}

/// Of each trait and tokens `TRAIT.OVER` [sites, width], where the sites are all from 0 on: `last_row` says whether the last is the
/// last block's output (its number) or that behind the final norm. What else there is becomes `TRAIT.OVER.SITE` [width].
fn tensors(folder: &Path) -> Result<Tensors> {
    let artifact = Artifact::<Vectors>::open(folder)?;
    let mut groups: BTreeMap<(String, Over), Vec<TraitVector>> = BTreeMap::new();
    for row in artifact.rows::<TraitVector>()? {
        let row = row?;
        groups.entry((row.trait_name.clone(), row.over)).or_default().push(row);
    }
    let mut tensors = Tensors::default();
    let mut lasts = Vec::new();
    for rows in groups.values_mut() {
        rows.sort_by_key(|row| (row.layer, row.site == POST_NORM));
        // At the end of the stream both may be there, and the stream's own comes first.
        let whole = rows.iter().enumerate().take_while(|(place, row)| row.layer as usize == *place).count();
        lasts.push(rows[..whole].last().filter(|_| whole > 1).map(|row| row.site.clone()));
    }
    let last = lasts.first().cloned().flatten().filter(|_| lasts.windows(2).all(|pair| pair[0] == pair[1]));
    for ((name, over), rows) in &groups {
        let name = format!("{name}.{}", over.name().replace('-', "_"));
        let whole =
            last.as_ref().map_or(0, |last| rows.iter().position(|row| row.site == *last).map_or(0, |place| place + 1));
        if whole > 0 {
            let values = rows[..whole].iter().flat_map(|row| row.vector.iter().copied()).collect();
            tensors.push(name.clone(), vec![whole, rows[0].vector.len()], values);
        }
        for row in &rows[whole..] {
            tensors.push(format!("{name}.{}", row.site), vec![row.vector.len()], row.vector.clone());
        }
    }
    let manifest = artifact.manifest();
    let rows = || groups.values().flatten();
    let metadata = &mut tensors.metadata;
    metadata.insert("key".into(), manifest.key.clone());
    metadata.extend(manifest.recipe.model.clone().map(|model| ("model".into(), model)));
    metadata.extend(last.map(|last| ("last_row".into(), last)));
    let blocks = rows().find(|row| row.site == POST_NORM).map(|row| row.layer);
    metadata.extend(blocks.map(|blocks| ("blocks".into(), blocks.to_string())));
    let pairs = rows().map(|row| row.pairs).min().unwrap_or(0);
    metadata.insert("pairs".into(), pairs.to_string());
    Ok(tensors)
}

/// The site behind the final norm.
const POST_NORM: &str = "post-norm";

impl Row<Vectors> for TraitVector {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("trait", strings(rows.iter().map(|row| &row.trait_name[..]))),
            ("over", strings(rows.iter().map(|row| row.over.name()))),
            ("site", strings(rows.iter().map(|row| &row.site[..]))),
            ("layer", numbers::<UInt32Type>(rows.iter().map(|row| row.layer))),
            ("vector", lists::<Float32Type>(rows.iter().map(|row| &row.vector))),
            ("positive", lists::<Float32Type>(rows.iter().map(|row| &row.positive))),
            ("negative", lists::<Float32Type>(rows.iter().map(|row| &row.negative))),
            ("deviation", numbers::<Float32Type>(rows.iter().map(|row| row.deviation))),
            ("norm", numbers::<Float32Type>(rows.iter().map(|row| row.norm))),
            ("median_norm", numbers::<Float32Type>(rows.iter().map(|row| row.median_norm))),
            ("pairs", numbers::<UInt32Type>(rows.iter().map(|row| row.pairs))),
        ])
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + 4 * (self.vector.len() + self.positive.len() + self.negative.len())
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let [name, over, site] = ["trait", "over", "site"].map(|name| columns.utf8(name));
        let (name, over, site) = (name?, over?, site?);
        let [vector, positive, negative] = ["vector", "positive", "negative"].map(|name| columns.list(name));
        let (vector, positive, negative) = (vector?, positive?, negative?);
        let [deviation, norm, median_norm] = ["deviation", "norm", "median_norm"].map(|name| columns.f32(name));
        let (deviation, norm, median_norm) = (deviation?, norm?, median_norm?);
        let [layer, pairs] = ["layer", "pairs"].map(|name| columns.u32(name));
        let (layer, pairs) = (layer?, pairs?);
        let row = |i| -> Result<Self> {
            Ok(Self {
                trait_name: name.value(i).into(),
                over: over.value(i).parse()?,
                site: site.value(i).into(),
                layer: layer.value(i),
                vector: floats(vector, i),
                positive: floats(positive, i),
                negative: floats(negative, i),
                deviation: deviation.value(i),
                norm: norm.value(i),
                median_norm: median_norm.value(i),
                pairs: pairs.value(i),
            })
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
        fn rows_come_back(layer: u32, positive in many_numbers(3), negative in many_numbers(3), pairs: u32) {
            let row = TraitVector {
                trait_name: "brevity".into(), over: Over::PromptLast, site: "post-norm".into(), layer,
                vector: vec![0.6, 0.8, 0.0], positive, negative, deviation: 0.5, norm: 1.0, median_norm: 2.5, pairs,
            };
            round_trip::<Vectors, _>(&[row]);
        }
    }
}
