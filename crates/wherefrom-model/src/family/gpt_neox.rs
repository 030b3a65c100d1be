//! GPT-NeoX and Pythia: attention and MLP side by side or one after the other, q, k and v of each head in one map,
//! rotary positions on a part of it, LayerNorm, biases.

use anyhow::Result;
use wherefrom_linalg::kernels::Activation;

use super::{Architecture, Fused, HeadNorms, Layout, NormKind, llama};
use crate::config::{Bias, Config, Residual};
use crate::keys::Keys;
use crate::rotary_keys::RotaryKeys;

pub(super) const LAYOUT: Layout = Layout {
    base: "gpt_neox",
    embedding: "gpt_neox.embed_in",
    positions: None,
    blocks: "gpt_neox.layers",
    attention_norms: [Some("input_layernorm"), None],
    attention_inputs: &["attention.query_key_value"],
    fused: Fused::ByHead,
    head_norms: HeadNorms::None,
    attention_output: "attention.dense",
    mlp_norms: [Some("post_attention_layernorm"), None],
    mlp_inputs: &["mlp.dense_h_to_4h"],
    gate_beside_up: false,
    mlp_output: "mlp.dense_4h_to_h",
    final_norm: "gpt_neox.final_layer_norm",
    head: &["embed_out", "lm_head"],
    norm: NormKind::Layer,
    transposed: false,
    experts: None,
};

pub(crate) const ROTARY: RotaryKeys =
    RotaryKeys { theta: "rotary_emb_base", share: ("rotary_pct", 0.25), partial: true, ..llama::ROTARY };

pub(super) fn read(keys: &Keys) -> Result<Config> {
    let heads = keys.size(&["num_attention_heads"])?;
    let hidden_size = keys.size(&["hidden_size"])?;
    if !hidden_size.is_multiple_of(heads) {
        return Err(keys.refuse("`hidden_size` must be a multiple of `num_attention_heads`"));
    }
    let head_dim = hidden_size / heads;
    if keys.size_or(&["head_dim"], head_dim)? != head_dim {
        return Err(keys.refuse("`head_dim` must be `hidden_size` / `num_attention_heads` in this family"));
    }
    let num_hidden_layers = keys.size(&["num_hidden_layers"])?;
    // All of them see everything, whatever is said.
    keys.layer_types(num_hidden_layers)?;
    let max_position_embeddings = keys.size_or(&["max_position_embeddings"], 2048)?;
    let rotary = keys.rotary(head_dim, max_position_embeddings, &ROTARY)?;
    // Llama's spelling, which `transformers` takes no notice of here.
    let (share, whole) = ROTARY.share;
    for (key, own, default) in [("rope_theta", ROTARY.theta, 10_000.0), ("partial_rotary_factor", share, whole)] {
        let value = keys.number_or(&[own], default)?;
        if keys.number_or(&[key], value)? != value {
            return Err(
                keys.refuse(&format!("`{key}` is {value} by `{own}`, and `{key}` says otherwise; keep `{own}`"))
            );
        }
    }
    let attention_bias = keys.flag("attention_bias", true)?;
    Ok(Config {
        architecture: Architecture::GptNeox,
        vocab_size: keys.size(&["vocab_size"])?,
        hidden_size,
        intermediate_size: keys.size(&["intermediate_size"])?,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        max_position_embeddings,
        tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
        rotary: (rotary.dims > 0).then_some(rotary),
        residual: if keys.flag("use_parallel_residual", true)? { Residual::Parallel } else { Residual::Sequential },
        activation: keys.activation("hidden_act")?.unwrap_or(Activation::Gelu),
        bias: Bias { attention_inputs: attention_bias, attention_output: attention_bias, mlp: true },
        ..Config::llama(head_dim, 0.0, keys.number_or(&["layer_norm_eps"], 1e-5)?)
    })
}
