//! The MLP: from the residual stream through gate and up to the map out of the inner values, and back.

use anyhow::Result;
use burn::tensor::Tensor;
use wherefrom_linalg::kernels::{Activation, activate, activate_backward, gated, gated_backward, gated_tangent};

use crate::linear::{Linear, Maps};
use crate::tangent::Direction;
use crate::taps::Pass;
use crate::weights::Weights;

/// The MLP of one block, or one expert.
#[derive(Debug, Clone)]
pub(crate) struct Mlp {
    /// Gate and up, or up alone.
    pub(crate) inputs: Maps,
    pub(crate) gate: Gate,
    pub(crate) output: Linear,
}

/// How gate and up make the inner values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gate {
    pub(crate) activation: Activation,
    /// l, where gate is cut off above l, up at -l and l, and their product is f(gate) (up + 1), as in gpt-oss.
    pub(crate) limit: Option<f32>,
}

/// What the backward pass needs, [rows, inner]. What the map out of it reads, f(gate) up or f(up), is cheap, so it is
/// computed again.
#[derive(Clone)]
pub(crate) struct Computed {
    gate: Option<Tensor<2>>,
    up: Tensor<2>,
}

impl Gate {
    /// gate and up as their product takes them.
    fn limited(self, gate: Tensor<2>, up: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        match self.limit {
            Some(limit) => (gate.clamp_max(limit), up.clamp(-limit, limit) + 1.0),
            None => (gate, up),
        }
    }

    /// Gradients behind the limits, or how these move: zero where gate or up was cut off.
    fn unlimited(self, d: [Tensor<2>; 2], gate: &Tensor<2>, up: &Tensor<2>) -> [Tensor<2>; 2] {
        let Some(limit) = self.limit else { return d };
        let [d_gate, d_up] = d;
        let cut = [gate.clone().greater_elem(limit), up.clone().abs().greater_elem(limit)];
        let [gate_cut, up_cut] = cut;
        [d_gate.mask_fill(gate_cut, 0.0), d_up.mask_fill(up_cut, 0.0)]
    }
}

impl Mlp {
    /// input [rows, hidden]
    pub(crate) fn forward(&self, weights: Weights<'_>, input: &Tensor<2>) -> Result<Computed> {
        let mut made = self.inputs.forward(weights, input)?;
        let up = made.pop().expect("a map into the MLP");
        Ok(Computed { gate: made.pop(), up })
    }

    /// What the map out of it reads.
    pub(crate) fn inner(&self, computed: &Computed) -> Tensor<2> {
        let up = computed.up.clone();
        match &computed.gate {
            Some(gate) => {
                let (gate, up) = self.gate.limited(gate.clone(), up);
                gated(gate, up, self.gate.activation)
            }
            None => activate(up, self.gate.activation),
        }
    }

    /// How the inner values move where the input moves by `moved`, and the maps with the direction.
    pub(crate) fn inner_tangent(
        &self,
        computed: &Computed,
        direction: Direction<'_>,
        input: &dyn Fn() -> Tensor<2>,
        moved: Option<Tensor<2>>,
    ) -> Result<Option<Tensor<2>>> {
        let mut made = self.inputs.tangent(direction, input, moved)?;
        let (t_up, t_gate) = (made.pop().expect("a map into the MLP"), made.pop().flatten());
        let Computed { gate, up } = computed.clone();
        Ok(match (gate, t_gate, t_up) {
            (_, None, None) => None,
            (None, _, t_up) => t_up.map(|t_up| activate_backward(t_up, up, self.gate.activation)),
            (Some(gate), t_gate, t_up) => {
                let moved = [t_gate, t_up].map(|t| t.unwrap_or_else(|| up.zeros_like()));
                let [t_gate, t_up] = self.gate.unlimited(moved, &gate, &up);
                let (gate, up) = self.gate.limited(gate, up);
                Some(gated_tangent(t_gate, t_up, gate, up, self.gate.activation))
            }
        })
    }

    /// How the output does.
    pub(crate) fn tangent(
        &self,
        computed: &Computed,
        direction: Direction<'_>,
        input: &dyn Fn() -> Tensor<2>,
        moved: Option<Tensor<2>>,
    ) -> Result<Option<Tensor<2>>> {
        let t_inner = self.inner_tangent(computed, direction, input, moved)?;
        self.output.tangent(direction, &|| self.inner(computed), t_inner)
    }

    /// From the gradient at the inner values to that at the input; none where the backward pass ends here.
    pub(crate) fn inner_backward(
        &self,
        computed: Computed,
        d_inner: Tensor<2>,
        input: &dyn Fn() -> Tensor<2>,
        pass: &mut Pass<'_>,
    ) -> Result<Option<Tensor<2>>> {
        let Computed { gate, up } = computed;
        match gate {
            Some(gate) => {
                let (limited, above) = self.gate.limited(gate.clone(), up.clone());
                let (d_gate, d_up) = gated_backward(d_inner, limited, above, self.gate.activation);
                self.inputs.backward(pass, input, self.gate.unlimited([d_gate, d_up], &gate, &up))
            }
            None => self.inputs.backward(pass, input, [activate_backward(d_inner, up, self.gate.activation)]),
        }
    }

    /// The same from that at the output.
    pub(crate) fn backward(
        &self,
        computed: Computed,
        d: Tensor<2>,
        input: &dyn Fn() -> Tensor<2>,
        pass: &mut Pass<'_>,
    ) -> Result<Option<Tensor<2>>> {
        let Some(d_inner) = self.output.backward(pass, &|| self.inner(&computed), d)? else { return Ok(None) };
        self.inner_backward(computed, d_inner, input, pass)
    }
}
