//! What the file of a kind says of it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use arrow::datatypes::{DataType, Field};
use arrow::record_batch::RecordBatch;
use serde_json::Value;

use crate::artifact::Artifact;
use crate::error::Error;
use crate::kinds::{ArtifactKind, Row};
use crate::lineage::Lineage;
use crate::origin::{Fact, Origin, Wired};

/// Rows that are shown.
const ROWS: usize = 5;

/// One kind.
pub(super) struct Definition {
    /// As in folder names, pipelines and part metadata.
    pub(super) name: &'static str,
    /// Raised with any change to the columns or to what one means.
    pub(super) version: u32,
    /// How parts are stored.
    pub(super) format: Format,
    /// In order; none of a folder.
    pub(super) columns: &'static [Column],
    /// What `wherefrom show` prints of an artifact beside its manifest.
    pub(super) show: fn(&Path, &Lineage<'_>) -> Result<String>,
    /// The form that other tools read.
    pub(super) export: Export,
    /// What it states of its origin, of what the inputs of its step agree on.
    pub(super) states: &'static [Fact],
    /// What it holds against the other inputs of a step, in its role.
    pub(super) says: fn(&Wired<'_>) -> Origin,
    /// Of what it has one row.
    pub(super) once: Once,
    /// Refuses rows whose values cannot be; numbers that are not finite are refused of every column that has no gaps.
    pub(super) check: fn(&RecordBatch) -> Result<()>,
}

/// What every influence goes back to.
pub(super) const INFLUENCES: &[Fact] = &[Fact::Model, Fact::Tokens, Fact::Queries, Fact::Eigenbasis];

/// Of what a kind has one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Once {
    /// It may have several of anything.
    Never,
    /// Of each number from 0 on, in order: `example` numbers the rows.
    Numbered,
    /// Of each `example`.
    Examples,
    /// Of each `query` and `example`.
    Pairs,
    /// Of each combination of what these columns hold.
    Named(&'static [&'static str]),
}

/// A refusal of values.
pub(super) fn mismatch<T>(what: String) -> Result<T> {
    Err(Error::Mismatch(what).into())
}

impl Definition {
    /// A folder of files that other tools define.
    pub(super) const fn folder(name: &'static str, version: u32) -> Self {
        let show = |_: &Path, _: &Lineage<'_>| Ok(String::new());
        Self {
            name,
            version,
            format: Format::Folder,
            columns: &[],
            show,
            export: Export::None,
            states: &[],
            says: |_| Origin::new(),
            once: Once::Never,
            check: |_| Ok(()),
        }
    }
}

/// How the parts of a kind are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Flat tables: Parquet, zstd.
    Parquet,
    /// Dense float blocks: Arrow IPC file, uncompressed.
    Arrow,
    /// A folder that other tools define (Hugging Face).
    Folder,
}

impl Format {
    /// The ending of a part's file name.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Arrow => "arrow",
            Self::Folder => "",
        }
    }
}

/// A column. Values are never null.
pub(super) struct Column {
    pub(super) name: &'static str,
    values: Values,
    /// Whether parts may lack it.
    pub(super) optional: bool,
    /// Whether it may be stored in float16.
    pub(super) halved: bool,
    /// Whether NaN stands in it for a number that there is not.
    pub(super) gaps: bool,
}

/// Types of columns, by their names in Arrow.
#[derive(Clone, Copy)]
pub(super) enum Values {
    UInt32,
    UInt64,
    Float32,
    Utf8,
    Binary,
    ListOfUInt32,
    ListOfUInt64,
    ListOfFloat32,
    ListOfBoolean,
    ListOfUtf8,
}

impl Column {
    pub(super) const fn new(name: &'static str, values: Values) -> Self {
        Self { name, values, optional: false, halved: false, gaps: false }
    }

    pub(super) const fn optional(self) -> Self {
        Self { optional: true, ..self }
    }

    pub(super) const fn halved(self) -> Self {
        Self { halved: true, ..self }
    }

    pub(super) const fn with_gaps(self) -> Self {
        Self { gaps: true, ..self }
    }

    /// The item field of a list is nullable, as every Arrow writer makes it by default.
    pub(super) fn field(&self) -> Field {
        let list = |item| DataType::List(Arc::new(Field::new_list_field(item, true)));
        let data_type = match self.values {
            Values::UInt32 => DataType::UInt32,
            Values::UInt64 => DataType::UInt64,
            Values::Float32 => DataType::Float32,
            Values::Utf8 => DataType::Utf8,
            Values::Binary => DataType::Binary,
            Values::ListOfUInt32 => list(DataType::UInt32),
            Values::ListOfUInt64 => list(DataType::UInt64),
            Values::ListOfFloat32 => list(DataType::Float32),
            Values::ListOfBoolean => list(DataType::Boolean),
            Values::ListOfUtf8 => list(DataType::Utf8),
        };
        Field::new(self.name, data_type, false)
    }
}

/// The first rows, a line each.
pub(super) fn first<K: ArtifactKind, R: Row<K>>(folder: &Path, line: impl Fn(&R) -> String) -> Result<String> {
    let mut text = String::new();
    for row in Artifact::<K>::open(folder)?.rows::<R>()?.take(ROWS) {
        writeln!(text, "{}", line(&row?).replace(['\n', '\r'], " "))?;
    }
    Ok(text)
}

/// The form of a kind that other tools read.
#[derive(Debug, Clone, Copy)]
pub enum Export {
    /// Its own form is the only one.
    None,
    /// A JSON value a line.
    Lines(fn(&Path, &Lineage<'_>) -> Result<Vec<Value>>),
    /// Named tensors.
    Tensors(fn(&Path) -> Result<Tensors>),
}

/// Tensors by name, row-major, and what is known of them.
#[derive(Debug, Default)]
pub struct Tensors {
    /// Name, shape, values.
    pub values: Vec<(String, Vec<usize>, Vec<f32>)>,
    /// What is said of them.
    pub metadata: HashMap<String, String>,
    /// Rows so far of each module and side.
    blocks: HashMap<String, usize>,
}

impl Tensors {
    /// What `take` makes of each row.
    pub(super) fn of<K: ArtifactKind, R: Row<K>>(folder: &Path, take: impl Fn(&mut Self, R)) -> Result<Self> {
        let mut tensors = Self::default();
        Artifact::<K>::open(folder)?.rows::<R>()?.try_for_each(|row| row.map(|row| take(&mut tensors, row)))?;
        Ok(tensors)
    }

    /// The name of the next block of a module and side: the first has none of its own, the others are numbered from 1.
    pub(super) fn block(&mut self, name: String) -> String {
        let seen = self.blocks.entry(name.clone()).or_default();
        *seen += 1;
        if *seen == 1 { name } else { format!("{name}.{}", *seen - 1) }
    }

    pub(super) fn push(&mut self, name: String, shape: Vec<usize>, values: Vec<f32>) {
        self.values.push((name, shape, values));
    }

    /// Tokens or examples that a sum is over.
    pub(super) fn count(&mut self, name: &str, count: u64) {
        self.metadata.insert(format!("{name}.count"), count.to_string());
    }
}
