//! A training run backwards: from the gradient of a function f of its last weights to the gradient at the weights that it
//! began with, and at the weight of each of its examples.
//!
//! ```text
//! a step    (W, m, v)  ->  (W', m', v')          AdamW with g(W) = gradient of sum over its rows n of w_n L_n / targets
//! backwards  df/dm, df/dv, df/dg                 from df/dW', df/dm', df/dv': see AdamW::back
//!            df/dW      =  what comes around g  +  H u / targets             u = df/dg, H = Hessian of sum w_n L_n at W
//!            df/dw_n   +=  <u, grad L_n> / targets
//! ```
//!
//! Every parameter trains, so u has them all. Both derivatives along u are those of the same central differences:
//!
//! ```text
//! D(h)   =  (F(h) - F(-h)) / 2 h                       F(h) = gradient of sum w_n L_n, and L_n, at W + h u
//! dF/dh  =  (4 D(h) - D(2 h)) / 3  +  O(h^4)
//! ```

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use burn::tensor::{Tensor, TensorData};
use wherefrom_model::{Model, Parameters};

use crate::course::{Course, Learner};

/// Numbers by parameter, row-major.
pub type Values = BTreeMap<String, Vec<f64>>;

/// The gradient of f at weights and moments between two steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Adjoint {
    /// At the weights.
    pub weights: Values,
    /// At the running means of the gradient.
    pub first: Values,
    /// At those of its square.
    pub second: Values,
}

impl Adjoint {
    /// Behind the last step: f depends on the weights alone.
    pub fn new(weights: Values) -> Self {
        let zeros: Values = weights.iter().map(|(name, values)| (name.clone(), vec![0.0; values.len()])).collect();
        Self { weights, first: zeros.clone(), second: zeros }
    }
}

/// A run before one of its steps, and the gradient of that step's summed loss.
#[derive(Debug, Clone)]
pub struct State {
    step: u64,
    learner: Learner,
    gradients: Parameters,
}

/// h |u| of the first differences. Shorter ones lose more of float32, longer ones more of what is not linear.
const REACH: f64 = 0.02;

/// How far D(2 h) may be from D(h), over its length: the error of order 4 is then some hundred times less. Where it is
/// farther, h is made as short as brings it to [`NEAR`].
const FAR: f64 = 0.01;
const NEAR: f64 = 0.002;

/// How often h is made shorter at most.
const ATTEMPTS: usize = 2;

/// H u, <u, grad L_n> of each row, and how far D(2 h) was from D(h).
struct Derivatives {
    curved: Values,
    slopes: Vec<f64>,
    apart: f64,
}

impl State {
    /// Number of the step that it is before.
    pub fn step(&self) -> u64 {
        self.step
    }
}

impl Course {
    /// Takes a step as [`Course::step`] does with all weights 1: the state before it.
    ///
    /// # Errors
    /// As [`Course::step`].
    pub fn advance(&self, learner: &mut Learner, step: u64) -> Result<State> {
        let before = learner.clone();
        let gradients = self.gradients(&learner.model, step, &|_| 1.0)?.0;
        self.take(learner, step, gradients.clone());
        Ok(State { step, learner: before, gradients })
    }

    /// A state and those before the next steps, made again from it: so many, or as many as there are.
    ///
    /// # Errors
    /// As [`Course::step`].
    pub fn states(&self, first: &State, count: u64) -> Result<Vec<State>> {
        let mut learner = first.learner.clone();
        (first.step..self.steps().min(first.step + count)).map(|step| self.advance(&mut learner, step)).collect()
    }

