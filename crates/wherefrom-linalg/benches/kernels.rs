//! Every hot kernel by itself, on SmolLM2-135M's shapes: 4 sequences of 256 tokens, width 576, MLP 1,536, 9 heads of 64 on 3
//! key heads, vocabulary 49,152. Products state their rate as operations a second.
//!
//! just bench-kernels [WORDS]; RAYON_NUM_THREADS sets the threads.

use std::hint::black_box;

use burn::tensor::{Device, Tensor, TensorData};
use divan::Bencher;
use divan::counter::ItemsCount;
use wherefrom_linalg::kernels::*;
use wherefrom_linalg::memory::keep_freed_memory;
use wherefrom_linalg::random::{normal, uniform};
use wherefrom_linalg::{Threads, truncated_svd};

const BATCH: usize = 4;
const TOKENS: usize = 256;
const ROWS: usize = BATCH * TOKENS;
const WIDTH: usize = 576;
const INNER: usize = 1536;
const HEADS: usize = 9;
const KEY_HEADS: usize = 3;
const HEAD: usize = 64;
const VOCABULARY: usize = 49_152;
/// Of a query's factors.
const RANK: usize = 32;
const QUERIES: usize = 8;

fn main() {
    keep_freed_memory();
    divan::main();
}

fn random(seed: u64, rows: usize, columns: usize) -> Tensor<2> {
    let values: Vec<f32> = (0..(rows * columns) as u64).map(|i| normal(seed, 0, i) as f32).collect();
    Tensor::from_data(TensorData::new(values, [rows, columns]), &Device::flex())
}

/// Multiply-adds of a product, both counted.
fn operations(m: usize, k: usize, n: usize) -> ItemsCount {
    ItemsCount::new(2 * m * k * n)
}

/// A copy in memory of its own: a kernel that finds its input unshared works in it.
fn fresh(tensor: &Tensor<2>) -> Tensor<2> {
    Tensor::from_data(tensor.to_data(), &Device::flex())
}

#[divan::bench(args = [[ROWS, WIDTH, INNER], [ROWS, INNER, WIDTH], [ROWS, WIDTH, WIDTH], [ROWS, WIDTH, QUERIES * RANK]])]
fn products(bencher: Bencher<'_, '_>, [m, k, n]: [usize; 3]) {
    let (a, b) = (random(0, m, k), random(1, k, n));
    bencher.counter(operations(m, k, n)).bench_local(|| product(a.clone(), b.clone()));
}

fn rounded(x: Tensor<2>) -> Tensor<2> {
    round(x, burn::tensor::FloatDType::BF16)
}

/// As the forward pass has them: x W^T, W in bfloat16.
#[divan::bench(args = [[ROWS, WIDTH, INNER], [ROWS, INNER, WIDTH], [ROWS, WIDTH, WIDTH], [ROWS / 4, WIDTH, VOCABULARY]])]
fn bf16_forward(bencher: Bencher<'_, '_>, [m, k, n]: [usize; 3]) {
    let (a, b) = (random(0, m, k), rounded(random(1, n, k)));
    bencher.counter(operations(m, k, n)).bench_local(|| product(a.clone(), b.clone().transpose()));
}

/// As the backward pass has them: d W.
#[divan::bench(args = [[ROWS, INNER, WIDTH], [ROWS, WIDTH, INNER], [ROWS, WIDTH, WIDTH], [ROWS / 4, VOCABULARY, WIDTH]])]
fn bf16_backward(bencher: Bencher<'_, '_>, [m, k, n]: [usize; 3]) {
    let (a, b) = (random(0, m, k), rounded(random(1, k, n)));
    bencher.counter(operations(m, k, n)).bench_local(|| product(a.clone(), b.clone()));
}

/// As gradients have them: d^T a.
#[divan::bench(args = [[INNER, ROWS, WIDTH], [INNER, TOKENS, WIDTH], [WIDTH, TOKENS, WIDTH]])]
fn bf16_gradient(bencher: Bencher<'_, '_>, [m, k, n]: [usize; 3]) {
    let (a, b) = (rounded(random(0, k, m)), rounded(random(1, k, n)));
    bencher.counter(operations(m, k, n)).bench_local(|| product(a.clone().transpose(), b.clone()));
}

/// The vocabulary head: the second factor is read across its rows.
#[divan::bench(sample_count = 10)]
fn product_of_the_head(bencher: Bencher<'_, '_>) {
    let (a, b) = (random(0, ROWS / 2, WIDTH), random(1, VOCABULARY, WIDTH));
    bencher.counter(operations(ROWS / 2, WIDTH, VOCABULARY)).bench_local(|| product(a.clone(), b.clone().transpose()));
}

#[divan::bench(sample_count = 10)]
fn cross_entropy_of_the_vocabulary(bencher: Bencher<'_, '_>) {
    let logits = random(0, ROWS / 2, VOCABULARY);
    let labels: Vec<u32> = (0..ROWS / 2).map(|row| (uniform(1, 0, row as u64) * VOCABULARY as f64) as u32).collect();
    bencher.with_inputs(|| fresh(&logits)).bench_local_values(|logits| cross_entropy(logits, &labels));
}

#[divan::bench]
fn gated_forward(bencher: Bencher<'_, '_>) {
    let (gate, up) = (random(0, ROWS, INNER), random(1, ROWS, INNER));
    let inputs = || (fresh(&gate), fresh(&up));
    bencher.with_inputs(inputs).bench_local_values(|(gate, up)| gated(gate, up, Activation::Silu));
}

