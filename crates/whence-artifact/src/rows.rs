//! Rows of every table as structs, to Arrow and back, column by column and by name.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use arrow::array::{
    ArrayRef, AsArray as _, BooleanArray, BooleanBuilder, Float32Array, ListArray, ListBuilder, PrimitiveArray,
    PrimitiveBuilder, RecordBatch, StringArray, StringBuilder, UInt32Array, UInt64Array,
};
use arrow::datatypes::{ArrowPrimitiveType, Float32Type, UInt32Type, UInt64Type};

use crate::artifact::Artifact;
use crate::error::Error;
use crate::kind::{
    ArtifactKind, Candidates, Covariances, Details, Eigenbasis, Gradients, Lambda, Losses, Preconditioned, Ranking,
    Scores, Tokens,
};

/// One token window. `example` is its row number in the corpus.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Example {
    /// Row number.
    pub example: u64,
    /// Documents in the window.
    pub docs: Vec<String>,
    /// First token of each document.
    pub doc_starts: Vec<u32>,
    /// Token ids, no padding.
    pub input_ids: Vec<u32>,
    /// True where the token is a prediction target; never at position 0.
    pub target_mask: Vec<bool>,
    /// A contrast query's rival sequence (prompt and rival completion); empty otherwise.
    pub contrast_ids: Vec<u32>,
    /// Targets of the rival sequence.
    pub contrast_mask: Vec<bool>,
    /// The text the tokens came from, or their decoding.
    pub text: String,
}

impl Example {
    /// Refuses what no model can read: no tokens, a mask of another length, a target with nothing before it.
    fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Mismatch(format!("example {}: {what}", self.example)).into());
        if self.input_ids.is_empty() {
            return refuse("it has no tokens".into());
        }
        for (name, ids, mask) in [
            ("target_mask", &self.input_ids, &self.target_mask),
            ("contrast_mask", &self.contrast_ids, &self.contrast_mask),
        ] {
            if ids.len() != mask.len() {
                return refuse(format!("{name} has {} entries for {} tokens", mask.len(), ids.len()));
            }
            if mask.first() == Some(&true) {
                return refuse(format!("{name} is true at position 0, which can never be a target"));
            }
        }
        Ok(())
    }
}

/// Summed loss of an example and the loss of each token (0 where it is no target).
#[derive(Debug, Clone, PartialEq)]
pub struct Loss {
    /// Row number.
    pub example: u64,
    /// Sum over target tokens, nats.
    pub loss: f32,
    /// By position of the predicted token.
    pub by_token: Vec<f32>,
}

/// Which covariance: of a module's inputs, or of its output gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// A = E[a a^T].
    Activation,
    /// S = E[d d^T].
    Gradient,
}

impl Side {
    /// As in the `side` column.
    pub fn name(self) -> &'static str {
        match self {
            Self::Activation => "activation",
            Self::Gradient => "gradient",
        }
    }

    fn from_name(name: &str) -> Result<Self> {
        match name {
            "activation" => Ok(Self::Activation),
            "gradient" => Ok(Self::Gradient),
            other => Err(Error::Mismatch(format!("side `{other}` is neither `activation` nor `gradient`")).into()),
        }
    }
}

/// A sum of outer products over `count` tokens: [n, n], row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Covariance {
    /// Module name.
    pub module: String,
    /// Which side.
    pub side: Side,
    /// Tokens summed over.
    pub count: u64,
    /// n.
    pub size: usize,
    /// Row-major values.
    pub matrix: Vec<f32>,
}

/// Eigenvalues ascending, eigenvectors as the columns of [n, n], row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Basis {
    /// Module name.
    pub module: String,
    /// Which side.
    pub side: Side,
    /// Eigenvalues, of the mean over tokens.
    pub values: Vec<f32>,
    /// Row-major eigenvectors.
    pub vectors: Vec<f32>,
}

