//! Model families: what each reads from `config.json`, and how its checkpoints are laid out.
//!
//! A family is a decoder with the options of [`crate::config::Config`] and a [`Layout`]. Adding one is a file here, a
//! variant of [`Architecture`], and its line in each `match` below.

mod experts;
mod gemma;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod layers;
pub(crate) mod llama;
mod olmo;
mod phi3;

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
    /// Gemma 2: Gemma with norms on both sides, scores and logits bent by a tanh, a window in every other layer.
    Gemma2,
    /// Gemma 3 of text and pictures: the model of text inside it.
    Gemma3,
    /// Gemma 3 of text: norms on both sides and on queries and keys, five layers of six with a window.
    Gemma3Text,
    /// GPT-2: learned positions, LayerNorm, biases, transposed weights, q, k and v in one map.
    Gpt2,
    /// GPT-NeoX and Pythia: attention and MLP side by side, partial rotary positions, LayerNorm, biases.
    GptNeox,
    /// gpt-oss: experts with biases and a clamped gate, attention sinks, a window in every other layer.
    GptOss,
    /// Granite: Llama with multipliers.
    Granite,
    /// Llama 1 to 3: RMSNorm, rotary positions, grouped-query attention, SwiGLU.
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Mixtral: Mistral with experts.
    Mixtral,
    /// OLMo 2: Llama with norms after attention and MLP, and over all of q and of k.
    Olmo2,
    /// OLMo 3: OLMo 2 with a window and rotary positions of their own in three layers of four.
    Olmo3,
    /// OLMoE: experts, and norms over all of q and of k.
    Olmoe,
    /// Phi-3 and Phi-4: Llama with fused maps and LongRoPE.
    Phi3,
    /// Qwen2: Llama with biases on q, k and v.
    Qwen2,
    /// Qwen2-MoE: Qwen2 with experts, one of which sees every token.
    Qwen2Moe,
    /// Qwen3: Llama with a norm on each head's query and key.
    Qwen3,
    /// Qwen3-MoE: Qwen3 with experts.
    Qwen3Moe,
    /// SmolLM3: Llama with layers that do not turn queries and keys.
    Smollm3,
}

impl Architecture {
    const ALL: [(&str, Self); 20] = [
        ("gemma", Self::Gemma),
        ("gemma2", Self::Gemma2),
        ("gemma3", Self::Gemma3),
        ("gemma3_text", Self::Gemma3Text),
        ("gpt2", Self::Gpt2),
        ("gpt_neox", Self::GptNeox),
        ("gpt_oss", Self::GptOss),
        ("granite", Self::Granite),
        ("llama", Self::Llama),
        ("mistral", Self::Mistral),
        ("mixtral", Self::Mixtral),
        ("olmo2", Self::Olmo2),
        ("olmo3", Self::Olmo3),
        ("olmoe", Self::Olmoe),
        ("phi3", Self::Phi3),
        ("qwen2", Self::Qwen2),
        ("qwen2_moe", Self::Qwen2Moe),
        ("qwen3", Self::Qwen3),
        ("qwen3_moe", Self::Qwen3Moe),
        ("smollm3", Self::Smollm3),
    ];

