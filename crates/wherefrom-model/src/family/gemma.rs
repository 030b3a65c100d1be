//! Gemma: Llama with the embedding scaled by sqrt(hidden), gains of 1 + w, and tanh GELU as the gate.
//!
//! Gemma 2 norms what attention and MLP add, too, bends attention scores and logits by a tanh, and has a window in every other
//! layer. Gemma 3 norms queries and keys in place of bending scores, and has a window and rotary positions of their own in five
//! layers of six. A folder of Gemma 3 that sees pictures has the model of text inside.

use anyhow::Result;
use serde_json::json;

use super::{Architecture, HeadNorms, Layout, NormKind, llama};
use crate::config::Config;
use crate::keys::Keys;

pub(super) const LAYOUT: Layout = Layout { norm: NormKind::RmsAboveOne, ..llama::LAYOUT };

pub(super) const SECOND: Layout = Layout {
    attention_norms: [Some("input_layernorm"), Some("post_attention_layernorm")],
    mlp_norms: [Some("pre_feedforward_layernorm"), Some("post_feedforward_layernorm")],
    ..LAYOUT
};

pub(super) const THIRD: Layout = Layout { head_norms: HeadNorms::PerHead, ..SECOND };

pub(super) fn read(keys: &Keys, architecture: Architecture) -> Result<Config> {
    if architecture == Architecture::Gemma3 {
        return inside(keys);
    }
    keys.refuse_flag("use_bidirectional_attention")?;
    let config = llama::read(keys, architecture)?;
    let config = Config { embedding_scale: (config.hidden_size as f64).sqrt() as f32, ..config };
    if architecture == Architecture::Gemma {
        return Ok(config);
    }
    let scalar = keys.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    let cap = |key: &str, default: Option<f64>| match keys.has(key) {
        true => keys.positive(key),
        false => Ok(default),
    };
    let own = |default: f64| (architecture == Architecture::Gemma2).then_some(default);
    let logit_cap = cap("final_logit_softcapping", own(30.0))?.map(|cap| cap as f32);
    let config = Config { attention_scale: scalar.powf(-0.5) as f32, logit_cap, ..config };
    if architecture == Architecture::Gemma2 {
        let attention_cap = cap("attn_logit_softcapping", own(50.0))?.map(|cap| cap as f32);
        return Ok(Config { attention_cap, ..config });
    }
    let local = Some("rope_local_base_freq");
    let context = config.max_position_embeddings;
    let [full, sliding] = keys.rotary_by_kind(config.head_dim, context, [1e6, 1e4], local, &llama::ROTARY)?;
    Ok(Config { rotary: Some(full), local_rotary: Some(sliding), ..config })
}

/// The model of text of a folder that has more: what its config leaves out has the defaults of the smallest.
fn inside(keys: &Keys) -> Result<Config> {
    let text = keys.inside("text_config").ok_or_else(|| keys.refuse("`gemma3` has no `text_config`"))?;
    let text = text.filled(&json!({
        "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8,
    }));
    let config = read(&text, Architecture::Gemma3Text)?;
    let tie_word_embeddings = keys.flag("tie_word_embeddings", config.tie_word_embeddings)?;
    Ok(Config { architecture: Architecture::Gemma3, tie_word_embeddings, ..config })
}
