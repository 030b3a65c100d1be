//! Attention: from the residual stream to the map out of the heads, and back.

use anyhow::Result;
use burn::tensor::{Bool, Tensor};
use wherefrom_linalg::kernels::{
    AttentionShape, KeyValues, Rotation, RotationTable, causal_attention, causal_attention_backward,
    causal_attention_tangent, rotate, round_like, sink_gradients, widen,
};

use crate::batch::TokenRows;
use crate::config::Positions;
use crate::linear::{Linear, Maps};
use crate::norm::Norm;
use crate::tangent::Direction;
use crate::taps::Pass;
use crate::weights::Weights;

/// Attention of one block.
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    /// Those that make queries, keys and values.
    pub(crate) inputs: Maps,
    /// Norms of queries and of keys.
    pub(crate) head_norms: Option<[Norm; 2]>,
    /// Queries, keys and values are cut off at this and its negative, behind the norms.
    pub(crate) clip: Option<f32>,
    pub(crate) positions: Positions,
    /// What scores are multiplied by.
    pub(crate) scale: f32,
    /// c, where a score z becomes c tanh(z / c).
    pub(crate) cap: Option<f32>,
    /// How many tokens a query sees at most.
    pub(crate) window: Option<usize>,
    /// The parameter of each head's sink.
    pub(crate) sinks: Option<String>,
    pub(crate) output: Linear,
}

/// What the backward pass needs, all [rows, width].
#[derive(Clone)]
pub(crate) struct Attended {
    /// As attention reads them: normed and turned.
    queries: Tensor<2>,
    keys: Tensor<2>,
    values: Tensor<2>,
    /// Queries and keys before their norms.
    plain: Option<[Tensor<2>; 2]>,
    /// Where queries, keys and values were cut off.
    clipped: Option<[Tensor<2, Bool>; 3]>,
}

/// Where the tokens of a batch stand.
pub(crate) struct Places {
    pub(crate) tokens: TokenRows,
    pub(crate) shape: AttentionShape,
    pub(crate) table: Option<RotationTable>,
    /// Of layers that have rotary positions of their own.
    pub(crate) local: Option<RotationTable>,
}

impl Attention {
    fn shape(&self, weights: Weights<'_>, places: &Places) -> Result<AttentionShape> {
        let host = |name: &String| {
            let values = widen(weights.vector(name)).into_data().try_into_vec();
            values.map_err(|error| anyhow::anyhow!("{error:?}"))
        };
        let sinks = self.sinks.as_ref().map(host).transpose()?;
        let Self { scale, window, cap, .. } = *self;
        Ok(AttentionShape { scale, window, cap, sinks, ..places.shape.clone() })
    }

    fn turn(&self, places: &Places, x: Tensor<2>, rotation: Rotation) -> Tensor<2> {
        let table = match self.positions {
            Positions::Global => places.table.as_ref(),
            Positions::Local => places.local.as_ref(),
            Positions::None => None,
        };
        match table {
            Some(table) => rotate(x, table, rotation),
            None => x,
        }
    }

    /// input [rows, hidden] -> what is kept, and what the heads have read [rows, width]; with a cache, of the tokens before,
    /// too.
    pub(crate) fn forward(
        &self,
        weights: Weights<'_>,
        places: &Places,
        input: &Tensor<2>,
        cache: Option<&mut KeyValues>,
    ) -> Result<(Attended, Tensor<2>)> {
        let made: [Tensor<2>; 3] = self.inputs.forward(weights, input)?.try_into().expect("queries, keys and values");
        let [mut queries, mut keys, mut values] = made;
        let (mut plain, mut clipped) = (None, None);
        if let Some([query_norm, key_norm]) = &self.head_norms {
            plain = Some([queries.clone(), keys.clone()]);
            queries = query_norm.forward_by_head(weights, queries);
            keys = key_norm.forward_by_head(weights, keys);
        }
        if let Some(clip) = self.clip {
            clipped = Some([&queries, &keys, &values].map(|x| x.clone().abs().greater_elem(clip)));
            [queries, keys, values] = [queries, keys, values].map(|x| x.clamp(-clip, clip));
        }
        let [queries, keys] = [queries, keys].map(|x| self.turn(places, x, Rotation::Forward));
        let shape = self.shape(weights, places)?;
        let [q, k, v] = [&queries, &keys, &values].map(Tensor::clone);
        let heads = match cache {
            Some(cache) => cache.attend(q, k, v, &shape),
            None => causal_attention(q, k, v, &shape),
        };
        Ok((Attended { queries, keys, values, plain, clipped }, heads))
    }

