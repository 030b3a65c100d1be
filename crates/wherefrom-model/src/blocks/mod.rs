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
