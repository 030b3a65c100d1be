//! Corpora to token windows, and corpora to vocabularies.
//!
//! reads   corpus files (JSON lines, plain text, Parquet; packed by gzip or zstd), tokenizer.json, tokenizer_config.json
//! writes  tokens ([`tokenize`]), columns ([`columns`]), tokenizer ([`vocabulary`])

mod boundary;
pub mod columns;
mod corpus;
mod estimate;
mod ids;
mod instructions;
mod measured;
mod notes;
mod pack;
mod pairs;
mod peek;
mod refusals;
mod row;
mod source;
mod table;
pub mod tokenize;
mod turns;
pub mod vocabulary;
mod window;
mod words;

pub use boundary::{glued, row_warnings};
pub use corpus::check_rows;
pub use estimate::{Estimate, check_first_rows, estimate};
pub use peek::{Form, identifier, keepable, peek};
pub use source::{CorpusFile, corpus_files};
pub use wherefrom_vocabulary::{encode_with, size as vocabulary_size};
