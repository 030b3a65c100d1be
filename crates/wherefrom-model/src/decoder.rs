//! The blocks of a decoder, forward and backward by hand: no autodiff graph, and no weight gradient unless asked for.

use anyhow::Result;
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use wherefrom_linalg::kernels::{AttentionShape, RotationTable};

use crate::attention::{Attention, Places};
use crate::batch::Batch;
use crate::config::{Config, Residual};
use crate::layer::Layer;
use crate::mlp::Mlp;
use crate::walk::{Event, Until, Walk, input_of};
use crate::weights::Parameters;

/// What the backward pass needs of one block, all [rows, width]. The norms' and the gate's outputs are
/// cheap, so they are computed again rather than kept: that is a third of the memory.
struct Block {
    input: Tensor<2>,
    attention: Attention,
    /// What the map out of attention reads, where that is asked for.
    heads: Option<Tensor<2>>,
    /// What the MLP's norm, or the MLP itself, reads.
    middle: Tensor<2>,
    mlp: Mlp,
    /// Outputs of attention and MLP before the norms that follow them.
    branches: Option<[Tensor<2>; 2]>,
}

/// What is kept of a block until the way back.
#[allow(clippy::large_enum_variant)] // A model has some dozens.
enum Kept {
    Whole(Block),
    /// Enough to compute it again.
    Input(Tensor<2>),
}

/// A forward pass up to the last residual stream (before the final norm).
pub(crate) struct Forward {
    blocks: Vec<Kept>,
    pub(crate) output: Tensor<2>,
    places: Places,
}

/// The residual stream of every token: [rows, hidden]; what `backward` needs is kept as far as it will walk.
pub(crate) fn forward(config: &Config, parameters: &Parameters, batch: &Batch, keep: Option<Until<'_>>) -> Forward {
    let places = places(config, batch);
    let modules = config.modules_per_layer();
    let mut x = embed(config, parameters, batch);
    let mut blocks = Vec::new();
    for index in 0..config.num_hidden_layers {
        let layer = Layer { config, parameters, index };
        let heads = keep.is_some_and(|until| until.asks_for(layer.attention_output()));
        let (block, output) = Block::forward(&layer, &places, x, heads);
        x = output;
        match keep.filter(|until| index >= until.layer(modules)) {
            Some(until) if until.spares(index, modules) => blocks.push(Kept::Input(block.input)),
            Some(_) => blocks.push(Kept::Whole(block)),
            None => {}
        }
    }
    Forward { blocks, output: x, places }
}

/// What attention or MLP reads of the stream x: norm(x), or x itself where the norm comes after.
fn entering(layer: &Layer<'_>, norm: &str, x: &Tensor<2>) -> Tensor<2> {
    match layer.config.residual {
        Residual::After => x.clone(),
        _ => layer.norm(norm).forward(x.clone()),
    }
}

/// stream + map(inner), or stream + norm(map(inner)) and the map's output.
fn leaving(
    layer: &Layer<'_>,
    stream: Tensor<2>,
    map: &str,
    inner: Tensor<2>,
    norm: &str,
) -> (Tensor<2>, Option<Tensor<2>>) {
    match layer.config.residual {
        Residual::After => {
            let branch = layer.linear(map, &inner);
            (stream + layer.norm(norm).forward(branch.clone()), Some(branch))
        }
        _ => (layer.add_linear(stream, map, inner), None),
    }
}

