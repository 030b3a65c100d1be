//! Mixtures of experts of Llama's making: OLMoE, Qwen2-MoE, Qwen3-MoE, Mixtral.
//!
//! The load-balancing loss of their training is of a batch and not of an example: it is left out.

use anyhow::Result;
use serde_json::Value;

use super::{Architecture, ExpertNames, HeadNorms, Layout, Packed, llama};
use crate::config::{Config, Experts, Layer};
use crate::keys::Keys;

/// One expert after the other, or all of them in one tensor.
const NAMES: ExpertNames = ExpertNames {
    router: "mlp.gate",
    experts: "mlp.experts",
    maps: ["gate_proj", "up_proj", "down_proj"],
    shared: "mlp.shared_expert",
    shared_gate: "mlp.shared_expert_gate",
    old_block: None,
    old_maps: ["w1", "w3", "w2"],
    packed: Packed::Rows,
};

pub(super) const OLMOE: Layout = Layout { head_norms: HeadNorms::Whole, experts: Some(NAMES), ..llama::LAYOUT };
pub(super) const QWEN2: Layout = Layout { experts: Some(NAMES), ..llama::LAYOUT };
pub(super) const QWEN3: Layout = Layout { head_norms: HeadNorms::PerHead, experts: Some(NAMES), ..llama::LAYOUT };
/// Its files call the block `block_sparse_moe`.
pub(super) const MIXTRAL: Layout =
    Layout { experts: Some(ExpertNames { old_block: Some("block_sparse_moe"), ..NAMES }), ..llama::LAYOUT };

pub(super) fn read(keys: &Keys, architecture: Architecture) -> Result<Config> {
    // Width, number and number chosen where the config leaves them out.
    let (width, count, chosen) = match architecture {
        Architecture::Mixtral => (None, 8, 2),
        Architecture::Olmoe => (None, 64, 8),
        Architecture::Qwen2Moe => (Some(1408), 60, 4),
        _ => (Some(768), 128, 8),
    };
    let config = llama::read(keys, architecture)?;
    let shared = match architecture {
        Architecture::Qwen2Moe => Some(keys.size_or(&["shared_expert_intermediate_size"], 5632)?),
        _ => None,
    };
    let experts = Experts {
        count: keys.size_or(&["num_experts", "num_local_experts"], count)?,
        chosen: keys.size_or(&["num_experts_per_tok"], chosen)?,
        intermediate_size: match width {
            Some(width) => keys.size_or(&["moe_intermediate_size"], width)?,
            None => config.intermediate_size,
        },
        normalised: architecture == Architecture::Mixtral || keys.flag("norm_topk_prob", false)?,
        router_bias: false,
        shared,
        limit: None,
    };
    let clip = if architecture == Architecture::Olmoe { keys.positive("clip_qkv")? } else { None };
    let sparse = sparse(keys, architecture, config.num_hidden_layers)?;
    let layers = with_experts(&config, &sparse);
    Ok(Config { experts: Some(experts), attention_clip: clip.map(|clip| clip as f32), layers, ..config })
}

/// The layers with experts where `sparse` says so.
pub(super) fn with_experts(config: &Config, sparse: &[bool]) -> Vec<Layer> {
    sparse.iter().enumerate().map(|(index, &experts)| Layer { experts, ..config.layer(index) }).collect()
}

/// Which layers have experts: of Qwen every `decoder_sparse_step`-th, but for those that have an MLP.
fn sparse(keys: &Keys, architecture: Architecture, layers: usize) -> Result<Vec<bool>> {
    if !matches!(architecture, Architecture::Qwen2Moe | Architecture::Qwen3Moe) {
        return Ok(vec![true; layers]);
    }
    let step = keys.size_or(&["decoder_sparse_step"], 1)?;
    let dense: Vec<u64> = match keys.value("mlp_only_layers") {
        Value::Null => Vec::new(),
        value => serde_json::from_value(value.clone())
            .map_err(|_| keys.refuse("`mlp_only_layers` must be a list of numbers of layers"))?,
    };
    Ok((0..layers).map(|layer| !dense.contains(&(layer as u64)) && (layer + 1).is_multiple_of(step)).collect())
}
