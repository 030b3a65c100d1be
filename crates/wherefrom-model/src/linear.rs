//! Linear maps with their adapters, forward and backward; each reports its own tap.

use std::cell::OnceCell;

use anyhow::Result;
use burn::tensor::Tensor;
use wherefrom_linalg::kernels::{add_product, append_one, product};

use crate::tangent::Direction;
use crate::taps::{Event, Goal, Pass};
use crate::weights::Weights;

/// y = x W^T + b + sum over its adapters of s (x A^T) B^T.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    /// Its number among the modules, if it is one.
    pub(crate) number: Option<usize>,
    /// Number of the first module from the first map on that reads the same input.
    pub(crate) first: usize,
    pub(crate) weight: String,
    pub(crate) bias: Option<String>,
    pub(crate) slices: Slices,
    pub(crate) adapters: Vec<LowRank>,
}

/// What an adapter adds to a map: s (x A^T) B^T, with A [r, in] and B [out, r].
#[derive(Debug, Clone)]
pub(crate) struct LowRank {
    pub(crate) a: Half,
    pub(crate) b: Half,
    pub(crate) scale: f32,
}

/// A or B.
#[derive(Debug, Clone)]
pub(crate) struct Half {
    /// Its number among the modules, if it is one.
    pub(crate) number: Option<usize>,
    pub(crate) weight: String,
}

impl LowRank {
    /// s (x A^T)
    fn inner(&self, weights: Weights<'_>, x: &Tensor<2>) -> Result<Tensor<2>> {
        Ok(product(x.clone(), weights.matrix(&self.a.weight)?.transpose()) * self.scale)
    }

    /// s (d B)
    fn back(&self, weights: Weights<'_>, d: Tensor<2>) -> Result<Tensor<2>> {
        Ok(product(d * self.scale, weights.matrix(&self.b.weight)?))
    }

    /// How s (x A^T) B^T moves where x moves by `moved`, and A and B by the direction's V:
    /// s (moved A^T + x V_A^T) B^T + s (x A^T) V_B^T.
    fn tangent(
        &self,
        direction: Direction<'_>,
        input: &Input<'_>,
        moved: Option<&Tensor<2>>,
    ) -> Result<Option<Tensor<2>>> {
        let weights = direction.weights;
        let of = |half: &Half| half.number.and_then(|number| direction.of(number));
        let through = moved.map(|moved| self.inner(weights, moved)).transpose()?;
        let inner = plus(through, of(&self.a).map(|v| product(input.of(false), v.transpose()) * self.scale));
        let through = match inner {
            Some(inner) => Some(product(inner, weights.matrix(&self.b.weight)?.transpose())),
            None => None,
        };
        let own = match of(&self.b) {
            Some(v) => Some(product(self.inner(weights, &input.of(false))?, v.transpose())),
            None => None,
        };
        Ok(plus(through, own))
    }
}

