//! Whether influences foretell what a retraining does, and find what is known to be there.
//!
//! reads   tokens, a model, scores; columns where sources are known
//! writes  retrainings ([`retrain`]), agreement ([`agreement`]), retrieval ([`retrieval`]),
//!         calibration ([`calibration`]), scores ([`metagradient`])

pub mod agreement;
pub mod calibration;
pub mod metagradient;
pub mod retrain;
pub mod retrieval;
pub mod sources;
mod statistics;
mod threads;
