//! The CPU path of every kernel against its burn path: on the CPU, or with the feature `wgpu` on the GPU.

use std::cell::RefCell;
use std::ops::Add;

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use wherefrom_linalg::kernels::*;
use wherefrom_linalg::random::{normal, uniform};
use wherefrom_linalg::test_support::with_burn_operations;

thread_local! {
    /// Where the running test's tensors are made.
    static DEVICE: RefCell<Device> = RefCell::new(Device::flex());
}

fn device() -> Device {
    DEVICE.with_borrow(Device::clone)
}

/// Values of a test, as a tensor where it is running.
struct Input {
    values: Vec<f32>,
    shape: [usize; 2],
}

impl Input {
    fn tensor(&self) -> Tensor<2> {
        Tensor::from_data(TensorData::new(self.values.clone(), self.shape), &device())
    }
}

impl Add<f32> for Input {
    type Output = Self;

    fn add(mut self, shift: f32) -> Self {
        self.values.iter_mut().for_each(|value| *value += shift);
        self
    }
}

/// Normal numbers.
fn random(seed: u64, shape: [usize; 2], scale: f32) -> Input {
    let n = shape.iter().product::<usize>() as u64;
    Input { values: (0..n).map(|i| scale * normal(seed, 0, i) as f32).collect(), shape }
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    widen(tensor).into_data().try_into_vec().unwrap()
}

/// Largest difference over the largest value.
fn error<const D: usize>(fast: Tensor<D>, plain: Tensor<D>) -> f32 {
    assert_eq!(fast.dims(), plain.dims());
    let (fast, plain) = (host(fast), host(plain));
    assert!(fast.iter().chain(&plain).all(|x| x.is_finite()));
    let scale = plain.iter().fold(1e-30f32, |m, x| m.max(x.abs()));
    fast.iter().zip(&plain).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / scale
}

/// The same of float32 values against float64 ones.
fn error_of<const D: usize>(found: Tensor<D>, exact: &[f64]) -> f64 {
    let found = host(found);
    assert!(found.len() == exact.len() && found.iter().all(|x| x.is_finite()));
    let scale = exact.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
    found.iter().zip(exact).map(|(&a, b)| (f64::from(a) - b).abs()).fold(0.0, f64::max) / scale
}

/// Runs `body` on both paths and returns (CPU path, burn path).
fn both<R>(body: impl Fn() -> R) -> (R, R) {
    let fast = body();
    #[cfg(feature = "wgpu")]
    DEVICE.set(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice));
    let plain = with_burn_operations(&body);
    DEVICE.set(Device::flex());
    (fast, plain)
}

// Widths that are no multiple of a vector, rows that span several tasks.
const SHAPE: [usize; 2] = [301, 149];

const ACTIVATIONS: [Activation; 5] =
    [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Relu];

#[test]
fn activation_paths_agree() {
    let (gate, up, d) = (random(1, SHAPE, 4.0), random(2, SHAPE, 2.0), random(3, SHAPE, 1.0));
    let agree = |fast, plain, what: &str, activation: Activation| {
        let off = error(fast, plain);
        assert!(off < 1e-6, "{what} of {activation:?}: off by {off:e} of the largest");
    };
    for activation in ACTIVATIONS {
        let (fast, plain) = both(|| activate(gate.tensor(), activation));
        agree(fast, plain, "value", activation);
        let (fast, plain) = both(|| activate_backward(d.tensor(), gate.tensor(), activation));
        agree(fast, plain, "slope", activation);
        let (fast, plain) = both(|| gated(gate.tensor(), up.tensor(), activation));
        agree(fast, plain, "gated value", activation);
        let (fast, plain) = both(|| gated_backward(d.tensor(), gate.tensor(), up.tensor(), activation));
        agree(fast.0, plain.0, "gradient of the gate", activation);
        agree(fast.1, plain.1, "gradient of the other", activation);
        let (fast, plain) = both(|| gated_tangent(d.tensor(), up.tensor(), gate.tensor(), up.tensor(), activation));
        agree(fast, plain, "tangent", activation);
    }
}

/// 2 / sqrt(pi) e^(-x^2) sum over n of 2^n x^(2n+1) / (2n+1)!!, whose terms all have one sign.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let terms = (0..200).scan(x, |term, n| {
        let now = *term;
        *term *= 2.0 * x * x / f64::from(2 * n + 3);
        Some(now)
    });
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * terms.sum::<f64>()
}

