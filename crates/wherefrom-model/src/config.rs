//! A decoder in numbers and options, as a family reads it from `config.json`.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use wherefrom_linalg::kernels::Activation;

use crate::family::{self, Architecture, Layout, llama};
use crate::keys::Keys;
use crate::rotary::Rotary;

/// Sizes and options of a decoder-only language model; sizes under their Hugging Face names.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The family, which has names and layout of the checkpoint.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Longest sequence; no longer than a sliding window, within which there is none.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// What the embedding is multiplied by.
    pub embedding_scale: f32,
    /// Rotary positions; none where positions are learned.
    pub rotary: Option<Rotary>,
    /// What attention scores are multiplied by.
    pub attention_scale: f32,
    /// Whether they are also divided by the number of the block, counted from 1.
    pub scale_by_layer: bool,
    /// Added to the mean square or the variance of a norm.
    pub norm_epsilon: f64,
    /// Where norms stand, and what the MLP reads.
    pub residual: Residual,
    /// f of the MLP.
    pub activation: Activation,
    /// Which maps have a bias.
    pub bias: Bias,
}

/// How attention and MLP hang on the residual stream x.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residual {
    /// x += attention(norm(x)), then x += mlp(norm(x)).
    Before,
    /// x += norm(attention(x)), then x += norm(mlp(x)).
    After,
    /// x += attention(norm(x)) + mlp(norm'(x)).
    Parallel,
}

/// Which linear maps have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bias {
    /// Those that make queries, keys and values.
    pub attention_inputs: bool,
    /// The one from the heads.
    pub attention_output: bool,
    /// Those of the MLP.
    pub mlp: bool,
}

impl Config {
    /// Reads `config.json` in `folder`.
    ///
    /// # Errors
    /// [`crate::BadInput`] for a missing or malformed file and for every variant that is not supported, by name.
    pub fn load(folder: &Path) -> Result<Self> {
        let keys = Keys::load(folder)?;
        let config = family::read(&keys)?;
        if !config.num_attention_heads.is_multiple_of(config.num_key_value_heads) {
            return Err(keys.refuse("`num_attention_heads` must be a multiple of `num_key_value_heads`"));
        }
        Ok(config)
    }

    /// The config of a Llama as `transformers` reads it.
    pub fn to_json(&self) -> Value {
        llama::to_json(self)
    }

    pub(crate) fn layout(&self) -> &'static Layout {
        self.architecture.layout()
    }

    /// Scale of the attention scores of a block.
    pub(crate) fn scale(&self, layer: usize) -> f32 {
        if self.scale_by_layer { self.attention_scale / (layer + 1) as f32 } else { self.attention_scale }
    }

    /// Width of all query heads, and of all key heads.
    pub(crate) fn head_widths(&self) -> [usize; 2] {
        [self.num_attention_heads, self.num_key_value_heads].map(|heads| heads * self.head_dim)
    }
}

/// The ids with which the model ends a text: `eos_token_id` of config.json, one or a list; none if it has none.
///
/// generation_config.json may say otherwise. It is not read: it is no part of what identifies a model.
///
/// # Errors
/// [`crate::BadInput`] for a config.json that is missing or not JSON.
pub fn end_tokens(folder: &Path) -> Result<Vec<u32>> {
    let keys = Keys::load(folder)?;
    let ids = keys.any(&["eos_token_id"]);
    let ids = ids.as_array().map_or(std::slice::from_ref(ids), Vec::as_slice);
    Ok(ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect())
}
