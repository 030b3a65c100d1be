//! Operations where burn's CPU backend is slow: one function each, two paths.
//!
//! Every function takes and returns burn tensors. On the CPU (`Device::flex()`) it works on the
//! tensor's own memory with rayon over rows and vector code chosen at run time; on any other
//! device it is plain burn operations. A test holds the two together. Tensors may be of float16 or
//! bfloat16 (see `precision.rs`).

mod activation;
mod append;
mod attention;
mod bf16;
mod cached;
mod cpu;
mod cross_entropy;
mod examples;
mod layer_norm;
mod picked;
mod precision;
mod product;
mod queries;
mod ragged;
mod rms_norm;
mod rope;
mod skinny;
mod sums;
mod thin;
mod tile;

pub use activation::{Activation, activate, activate_backward, gated, gated_backward, gated_tangent};
pub use append::append_one;
pub use attention::{
    AttentionShape, causal_attention, causal_attention_backward, causal_attention_tangent, sink_gradients,
};
pub use cached::KeyValues;
pub use cpu::is_cpu;
pub use cross_entropy::{
    cross_entropy, cross_entropy_on_device, cross_entropy_tangent, on_device, sample_rows, sample_rows_on_device,
    softmax,
};
pub use examples::{example_products, paired_sums, weighted_squares};
pub use layer_norm::{layer_norm, layer_norm_backward, layer_norm_gain_gradient};
pub use picked::picked_products;
pub use precision::{round, round_like, widen};
pub use product::{add_product, product};
pub use queries::{ScanShape, scan, scan_by_gradient};
pub use ragged::Ragged;
pub use rms_norm::{rms_norm, rms_norm_backward, rms_norm_gain_gradient};
pub use rope::{Rotation, RotationTable, rotate};
pub use skinny::{is_skinny, skinny_product};
pub use sums::{Form, Sum, squared_products_bytes};
pub(crate) use thin::{dots, multiply_out};

pub use bf16::instructions as bf16_instructions;
#[doc(hidden)]
pub(crate) use bf16::without_instructions;
#[doc(hidden)]
pub(crate) use cpu::with_burn_operations;
