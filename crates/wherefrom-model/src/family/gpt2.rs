//! GPT-2: learned positions, LayerNorm, biases, and q, k and v in one map that lies transposed in the file.

use anyhow::Result;
use wherefrom_linalg::kernels::Activation;

use super::{Architecture, Fused, HeadNorms, Layout, NormKind};
use crate::config::{Bias, Config};
use crate::keys::Keys;

pub(super) const LAYOUT: Layout = Layout {
    base: "transformer",
    embedding: "transformer.wte",
    positions: Some("transformer.wpe"),
    blocks: "transformer.h",
    attention_norms: [Some("ln_1"), None],
    attention_inputs: &["attn.c_attn"],
    fused: Fused::Whole,
    head_norms: HeadNorms::None,
    attention_output: "attn.c_proj",
    mlp_norms: [Some("ln_2"), None],
    mlp_inputs: &["mlp.c_fc"],
    gate_beside_up: false,
    mlp_output: "mlp.c_proj",
    final_norm: "transformer.ln_f",
    head: &["lm_head"],
    norm: NormKind::Layer,
    transposed: true,
    experts: None,
};

/// `n_embd` and its like, or the common spelling of newer configs.
pub(super) fn read(keys: &Keys) -> Result<Config> {
    keys.refuse_flag("add_cross_attention")?;
    let heads = keys.size(&["n_head", "num_attention_heads"])?;
    let hidden_size = keys.size(&["n_embd", "hidden_size"])?;
    if !hidden_size.is_multiple_of(heads) {
        return Err(keys.refuse("`n_embd` must be a multiple of `n_head`"));
    }
    let head_dim = hidden_size / heads;
    let scaled = keys.flag("scale_attn_weights", true)?;
    Ok(Config {
        architecture: Architecture::Gpt2,
        vocab_size: keys.size(&["vocab_size"])?,
        hidden_size,
        intermediate_size: keys.size_or(&["n_inner"], 4 * hidden_size)?,
        num_hidden_layers: keys.size(&["n_layer", "num_hidden_layers"])?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        max_position_embeddings: keys.size_or(&["n_positions", "max_position_embeddings"], 1024)?,
        tie_word_embeddings: keys.flag("tie_word_embeddings", true)?,
        rotary: None,
        attention_scale: if scaled { (head_dim as f64).powf(-0.5) as f32 } else { 1.0 },
        scale_by_layer: keys.flag("scale_attn_by_inverse_layer_idx", false)?,
        activation: keys.activation("activation_function")?.unwrap_or(Activation::GeluTanh),
        bias: Bias { attention_inputs: true, attention_output: true, mlp: true },
        ..Config::llama(head_dim, 0.0, keys.number_or(&["layer_norm_epsilon"], 1e-5)?)
    })
}
