//! Attention: from the residual stream to the map out of the heads, and back.

use anyhow::Result;
use burn::tensor::Tensor;
use wherefrom_linalg::kernels::{
    AttentionShape, Rotation, RotationTable, causal_attention, causal_attention_backward, causal_attention_tangent,
    rotate,
};

use crate::linear::{Linear, Maps};
use crate::norm::Norm;
use crate::tangent::Direction;
use crate::taps::Pass;
use crate::weights::Weights;

/// Attention of one block.
#[derive(Debug, Clone)]
pub(crate) struct Attention {
    /// Before attention, or after it.
    pub(crate) norm: Norm,
    /// Those that make queries, keys and values.
    pub(crate) inputs: Maps,
    /// Norms of queries and of keys.
    pub(crate) head_norms: Option<[Norm; 2]>,
    pub(crate) output: Linear,
    /// What scores are multiplied by.
    pub(crate) scale: f32,
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
}

/// Where the tokens of a batch stand.
pub(crate) struct Places {
    pub(crate) shape: AttentionShape,
    pub(crate) table: Option<RotationTable>,
}

impl Places {
    fn turn(&self, x: Tensor<2>, rotation: Rotation) -> Tensor<2> {
        match &self.table {
            Some(table) => rotate(x, table, rotation),
            None => x,
        }
    }
}

impl Attention {
    fn shape(&self, places: &Places) -> AttentionShape {
        AttentionShape { scale: self.scale, ..places.shape.clone() }
    }

    /// input [rows, hidden] -> what is kept, and what the heads have read [rows, width].
    pub(crate) fn forward(
        &self,
        weights: Weights<'_>,
        places: &Places,
        input: &Tensor<2>,
    ) -> Result<(Attended, Tensor<2>)> {
        let made: [Tensor<2>; 3] = self.inputs.forward(weights, input)?.try_into().expect("queries, keys and values");
        let [mut queries, mut keys, values] = made;
        let mut plain = None;
        if let Some([query_norm, key_norm]) = &self.head_norms {
            plain = Some([queries.clone(), keys.clone()]);
            queries = query_norm.forward_by_head(weights, queries);
            keys = key_norm.forward_by_head(weights, keys);
        }
        let (queries, keys) = (places.turn(queries, Rotation::Forward), places.turn(keys, Rotation::Forward));
        let heads = causal_attention(queries.clone(), keys.clone(), values.clone(), &self.shape(places));
        Ok((Attended { queries, keys, values, plain }, heads))
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
        Ok(moves.then(|| self.heads_tangent(attended.clone(), places, direction, made)))
    }

    fn heads_tangent(
        &self,
        attended: Attended,
        places: &Places,
        direction: Direction<'_>,
        made: Vec<Option<Tensor<2>>>,
    ) -> Tensor<2> {
        let Attended { queries, keys, values, plain } = attended;
        let like = [&queries, &keys, &values];
        let made: Vec<_> =
            made.into_iter().zip(like).map(|(moved, like)| moved.unwrap_or_else(|| like.zeros_like())).collect();
        let [mut t_queries, mut t_keys, t_values]: [Tensor<2>; 3] = made.try_into().expect("queries, keys and values");
        if let (Some([query_norm, key_norm]), Some([queries, keys])) = (&self.head_norms, plain) {
            t_queries = query_norm.tangent_by_head(direction.weights, t_queries, queries);
            t_keys = key_norm.tangent_by_head(direction.weights, t_keys, keys);
        }
        let [t_queries, t_keys] = [t_queries, t_keys].map(|moved| places.turn(moved, Rotation::Forward));
        let shape = self.shape(places);
        causal_attention_tangent([queries, t_queries], [keys, t_keys], [values, t_values], &shape)
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
        let Attended { queries, keys, values, plain } = attended;
        let (d_queries, d_keys, d_values) =
            causal_attention_backward(d_heads, queries, keys, values, &self.shape(places));
        let mut d_queries = places.turn(d_queries, Rotation::Backward);
        let mut d_keys = places.turn(d_keys, Rotation::Backward);
        if let (Some([query_norm, key_norm]), Some([queries, keys])) = (&self.head_norms, plain) {
            let weights = pass.weights;
            pass.report(|| query_norm.gradients_by_head(weights, &d_queries, &queries))?;
            pass.report(|| key_norm.gradients_by_head(weights, &d_keys, &keys))?;
            d_queries = query_norm.backward_by_head(weights, d_queries, queries);
            d_keys = key_norm.backward_by_head(weights, d_keys, keys);
        }
        self.inputs.backward(pass, input, [d_queries, d_keys, d_values])
    }
}
