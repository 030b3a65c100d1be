//! The contract between stages: kinds and columns, typed handles, manifests, keys, drafts, and the store.
//!
//! reads   artifacts
//! writes  artifacts
//!
//! Keep this crate free of tensors: every stage depends on it, and so does whoever writes a stage elsewhere.

mod artifact;
mod columns;
mod disk;
mod draft;
mod error;
mod exec;
mod index;
mod kind;
mod manifest;
mod part;
mod recipe;
mod rows;
mod span;
mod store;
mod stored;
mod tables;
mod units;

pub use artifact::{Artifact, open_any, verify};
pub use disk::{digest, files, rename, replace, write_atomically};
pub use draft::Draft;
pub use error::{Error, bad_input, check_training_examples};
pub use exec::{Exec, Reporter, Silent};
pub use index::{Coordinate, Signs, SignsOf};
pub use kind::{
    ArtifactKind, Candidates, Coordinates, Covariances, Details, Eigenbasis, Format, Gradients, Index, Kind, Lambda,
    Losses, Model, Preconditioned, Ranking, Report, Scores, SelfInfluence, Tokenizer, Tokens,
};
pub use manifest::{MANIFEST, Manifest, Part};
pub use recipe::{Recipe, canonical_json};
pub use rows::{
    Basis, Candidate, Covariance, Detail, Example, Factors, LambdaSum, Loss, OwnInfluence, Ranked, Row, Score, Side,
};
pub use span::Span;
pub use store::{Entry, State, Store};
pub use stored::Stored;
pub use units::{bytes, flops, parse_bytes};
