//! The nonlinearities of an MLP, alone or as a gate, and their derivatives.

use burn::tensor::{Tensor, activation};
use rayon::prelude::*;

use super::cpu::{contiguous, erf, exp, is_cpu, rows_per_task, tensor, values, values_mut, vectorised, wrap, writable};
use super::precision::{reduced, round, widen};

/// f, applied value by value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x sigmoid(x).
    Silu,
    /// x Phi(x), Phi the normal distribution function.
    Gelu,
    /// x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3): GELU by way of tanh, as GPT-2 has it.
    GeluTanh,
    /// x sigmoid(1.702 x).
    QuickGelu,
    /// max(x, 0).
    Relu,
}

/// 2 sqrt(2 / pi): 2 u = TWO_ROOT (x + CUBE x^3).
const TWO_ROOT: f32 = 1.595_769;
const CUBE: f32 = 0.044_715;
const QUICK: f32 = 1.702;

/// Runs `$body` with `$function` being x -> (f(x), f'(x)), once for each activation so that loops vectorise.
macro_rules! with_function {
    ($activation:expr, $function:ident => $body:expr) => {
        match $activation {
            Activation::Silu => {
                let $function = silu;
                $body
            }
            Activation::Gelu => {
                let $function = gelu;
                $body
            }
            Activation::GeluTanh => {
                let $function = gelu_tanh;
                $body
            }
            Activation::QuickGelu => {
                let $function = quick_gelu;
                $body
            }
            Activation::Relu => {
                let $function = relu;
                $body
            }
        }
    };
}

/// f(x).
///
/// x [rows, width] -> [rows, width]
pub fn activate(x: Tensor<2>, activation: Activation) -> Tensor<2> {
    if let Some(dtype) = reduced(&x) {
        return round(activate(widen(x), activation), dtype);
    }
    if !is_cpu(&x.device()) {
        return value_and_slope(x, activation).0;
    }
    let task = task(&x);
    let mut buffer = writable(x);
    with_function!(activation, f => values_mut(&mut buffer).par_chunks_mut(task).for_each(|x| {
        vectorised(
            #[inline(always)]
            || x.iter_mut().for_each(|x| *x = f(*x).0),
        );
    }));
    wrap(buffer)
}

/// d f'(x).
///
/// d, the gradient at f(x), and x [rows, width] -> [rows, width]
pub fn activate_backward(d: Tensor<2>, x: Tensor<2>, activation: Activation) -> Tensor<2> {
    if let Some(dtype) = reduced(&d) {
        return round(activate_backward(widen(d), widen(x), activation), dtype);
    }
    if !is_cpu(&x.device()) {
        return d * value_and_slope(x, activation).1;
    }
    let task = task(&x);
    let (mut buffer, x) = (writable(d), contiguous(x));
    with_function!(activation, f => {
        values_mut(&mut buffer).par_chunks_mut(task).zip(values(&x).par_chunks(task)).for_each(|(d, x)| {
            vectorised(
                #[inline(always)]
                || d.iter_mut().zip(x).for_each(|(d, &x)| *d *= f(x).1),
            );
        });
    });
    wrap(buffer)
}

/// f(gate) up.
///
/// gate, up [rows, width] -> [rows, width]
pub fn gated(gate: Tensor<2>, up: Tensor<2>, activation: Activation) -> Tensor<2> {
    if let Some(dtype) = reduced(&gate) {
        return round(gated(widen(gate), widen(up), activation), dtype);
    }
    if !is_cpu(&gate.device()) {
        return value_and_slope(gate, activation).0 * up;
    }
    let (shape, task) = (gate.dims(), task(&gate));
    let (gate, up) = (contiguous(gate), contiguous(up));
    let mut output = vec![0.0f32; shape[0] * shape[1]];
    let inputs = values(&gate).par_chunks(task).zip(values(&up).par_chunks(task));
    with_function!(activation, f => output.par_chunks_mut(task).zip(inputs).for_each(|(output, (gate, up))| {
        vectorised(
            #[inline(always)]
            || {
                for ((o, &g), &u) in output.iter_mut().zip(gate).zip(up) {
                    *o = f(g).0 * u;
                }
            },
        );
    }));
    tensor(output, shape)
}

/// d_gate = d up f'(gate), d_up = d f(gate).
///
/// d [rows, width] gradient of the product -> (d_gate, d_up), both [rows, width]
pub fn gated_backward(d: Tensor<2>, gate: Tensor<2>, up: Tensor<2>, activation: Activation) -> (Tensor<2>, Tensor<2>) {
    if let Some(dtype) = reduced(&d) {
        let (d_gate, d_up) = gated_backward(widen(d), widen(gate), widen(up), activation);
        return (round(d_gate, dtype), round(d_up, dtype));
    }
    if !is_cpu(&gate.device()) {
        let (value, slope) = value_and_slope(gate, activation);
        return (d.clone() * up * slope, d * value);
    }
    let (shape, task) = (gate.dims(), task(&gate));
    let (gate, up) = (contiguous(gate), contiguous(up));
    let mut d_up = writable(d);
    let mut d_gate = vec![0.0f32; shape[0] * shape[1]];
    let inputs = values(&gate).par_chunks(task).zip(values(&up).par_chunks(task));
    let outputs = d_gate.par_chunks_mut(task).zip(values_mut(&mut d_up).par_chunks_mut(task));
    with_function!(activation, f => outputs.zip(inputs).for_each(|((d_gate, d_up), (gate, up))| {
        vectorised(
            #[inline(always)]
            || {
                for (((dg, du), &g), &u) in d_gate.iter_mut().zip(d_up).zip(gate).zip(up) {
                    let (d, (value, slope)) = (*du, f(g));
                    *dg = d * u * slope;
                    *du = d * value;
                }
            },
        );
    }));
    (tensor(d_gate, shape), wrap(d_up))
}

