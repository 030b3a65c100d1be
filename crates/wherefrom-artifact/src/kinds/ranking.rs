//! The most influential examples of each query.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use arrow::array::StringArray;
use arrow::datatypes::{Float32Type, UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use serde_json::{Value, json};

use crate::artifact::Artifact;
use crate::cells::{Cells, arrays, cells};
use crate::kinds::columns::{Columns, batch, numbers, strings};
use crate::kinds::definition::{Column, Definition, INFLUENCES, Once, Values};
use crate::kinds::{Asked, Example, Export, Format, Kind, Ranking, Row};
use crate::lineage::Lineage;
use crate::origin::Fact;
use crate::text::{
    BOUNDARY, EXCERPT, about_boundary, boundary, clipped, influence_in, is_marked, one_line, significant,
};

pub(super) const DEFINITION: Definition = Definition {
    name: "ranking",
    version: 2,
    format: Format::Parquet,
    columns: &[
        Column::new("query", Values::UInt32),
        Column::new("query_id", Values::Utf8).optional(),
        Column::new("sign", Values::Utf8),
        Column::new("rank", Values::UInt32),
        Column::new("example", Values::UInt64),
        Column::new("doc", Values::Utf8),
        Column::new("influence", Values::Float32),
        Column::new("text", Values::Utf8),
        Column::new("prompt", Values::Utf8).optional(),
        Column::new("completion", Values::Utf8).optional(),
        Column::new("contrast", Values::Utf8).optional(),
    ],
    show: table,
    export: Export::Lines(lines),
    states: INFLUENCES,
    says: |wired| match wired.role {
        // A cheaper method or another model may propose what is to be scored.
        "candidates" => wired.stated(&[Fact::Tokens, Fact::Queries]),
        _ => wired.stated(INFLUENCES),
    },
    once: Once::Named(&["query", "sign", "rank"]),
    check: |_| Ok(()),
};

/// Queries shown, all of them.
const QUERIES: usize = 20;
/// Of more than that the first.
const FEW: usize = 5;
/// Characters of a line of the listing.
const LINE: usize = 119;
/// Characters of a document's name shown.
pub(super) const WIDEST: usize = 40;

/// A row of a ranking. Ranks start at 1 in each sign.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ranked {
    /// Query number.
    pub query: u32,
    /// True for `positive`.
    pub positive: bool,
    /// 1 is the strongest.
    pub rank: u32,
    /// Example number.
    pub example: u64,
    /// Its documents, joined.
    pub doc: String,
    /// Nats per added copy.
    pub influence: f32,
    /// Its text.
    pub text: String,
    /// The query in words; empty where it is not known.
    pub asked: Asked,
    /// What comes with the example.
    pub cells: Cells,
}

impl Row<Ranking> for Ranked {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        let sign = |row: &Self| if row.positive { "positive" } else { "negative" };
        let kept = arrays(rows.iter().map(|row| &row.cells));
        let mut columns = vec![
            ("query", numbers::<UInt32Type>(rows.iter().map(|row| row.query))),
            ("query_id", strings(rows.iter().map(|row| &row.asked.id[..]))),
            ("sign", strings(rows.iter().map(sign))),
            ("rank", numbers::<UInt32Type>(rows.iter().map(|row| row.rank))),
            ("example", numbers::<UInt64Type>(rows.iter().map(|row| row.example))),
            ("doc", strings(rows.iter().map(|row| &row.doc[..]))),
            ("influence", numbers::<Float32Type>(rows.iter().map(|row| row.influence))),
            ("text", strings(rows.iter().map(|row| &row.text[..]))),
            ("prompt", strings(rows.iter().map(|row| &row.asked.prompt[..]))),
            ("completion", strings(rows.iter().map(|row| &row.asked.completion[..]))),
            ("contrast", strings(rows.iter().map(|row| &row.asked.contrast[..]))),
        ];
        columns.extend(kept.iter().map(|(name, array)| (&name[..], array.clone())));
        batch(columns)
    }

    fn bytes(&self) -> usize {
        let asked = self.asked.prompt.len() + self.asked.completion.len();
        size_of::<Self>() + self.doc.len() + self.text.len() + asked + self.cells.bytes()
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (query, sign, rank) = (columns.u32("query")?, columns.utf8("sign")?, columns.u32("rank")?);
        let (example, doc) = (columns.u64("example")?, columns.utf8("doc")?);
        let (influence, text) = (columns.f32("influence")?, columns.utf8("text")?);
        // Columns that a stranger may leave out.
        let [id, prompt, completion, contrast] =
            ["query_id", "prompt", "completion", "contrast"].map(|name| columns.utf8(name).ok());
        let said = |column: Option<&StringArray>, i: usize| column.map_or("", |column| column.value(i)).into();
        let row = |(i, cells)| Self {
            query: query.value(i),
            positive: sign.value(i) == "positive",
            rank: rank.value(i),
            example: example.value(i),
            doc: doc.value(i).into(),
            influence: influence.value(i),
            text: text.value(i).into(),
            asked: Asked {
                id: said(id, i),
                prompt: said(prompt, i),
                completion: said(completion, i),
                contrast: said(contrast, i),
            },
            cells,
        };
        Ok(cells(Kind::Ranking, batch)?.into_iter().enumerate().map(row).collect())
    }
}

