//! Chosen elements of the gradient of each example of a batch.

use burn::tensor::{Int, Tensor, TensorData};
use rayon::prelude::*;

use super::cpu::{contiguous, is_cpu, values};
use super::examples::{products_of, workers};
use super::product::{Accumulate, MatrixRef, View, accumulate};

/// The elements of d_z^T a_z at `places`, row-major in `[out, in]`, for each example z: handed to `visit` with its state.
///
/// d `[batch * tokens, out]`, a `[batch * tokens, in]`, a state for each example of the batch.
pub fn picked_products<S: Send>(
    places: &[u32],
    d: Tensor<2>,
    a: Tensor<2>,
    states: &mut [S],
    visit: impl Fn(&mut S, &[f32]) + Sync,
) {
    let ([rows, out], [other, inside], batch) = (d.dims(), a.dims(), states.len());
    assert!(rows == other && batch > 0 && rows.is_multiple_of(batch), "whole examples");
    assert!(places.iter().all(|&place| (place as usize) < out * inside), "places inside the product");
    if !is_cpu(&d.device()) {
        let indices: Vec<i32> = places.iter().map(|&place| place.cast_signed()).collect();
        let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [places.len()]), &d.device());
        let mut states = states.iter_mut();
        for products in products_of(&d, &a, batch) {
            let length = products.dims()[0];
            let picked = products.reshape([length, out * inside]).select(1, indices.clone());
            let picked: Vec<f32> = picked.into_data().try_into_vec().expect("float32 as it was made");
            for (picked, state) in picked.chunks_exact(places.len()).zip(&mut states) {
                visit(state, picked);
            }
        }
        return;
    }
    let (d, a) = (contiguous(d), contiguous(a));
    let (d, a) = (values(&d), values(&a));
    let (workers, parallelism) = workers(out, inside, batch);
    let (tokens, share) = (rows / batch, batch.div_ceil(workers));
    (states.par_chunks_mut(share))
        .zip(d.par_chunks(share * tokens * out).zip(a.par_chunks(share * tokens * inside)))
        .for_each(|(states, (d, a))| {
            let mut product = vec![0.0f32; out * inside];
            let mut picked = vec![0.0f32; places.len()];
            let examples = d.chunks_exact(tokens * out).zip(a.chunks_exact(tokens * inside));
            for (state, (d, a)) in states.iter_mut().zip(examples) {
                let (d, a) = (MatrixRef::rows(d, tokens, out, out), MatrixRef::rows(a, tokens, inside, inside));
                let mut view = View::rows(&mut product, out, inside);
                accumulate(&mut view, &d.transposed(), &a, Accumulate::Replace, parallelism);
                picked.iter_mut().zip(places).for_each(|(value, &place)| *value = product[place as usize]);
                visit(state, &picked);
            }
        });
}