/// f(x) and f'(x) as the documentation of [`Activation`] has them.
fn exact(activation: Activation, x: f64) -> (f64, f64) {
    use std::f64::consts::PI;
    let times_sigmoid = |v: f64, dv: f64| {
        let (s, rest) = (1.0 / (1.0 + (-v).exp()), 1.0 / (1.0 + v.exp()));
        (x * s, s * (1.0 + x * dv * rest))
    };
    match activation {
        Activation::Silu => times_sigmoid(x, 1.0),
        Activation::QuickGelu => times_sigmoid(1.702 * x, 1.702),
        Activation::GeluTanh => {
            let root = 2.0 * (2.0 / PI).sqrt();
            times_sigmoid(root * (x + 0.044_715 * x.powi(3)), root * (1.0 + 3.0 * 0.044_715 * x * x))
        }
        Activation::Gelu => {
            let below = 0.5 * (1.0 + erf(x / 2f64.sqrt()));
            (x * below, below + x * (-0.5 * x * x).exp() / (2.0 * PI).sqrt())
        }
        Activation::Relu => (x.max(0.0), f64::from(u8::from(x > 0.0))),
    }
}

#[test]
fn activations_are_those_of_float64() {
    let (x, d) = (random(1, SHAPE, 4.0), random(3, SHAPE, 1.0));
    for activation in ACTIVATIONS {
        let values: Vec<_> = x.values.iter().map(|&x| exact(activation, f64::from(x))).collect();
        let slopes: Vec<f64> = values.iter().zip(&d.values).map(|((_, slope), &d)| f64::from(d) * slope).collect();
        let values: Vec<f64> = values.into_iter().map(|(value, _)| value).collect();
        let (fast, plain) = both(|| activate(x.tensor(), activation));
        let (fast_slope, plain_slope) = both(|| activate_backward(d.tensor(), x.tensor(), activation));
        for (what, found, exact) in [
            ("value", fast, &values),
            ("value as burn's operations", plain, &values),
            ("slope", fast_slope, &slopes),
            ("slope as burn's operations", plain_slope, &slopes),
        ] {
            let off = error_of(found, exact);
            assert!(off < 1e-6, "{what} of {activation:?}: off by {off:e} of the largest");
        }
    }
}

/// The slope against the difference quotient, and the gate's backward pass against the slope.
#[test]
fn activation_slopes_are_derivatives() {
    let step = 1e-2;
    // Off zero, where max(x, 0) has none.
    let x = random(1, SHAPE, 2.0).tensor() + 0.0371;
    let x = x.clone().mask_where(x.clone().abs().lower_elem(step), x.ones_like());
    for activation in ACTIVATIONS {
        let slope = activate_backward(x.ones_like(), x.clone(), activation);
        let quotient = (activate(x.clone() + step, activation) - activate(x.clone() - step, activation)) / (2.0 * step);
        assert!(error(slope.clone(), quotient) < 1e-4, "{activation:?}");
        let (d_gate, d_up) = gated_backward(x.ones_like(), x.clone(), x.ones_like(), activation);
        assert!(error(d_gate, slope) < 1e-6, "{activation:?}");
        assert!(error(d_up, activate(x.clone(), activation)) < 1e-6, "{activation:?}");
    }
}

#[test]
fn activations_saturate_without_nan() {
    let x = Tensor::<2>::from_floats([[-1e4, -100.0, 0.0, 100.0, 1e4]], &Device::flex());
    for activation in ACTIVATIONS {
        let gate = host(gated(x.clone(), x.ones_like(), activation));
        assert!(
            gate[2] == 0.0 && gate[3..].iter().zip([100.0, 1e4]).all(|(x, y)| (x / y - 1.0).abs() < 1e-6),
            "{gate:?}"
        );
        assert!(host(activate(x.clone(), activation))[0].abs() < 1e-30, "{activation:?}");
        let slope = host(activate_backward(x.ones_like(), x.clone(), activation));
        assert!(slope[0].abs() < 1e-6 && (slope[4] - 1.0).abs() < 1e-6, "{activation:?}: {slope:?}");
    }
}

