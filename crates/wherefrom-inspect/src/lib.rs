//! Artifacts as people and other tools read them.
//!
//! reads   artifacts
//! writes  text, CSV, JSON lines, safetensors, GGUF
//!
//! [`show()`] is an artifact's manifest and first rows as text, [`export()`] a file in the format of another tool,
//! [`compare()`] what two rankings have in common, [`traits()`] what is known of traits side by side.

mod compare;
mod csv;
mod export;
mod gguf;
mod show;
mod spearman;
mod traits;

pub use compare::{Compared, Comparison, Mover, compare};
pub use export::export;
pub use show::{Attributed, rows, show};
pub use spearman::spearman;
pub use traits::{Apart, Curve, Held, Traits, traits};
