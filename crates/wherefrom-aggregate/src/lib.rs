//! From pairs to what a person reads.
//!
//! reads   scores or details, tokens; the queries and columns where they are wired
//! writes  ranking

pub mod rank;