#[test]
fn layer_norm_paths_agree() {
    let (x, d) = (random(1, SHAPE, 3.0) + 5.0, random(2, SHAPE, 1.0));
    let (gain, bias) = (random(3, [1, SHAPE[1]], 1.0), random(4, [1, SHAPE[1]], 1.0));
    let residual = random(5, SHAPE, 1.0);
    let (fast, plain) = both(|| layer_norm(x.tensor(), gain.tensor(), bias.tensor(), 1e-5));
    assert!(error(fast, plain) < 2e-6);
    let (fast, plain) = both(|| layer_norm_backward(residual.tensor(), d.tensor(), x.tensor(), gain.tensor(), 1e-5));
    assert!(error(fast, plain) < 2e-6);
}

#[test]
fn a_one_is_appended_to_every_row() {
    let x = random(1, SHAPE, 1.0);
    let (fast, plain) = both(|| append_one(x.tensor()));
    let expected: Vec<f32> = x.values.chunks(SHAPE[1]).flat_map(|row| row.iter().copied().chain([1.0])).collect();
    assert_eq!(host(fast), expected);
    assert_eq!(host(plain), expected);
}

/// A sum to which `add` is applied twice, as a matrix.
fn summed(form: Form, add: impl Fn(&mut Sum)) -> Tensor<2> {
    let mut sum = Sum::zeros(form);
    add(&mut sum);
    add(&mut sum);
    sum.settle().unwrap();
    let matrix = sum.matrix();
    let shape = match form {
        Form::Symmetric(n) => [n, n],
        Form::Full(shape) => shape,
    };
    Input { values: matrix, shape }.tensor()
}

#[test]
fn gram_matrices_agree() {
    // One band of rows, part of one, and several.
    for n in [1, 5, 96, 205] {
        let x = random(1, [33, n], 1.0);
        let (fast, plain) = both(|| summed(Form::Symmetric(n), |sum| sum.add_gram(x.tensor())));
        assert!(error(fast, plain) < 1e-6, "{n}");
    }
}

/// A float32 sum stays at 2^24 whatever ones are added to it.
#[test]
fn what_is_lost_on_the_way_is_added_after_all() {
    let sum = |forms: Form, add: &dyn Fn(&mut Sum, f32)| {
        let mut sum = Sum::zeros(forms);
        add(&mut sum, 4096.0);
        (0..100).for_each(|_| add(&mut sum, 1.0));
        sum.settle().unwrap();
        sum.values()[0]
    };
    let x = |value: f32| Input { values: vec![value], shape: [1, 1] }.tensor();
    let gram = || sum(Form::Symmetric(1), &|sum, value| sum.add_gram(x(value)));
    let one = Ragged::new([1]);
    let squares = || sum(Form::Full([1, 1]), &|sum, value| sum.add_squared_products(x(value), x(1.0), &one));
    let expected = f64::from(1 << 24) + 100.0;
    assert_eq!(both(gram), (expected, expected));
    assert_eq!(both(squares), (expected, expected));
}

#[test]
fn sums_over_examples_agree() {
    for lengths in [&[5, 5, 5][..], &[9, 6], &[7, 0, 8], &[0, 14, 0, 1]] {
        sums_agree(&Ragged::new(lengths.iter().copied()));
    }
}

