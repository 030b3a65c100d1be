//! Llama, forward and backward by hand: no autodiff graph, and no weight gradient unless asked for.

use std::cell::LazyCell;

use anyhow::Result;
use burn::tensor::{IndexingUpdateOp, Int, Tensor};
use whence_linalg::kernels::{
    AttentionShape, Rotation, RotationTable, add_product, causal_attention, causal_attention_backward, product,
    rms_norm, rms_norm_backward, rms_norm_gain_gradient, rotate, swiglu, swiglu_backward,
};

use crate::batch::Batch;
use crate::config::Config;
use crate::weights::Parameters;

/// What the backward pass needs of one block, all [batch * tokens, width]. The norms' and the gate's outputs are
/// cheap, so they are computed again rather than kept: that is a third of the memory.
struct Block {
    input: Tensor<2>,
    queries: Tensor<2>,
    keys: Tensor<2>,
    values: Tensor<2>,
    heads: Tensor<2>,
    middle: Tensor<2>,
    gate: Tensor<2>,
    up: Tensor<2>,
}

/// A forward pass up to the last residual stream (before the final norm).
pub(crate) struct Forward {
    blocks: Vec<Block>,
    pub(crate) output: Tensor<2>,
    shape: AttentionShape,
    table: RotationTable,
}

/// One thing the backward pass came by, last to first.
pub(crate) enum Event<'a> {
    /// Module number, its input [rows, in] if asked for, and the gradient of the loss at its output [rows, out].
    Module(usize, &'a dyn Fn() -> Tensor<2>, &'a Tensor<2>),
    /// The gradient of a parameter that belongs to no module.
    Parameter(String, &'a Tensor<2>),
}

/// How far back, and for what.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// Taps only, down to this module.
    Module(usize),
    /// Every parameter, embedding included.
    Parameters,
}

impl Until {
    /// The lowest block that is walked back through.
    fn layer(self) -> usize {
        if let Self::Module(module) = self { module / MODULES } else { 0 }
    }

    /// Whether nothing below this module is asked for.
    fn ends_at(self, module: usize) -> bool {
        matches!(self, Self::Module(last) if last >= module)
    }
}

/// Modules of a block, in the order of [`Config::modules`].
const MODULES: usize = 7;

fn weight<'a>(parameters: &'a Parameters, layer: usize, name: &str) -> &'a Tensor<2> {
    &parameters[&format!("model.layers.{layer}.{name}.weight")]
}

/// y = x W^T, x [rows, in], W [out, in].
pub(crate) fn linear(x: &Tensor<2>, weight: &Tensor<2>) -> Tensor<2> {
    product(x.clone(), weight.clone().transpose())
}

/// r + x W^T.
fn add_linear(residual: &Tensor<2>, x: Tensor<2>, weight: &Tensor<2>) -> Tensor<2> {
    add_product(residual.clone(), x, weight.clone().transpose())
}

/// The residual stream of every token: [batch * tokens, hidden]; what `backward` needs is kept as far as it will walk.
///
/// Padding rows are zero from the embedding on, and stay so: norms, linear maps without bias, SwiGLU and attention
/// (which leaves them out) map zero to zero. So do their derivatives, and no tap needs a mask.
pub(crate) fn forward(config: &Config, parameters: &Parameters, batch: &Batch, keep: Option<Until>) -> Forward {
    let shape = AttentionShape {
        batch: batch.len(),
        tokens: batch.tokens,
        spans: batch.spans.clone(),
        heads: config.num_attention_heads,
        key_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
    };
    let mut table = RotationTable::new(batch.tokens, config.head_dim, config.rope_theta);
    if batch.segmented() {
        table = table.at(&batch.positions);
    }
    let epsilon = config.rms_norm_eps as f32;
    let mut x = parameters["model.embed_tokens.weight"].clone().select(0, batch.ids.clone());
    if let Some(real) = batch.real() {
        x = x * real;
    }
    let mut blocks = Vec::new();
    for layer in 0..config.num_hidden_layers {
        let w = |name| weight(parameters, layer, name);
        let input = x;
        let normed = rms_norm(input.clone(), w("input_layernorm").clone(), epsilon);
        let queries = rotate(linear(&normed, w("self_attn.q_proj")), &table, Rotation::Forward);
        let keys = rotate(linear(&normed, w("self_attn.k_proj")), &table, Rotation::Forward);
        let values = linear(&normed, w("self_attn.v_proj"));
        let heads = causal_attention(queries.clone(), keys.clone(), values.clone(), &shape);
        let middle = add_linear(&input, heads.clone(), w("self_attn.o_proj"));
        let normed = rms_norm(middle.clone(), w("post_attention_layernorm").clone(), epsilon);
        let gate = linear(&normed, w("mlp.gate_proj"));
        let up = linear(&normed, w("mlp.up_proj"));
        x = add_linear(&middle, swiglu(gate.clone(), up.clone()), w("mlp.down_proj"));
        if keep.is_some_and(|until| layer >= until.layer()) {
            blocks.push(Block { input, queries, keys, values, heads, middle, gate, up });
        }
    }
    Forward { blocks, output: x, shape, table }
}

