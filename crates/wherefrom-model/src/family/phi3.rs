//! Phi-3 and Phi-4: Llama with q, k and v in one map and gate and up in one, and positions stretched by a factor for each
//! frequency.

use super::{Fused, Layout, llama};

pub(super) const LAYOUT: Layout = Layout {
    attention_inputs: &["self_attn.qkv_proj"],
    fused: Fused::Whole,
    mlp_inputs: &["mlp.gate_up_proj"],
    gate_beside_up: true,
    ..llama::LAYOUT
};
