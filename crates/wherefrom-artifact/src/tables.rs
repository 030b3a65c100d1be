//! Rows to Arrow and back, column by column and by name.

use anyhow::Result;
use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{Float32Type, UInt32Type, UInt64Type};

use crate::columns::{
    Columns, batch, bool_lists, bools, filled, floats, lists, numbers, shape, shapes, string_lists, strings, texts,
    to_u32, values,
};
use crate::error::Error;
use crate::kind::{
    Candidates, Covariances, Details, Eigenbasis, Gradients, Lambda, Losses, Preconditioned, Ranking, Scores,
    SelfInfluence, Tokens,
};
use crate::rows::{
    Basis, Candidate, Covariance, Detail, Example, Factors, LambdaSum, Loss, OwnInfluence, Ranked, Row, Score, Side,
};

impl Row<Tokens> for Example {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("example", numbers::<UInt64Type>(rows.iter().map(|row| row.example))),
            ("docs", string_lists(rows.iter().map(|row| &row.docs[..]))),
            ("doc_starts", lists::<UInt32Type>(rows.iter().map(|row| &row.doc_starts))),
            ("input_ids", lists::<UInt32Type>(rows.iter().map(|row| &row.input_ids))),
            ("target_mask", bool_lists(rows.iter().map(|row| &row.target_mask[..]))),
            ("segments", lists::<UInt32Type>(rows.iter().map(|row| &row.segments))),
            ("weights", lists::<Float32Type>(rows.iter().map(|row| &row.weights))),
            ("segment_texts", string_lists(rows.iter().map(|row| &row.segment_texts[..]))),
            ("completion_start", numbers::<UInt32Type>(rows.iter().map(|row| row.completion_start))),
            ("text", strings(rows.iter().map(|row| &row.text[..]))),
        ])
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (examples, docs, starts) = (columns.u64("example")?, columns.list("docs")?, columns.list("doc_starts")?);
        let (ids, mask, text) = (columns.list("input_ids")?, columns.list("target_mask")?, columns.utf8("text")?);
        // Columns that a stranger may leave out.
        let (segments, weights) = (columns.list("segments").ok(), columns.list("weights").ok());
        let completion_start = columns.u32("completion_start").ok();
        let row = |i: usize| {
            let row = Self {
                example: examples.value(i),
                docs: texts(docs, i),
                doc_starts: values::<UInt32Type>(starts, i),
                input_ids: values::<UInt32Type>(ids, i),
                target_mask: bools(mask, i),
                segments: segments.map(|starts| values::<UInt32Type>(starts, i)).unwrap_or_default(),
                weights: weights.map(|weights| floats(weights, i)).unwrap_or_default(),
                segment_texts: columns.texts("segment_texts", i),
                completion_start: completion_start.map_or(0, |start| start.value(i)),
                text: text.value(i).into(),
            };
            row.check().map(|()| row)
        };
        (0..batch.num_rows()).map(row).collect()
    }
}

impl Row<Losses> for Loss {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("example", numbers::<UInt64Type>(rows.iter().map(|row| row.example))),
            ("loss", numbers::<Float32Type>(rows.iter().map(|row| row.loss))),
            ("by_token", lists::<Float32Type>(rows.iter().map(|row| &row.by_token))),
        ])
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (example, loss, by_token) = (columns.u64("example")?, columns.f32("loss")?, columns.list("by_token")?);
        let row = |i| Self { example: example.value(i), loss: loss.value(i), by_token: floats(by_token, i) };
        Ok((0..batch.num_rows()).map(row).collect())
    }
}

impl Row<Covariances> for Covariance {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("module", strings(rows.iter().map(|row| &row.module[..]))),
            ("side", strings(rows.iter().map(|row| row.side.name()))),
            ("shared_with", string_lists(rows.iter().map(|row| &row.shared_with[..]))),
            ("count", numbers::<UInt64Type>(rows.iter().map(|row| row.count))),
            ("shape", shapes(rows.iter().map(|row| [row.size, row.size]))),
            ("matrix", lists::<Float32Type>(rows.iter().map(|row| &row.matrix))),
        ])
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (module, side, count) = (columns.utf8("module")?, columns.utf8("side")?, columns.u64("count")?);
        let (shapes, matrix) = (columns.list("shape")?, columns.list("matrix")?);
        let row = |i| -> Result<Self> {
            let (module, matrix, size) = (module.value(i), floats(matrix, i), shape(shapes, i)?[0]);
            filled(&format!("matrix of {module}"), [size, size], &matrix)?;
            let (side, shared_with) = (Side::from_name(side.value(i))?, columns.texts("shared_with", i));
            Ok(Self { module: module.into(), side, shared_with, count: count.value(i), size, matrix })
        };
        (0..batch.num_rows()).map(row).collect()
    }
}

