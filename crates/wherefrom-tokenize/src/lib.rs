//! Corpora to token windows, and corpora to vocabularies.
//!
//! reads   corpus files (JSON lines, plain text, Parquet), tokenizer.json, tokenizer_config.json
//! writes  tokens ([`tokenize`]), tokenizer ([`vocabulary`])

mod chat;
mod corpus;
mod encoder;
mod measured;
mod notes;
mod ordered;
mod pack;
mod refusals;
mod row;
mod source;
mod table;
pub mod tokenize;
pub mod vocabulary;
mod window;

pub use encoder::vocabulary_size;
pub use source::{CorpusFile, corpus_files};
