//! The attention of a block, up to the map from its heads.

use std::cell::LazyCell;

use anyhow::Result;
use burn::tensor::Tensor;
use wherefrom_linalg::kernels::{
    AttentionShape, Rotation, RotationTable, causal_attention, causal_attention_backward, rotate,
};

use crate::family::{Fused, HeadNorms};
use crate::layer::Layer;
use crate::walk::{Walk, input_of};

/// What the backward pass needs, all [rows, width].
pub(crate) struct Attention {
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
    fn shape(&self, layer: &Layer<'_>) -> AttentionShape {
        AttentionShape { scale: layer.config.scale(layer.index), ..self.shape.clone() }
    }

    fn turn(&self, x: Tensor<2>, rotation: Rotation) -> Tensor<2> {
        match &self.table {
            Some(table) => rotate(x, table, rotation),
            None => x,
        }
    }
}

impl Attention {
    /// input [rows, hidden] -> what is kept, and what the heads have read [rows, width].
    pub(crate) fn forward(layer: &Layer<'_>, places: &Places, input: &Tensor<2>) -> (Self, Tensor<2>) {
        let layout = layer.config.layout();
        let [mut queries, mut keys, values] = match layout.attention_inputs {
            [q, k, v] => [q, k, v].map(|name| layer.linear(name, input)),
            names => split(layer.linear(names[0], input), layer),
        };
        let mut plain = None;
        if layout.head_norms != HeadNorms::None {
            let [query_norm, key_norm] = HeadNorms::NAMES.map(|name| layer.norm(name));
            plain = Some([queries.clone(), keys.clone()]);
            (queries, keys) = (query_norm.forward_by_head(queries), key_norm.forward_by_head(keys));
        }
        let (queries, keys) = (places.turn(queries, Rotation::Forward), places.turn(keys, Rotation::Forward));
        let heads = causal_attention(queries.clone(), keys.clone(), values.clone(), &places.shape(layer));
        (Self { queries, keys, values, plain }, heads)
    }

    /// From the gradient at the heads to that at the input; none where the walk has ended.
    pub(crate) fn backward(
        self,
        layer: &Layer<'_>,
        places: &Places,
        d_heads: Tensor<2>,
        input: &dyn Fn() -> Tensor<2>,
        walk: &mut Walk<'_>,
    ) -> Result<Option<Tensor<2>>> {
        let (layout, first) = (layer.config.layout(), layer.first_module());
        let (d_queries, d_keys, d_values) =
            causal_attention_backward(d_heads, self.queries, self.keys, self.values, &places.shape(layer));
        let mut d_queries = places.turn(d_queries, Rotation::Backward);
        let mut d_keys = places.turn(d_keys, Rotation::Backward);
        if let Some([queries, keys]) = self.plain {
            let [query_norm, key_norm] = HeadNorms::NAMES.map(|name| layer.norm(name));
            walk.parameters(|| query_norm.gradients_by_head(&d_queries, &queries))?;
            walk.parameters(|| key_norm.gradients_by_head(&d_keys, &keys))?;
            d_queries = query_norm.backward_by_head(d_queries, queries);
            d_keys = key_norm.backward_by_head(d_keys, keys);
        }
        let input = LazyCell::new(|| input_of(input(), layer.config.bias.attention_inputs));
        let tap = || input.clone();
        Ok(match layout.attention_inputs {
            [q, k, v] => {
                walk.modules(first, &tap, &[&d_queries, &d_keys, &d_values])?;
                (!walk.ends_at(first)).then(|| {
                    let d_input = layer.linear_backward(q, d_queries);
                    let d_input = layer.add_linear_backward(d_input, k, d_keys);
                    layer.add_linear_backward(d_input, v, d_values)
                })
            }
            names => {
                let d = join([d_queries, d_keys, d_values], layer);
                walk.modules(first, &tap, &[&d])?;
                (!walk.ends_at(first)).then(|| layer.linear_backward(names[0], d))
            }
        })
    }
}

/// Queries, keys and values out of the output of one map.
fn split(x: Tensor<2>, layer: &Layer<'_>) -> [Tensor<2>; 3] {
    let (rows, dim) = (x.dims()[0], layer.config.head_dim);
    let [queries, keys] = layer.config.head_widths();
    match layer.config.layout().fused {
        Fused::Whole => [(0, queries), (queries, keys), (queries + keys, keys)]
            .map(|(start, width)| x.clone().narrow(1, start, width)),
        Fused::ByHead => {
            let heads = x.reshape([rows, queries / dim, 3 * dim]);
            [0, 1, 2].map(|i| heads.clone().narrow(2, i * dim, dim).reshape([rows, queries]))
        }
    }
}

/// The inverse of [`split`].
fn join(parts: [Tensor<2>; 3], layer: &Layer<'_>) -> Tensor<2> {
    match layer.config.layout().fused {
        Fused::Whole => Tensor::cat(parts.to_vec(), 1),
        Fused::ByHead => {
            let ([rows, width], dim) = (parts[0].dims(), layer.config.head_dim);
            let heads = parts.map(|part| part.reshape([rows, width / dim, dim]));
            Tensor::cat(heads.to_vec(), 2).reshape([rows, 3 * width])
        }
    }
}