impl Row<Eigenbasis> for Basis {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("module", strings(rows.iter().map(|row| &row.module[..]))),
            ("side", strings(rows.iter().map(|row| row.side.name()))),
            ("shared_with", string_lists(rows.iter().map(|row| &row.shared_with[..]))),
            ("values", lists::<Float32Type>(rows.iter().map(|row| &row.values))),
            ("shape", shapes(rows.iter().map(|row| [row.values.len(), row.values.len()]))),
            ("vectors", lists::<Float32Type>(rows.iter().map(|row| &row.vectors))),
        ])
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (module, side) = (columns.utf8("module")?, columns.utf8("side")?);
        let (eigenvalues, vectors) = (columns.list("values")?, columns.list("vectors")?);
        let row = |i| -> Result<Self> {
            let (module, values, vectors) = (module.value(i), floats(eigenvalues, i), floats(vectors, i));
            filled(&format!("vectors of {module}"), [values.len(); 2], &vectors)?;
            let (side, shared_with) = (Side::from_name(side.value(i))?, columns.texts("shared_with", i));
            Ok(Self { module: module.into(), side, shared_with, values, vectors })
        };
        (0..batch.num_rows()).map(row).collect()
    }
}

impl Row<Lambda> for LambdaSum {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("module", strings(rows.iter().map(|row| &row.module[..]))),
            ("count", numbers::<UInt64Type>(rows.iter().map(|row| row.count))),
            ("shape", shapes(rows.iter().map(|row| row.shape))),
            ("lambda", lists::<Float32Type>(rows.iter().map(|row| &row.lambda))),
        ])
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (module, count) = (columns.utf8("module")?, columns.u64("count")?);
        let shapes = columns.list("shape")?;
        let row = |i| -> Result<Self> {
            let (module, shape, lambda) = (module.value(i), shape(shapes, i)?, columns.matrix("lambda", i)?);
            filled(&format!("lambda of {module}"), shape, &lambda)?;
            Ok(Self { module: module.into(), count: count.value(i), shape, lambda })
        };
        (0..batch.num_rows()).map(row).collect()
    }
}

fn factors_to_batch(rows: &[Factors], name: &str, numbered: ArrayRef) -> Result<RecordBatch> {
    batch(vec![
        (name, numbered),
        ("module", strings(rows.iter().map(|row| &row.module[..]))),
        ("rank", numbers::<UInt32Type>(rows.iter().map(|row| to_u32(row.rank)))),
        ("left_shape", shapes(rows.iter().map(|row| row.left_shape))),
        ("left", lists::<Float32Type>(rows.iter().map(|row| &row.left))),
        ("right_shape", shapes(rows.iter().map(|row| row.right_shape))),
        ("right", lists::<Float32Type>(rows.iter().map(|row| &row.right))),
    ])
}

fn factors_from_batch(batch: &RecordBatch, number: impl Fn(usize) -> u64) -> Result<Vec<Factors>> {
    let columns = Columns(batch);
    let (module, rank) = (columns.utf8("module")?, columns.u32("rank")?);
    let (left_shape, right_shape) = (columns.list("left_shape")?, columns.list("right_shape")?);
    let row = |i| -> Result<Factors> {
        let row = Factors {
            row: number(i),
            module: module.value(i).into(),
            rank: rank.value(i) as usize,
            left_shape: shape(left_shape, i)?,
            left: columns.matrix("left", i)?,
            right_shape: shape(right_shape, i)?,
            right: columns.matrix("right", i)?,
        };
        filled(&format!("left of row {}, {}", row.row, row.module), row.left_shape, &row.left)?;
        filled(&format!("right of row {}, {}", row.row, row.module), row.right_shape, &row.right)?;
        if row.rank > 0 && [row.left_shape[1], row.right_shape[1]] != [row.rank; 2] {
            let what = format!("row {}, {}: rank {} is not that of its factors", row.row, row.module, row.rank);
            return Err(Error::Mismatch(what).into());
        }
        Ok(row)
    };
    (0..batch.num_rows()).map(row).collect()
}

impl Row<Gradients> for Factors {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        factors_to_batch(rows, "example", numbers::<UInt64Type>(rows.iter().map(|row| row.row)))
    }
    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let numbers = Columns(batch).u64("example")?;
        factors_from_batch(batch, |i| numbers.value(i))
    }
}