/// 15 rows; 4 queries of rank 6, and a product of [7, 11].
fn sums_agree(examples: &Ragged) {
    let (x, y) = (random(1, [15, 24], 1.0), random(2, [15, 24], 1.0));
    let (d, a) = (random(4, [15, 7], 1.0), random(5, [15, 11], 1.0));
    // The gradient of every example in float64.
    let gradient = |rows: std::ops::Range<usize>| -> Vec<f64> {
        let element = |i: usize, j: usize| {
            rows.clone().map(|t| f64::from(d.values[t * 7 + i]) * f64::from(a.values[t * 11 + j])).sum()
        };
        (0..7).flat_map(|i| (0..11).map(move |j| (i, j))).map(|(i, j)| element(i, j)).collect()
    };
    let gradients: Vec<_> = examples.iter().map(gradient).collect();
    let check = |(fast, plain): (Tensor<2>, Tensor<2>), shape: [usize; 2], exact: &[f64]| {
        assert_eq!((fast.dims(), plain.dims()), (shape, shape), "{examples:?}");
        for found in [fast, plain] {
            let off = error_of(found, exact);
            assert!(off < 1e-6, "{examples:?}: off by {off:e} of the largest");
        }
    };
    let count = examples.len();
    let paired = |rows: std::ops::Range<usize>, q: usize| -> f64 {
        let terms = rows.flat_map(|t| (q * 6..(q + 1) * 6).map(move |k| t * 24 + k));
        terms.map(|i| f64::from(x.values[i]) * f64::from(y.values[i])).sum()
    };
    let exact: Vec<f64> =
        examples.iter().flat_map(|rows| (0..4).map(move |q| (rows.clone(), q))).map(|(r, q)| paired(r, q)).collect();
    check(both(|| paired_sums(x.tensor(), y.tensor(), examples, 4)), [count, 4], &exact);
    check(both(|| example_products(d.tensor(), a.tensor(), examples)), [count, 77], &gradients.concat());
    let squares: Vec<f64> = (0..77).map(|i| 2.0 * gradients.iter().map(|g| g[i].powi(2)).sum::<f64>()).collect();
    let squared = || summed(Form::Full([7, 11]), |sum| sum.add_squared_products(d.tensor(), a.tensor(), examples));
    check(both(squared), [7, 11], &squares);
    let weights = random(6, [7, 11], 1.0) + 3.0;
    for weights in [Some(weights), None] {
        let weight = |i: usize| weights.as_ref().map_or(1.0, |weights| f64::from(weights.values[i]));
        let exact: Vec<f64> =
            gradients.iter().map(|g| g.iter().enumerate().map(|(i, x)| weight(i) * x * x).sum()).collect();
        let own = || weighted_squares(weights.as_ref().map(Input::tensor), d.tensor(), a.tensor(), examples);
        check(both(own), [count, 1], &exact);
    }
    let places = [3, 76, 20];
    let picked = || {
        let mut states = vec![Vec::new(); count];
        picked_products(&places, d.tensor(), a.tensor(), examples, &mut states, |state, values| state.extend(values));
        Input { values: states.concat(), shape: [count, 3] }.tensor()
    };
    let exact: Vec<f64> = gradients.iter().flat_map(|g| places.map(|place| g[place as usize])).collect();
    check(both(picked), [count, 3], &exact);
}

/// What a sum of n float32 numbers loses where they are added one after the other, as a GPU may do it.
fn rounding(n: usize) -> f64 {
    f64::from(f32::EPSILON) / 2.0 * (n as f64).sqrt()
}

#[test]
fn scans_are_those_of_float64() {
    // Several tiles, strips and tasks of queries; rows, columns, examples and queries that do not fill a step.
    for (out, inside, rank, count, lengths) in [
        (805, 333, 3, 21, vec![2; 6]),
        (7, 100, 5, 4, vec![3; 4]),
        (205, 70, 1, 3, vec![1; 333]),
        (61, 70, 2, 9, vec![4, 1, 0, 7, 2]),
    ] {
        let examples = Ragged::new(lengths);
        let rows = examples.rows();
        let (left, right) = (random(1, [out, count * rank], 1.0), random(2, [count * rank, inside], 1.0));
        let (d, a) = (random(3, [rows, out], 1.0), random(4, [rows, inside], 1.0));
        let dot = |n: usize, x: &dyn Fn(usize) -> f32, y: &dyn Fn(usize) -> f32| -> f64 {
            (0..n).map(|i| f64::from(x(i)) * f64::from(y(i))).sum()
        };
        // sum over tokens t and directions k of (d_t . left_k) (a_t . right_k)
        let pair = |z: usize, q: usize| -> f64 {
            let terms = examples.of(z).flat_map(|t| (q * rank..(q + 1) * rank).map(move |k| (t, k)));
            let term = |(t, k): (usize, usize)| {
                dot(out, &|i| d.values[t * out + i], &|i| left.values[i * count * rank + k])
                    * dot(inside, &|j| a.values[t * inside + j], &|j| right.values[k * inside + j])
            };
            terms.map(term).sum()
        };
        let exact: Vec<f64> =
            (0..examples.len()).flat_map(|z| (0..count).map(move |q| (z, q))).map(|(z, q)| pair(z, q)).collect();
        let shape = ScanShape { out, inside, rank, count, examples: &examples };
        let by_gradient = || scan_by_gradient(&left.tensor(), &right.tensor(), d.tensor(), a.tensor(), shape);
        let by_token = || {
            let (x, y) = (product(d.tensor(), left.tensor()), product(a.tensor(), right.tensor().transpose()));
            paired_sums(x, y, &examples, count)
        };
        let ((fast, plain), (fast_by_token, plain_by_token)) = (both(by_gradient), both(by_token));
        assert_eq!(fast.dims(), [examples.len(), count]);
        let one_by_one = if cfg!(feature = "wgpu") { rounding(out * inside).max(1e-6) } else { 1e-6 };
        for (what, found, bound) in [
            ("by gradient", fast, 1e-6),
            ("by gradient as burn's operations", plain, one_by_one),
            ("by token", fast_by_token, 1e-6),
            ("by token as burn's operations", plain_by_token, 1e-6),
        ] {
            let off = error_of(found, &exact);
            assert!(off < bound, "{what}: off by {off:e} of the largest, bound {bound:e}");
        }
    }
}

