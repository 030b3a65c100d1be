//! Model families: what each reads from `config.json`, and how its checkpoints are laid out.
//!
//! A family is a decoder with the options of [`crate::config::Config`] and a [`Layout`]. Adding one is a file here, a
//! variant of [`Architecture`], and its line in each `match` below.

mod gemma;
mod gpt2;
mod gpt_neox;
pub(crate) mod llama;
mod olmo2;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::keys::Keys;

/// Model families, under their `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// Gemma: Llama with gains above one, a scaled embedding and tanh GELU.
    Gemma,
    /// GPT-2: learned positions, LayerNorm, biases, transposed weights, q, k and v in one map.
    Gpt2,
    /// GPT-NeoX and Pythia: attention and MLP side by side, partial rotary positions, LayerNorm, biases.
    GptNeox,
    /// Llama 1 to 3: RMSNorm, rotary positions, grouped-query attention, SwiGLU.
    Llama,
    /// Mistral: Llama with a sliding window, which no sequence may be longer than.
    Mistral,
    /// OLMo 2: Llama with norms after attention and MLP, and over all of q and of k.
    Olmo2,
    /// Qwen2: Llama with biases on q, k and v.
    Qwen2,
    /// Qwen3: Llama with a norm on each head's query and key.
    Qwen3,
}

impl Architecture {
    const ALL: [(&str, Self); 8] = [
        ("gemma", Self::Gemma),
        ("gpt2", Self::Gpt2),
        ("gpt_neox", Self::GptNeox),
        ("llama", Self::Llama),
        ("mistral", Self::Mistral),
        ("olmo2", Self::Olmo2),
        ("qwen2", Self::Qwen2),
        ("qwen3", Self::Qwen3),
    ];

    fn named(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(name, _)| *name == model_type).map(|(_, family)| family)
    }

    /// Names and layout of its checkpoints.
    pub(crate) fn layout(self) -> &'static Layout {
        match self {
            Self::Gemma => &gemma::LAYOUT,
            Self::Gpt2 => &gpt2::LAYOUT,
            Self::GptNeox => &gpt_neox::LAYOUT,
            Self::Llama | Self::Mistral | Self::Qwen2 => &llama::LAYOUT,
            Self::Olmo2 => &olmo2::LAYOUT,
            Self::Qwen3 => &llama::QWEN3,
        }
    }
}

/// The config of whatever family `config.json` names.
pub(crate) fn read(keys: &Keys) -> Result<Config> {
    let supported = || Architecture::ALL.map(|(name, _)| name).join(", ");
    let family = match keys.word("model_type") {
        Some(name) => Architecture::named(name).ok_or_else(|| {
            keys.refuse(&format!("model type `{name}` is not supported (supported: {})", supported()))
        })?,
        None => return Err(keys.refuse("config.json has no `model_type`")),
    };
    keys.refuse_key("per_layer_config")?;
    if !keys.value("quantization_config").is_null() {
        return Err(keys.refuse("quantised weights are not supported; give the unquantised checkpoint"));
    }
    match family {
        Architecture::Gemma => gemma::read(keys),
        Architecture::Gpt2 => gpt2::read(keys),
        Architecture::GptNeox => gpt_neox::read(keys),
        Architecture::Llama | Architecture::Mistral | Architecture::Qwen2 | Architecture::Qwen3 => {
            llama::read(keys, family)
        }
        Architecture::Olmo2 => olmo2::read(keys),
    }
}

/// What of `config.json` says something and is not heeded, as `transformers` does not heed it either.
pub(crate) fn unheeded(keys: &Keys) -> Result<Option<String>> {
    match keys.word("model_type").and_then(Architecture::named) {
        Some(Architecture::GptNeox) => keys.unheeded(&gpt_neox::ROTARY),
        Some(Architecture::Gpt2) | None => Ok(None),
        Some(_) => keys.unheeded(&llama::ROTARY),
    }
}

/// How a family's checkpoints are laid out: what is there, under which name.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Begins the name of every tensor but the head's; checkpoints of the bare model lack it.
    pub(crate) base: &'static str,
    pub(crate) embedding: &'static str,
    /// The embedding of learned positions.
    pub(crate) positions: Option<&'static str>,
    /// Begins the names of a block, before its number.
    pub(crate) blocks: &'static str,
    pub(crate) attention_norm: &'static str,
    /// The maps that make queries, keys and values: three, or one.
    pub(crate) attention_inputs: &'static [&'static str],
    pub(crate) fused: Fused,
    /// Norms of queries and of keys.
    pub(crate) head_norms: HeadNorms,
    pub(crate) attention_output: &'static str,
    pub(crate) mlp_norm: &'static str,
    /// The maps into the MLP: gate and up, or up alone.
    pub(crate) mlp_inputs: &'static [&'static str],
    pub(crate) mlp_output: &'static str,
    pub(crate) final_norm: &'static str,
    /// The vocabulary head where it is not the embedding: its name, and others that it has gone by.
    pub(crate) head: &'static [&'static str],
    pub(crate) norm: NormKind,
    /// Whether maps lie in the file as [in, out], as GPT-2's `Conv1D`.
    pub(crate) transposed: bool,
}

/// How the columns of one map for queries, keys and values are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fused {
    /// [q | k | v].
    Whole,
    /// [q | k | v] of the first head, then of the next.
    ByHead,
}

/// Norms of queries and keys, before they are turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeadNorms {
    None,
    /// One gain for the width of a head.
    PerHead,
    /// A gain for the width of all heads.
    Whole,
}

impl HeadNorms {
    /// Of queries, of keys.
    pub(crate) const NAMES: [&'static str; 2] = ["self_attn.q_norm", "self_attn.k_norm"];
}

/// What a norm is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormKind {
    /// x / rms(x) * w.
    Rms,
    /// x / rms(x) * (1 + w).
    RmsAboveOne,
    /// (x - mean(x)) / deviation(x) * w + b.
    Layer,
}