    /// How what the heads have read moves where the input moves by `moved`, and the maps with the direction.
    pub(crate) fn tangent(
        &self,
        attended: &Attended,
        places: &Places,
        direction: Direction<'_>,
        input: &dyn Fn() -> Tensor<2>,
        moved: Option<Tensor<2>>,
    ) -> Result<Option<Tensor<2>>> {
        let made = self.inputs.tangent(direction, input, moved)?;
        let moves = made.iter().any(Option::is_some);
        moves.then(|| self.heads_tangent(attended.clone(), places, direction, made)).transpose()
    }

    fn heads_tangent(
        &self,
        attended: Attended,
        places: &Places,
        direction: Direction<'_>,
        made: Vec<Option<Tensor<2>>>,
    ) -> Result<Tensor<2>> {
        let Attended { queries, keys, values, plain, clipped } = attended;
        let like = [&queries, &keys, &values];
        let made: Vec<_> =
            made.into_iter().zip(like).map(|(moved, like)| moved.unwrap_or_else(|| like.zeros_like())).collect();
        let [mut t_queries, mut t_keys, mut t_values]: [Tensor<2>; 3] =
            made.try_into().expect("queries, keys and values");
        if let (Some([query_norm, key_norm]), Some([queries, keys])) = (&self.head_norms, plain) {
            t_queries = query_norm.tangent_by_head(direction.weights, t_queries, queries);
            t_keys = key_norm.tangent_by_head(direction.weights, t_keys, keys);
        }
        [t_queries, t_keys, t_values] = uncut([t_queries, t_keys, t_values], clipped);
        let [t_queries, t_keys] = [t_queries, t_keys].map(|moved| self.turn(places, moved, Rotation::Forward));
        let shape = self.shape(direction.weights, places)?;
        Ok(causal_attention_tangent([queries, t_queries], [keys, t_keys], [values, t_values], &shape))
    }

    /// From the gradient at the heads to that at the input; none where the backward pass ends here.
    pub(crate) fn backward(
        &self,
        attended: Attended,
        places: &Places,
        d_heads: Tensor<2>,
        input: &dyn Fn() -> Tensor<2>,
        pass: &mut Pass<'_>,
    ) -> Result<Option<Tensor<2>>> {
        let Attended { queries, keys, values, plain, clipped } = attended;
        let (weights, shape) = (pass.weights, self.shape(pass.weights, places)?);
        if let Some(sinks) = &self.sinks {
            let gradient = || {
                let [queries, keys, values] = [&queries, &keys, &values].map(Tensor::clone);
                sink_gradients(d_heads.clone(), queries, keys, values, &shape)
            };
            pass.report(|| vec![(sinks.clone(), round_like(gradient(), &d_heads))])?;
        }
        let (d_queries, d_keys, d_values) = causal_attention_backward(d_heads, queries, keys, values, &shape);
        let [d_queries, d_keys] = [d_queries, d_keys].map(|d| self.turn(places, d, Rotation::Backward));
        let [mut d_queries, mut d_keys, d_values] = uncut([d_queries, d_keys, d_values], clipped);
        if let (Some([query_norm, key_norm]), Some([queries, keys])) = (&self.head_norms, plain) {
            key_norm.report_by_head(pass, &d_keys, &keys)?;
            query_norm.report_by_head(pass, &d_queries, &queries)?;
            d_queries = query_norm.backward_by_head(weights, d_queries, queries);
            d_keys = key_norm.backward_by_head(weights, d_keys, keys);
        }
        self.inputs.backward(pass, input, [d_queries, d_keys, d_values])
    }
}

/// Gradients behind where values were cut off, or how these move: zero there.
fn uncut(d: [Tensor<2>; 3], clipped: Option<[Tensor<2, Bool>; 3]>) -> [Tensor<2>; 3] {
    let Some([queries, keys, values]) = clipped else { return d };
    let [d_queries, d_keys, d_values] = d;
    [d_queries.mask_fill(queries, 0.0), d_keys.mask_fill(keys, 0.0), d_values.mask_fill(values, 0.0)]
}
