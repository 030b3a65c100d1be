//! Small language models trained from scratch, and completions of prompts.
//!
//! reads   tokens, tokenizer.json; for [`generate`] also a model
//! writes  model ([`train`]), tokens ([`generate`])

mod adam;
pub mod generate;
mod state;
mod tokenizer;
pub mod train;
