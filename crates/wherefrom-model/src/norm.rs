//! RMSNorm and LayerNorm, forward and backward.

use anyhow::Result;
use burn::tensor::Tensor;
use wherefrom_linalg::kernels::{
    layer_norm, layer_norm_backward, layer_norm_gain_gradient, rms_norm, rms_norm_backward, rms_norm_gain_gradient,
    widen,
};

use crate::family::NormKind;
use crate::taps::{Event, Pass};
use crate::weights::Weights;

/// One norm of a model.
#[derive(Debug, Clone)]
pub(crate) struct Norm {
    name: String,
    weight: String,
    kind: NormKind,
    epsilon: f32,
    /// Its number among the modules, if it is one.
    pub(crate) number: Option<usize>,
}

impl Norm {
    pub(crate) fn new(name: String, kind: NormKind, epsilon: f32, number: Option<usize>) -> Self {
        Self { weight: format!("{name}.weight"), name, kind, epsilon, number }
    }

    fn bias(&self) -> String {
        format!("{}.bias", self.name)
    }

    fn gain(&self, weights: Weights<'_>) -> Tensor<2> {
        let weight = weights.vector(&self.weight);
        if self.kind == NormKind::RmsAboveOne { widen(weight) + 1.0 } else { weight }
    }

    pub(crate) fn forward(&self, weights: Weights<'_>, x: Tensor<2>) -> Tensor<2> {
        let gain = self.gain(weights);
        match self.kind {
            NormKind::Layer => layer_norm(x, gain, weights.vector(&self.bias()), self.epsilon),
            _ => rms_norm(x, gain, self.epsilon),
        }
    }

    /// stream + dL/dx, where d is the gradient at the norm's output.
    pub(crate) fn backward(&self, weights: Weights<'_>, stream: Tensor<2>, d: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
        let gain = self.gain(weights);
        match self.kind {
            NormKind::Layer => layer_norm_backward(stream, d, x, gain, self.epsilon),
            _ => rms_norm_backward(stream, d, x, gain, self.epsilon),
        }
    }

    /// How the output moves where x does. With M symmetric, the derivative is diag(gain) M, and `backward` has M diag(gain).
    pub(crate) fn tangent(&self, weights: Weights<'_>, moved: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
        let (gain, zero) = (self.gain(weights), moved.zeros_like());
        let one = gain.ones_like();
        let moved = match self.kind {
            NormKind::Layer => layer_norm_backward(zero, moved, x, one, self.epsilon),
            _ => rms_norm_backward(zero, moved, x, one, self.epsilon),
        };
        moved * gain
    }

    /// Reports what the pass asks for: gradients of its parameters, or its tap. d is the gradient at the output, x the input.
    pub(crate) fn report(&self, pass: &mut Pass<'_>, d: &Tensor<2>, x: &Tensor<2>) -> Result<()> {
        pass.report(|| self.gradients(d, x))?;
        self.tap(pass, || self.by_row(d, x))
    }

    /// The same of [`Norm::forward_by_head`].
    pub(crate) fn report_by_head(&self, pass: &mut Pass<'_>, d: &Tensor<2>, x: &Tensor<2>) -> Result<()> {
        let ([rows, width], weights) = (x.dims(), pass.weights);
        let [d, x] = [d, x].map(|x| self.heads(weights, x.clone()));
        pass.report(|| self.gradients(&d, &x))?;
        self.tap(pass, || {
            let by_head = self.by_row(&d, &x);
            let own = by_head.dims()[1];
            by_head.reshape([rows, width / x.dims()[1], own]).sum_dim(1).reshape([rows, own])
        })
    }

    fn tap(&self, pass: &mut Pass<'_>, by_row: impl FnOnce() -> Tensor<2>) -> Result<()> {
        let Some(number) = self.number.filter(|&number| pass.goal.taps(number)) else { return Ok(()) };
        let (d, tokens) = (by_row(), pass.tokens);
        let ones = Tensor::ones([d.dims()[0], 1], &d.device());
        (pass.visit)(Event::Map(number, tokens, ones, &d))
    }

    /// What each row adds to the gradient of the gain, d * n(x) with n the norm without gain and bias, and behind it to that of
    /// the bias, d: [rows, width] or [rows, 2 width], in float32.
    pub(crate) fn by_row(&self, d: &Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
        let [d, x] = [d, x].map(|x| widen(x.clone()));
        let one = Tensor::ones([1, x.dims()[1]], &x.device());
        match self.kind {
            NormKind::Layer => {
                let zero = one.zeros_like();
                Tensor::cat(vec![d.clone() * layer_norm(x, one, zero, self.epsilon), d], 1)
            }
            _ => d * rms_norm(x, one, self.epsilon),
        }
    }

    /// Gradients of its parameters, by name.
    pub(crate) fn gradients(&self, d: &Tensor<2>, x: &Tensor<2>) -> Vec<(String, Tensor<2>)> {
        let (d, x) = (d.clone(), x.clone());
        match self.kind {
            NormKind::Layer => {
                let bias = d.clone().sum_dim(0);
                vec![(self.weight.clone(), layer_norm_gain_gradient(d, x, self.epsilon)), (self.bias(), bias)]
            }
            _ => vec![(self.weight.clone(), rms_norm_gain_gradient(d, x, self.epsilon))],
        }
    }

    /// [`Norm::forward`] on each stretch of a row that is as long as the gain.
    pub(crate) fn forward_by_head(&self, weights: Weights<'_>, x: Tensor<2>) -> Tensor<2> {
        let shape = x.dims();
        self.forward(weights, self.heads(weights, x)).reshape(shape)
    }

    /// dL/dx of [`Norm::forward_by_head`].
    pub(crate) fn backward_by_head(&self, weights: Weights<'_>, d: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
        let shape = x.dims();
        let (d, x) = (self.heads(weights, d), self.heads(weights, x));
        self.backward(weights, x.zeros_like(), d, x).reshape(shape)
    }

    /// [`Norm::tangent`] of [`Norm::forward_by_head`].
    pub(crate) fn tangent_by_head(&self, weights: Weights<'_>, moved: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
        let shape = x.dims();
        let (moved, x) = (self.heads(weights, moved), self.heads(weights, x));
        self.tangent(weights, moved, x).reshape(shape)
    }

    fn heads(&self, weights: Weights<'_>, x: Tensor<2>) -> Tensor<2> {
        let ([rows, width], own) = (x.dims(), weights.vector(&self.weight).dims()[1]);
        x.reshape([rows * width / own, own])
    }
}
