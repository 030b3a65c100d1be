//! The way back through the blocks: what it comes by, and how far it goes.

use anyhow::Result;
use burn::tensor::Tensor;
use wherefrom_linalg::kernels::append_one;

use crate::module::Selection;

/// One thing the backward pass came by, last to first.
pub(crate) enum Event<'a> {
    /// Module number, its input [rows, in] if asked for, and the gradient of the loss at its output [rows, out].
    Module(usize, &'a dyn Fn() -> Tensor<2>, &'a Tensor<2>),
    /// The gradient of a parameter that belongs to no module.
    Parameter(String, &'a Tensor<2>),
}

/// How far back, and for what.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until<'a> {
    /// Taps of these alone, down to the first.
    Modules(&'a Selection),
    /// Every parameter, embedding included.
    Parameters,
}

impl Until<'_> {
    /// The lowest block that is walked back through.
    pub(crate) fn layer(self, modules_per_layer: usize) -> usize {
        if let Self::Modules(selection) = self { selection.first() / modules_per_layer } else { 0 }
    }

    /// Whether of a block its input alone is kept.
    pub(crate) fn spares(self, block: usize, modules_per_layer: usize) -> bool {
        matches!(self, Self::Modules(selection) if selection.spares(block, modules_per_layer))
    }

    /// Whether anything is done with a module's tap.
    pub(crate) fn asks_for(self, module: usize) -> bool {
        if let Self::Modules(selection) = self { selection.place(module).is_some() } else { true }
    }
}

/// A walk back, and who is told.
pub(crate) struct Walk<'a> {
    pub(crate) until: Until<'a>,
    pub(crate) visit: &'a mut dyn FnMut(Event<'_>) -> Result<()>,
}

impl Walk<'_> {
    /// Reports modules first, first + 1, … that read one input, last to first.
    pub(crate) fn modules(&mut self, first: usize, input: &dyn Fn() -> Tensor<2>, d: &[&Tensor<2>]) -> Result<()> {
        for (place, d) in d.iter().enumerate().rev() {
            (self.visit)(Event::Module(first + place, input, d))?;
        }
        Ok(())
    }

    /// Whether nothing below this module is asked for.
    pub(crate) fn ends_at(&self, module: usize) -> bool {
        matches!(self.until, Until::Modules(selection) if selection.first() >= module)
    }

    /// Reports gradients of parameters, if they are asked for.
    pub(crate) fn parameters(&mut self, gradients: impl FnOnce() -> Vec<(String, Tensor<2>)>) -> Result<()> {
        if self.until == Until::Parameters {
            for (name, gradient) in gradients() {
                (self.visit)(Event::Parameter(name, &gradient))?;
            }
        }
        Ok(())
    }
}

/// The input of a module as curvature sees it: x, or [x | 1] for a map with a bias.
pub(crate) fn input_of(x: Tensor<2>, bias: bool) -> Tensor<2> {
    if bias { append_one(x) } else { x }
}
