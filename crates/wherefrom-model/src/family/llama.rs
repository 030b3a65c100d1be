//! Llama, what differs from it in a bias, a norm or a window (Mistral, Qwen2, Qwen3), and what all families of its making read.

use anyhow::Result;
use serde_json::{Value, json};
use wherefrom_linalg::kernels::Activation;

use super::{Architecture, Fused, HeadNorms, Layout, NormKind, layers};
use crate::adapter::Adapters;
use crate::config::{Bias, Config, Residual};
use crate::keys::Keys;
use crate::rotary::{Rotary, Scaling};
use crate::rotary_keys::RotaryKeys;

pub(super) const LAYOUT: Layout = Layout {
    base: "model",
    embedding: "model.embed_tokens",
    positions: None,
    blocks: "model.layers",
    attention_norms: [Some("input_layernorm"), None],
    attention_inputs: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    fused: Fused::Whole,
    head_norms: HeadNorms::None,
    attention_output: "self_attn.o_proj",
    mlp_norms: [Some("post_attention_layernorm"), None],
    mlp_inputs: &["mlp.gate_proj", "mlp.up_proj"],
    gate_beside_up: false,
    mlp_output: "mlp.down_proj",
    final_norm: "model.norm",
    head: &["lm_head"],
    norm: NormKind::Rms,
    transposed: false,
    experts: None,
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
            residual_scale: 1.0,
            logit_divisor: 1.0,
            logit_cap: None,
            rotary: Some(Rotary { dims: head_dim, theta, scaling: Scaling::Default }),
            local_rotary: None,
            layers: Vec::new(),
            attention_scale: (head_dim as f64).powf(-0.5) as f32,
            attention_cap: None,
            attention_clip: None,
            sinks: false,
            scale_by_layer: false,
            norm_epsilon,
            residual: Residual::Sequential,
            activation: Activation::Silu,
            bias: Bias::default(),
            experts: None,
            adapters: Adapters::default(),
        }
    }
}

pub(crate) const ROTARY: RotaryKeys = RotaryKeys {
    theta: "rope_theta",
    default_theta: 10_000.0,
    share: ("partial_rotary_factor", 1.0),
    partial: false,
    original: None,
    long: false,
};

/// How a family of Llama's making writes rotary positions.
pub(crate) fn rotary_keys(architecture: Architecture) -> RotaryKeys {
    match architecture {
        Architecture::GptOss => RotaryKeys { default_theta: 150_000.0, ..ROTARY },
        Architecture::Mixtral => RotaryKeys { default_theta: 1_000_000.0, ..ROTARY },
        Architecture::Phi3 => RotaryKeys { partial: true, original: Some(4096.0), long: true, ..ROTARY },
        Architecture::Smollm3 => RotaryKeys { default_theta: 2_000_000.0, ..ROTARY },
        _ => ROTARY,
    }
}

/// What `transformers` takes where a config says nothing, as it writes configs without what is so anyway.
struct Defaults {
    context: usize,
    /// None: as many as there are query heads.
    key_value_heads: Option<usize>,
    /// None: what the query heads leave of the hidden width.
    head_dim: Option<usize>,
    norm_epsilon: f64,
    activation: Activation,
    tied: bool,
}

impl Defaults {
    fn of(architecture: Architecture) -> Self {
        let llama = Self {
            context: 2048,
            key_value_heads: None,
            head_dim: None,
            norm_epsilon: 1e-6,
            activation: Activation::Silu,
            tied: false,
        };
        let gemma = Self {
            context: 8192,
            key_value_heads: Some(16),
            head_dim: Some(256),
            activation: Activation::GeluTanh,
            tied: true,
            ..llama
        };
        match architecture {
            Architecture::Gemma => gemma,
            Architecture::Gemma2 => Self { key_value_heads: Some(4), ..gemma },
            Architecture::Gemma3 | Architecture::Gemma3Text => {
                Self { context: 131_072, key_value_heads: Some(4), ..gemma }
            }
            Architecture::GptOss => {
                Self { context: 131_072, key_value_heads: Some(8), head_dim: Some(64), norm_epsilon: 1e-5, ..llama }
            }
            Architecture::Mistral => Self { context: 4096 * 32, key_value_heads: Some(8), ..llama },
            Architecture::Mixtral => Self { context: 4096 * 32, key_value_heads: Some(8), norm_epsilon: 1e-5, ..llama },
            Architecture::Olmo2 | Architecture::Olmo3 => Self { norm_epsilon: 1e-5, ..llama },
            Architecture::Olmoe => Self { context: 4096, norm_epsilon: 1e-5, ..llama },
            Architecture::Phi3 => Self { context: 4096, norm_epsilon: 1e-5, ..llama },
            Architecture::Qwen2 => Self { context: 32_768, key_value_heads: Some(32), ..llama },
            Architecture::Qwen2Moe => Self { context: 32_768, key_value_heads: Some(16), ..llama },
            Architecture::Qwen3 => Self { context: 32_768, key_value_heads: Some(32), head_dim: Some(128), ..llama },
            Architecture::Qwen3Moe => Self { context: 32_768, key_value_heads: Some(4), ..llama },
            Architecture::Smollm3 => Self { context: 32_768, key_value_heads: Some(4), tied: true, ..llama },
            _ => llama,
        }
    }
}

