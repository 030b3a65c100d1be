//! One block of a decoder, forward and backward by hand: no autodiff graph, and no weight gradient unless asked for.

mod attention;
mod experts;
mod mlp;
mod routing;

use std::ops::Range;

use anyhow::Result;
use burn::tensor::Tensor;
use wherefrom_linalg::kernels::KeyValues;

pub(crate) use attention::{Attended, Attention, Places};
pub(crate) use experts::{Experts, Mixed, Shared};
pub(crate) use mlp::{Computed, Gate, Mlp};

use crate::batch::TokenRows;
use crate::config::Residual;
use crate::norm::Norm;
use crate::tangent::Direction;
use crate::taps::Pass;
use crate::weights::Weights;

/// Attention and MLP on the residual stream.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) residual: Residual,
    /// What is added to the stream is multiplied by.
    pub(crate) scale: f32,
    /// Numbers of its modules.
    pub(crate) modules: Range<usize>,
    pub(crate) attention_norms: Norms,
    pub(crate) attention: Attention,
    pub(crate) mlp_norms: Norms,
    pub(crate) mlp: Feed,
}

/// The norm through which attention or MLP reads the stream, and that through which goes what it adds.
#[derive(Debug, Clone)]
pub(crate) struct Norms {
    pub(crate) before: Option<Norm>,
    pub(crate) after: Option<Norm>,
}

/// What stands behind attention.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "a model has some dozens")]
pub(crate) enum Feed {
    Mlp(Mlp),
    Experts(Experts),
}

/// What the backward pass needs of it.
#[allow(clippy::large_enum_variant, reason = "a model has some dozens")]
#[derive(Clone)]
pub(crate) enum Fed {
    Mlp(Computed),
    Experts(Mixed),
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
    fed: Fed,
    /// Outputs of attention and MLP, where a norm follows them.
    branches: [Option<Tensor<2>>; 2],
}

impl Block {
    /// The block's state and its output; with what attention's heads have read, if its map is asked for.
    pub(crate) fn forward(
        &self,
        weights: Weights<'_>,
        places: &Places,
        input: Tensor<2>,
        keep_heads: bool,
        cache: Option<&mut KeyValues>,
    ) -> Result<(State, Tensor<2>)> {
        let Self { attention, mlp, .. } = self;
        let read = self.attention_norms.entering(weights, &input);
        let (attended, heads) = attention.forward(weights, places, &read, cache)?;
        let kept = keep_heads.then(|| heads.clone());
        let add = |stream: Option<Tensor<2>>| match stream {
            Some(stream) => attention.output.add_forward(weights, stream, heads.clone()),
            None => attention.output.forward(weights, &heads),
        };
        let (stream, branch) = self.leaving(weights, &self.attention_norms, input.clone(), &add)?;
        let middle = if self.residual == Residual::Parallel { input.clone() } else { stream.clone() };
        let fed = mlp.forward(weights, &places.tokens, &self.mlp_norms.entering(weights, &middle))?;
        let add = |stream: Option<Tensor<2>>| mlp.output(weights, &fed, stream);
        let (output, mlp_branch) = self.leaving(weights, &self.mlp_norms, stream, &add)?;
        Ok((State { input, attended, heads: kept, middle, fed, branches: [branch, mlp_branch] }, output))
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
        let (Self { attention, mlp, attention_norms, mlp_norms, .. }, weights) = (self, direction.weights);
        let State { input, attended, heads, middle, fed, branches } = state;

        let read = || attention_norms.entering(weights, input);
        let entered = attention_norms.entering_tangent(weights, input, moved.clone());
        let t_heads = attention.tangent(attended, places, direction, &read, entered)?;
        let heads = || heads.clone().expect("kept where the direction has its map");
        let t_branch = attention.output.tangent(direction, &heads, t_heads)?;
        let t_branch = self.leaving_tangent(weights, attention_norms, branches[0].as_ref(), t_branch);
        let stream = sum(moved.clone(), t_branch);

        let t_middle = if self.residual == Residual::Parallel { moved } else { stream.clone() };
        let read = || mlp_norms.entering(weights, middle);
        let entered = mlp_norms.entering_tangent(weights, middle, t_middle);
        let t_branch = mlp.tangent(fed, direction, &read, entered)?;
        let t_branch = self.leaving_tangent(weights, mlp_norms, branches[1].as_ref(), t_branch);
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
        let (Self { attention, mlp, attention_norms, mlp_norms, .. }, weights) = (self, pass.weights);
        let State { input, attended, heads, middle, fed, branches } = state;
        let [attention_branch, mlp_branch] = branches;

        let d_branch = self.leaving_backward(mlp_norms, &d, mlp_branch, pass)?;
        let read = || mlp_norms.entering(weights, &middle);
        let Some(d_input) = mlp.backward(fed, d_branch, &read, pass)? else { return Ok(None) };
        let behind = (self.residual == Residual::Parallel).then(|| d.clone());
        let d = mlp_norms.entering_backward(d, d_input, middle, pass)?;

        let d_stream = behind.as_ref().unwrap_or(&d);
        let d_branch = self.leaving_backward(attention_norms, d_stream, attention_branch, pass)?;
        drop(behind);
        let heads = || heads.clone().expect("kept where the tap is asked for");
        let Some(d_heads) = attention.output.backward(pass, &heads, d_branch)? else { return Ok(None) };
        let read = || attention_norms.entering(weights, &input);
        let Some(d_input) = attention.backward(attended, places, d_heads, &read, pass)? else { return Ok(None) };
        attention_norms.entering_backward(d, d_input, input, pass).map(Some)
    }

