//! Linear maps, forward and backward; each reports its own tap.

use std::cell::OnceCell;

use anyhow::Result;
use burn::tensor::Tensor;
use wherefrom_linalg::kernels::{add_product, append_one, product};

use crate::module::Module;
use crate::tangent::Direction;
use crate::taps::{Event, Pass};
use crate::weights::Weights;

/// y = x W^T + b.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    /// Its number among the modules.
    pub(crate) index: usize,
    weight: String,
    bias: Option<String>,
    slices: Slices,
}

/// What stands side by side in a map's output: one tensor, or several as where queries, keys and values come of one map.
#[derive(Debug, Clone)]
pub(crate) struct Slices {
    widths: Vec<usize>,
    /// Where they alternate: so many columns of each, then the next columns of each.
    alternating: Option<usize>,
}

impl Slices {
    pub(crate) fn one(width: usize) -> Self {
        Self { widths: vec![width], alternating: None }
    }

    pub(crate) fn side_by_side(widths: Vec<usize>) -> Self {
        Self { widths, alternating: None }
    }

    /// Of equal widths, the columns of one head after those of another.
    pub(crate) fn by_head(widths: Vec<usize>, head_dim: usize) -> Self {
        Self { widths, alternating: Some(head_dim) }
    }

    /// Width of them all.
    pub(crate) fn width(&self) -> usize {
        self.widths.iter().sum()
    }

    fn split(&self, x: Tensor<2>) -> Vec<Tensor<2>> {
        let (rows, count) = (x.dims()[0], self.widths.len());
        match self.alternating {
            _ if count == 1 => vec![x],
            None => {
                let mut start = 0;
                let slice = |&width: &usize| {
                    start += width;
                    x.clone().narrow(1, start - width, width)
                };
                self.widths.iter().map(slice).collect()
            }
            Some(dim) => {
                let heads = x.reshape([rows, self.widths[0] / dim, count * dim]);
                let slice = |i: usize| heads.clone().narrow(2, i * dim, dim).reshape([rows, self.widths[i]]);
                (0..count).map(slice).collect()
            }
        }
    }

    /// The inverse of [`Slices::split`], of the first of `slices`.
    fn join(&self, slices: &mut impl Iterator<Item = Tensor<2>>) -> Tensor<2> {
        let mut own: Vec<_> = slices.take(self.widths.len()).collect();
        match self.alternating {
            _ if own.len() == 1 => own.remove(0),
            None => Tensor::cat(own, 1),
            Some(dim) => {
                let rows = own[0].dims()[0];
                let heads = own.into_iter().zip(&self.widths).map(|(x, width)| x.reshape([rows, width / dim, dim]));
                Tensor::cat(heads.collect(), 2).reshape([rows, self.width()])
            }
        }
    }
}

impl Linear {
    pub(crate) fn new(index: usize, module: &Module, slices: Slices) -> Self {
        Self { index, weight: module.weight(), bias: module.bias.then(|| module.bias()), slices }
    }

    /// x W^T + b.
    pub(crate) fn forward(&self, weights: Weights<'_>, x: &Tensor<2>) -> Result<Tensor<2>> {
        let weight = weights.matrix(&self.weight)?.transpose();
        let [rows, out] = [x.dims()[0], weight.dims()[1]];
        Ok(match &self.bias {
            Some(bias) => add_product(weights.vector(bias).expand([rows, out]), x.clone(), weight),
            None => product(x.clone(), weight),
        })
    }

    /// stream + x W^T + b.
    pub(crate) fn add_forward(&self, weights: Weights<'_>, stream: Tensor<2>, x: Tensor<2>) -> Result<Tensor<2>> {
        let stream = match &self.bias {
            Some(bias) => stream + weights.vector(bias),
            None => stream,
        };
        Ok(add_product(stream, x, weights.matrix(&self.weight)?.transpose()))
    }

    /// Reports the tap, and goes on to the gradient at x, d W; none where the backward pass ends here. `input` makes x,
    /// and is called only if it is asked for.
    pub(crate) fn backward(
        &self,
        pass: &mut Pass<'_>,
        input: &dyn Fn() -> Tensor<2>,
        d: Tensor<2>,
    ) -> Result<Option<Tensor<2>>> {
        self.report(pass, &Input::new(input), &d)?;
        pass.goes_below(self.index).then(|| Ok(product(d, pass.weights.matrix(&self.weight)?))).transpose()
    }

    /// How the output moves where x moves by `moved` and W by the direction's V: moved W^T + x V^T; none where neither does.
    pub(crate) fn tangent(
        &self,
        direction: Direction<'_>,
        input: &dyn Fn() -> Tensor<2>,
        moved: Option<Tensor<2>>,
    ) -> Result<Option<Tensor<2>>> {
        self.moved(direction, &Input::new(input), moved.as_ref())
    }