#[test]
fn rms_norm_paths_agree() {
    let (x, d, gain) = (random(1, SHAPE, 3.0), random(2, SHAPE, 1.0), random(3, [1, SHAPE[1]], 1.0));
    let residual = random(4, SHAPE, 1.0);
    let (fast, plain) = both(|| rms_norm(x.tensor(), gain.tensor(), 1e-5));
    assert!(error(fast, plain) < 1e-6);
    let (fast, plain) = both(|| rms_norm_backward(residual.tensor(), d.tensor(), x.tensor(), gain.tensor(), 1e-5));
    assert!(error(fast, plain) < 1e-6);
    let (fast, plain) = both(|| rms_norm_gain_gradient(d.tensor(), x.tensor(), 1e-5));
    assert!(error(fast, plain) < 1e-6);
}

#[test]
fn cross_entropy_paths_agree() {
    let logits = random(1, SHAPE, 8.0);
    let labels: Vec<u32> = (0..SHAPE[0]).map(|i| (i * 31 % SHAPE[1]) as u32).collect();
    let (fast, plain) = both(|| cross_entropy(logits.tensor(), &labels));
    assert!(error(fast.1, plain.1) < 1e-6);
    assert!(fast.0.iter().zip(&plain.0).all(|(a, b)| (a - b).abs() < 1e-6 * b.abs().max(8.0)));
}

/// Rows of the softmax's Hessian add up to nothing, and t^T H t is the variance of t.
#[test]
fn cross_entropy_tangents_agree_and_are_those_of_a_variance() {
    let (logits, t) = (random(1, SHAPE, 3.0), random(2, SHAPE, 1.0));
    let labels: Vec<u32> = (0..SHAPE[0]).map(|i| (i * 31 % SHAPE[1]) as u32).collect();
    let (fast, plain) = both(|| cross_entropy_tangent(t.tensor(), softmax(logits.tensor()), &labels));
    let p: Vec<f64> = host(softmax(logits.tensor())).into_iter().map(f64::from).collect();
    assert!(error(fast.1.clone(), plain.1) < 1e-6);
    assert!(fast.0.iter().zip(&plain.0).all(|(a, b)| (a - b).abs() < 1e-5));
    let (_, gradient) = cross_entropy(logits.tensor(), &labels);
    let rows = host(fast.1).chunks(SHAPE[1]).map(<[f32]>::to_vec).collect::<Vec<_>>();
    for (row, moved) in rows.iter().enumerate() {
        let own = row * SHAPE[1]..(row + 1) * SHAPE[1];
        let (p, t) = (&p[own.clone()], &t.values[own.clone()]);
        let mean: f64 = p.iter().zip(t).map(|(p, &t)| p * f64::from(t)).sum();
        let variance: f64 = p.iter().zip(t).map(|(p, &t)| p * (f64::from(t) - mean).powi(2)).sum();
        let found: f64 = moved.iter().zip(t).map(|(&moved, &t)| f64::from(moved) * f64::from(t)).sum();
        assert!((found - variance).abs() < 1e-5, "{found}, {variance}");
        assert!(moved.iter().map(|&moved| f64::from(moved)).sum::<f64>().abs() < 1e-5);
        let slope: f64 = host(gradient.clone())[own].iter().zip(t).map(|(&d, &t)| f64::from(d) * f64::from(t)).sum();
        assert!((slope - f64::from(fast.0[row])).abs() < 1e-5);
    }
}

#[test]
fn cross_entropy_does_not_write_into_a_shared_tensor() {
    let logits = random(1, [3, 5], 1.0);
    let shared = logits.tensor();
    let _ = cross_entropy(shared.clone(), &[0, 1, 2]);
    assert_eq!(host(shared), logits.values);
}

