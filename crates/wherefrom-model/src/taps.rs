//! What a backward pass is made for, what it reports, and how far it goes.

use anyhow::Result;
use burn::tensor::Tensor;

use crate::batch::TokenRows;
use crate::module::{Module, Selection};
use crate::precision::Precision;
use crate::weights::Weights;

/// One module's activations and output gradients over a batch: a row for each token that it saw.
///
/// Maps of the blocks have one tap in a batch. Tables, the head and the norm before it have several where the vocabulary is large,
/// each of whole sequences; the others have no row there.
#[derive(Debug)]
pub struct Tap<'a> {
    /// Place of the module in the selection.
    pub index: usize,
    /// The module.
    pub module: &'a Module,
    /// Which tokens those are.
    pub tokens: &'a TokenRows,
    /// a [rows, in].
    pub activations: Tensor<2>,
    /// d [rows, out]: gradient of the summed loss at the module's output. Of what is no linear map a and d are what [`Module`] says.
    pub output_gradients: Tensor<2>,
    pub(crate) precision: Precision,
}

impl Tap<'_> {
    /// d and a as products take them: rounded to bfloat16 where the model multiplies so, else as they are.
    pub fn operands(self) -> [Tensor<2>; 2] {
        [self.output_gradients, self.activations].map(|x| self.precision.operand(x))
    }
}

/// One thing that a backward pass found, last to first.
#[allow(clippy::large_enum_variant, reason = "an event lives as long as one call")]
pub(crate) enum Event<'a> {
    /// A module's number, the tokens that it saw, its input [rows, in], and the gradient at its output [rows, out].
    Map(usize, &'a TokenRows, Tensor<2>, &'a Tensor<2>),
    /// The gradient of a parameter that belongs to no map.
    Parameter(String, &'a Tensor<2>),
    /// The gradient at the embeddings [rows, hidden], where tables are asked for.
    Embeddings(&'a Tensor<2>),
}

/// What a backward pass is made for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal<'a> {
    /// Taps of these modules, down to the first.
    Taps(&'a Selection),
    /// Every parameter, embedding included.
    Parameters,
}

impl Goal<'_> {
    /// Number of the first module that is asked for: the pass ends there.
    pub(crate) fn first(self) -> usize {
        if let Self::Taps(selection) = self { selection.first() } else { 0 }
    }

    /// Whether a module is chosen: of all parameters nothing is.
    pub(crate) fn taps(self, module: usize) -> bool {
        self != Self::Parameters && self.asks_for(module)
    }

    /// Whether a module's tap is asked for.
    pub(crate) fn asks_for(self, module: usize) -> bool {
        if let Self::Taps(selection) = self { selection.place(module).is_some() } else { true }
    }
}

/// A backward pass on its way.
pub(crate) struct Pass<'a> {
    pub(crate) weights: Weights<'a>,
    pub(crate) goal: Goal<'a>,
    /// Those that the maps on the way see.
    pub(crate) tokens: &'a TokenRows,
    pub(crate) visit: &'a mut dyn FnMut(Event<'_>) -> Result<()>,
}

impl Pass<'_> {
    /// The same on its way through maps that see these tokens alone.
    pub(crate) fn among<'b>(&'b mut self, tokens: &'b TokenRows) -> Pass<'b> {
        Pass { weights: self.weights, goal: self.goal, tokens, visit: &mut *self.visit }
    }

    /// Whether anything before this module is asked for.
    pub(crate) fn goes_below(&self, module: usize) -> bool {
        self.goal == Goal::Parameters || self.goal.first() < module
    }

    /// Reports gradients of parameters, if they are asked for.
    pub(crate) fn report(&mut self, gradients: impl FnOnce() -> Vec<(String, Tensor<2>)>) -> Result<()> {
        if self.goal == Goal::Parameters {
            for (name, gradient) in gradients() {
                (self.visit)(Event::Parameter(name, &gradient))?;
            }
        }
        Ok(())
    }
}
