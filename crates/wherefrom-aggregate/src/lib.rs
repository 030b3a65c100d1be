//! From pairs to what a person reads.
//!
//! reads   scores or details, tokens
//! writes  ranking

pub mod rank;
