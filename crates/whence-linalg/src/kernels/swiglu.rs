//! The gated activation of Llama's MLP, and its derivative.

use burn::tensor::{
    Tensor,
    activation::{sigmoid as burn_sigmoid, silu},
};
use rayon::prelude::*;

use super::cpu::{contiguous, is_cpu, rows_per_task, sigmoid, tensor, values, values_mut, vectorised, wrap, writable};

/// silu(gate) * up, with silu(x) = x sigmoid(x).
///
/// gate, up [rows, width] -> [rows, width]
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    if !is_cpu(&gate.device()) {
        return silu(gate) * up;
    }
    let shape = gate.dims();
    let (gate, up) = (contiguous(gate), contiguous(up));
    let mut output = vec![0.0f32; shape[0] * shape[1]];
    let task = rows_per_task(shape[0], shape[1]) * shape[1].max(1);
    output.par_chunks_mut(task).zip(values(&gate).par_chunks(task)).zip(values(&up).par_chunks(task)).for_each(
        |((output, gate), up)| {
            vectorised(
                #[inline(always)]
                || {
                    for ((o, &g), &u) in output.iter_mut().zip(gate).zip(up) {
                        *o = g * sigmoid(g) * u;
                    }
                },
            );
        },
    );
    tensor(output, shape)
}

/// d_gate = d * up * s (1 + gate (1 - s)), d_up = d * gate * s, with s = sigmoid(gate).
///
/// d [rows, width] gradient of the product -> (d_gate, d_up), both [rows, width]
pub fn swiglu_backward(d: Tensor<2>, gate: Tensor<2>, up: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    if !is_cpu(&gate.device()) {
        let s = burn_sigmoid(gate.clone());
        let d_gate = d.clone() * up * s.clone() * (gate.clone() * (s.clone().neg() + 1.0) + 1.0);
        return (d_gate, d * gate * s);
    }
    let shape = gate.dims();
    let (gate, up) = (contiguous(gate), contiguous(up));
    let mut d_up = writable(d);
    let mut d_gate = vec![0.0f32; shape[0] * shape[1]];
    let task = rows_per_task(shape[0], shape[1]) * shape[1].max(1);
    d_gate
        .par_chunks_mut(task)
        .zip(values_mut(&mut d_up).par_chunks_mut(task))
        .zip(values(&gate).par_chunks(task))
        .zip(values(&up).par_chunks(task))
        .for_each(|(((d_gate, d_up), gate), up)| {
            vectorised(
                #[inline(always)]
                || {
                    for (((dg, du), &g), &u) in d_gate.iter_mut().zip(d_up).zip(gate).zip(up) {
                        let (d, s) = (*du, sigmoid(g));
                        *dg = d * u * s * (1.0 + g * (1.0 - s));
                        *du = d * g * s;
                    }
                },
            );
        });
    (tensor(d_gate, shape), wrap(d_up))
}
