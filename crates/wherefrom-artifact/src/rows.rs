//! Rows of every table as structs.

use std::collections::HashMap;
use std::ops::Range;

use anyhow::{Context as _, Result};
use arrow::record_batch::RecordBatch;

use crate::artifact::Artifact;
use crate::columns::Columns;
use crate::error::Error;
use crate::kind::ArtifactKind;

/// One token window, or one query: its measurement is f = sum over segments s of w_s log p(targets of s).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Example {
    /// Row number.
    pub example: u64,
    /// Documents in the window.
    pub docs: Vec<String>,
    /// First token of each document.
    pub doc_starts: Vec<u32>,
    /// Token ids, no padding.
    pub input_ids: Vec<u32>,
    /// True where the token is a prediction target; never at the first of a segment.
    pub target_mask: Vec<bool>,
    /// First token of each segment, ascending from 0; segments do not see each other. Empty: one segment.
    pub segments: Vec<u32>,
    /// w of each segment. Empty: all 1.
    pub weights: Vec<f32>,
    /// Text of each segment of a query that has several; empty otherwise.
    pub segment_texts: Vec<String>,
    /// Byte of `text` where the completion begins; 0 where there is no prompt.
    pub completion_start: u32,
    /// The text the tokens came from, or their decoding.
    pub text: String,
}

impl Example {
    /// Tokens of each segment and its weight, in order.
    pub fn parts(&self) -> impl Iterator<Item = (Range<usize>, f32)> {
        let starts = if self.segments.is_empty() { &[0] } else { &self.segments[..] };
        let ends = starts[1..].iter().map(|&end| end as usize).chain([self.input_ids.len()]);
        let weights = self.weights.iter().copied().chain(std::iter::repeat(1.0));
        starts.iter().zip(ends).zip(weights).map(|((&start, end), weight)| (start as usize..end, weight))
    }

    /// Tokens of the longest segment: what has to fit in a model's context.
    pub fn longest_segment(&self) -> usize {
        self.parts().map(|(tokens, _)| tokens.len()).max().unwrap_or(0)
    }

    /// Refuses what no model can read: no tokens, a mask of another length, a target with nothing before it.
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Mismatch(format!("example {}: {what}", self.example)).into());
        if self.input_ids.is_empty() {
            return refuse("it has no tokens".into());
        }
        let (tokens, mask) = (self.input_ids.len(), &self.target_mask);
        if mask.len() != tokens {
            return refuse(format!("target_mask has {} entries for {tokens} tokens", mask.len()));
        }
        let starts = &self.segments;
        let ascending = starts.is_sorted_by(|left, right| left < right);
        if starts.first().is_some_and(|&first| first != 0)
            || starts.last().is_some_and(|&last| last as usize >= tokens)
            || !ascending
        {
            return refuse(format!("segments {starts:?} do not ascend from 0 to below {tokens}, the number of tokens"));
        }
        let segments = starts.len().max(1);
        if !self.weights.is_empty() && self.weights.len() != segments {
            return refuse(format!("weights has {} entries for {segments} segments", self.weights.len()));
        }
        if let Some(weight) = self.weights.iter().find(|weight| !weight.is_finite()) {
            return refuse(format!("weights has {weight}, which is no number to multiply with"));
        }
        if let Some((segment, _)) = self.parts().find(|(segment, _)| mask[segment.start]) {
            let place = segment.start;
            return refuse(format!(
                "target_mask is true at position {place}, which begins a segment and can never be a target"
            ));
        }
        Ok(())
    }
}

/// Summed loss of an example and the loss of each token (0 where it is no target).
#[derive(Debug, Clone, PartialEq)]
pub struct Loss {
    /// Row number.
    pub example: u64,
    /// Sum over target tokens, each times the weight of its segment, nats.
    pub loss: f32,
    /// By position of the predicted token, without weights.
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

    pub(crate) fn from_name(name: &str) -> Result<Self> {
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
    /// Later modules that read the same input, and hence have this matrix.
    pub shared_with: Vec<String>,
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
    /// Later modules whose matrix this is too.
    pub shared_with: Vec<String>,
    /// Eigenvalues, of the mean over tokens.
    pub values: Vec<f32>,
    /// Row-major eigenvectors.
    pub vectors: Vec<f32>,
}

impl Covariance {
    /// Every module that has this matrix.
    pub fn modules(&self) -> impl Iterator<Item = &String> {
        [&self.module].into_iter().chain(&self.shared_with)
    }
}

impl Basis {
    /// Every module that has this matrix.
    pub fn modules(&self) -> impl Iterator<Item = &String> {
        [&self.module].into_iter().chain(&self.shared_with)
    }
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
    /// In the order of the part's `wherefrom.modules`.
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

