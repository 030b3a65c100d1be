//! Small language models trained from scratch, checkpoints trained further, and completions of prompts.
//!
//! reads   tokens, tokenizer.json; for [`fine_tune`] and [`generate`] also a model
//! writes  model ([`train`], [`fine_tune`]), tokens ([`generate`]), lambda ([`moments`])

mod adam;
mod checkpoint;
pub mod course;
pub mod fine_tune;
pub mod generate;
pub mod metasmoothness;
pub mod moments;
pub mod prevent;
pub mod reverse;
mod state;
pub mod steer;
mod tokenizer;
pub mod train;

pub use checkpoint::{Adapter, checkpoint};
