//! Tests of wherefrom-linalg, named by property.

mod kernels;
mod matrices;
mod random;
mod signs;
