//! Artifacts as people and other tools read them.
//!
//! reads   artifacts
//! writes  text, JSON lines, safetensors
//!
//! [`show()`] is an artifact's manifest and first rows as text, [`export()`] a file in the format of another tool.

mod export;
mod show;

pub use export::export;
pub use show::{coverage, rows, show};