/// How [`gated`] moves where gate and up do: t_gate up f'(gate) + t_up f(gate).
///
/// All [rows, width] -> [rows, width]
pub fn gated_tangent(
    t_gate: Tensor<2>,
    t_up: Tensor<2>,
    gate: Tensor<2>,
    up: Tensor<2>,
    activation: Activation,
) -> Tensor<2> {
    if !is_cpu(&gate.device()) {
        let (value, slope) = value_and_slope(gate, activation);
        return t_gate * up * slope + t_up * value;
    }
    let task = task(&gate);
    let (gate, up, t_up) = (contiguous(gate), contiguous(up), contiguous(t_up));
    let mut buffer = writable(t_gate);
    let inputs = values(&gate).par_chunks(task).zip(values(&up).par_chunks(task)).zip(values(&t_up).par_chunks(task));
    with_function!(activation, f => values_mut(&mut buffer).par_chunks_mut(task).zip(inputs).for_each(
        |(t, ((gate, up), t_up))| {
            vectorised(
                #[inline(always)]
                || {
                    for (((t, &g), &u), &t_up) in t.iter_mut().zip(gate).zip(up).zip(t_up) {
                        let (value, slope) = f(g);
                        *t = *t * u * slope + t_up * value;
                    }
                },
            );
        },
    ));
    wrap(buffer)
}

/// Values of one task.
fn task(x: &Tensor<2>) -> usize {
    let [rows, width] = x.dims();
    rows_per_task(rows, width) * width.max(1)
}

/// x sigmoid(v), for v and dv/dx.
#[inline(always)]
fn times_sigmoid(x: f32, v: f32, dv: f32) -> (f32, f32) {
    let e = exp(-v);
    let s = 1.0 / (1.0 + e);
    // 1 - s is e s, whose digits do not cancel where s is nearly 1.
    (x * s, s * (1.0 + x * dv * (e * s)))
}

#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    times_sigmoid(x, x, 1.0)
}

#[inline(always)]
fn quick_gelu(x: f32) -> (f32, f32) {
    times_sigmoid(x, QUICK * x, QUICK)
}

#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    times_sigmoid(x, TWO_ROOT * (x + CUBE * x * x * x), TWO_ROOT * (1.0 + 3.0 * CUBE * x * x))
}

#[inline(always)]
fn gelu(x: f32) -> (f32, f32) {
    // 1 / sqrt(2 pi).
    const DENSITY: f32 = 0.398_942_3;
    let below = 0.5 + 0.5 * erf(x * std::f32::consts::FRAC_1_SQRT_2);
    (x * below, below + x * DENSITY * exp(-0.5 * x * x))
}

#[inline(always)]
fn relu(x: f32) -> (f32, f32) {
    if x > 0.0 { (x, 1.0) } else { (0.0, 0.0) }
}

/// (f(x), f'(x)) as burn operations.
fn value_and_slope(x: Tensor<2>, kind: Activation) -> (Tensor<2>, Tensor<2>) {
    let times_sigmoid = |x: Tensor<2>, v: Tensor<2>, dv: Tensor<2>| {
        let (s, rest) = (activation::sigmoid(v.clone()), activation::sigmoid(v.neg()));
        let slope = s.clone() * (x.clone() * dv * rest + 1.0);
        (x * s, slope)
    };
    match kind {
        Activation::Silu => times_sigmoid(x.clone(), x.clone(), x.ones_like()),
        Activation::QuickGelu => times_sigmoid(x.clone(), x.clone() * QUICK, x.ones_like() * QUICK),
        Activation::GeluTanh => {
            let square = x.clone() * x.clone();
            let v = (x.clone() + x.clone() * square.clone() * CUBE) * TWO_ROOT;
            times_sigmoid(x, v, (square * (3.0 * CUBE) + 1.0) * TWO_ROOT)
        }
        Activation::Gelu => {
            let below = (x.clone() * std::f32::consts::FRAC_1_SQRT_2).erf() * 0.5 + 0.5;
            let density = (x.clone() * x.clone() * -0.5).exp() * (0.5 * std::f32::consts::FRAC_2_SQRT_PI);
            let density = density * std::f32::consts::FRAC_1_SQRT_2;
            (x.clone() * below.clone(), below + x * density)
        }
        Activation::Relu => {
            let positive = x.clone().greater_elem(0.0).float();
            (x * positive.clone(), positive)
        }
    }
}
