//! Burn language models from Hugging Face folders: forward, loss, and activation-only backward with taps.
//!
//! reads   config.json, model.safetensors (or shards)
//! writes  the same, for checkpoints that are trained here

mod adapter;
mod assigned;
mod batch;
mod blocks;
mod cache;
mod change;
mod checkpoint;
mod config;
mod decoder;
mod device;
mod divergence;
mod error;
mod family;
mod footprint;
mod found;
mod head;
mod keys;
mod linear;
mod measurement;
mod model;
mod module;
mod naming;
mod norm;
mod outline;
mod outside;
mod overflow;
mod precision;
mod preference;
mod rotary;
mod rotary_keys;
mod shard;
mod site;
mod sizes;
mod stored;
mod tangent;
mod taps;
mod weights;

pub use adapter::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapters, Attribute, Lora};
pub use assigned::Bus;
pub use batch::{Batch, Sequence, TokenRows, batches};
pub use cache::Cache;
pub use change::{Addition, At};
pub use checkpoint::{Checkpoint, adapter_weights};
pub use config::{ADAPTERS, Bias, Config, Experts, GENERATION, Layer, Positions, Residual, end_tokens};
pub use device::{
    Adapter, adapters, check_device_name, choose_adapter, fits, has_gpu_support, open_device, precisions,
    resolve_device,
};
pub use error::BadInput;
pub use family::Architecture;
pub use footprint::{ACTIVATION_BYTES, Footprint, Held};
pub use head::{Labels, LabelsKind};
pub use measurement::Measurement;
pub use model::Model;
pub use module::{Coverage, Module, Modules, Part, Selection, Trained};
pub use outline::{Outline, Shape};
pub use precision::Precision;
pub use preference::Preference;
pub use rotary::{Rotary, Scaling};
pub use site::{Site, Sites};
pub use sizes::Sizes;
pub use tangent::Linearised;
pub use taps::Tap;
pub use weights::{INDEX, Parameters, STORED, check, stored_type, unpickle, weight_files};
pub use wherefrom_linalg::kernels::{Ragged, bf16_instructions};
pub use wherefrom_linalg::memory::{available_bytes, peak_bytes, processor};
