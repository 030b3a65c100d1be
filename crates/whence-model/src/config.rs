//! `config.json`: which family, which sizes, and refusals by name of what is not supported.

use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::bad_input;
use crate::module::Module;

/// Model families. A new family is a variant here and a file beside `llama.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU.
    Llama,
}

/// Sizes of a decoder-only language model, under their Hugging Face names.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The family.
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
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Added to the mean square.
    pub rms_norm_eps: f64,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
}

impl Config {
    /// Reads `config.json` in `folder`.
    ///
    /// # Errors
    /// [`crate::BadInput`] for a missing or malformed file and for every variant that is not supported, by name.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let name = path.display();
        let text = std::fs::read(&path).map_err(|error| {
            bad_input(format!("cannot read the model's config ({error}); give a Hugging Face folder: {name}"))
        })?;
        let json: Value =
            serde_json::from_slice(&text).map_err(|error| bad_input(format!("not JSON ({error}): {name}")))?;
        let refuse = |what: String| Err(bad_input(format!("{what}: {name}")));
        match json["model_type"].as_str() {
            Some("llama") => {}
            Some(other) => return refuse(format!("model type `{other}` is not supported (supported: llama)")),
            None => return refuse("config.json has no `model_type`".into()),
        }
        if !json["quantization_config"].is_null() {
            return refuse("quantised weights are not supported; give the unquantised checkpoint".into());
        }
        for key in ["attention_bias", "mlp_bias"] {
            if json[key].as_bool() == Some(true) {
                return refuse(format!("`{key}` is not supported"));
            }
        }
        if let Some(other) = json["hidden_act"].as_str().filter(|act| *act != "silu") {
            return refuse(format!("`hidden_act` `{other}` is not supported (supported: silu)"));
        }
        for scaling in [&json["rope_scaling"], &json["rope_parameters"]] {
            let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str());
            if let Some(other) = kind.filter(|kind| *kind != "default") {
                return refuse(format!("rope variant `{other}` is not supported (supported: default)"));
            }
        }
        let size = |key: &str| match json[key].as_u64() {
            Some(0) | None => Err(bad_input(format!("`{key}` must be a whole number above 0: {name}"))),
            Some(value) => Ok(value as usize),
        };
        let heads = size("num_attention_heads")?;
        let optional = |key: &str, default: usize| if json[key].is_null() { Ok(default) } else { size(key) };
        let hidden_size = size("hidden_size")?;
        let theta = json["rope_theta"].as_f64().or(json["rope_parameters"]["rope_theta"].as_f64());
        let config = Self {
            architecture: Architecture::Llama,
            vocab_size: size("vocab_size")?,
            hidden_size,
            intermediate_size: size("intermediate_size")?,
            num_hidden_layers: size("num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: optional("num_key_value_heads", heads)?,
            head_dim: optional("head_dim", hidden_size / heads)?,
            max_position_embeddings: optional("max_position_embeddings", 2048)?,
            rope_theta: theta.unwrap_or(10_000.0),
            rms_norm_eps: json["rms_norm_eps"].as_f64().unwrap_or(1e-6),
            tie_word_embeddings: json["tie_word_embeddings"].as_bool().unwrap_or(false),
        };
        if !heads.is_multiple_of(config.num_key_value_heads) || !config.head_dim.is_multiple_of(2) {
            return refuse("heads must be a multiple of key-value heads, and `head_dim` even".into());
        }
        Ok(config)
    }

    /// The config as `transformers` reads it.
    pub fn to_json(&self) -> Value {
        serde_json::json!({
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
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position_embeddings,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
        })
    }

    /// Every linear map of the blocks, in forward order, without loading weights. The vocabulary head is none of them.
    pub fn modules(&self) -> Vec<Module> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (queries, keys) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        // (name, in, out, steps back to the first module that reads the same input)
        let kinds = [
            ("self_attn.q_proj", hidden, queries, 0),
            ("self_attn.k_proj", hidden, keys, 1),
            ("self_attn.v_proj", hidden, keys, 2),
            ("self_attn.o_proj", queries, hidden, 0),
            ("mlp.gate_proj", hidden, inner, 0),
            ("mlp.up_proj", hidden, inner, 1),
            ("mlp.down_proj", inner, hidden, 0),
        ];
        let mut modules = Vec::new();
        for layer in 0..self.num_hidden_layers {
            for (name, in_features, out_features, back) in kinds {
                let input = modules.len() - back;
                let name = format!("model.layers.{layer}.{name}");
                modules.push(Module { name, in_features, out_features, input, layer });
            }
        }
        modules
    }

    /// Name and shape of every parameter of the checkpoint.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let embedding = vec![self.vocab_size, self.hidden_size];
        let mut shapes = vec![("model.embed_tokens.weight".to_string(), embedding.clone())];
        for module in self.modules() {
            shapes.push((format!("{}.weight", module.name), vec![module.out_features, module.in_features]));
        }
        for layer in 0..self.num_hidden_layers {
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                shapes.push((format!("model.layers.{layer}.{norm}.weight"), vec![self.hidden_size]));
            }
        }
        shapes.push(("model.norm.weight".into(), vec![self.hidden_size]));
        if !self.tie_word_embeddings {
            shapes.push(("lm_head.weight".into(), embedding));
        }
        shapes
    }

    /// Number of parameters.
    pub fn parameters(&self) -> u64 {
        self.shapes().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }
}