/// The rows by query that `keep` keeps, each query's strongest first, positive ones before negative ones.
fn by_query(artifact: &Artifact<Ranking>, keep: impl Fn(&Ranked) -> bool) -> Result<BTreeMap<u32, Vec<Ranked>>> {
    let mut queries: BTreeMap<u32, Vec<Ranked>> = BTreeMap::new();
    for row in artifact.rows::<Ranked>()? {
        let row = row?;
        let rows = queries.entry(row.query).or_default();
        if keep(&row) {
            rows.push(row);
        }
    }
    queries.values_mut().for_each(|rows| rows.sort_by_key(|row| (!row.positive, row.rank)));
    Ok(queries)
}

/// For each query its text, the strongest examples of either sign, and what they say.
fn table(folder: &Path, lineage: &Lineage<'_>) -> Result<String> {
    let artifact = Artifact::<Ranking>::open(folder)?;
    let texts = query_texts(folder, lineage).unwrap_or_default();
    let queries = by_query(&artifact, |row| row.rank <= if row.positive { 3 } else { 2 })?;
    let mut text = String::new();
    if let Some(unit) = artifact.metadata("unit")? {
        writeln!(text, "influence in {}", influence_in(&unit, artifact.metadata("sign")?.as_deref()))?;
    }
    if texts.values().any(|(_, asked)| is_marked(asked)) {
        writeln!(text, "{BOUNDARY}")?;
    }
    let widest = queries.values().flatten().map(|row| row.doc.chars().count()).max().unwrap_or(0).min(WIDEST);
    let shown = if queries.len() > QUERIES { FEW } else { queries.len() };
    for (query, rows) in queries.iter().take(shown) {
        let known = rows.first().map_or("", |row| &row.asked.id[..]);
        let (doc, asked) = texts.get(query).map_or((known, ""), |(doc, asked)| (doc, asked));
        writeln!(text, "\nquery {query}  {}\n  {asked}", one_line(doc))?;
        for row in rows {
            let sign = if row.positive { '+' } else { '-' };
            let (influence, doc) = (significant(row.influence), clipped(&one_line(&row.doc), WIDEST));
            let line = format!("  {sign}{} {influence:>10}  {doc:<widest$}  ", row.rank);
            let room = LINE.saturating_sub(line.chars().count()).clamp(30, EXCERPT);
            writeln!(text, "{line}{}", clipped(&one_line(&row.text), room))?;
        }
    }
    if queries.len() > shown {
        let place = folder.join("*.parquet");
        let place = std::path::absolute(&place).unwrap_or(place);
        let more = queries.len() - shown;
        writeln!(text, "\nand {more} more {}, in {}", if more == 1 { "query" } else { "queries" }, place.display())?;
    }
    Ok(text)
}

/// Names and texts of the queries, for people.
fn query_texts(ranking: &Path, lineage: &Lineage<'_>) -> Option<BTreeMap<u32, (String, String)>> {
    let row = |row: Example| Some((u32::try_from(row.example).ok()?, (row.docs.join(" + "), asked(&row))));
    lineage.queries(ranking)?.rows::<Example>().ok()?.take(QUERIES).map(|example| row(example.ok()?)).collect()
}

