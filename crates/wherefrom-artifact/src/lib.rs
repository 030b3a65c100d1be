//! The contract between stages: kinds and columns, typed handles, manifests, keys, drafts, and the store.
//!
//! reads   artifacts
//! writes  artifacts
//!
//! Keep this crate free of tensors: every stage depends on it, and so does whoever writes a stage elsewhere.

mod artifact;
mod at;
mod batches;
mod cells;
mod error;
mod foreign;
#[cfg(test)]
mod fuzz;
mod groups;
mod ipc;
mod kinds;
mod lineage;
mod manifest;
pub mod origin;
mod pages;
mod parquet_file;
mod part;
mod read;
mod recipe;
mod reporter;
mod sound;
mod span;
mod store;
mod stored;
mod tables;
pub mod text;
mod thrift;
mod units;
mod visible;
mod wanted;

pub use artifact::{Artifact, open_any, table, verify};
pub use batches::{BATCH_BYTES, in_batches, into_batches};
pub use cells::{Cell, CellColumn, CellType, Cells};
pub use error::{Error, bad_input, check_training_examples};
pub use foreign::{PANICKED, caught, foreign};
pub use groups::{Groups, NONE, Sum};
pub use kinds::*;
pub use lineage::Lineage;
pub use manifest::{MANIFEST, Manifest, Part};
pub use parquet_file::ParquetFile;
pub use recipe::{Recipe, canonical_json};
pub use reporter::{Reporter, Silent};
pub use span::Span;
pub use store::digests::written;
pub use store::disk::{
    create_once, digest, files, open, read, read_text, rename, replace, unique, used, write_atomically,
};
pub use store::draft::Draft;
pub use store::remote::Remote;
pub use store::share::Share;
pub use store::{Entry, State, Store};
pub use stored::Stored;
pub use tables::{TableFormat, export_groups, export_pairs};
pub use units::{bytes, duration, enough, flops, grouped, parse_bytes, utc};
pub use visible::{visible, visible_after};
pub use wanted::Wanted;
