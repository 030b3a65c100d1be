//! Burn language models from Hugging Face folders: forward, loss, and activation-only backward with taps.
//!
//! reads   config.json, model.safetensors (or shards)
//! writes  the same, for checkpoints that are trained here

mod attention;
mod batch;
mod config;
mod decoder;
mod device;
mod error;
mod family;
mod footprint;
mod found;
mod keys;
mod layer;
mod mlp;
mod model;
mod module;
mod precision;
mod rotary;
mod walk;
mod weights;

pub use batch::{Batch, Sequence, TokenRows, batches};
pub use config::{Bias, Config, Residual, Shape, end_tokens};
pub use device::{
    Adapter, adapters, automatic_device, device_name, fits, has_gpu_support, is_gpu, precisions, resolve_device,
};
pub use error::BadInput;
pub use family::Architecture;
pub use footprint::{ACTIVATION_BYTES, Footprint};
pub use model::{Labels, LabelsKind, Model, Tap};
pub use module::{Coverage, Module, Modules, Selection};
pub use precision::Precision;
pub use rotary::{Rotary, Scaling};
pub use weights::{Parameters, check, no_safetensors};
pub use wherefrom_linalg::kernels::Ragged;
pub use wherefrom_linalg::memory::peak_bytes;
