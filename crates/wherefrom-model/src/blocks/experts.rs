//! A mixture of experts: a router has each token seen by some of many MLPs, and weighs what they make of it.
//!
//! ```text
//! y_t = sum over the experts e chosen for token t of w_te mlp_e(x_t) + sigmoid(g . x_t) shared(x_t)
//! ```
//!
//! An expert takes the rows of its own tokens and no other, forward and back, so that work grows with those that are in use.

use std::cell::OnceCell;
use std::sync::Arc;

use anyhow::Result;
use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use wherefrom_linalg::kernels::{round_like, widen};

use super::mlp::{Computed, Mlp};
use super::routing::Routing;
use crate::batch::TokenRows;
use crate::linear::Linear;
use crate::tangent::Direction;
use crate::taps::Pass;
use crate::weights::Weights;

/// Experts of one block.
#[derive(Debug, Clone)]
pub(crate) struct Experts {
    /// From the input to a logit for each expert.
    pub(crate) router: Linear,
    pub(crate) experts: Vec<Mlp>,
    /// How many see a token.
    pub(crate) chosen: usize,
    /// Whether their weights are a softmax over them, or theirs of the softmax over all.
    pub(crate) normalised: bool,
    pub(crate) shared: Option<Shared>,
}

/// An expert that sees every token, and the map whose sigmoid weighs it.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) gate: Linear,
    pub(crate) mlp: Mlp,
}

/// What the backward pass needs: of each expert in use gate and up of its tokens.
#[derive(Clone)]
pub(crate) struct Mixed {
    routing: Arc<Routing>,
    places: Arc<OnDevice>,
    computed: Vec<Computed>,
    /// With the sigmoid [rows, 1].
    shared: Option<(Computed, Tensor<2>)>,
}

/// A routing as the device takes it: its entries are pairs of a token and an expert, by expert.
struct OnDevice {
    /// Row of each entry's token: [entries]
    rows: Tensor<1, Int>,
    /// Entry of each token's choices, one token after the other: [entries]
    entries: Tensor<1, Int>,
    /// [entries, 1]
    weights: Tensor<2>,
}

impl Experts {
    /// input [rows, hidden]
    pub(crate) fn forward(&self, weights: Weights<'_>, tokens: &TokenRows, input: &Tensor<2>) -> Result<Mixed> {
        let logits = host(self.router.forward(weights, input)?)?;
        let routing = Routing::new(&logits, self.experts.len(), self.chosen, self.normalised, tokens);
        let places = OnDevice::new(&routing, input);
        let own = input.clone().select(0, places.rows.clone());
        let computed = routing.parts.iter().map(|part| {
            self.experts[part.expert].forward(weights, &narrow(&own, part.entries.start, part.entries.len()))
        });
        let computed = computed.collect::<Result<_>>()?;
        let shared = self.shared.as_ref().map(|shared| {
            let gate = activation::sigmoid(shared.gate.forward(weights, input)?);
            anyhow::Ok((shared.mlp.forward(weights, input)?, gate))
        });
        Ok(Mixed { routing: Arc::new(routing), places: Arc::new(places), computed, shared: shared.transpose()? })
    }

    /// [rows, hidden]
    pub(crate) fn output(&self, weights: Weights<'_>, mixed: &Mixed) -> Result<Tensor<2>> {
        let made = self.made(weights, mixed)?;
        let output = self.by_token(Tensor::cat(made, 0) * mixed.places.weights.clone(), mixed);
        Ok(match (&self.shared, &mixed.shared) {
            (Some(shared), Some((computed, gate))) => {
                output + shared.mlp.output.forward(weights, &shared.mlp.inner(computed))? * gate.clone()
            }
            _ => output,
        })
    }

    /// What each expert in use makes of its tokens, without their weights.
    fn made(&self, weights: Weights<'_>, mixed: &Mixed) -> Result<Vec<Tensor<2>>> {
        let made = mixed.routing.parts.iter().zip(&mixed.computed).map(|(part, computed)| {
            let expert = &self.experts[part.expert];
            expert.output.forward(weights, &expert.inner(computed))
        });
        made.collect()
    }

