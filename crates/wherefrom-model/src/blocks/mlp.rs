//! The MLP: from the residual stream to the map out of the inner values, and back.

use anyhow::Result;
use burn::tensor::Tensor;
use wherefrom_linalg::kernels::{Activation, activate, activate_backward, gated, gated_backward, gated_tangent};

use crate::linear::{Linear, Maps};
use crate::norm::Norm;
use crate::tangent::Direction;
use crate::taps::Pass;
use crate::weights::Weights;

/// The MLP of one block.
#[derive(Debug, Clone)]
pub(crate) struct Mlp {
    /// Before the MLP, or after it.
    pub(crate) norm: Norm,
    /// Gate and up, or up alone.
    pub(crate) inputs: Maps,
    pub(crate) activation: Activation,
    pub(crate) output: Linear,
}

/// What the backward pass needs, [rows, inner]. What the map out of it reads, f(gate) up or f(up), is cheap, so it is
/// computed again.
#[derive(Clone)]
pub(crate) struct Computed {
    gate: Option<Tensor<2>>,
    up: Tensor<2>,
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
            Some(gate) => gated(gate.clone(), up, self.activation),
            None => activate(up, self.activation),
        }
    }

    /// How the inner values move where the input moves by `moved`, and the maps with the direction.
    pub(crate) fn tangent(
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
            (None, _, t_up) => t_up.map(|t_up| activate_backward(t_up, up, self.activation)),
            (Some(gate), t_gate, t_up) => {
                let [t_gate, t_up] = [t_gate, t_up].map(|t| t.unwrap_or_else(|| up.zeros_like()));
                Some(gated_tangent(t_gate, t_up, gate, up, self.activation))
            }
        })
    }

    /// From the gradient at the inner values to that at the input; none where the backward pass ends here.
    pub(crate) fn backward(
        &self,
        computed: Computed,
        d_inner: Tensor<2>,
        input: &dyn Fn() -> Tensor<2>,
        pass: &mut Pass<'_>,
    ) -> Result<Option<Tensor<2>>> {
        let Computed { gate, up } = computed;
        match gate {
            Some(gate) => {
                let (d_gate, d_up) = gated_backward(d_inner, gate, up, self.activation);
                self.inputs.backward(pass, input, [d_gate, d_up])
            }
            None => self.inputs.backward(pass, input, [activate_backward(d_inner, up, self.activation)]),
        }
    }
}
