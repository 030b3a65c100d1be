//! One block of a decoder, forward and backward by hand: no autodiff graph, and no weight gradient unless asked for.

mod attention;
mod mlp;

use std::ops::Range;

use anyhow::Result;
use burn::tensor::Tensor;

pub(crate) use attention::{Attended, Attention, Places};
pub(crate) use mlp::{Computed, Mlp};

use crate::config::Residual;
use crate::linear::Linear;
use crate::norm::Norm;
use crate::tangent::Direction;
use crate::taps::Pass;
use crate::weights::Weights;

/// Attention and MLP on the residual stream.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) residual: Residual,
    /// Numbers of its modules.
    pub(crate) modules: Range<usize>,
    pub(crate) attention: Attention,
    pub(crate) mlp: Mlp,
}

/// What the backward pass needs of one block, all [rows, width]. The norms' and the gate's outputs are cheap, so they
/// are computed again rather than kept: that is a third of the memory.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) input: Tensor<2>,
    attended: Attended,
    /// What the map out of attention reads, where its tap is asked for.
    heads: Option<Tensor<2>>,
    /// What the MLP's norm, or the MLP itself, reads.
    middle: Tensor<2>,
    computed: Computed,
    /// Outputs of attention and MLP before the norms that follow them.
    branches: Option<[Tensor<2>; 2]>,
}

impl Block {
    /// The block's state and its output; with what attention's heads have read, if its map is asked for.
    pub(crate) fn forward(
        &self,
        weights: Weights<'_>,
        places: &Places,
        input: Tensor<2>,
        keep_heads: bool,
    ) -> Result<(State, Tensor<2>)> {
        let Self { attention, mlp, .. } = self;
        let read = self.entering(weights, &attention.norm, &input);
        let (attended, heads) = attention.forward(weights, places, &read)?;
        let kept = keep_heads.then(|| heads.clone());
        let (stream, branch) = self.leaving(weights, input.clone(), &attention.output, heads, &attention.norm)?;
        let middle = if self.residual == Residual::Parallel { input.clone() } else { stream.clone() };
        let computed = mlp.forward(weights, &self.entering(weights, &mlp.norm, &middle))?;
        let (output, mlp_branch) = self.leaving(weights, stream, &mlp.output, mlp.inner(&computed), &mlp.norm)?;
        let branches = branch.zip(mlp_branch).map(|(attended, computed)| [attended, computed]);
        Ok((State { input, attended, heads: kept, middle, computed, branches }, output))
    }

    /// How the stream behind the block moves where that before it moves by `moved`, and the maps with the direction; none
    /// where it stays.
    pub(crate) fn tangent(
        &self,
        state: &State,
        places: &Places,
        direction: Direction<'_>,
        moved: Option<Tensor<2>>,
    ) -> Result<Option<Tensor<2>>> {
        let (Self { attention, mlp, .. }, weights) = (self, direction.weights);
        let State { input, attended, heads, middle, computed, branches } = state;

        let read = || self.entering(weights, &attention.norm, input);
        let entered = self.entering_tangent(weights, &attention.norm, input, moved.clone());
        let t_heads = attention.tangent(attended, places, direction, &read, entered)?;
        let heads = || heads.clone().expect("kept where the direction has its map");
        let t_branch = attention.output.tangent(direction, &heads, t_heads)?;
        let branch = branches.as_ref().map(|[attended, _]| attended);
        let t_branch = self.through_norm_after_tangent(weights, &attention.norm, branch, t_branch);
        let stream = sum(moved.clone(), t_branch);

        let t_middle = if self.residual == Residual::Parallel { moved } else { stream.clone() };
        let read = || self.entering(weights, &mlp.norm, middle);
        let entered = self.entering_tangent(weights, &mlp.norm, middle, t_middle);
        let t_inner = mlp.tangent(computed, direction, &read, entered)?;
        let t_branch = mlp.output.tangent(direction, &|| mlp.inner(computed), t_inner)?;
        let branch = branches.as_ref().map(|[_, computed]| computed);
        let t_branch = self.through_norm_after_tangent(weights, &mlp.norm, branch, t_branch);
        Ok(sum(stream, t_branch))
    }