/// Corrected eigenvalues of a module, summed over `count` examples: [out, in], row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct LambdaSum {
    /// Module name.
    pub module: String,
    /// Examples summed over.
    pub count: u64,
    /// [out, in].
    pub shape: [usize; 2],
    /// Row-major values.
    pub lambda: Vec<f32>,
}

/// A matrix [out, in] as left · right^T, or whole in `left` where `rank` is 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// Example or query number.
    pub row: u64,
    /// Module name.
    pub module: String,
    /// Columns of both factors; 0 = `left` is the whole [out, in] matrix.
    pub rank: usize,
    /// Rows and columns of `left`.
    pub left_shape: [usize; 2],
    /// [out, rank], row-major.
    pub left: Vec<f32>,
    /// Rows and columns of `right`.
    pub right_shape: [usize; 2],
    /// [in, rank], row-major.
    pub right: Vec<f32>,
}

/// Influence of an example on a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Query number.
    pub query: u32,
    /// Example number.
    pub example: u64,
    /// Nats per added copy (see the part's metadata).
    pub influence: f32,
}

/// Influence of an example on a query, taken apart.
#[derive(Debug, Clone, PartialEq)]
pub struct Detail {
    /// The pair and its total.
    pub score: Score,
    /// In the order of the part's `whence.modules`.
    pub by_module: Vec<f32>,
    /// By position whose activation carried it; the predicted token is the next one.
    pub by_token: Vec<f32>,
}

/// A pair worth scoring.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Query number.
    pub query: u32,
    /// Example number.
    pub example: u64,
    /// What the source thinks of it.
    pub score: f32,
    /// Who proposed it (`bm25`, `ranking`).
    pub source: String,
}

/// A row of a ranking. Ranks start at 1 in each sign.
#[derive(Debug, Clone, PartialEq)]
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
}

fn lists<T: ArrowPrimitiveType>(rows: impl Iterator<Item = Vec<T::Native>>) -> ArrayRef {
    let mut builder = ListBuilder::new(PrimitiveBuilder::<T>::new());
    for row in rows {
        builder.values().append_slice(&row);
        builder.append(true);
    }
    Arc::new(builder.finish())
}

fn bool_lists<'a>(rows: impl Iterator<Item = &'a [bool]>) -> ArrayRef {
    let mut builder = ListBuilder::new(BooleanBuilder::new());
    for row in rows {
        builder.values().append_slice(row);
        builder.append(true);
    }
    Arc::new(builder.finish())
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> Result<RecordBatch> {
    Ok(RecordBatch::try_from_iter(columns)?)
}

fn strings<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn numbers<T: ArrowPrimitiveType>(values: impl Iterator<Item = T::Native>) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::from_iter_values(values))
}

/// Columns of one batch, found by name (the types were checked when the part was opened).
struct Columns<'a>(&'a RecordBatch);

impl<'a> Columns<'a> {
    fn any(&self, name: &str) -> Result<&'a ArrayRef> {
        let what = || Error::Mismatch(format!("column `{name}` is missing")).into();
        self.0.column_by_name(name).ok_or_else(what)
    }
    fn u64(&self, name: &str) -> Result<&'a UInt64Array> {
        Ok(self.any(name)?.as_primitive())
    }
    fn u32(&self, name: &str) -> Result<&'a UInt32Array> {
        Ok(self.any(name)?.as_primitive())
    }
    fn f32(&self, name: &str) -> Result<&'a Float32Array> {
        Ok(self.any(name)?.as_primitive())
    }
    fn utf8(&self, name: &str) -> Result<&'a StringArray> {
        Ok(self.any(name)?.as_string())
    }
    fn list(&self, name: &str) -> Result<&'a ListArray> {
        Ok(self.any(name)?.as_list())
    }
}

fn values<T: ArrowPrimitiveType>(list: &ListArray, row: usize) -> Vec<T::Native> {
    list.value(row).as_primitive::<T>().values().to_vec()
}

fn floats(list: &ListArray, row: usize) -> Vec<f32> {
    values::<Float32Type>(list, row)
}

