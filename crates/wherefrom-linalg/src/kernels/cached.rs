//! Keys and values of sequences that grow token by token, and attention of their newest tokens.

use burn::tensor::{Bool, Device, FloatDType, Int, Tensor, TensorData, activation};
use rayon::prelude::*;

use super::attention::{AttentionShape, causal_attention};
use super::cpu::{contiguous, exp, is_cpu, lane_max, lane_sum, tensor, values, vectorised};
use super::precision::{reduced, round, widen};

/// Tokens by which room on a device grows.
const ROOM: usize = 128;
/// Multiply-adds of a step below which it stays on the calling thread.
const PARALLEL: usize = 1 << 15;

/// Keys and values of one layer, of each sequence by itself and without padding in the CPU's memory. Where a layer has a window,
/// what no later token sees is dropped.
#[derive(Debug, Clone)]
pub struct KeyValues {
    store: Store,
}

#[allow(clippy::large_enum_variant)] // One a layer.
#[derive(Debug, Clone)]
enum Store {
    Empty,
    /// Of each sequence, [tokens, key heads * head_dim], in float32.
    Host(Vec<[Vec<f32>; 2]>),
    /// Of all sequences, [sequences * room, key heads * head_dim], zero where no token is yet; and how many tokens are there.
    Device {
        keys: Tensor<2>,
        values: Tensor<2>,
        lengths: Vec<usize>,
    },
}

impl Default for KeyValues {
    fn default() -> Self {
        Self { store: Store::Empty }
    }
}

impl KeyValues {
    /// Keeps keys and values, and returns what the new tokens' heads read: as [`causal_attention`] does of whole sequences.
    /// The first call gives whole sequences, each later one a token of each.
    ///
    /// q [rows, heads * head_dim], k and v [rows, key heads * head_dim] -> [rows, heads * head_dim]
    pub fn attend(&mut self, q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, shape: &AttentionShape) -> Tensor<2> {
        if matches!(self.store, Store::Empty) {
            self.store = match is_cpu(&q.device()) {
                true => Store::Host(host(&k, &v, shape)),
                false => device(&k, &v, shape),
            };
            return causal_attention(q, k, v, shape);
        }
        let dtype = reduced(&q).unwrap_or(FloatDType::F32);
        let [q, k, v] = [q, k, v].map(widen);
        let output = match &mut self.store {
            Store::Host(sequences) => step_on_host(sequences, &q, k, v, shape),
            Store::Device { keys, values, lengths } => step_on_device(keys, values, lengths, q, &k, &v, shape),
            Store::Empty => unreachable!("filled above"),
        };
        round(output, dtype)
    }

    /// Leaves the sequences of these numbers, ascending, and forgets the others.
    pub fn keep(&mut self, sequences: &[usize]) {
        match &mut self.store {
            Store::Empty => {}
            Store::Host(all) => {
                *all = sequences.iter().map(|&sequence| std::mem::take(&mut all[sequence])).collect();
            }
            Store::Device { keys, values, lengths } => {
                let room = keys.dims()[0] / lengths.len().max(1);
                let rows: Vec<_> = sequences.iter().flat_map(|&s| s * room..(s + 1) * room).collect();
                let rows = indices(&rows, &keys.device());
                (*keys, *values) = (keys.clone().select(0, rows.clone()), values.clone().select(0, rows));
                *lengths = sequences.iter().map(|&sequence| lengths[sequence]).collect();
            }
        }
    }
}

fn host(k: &Tensor<2>, v: &Tensor<2>, shape: &AttentionShape) -> Vec<[Vec<f32>; 2]> {
    let width = k.dims()[1];
    let both = [k, v].map(|x| contiguous(widen(x.clone())));
    let own = |rows: std::ops::Range<usize>| {
        let first = shape.window.map_or(rows.start, |window| rows.start.max(rows.end.saturating_sub(window)));
        both.each_ref().map(|x| values(x)[first * width..rows.end * width].to_vec())
    };
    shape.sequences.iter().map(own).collect()
}