    fn named(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(name, _)| *name == model_type).map(|(_, family)| family)
    }

    /// Names and layout of its checkpoints.
    pub(crate) fn layout(self) -> &'static Layout {
        match self {
            Self::Gemma => &gemma::LAYOUT,
            Self::Gemma2 => &gemma::SECOND,
            Self::Gemma3 | Self::Gemma3Text => &gemma::THIRD,
            Self::Gpt2 => &gpt2::LAYOUT,
            Self::GptNeox => &gpt_neox::LAYOUT,
            Self::GptOss => &gpt_oss::LAYOUT,
            Self::Granite | Self::Llama | Self::Mistral | Self::Qwen2 | Self::Smollm3 => &llama::LAYOUT,
            Self::Mixtral => &experts::MIXTRAL,
            Self::Olmo2 | Self::Olmo3 => &olmo::LAYOUT,
            Self::Olmoe => &experts::OLMOE,
            Self::Phi3 => &phi3::LAYOUT,
            Self::Qwen2Moe => &experts::QWEN2,
            Self::Qwen3 => &llama::QWEN3,
            Self::Qwen3Moe => &experts::QWEN3,
        }
    }

    /// What the names of a checkpoint's tensors may begin with beside the model's own: a model of text inside another.
    pub(crate) fn wrappers(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Gemma3 => {
                &[("", "language_model."), ("model.", "model.language_model."), ("model.", "language_model.")]
            }
            _ => &[],
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
    let quantised = keys.value("quantization_config");
    if !quantised.is_null() && (family != Architecture::GptOss || quantised["quant_method"] != "mxfp4") {
        return Err(keys.refuse("quantised weights are not supported; give the unquantised checkpoint"));
    }
    match family {
        Architecture::Gemma | Architecture::Gemma2 | Architecture::Gemma3 | Architecture::Gemma3Text => {
            gemma::read(keys, family)
        }
        Architecture::Gpt2 => gpt2::read(keys),
        Architecture::GptNeox => gpt_neox::read(keys),
        Architecture::GptOss => gpt_oss::read(keys),
        Architecture::Granite => granite::read(keys),
        Architecture::Llama
        | Architecture::Mistral
        | Architecture::Phi3
        | Architecture::Qwen2
        | Architecture::Qwen3
        | Architecture::Smollm3 => llama::read(keys, family),
        Architecture::Mixtral | Architecture::Olmoe | Architecture::Qwen2Moe | Architecture::Qwen3Moe => {
            experts::read(keys, family)
        }
        Architecture::Olmo2 | Architecture::Olmo3 => olmo::read(keys, family),
    }
}

/// What of `config.json` says something and is not heeded, as `transformers` does not heed it either.
pub(crate) fn unheeded(keys: &Keys) -> Result<Option<String>> {
    match keys.word("model_type").and_then(Architecture::named) {
        Some(Architecture::GptNeox) => keys.unheeded(&gpt_neox::ROTARY),
        Some(Architecture::Gpt2 | Architecture::Gemma3) | None => Ok(None),
        Some(family) => keys.unheeded(&llama::rotary_keys(family)),
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
    /// What norms attention reads through, and what it adds goes through.
    pub(crate) attention_norms: [Option<&'static str>; 2],
    /// The maps that make queries, keys and values: three, or one.
    pub(crate) attention_inputs: &'static [&'static str],
    pub(crate) fused: Fused,
    /// Norms of queries and of keys.
    pub(crate) head_norms: HeadNorms,
    pub(crate) attention_output: &'static str,
    /// The same of the MLP.
    pub(crate) mlp_norms: [Option<&'static str>; 2],
    /// The maps into the MLP: gate and up, or one.
    pub(crate) mlp_inputs: &'static [&'static str],
    /// Whether that one has gate beside up, or up alone.
    pub(crate) gate_beside_up: bool,
    pub(crate) mlp_output: &'static str,
    pub(crate) final_norm: &'static str,
    /// The vocabulary head where it is not the embedding: its name, and others that it has gone by.
    pub(crate) head: &'static [&'static str],
    pub(crate) norm: NormKind,
    /// Whether maps lie in the file as [in, out], as GPT-2's `Conv1D`.
    pub(crate) transposed: bool,
    /// Names of a mixture of experts.
    pub(crate) experts: Option<ExpertNames>,
}

/// How a mixture of experts is called and laid out.
#[derive(Debug)]
pub(crate) struct ExpertNames {
    /// The map whose outputs choose the experts.
    pub(crate) router: &'static str,
    /// Begins the names of an expert, before its number.
    pub(crate) experts: &'static str,
    /// Gate, up and down of an expert.
    pub(crate) maps: [&'static str; 3],
    /// Begins the names of the expert that sees every token.
    pub(crate) shared: &'static str,
    /// The map whose sigmoid weighs it.
    pub(crate) shared_gate: &'static str,
    /// What files call the block in place of `mlp`.
    pub(crate) old_block: Option<&'static str>,
    /// What files of that kind call gate, up and down.
    pub(crate) old_maps: [&'static str; 3],
    /// How the file has all experts in one tensor, where it does.
    pub(crate) packed: Packed,
}

/// How the maps of all experts lie in one tensor: gate and up in `gate_up_proj`, and `down_proj`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packed {
    /// [experts, out, in], gate above up.
    Rows,
    /// [experts, in, out], gate in even and up in odd columns.
    Columns,
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