    /// Sums over the choices of each token: [entries, width] -> [rows, width]
    fn by_token(&self, entries: Tensor<2>, mixed: &Mixed) -> Tensor<2> {
        let [count, width] = entries.dims();
        let rows = count / self.chosen;
        let by_choice = entries.select(0, mixed.places.entries.clone()).reshape([rows, self.chosen, width]);
        by_choice.sum_dim(1).reshape([rows, width])
    }

    /// How the output moves where the input moves by `moved`, and the maps with the direction. Which experts are chosen stays.
    pub(crate) fn tangent(
        &self,
        mixed: &Mixed,
        direction: Direction<'_>,
        input: &dyn Fn() -> Tensor<2>,
        moved: Option<Tensor<2>>,
    ) -> Result<Option<Tensor<2>>> {
        let (routing, places) = (&mixed.routing, &mixed.places);
        let (made, own_made) = (OnceCell::new(), OnceCell::new());
        let read = || made.get_or_init(input).clone();
        let own = || own_made.get_or_init(|| read().select(0, places.rows.clone()));
        let own_moved = moved.clone().map(|moved| moved.select(0, places.rows.clone()));
        let mut t_made = Vec::new();
        for (part, computed) in routing.parts.iter().zip(&mixed.computed) {
            let (first, count) = (part.entries.start, part.entries.len());
            let input = || narrow(own(), first, count);
            let moved = own_moved.as_ref().map(|moved| narrow(moved, first, count));
            t_made.push(self.experts[part.expert].tangent(computed, direction, &input, moved)?);
        }
        let mut sum = None;
        if t_made.iter().any(Option::is_some) {
            let zeros = |count: usize| {
                let width = t_made.iter().flatten().next().map_or(0, |t| t.dims()[1]);
                places.weights.clone().narrow(0, 0, count).zeros_like().expand([count, width])
            };
            let t_made: Vec<_> = (routing.parts.iter().zip(&t_made))
                .map(|(part, t)| t.clone().unwrap_or_else(|| zeros(part.entries.len())))
                .collect();
            sum = Some(Tensor::cat(t_made, 0) * places.weights.clone());
        }
        if let Some(t_logits) = self.router.tangent(direction, &read, moved.clone())? {
            let t_weights = routing.weights_tangent(&host(t_logits)?);
            let made = Tensor::cat(self.made(direction.weights, mixed)?, 0);
            let by_weight = made.clone() * column(t_weights, &made);
            sum = Some(sum.map_or_else(|| by_weight.clone(), |sum| sum + by_weight.clone()));
        }
        let output = sum.map(|sum| self.by_token(sum, mixed));
        let (Some(shared), Some((computed, gate))) = (&self.shared, &mixed.shared) else { return Ok(output) };
        let t_made = shared.mlp.tangent(computed, direction, &read, moved.clone())?;
        let t_made = t_made.map(|t_made| t_made * gate.clone());
        let t_gate = shared.gate.tangent(direction, &read, moved)?;
        let by_gate = t_gate.map(|t_gate| {
            let t_gate = t_gate * gate.clone() * (gate.clone().neg() + 1.0);
            let made = shared.mlp.output.forward(direction.weights, &shared.mlp.inner(computed))?;
            anyhow::Ok(made * t_gate)
        });
        let terms = [output, t_made, by_gate.transpose()?];
        Ok(terms.into_iter().flatten().reduce(|sum, term| sum + term))
    }