#[test]
fn rotation_paths_agree_and_backward_undoes_forward() {
    let (tokens, dim) = (11, 6);
    let x = random(1, [5 * tokens, 4 * dim], 1.0);
    let positions: Vec<usize> = (0..5 * tokens).map(|row| row * 7 % tokens).collect();
    // The whole of a head, and its first four values.
    for frequencies in [&[1.0, 0.1, 0.01][..], &[1.0, 0.1]] {
        let table = RotationTable::new(positions.clone(), dim, frequencies);
        for rotation in [Rotation::Forward, Rotation::Backward] {
            let (fast, plain) = both(|| rotate(x.tensor(), &table, rotation));
            assert!(error(fast, plain) < 1e-6);
        }
        let there = rotate(x.tensor(), &table, Rotation::Forward);
        assert!(error(rotate(there, &table, Rotation::Backward), x.tensor()) < 1e-6);
    }
    // Row 3 stands at position 10, and is turned there as anywhere.
    let table = |positions| RotationTable::new(positions, dim, &[1.0, 0.1]);
    let row = |x: Tensor<2>, row: usize| x.narrow(0, row, 1);
    let all = rotate(x.tensor(), &table(positions), Rotation::Forward);
    let alone = rotate(row(x.tensor(), 3), &table(vec![10]), Rotation::Forward);
    assert_eq!(host(row(all, 3)), host(alone));
}

/// A query sees itself and the `window - 1` tokens before it.
#[test]
fn a_window_is_what_its_keys_alone_make() {
    let (rows, window) = (100, 9);
    let (q, k, v) = (random(1, [rows, 4], 2.0), random(2, [rows, 4], 2.0), random(3, [rows, 4], 1.0));
    let shape = |first: usize, window: Option<usize>| AttentionShape {
        sequences: Ragged::new([rows - first]),
        spans: std::iter::once(0..rows - first).collect(),
        heads: 1,
        key_heads: 1,
        head_dim: 4,
        scale: 0.5,
        window,
        cap: None,
        sinks: None,
    };
    let of = |first: usize, window| {
        let own = |x: &Input| x.tensor().narrow(0, first, rows - first);
        host(causal_attention(own(&q), own(&k), own(&v), &shape(first, window)))
    };
    let found = of(0, Some(window));
    for row in [0, 8, 9, 63, 64, 70, 99] {
        let first = (row + 1_usize).saturating_sub(window);
        let expected = &of(first, None)[4 * (row - first)..][..4];
        let worst = found[4 * row..][..4].iter().zip(expected).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-6, "row {row}: {worst}");
    }
}

#[test]
fn attention_paths_agree() {
    // More than one query block, a group of three query heads to a key head, ragged lengths; several spans in a sequence.
    attention_agrees(&[150, 1, 97], &[0..150, 150..151, 151..248]);
    attention_agrees(&[150, 1, 97], &[0..70, 70..71, 71..150, 150..151, 151..161, 161..248]);
    attention_agrees(&[90, 90], &[0..90, 90..180]);
}

fn attention_agrees(lengths: &[usize], spans: &[std::ops::Range<usize>]) {
    let sequences = Ragged::new(lengths.iter().copied());
    let rows = sequences.rows();
    let plain = AttentionShape {
        sequences,
        spans: spans.to_vec(),
        heads: 6,
        key_heads: 2,
        head_dim: 8,
        scale: 0.3,
        window: None,
        cap: None,
        sinks: None,
    };
    let sinks = Some(vec![0.5, -1.0, 2.0, 0.0, 7.0, -20.0]);
    for shape in [
        AttentionShape { window: Some(1), ..plain.clone() },
        AttentionShape { window: Some(37), ..plain.clone() },
        AttentionShape { cap: Some(1.5), ..plain.clone() },
        AttentionShape { sinks: sinks.clone(), ..plain.clone() },
        AttentionShape { window: Some(70), cap: Some(0.7), sinks, ..plain.clone() },
        plain,
    ] {
        attention_of_a_shape_agrees(rows, &shape);
    }
}