    /// From the gradient at the stream behind the block to that before it; none where the backward pass ends inside.
    pub(crate) fn backward(
        &self,
        state: State,
        places: &Places,
        d: Tensor<2>,
        pass: &mut Pass<'_>,
    ) -> Result<Option<Tensor<2>>> {
        let (Self { attention, mlp, .. }, weights) = (self, pass.weights);
        let State { input, attended, heads, middle, computed, branches } = state;
        let [attention_branch, mlp_branch] = match branches {
            Some([attended, computed]) => [Some(attended), Some(computed)],
            None => [None, None],
        };

        let d_branch = self.through_norm_after(&mlp.norm, &d, mlp_branch, pass)?;
        let Some(d_inner) = mlp.output.backward(pass, &|| mlp.inner(&computed), d_branch)? else { return Ok(None) };
        let read = || self.entering(weights, &mlp.norm, &middle);
        let Some(d_input) = mlp.backward(computed, d_inner, &read, pass)? else { return Ok(None) };
        let behind = (self.residual == Residual::Parallel).then(|| d.clone());
        let d = self.merged(&mlp.norm, d, d_input, middle, pass)?;

        let d_stream = behind.as_ref().unwrap_or(&d);
        let d_branch = self.through_norm_after(&attention.norm, d_stream, attention_branch, pass)?;
        drop(behind);
        let heads = || heads.clone().expect("kept where the tap is asked for");
        let Some(d_heads) = attention.output.backward(pass, &heads, d_branch)? else { return Ok(None) };
        let read = || self.entering(weights, &attention.norm, &input);
        let Some(d_input) = attention.backward(attended, places, d_heads, &read, pass)? else { return Ok(None) };
        self.merged(&attention.norm, d, d_input, input, pass).map(Some)
    }

    /// What attention or MLP reads of the stream x: norm(x), or x itself where the norm comes after.
    fn entering(&self, weights: Weights<'_>, norm: &Norm, x: &Tensor<2>) -> Tensor<2> {
        match self.residual {
            Residual::After => x.clone(),
            _ => norm.forward(weights, x.clone()),
        }
    }

    /// How that moves where x does.
    fn entering_tangent(
        &self,
        weights: Weights<'_>,
        norm: &Norm,
        x: &Tensor<2>,
        moved: Option<Tensor<2>>,
    ) -> Option<Tensor<2>> {
        match self.residual {
            Residual::After => moved,
            _ => moved.map(|moved| norm.tangent(weights, moved, x.clone())),
        }
    }

    /// How what is added to the stream moves where a map's output does: through the norm where one follows the map.
    fn through_norm_after_tangent(
        &self,
        weights: Weights<'_>,
        norm: &Norm,
        branch: Option<&Tensor<2>>,
        moved: Option<Tensor<2>>,
    ) -> Option<Tensor<2>> {
        match branch {
            Some(branch) => moved.map(|moved| norm.tangent(weights, moved, branch.clone())),
            None => moved,
        }
    }

    /// stream + map(inner), or stream + norm(map(inner)) and the map's output.
    fn leaving(
        &self,
        weights: Weights<'_>,
        stream: Tensor<2>,
        map: &Linear,
        inner: Tensor<2>,
        norm: &Norm,
    ) -> Result<(Tensor<2>, Option<Tensor<2>>)> {
        Ok(match self.residual {
            Residual::After => {
                let branch = map.forward(weights, &inner)?;
                (stream + norm.forward(weights, branch.clone()), Some(branch))
            }
            _ => (map.add_forward(weights, stream, inner)?, None),
        })
    }

    /// The gradient at a map's output: that at the stream, through the norm where one follows the map.
    fn through_norm_after(
        &self,
        norm: &Norm,
        d: &Tensor<2>,
        branch: Option<Tensor<2>>,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor<2>> {
        let Some(branch) = branch else { return Ok(d.clone()) };
        pass.report(|| norm.gradients(d, &branch))?;
        Ok(norm.backward(pass.weights, d.zeros_like(), d.clone(), branch))
    }

    /// d + the gradient that comes back through what reads the stream x.
    fn merged(
        &self,
        norm: &Norm,
        d: Tensor<2>,
        d_input: Tensor<2>,
        x: Tensor<2>,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor<2>> {
        if self.residual == Residual::After {
            return Ok(d + d_input);
        }
        pass.report(|| norm.gradients(&d_input, &x))?;
        Ok(norm.backward(pass.weights, d, d_input, x))
    }
}

/// x + y, where what is none is zero.
fn sum(x: Option<Tensor<2>>, y: Option<Tensor<2>>) -> Option<Tensor<2>> {
    match (x, y) {
        (Some(x), Some(y)) => Some(x + y),
        (x, y) => x.or(y),
    }
}