/// `prompt | completion`, and what it is measured against or together with.
pub(super) fn asked(query: &Example) -> String {
    let start = query.completion_start as usize;
    let text = match query.text.split_at_checked(start) {
        Some((prompt, completion)) if !prompt.is_empty() => {
            let [prompt, completion] = boundary(prompt, completion);
            about_boundary(&prompt, &completion, EXCERPT)
        }
        _ => clipped(&one_line(&query.text), 2 * EXCERPT),
    };
    let rival = query.parts().zip(&query.segment_texts).find(|((_, weight), _)| *weight < 0.0);
    match (rival, query.segments.len()) {
        (Some((_, rival)), 2) => {
            let rival = rival.strip_prefix(query.text.get(..start).unwrap_or_default()).unwrap_or(rival);
            let [_, rival] = boundary("", rival);
            format!("{text} (against {})", clipped(&rival, EXCERPT))
        }
        (_, 0 | 1) => text,
        (_, segments) => format!("{text} (and {} more, weighted)", segments - 1),
    }
}

/// A line a query, as the proponent viewer of PAIR's pretraining-tda reads it (<https://pair-code.github.io/pretraining-tda/demo>).
fn lines(folder: &Path, lineage: &Lineage<'_>) -> Result<Vec<Value>> {
    let artifact = Artifact::<Ranking>::open(folder)?;
    let mut asked: BTreeMap<u32, Example> = BTreeMap::new();
    for example in lineage.queries(folder).and_then(|tokens| tokens.rows::<Example>().ok()).into_iter().flatten() {
        let example = example?;
        asked.insert(u32::try_from(example.example)?, example);
    }
    let unit = artifact.metadata("unit")?;
    let queries = by_query(&artifact, |_| true)?;
    Ok(queries.iter().map(|(query, rows)| line(*query, asked.get(query), rows, unit.as_deref())).collect())
}

fn line(query: u32, asked: Option<&Example>, rows: &[Ranked], unit: Option<&str>) -> Value {
    let name = asked.map_or_else(|| format!("query {query}"), |example| example.docs.join(" + "));
    let asked = asked.map(Example::asked).or_else(|| rows.first().map(|row| row.asked.clone())).unwrap_or_default();
    let of = |positive: bool| rows.iter().filter(move |row| row.positive == positive);
    let texts = |positive| of(positive).map(|row| json!(row.text)).collect::<Vec<_>>();
    let ids = |positive| of(positive).map(|row| json!(row.doc)).collect::<Vec<_>>();
    let scores = |positive| of(positive).map(|row| json!(row.influence)).collect::<Vec<_>>();
    let kept =
        |positive| of(positive).map(|row| json!(row.cells.iter().collect::<BTreeMap<_, _>>())).collect::<Vec<_>>();
    let mut line = json!({
        "example_id": name,
        "query_set": "wherefrom",
        "inputs_plaintext": asked.prompt,
        "targets_plaintext": asked.completion,
        "unit": unit,
        "proponents": texts(true), "proponent_ids": ids(true), "proponent_scores": scores(true),
        "opponents": texts(false), "opponent_ids": ids(false), "opponent_scores": scores(false),
    });
    if !asked.contrast.is_empty() {
        line["contrast_plaintext"] = asked.contrast.into();
    }
    if rows.iter().any(|row| !row.cells.values.is_empty()) {
        line["proponent_columns"] = kept(true).into();
        line["opponent_columns"] = kept(false).into();
    }
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kinds::round_trip::*;

    proptest! {
        #![proptest_config(few())]
        #[test]
        fn rows_come_back(
            query: u32, positive: bool, rank: u32, example: u64, doc in text(), influence in number(), text in text(),
        ) {
            let asked = Asked { id: doc.clone(), prompt: text.clone(), completion: doc.clone(), contrast: text.clone() };
            let cells = Cells::default();
            round_trip::<Ranking, _>(&[Ranked { query, positive, rank, example, doc, influence, text, asked, cells }]);
        }
    }
}
