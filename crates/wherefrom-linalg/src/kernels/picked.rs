//! Chosen elements of the gradient of each example of a batch.

use burn::tensor::{Int, Tensor, TensorData};

use super::cpu::is_cpu;
use super::examples::{each_product, products_of};
use super::ragged::Ragged;

/// The elements of d_z^T a_z at `places`, row-major in `[out, in]`, for each example z: handed to `visit` with its state.
///
/// d `[rows, out]`, a `[rows, in]`, a state for each example.
pub fn picked_products<S: Send>(
    places: &[u32],
    d: Tensor<2>,
    a: Tensor<2>,
    examples: &Ragged,
    states: &mut [S],
    visit: impl Fn(&mut S, &[f32]) + Sync,
) {
    let ([rows, out], [other, inside]) = (d.dims(), a.dims());
    assert!(rows == other && rows == examples.rows(), "a row for each token of the examples");
    assert!(places.iter().all(|&place| (place as usize) < out * inside), "places inside the product");
    if !is_cpu(&d.device()) {
        let indices: Vec<i32> = places.iter().map(|&place| place.cast_signed()).collect();
        let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [places.len()]), &d.device());
        let mut states = states.iter_mut();
        for products in products_of(&d, &a, examples) {
            let length = products.dims()[0];
            let picked = products.reshape([length, out * inside]).select(1, indices.clone());
            let picked: Vec<f32> = picked.into_data().try_into_vec().expect("float32 as it was made");
            for (picked, state) in picked.chunks_exact(places.len()).zip(&mut states) {
                visit(state, picked);
            }
        }
        return;
    }
    each_product(d, a, examples, states, |state, product| {
        let picked: Vec<f32> = places.iter().map(|&place| product[place as usize]).collect();
        visit(state, &picked);
    });
}
