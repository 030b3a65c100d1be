//! The MLP of a block, up to the map out of it.

use std::cell::LazyCell;

use anyhow::Result;
use burn::tensor::Tensor;
use wherefrom_linalg::kernels::{activate, activate_backward, gated, gated_backward};

use crate::layer::Layer;
use crate::walk::{Walk, input_of};

/// What the backward pass needs, [rows, inner]. The output, f(gate) up or f(up), is cheap, so it is computed
/// again.
pub(crate) struct Mlp {
    gate: Option<Tensor<2>>,
    up: Tensor<2>,
}

impl Mlp {
    /// input [rows, hidden]
    pub(crate) fn forward(layer: &Layer<'_>, input: &Tensor<2>) -> Self {
        match layer.config.layout().mlp_inputs {
            [gate, up] => Self { gate: Some(layer.linear(gate, input)), up: layer.linear(up, input) },
            names => Self { gate: None, up: layer.linear(names[0], input) },
        }
    }

    /// What the map out of it reads.
    pub(crate) fn inner(&self, layer: &Layer<'_>) -> Tensor<2> {
        match &self.gate {
            Some(gate) => gated(gate.clone(), self.up.clone(), layer.config.activation),
            None => activate(self.up.clone(), layer.config.activation),
        }
    }

    /// From the gradient at the inner values to that at the input; none where the walk has ended.
    pub(crate) fn backward(
        self,
        layer: &Layer<'_>,
        d_inner: Tensor<2>,
        input: &dyn Fn() -> Tensor<2>,
        walk: &mut Walk<'_>,
    ) -> Result<Option<Tensor<2>>> {
        let layout = layer.config.layout();
        let first = layer.attention_output() + 1;
        let input = LazyCell::new(|| input_of(input(), layer.config.bias.mlp));
        let (names, activation) = (layout.mlp_inputs, layer.config.activation);
        Ok(match self.gate {
            Some(gate) => {
                let (d_gate, d_up) = gated_backward(d_inner, gate, self.up, activation);
                walk.modules(first, &|| input.clone(), &[&d_gate, &d_up])?;
                (!walk.ends_at(first))
                    .then(|| layer.add_linear_backward(layer.linear_backward(names[0], d_gate), names[1], d_up))
            }
            None => {
                let d_up = activate_backward(d_inner, self.up, activation);
                walk.modules(first, &|| input.clone(), &[&d_up])?;
                (!walk.ends_at(first)).then(|| layer.linear_backward(names[0], d_up))
            }
        })
    }
}
