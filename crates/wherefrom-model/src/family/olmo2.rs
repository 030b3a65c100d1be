//! OLMo 2: Llama with its norms behind attention and MLP, and norms over all queries and over all keys.

use anyhow::Result;

use super::{Architecture, HeadNorms, Layout, llama};
use crate::config::{Config, Residual};
use crate::keys::Keys;

pub(super) const LAYOUT: Layout = Layout {
    attention_norm: "post_attention_layernorm",
    mlp_norm: "post_feedforward_layernorm",
    head_norms: HeadNorms::Whole,
    ..llama::LAYOUT
};

pub(super) fn read(keys: &Keys) -> Result<Config> {
    let config = llama::read(keys, Architecture::Olmo2)?;
    Ok(Config { residual: Residual::After, ..config })
}
