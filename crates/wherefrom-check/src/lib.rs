//! Whether a model's gradients and scores can be trusted on this device: reduced precision against float32, batches
//! against single rows.
//!
//! reads   a checkpoint, rows of a corpus
//! writes  a verdict

mod check;
mod compare;
mod sample;

pub use check::{Check, Verdict, check};