#[divan::bench]
fn gated_back(bencher: Bencher<'_, '_>) {
    let (d, gate, up) = (random(0, ROWS, INNER), random(1, ROWS, INNER), random(2, ROWS, INNER));
    let inputs = || (fresh(&d), fresh(&gate), fresh(&up));
    bencher.with_inputs(inputs).bench_local_values(|(d, gate, up)| gated_backward(d, gate, up, Activation::Silu));
}

fn examples() -> Ragged {
    Ragged::new([TOKENS; BATCH])
}

fn shape() -> AttentionShape {
    AttentionShape {
        sequences: examples(),
        spans: (0..BATCH).map(|b| b * TOKENS..(b + 1) * TOKENS).collect(),
        heads: HEADS,
        key_heads: KEY_HEADS,
        head_dim: HEAD,
        scale: 1.0 / (HEAD as f32).sqrt(),
        window: None,
        cap: None,
        sinks: None,
    }
}

fn queries_keys_values() -> [Tensor<2>; 3] {
    [random(0, ROWS, HEADS * HEAD), random(1, ROWS, KEY_HEADS * HEAD), random(2, ROWS, KEY_HEADS * HEAD)]
}

#[divan::bench]
fn attention_forward(bencher: Bencher<'_, '_>) {
    let ([q, k, v], shape) = (queries_keys_values(), shape());
    bencher.bench_local(|| causal_attention(q.clone(), k.clone(), v.clone(), &shape));
}

#[divan::bench]
fn attention_back(bencher: Bencher<'_, '_>) {
    let ([q, k, v], shape, d) = (queries_keys_values(), shape(), random(3, ROWS, HEADS * HEAD));
    bencher.bench_local(|| causal_attention_backward(d.clone(), q.clone(), k.clone(), v.clone(), &shape));
}

#[divan::bench]
fn rms_norm_forward(bencher: Bencher<'_, '_>) {
    let (x, gain) = (random(0, ROWS, WIDTH), random(1, 1, WIDTH));
    bencher.bench_local(|| rms_norm(x.clone(), gain.clone(), 1e-5));
}

#[divan::bench]
fn rms_norm_back(bencher: Bencher<'_, '_>) {
    let (x, d, residual, gain) =
        (random(0, ROWS, WIDTH), random(1, ROWS, WIDTH), random(2, ROWS, WIDTH), random(3, 1, WIDTH));
    let inputs = || fresh(&residual);
    bencher
        .with_inputs(inputs)
        .bench_local_values(|residual| rms_norm_backward(residual, d.clone(), x.clone(), gain.clone(), 1e-5));
}

/// What a scan does with d U and a V of each module.
#[divan::bench(args = [1, 8, 64])]
fn paired_sums_of_queries(bencher: Bencher<'_, '_>, queries: usize) {
    let (x, y) = (random(0, ROWS, queries * RANK), random(1, ROWS, queries * RANK));
    bencher.bench_local(|| paired_sums(black_box(x.clone()), y.clone(), &examples(), queries));
}

/// The same from factors, by whichever way is shorter.
#[divan::bench(args = [8, 64, 256])]
fn scan_of_queries(bencher: Bencher<'_, '_>, queries: usize) {
    let (left, right) = (random(0, INNER, queries * RANK), random(1, queries * RANK, WIDTH));
    let (d, a) = (random(2, ROWS, INNER), random(3, ROWS, WIDTH));
    bencher.bench_local(|| scan(&left, &right, black_box(d.clone()), a.clone(), &examples(), queries));
}

/// What lambda does with the rotated tokens of each module.
#[divan::bench]
fn squared_products(bencher: Bencher<'_, '_>) {
    let (d, a) = (random(0, ROWS, INNER), random(1, ROWS, WIDTH));
    let mut sum = Sum::zeros(Form::Full([INNER, WIDTH]));
    let bencher = bencher.counter(operations(INNER, ROWS, WIDTH));
    bencher.bench_local(|| sum.add_squared_products(d.clone(), a.clone(), &examples()));
}

/// What covariance does with the tokens of each module; half of these operations are the floor.
#[divan::bench(args = [WIDTH, INNER])]
fn gram_matrix(bencher: Bencher<'_, '_>, n: usize) {
    let x = random(0, ROWS, n);
    let mut sum = Sum::zeros(Form::Symmetric(n));
    bencher.counter(operations(n, ROWS, n)).bench_local(|| sum.add_gram(x.clone()));
}

/// What `precondition` does with each module of a query: a gradient of 64 tokens over curvature that falls like 1/k.
#[divan::bench(sample_count = 20)]
fn truncated_gradient(bencher: Bencher<'_, '_>) {
    let curvature = |k: usize| 1.0 / (1.0 + k as f32);
    let tokens = |seed: u64, n: usize| {
        let values = (0..n * 64).map(|i| curvature(i / 64).sqrt() * normal(seed, 0, i as u64) as f32).collect();
        Tensor::<2>::from_data(TensorData::new(values, [n, 64]), &Device::flex())
    };
    let mut p: Vec<f32> = product(tokens(0, INNER), tokens(1, WIDTH).transpose()).into_data().try_into_vec().unwrap();
    for (i, row) in p.chunks_exact_mut(WIDTH).enumerate() {
        row.iter_mut().enumerate().for_each(|(j, x)| *x /= curvature(i) * curvature(j) + 1e-5);
    }
    bencher.bench_local(|| truncated_svd(black_box(&p), INNER, WIDTH, RANK, Threads::One).unwrap());
}