    /// The rows of one part, digest checked, one record batch in memory at a time.
    pub fn rows_in<R: Row<K>>(&self, part: usize) -> Result<impl Iterator<Item = Result<R>> + use<K, R>> {
        let folder = self.folder().display().to_string();
        let rows = move |batch: Result<RecordBatch>| R::from_batch(&batch?).with_context(|| folder.clone());
        Ok(self.batches(part, &[])?.flat_map(move |batch| one_by_one(rows(batch))))
    }

    /// The rows of one module in one part, shared ones too, digest checked; the values of the others are not read.
    pub fn rows_of<R: Row<K>>(&self, part: usize, module: &str) -> Result<impl Iterator<Item = Result<R>> + use<K, R>> {
        let (folder, module) = (self.folder().display().to_string(), module.to_string());
        let rows = move |batch: Result<RecordBatch>| -> Result<Vec<R>> {
            let batch = batch?;
            let names = Columns(&batch).utf8("module").with_context(|| folder.clone())?;
            let shared = |row| Columns(&batch).texts("shared_with", row).contains(&module);
            let own = (0..batch.num_rows()).filter(|&row| names.value(row) == module || shared(row));
            let rows = own.map(|row| R::from_batch(&batch.slice(row, 1)));
            Ok(rows.collect::<Result<Vec<_>>>().with_context(|| folder.clone())?.into_iter().flatten().collect())
        };
        Ok(self.batches(part, &[])?.flat_map(move |batch| one_by_one(rows(batch))))
    }

    /// The names of the modules, in the order in which rows name them first.
    pub fn modules(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = Vec::new();
        for batch in self.all_batches(&[])? {
            let batch = batch?;
            for name in Columns(&batch).utf8("module")?.iter().flatten() {
                if !names.iter().any(|known| known == name) {
                    names.push(name.into());
                }
            }
        }
        Ok(names)
    }

    /// The rows of one module in every part, in order.
    pub fn module<R: Row<K>>(&self, module: &str) -> Result<Vec<R>> {
        let mut rows = Vec::new();
        for part in self.parts_of(module)? {
            for row in self.rows_of(part, module)? {
                rows.push(row?);
            }
        }
        Ok(rows)
    }

    /// The parts with rows of one module, shared ones too. All are looked through the first time: who asks for every module
    /// in turn does not open every part for each.
    fn parts_of(&self, module: &str) -> Result<Vec<usize>> {
        let known = match self.by_module.get() {
            Some(known) => known,
            None => {
                let found = self.find_modules()?;
                self.by_module.get_or_init(|| found)
            }
        };
        Ok(known.get(module).cloned().unwrap_or_default())
    }

    fn find_modules(&self) -> Result<HashMap<String, Vec<usize>>> {
        let mut found: HashMap<String, Vec<usize>> = HashMap::new();
        for part in 0..self.parts() {
            for batch in self.batches(part, &[])? {
                let batch = batch?;
                let columns = Columns(&batch);
                let names = columns.utf8("module")?;
                for row in 0..batch.num_rows() {
                    for name in [names.value(row).into()].into_iter().chain(columns.texts("shared_with", row)) {
                        let parts = found.entry(name).or_default();
                        if parts.last() != Some(&part) {
                            parts.push(part);
                        }
                    }
                }
            }
        }
        Ok(found)
    }

    /// The rows of every part, digests checked, one record batch in memory at a time.
    pub fn rows<R: Row<K>>(&self) -> Result<impl Iterator<Item = Result<R>> + use<K, R>> {
        let folder = self.folder().display().to_string();
        let rows = move |batch: Result<RecordBatch>| R::from_batch(&batch?).with_context(|| folder.clone());
        Ok(self.all_batches(&[])?.flat_map(move |batch| one_by_one(rows(batch))))
    }
}

fn one_by_one<R>(rows: Result<Vec<R>>) -> Vec<Result<R>> {
    match rows {
        Ok(rows) => rows.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error)],
    }
}