impl Row<Preconditioned> for Factors {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        let queries = rows.iter().map(|row| u32::try_from(row.row).unwrap_or(u32::MAX));
        factors_to_batch(rows, "query", numbers::<UInt32Type>(queries))
    }
    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let numbers = Columns(batch).u32("query")?;
        factors_from_batch(batch, |i| u64::from(numbers.value(i)))
    }
}

fn pairs<'a>(rows: impl Iterator<Item = &'a Score> + Clone) -> Vec<(&'static str, ArrayRef)> {
    vec![
        ("query", numbers::<UInt32Type>(rows.clone().map(|row| row.query))),
        ("example", numbers::<UInt64Type>(rows.clone().map(|row| row.example))),
        ("influence", numbers::<Float32Type>(rows.map(|row| row.influence))),
    ]
}

impl Row<Scores> for Score {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(pairs(rows.iter()))
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (query, example, influence) = (columns.u32("query")?, columns.u64("example")?, columns.f32("influence")?);
        let row = |i| Self { query: query.value(i), example: example.value(i), influence: influence.value(i) };
        Ok((0..batch.num_rows()).map(row).collect())
    }
}

impl Row<Details> for Detail {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        let mut columns = pairs(rows.iter().map(|row| &row.score));
        columns.push(("by_module", lists::<Float32Type>(rows.iter().map(|row| &row.by_module))));
        columns.push(("by_token", lists::<Float32Type>(rows.iter().map(|row| &row.by_token))));
        batch(columns)
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (by_module, by_token) = (columns.list("by_module")?, columns.list("by_token")?);
        let scores = <Score as Row<Scores>>::from_batch(batch)?;
        let row = |(i, score)| Self { score, by_module: floats(by_module, i), by_token: floats(by_token, i) };
        Ok(scores.into_iter().enumerate().map(row).collect())
    }
}

impl Row<SelfInfluence> for OwnInfluence {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("example", numbers::<UInt64Type>(rows.iter().map(|row| row.example))),
            ("influence", numbers::<Float32Type>(rows.iter().map(|row| row.influence))),
            ("by_module", lists::<Float32Type>(rows.iter().map(|row| &row.by_module))),
        ])
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

/// The pairs of a `details` artifact without their detail.
impl Row<Details> for Score {
    fn to_batch(_rows: &[Self]) -> Result<RecordBatch> {
        Err(Error::Mismatch("a details row needs its detail".into()).into())
    }
    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        <Self as Row<Scores>>::from_batch(batch)
    }
}

impl Row<Candidates> for Candidate {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("query", numbers::<UInt32Type>(rows.iter().map(|row| row.query))),
            ("example", numbers::<UInt64Type>(rows.iter().map(|row| row.example))),
            ("score", numbers::<Float32Type>(rows.iter().map(|row| row.score))),
            ("source", strings(rows.iter().map(|row| &row.source[..]))),
        ])
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (query, example) = (columns.u32("query")?, columns.u64("example")?);
        let (score, source) = (columns.f32("score")?, columns.utf8("source")?);
        let row = |i| Self {
            query: query.value(i),
            example: example.value(i),
            score: score.value(i),
            source: source.value(i).into(),
        };
        Ok((0..batch.num_rows()).map(row).collect())
    }
}

impl Row<Ranking> for Ranked {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        let sign = |row: &Self| if row.positive { "positive" } else { "negative" };
        batch(vec![
            ("query", numbers::<UInt32Type>(rows.iter().map(|row| row.query))),
            ("sign", strings(rows.iter().map(sign))),
            ("rank", numbers::<UInt32Type>(rows.iter().map(|row| row.rank))),
            ("example", numbers::<UInt64Type>(rows.iter().map(|row| row.example))),
            ("doc", strings(rows.iter().map(|row| &row.doc[..]))),
            ("influence", numbers::<Float32Type>(rows.iter().map(|row| row.influence))),
            ("text", strings(rows.iter().map(|row| &row.text[..]))),
        ])
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (query, sign, rank) = (columns.u32("query")?, columns.utf8("sign")?, columns.u32("rank")?);
        let (example, doc) = (columns.u64("example")?, columns.utf8("doc")?);
        let (influence, text) = (columns.f32("influence")?, columns.utf8("text")?);
        let row = |i| Self {
            query: query.value(i),
            positive: sign.value(i) == "positive",
            rank: rank.value(i),
            example: example.value(i),
            doc: doc.value(i).into(),
            influence: influence.value(i),
            text: text.value(i).into(),
        };
        Ok((0..batch.num_rows()).map(row).collect())
    }
}