/// Of the one query of each sequence, with its key and value last: o = softmax(bend(s q K^T)) V by head.
fn step_on_host(
    sequences: &mut [[Vec<f32>; 2]],
    q: &Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    shape: &AttentionShape,
) -> Tensor<2> {
    let ([rows, width], kv) = (q.dims(), k.dims()[1]);
    assert_eq!(rows, sequences.len(), "a token of each sequence");
    let [q, k, v] = [q.clone(), k, v].map(contiguous);
    for (new, stored) in [&k, &v].into_iter().enumerate() {
        for (row, sequence) in values(stored).chunks_exact(kv).zip(sequences.iter_mut()) {
            let own = &mut sequence[new];
            own.extend_from_slice(row);
            // Dropped now and then, so that little is moved.
            if let Some(window) = shape.window.filter(|window| own.len() >= 2 * window.max(&ROOM) * kv) {
                own.drain(..own.len() - window * kv);
            }
        }
    }
    let (q, dim) = (values(&q), shape.head_dim);
    let group = shape.heads / shape.key_heads;
    let mut output = vec![0.0f32; rows * width];
    let longest = sequences.iter().map(|[keys, _]| keys.len() / kv).max().unwrap_or(0);
    let head = |(number, output): (usize, &mut [f32])| {
        let (sequence, key_head) = (number / shape.key_heads, number % shape.key_heads);
        let [keys, stored] = &sequences[sequence];
        let first = shape.window.map_or(0, |window| (keys.len() / kv).saturating_sub(window)) * kv;
        let queries = &q[sequence * width + key_head * group * dim..][..group * dim];
        let sinks = shape.sinks.as_ref().map(|sinks| &sinks[key_head * group..][..group]);
        let head = Head { keys: &keys[first..], values: &stored[first..], offset: key_head * dim, kv, sinks };
        vectorised(
            #[inline(always)]
            || head.attend(queries, output, shape),
        );
    };
    if rows * longest * width < PARALLEL {
        output.chunks_exact_mut(group * dim).enumerate().for_each(head);
    } else {
        output.par_chunks_exact_mut(group * dim).enumerate().for_each(head);
    }
    tensor(output, [rows, width])
}

/// A key head of one sequence.
struct Head<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    /// First column of the head.
    offset: usize,
    kv: usize,
    /// Of each query head of the group.
    sinks: Option<&'a [f32]>,
}

impl Head<'_> {
    /// queries and output [group, head_dim]
    #[inline(always)]
    fn attend(&self, queries: &[f32], output: &mut [f32], shape: &AttentionShape) {
        let (dim, count) = (shape.head_dim, self.keys.len() / self.kv);
        let mut p = vec![0.0f32; count];
        for (g, (query, output)) in queries.chunks_exact(dim).zip(output.chunks_exact_mut(dim)).enumerate() {
            for (score, key) in p.iter_mut().zip(self.keys.chunks_exact(self.kv)) {
                let key = &key[self.offset..][..dim];
                *score = shape.scale
                    * lane_sum(
                        dim,
                        #[inline(always)]
                        |i| query[i] * key[i],
                    );
            }
            if let Some(cap) = shape.cap {
                p.iter_mut().for_each(|score| *score = cap * (*score / cap).tanh());
            }
            let sink = self.sinks.map(|sinks| sinks[g]);
            let max = lane_max(&p).max(sink.unwrap_or(f32::NEG_INFINITY));
            p.iter_mut().for_each(|score| *score = exp(*score - max));
            let sum = lane_sum(
                count,
                #[inline(always)]
                |j| p[j],
            );
            let inverse = 1.0 / (sum + sink.map_or(0.0, |sink| exp(sink - max)));
            for (p, value) in p.iter().zip(self.values.chunks_exact(self.kv)) {
                let weight = p * inverse;
                for (output, value) in output.iter_mut().zip(&value[self.offset..][..dim]) {
                    *output += weight * value;
                }
            }
        }
    }
}