/// Reads the keys that all families of Llama's making have. Of those whose rotary positions differ by layer these are left to
/// the family.
pub(super) fn read(keys: &Keys, architecture: Architecture) -> Result<Config> {
    let defaults = Defaults::of(architecture);
    let heads = keys.size(&["num_attention_heads"])?;
    let hidden_size = keys.size(&["hidden_size"])?;
    let num_hidden_layers = keys.size(&["num_hidden_layers"])?;
    // Null is no number where a family has one of its own.
    let own_heads = matches!(
        architecture,
        Architecture::Gemma
            | Architecture::Gemma2
            | Architecture::Gemma3
            | Architecture::Gemma3Text
            | Architecture::Mistral
            | Architecture::Qwen3Moe
    );
    for (key, own) in [("head_dim", defaults.head_dim.is_some()), ("num_key_value_heads", own_heads)] {
        if own && keys.has(key) && keys.value(key).is_null() {
            return Err(keys.refuse(&format!("`{key}` must be a whole number above 0")));
        }
    }
    let own_width = defaults.head_dim.filter(|_| !keys.has("head_dim")).unwrap_or(hidden_size / heads);
    let head_dim = keys.size_or(&["head_dim"], own_width)?;
    if head_dim == 0 {
        return Err(keys.refuse("`hidden_size` must be a multiple of `num_attention_heads`"));
    }
    let own_heads = defaults.key_value_heads.filter(|_| !keys.has("num_key_value_heads")).unwrap_or(heads);
    let context = keys.size_or(&["max_position_embeddings"], defaults.context)?;
    let attention_bias = keys.flag("attention_bias", false)?;
    let bias = match architecture {
        Architecture::Mistral | Architecture::Mixtral | Architecture::Phi3 => Bias::default(),
        Architecture::Qwen2 => Bias { attention_inputs: true, ..Bias::default() },
        Architecture::Qwen2Moe => Bias { attention_inputs: keys.flag("qkv_bias", true)?, ..Bias::default() },
        Architecture::Granite | Architecture::Llama | Architecture::Smollm3 => {
            let mlp = keys.flag("mlp_bias", false)?;
            Bias { attention_inputs: attention_bias, attention_output: attention_bias, mlp }
        }
        _ => Bias { attention_inputs: attention_bias, attention_output: attention_bias, mlp: false },
    };
    let activation = activation(keys, architecture, defaults.activation)?;
    let rotary = match architecture {
        Architecture::Gemma3 | Architecture::Gemma3Text | Architecture::Olmo3 => None,
        _ => Some(keys.rotary(head_dim, context, &rotary_keys(architecture))?),
    };
    Ok(Config {
        architecture,
        vocab_size: keys.size(&["vocab_size"])?,
        hidden_size,
        intermediate_size: keys.size(&["intermediate_size"])?,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: keys.size_or(&["num_key_value_heads"], own_heads)?,
        max_position_embeddings: context,
        layers: layers::read(keys, architecture, num_hidden_layers)?,
        tie_word_embeddings: keys.flag("tie_word_embeddings", defaults.tied)?,
        rotary,
        activation,
        bias,
        ..Config::llama(head_dim, 0.0, keys.number_or(&["rms_norm_eps"], defaults.norm_epsilon)?)
    })
}

fn activation(keys: &Keys, architecture: Architecture, default: Activation) -> Result<Activation> {
    // Newer Gemmas have a key of their own.
    let [key, other] = match architecture {
        Architecture::Gemma2 | Architecture::Gemma3 | Architecture::Gemma3Text => ["hidden_activation", "hidden_act"],
        _ => ["hidden_act", "hidden_activation"],
    };
    let activation = match keys.activation(key)?.unwrap_or(default) {
        // The first configs of Gemma say `gelu` and mean this, as `transformers` takes it.
        Activation::Gelu if architecture == Architecture::Gemma => Activation::GeluTanh,
        activation => activation,
    };
    // Another spelling, which `transformers` takes no notice of.
    if keys.activation(other)?.is_some_and(|other| other != activation) {
        return Err(keys.refuse(&format!("`{key}` and `{other}` disagree; keep `{key}`")));
    }
    Ok(activation)
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
        "rope_theta": config.rotary.as_ref().map(|rotary| rotary.theta),
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_word_embeddings,
    })
}
