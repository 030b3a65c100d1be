//! OLMo 2 and 3: Llama with its norms behind attention and MLP, and norms over all queries and over all keys. In OLMo 3 most layers
//! see a window, and have rotary positions of their own: what stretches the context is of the others alone.

use anyhow::Result;

use super::{Architecture, HeadNorms, Layout, llama};
use crate::config::Config;
use crate::keys::Keys;

pub(super) const LAYOUT: Layout = Layout {
    attention_norms: [None, Some("post_attention_layernorm")],
    mlp_norms: [None, Some("post_feedforward_layernorm")],
    head_norms: HeadNorms::Whole,
    ..llama::LAYOUT
};

pub(super) fn read(keys: &Keys, architecture: Architecture) -> Result<Config> {
    let config = llama::read(keys, architecture)?;
    if architecture == Architecture::Olmo2 {
        return Ok(config);
    }
    let context = config.max_position_embeddings;
    let [full, sliding] = keys.rotary_by_kind(config.head_dim, context, [500_000.0; 2], None, &llama::ROTARY)?;
    Ok(Config { rotary: Some(full), local_rotary: Some(sliding), ..config })
}
