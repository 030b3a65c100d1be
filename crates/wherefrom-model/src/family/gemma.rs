//! Gemma (the first): Llama with the embedding scaled by sqrt(hidden), gains of 1 + w, and tanh GELU as the gate.

use anyhow::Result;

use super::{Architecture, Layout, NormKind, llama};
use crate::config::Config;
use crate::keys::Keys;

pub(super) const LAYOUT: Layout = Layout { norm: NormKind::RmsAboveOne, ..llama::LAYOUT };

pub(super) fn read(keys: &Keys) -> Result<Config> {
    keys.refuse_flag("use_bidirectional_attention")?;
    let config = llama::read(keys, Architecture::Gemma)?;
    Ok(Config { embedding_scale: (config.hidden_size as f64).sqrt() as f32, ..config })
}
