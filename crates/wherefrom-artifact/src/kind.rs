//! The kinds of artifact: name, version, file format and columns. FORMAT.md says the same in prose.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use serde::{Deserialize, Serialize};

/// What an artifact holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A Hugging Face `tokenizer.json`.
    Tokenizer,
    /// Token windows with their targets and text.
    Tokens,
    /// A Hugging Face checkpoint folder.
    Model,
    /// Loss per example and token.
    Losses,
    /// Activation and gradient covariances, summed over tokens.
    Covariances,
    /// Eigenvalues and eigenvectors of the covariances.
    Eigenbasis,
    /// Corrected eigenvalues, summed over examples.
    Lambda,
    /// Gradients of the loss, as factors.
    Gradients,
    /// Preconditioned query gradients, as factors.
    Preconditioned,
    /// The coordinates of the eigenbasis that an index keeps.
    Coordinates,
    /// Signs of every example's gradient at those coordinates.
    Index,
    /// Pairs worth scoring.
    Candidates,
    /// Influence of every example on every query.
    Scores,
    /// Influence of chosen pairs, by module and by token.
    Details,
    /// Influence of every example on itself.
    SelfInfluence,
    /// The most influential examples of each query.
    Ranking,
    /// A page to look at.
    Report,
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

impl Kind {
    /// Every kind, in the order of the pipeline.
    pub const ALL: [Self; 17] = [
        Self::Tokenizer,
        Self::Tokens,
        Self::Model,
        Self::Losses,
        Self::Covariances,
        Self::Eigenbasis,
        Self::Lambda,
        Self::Gradients,
        Self::Preconditioned,
        Self::Coordinates,
        Self::Index,
        Self::Candidates,
        Self::Scores,
        Self::Details,
        Self::SelfInfluence,
        Self::Ranking,
        Self::Report,
    ];

    /// The kind's name, as in folder names, pipelines and part metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokenizer => "tokenizer",
            Self::Tokens => "tokens",
            Self::Model => "model",
            Self::Losses => "losses",
            Self::Covariances => "covariances",
            Self::Eigenbasis => "eigenbasis",
            Self::Lambda => "lambda",
            Self::Gradients => "gradients",
            Self::Preconditioned => "preconditioned",
            Self::Coordinates => "coordinates",
            Self::Index => "index",
            Self::Candidates => "candidates",
            Self::Scores => "scores",
            Self::Details => "details",
            Self::SelfInfluence => "self-influence",
            Self::Ranking => "ranking",
            Self::Report => "report",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Version of the kind's format. Raise it with any change to [`Kind::schema`] or to what a column means.
    pub fn version(self) -> u32 {
        match self {
            Self::Tokens | Self::Covariances | Self::Eigenbasis => 2,
            _ => 1,
        }
    }

    /// Whether parts may lack the column: what only wherefrom's own stages write.
    pub fn optional(self, column: &str) -> bool {
        match self {
            Self::Tokens => ["segments", "weights", "segment_texts", "completion_start"].contains(&column),
            Self::Covariances | Self::Eigenbasis => column == "shared_with",
            _ => false,
        }
    }