    /// Goes back over the step that a state is before: `adjoint` is that behind it, and then that before it. What the step adds to the derivative of
    /// f by the weight of each example that it reads.
    ///
    /// # Errors
    /// As [`Model::parameter_gradients`].
    pub fn back(&self, before: &State, adjoint: &mut Adjoint) -> Result<Vec<(u64, f64)>> {
        let State { step, learner, gradients } = before;
        let targets = self.targets(*step);
        let u = self.adam.back(*step, self.steps(), learner, gradients, targets, adjoint)?;
        let Derivatives { curved, slopes, .. } = self.along(&learner.model, *step, &u)?;
        for (name, values) in curved {
            let of_name = adjoint.weights.entry(name).or_default();
            of_name.iter_mut().zip(values).for_each(|(sum, value)| *sum += value / targets as f64);
        }
        Ok(self.numbers(*step).zip(slopes).map(|(example, slope)| (example, slope / targets as f64)).collect())
    }

    /// H u of a step's summed loss, and <u, grad L_n> of each of its rows.
    fn along(&self, model: &Model, step: u64, u: &Values) -> Result<Derivatives> {
        let length = norm(u.values().flatten().copied());
        if length == 0.0 {
            let slopes = vec![0.0; self.numbers(step).count()];
            return Ok(Derivatives { curved: Values::new(), slopes, apart: 0.0 });
        }
        let mut h = REACH / length;
        let mut found = self.derivatives(model, step, u, h)?;
        for _ in 0..ATTEMPTS {
            if found.apart <= FAR {
                break;
            }
            h *= (NEAR / found.apart).sqrt().max(0.1);
            let again = self.derivatives(model, step, u, h)?;
            if again.apart >= found.apart {
                // What is left is the rounding of float32.
                break;
            }
            found = again;
        }
        Ok(found)
    }

    fn derivatives(&self, model: &Model, step: u64, u: &Values, h: f64) -> Result<Derivatives> {
        let (mut curved, mut slopes) = self.difference(model, step, u, h)?;
        let (farther, slopes_farther) = self.difference(model, step, u, 2.0 * h)?;
        let differences = curved.values().flatten().zip(farther.values().flatten()).map(|(near, far)| far - near);
        let apart = norm(differences) / norm(curved.values().flatten().copied());
        let near = curved.values_mut().flatten().chain(&mut slopes);
        let far = farther.into_values().flatten().chain(slopes_farther);
        near.zip(far).for_each(|(near, far)| *near = (4.0 * *near - far) / 3.0);
        Ok(Derivatives { curved, slopes, apart })
    }

    /// D(h) of the gradient of a step's summed loss, and of the loss of each of its rows.
    fn difference(&self, model: &Model, step: u64, u: &Values, h: f64) -> Result<(Values, Vec<f64>)> {
        let (gradients, mut slopes) = self.gradients(&moved(model, u, h)?, step, &|_| 1.0)?;
        let (gradients_behind, losses_behind) = self.gradients(&moved(model, u, -h)?, step, &|_| 1.0)?;
        let slope = |ahead: f64, behind: f64| (ahead - behind) / (2.0 * h);
        slopes.iter_mut().zip(losses_behind).for_each(|(loss, behind)| *loss = slope(*loss, behind));
        let mut curved = Values::new();
        for (name, ahead) in gradients {
            let pairs = numbers(&ahead)?.into_iter().zip(numbers(&gradients_behind[&name])?);
            let values = pairs.map(|(ahead, behind)| slope(ahead.into(), behind.into())).collect();
            curved.insert(name, values);
        }
        Ok((curved, slopes))
    }
}

/// Euclidean.
fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// The model at W + h u.
fn moved(model: &Model, u: &Values, h: f64) -> Result<Model> {
    let mut moved = model.clone();
    for (name, u) in u {
        let Some(weight) = moved.parameters.get_mut(name) else { continue };
        let values = numbers(weight)?.into_iter().zip(u);
        let values: Vec<f32> = values.map(|(value, u)| (f64::from(value) + h * u) as f32).collect();
        *weight = Tensor::from_data(TensorData::new(values, weight.dims()), &model.device);
    }
    Ok(moved)
}

/// The numbers of a parameter.
pub(crate) fn numbers(tensor: &Tensor<2>) -> Result<Vec<f32>> {
    tensor.to_data().try_into_vec().map_err(|error| anyhow!("{error:?}"))
}