    fn moved(
        &self,
        direction: Direction<'_>,
        input: &Input<'_>,
        moved: Option<&Tensor<2>>,
    ) -> Result<Option<Tensor<2>>> {
        let through = match moved {
            Some(moved) => Some(product(moved.clone(), direction.weights.matrix(&self.weight)?.transpose())),
            None => None,
        };
        let Some(v) = direction.of(self.index) else { return Ok(through) };
        let x = input.of(self.bias.is_some());
        Ok(Some(match through {
            Some(through) => add_product(through, x, v.transpose()),
            None => product(x, v.transpose()),
        }))
    }

    /// Reports the tap alone.
    pub(crate) fn report_at(&self, pass: &mut Pass<'_>, input: &dyn Fn() -> Tensor<2>, d: &Tensor<2>) -> Result<()> {
        self.report(pass, &Input::new(input), d)
    }

    /// d W.
    pub(crate) fn through(&self, weights: Weights<'_>, d: Tensor<2>) -> Result<Tensor<2>> {
        Ok(product(d, weights.matrix(&self.weight)?))
    }

    /// [1, out]
    pub(crate) fn bias(&self, weights: Weights<'_>) -> Option<Tensor<2>> {
        self.bias.as_ref().map(|bias| weights.vector(bias))
    }

    fn report(&self, pass: &mut Pass<'_>, input: &Input<'_>, d: &Tensor<2>) -> Result<()> {
        match pass.goal.asks_for(self.index) {
            true => (pass.visit)(Event::Map(self.index, pass.tokens, input.of(self.bias.is_some()), d)),
            false => Ok(()),
        }
    }
}

/// Maps that read one input, such as those that make queries, keys and values.
#[derive(Debug, Clone)]
pub(crate) struct Maps(pub(crate) Vec<Linear>);

impl Maps {
    /// Everything that they make of x, in order.
    pub(crate) fn forward(&self, weights: Weights<'_>, x: &Tensor<2>) -> Result<Vec<Tensor<2>>> {
        let mut made = Vec::new();
        for map in &self.0 {
            made.extend(map.slices.split(map.forward(weights, x)?));
        }
        Ok(made)
    }

    /// How each of those moves, as [`Linear::tangent`] has it.
    pub(crate) fn tangent(
        &self,
        direction: Direction<'_>,
        input: &dyn Fn() -> Tensor<2>,
        moved: Option<Tensor<2>>,
    ) -> Result<Vec<Option<Tensor<2>>>> {
        let (input, mut made) = (Input::new(input), Vec::new());
        for map in &self.0 {
            match map.moved(direction, &input, moved.as_ref())? {
                Some(moved) => made.extend(map.slices.split(moved).into_iter().map(Some)),
                None => made.extend(map.slices.widths.iter().map(|_| None)),
            }
        }
        Ok(made)
    }

    /// Reports their taps, last to first, and goes on from the gradients at what they made to that at x; none where the
    /// backward pass ends here.
    pub(crate) fn backward(
        &self,
        pass: &mut Pass<'_>,
        input: &dyn Fn() -> Tensor<2>,
        d: impl IntoIterator<Item = Tensor<2>>,
    ) -> Result<Option<Tensor<2>>> {
        let (input, mut d) = (Input::new(input), d.into_iter());
        let d: Vec<_> = self.0.iter().map(|map| map.slices.join(&mut d)).collect();
        for (map, d) in self.0.iter().zip(&d).rev() {
            map.report(pass, &input, d)?;
        }
        if !pass.goes_below(self.0[0].index) {
            return Ok(None);
        }
        let mut sum = None;
        for (map, d) in self.0.iter().zip(d) {
            let weight = pass.weights.matrix(&map.weight)?;
            sum = Some(match sum {
                Some(sum) => add_product(sum, d, weight),
                None => product(d, weight),
            });
        }
        Ok(sum)
    }
}

/// What maps read, made once, when the first of them asks.
struct Input<'a> {
    make: &'a dyn Fn() -> Tensor<2>,
    plain: OnceCell<Tensor<2>>,
    with_one: OnceCell<Tensor<2>>,
}

impl<'a> Input<'a> {
    fn new(make: &'a dyn Fn() -> Tensor<2>) -> Self {
        Self { make, plain: OnceCell::new(), with_one: OnceCell::new() }
    }

    /// x, or [x | 1] for a map with a bias, which is the last column of W.
    fn of(&self, bias: bool) -> Tensor<2> {
        let plain = || self.plain.get_or_init(self.make).clone();
        if bias { self.with_one.get_or_init(|| append_one(plain())).clone() } else { plain() }
    }
}
