//! Gemma (the first): Llama with the embedding scaled by sqrt(hidden), gains of 1 + w, and tanh GELU as the gate.

use anyhow::Result;
use wherefrom_linalg::kernels::Activation;

use super::{Architecture, Layout, NormKind, llama};
use crate::config::Config;
use crate::keys::Keys;

pub(super) const LAYOUT: Layout = Layout { norm: NormKind::RmsAboveOne, ..llama::LAYOUT };

pub(super) fn read(keys: &Keys) -> Result<Config> {
    keys.refuse_flag("use_bidirectional_attention")?;
    let config = llama::read(keys, Architecture::Gemma)?;
    // The first configs say `gelu` and mean this, as `transformers` takes it.
    let activation = match keys.activation("hidden_act", Activation::GeluTanh)? {
        Activation::Gelu => Activation::GeluTanh,
        other => other,
    };
    Ok(Config {
        activation: keys.activation("hidden_activation", activation)?,
        embedding_scale: (config.hidden_size as f64).sqrt() as f32,
        tie_word_embeddings: keys.flag("tie_word_embeddings", true)?,
        ..config
    })
}