fn attention_of_a_shape_agrees(rows: usize, shape: &AttentionShape) {
    let (q, k, v) = (random(1, [rows, 48], 2.0), random(2, [rows, 16], 2.0), random(3, [rows, 16], 1.0));
    let d = random(4, [rows, 48], 1.0);
    let (fast, plain) = both(|| causal_attention(q.tensor(), k.tensor(), v.tensor(), shape));
    assert!(error(fast, plain) < 1e-6);
    let backward = || causal_attention_backward(d.tensor(), q.tensor(), k.tensor(), v.tensor(), shape);
    let (fast, plain) = both(backward);
    assert!(error(fast.0, plain.0) < 2e-6 && error(fast.1, plain.1) < 2e-6 && error(fast.2, plain.2) < 2e-6);

    // The tangent's transpose is the backward pass: d . (J t) = (J^T d) . t.
    let (t_q, t_k, t_v) = (random(5, [rows, 48], 1.0), random(6, [rows, 16], 1.0), random(7, [rows, 16], 1.0));
    let pair = |x: &Input, t: &Input| [x.tensor(), t.tensor()];
    let tangent = || causal_attention_tangent(pair(&q, &t_q), pair(&k, &t_k), pair(&v, &t_v), shape);
    let (fast, plain) = both(tangent);
    let off = error(fast.clone(), plain);
    assert!(off < 5e-6, "tangents: {off:e}");
    let dot = |x: Tensor<2>, t: &Input| -> f64 {
        host(x).iter().zip(&t.values).map(|(&x, &t)| f64::from(x) * f64::from(t)).sum()
    };
    let (d_q, d_k, d_v) = backward();
    let (there, back) = (dot(fast, &d), dot(d_q, &t_q) + dot(d_k, &t_k) + dot(d_v, &t_v));
    assert!((there - back).abs() < 1e-5 * (rows as f64).sqrt(), "{there}, {back}");

    // Of the sinks, by differences of d . O.
    let Some(sinks) = &shape.sinks else { return };
    let found = host(sink_gradients(d.tensor(), q.tensor(), k.tensor(), v.tensor(), shape));
    for head in 0..sinks.len() {
        let value = |step: f32| {
            let mut sinks = sinks.clone();
            sinks[head] += step;
            let shape = AttentionShape { sinks: Some(sinks), ..shape.clone() };
            dot(causal_attention(q.tensor(), k.tensor(), v.tensor(), &shape), &d)
        };
        let expected = (value(0.05) - value(-0.05)) / 0.1;
        assert!((f64::from(found[head]) - expected).abs() < 2e-3 * (rows as f64).sqrt(), "{} {expected}", found[head]);
    }
}

#[test]
fn product_paths_agree_on_views() {
    let (a, b) = (random(2, [70, 30], 1.0), random(3, [50, 30], 1.0));
    let (fast, plain) = both(|| product(a.tensor(), b.tensor().transpose()));
    assert!(error(fast, plain) < 1e-6);
    let (fast, plain) = both(|| product(a.tensor().narrow(1, 3, 9), b.tensor().narrow(1, 7, 9).transpose()));
    assert!(error(fast, plain) < 1e-6);
}

#[test]
fn add_product_paths_agree_on_views() {
    let (c, a, b) = (random(1, [70, 50], 1.0), random(2, [70, 30], 1.0), random(3, [50, 30], 1.0));
    let (fast, plain) = both(|| add_product(c.tensor(), a.tensor(), b.tensor().transpose()));
    assert!(error(fast, plain) < 1e-6);
    let (fast, plain) = both(|| {
        let part = b.tensor().narrow(0, 20, 25).transpose();
        add_product(c.tensor().narrow(1, 5, 25), a.tensor(), part)
    });
    assert!(error(fast, plain) < 1e-6);
}

#[test]
fn sampled_labels_follow_the_distribution() {
    let n = 20_000;
    let logits = || Tensor::<2>::from_floats([[0.0, 1.0, -1.0, 2.0]], &device()).expand([n, 4]);
    let uniforms: Vec<f64> = (0..n as u64).map(|i| uniform(0, i, 1)).collect();
    let (fast, plain) = both(|| sample_rows(logits(), &uniforms));
    let differing = fast.iter().zip(&plain).filter(|(a, b)| a != b).count();
    assert!(differing <= 2, "only numbers within rounding of an edge may differ: {differing}");
    let total: f64 = [0.0f64, 1.0, -1.0, 2.0].iter().map(|z| z.exp()).sum();
    for (label, z) in [0.0f64, 1.0, -1.0, 2.0].into_iter().enumerate() {
        let share = fast.iter().filter(|&&l| l as usize == label).count() as f64 / n as f64;
        assert!((share - z.exp() / total).abs() < 0.01);
    }
}

#[test]
fn sampled_labels_take_the_first_index_beyond_u() {
    // Probabilities 1/4 each: the running sum exceeds 0.25 first at index 1.
    let logits = Tensor::<2>::zeros([4, 4], &Device::flex());
    assert_eq!(sample_rows(logits, &[0.0, 0.2499, 0.2501, 0.9999]), [0, 0, 1, 3]);
}

