//! Tests of wherefrom-linalg, named by property.

mod bf16;
mod kernels;
mod matrices;
mod random;
mod signs;