fn device(k: &Tensor<2>, v: &Tensor<2>, shape: &AttentionShape) -> Store {
    let lengths: Vec<_> = shape.sequences.iter().map(|rows| rows.len()).collect();
    let room = (shape.sequences.longest() + 1).next_multiple_of(ROOM);
    let places: Vec<_> = (lengths.iter().enumerate()).flat_map(|(s, &length)| s * room..s * room + length).collect();
    let [keys, values] = [k, v].map(|x| {
        let zeros = Tensor::zeros([lengths.len() * room, x.dims()[1]], &x.device());
        placed(zeros, &places, widen(x.clone()))
    });
    Store::Device { keys, values, lengths }
}

fn step_on_device(
    keys: &mut Tensor<2>,
    values: &mut Tensor<2>,
    lengths: &mut [usize],
    q: Tensor<2>,
    k: &Tensor<2>,
    v: &Tensor<2>,
    shape: &AttentionShape,
) -> Tensor<2> {
    let ([rows, width], kv, device) = (q.dims(), k.dims()[1], q.device());
    assert_eq!(rows, lengths.len(), "a token of each sequence");
    let mut room = keys.dims()[0] / rows;
    if lengths.iter().any(|&length| length >= room) {
        for x in [&mut *keys, &mut *values] {
            let wider = Tensor::zeros([rows, ROOM, kv], &device);
            *x = Tensor::cat(vec![x.clone().reshape([rows, room, kv]), wider], 1).reshape([rows * (room + ROOM), kv]);
        }
        room += ROOM;
    }
    let places: Vec<_> = lengths.iter().enumerate().map(|(s, length)| s * room + length).collect();
    *keys = placed(keys.clone(), &places, k.clone());
    *values = placed(values.clone(), &places, v.clone());
    lengths.iter_mut().for_each(|length| *length += 1);

    let (dim, heads, group) = (shape.head_dim, shape.key_heads, shape.heads / shape.key_heads);
    let fold = |x: &Tensor<2>| x.clone().reshape([rows, room, heads, dim]).swap_dims(1, 2);
    let mut scores = q.reshape([rows, heads, group, dim]).matmul(fold(keys).swap_dims(2, 3)) * shape.scale;
    if let Some(cap) = shape.cap {
        scores = (scores / cap).tanh() * cap;
    }
    let seen = |length: usize| shape.window.map_or(0, |window| length.saturating_sub(window))..length;
    let unseen: Vec<_> = lengths.iter().flat_map(|&n| (0..room).map(move |t| !seen(n).contains(&t))).collect();
    let unseen = Tensor::<4, Bool>::from_data(TensorData::new(unseen, [rows, 1, 1, room]), &device);
    let scores = scores.mask_fill(unseen.expand([rows, heads, group, room]), f32::NEG_INFINITY);
    let p = match &shape.sinks {
        None => activation::softmax(scores, 3),
        Some(sinks) => {
            let sinks = Tensor::<4>::from_data(TensorData::new(sinks.clone(), [1, heads, group, 1]), &device);
            let sinks = sinks.expand([rows, heads, group, 1]);
            activation::softmax(Tensor::cat(vec![scores, sinks], 3), 3).narrow(3, 0, room)
        }
    };
    p.matmul(fold(values)).reshape([rows, width])
}

/// `into`, which is zero there, with rows at these places.
fn placed(into: Tensor<2>, places: &[usize], rows: Tensor<2>) -> Tensor<2> {
    let device = into.device();
    into.select_assign(0, indices(places, &device), rows, burn::tensor::IndexingUpdateOp::Add)
}

fn indices(places: &[usize], device: &Device) -> Tensor<1, Int> {
    let places: Vec<_> = places.iter().map(|&place| place as i32).collect();
    let count = places.len();
    Tensor::from_data(TensorData::new(places, [count]), device)
}