    /// The matrices that may be stored in float16, each with a column of scales (`NAME_scale`).
    pub fn halved(self) -> &'static [&'static str] {
        match self {
            Self::Lambda => &["lambda"],
            Self::Preconditioned => &["left", "right"],
            _ => &[],
        }
    }

    /// How the kind's parts are stored.
    pub fn format(self) -> Format {
        match self {
            Self::Tokenizer | Self::Model | Self::Report => Format::Folder,
            Self::Covariances
            | Self::Eigenbasis
            | Self::Lambda
            | Self::Gradients
            | Self::Preconditioned
            | Self::Index => Format::Arrow,
            _ => Format::Parquet,
        }
    }

    /// The columns of the kind's parts, without metadata; empty for folders.
    pub fn schema(self) -> Schema {
        let fields = match self {
            Self::Tokenizer | Self::Model | Self::Report => vec![],
            Self::Tokens => vec![
                field("example", DataType::UInt64),
                list("docs", DataType::Utf8),
                list("doc_starts", DataType::UInt32),
                list("input_ids", DataType::UInt32),
                list("target_mask", DataType::Boolean),
                list("segments", DataType::UInt32),
                list("weights", DataType::Float32),
                list("segment_texts", DataType::Utf8),
                field("completion_start", DataType::UInt32),
                field("text", DataType::Utf8),
            ],
            Self::Losses => vec![
                field("example", DataType::UInt64),
                field("loss", DataType::Float32),
                list("by_token", DataType::Float32),
            ],
            Self::Covariances => vec![
                field("module", DataType::Utf8),
                field("side", DataType::Utf8),
                list("shared_with", DataType::Utf8),
                field("count", DataType::UInt64),
                list("shape", DataType::UInt32),
                list("matrix", DataType::Float32),
            ],
            Self::Eigenbasis => vec![
                field("module", DataType::Utf8),
                field("side", DataType::Utf8),
                list("shared_with", DataType::Utf8),
                list("values", DataType::Float32),
                list("shape", DataType::UInt32),
                list("vectors", DataType::Float32),
            ],
            Self::Lambda => vec![
                field("module", DataType::Utf8),
                field("count", DataType::UInt64),
                list("shape", DataType::UInt32),
                list("lambda", DataType::Float32),
            ],
            Self::Gradients => factors("example", DataType::UInt64),
            Self::Preconditioned => factors("query", DataType::UInt32),
            Self::Coordinates => vec![
                field("module", DataType::Utf8),
                field("row", DataType::UInt32),
                field("column", DataType::UInt32),
                field("deviation", DataType::Float32),
            ],
            Self::Index => vec![
                field("example", DataType::UInt64),
                field("scale", DataType::Float32),
                field("signs", DataType::Binary),
            ],
            Self::Candidates => vec![
                field("query", DataType::UInt32),
                field("example", DataType::UInt64),
                field("score", DataType::Float32),
                field("source", DataType::Utf8),
            ],
            Self::Scores => vec![
                field("query", DataType::UInt32),
                field("example", DataType::UInt64),
                field("influence", DataType::Float32),
            ],
            Self::Details => vec![
                field("query", DataType::UInt32),
                field("example", DataType::UInt64),
                field("influence", DataType::Float32),
                list("by_module", DataType::Float32),
                list("by_token", DataType::Float32),
            ],
            Self::SelfInfluence => vec![
                field("example", DataType::UInt64),
                field("influence", DataType::Float32),
                list("by_module", DataType::Float32),
            ],
            Self::Ranking => vec![
                field("query", DataType::UInt32),
                field("sign", DataType::Utf8),
                field("rank", DataType::UInt32),
                field("example", DataType::UInt64),
                field("doc", DataType::Utf8),
                field("influence", DataType::Float32),
                field("text", DataType::Utf8),
            ],
        };
        Schema::new(fields)
    }
}

fn field(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, false)
}

/// The item field is nullable, as every Arrow writer makes it by default; values are never null.
fn list(name: &str, item: DataType) -> Field {
    Field::new(name, DataType::List(Arc::new(Field::new_list_field(item, true))), false)
}

fn factors(row: &str, row_type: DataType) -> Vec<Field> {
    vec![
        field(row, row_type),
        field("module", DataType::Utf8),
        field("rank", DataType::UInt32),
        list("left_shape", DataType::UInt32),
        list("left", DataType::Float32),
        list("right_shape", DataType::UInt32),
        list("right", DataType::Float32),
    ]
}

/// A kind as a type, so that a handle to the wrong kind does not compile.
pub trait ArtifactKind {
    /// The kind.
    const KIND: Kind;
}

macro_rules! kinds {
    ($($name:ident),*) => {$(
        #[doc = concat!("Marker of [`Kind::", stringify!($name), "`].")]
        #[derive(Debug, Clone, Copy)]
        pub enum $name {}
        impl ArtifactKind for $name {
            const KIND: Kind = Kind::$name;
        }
    )*};
}

kinds!(
    Tokenizer,
    Tokens,
    Model,
    Losses,
    Covariances,
    Eigenbasis,
    Lambda,
    Gradients,
    Preconditioned,
    Coordinates,
    Index,
    Candidates,
    Scores,
    Details,
    SelfInfluence,
    Ranking,
    Report
);
