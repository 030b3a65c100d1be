//! A decoder from tokens to the last residual stream, and back.

use std::sync::Arc;

use anyhow::{Result, bail};
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use wherefrom_linalg::kernels::{AttentionShape, KeyValues, round_like};

use crate::batch::Batch;
use crate::blocks::{Block, Places, State};
use crate::config::Config;
use crate::error::bad_input;
use crate::outline::Outline;
use crate::rotary::Rotary;
use crate::taps::{Event, Goal, Pass};
use crate::weights::Weights;

/// What is kept of a block until the backward pass comes to it.
#[allow(clippy::large_enum_variant)] // A model has some dozens.
#[derive(Clone)]
enum Kept {
    Whole(State),
    /// Enough to compute it again.
    Input(Tensor<2>),
}

/// A forward pass up to the end of a block; of the last, this is the stream before the final norm.
#[derive(Clone)]
pub(crate) struct Forward {
    /// From the lowest block that the backward pass reaches.
    kept: Vec<Kept>,
    blocks: usize,
    pub(crate) output: Tensor<2>,
    pub(crate) places: Arc<Places>,
}

impl Forward {
    /// The blocks that the backward pass reaches, first to last, with their states.
    ///
    /// # Errors
    /// Where one is to be computed again.
    pub(crate) fn states<'a>(&'a self, outline: &'a Outline) -> Result<Vec<(&'a Block, &'a State)>> {
        let blocks = &outline.blocks[self.blocks - self.kept.len()..self.blocks];
        let state = |(block, kept): (&'a Block, &'a Kept)| match kept {
            Kept::Whole(state) => Ok((block, state)),
            Kept::Input(_) => bail!("the state of a block is not kept"),
        };
        blocks.iter().zip(&self.kept).map(state).collect()
    }
}

/// A decoder: how it is put together, and its weights.
#[derive(Clone, Copy)]
pub(crate) struct Decoder<'a> {
    pub(crate) config: &'a Config,
    pub(crate) outline: &'a Outline,
    pub(crate) weights: Weights<'a>,
}

