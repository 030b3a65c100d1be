//! Curvature: EK-FAC's covariances, eigenbasis and corrected eigenvalues, and what they do to a query's gradient.
//!
//! reads   tokens, model, gradients
//! writes  covariances, eigenbasis, lambda, preconditioned, self-influence

mod blocks;
pub mod covariance;
pub mod eigenbasis;
mod inverse;
pub mod lambda;
mod method;
pub mod passes;
pub mod precondition;
mod reduce;
pub mod self_influence;
mod tensors;
mod waves;
