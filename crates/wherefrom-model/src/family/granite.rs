//! Granite: Llama with multipliers of the embedding, of what is added to the stream and of attention scores, and a divisor of the
//! logits.

use anyhow::Result;

use super::{Architecture, llama};
use crate::config::Config;
use crate::keys::Keys;

pub(super) fn read(keys: &Keys) -> Result<Config> {
    let config = llama::read(keys, Architecture::Granite)?;
    let multiplier = |key: &str| Ok::<_, anyhow::Error>(keys.positive(key)?.unwrap_or(1.0) as f32);
    Ok(Config {
        embedding_scale: multiplier("embedding_multiplier")?,
        residual_scale: multiplier("residual_multiplier")?,
        attention_scale: multiplier("attention_multiplier")?,
        logit_divisor: multiplier("logits_scaling")?,
        ..config
    })
}