    /// From the gradient at the output to that at the input; none where the backward pass ends here.
    pub(crate) fn backward(
        &self,
        mixed: Mixed,
        d: Tensor<2>,
        input: &dyn Fn() -> Tensor<2>,
        pass: &mut Pass<'_>,
    ) -> Result<Option<Tensor<2>>> {
        let (routing, places) = (&mixed.routing, &mixed.places);
        let (made, own_made) = (OnceCell::new(), OnceCell::new());
        let read = || made.get_or_init(input).clone();
        let own = || own_made.get_or_init(|| read().select(0, places.rows.clone()));
        let mut d_shared = None;
        if let (Some(shared), Some((computed, gate))) = (&self.shared, mixed.shared.clone()) {
            let made = shared.mlp.weighted_backward(computed, d.clone(), gate.clone(), &read, pass)?;
            let Some((d_input, d_gate)) = made else { return Ok(None) };
            let d_gate = d_gate * gate.clone() * (gate.neg() + 1.0);
            let Some(by_gate) = shared.gate.backward(pass, &read, d_gate)? else { return Ok(None) };
            d_shared = Some(d_input + by_gate);
        }

        let d_own = d.select(0, places.rows.clone());
        let (mut d_inputs, mut d_weights) = (Vec::new(), Vec::new());
        for (part, computed) in routing.parts.iter().zip(mixed.computed.clone()).rev() {
            let (first, count) = (part.entries.start, part.entries.len());
            let input = || narrow(own(), first, count);
            let [d, weights] = [&d_own, &places.weights].map(|x| narrow(x, first, count));
            let expert = &self.experts[part.expert];
            let made = expert.weighted_backward(computed, d, weights, &input, &mut pass.among(&part.tokens))?;
            let Some((d_input, d_weight)) = made else { return Ok(None) };
            d_inputs.push(d_input);
            d_weights.push(d_weight);
        }
        if !self.router.is_asked_for(pass.goal) && !pass.goes_below(self.router.first) {
            return Ok(None);
        }
        d_inputs.reverse();
        d_weights.reverse();
        let d_weights = host(Tensor::cat(d_weights, 0))?;
        let logits = routing.logits_backward(&d_weights);
        let size = [logits.len() / self.experts.len(), self.experts.len()];
        let d_logits = Tensor::from_data(TensorData::new(logits, size), &d_own.device());
        let d_logits = round_like(d_logits, &d_own);
        let Some(by_router) = self.router.backward(pass, &read, d_logits)? else { return Ok(None) };
        let by_expert = self.by_token(Tensor::cat(d_inputs, 0), &mixed) + by_router;
        Ok(Some(match d_shared {
            Some(d_shared) => by_expert + d_shared,
            None => by_expert,
        }))
    }
}

impl Mlp {
    /// Of an MLP whose output is multiplied by w, a weight [rows, 1] for each row: the gradients at its input and at w. With
    /// y = w W h, dL/dw = d . W h = (d W) . h, so that the output is not needed again.
    fn weighted_backward(
        &self,
        computed: Computed,
        d: Tensor<2>,
        w: Tensor<2>,
        input: &dyn Fn() -> Tensor<2>,
        pass: &mut Pass<'_>,
    ) -> Result<Option<(Tensor<2>, Tensor<2>)>> {
        let inner = self.inner(&computed);
        self.output.report_at(pass, &|| inner.clone(), &(d.clone() * w.clone()))?;
        if !pass.goes_below(self.output.first) {
            return Ok(None);
        }
        let through = self.output.through(pass.weights, d.clone())?;
        let mut d_w = (widen(through.clone()) * widen(inner)).sum_dim(1);
        if let Some(bias) = self.output.bias(pass.weights) {
            d_w = d_w + (widen(d) * widen(bias)).sum_dim(1);
        }
        let d_w = round_like(d_w, &w);
        Ok(self.inner_backward(computed, through * w, input, pass)?.map(|d_input| (d_input, d_w)))
    }
}

impl OnDevice {
    fn new(routing: &Routing, like: &Tensor<2>) -> Self {
        let device = like.device();
        let rows = routing.entries.iter().map(|&choice| choice / routing.chosen);
        let mut entries = vec![0; routing.entries.len()];
        routing.entries.iter().enumerate().for_each(|(entry, &choice)| entries[choice] = entry);
        Self {
            rows: integers(rows, &device),
            entries: integers(entries.into_iter(), &device),
            weights: column(routing.entries.iter().map(|&choice| routing.weights[choice]).collect(), like),
        }
    }
}

fn narrow(x: &Tensor<2>, first: usize, count: usize) -> Tensor<2> {
    x.clone().narrow(0, first, count)
}

fn host(x: Tensor<2>) -> Result<Vec<f32>> {
    widen(x).into_data().try_into_vec().map_err(|error| anyhow::anyhow!("{error:?}"))
}

/// [n, 1], of the type of `like`.
fn column(values: Vec<f32>, like: &Tensor<2>) -> Tensor<2> {
    let count = values.len();
    round_like(Tensor::from_data(TensorData::new(values, [count, 1]), &like.device()), like)
}

fn integers(values: impl Iterator<Item = usize>, device: &Device) -> Tensor<1, Int> {
    let values: Vec<_> = values.map(|value| value as i32).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}
