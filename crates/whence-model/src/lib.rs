//! Burn language models from Hugging Face folders: forward, loss, and activation-only backward with taps.
//!
//! reads   config.json, model.safetensors (or shards)
//! writes  the same, for checkpoints that are trained here

mod batch;
mod config;
mod device;
mod error;
mod llama;
mod model;
mod module;
mod weights;

pub use batch::{Batch, Sequence, batches};
pub use config::{Architecture, Config};
pub use device::{device_name, resolve_device};
pub use error::BadInput;
pub use model::{Labels, LabelsKind, Model, Tap};
pub use module::{Coverage, Module, Modules, Selection};
pub use weights::{Parameters, check};