impl Decoder<'_> {
    /// The last residual stream of every token: [rows, hidden]; what `backward` needs is kept as far as it will go.
    pub(crate) fn forward(self, batch: &Batch, goal: Option<Goal<'_>>) -> Result<Forward> {
        self.forward_to(self.outline.blocks.len(), batch, goal, &mut |_, _| {})
    }

    /// The same after the first `last` blocks; `see` is shown every stream on the way, from 0, the embeddings.
    pub(crate) fn forward_to(
        self,
        last: usize,
        batch: &Batch,
        goal: Option<Goal<'_>>,
        see: &mut dyn FnMut(usize, &Tensor<2>),
    ) -> Result<Forward> {
        let places = Arc::new(self.places(batch, None));
        let mut x = batch.changed(0, self.embed(batch)?);
        see(0, &x);
        let mut kept = Vec::new();
        for (index, block) in self.outline.blocks[..last].iter().enumerate() {
            let keep_heads = goal.is_some_and(|goal| block.attention.output.is_asked_for(goal));
            let (state, output) = block.forward(self.weights, &places, x, keep_heads, None)?;
            x = batch.changed(index + 1, output);
            see(index + 1, &x);
            match goal.filter(|goal| goal.first() < block.modules.end) {
                Some(Goal::Taps(selection)) if selection.computes_again(&block.modules) => {
                    kept.push(Kept::Input(state.input));
                }
                Some(_) => kept.push(Kept::Whole(state)),
                None => {}
            }
        }
        Ok(Forward { kept, blocks: last, output: x, places })
    }

    /// Goes back from `d`, the gradient at the stream where `forward` ended, and reports to the pass as it goes.
    ///
    /// With W [out, in] and y = a W^T: dL/da = d W. The states of blocks are dropped as they are passed.
    pub(crate) fn backward(self, batch: &Batch, forward: Forward, mut d: Tensor<2>, pass: &mut Pass<'_>) -> Result<()> {
        let Forward { mut kept, blocks, places, .. } = forward;
        for (index, block) in self.outline.blocks[..blocks].iter().enumerate().rev() {
            d = batch.changed_backward(index + 1, d);
            let state = match kept.pop() {
                Some(Kept::Whole(state)) => state,
                Some(Kept::Input(input)) => block.forward(self.weights, &places, input, false, None)?.0,
                None => return Ok(()),
            };
            match block.backward(state, &places, d, pass)? {
                Some(before) => d = before,
                None => return Ok(()),
            }
        }
        if self.outline.tables().any(|number| pass.goal.taps(number)) {
            (pass.visit)(Event::Embeddings(&d))?;
        }
        pass.report(|| self.embedding_gradients(batch, d))
    }

    /// The last residual stream of every token, with keys and values of each block kept in `layers`: of whole sequences, or
    /// with `lengths` of one further token each, of sequences that are then so long.
    pub(crate) fn forward_cached(
        self,
        batch: &Batch,
        layers: &mut [KeyValues],
        lengths: Option<&[usize]>,
    ) -> Result<Tensor<2>> {
        let places = self.places(batch, lengths);
        let weights = Weights { once: lengths.is_some(), ..self.weights };
        let mut x = batch.changed(0, self.embed(batch)?);
        for (index, (block, cache)) in self.outline.blocks.iter().zip(layers).enumerate() {
            x = batch.changed(index + 1, block.forward(weights, &places, x, false, Some(cache))?.1);
        }
        Ok(x)
    }

    fn places(self, batch: &Batch, lengths: Option<&[usize]>) -> Places {
        let config = self.config;
        let shape = AttentionShape {
            sequences: batch.tokens.sequences.clone(),
            spans: batch.spans.clone(),
            heads: config.num_attention_heads,
            key_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            scale: config.attention_scale,
            window: None,
            cap: None,
            sinks: None,
        };
        let table = |rotary: &Option<Rotary>| {
            rotary.as_ref().map(|rotary| match lengths {
                Some(lengths) => rotary.table_of_last(lengths, config.head_dim),
                None => rotary.table(&batch.positions, &batch.spans, config.head_dim),
            })
        };
        let tokens = batch.tokens.clone();
        Places { tokens, shape, table: table(&config.rotary), local: table(&config.local_rotary) }
    }

    /// Embedding of tokens, scaled, and of positions.
    fn embed(self, batch: &Batch) -> Result<Tensor<2>> {
        let ((id, example), vocabulary) = (batch.largest_id, self.outline.vocabulary());
        if id as usize >= vocabulary {
            return Err(bad_input(format!(
                "token id {id} in example {example} is outside the model's vocabulary of {vocabulary}; tokenise with the model's own \
                 tokenizer.json"
            )));
        }
        let mut x = self.weights.rows(&self.outline.embedding, batch.ids.clone())?;
        let scale = self.embedding_scale();
        if scale != 1.0 {
            x = x * scale;
        }
        if let Some(positions) = &self.outline.positions {
            let (last, table) = (batch.positions.iter().max(), self.config.max_position_embeddings);
            if let Some(last) = last.filter(|&&last| last >= table) {
                return Err(bad_input(format!(
                    "a window has {} tokens, the model has {table} positions; set max-tokens of the tokenize step to that or less",
                    last + 1
                )));
            }
            let places = positions_of(batch, &x);
            x = x + self.weights.rows(positions, places)?;
        }
        Ok(x)
    }

    /// As the type of the weights has it.
    pub(crate) fn embedding_scale(self) -> f32 {
        self.weights.precision.rounded(self.config.embedding_scale)
    }

    fn embedding_gradients(self, batch: &Batch, d: Tensor<2>) -> Vec<(String, Tensor<2>)> {
        let scattered = |name: &String, rows: usize, indices, d: Tensor<2>| {
            let zeros = Tensor::zeros([rows, d.dims()[1]], &d.device());
            (name.clone(), scatter_rows(round_like(zeros, &d), indices, d))
        };
        let (positions, rows) = (self.outline.positions.as_ref(), self.config.max_position_embeddings);
        let positions = positions.map(|name| scattered(name, rows, positions_of(batch, &d), d.clone()));
        let (rows, d) = (self.outline.vocabulary(), d * self.embedding_scale());
        let tokens = scattered(&self.outline.embedding, rows, batch.ids.clone(), d);
        [Some(tokens), positions].into_iter().flatten().collect()
    }
}

/// Position of every row in its segment: [rows].
pub(crate) fn positions_of(batch: &Batch, like: &Tensor<2>) -> Tensor<1, Int> {
    let positions: Vec<_> = batch.positions.iter().map(|&position| position as i32).collect();
    let rows = positions.len();
    Tensor::from_data(TensorData::new(positions, [rows]), &like.device())
}

/// `into` with `rows` added at `indices`: `[n, width]`, `[m]` of rows, `[m, width]`.
pub(crate) fn scatter_rows(into: Tensor<2>, indices: Tensor<1, Int>, rows: Tensor<2>) -> Tensor<2> {
    into.select_assign(0, indices, rows, IndexingUpdateOp::Add)
}