    /// stream + s branch, or stream + s norm(branch) and the branch; `add` makes the branch, or adds it to a stream.
    fn leaving(
        &self,
        weights: Weights<'_>,
        norms: &Norms,
        stream: Tensor<2>,
        add: &dyn Fn(Option<Tensor<2>>) -> Result<Tensor<2>>,
    ) -> Result<(Tensor<2>, Option<Tensor<2>>)> {
        Ok(match &norms.after {
            None if self.scale == 1.0 => (add(Some(stream))?, None),
            None => (stream + self.scaled(add(None)?), None),
            Some(norm) => {
                let branch = add(None)?;
                (stream + self.scaled(norm.forward(weights, branch.clone())), Some(branch))
            }
        })
    }

    /// How what is added to the stream moves where the branch does.
    fn leaving_tangent(
        &self,
        weights: Weights<'_>,
        norms: &Norms,
        branch: Option<&Tensor<2>>,
        moved: Option<Tensor<2>>,
    ) -> Option<Tensor<2>> {
        let moved = match (&norms.after, branch) {
            (Some(norm), Some(branch)) => moved.map(|moved| norm.tangent(weights, moved, branch.clone())),
            _ => moved,
        };
        moved.map(|moved| self.scaled(moved))
    }

    /// The gradient at the branch: that at the stream, through the norm where one follows.
    fn leaving_backward(
        &self,
        norms: &Norms,
        d: &Tensor<2>,
        branch: Option<Tensor<2>>,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor<2>> {
        let d = self.scaled(d.clone());
        let (Some(norm), Some(branch)) = (&norms.after, branch) else { return Ok(d) };
        norm.report(pass, &d, &branch)?;
        Ok(norm.backward(pass.weights, d.zeros_like(), d, branch))
    }

    fn scaled(&self, x: Tensor<2>) -> Tensor<2> {
        if self.scale == 1.0 { x } else { x * self.scale }
    }
}

impl Norms {
    /// What attention or MLP reads of the stream x: norm(x), or x itself.
    fn entering(&self, weights: Weights<'_>, x: &Tensor<2>) -> Tensor<2> {
        match &self.before {
            Some(norm) => norm.forward(weights, x.clone()),
            None => x.clone(),
        }
    }

    /// How that moves where x does.
    fn entering_tangent(&self, weights: Weights<'_>, x: &Tensor<2>, moved: Option<Tensor<2>>) -> Option<Tensor<2>> {
        match &self.before {
            Some(norm) => moved.map(|moved| norm.tangent(weights, moved, x.clone())),
            None => moved,
        }
    }

    /// d + the gradient that comes back through what reads the stream x.
    fn entering_backward(
        &self,
        d: Tensor<2>,
        d_input: Tensor<2>,
        x: Tensor<2>,
        pass: &mut Pass<'_>,
    ) -> Result<Tensor<2>> {
        let Some(norm) = &self.before else { return Ok(d + d_input) };
        norm.report(pass, &d_input, &x)?;
        Ok(norm.backward(pass.weights, d, d_input, x))
    }
}

impl Feed {
    /// input [rows, hidden], of these tokens
    fn forward(&self, weights: Weights<'_>, tokens: &TokenRows, input: &Tensor<2>) -> Result<Fed> {
        Ok(match self {
            Self::Mlp(mlp) => Fed::Mlp(mlp.forward(weights, input)?),
            Self::Experts(experts) => Fed::Experts(experts.forward(weights, tokens, input)?),
        })
    }

    /// The output [rows, hidden], added to a stream where there is one.
    fn output(&self, weights: Weights<'_>, fed: &Fed, stream: Option<Tensor<2>>) -> Result<Tensor<2>> {
        match (self, fed, stream) {
            (Self::Mlp(mlp), Fed::Mlp(computed), Some(stream)) => {
                mlp.output.add_forward(weights, stream, mlp.inner(computed))
            }
            (Self::Mlp(mlp), Fed::Mlp(computed), None) => mlp.output.forward(weights, &mlp.inner(computed)),
            (Self::Experts(experts), Fed::Experts(mixed), stream) => {
                let output = experts.output(weights, mixed)?;
                Ok(if let Some(stream) = stream { stream + output } else { output })
            }
            _ => unreachable!("a state is of the block that made it"),
        }
    }

    fn tangent(
        &self,
        fed: &Fed,
        direction: Direction<'_>,
        input: &dyn Fn() -> Tensor<2>,
        moved: Option<Tensor<2>>,
    ) -> Result<Option<Tensor<2>>> {
        match (self, fed) {
            (Self::Mlp(mlp), Fed::Mlp(computed)) => mlp.tangent(computed, direction, input, moved),
            (Self::Experts(experts), Fed::Experts(mixed)) => experts.tangent(mixed, direction, input, moved),
            _ => unreachable!("a state is of the block that made it"),
        }
    }

    fn backward(
        &self,
        fed: Fed,
        d: Tensor<2>,
        input: &dyn Fn() -> Tensor<2>,
        pass: &mut Pass<'_>,
    ) -> Result<Option<Tensor<2>>> {
        match (self, fed) {
            (Self::Mlp(mlp), Fed::Mlp(computed)) => mlp.backward(computed, d, input, pass),
            (Self::Experts(experts), Fed::Experts(mixed)) => experts.backward(mixed, d, input, pass),
            _ => unreachable!("a state is of the block that made it"),
        }
    }
}

/// x + y, where what is none is zero.
fn sum(x: Option<Tensor<2>>, y: Option<Tensor<2>>) -> Option<Tensor<2>> {
    match (x, y) {
        (Some(x), Some(y)) => Some(x + y),
        (x, y) => x.or(y),
    }
}
