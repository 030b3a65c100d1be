//! Corpora to token windows, and corpora to vocabularies.
//!
//! reads   corpus files (JSON lines, plain text), tokenizer.json
//! writes  tokens ([`tokenize`]), tokenizer ([`vocabulary`])

mod corpus;
mod encoder;
mod refusals;
mod row;
pub mod tokenize;
pub mod vocabulary;
mod window;

pub use encoder::vocabulary_size;
