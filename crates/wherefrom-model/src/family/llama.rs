//! Llama, and what differs from it in a bias, a norm or a window: Mistral, Qwen2, Qwen3.

use anyhow::Result;
use serde_json::{Value, json};
use wherefrom_linalg::kernels::Activation;

use super::{Architecture, Fused, HeadNorms, Layout, NormKind};
use crate::config::{Bias, Config, Residual};
use crate::keys::Keys;
use crate::rotary::{Rotary, Scaling};

pub(super) const LAYOUT: Layout = Layout {
    base: "model",
    embedding: "model.embed_tokens",
    positions: None,
    blocks: "model.layers",
    attention_norm: "input_layernorm",
    attention_inputs: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    fused: Fused::Whole,
    head_norms: HeadNorms::None,
    attention_output: "self_attn.o_proj",
    mlp_norm: "post_attention_layernorm",
    mlp_inputs: &["mlp.gate_proj", "mlp.up_proj"],
    mlp_output: "mlp.down_proj",
    final_norm: "model.norm",
    head: &["lm_head"],
    norm: NormKind::Rms,
    transposed: false,
};

pub(super) const QWEN3: Layout = Layout { head_norms: HeadNorms::PerHead, ..LAYOUT };

/// A Llama of given sizes, with what all of them have.
impl Config {
    /// RMSNorm before attention and MLP, default rotary positions, SwiGLU, no bias, an untied head; without sizes.
    pub fn llama(head_dim: usize, theta: f64, norm_epsilon: f64) -> Self {
        Self {
            architecture: Architecture::Llama,
            vocab_size: 0,
            hidden_size: 0,
            intermediate_size: 0,
            num_hidden_layers: 0,
            num_attention_heads: 0,
            num_key_value_heads: 0,
            head_dim,
            max_position_embeddings: 0,
            tie_word_embeddings: false,
            embedding_scale: 1.0,
            rotary: Some(Rotary { dims: head_dim, theta, scaling: Scaling::Default }),
            attention_scale: (head_dim as f64).powf(-0.5) as f32,
            scale_by_layer: false,
            norm_epsilon,
            residual: Residual::Before,
            activation: Activation::Silu,
            bias: Bias::default(),
        }
    }
}

/// Reads the keys that all families of Llama's making have, under one set of defaults.
pub(super) fn read(keys: &Keys, architecture: Architecture) -> Result<Config> {
    let heads = keys.size(&["num_attention_heads"])?;
    let hidden_size = keys.size(&["hidden_size"])?;
    let own_width = if architecture == Architecture::Qwen3 { 128 } else { hidden_size / heads };
    let head_dim = keys.size_or(&["head_dim"], own_width)?;
    let context = keys.size_or(&["max_position_embeddings"], 2048)?;
    let attention_bias = keys.flag("attention_bias", false)?;
    let bias = match architecture {
        Architecture::Mistral => Bias::default(),
        Architecture::Qwen2 => Bias { attention_inputs: true, ..Bias::default() },
        Architecture::Llama => {
            let mlp = keys.flag("mlp_bias", false)?;
            Bias { attention_inputs: attention_bias, attention_output: attention_bias, mlp }
        }
        _ => Bias { attention_inputs: attention_bias, attention_output: attention_bias, mlp: false },
    };
    Ok(Config {
        architecture,
        vocab_size: keys.size(&["vocab_size"])?,
        hidden_size,
        intermediate_size: keys.size(&["intermediate_size"])?,
        num_hidden_layers: keys.size(&["num_hidden_layers"])?,
        num_attention_heads: heads,
        num_key_value_heads: keys.size_or(&["num_key_value_heads"], heads)?,
        max_position_embeddings: window(keys, architecture)?.map_or(context, |window| window.min(context)),
        tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
        rotary: Some(keys.rotary(head_dim, ("rope_theta", 10_000.0), ("partial_rotary_factor", 1.0))?),
        activation: keys.activation("hidden_act", Activation::Silu)?,
        bias,
        ..Config::llama(head_dim, 0.0, keys.number_or(&["rms_norm_eps"], 1e-6)?)
    })
}

/// The sliding window, where one is used: attention sees all of a sequence that is no longer.
fn window(keys: &Keys, architecture: Architecture) -> Result<Option<usize>> {
    let used = match architecture {
        Architecture::Mistral => !keys.any(&["sliding_window"]).is_null(),
        Architecture::Qwen2 | Architecture::Qwen3 => keys.flag("use_sliding_window", false)?,
        _ => false,
    };
    if used { Ok(Some(keys.size_or(&["sliding_window"], 4096)?)) } else { Ok(None) }
}

/// The config of a Llama as `transformers` reads it.
pub(crate) fn to_json(config: &Config) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "dtype": "float32",
        "hidden_act": "silu",
        "mlp_bias": false,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rotary.map(|rotary| rotary.theta),
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_word_embeddings,
    })
}
