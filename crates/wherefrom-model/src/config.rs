//! A decoder in numbers and options, as a family reads it from `config.json`.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use wherefrom_linalg::kernels::Activation;

use crate::family::{self, Architecture, Layout, llama};
use crate::keys::Keys;
use crate::rotary::Rotary;

/// How the model generates.
pub const GENERATION: &str = "generation_config.json";

/// Most layers: the largest models have some hundred.
const LAYERS: usize = 4096;
/// Largest width of a stream or of an MLP: the largest models have some 2^16. A module's 2^40 parameters in each of so many
/// layers stay within 64 bits.
const WIDTH: usize = 1 << 20;
/// Most tokens and positions.
const ROWS: usize = 1 << 24;

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
        for adapter in ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"] {
            if folder.join(adapter).exists() {
                return Err(keys.refuse(&format!(
                    "{adapter} stands beside the model, and adapters are not supported: merge it into the weights (peft's \
                     `merge_and_unload`), or give a folder without it"
                )));
            }
        }
        Self::read(&keys)
    }

    /// As [`Config::load`], of the content of a `config.json`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_json(json: &Value) -> Result<Self> {
        Self::read(&Keys::of(json.clone()))
    }

    fn read(keys: &Keys) -> Result<Self> {
        let config = family::read(keys)?;
        if !config.num_attention_heads.is_multiple_of(config.num_key_value_heads) {
            return Err(keys.refuse("`num_attention_heads` must be a multiple of `num_key_value_heads`"));
        }
        config.check_size().map_err(|what| keys.refuse(&what))?;
        Ok(config)
    }

    /// Refuses sizes that no model has: what follows from them, a list of every module first, would take all memory.
    ///
    /// # Errors
    /// Which size cannot be.
    pub fn check_size(&self) -> Result<(), String> {
        let [heads, _] = self.head_widths();
        let sizes = [
            ("num_hidden_layers", self.num_hidden_layers, LAYERS),
            ("hidden_size", self.hidden_size, WIDTH),
            ("intermediate_size", self.intermediate_size, WIDTH),
            ("num_attention_heads` times `head_dim", heads, WIDTH),
            ("vocab_size", self.vocab_size, ROWS),
            ("max_position_embeddings", self.max_position_embeddings, ROWS),
        ];
        match sizes.into_iter().find(|(_, size, most)| size > most) {
            Some((name, size, most)) => Err(format!("`{name}` cannot be {size}: no model has more than {most}")),
            None => Ok(()),
        }
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

/// The ids with which the model ends a text: `eos_token_id` of generation_config.json, or of config.json where that says
/// none; one or a list; none if it has none.
///
/// # Errors
/// [`crate::BadInput`] for a file that is missing or not JSON.
pub fn end_tokens(folder: &Path) -> Result<Vec<u32>> {
    let generation = folder.join(GENERATION);
    let mut keys = if generation.exists() { Keys::read(generation)? } else { Keys::load(folder)? };
    if keys.value("eos_token_id").is_null() {
        keys = Keys::load(folder)?;
    }
    let ids = match keys.value("eos_token_id") {
        Value::Null => return Ok(Vec::new()),
        Value::Array(ids) => ids.as_slice(),
        id => std::slice::from_ref(id),
    };
    let id = |id: &Value| u32::try_from(id.as_u64()?).ok();
    ids.iter()
        .map(id)
        .collect::<Option<_>>()
        .ok_or_else(|| keys.refuse("`eos_token_id` must be a token id or a list of them"))
}
