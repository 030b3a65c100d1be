//! Tests across crates: golden numbers and the import law.
