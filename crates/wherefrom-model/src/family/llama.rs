//! Llama, and what differs from it in a bias, a norm or a window: Mistral, Qwen2, Qwen3.

use anyhow::Result;
use serde_json::{Value, json};
use wherefrom_linalg::kernels::Activation;

use super::{Architecture, Fused, HeadNorms, Layout, NormKind};
use crate::config::{Bias, Config, Residual};
use crate::keys::{Keys, RotaryKeys};
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

pub(crate) const ROTARY: RotaryKeys =
    RotaryKeys { theta: "rope_theta", share: ("partial_rotary_factor", 1.0), partial: false };

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
        match architecture {
            Architecture::Gemma => Self {
                context: 8192,
                key_value_heads: Some(16),
                head_dim: Some(256),
                activation: Activation::GeluTanh,
                tied: true,
                ..llama
            },
            Architecture::Mistral => Self { context: 4096 * 32, key_value_heads: Some(8), ..llama },
            Architecture::Olmo2 => Self { norm_epsilon: 1e-5, ..llama },
            Architecture::Qwen2 => Self { context: 32_768, key_value_heads: Some(32), ..llama },
            Architecture::Qwen3 => Self { context: 32_768, key_value_heads: Some(32), head_dim: Some(128), ..llama },
            _ => llama,
        }
    }
}

/// Reads the keys that all families of Llama's making have.
pub(super) fn read(keys: &Keys, architecture: Architecture) -> Result<Config> {
    let defaults = Defaults::of(architecture);
    let heads = keys.size(&["num_attention_heads"])?;
    let hidden_size = keys.size(&["hidden_size"])?;
    let num_hidden_layers = keys.size(&["num_hidden_layers"])?;
    // Null is no number where a family has one of its own.
    let own_heads = matches!(architecture, Architecture::Gemma | Architecture::Mistral);
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
        Architecture::Mistral => Bias::default(),
        Architecture::Qwen2 => Bias { attention_inputs: true, ..Bias::default() },
        Architecture::Llama => {
            let mlp = keys.flag("mlp_bias", false)?;
            Bias { attention_inputs: attention_bias, attention_output: attention_bias, mlp }
        }
        _ => Bias { attention_inputs: attention_bias, attention_output: attention_bias, mlp: false },
    };
    let activation = match keys.activation("hidden_act")?.unwrap_or(defaults.activation) {
        // The first configs of Gemma say `gelu` and mean this, as `transformers` takes it.
        Activation::Gelu if architecture == Architecture::Gemma => Activation::GeluTanh,
        activation => activation,
    };
    // An older spelling, which `transformers` takes no notice of any more.
    if keys.activation("hidden_activation")?.is_some_and(|other| other != activation) {
        return Err(keys.refuse("`hidden_act` and `hidden_activation` disagree; keep `hidden_act`"));
    }
    Ok(Config {
        architecture,
        vocab_size: keys.size(&["vocab_size"])?,
        hidden_size,
        intermediate_size: keys.size(&["intermediate_size"])?,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: keys.size_or(&["num_key_value_heads"], own_heads)?,
        max_position_embeddings: window(keys, architecture, num_hidden_layers)?
            .map_or(context, |window| window.min(context)),
        tie_word_embeddings: keys.flag("tie_word_embeddings", defaults.tied)?,
        rotary: Some(keys.rotary(head_dim, context, &ROTARY)?),
        activation,
        bias,
        ..Config::llama(head_dim, 0.0, keys.number_or(&["rms_norm_eps"], defaults.norm_epsilon)?)
    })
}

/// The sliding window, where a layer has one: attention sees all of a sequence that is no longer.
fn window(keys: &Keys, architecture: Architecture, layers: usize) -> Result<Option<usize>> {
    let types = keys.layer_types(layers)?;
    let none = keys.has("sliding_window") && keys.value("sliding_window").is_null();
    let slides = match architecture {
        // In all layers, whatever their types.
        Architecture::Mistral => true,
        Architecture::Qwen2 | Architecture::Qwen3 if keys.flag("use_sliding_window", false)? => {
            let full = keys.count_or("max_window_layers", 28)?;
            types.map_or(full < layers, |types| types.contains(&true))
        }
        _ if types.is_some_and(|types| types.contains(&true)) => {
            return Err(keys.refuse("`layer_types` has sliding_attention, and this model has no window"));
        }
        _ => false,
    };
    if slides && !none { Ok(Some(keys.size_or(&["sliding_window"], 4096)?)) } else { Ok(None) }
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