/// x + y, where what is none is zero.
fn plus(x: Option<Tensor<2>>, y: Option<Tensor<2>>) -> Option<Tensor<2>> {
    match (x, y) {
        (Some(x), Some(y)) => Some(x + y),
        (x, y) => x.or(y),
    }
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
    /// Whether a tap of it or of its adapters is asked for: all of them need its input.
    pub(crate) fn is_asked_for(&self, goal: Goal<'_>) -> bool {
        let adapters = self.adapters.iter().flat_map(|adapter| [adapter.a.number, adapter.b.number]);
        adapters.chain([self.number]).flatten().any(|number| goal.asks_for(number))
    }

    /// x W^T + b, and what adapters add.
    pub(crate) fn forward(&self, weights: Weights<'_>, x: &Tensor<2>) -> Result<Tensor<2>> {
        let y = match &self.bias {
            Some(bias) if !weights.reads_once(x) => {
                let weight = weights.matrix(&self.weight)?.transpose();
                let [rows, out] = [x.dims()[0], weight.dims()[1]];
                add_product(weights.vector(bias).expand([rows, out]), x.clone(), weight)
            }
            Some(bias) => weights.product(x, &self.weight)? + weights.vector(bias),
            None => weights.product(x, &self.weight)?,
        };
        self.adapted(weights, y, x)
    }

    /// stream + x W^T + b, and what adapters add.
    pub(crate) fn add_forward(&self, weights: Weights<'_>, stream: Tensor<2>, x: Tensor<2>) -> Result<Tensor<2>> {
        let stream = match &self.bias {
            Some(bias) => stream + weights.vector(bias),
            None => stream,
        };
        let stream = self.adapted(weights, stream, &x)?;
        if weights.reads_once(&x) {
            return Ok(stream + weights.product(&x, &self.weight)?);
        }
        Ok(add_product(stream, x, weights.matrix(&self.weight)?.transpose()))
    }

    /// y + sum over adapters of s (x A^T) B^T.
    fn adapted(&self, weights: Weights<'_>, mut y: Tensor<2>, x: &Tensor<2>) -> Result<Tensor<2>> {
        for adapter in &self.adapters {
            y = add_product(y, adapter.inner(weights, x)?, weights.matrix(&adapter.b.weight)?.transpose());
        }
        Ok(y)
    }

    /// Reports the taps, and goes on to the gradient at x, d W; none where the backward pass ends here. `input` makes x,
    /// and is called only if it is asked for.
    pub(crate) fn backward(
        &self,
        pass: &mut Pass<'_>,
        input: &dyn Fn() -> Tensor<2>,
        d: Tensor<2>,
    ) -> Result<Option<Tensor<2>>> {
        let own = std::slice::from_ref(self);
        report(own, pass, &Input::new(input), std::slice::from_ref(&d))?;
        if pass.goes_below(self.first) { through(own, pass.weights, [d]) } else { Ok(None) }
    }

    /// Reports the taps alone.
    pub(crate) fn report_at(&self, pass: &mut Pass<'_>, input: &dyn Fn() -> Tensor<2>, d: &Tensor<2>) -> Result<()> {
        report(std::slice::from_ref(self), pass, &Input::new(input), std::slice::from_ref(d))
    }

    /// d W, and what goes through adapters.
    pub(crate) fn through(&self, weights: Weights<'_>, d: Tensor<2>) -> Result<Tensor<2>> {
        Ok(through(std::slice::from_ref(self), weights, [d])?.expect("one map at least"))
    }

    /// [1, out]
    pub(crate) fn bias(&self, weights: Weights<'_>) -> Option<Tensor<2>> {
        self.bias.as_ref().map(|bias| weights.vector(bias))
    }

    /// How the output moves where x moves by `moved` and W by the direction's V: moved W^T + x V^T, and what adapters add;
    /// none where neither does.
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
        let mut moved_output = match self.number.and_then(|number| direction.of(number)) {
            None => through,
            Some(v) => {
                let x = input.of(self.bias.is_some());
                Some(match through {
                    Some(through) => add_product(through, x, v.transpose()),
                    None => product(x, v.transpose()),
                })
            }
        };
        for adapter in &self.adapters {
            moved_output = plus(moved_output, adapter.tangent(direction, input, moved)?);
        }
        Ok(moved_output)
    }
}

/// Reports the taps of maps that read one input, last module to first, given the gradients d at their outputs.
///
/// The tap of B is of x A^T and s d, that of A of x and s (d B): s stands once in each.
fn report(maps: &[Linear], pass: &mut Pass<'_>, input: &Input<'_>, d: &[Tensor<2>]) -> Result<()> {
    let (weights, goal, tokens) = (pass.weights, pass.goal, pass.tokens);
    let asked = |number: Option<usize>| number.filter(|&number| goal.asks_for(number));
    for (map, d) in maps.iter().zip(d).rev() {
        if let Some(number) = asked(map.number) {
            (pass.visit)(Event::Map(number, tokens, input.of(map.bias.is_some()), d))?;
        }
        for LowRank { a, b, scale } in map.adapters.iter().rev() {
            if let Some(number) = asked(b.number) {
                let inner = product(input.of(false), weights.matrix(&a.weight)?.transpose());
                (pass.visit)(Event::Map(number, tokens, inner, &(d.clone() * *scale)))?;
            }
        }
    }
    for (map, d) in maps.iter().zip(d).rev() {
        for adapter in map.adapters.iter().rev() {
            if let Some(number) = asked(adapter.a.number) {
                (pass.visit)(Event::Map(number, tokens, input.of(false), &adapter.back(weights, d.clone())?))?;
            }
        }
    }
    Ok(())
}

/// The gradient at what maps read, given those at their outputs: sum of d W + s (d B) A.
fn through(maps: &[Linear], weights: Weights<'_>, d: impl IntoIterator<Item = Tensor<2>>) -> Result<Option<Tensor<2>>> {
    let mut sum = None;
    let mut add = |d: Tensor<2>, weight: &str| -> Result<()> {
        let weight = weights.matrix(weight)?;
        sum = Some(match sum.take() {
            Some(sum) => add_product(sum, d, weight),
            None => product(d, weight),
        });
        Ok(())
    };
    for (map, d) in maps.iter().zip(d) {
        add(d.clone(), &map.weight)?;
        for adapter in &map.adapters {
            add(adapter.back(weights, d.clone())?, &adapter.a.weight)?;
        }
    }
    Ok(sum)
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
        report(&self.0, pass, &input, &d)?;
        if pass.goes_below(self.0[0].first) { through(&self.0, pass.weights, d) } else { Ok(None) }
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