fn bools(list: &ListArray, row: usize) -> Vec<bool> {
    let array: BooleanArray = list.value(row).as_boolean().clone();
    array.values().iter().collect()
}

fn shape(list: &ListArray, row: usize) -> Result<[usize; 2]> {
    match values::<UInt32Type>(list, row)[..] {
        [rows, columns] => Ok([rows as usize, columns as usize]),
        ref other => Err(Error::Mismatch(format!("shape {other:?} has not two numbers")).into()),
    }
}

/// Refuses values that are not as many as their shape says.
fn filled(what: &str, shape: [usize; 2], values: &[f32]) -> Result<()> {
    if shape[0].checked_mul(shape[1]) == Some(values.len()) {
        return Ok(());
    }
    Err(Error::Mismatch(format!("{what} has {} values, not {} x {}", values.len(), shape[0], shape[1])).into())
}

fn shapes(shapes: impl Iterator<Item = [usize; 2]>) -> ArrayRef {
    lists::<UInt32Type>(shapes.map(|[rows, columns]| vec![to_u32(rows), to_u32(columns)]))
}

fn to_u32(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// A struct that is a row of an artifact of kind `K`.
pub trait Row<K>: Sized {
    /// Rows to one record batch.
    fn to_batch(rows: &[Self]) -> Result<RecordBatch>;
    /// One record batch to rows.
    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>>;
}

impl<K: ArtifactKind> Artifact<K> {
    /// The rows of one part, digest checked.
    pub fn read<R: Row<K>>(&self, part: usize) -> Result<Vec<R>> {
        let mut rows = Vec::new();
        for batch in self.batches(part, &[])? {
            rows.extend(R::from_batch(&batch?).with_context(|| self.folder().display().to_string())?);
        }
        Ok(rows)
    }

    /// The rows of every part, digests checked, one record batch in memory at a time.
    pub fn rows<R: Row<K>>(&self) -> Result<impl Iterator<Item = Result<R>> + use<K, R>> {
        let folder = self.folder().display().to_string();
        let rows = move |batch: Result<RecordBatch>| R::from_batch(&batch?).with_context(|| folder.clone());
        Ok(self.all_batches(&[])?.flat_map(move |batch| match rows(batch) {
            Ok(rows) => rows.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(error) => vec![Err(error)],
        }))
    }
}

impl Row<Tokens> for Example {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        let mut docs = ListBuilder::new(StringBuilder::new());
        for row in rows {
            row.docs.iter().for_each(|doc| docs.values().append_value(doc));
            docs.append(true);
        }
        batch(vec![
            ("example", numbers::<UInt64Type>(rows.iter().map(|row| row.example))),
            ("docs", Arc::new(docs.finish())),
            ("doc_starts", lists::<UInt32Type>(rows.iter().map(|row| row.doc_starts.clone()))),
            ("input_ids", lists::<UInt32Type>(rows.iter().map(|row| row.input_ids.clone()))),
            ("target_mask", bool_lists(rows.iter().map(|row| &row.target_mask[..]))),
            ("contrast_ids", lists::<UInt32Type>(rows.iter().map(|row| row.contrast_ids.clone()))),
            ("contrast_mask", bool_lists(rows.iter().map(|row| &row.contrast_mask[..]))),
            ("text", strings(rows.iter().map(|row| &row.text[..]))),
        ])
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (examples, docs, starts) = (columns.u64("example")?, columns.list("docs")?, columns.list("doc_starts")?);
        let (ids, mask, text) = (columns.list("input_ids")?, columns.list("target_mask")?, columns.utf8("text")?);
        let (contrast, contrast_mask) = (columns.list("contrast_ids")?, columns.list("contrast_mask")?);
        let row = |i: usize| {
            let row = Self {
                example: examples.value(i),
                docs: docs.value(i).as_string::<i32>().iter().flatten().map(str::to_string).collect(),
                doc_starts: values::<UInt32Type>(starts, i),
                input_ids: values::<UInt32Type>(ids, i),
                target_mask: bools(mask, i),
                contrast_ids: values::<UInt32Type>(contrast, i),
                contrast_mask: bools(contrast_mask, i),
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
            ("by_token", lists::<Float32Type>(rows.iter().map(|row| row.by_token.clone()))),
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
            ("count", numbers::<UInt64Type>(rows.iter().map(|row| row.count))),
            ("shape", shapes(rows.iter().map(|row| [row.size, row.size]))),
            ("matrix", lists::<Float32Type>(rows.iter().map(|row| row.matrix.clone()))),
        ])
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (module, side, count) = (columns.utf8("module")?, columns.utf8("side")?, columns.u64("count")?);
        let (shapes, matrix) = (columns.list("shape")?, columns.list("matrix")?);
        let row = |i| -> Result<Self> {
            let (module, matrix, size) = (module.value(i), floats(matrix, i), shape(shapes, i)?[0]);
            filled(&format!("matrix of {module}"), [size, size], &matrix)?;
            let (side, count) = (Side::from_name(side.value(i))?, count.value(i));
            Ok(Self { module: module.into(), side, count, size, matrix })
        };
        (0..batch.num_rows()).map(row).collect()
    }
}