/// Walks back from `d`, the gradient at the last residual stream, and reports to `visit` as it goes.
///
/// With W [out, in] and y = a W^T: dL/da = d W. Blocks are dropped as they are passed.
pub(crate) fn backward(
    config: &Config,
    parameters: &Parameters,
    batch: &Batch,
    mut forward: Forward,
    mut d: Tensor<2>,
    until: Until,
    visit: &mut dyn FnMut(Event<'_>) -> Result<()>,
) -> Result<()> {
    let epsilon = config.rms_norm_eps as f32;
    for layer in (until.layer()..config.num_hidden_layers).rev() {
        let Some(block) = forward.blocks.pop() else { break };
        let first = layer * MODULES;
        let w = |name| weight(parameters, layer, name).clone();
        let norm = |name: &str| format!("model.layers.{layer}.{name}.weight");

        visit(Event::Module(first + 6, &|| swiglu(block.gate.clone(), block.up.clone()), &d))?;
        if until.ends_at(first + 6) {
            return Ok(());
        }
        let d_gated = product(d.clone(), w("mlp.down_proj"));
        let (d_gate, d_up) = swiglu_backward(d_gated, block.gate, block.up);
        let input = LazyCell::new(|| rms_norm(block.middle.clone(), w("post_attention_layernorm"), epsilon));
        visit(Event::Module(first + 5, &|| input.clone(), &d_up))?;
        visit(Event::Module(first + 4, &|| input.clone(), &d_gate))?;
        drop(input);
        if until.ends_at(first + 4) {
            return Ok(());
        }
        let d_input = add_product(product(d_gate, w("mlp.gate_proj")), d_up, w("mlp.up_proj"));
        if until == Until::Parameters {
            let gain = rms_norm_gain_gradient(d_input.clone(), block.middle.clone(), epsilon);
            visit(Event::Parameter(norm("post_attention_layernorm"), &gain))?;
        }
        d = rms_norm_backward(d, d_input, block.middle, w("post_attention_layernorm"), epsilon);

        visit(Event::Module(first + 3, &|| block.heads.clone(), &d))?;
        if until.ends_at(first + 3) {
            return Ok(());
        }
        let d_heads = product(d.clone(), w("self_attn.o_proj"));
        let (d_queries, d_keys, d_values) =
            causal_attention_backward(d_heads, block.queries, block.keys, block.values, &forward.shape);
        let d_queries = rotate(d_queries, &forward.table, Rotation::Backward);
        let d_keys = rotate(d_keys, &forward.table, Rotation::Backward);
        let input = LazyCell::new(|| rms_norm(block.input.clone(), w("input_layernorm"), epsilon));
        visit(Event::Module(first + 2, &|| input.clone(), &d_values))?;
        visit(Event::Module(first + 1, &|| input.clone(), &d_keys))?;
        visit(Event::Module(first, &|| input.clone(), &d_queries))?;
        drop(input);
        if until.ends_at(first) {
            return Ok(());
        }
        let d_input = product(d_queries, w("self_attn.q_proj"));
        let d_input = add_product(d_input, d_keys, w("self_attn.k_proj"));
        let d_input = add_product(d_input, d_values, w("self_attn.v_proj"));
        if until == Until::Parameters {
            let gain = rms_norm_gain_gradient(d_input.clone(), block.input.clone(), epsilon);
            visit(Event::Parameter(norm("input_layernorm"), &gain))?;
        }
        d = rms_norm_backward(d, d_input, block.input, w("input_layernorm"), epsilon);
    }
    if until == Until::Parameters {
        let name = "model.embed_tokens.weight";
        let embedding = scatter_rows(parameters[name].zeros_like(), batch.ids.clone(), d);
        visit(Event::Parameter(name.into(), &embedding))?;
    }
    Ok(())
}

/// `into` with `rows` added at `indices`: `[n, width]`, `[m]` of rows, `[m, width]`.
pub(crate) fn scatter_rows(into: Tensor<2>, indices: Tensor<1, Int>, rows: Tensor<2>) -> Tensor<2> {
    into.select_assign(0, indices, rows, IndexingUpdateOp::Add)
}
