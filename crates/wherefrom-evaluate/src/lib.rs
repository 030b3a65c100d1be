//! Whether influences foretell what a retraining does.
//!
//! reads   tokens, a model, scores
//! writes  retrainings ([`retrain`]), agreement ([`agreement`])

pub mod agreement;
pub mod retrain;
mod statistics;
