//! Tests across crates: golden numbers.
