//! Curvature: EK-FAC's covariances, eigenbasis and corrected eigenvalues, and what they do to a query's gradient.
//!
//! reads   tokens, model, gradients
//! writes  covariances, eigenbasis, lambda, preconditioned

pub mod covariance;
pub mod eigenbasis;
mod fit;
pub mod lambda;
mod method;
pub mod precondition;
mod reduce;
mod tensors;
