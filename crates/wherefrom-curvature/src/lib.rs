//! Curvature: EK-FAC's covariances, eigenbasis and corrected eigenvalues, and what they do to a query's gradient.
//!
//! reads   tokens, model, gradients
//! writes  covariances, eigenbasis, lambda, preconditioned, self-influence, coordinates, index, scores

mod blocks;
pub mod coordinates;
pub mod covariance;
pub mod eigenbasis;
pub mod index;
mod inverse;
pub mod lambda;
mod method;
pub mod precondition;
pub mod proximal;
pub mod score_index;
pub mod score_projected_gradients;
pub mod self_influence;
mod side_by_side;
pub mod solve;
mod table;
mod tensors;
pub mod test_support;
