//! The kinds of artifact, a file for each: name, version, columns, the row as a struct, how it is shown, what it must be made
//! from, what its values must be.
//!
//! A new kind is its file, named below as a module and in the list. FORMAT.md says the same in prose.

mod columns;
mod definition;
mod factors;

mod activations;
mod adapter;
mod agreement;
mod calibration;
mod candidates;
mod coordinates;
mod covariances;
mod details;
mod eigenbasis;
mod gradients;
mod index;
mod judgements;
mod kept;
mod lambda;
mod losses;
mod model;
mod preconditioned;
mod projected_gradients;
mod projections;
mod ranking;
mod report;
mod retrainings;
mod retrieval;
mod scores;
mod self_influence;
mod tokenizer;
mod tokens;
mod traits;
mod vectors;

#[cfg(test)]
mod round_trip;

use std::path::Path;

use anyhow::Result;
use arrow::datatypes::Schema;
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

pub(crate) use self::columns::Columns as Found;
use self::definition::Definition;
pub(crate) use self::definition::Once;
pub use self::definition::{Export, Format, Tensors};
pub use self::factors::Factors;
use crate::lineage::Lineage;
use crate::origin::{Fact, Origin, Wired};

/// A kind as a type, so that a handle to the wrong kind does not compile.
pub trait ArtifactKind {
    /// The kind.
    const KIND: Kind;
}

/// A struct that is a row of an artifact of kind `K`.
pub trait Row<K>: Sized {
    /// Rows to one record batch.
    fn to_batch(rows: &[Self]) -> Result<RecordBatch>;
    /// One record batch to rows.
    fn from_batch(batch: &RecordBatch) -> Result<Vec<Self>>;
    /// Bytes of its values, about: what a record batch holds is bounded.
    fn bytes(&self) -> usize {
        size_of::<Self>()
    }
}

macro_rules! kinds {
    ($($name:ident = $module:ident { $($public:ident),* })*) => {
        /// What an artifact holds.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Kind {$(
            #[doc = concat!("[`", stringify!($name), "`]")]
            $name,
        )*}

        impl Kind {
            /// Every kind, in the order of the pipeline.
            pub const ALL: [Self; [$(stringify!($name)),*].len()] = [$(Self::$name),*];

            fn definition(self) -> &'static Definition {
                match self {
                    $(Self::$name => &$module::DEFINITION,)*
                }
            }
        }

        $(
            #[doc = concat!("The kind `", stringify!($name), "` as a type.")]
            #[derive(Debug, Clone, Copy)]
            pub enum $name {}

            impl ArtifactKind for $name {
                const KIND: Kind = Kind::$name;
            }

            $(pub use self::$module::$public;)*
        )*
    };
}

// Each with what else its file makes public: its row.
kinds! {
    Tokenizer = tokenizer {}
    Tokens = tokens { Example, Asked, RowCounts }
    Columns = kept { Kept }
    Trait = traits { Description, Elicitation, Instruction, Labelled, Persona }
    Judgements = judgements { Judgement, Status }
    Vectors = vectors { Over, TraitVector }
    Projections = projections { Projection, Reading }
    Model = model { CHECKPOINTS, OPTIMIZER, kept_checkpoints }
    Adapter = adapter {}
    Losses = losses { Loss }
    Activations = activations { Position, Streams }
    Covariances = covariances { Covariance, Side }
    Eigenbasis = eigenbasis { Basis }
    Lambda = lambda { LambdaSum }
    Gradients = gradients {}
    Preconditioned = preconditioned {}
    ProjectedGradients = projected_gradients { Projected }
    Coordinates = coordinates { Coordinate }
    Index = index { Signs, SignsOf }
    Candidates = candidates { Candidate }
    Scores = scores { Score }
    Details = details { Detail }
    SelfInfluence = self_influence { OwnInfluence }
    Ranking = ranking { Ranked }
    Report = report {}
    Retrainings = retrainings { Retraining }
    Agreement = agreement { Agreed }
    Calibration = calibration { Calibrated }
    Retrieval = retrieval { Retrieved }
}

impl Kind {
    /// The kind's name, as in folder names, pipelines and part metadata.
    pub fn name(self) -> &'static str {
        self.definition().name
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Version of the kind's format: raised with any change to its columns or to what a column means.
    pub fn version(self) -> u32 {
        self.definition().version
    }

    /// How the kind's parts are stored.
    pub fn format(self) -> Format {
        self.definition().format
    }

    /// The columns of the kind's parts, without metadata; empty for folders.
    pub fn schema(self) -> Schema {
        Schema::new(self.definition().columns.iter().map(|column| column.field()).collect::<Vec<_>>())
    }

    /// Whether parts may lack the column: what only wherefrom's own stages write.
    pub fn optional(self, column: &str) -> bool {
        self.definition().columns.iter().any(|known| known.name == column && known.optional)
    }

    /// Whether the column holds matrices that may be stored in float16, with a column of scales (`NAME_scale`).
    pub fn halved(self, column: &str) -> bool {
        self.definition().columns.iter().any(|known| known.name == column && known.halved)
    }

    /// Whether NaN stands in the column for a number that there is not.
    pub(crate) fn has_gaps(self, column: &str) -> bool {
        self.definition().columns.iter().any(|known| known.name == column && known.gaps)
    }

    /// The artifact in `folder` as people read it: its first rows, or its strongest ones with their texts.
    ///
    /// # Errors
    /// As [`crate::Artifact::open`], and for what cannot be read.
    pub fn show(self, folder: &Path, lineage: &Lineage<'_>) -> Result<String> {
        (self.definition().show)(folder, lineage)
    }

    /// What it states of its origin.
    pub(crate) fn states(self) -> &'static [Fact] {
        self.definition().states
    }

    /// What it holds against the other inputs of a step.
    pub(crate) fn says(self, wired: &Wired<'_>) -> Origin {
        (self.definition().says)(wired)
    }

    /// Of what it has one row.
    pub(crate) fn once(self) -> Once {
        self.definition().once
    }

    /// Refuses rows whose values cannot be.
    pub(crate) fn check(self, batch: &RecordBatch) -> Result<()> {
        (self.definition().check)(batch)
    }

    /// The form that other tools read, if it is another than its own.
    pub fn export(self) -> Export {
        self.definition().export
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_written_in_a_manifest_as_in_a_folder_name() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
            assert!(kind.version() > 0);
            assert_eq!(kind.schema().fields().is_empty(), kind.format() == Format::Folder, "{}", kind.name());
        }
    }
}