impl Row<Eigenbasis> for Basis {
    fn to_batch(rows: &[Self]) -> Result<RecordBatch> {
        batch(vec![
            ("module", strings(rows.iter().map(|row| &row.module[..]))),
            ("side", strings(rows.iter().map(|row| row.side.name()))),
            ("values", lists::<Float32Type>(rows.iter().map(|row| row.values.clone()))),
            ("shape", shapes(rows.iter().map(|row| [row.values.len(), row.values.len()]))),
            ("vectors", lists::<Float32Type>(rows.iter().map(|row| row.vectors.clone()))),
        ])
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (module, side) = (columns.utf8("module")?, columns.utf8("side")?);
        let (eigenvalues, vectors) = (columns.list("values")?, columns.list("vectors")?);
        let row = |i| -> Result<Self> {
            let (module, values, vectors) = (module.value(i), floats(eigenvalues, i), floats(vectors, i));
            filled(&format!("vectors of {module}"), [values.len(); 2], &vectors)?;
            Ok(Self { module: module.into(), side: Side::from_name(side.value(i))?, values, vectors })
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
            ("lambda", lists::<Float32Type>(rows.iter().map(|row| row.lambda.clone()))),
        ])
    }

    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>> {
        let columns = Columns(batch);
        let (module, count) = (columns.utf8("module")?, columns.u64("count")?);
        let (shapes, lambda) = (columns.list("shape")?, columns.list("lambda")?);
        let row = |i| -> Result<Self> {
            let (module, shape, lambda) = (module.value(i), shape(shapes, i)?, floats(lambda, i));
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
        ("left", lists::<Float32Type>(rows.iter().map(|row| row.left.clone()))),
        ("right_shape", shapes(rows.iter().map(|row| row.right_shape))),
        ("right", lists::<Float32Type>(rows.iter().map(|row| row.right.clone()))),
    ])
}

fn factors_from_batch(batch: &RecordBatch, number: impl Fn(usize) -> u64) -> Result<Vec<Factors>> {
    let columns = Columns(batch);
    let (module, rank) = (columns.utf8("module")?, columns.u32("rank")?);
    let (left_shape, left) = (columns.list("left_shape")?, columns.list("left")?);
    let (right_shape, right) = (columns.list("right_shape")?, columns.list("right")?);
    let row = |i| -> Result<Factors> {
        let row = Factors {
            row: number(i),
            module: module.value(i).into(),
            rank: rank.value(i) as usize,
            left_shape: shape(left_shape, i)?,
            left: floats(left, i),
            right_shape: shape(right_shape, i)?,
            right: floats(right, i),
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
        columns.push(("by_module", lists::<Float32Type>(rows.iter().map(|row| row.by_module.clone()))));
        columns.push(("by_token", lists::<Float32Type>(rows.iter().map(|row| row.by_token.clone()))));
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
