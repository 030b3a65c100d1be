//! Tests of whence-linalg, named by property.

mod kernels;
mod matrices;
mod random;
mod signs;
