//! The parameters of one block by name, and the operations that use them.

use burn::tensor::Tensor;
use wherefrom_linalg::kernels::{
    add_product, layer_norm, layer_norm_backward, layer_norm_gain_gradient, product, rms_norm, rms_norm_backward,
    rms_norm_gain_gradient, widen,
};

use crate::config::Config;
use crate::family::NormKind;
use crate::weights::Parameters;

/// Block `index` of a model.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub(crate) config: &'a Config,
    pub(crate) parameters: &'a Parameters,
    pub(crate) index: usize,
}

impl<'a> Layer<'a> {
    fn name(&self, name: &str) -> String {
        format!("{}.{}.{name}", self.config.layout().blocks, self.index)
    }

    fn weight(&self, name: &str) -> Tensor<2> {
        self.parameters[&format!("{}.weight", self.name(name))].clone()
    }

    fn bias(&self, name: &str) -> Option<&'a Tensor<2>> {
        self.parameters.get(&format!("{}.bias", self.name(name)))
    }

    /// Number of its first module.
    pub(crate) fn first_module(&self) -> usize {
        self.index * self.config.modules_per_layer()
    }

    /// Number of the map out of attention.
    pub(crate) fn attention_output(&self) -> usize {
        self.first_module() + self.config.layout().attention_inputs.len()
    }

    /// x W^T + b.
    pub(crate) fn linear(&self, name: &str, x: &Tensor<2>) -> Tensor<2> {
        let weight = self.weight(name).transpose();
        let [rows, out] = [x.dims()[0], weight.dims()[1]];
        match self.bias(name) {
            Some(bias) => add_product(bias.clone().expand([rows, out]), x.clone(), weight),
            None => product(x.clone(), weight),
        }
    }

    /// stream + x W^T + b.
    pub(crate) fn add_linear(&self, stream: Tensor<2>, name: &str, x: Tensor<2>) -> Tensor<2> {
        let stream = match self.bias(name) {
            Some(bias) => stream + bias.clone(),
            None => stream,
        };
        add_product(stream, x, self.weight(name).transpose())
    }

    /// dL/dx = d W, where d is the gradient at x W^T + b.
    pub(crate) fn linear_backward(&self, name: &str, d: Tensor<2>) -> Tensor<2> {
        product(d, self.weight(name))
    }

    /// sum + d W.
    pub(crate) fn add_linear_backward(&self, sum: Tensor<2>, name: &str, d: Tensor<2>) -> Tensor<2> {
        add_product(sum, d, self.weight(name))
    }

    pub(crate) fn norm(&self, name: &str) -> Norm {
        Norm::new(self.config, self.parameters, self.name(name))
    }
}

/// One norm: RMSNorm or LayerNorm, with its parameters.
pub(crate) struct Norm {
    name: String,
    kind: NormKind,
    gain: Tensor<2>,
    bias: Option<Tensor<2>>,
    epsilon: f32,
}

impl Norm {
    pub(crate) fn new(config: &Config, parameters: &Parameters, name: String) -> Self {
        let kind = config.layout().norm;
        let weight = parameters[&format!("{name}.weight")].clone();
        let gain = if kind == NormKind::RmsAboveOne { widen(weight) + 1.0 } else { weight };
        let bias = (kind == NormKind::Layer).then(|| parameters[&format!("{name}.bias")].clone());
        Self { name, kind, gain, bias, epsilon: config.norm_epsilon as f32 }
    }

    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match &self.bias {
            Some(bias) => layer_norm(x, self.gain.clone(), bias.clone(), self.epsilon),
            None => rms_norm(x, self.gain.clone(), self.epsilon),
        }
    }

    /// stream + dL/dx, where d is the gradient at the norm's output.
    pub(crate) fn backward(&self, stream: Tensor<2>, d: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
        match self.kind {
            NormKind::Layer => layer_norm_backward(stream, d, x, self.gain.clone(), self.epsilon),
            _ => rms_norm_backward(stream, d, x, self.gain.clone(), self.epsilon),
        }
    }

    /// Gradients of its parameters, by name.
    pub(crate) fn gradients(&self, d: &Tensor<2>, x: &Tensor<2>) -> Vec<(String, Tensor<2>)> {
        let gain = match self.kind {
            NormKind::Layer => layer_norm_gain_gradient(d.clone(), x.clone(), self.epsilon),
            _ => rms_norm_gain_gradient(d.clone(), x.clone(), self.epsilon),
        };
        let mut gradients = vec![(format!("{}.weight", self.name), gain)];
        if self.bias.is_some() {
            gradients.push((format!("{}.bias", self.name), d.clone().sum_dim(0)));
        }
        gradients
    }

    /// [`Norm::forward`] on each stretch of a row that is as long as the gain.
    pub(crate) fn forward_by_head(&self, x: Tensor<2>) -> Tensor<2> {
        let shape = x.dims();
        self.forward(self.heads(x)).reshape(shape)
    }

    /// dL/dx of [`Norm::forward_by_head`].
    pub(crate) fn backward_by_head(&self, d: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
        let shape = x.dims();
        let (d, x) = (self.heads(d), self.heads(x));
        self.backward(x.zeros_like(), d, x).reshape(shape)
    }

    /// Gradients of the parameters of [`Norm::forward_by_head`].
    pub(crate) fn gradients_by_head(&self, d: &Tensor<2>, x: &Tensor<2>) -> Vec<(String, Tensor<2>)> {
        self.gradients(&self.heads(d.clone()), &self.heads(x.clone()))
    }

    fn heads(&self, x: Tensor<2>) -> Tensor<2> {
        let ([rows, width], own) = (x.dims(), self.gain.dims()[1]);
        x.reshape([rows * width / own, own])
    }
}