/// Walks back from `d`, the gradient at the last residual stream, and reports to `visit` as it goes.
///
/// With W [out, in] and y = a W^T: dL/da = d W. Blocks are dropped as they are passed.
pub(crate) fn backward(
    config: &Config,
    parameters: &Parameters,
    batch: &Batch,
    forward: Forward,
    mut d: Tensor<2>,
    until: Until<'_>,
    visit: &mut dyn FnMut(Event<'_>) -> Result<()>,
) -> Result<()> {
    let Forward { mut blocks, places, .. } = forward;
    let mut walk = Walk { until, visit };
    for index in (until.layer(config.modules_per_layer())..config.num_hidden_layers).rev() {
        let layer = Layer { config, parameters, index };
        let block = match blocks.pop() {
            Some(Kept::Whole(block)) => block,
            Some(Kept::Input(input)) => Block::forward(&layer, &places, input, false).0,
            None => break,
        };
        match block.backward(&layer, &places, d, &mut walk)? {
            Some(before) => d = before,
            None => return Ok(()),
        }
    }
    walk.parameters(|| embedding_gradients(config, parameters, batch, d))
}

impl Block {
    /// The block and its output; with what attention's heads have read, if its map is asked for.
    fn forward(layer: &Layer<'_>, places: &Places, input: Tensor<2>, heads: bool) -> (Self, Tensor<2>) {
        let (config, layout) = (layer.config, layer.config.layout());
        let (attention, read) = Attention::forward(layer, places, &entering(layer, layout.attention_norm, &input));
        let heads = heads.then(|| read.clone());
        let (stream, attended) = leaving(layer, input.clone(), layout.attention_output, read, layout.attention_norm);
        let middle = if config.residual == Residual::Parallel { input.clone() } else { stream.clone() };
        let mlp = Mlp::forward(layer, &entering(layer, layout.mlp_norm, &middle));
        let (output, computed) = leaving(layer, stream, layout.mlp_output, mlp.inner(layer), layout.mlp_norm);
        let branches = attended.zip(computed).map(|(attended, computed)| [attended, computed]);
        (Self { input, attention, heads, middle, mlp, branches }, output)
    }

    /// From the gradient at the stream behind the block to that before it; none where the walk has ended.
    fn backward(
        self,
        layer: &Layer<'_>,
        places: &Places,
        d: Tensor<2>,
        walk: &mut Walk<'_>,
    ) -> Result<Option<Tensor<2>>> {
        let (config, layout) = (layer.config, layer.config.layout());
        let output = layer.attention_output();
        let last = layer.first_module() + config.modules_per_layer() - 1;
        let [attended, computed] = match self.branches {
            Some([attended, computed]) => [Some(attended), Some(computed)],
            None => [None, None],
        };

        let (mlp, middle) = (self.mlp, self.middle);
        let d_branch = returning(layer, layout.mlp_norm, &d, computed, walk)?;
        walk.modules(last, &|| input_of(mlp.inner(layer), config.bias.mlp), &[&d_branch])?;
        if walk.ends_at(last) {
            return Ok(None);
        }
        let d_inner = layer.linear_backward(layout.mlp_output, d_branch);
        let input = || entering(layer, layout.mlp_norm, &middle);
        let Some(d_input) = mlp.backward(layer, d_inner, &input, walk)? else { return Ok(None) };
        let behind = (config.residual == Residual::Parallel).then(|| d.clone());
        let d = merging(layer, layout.mlp_norm, d, d_input, middle, walk)?;

        let (attention, input) = (self.attention, self.input);
        let d_stream = behind.as_ref().unwrap_or(&d);
        let d_branch = returning(layer, layout.attention_norm, d_stream, attended, walk)?;
        drop(behind);
        if let Some(heads) = self.heads {
            walk.modules(output, &|| input_of(heads.clone(), config.bias.attention_output), &[&d_branch])?;
        }
        if walk.ends_at(output) {
            return Ok(None);
        }
        let d_heads = layer.linear_backward(layout.attention_output, d_branch);
        let read = || entering(layer, layout.attention_norm, &input);
        let Some(d_input) = attention.backward(layer, places, d_heads, &read, walk)? else { return Ok(None) };
        merging(layer, layout.attention_norm, d, d_input, input, walk).map(Some)
    }
}

/// The gradient at a map's output: that at the stream, through the norm where one follows the map.
fn returning(
    layer: &Layer<'_>,
    norm: &str,
    d: &Tensor<2>,
    branch: Option<Tensor<2>>,
    walk: &mut Walk<'_>,
) -> Result<Tensor<2>> {
    let Some(branch) = branch else { return Ok(d.clone()) };
    let norm = layer.norm(norm);
    walk.parameters(|| norm.gradients(d, &branch))?;
    Ok(norm.backward(d.zeros_like(), d.clone(), branch))
}

/// d + the gradient that comes back through what reads the stream x.
fn merging(
    layer: &Layer<'_>,
    norm: &str,
    d: Tensor<2>,
    d_input: Tensor<2>,
    x: Tensor<2>,
    walk: &mut Walk<'_>,
) -> Result<Tensor<2>> {
    if layer.config.residual == Residual::After {
        return Ok(d + d_input);
    }
    let norm = layer.norm(norm);
    walk.parameters(|| norm.gradients(&d_input, &x))?;
    Ok(norm.backward(d, d_input, x))
}

fn places(config: &Config, batch: &Batch) -> Places {
    let shape = AttentionShape {
        sequences: batch.tokens.sequences.clone(),
        spans: batch.spans.clone(),
        heads: config.num_attention_heads,
        key_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        scale: config.attention_scale,
    };
    let table =
        config.rotary.map(|rotary| RotationTable::new(batch.positions.clone(), config.head_dim, &rotary.frequencies()));
    Places { shape, table }
}

/// Embedding of tokens, scaled, and of positions.
fn embed(config: &Config, parameters: &Parameters, batch: &Batch) -> Tensor<2> {
    let layout = config.layout();
    let mut x = parameters[&format!("{}.weight", layout.embedding)].clone().select(0, batch.ids.clone());
    if config.embedding_scale != 1.0 {
        x = x * config.embedding_scale;
    }
    if let Some(positions) = layout.positions {
        let places = positions_of(batch, &x);
        x = x + parameters[&format!("{positions}.weight")].clone().select(0, places);
    }
    x
}

fn embedding_gradients(
    config: &Config,
    parameters: &Parameters,
    batch: &Batch,
    d: Tensor<2>,
) -> Vec<(String, Tensor<2>)> {
    let layout = config.layout();
    let scattered = |name: &str, indices, d| {
        let name = format!("{name}.weight");
        let gradient = scatter_rows(parameters[&name].zeros_like(), indices, d);
        (name, gradient)
    };
    let positions = layout.positions.map(|name| scattered(name, positions_of(batch, &d), d.clone()));
    let tokens = scattered(layout.embedding, batch.ids.clone(), d * config.embedding_scale);
    [Some(tokens), positions].into_iter().flatten().collect()
}

/// Position of every row in its segment: [rows].
fn positions_of(batch: &Batch, like: &Tensor<2>) -> Tensor<1, Int> {
    let positions: Vec<_> = batch.positions.iter().map(|&position| position as i32).collect();
    let rows = positions.len();
    Tensor::from_data(TensorData::new(positions, [rows]), &like.device())
}

/// `into` with `rows` added at `indices`: `[n, width]`, `[m]` of rows, `[m, width]`.
pub(crate) fn scatter_rows(into: Tensor<2>, indices: Tensor<1, Int>, rows: Tensor<2>) -> Tensor<2> {
    into.select_assign(0, indices, rows, IndexingUpdateOp::Add)
}
