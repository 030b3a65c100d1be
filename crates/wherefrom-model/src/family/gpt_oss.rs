//! gpt-oss: experts of a clamped gate, biases, an attention sink for each head, and a window in every other layer.

use anyhow::Result;
use serde_json::json;
use wherefrom_linalg::kernels::Activation;

use super::{Architecture, ExpertNames, Layout, Packed, experts, llama};
use crate::config::{Bias, Config, Experts};
use crate::keys::Keys;

pub(super) const LAYOUT: Layout = Layout {
    experts: Some(ExpertNames {
        router: "mlp.router",
        experts: "mlp.experts",
        maps: ["gate_proj", "up_proj", "down_proj"],
        shared: "mlp.shared_expert",
        shared_gate: "mlp.shared_expert_gate",
        old_block: None,
        old_maps: ["gate_proj", "up_proj", "down_proj"],
        packed: Packed::Columns,
    }),
    ..llama::LAYOUT
};

pub(super) fn read(keys: &Keys) -> Result<Config> {
    let keys = &keys.filled(&json!({ "rope_parameters": match keys.value("rope_scaling").is_null() {
        true => json!({ "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
                        "original_max_position_embeddings": 4096 }),
        false => serde_json::Value::Null,
    } }));
    let config = llama::read(keys, Architecture::GptOss)?;
    let alpha = keys.positive("swiglu_alpha")?.unwrap_or(1.702);
    if (alpha - 1.702).abs() > 1e-9 {
        return Err(keys.refuse(&format!("`swiglu_alpha` is {alpha}; only 1.702 is supported")));
    }
    let bias = keys.flag("attention_bias", true)?;
    let experts = Experts {
        count: keys.size_or(&["num_local_experts", "num_experts"], 128)?,
        chosen: keys.size_or(&["num_experts_per_tok", "experts_per_token"], 4)?,
        intermediate_size: config.intermediate_size,
        normalised: true,
        router_bias: true,
        shared: None,
        limit: Some(keys.positive("swiglu_limit")?.unwrap_or(7.0) as f32),
    };
    let layers = experts::with_experts(&config, &vec![true; config.num_hidden_layers]);
    Ok(Config {
        activation: Activation::QuickGelu,
        bias: Bias { attention_inputs: bias, attention_output: bias, mlp: true },
        sinks: true,
        experts: Some(experts),
        layers,
        ..config
    })
}