/// A kernel on tensors of a reduced type is the kernel on the rounded values, rounded once.
#[test]
fn reduced_types_are_rounded_once_around_float32_arithmetic() {
    for dtype in [FloatDType::F16, FloatDType::BF16] {
        let half = |input: &Input| round(input.tensor(), dtype);
        let wide = |input: &Input| widen(half(input));
        let same = |found: Tensor<2>, expected: Tensor<2>| {
            assert_eq!(found.dtype(), dtype.into());
            assert_eq!(host(found), host(round(expected, dtype)));
        };
        let (x, y, z) = (random(1, [6, 8], 2.0), random(2, [6, 8], 1.0), random(3, [6, 8], 1.0));
        let (gain, w) = (random(4, [1, 8], 1.0), random(5, [5, 8], 1.0));
        same(rms_norm(half(&x), half(&gain), 1e-5), rms_norm(wide(&x), wide(&gain), 1e-5));
        same(
            rms_norm_backward(half(&z), half(&y), half(&x), half(&gain), 1e-5),
            rms_norm_backward(wide(&z), wide(&y), wide(&x), wide(&gain), 1e-5),
        );
        same(
            layer_norm(half(&x), half(&gain), half(&gain), 1e-5),
            layer_norm(wide(&x), wide(&gain), wide(&gain), 1e-5),
        );
        same(
            layer_norm_backward(half(&z), half(&y), half(&x), half(&gain), 1e-5),
            layer_norm_backward(wide(&z), wide(&y), wide(&x), wide(&gain), 1e-5),
        );
        for f in ACTIVATIONS {
            same(activate(half(&x), f), activate(wide(&x), f));
            same(activate_backward(half(&y), half(&x), f), activate_backward(wide(&y), wide(&x), f));
            same(gated(half(&x), half(&y), f), gated(wide(&x), wide(&y), f));
            let (found, expected) =
                (gated_backward(half(&z), half(&x), half(&y), f), gated_backward(wide(&z), wide(&x), wide(&y), f));
            same(found.0, expected.0);
            same(found.1, expected.1);
        }
        same(append_one(half(&x)), append_one(wide(&x)));
        let table = RotationTable::new(vec![0, 1, 2, 0, 1, 2], 4, &[1.0, 0.1]);
        same(rotate(half(&x), &table, Rotation::Forward), rotate(wide(&x), &table, Rotation::Forward));
        let shape = AttentionShape {
            sequences: Ragged::new([4, 2]),
            spans: vec![0..4, 4..6],
            heads: 2,
            key_heads: 2,
            head_dim: 4,
            scale: 0.5,
            window: None,
            cap: None,
            sinks: None,
        };
        same(
            causal_attention(half(&x), half(&y), half(&z), &shape),
            causal_attention(wide(&x), wide(&y), wide(&z), &shape),
        );
        let found = causal_attention_backward(half(&z), half(&x), half(&y), half(&z), &shape);
        let expected = causal_attention_backward(wide(&z), wide(&x), wide(&y), wide(&z), &shape);
        same(found.0, expected.0);
        same(found.1, expected.1);
        same(found.2, expected.2);
        // Of bfloat16 a product is float32: see `bf16.rs`.
        if dtype == FloatDType::F16 {
            same(product(half(&x), half(&w).transpose()), product(wide(&x), wide(&w).transpose()));
            // A sum of a product is rounded twice: the product, then the sum.
            let c = random(6, [6, 5], 1.0);
            let product = round(product(wide(&x), wide(&w).transpose()), dtype);
            same(add_product(half(&c), half(&x), half(&w).transpose()), wide(&c) + widen(product));
        }
        assert_eq!(cross_entropy(half(&x), &[0, 1, 2, 3, 4, 5]).0, cross_entropy(wide(&x), &[0, 1, 2, 3, 4, 5]).0);
    }
}

#[test]
fn products_of_reduced_types_agree_on_both_paths() {
    let (a, b) = (random(1, [40, 64], 1.0), random(2, [24, 64], 1.0));
    for (dtype, tolerance) in [(FloatDType::F16, 1e-3), (FloatDType::BF16, 8e-3)] {
        if both(|| device().supports_dtype(dtype)).1 {
            let (fast, plain) = both(|| product(round(a.tensor(), dtype), round(b.tensor(), dtype).transpose()));
            assert!(error(fast, plain) < tolerance);
        }
    }
}
