//! Tensor mathematics on its own: hashed random numbers, float64 eigensolver, exact truncated SVD,
//! and the handful of kernels where burn's CPU backend leaves time on the table.
//!
//! reads   nothing
//! writes  nothing

pub mod eigen;
pub mod kernels;
pub mod memory;
pub mod random;
mod ranks;
pub mod signs;
pub mod svd;
pub mod test_support;

pub use eigen::{Threads, symmetric_eigen};
pub use ranks::ranks;
pub use svd::truncated_svd;
