//! Causal grouped-query attention, forward and backward.
//!
//! Neither direction keeps the probabilities: memory is linear in tokens on the CPU, and the
//! backward pass computes them again from queries and keys. With a window, work grows with it and not with the sequence.

use std::ops::Range;

use burn::tensor::{Bool, Device, Int, Tensor, TensorData, activation};
use rayon::prelude::*;

use super::cpu::{contiguous, exp, is_cpu, lane_max, lane_sum, tensor, values, vectorised};
use super::precision::{reduced, round, widen};
use super::product::{Accumulate, MatrixRef, View, accumulate};
use super::ragged::Ragged;

/// Queries that the CPU path handles at once: 64 rows of scores over 1,024 keys are 256 KiB, which
/// stays in the second-level cache.
const QUERY_BLOCK: usize = 64;

/// How rows and columns of queries, keys and values are to be read.
#[derive(Debug, Clone)]
pub struct AttentionShape {
    /// Rows of each sequence.
    pub sequences: Ragged,
    /// Runs of rows that attend to themselves alone, ascending; together they are all rows, and none crosses a sequence.
    pub spans: Vec<Range<usize>>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head h reads key head h / (heads / key_heads).
    pub key_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// What scores are multiplied by, as a rule 1 / sqrt(head_dim).
    pub scale: f32,
    /// How many tokens a query sees at most, its own the last of them; none where it sees all before it.
    pub window: Option<usize>,
    /// c, where a score z becomes c tanh(z / c), as in Gemma 2.
    pub cap: Option<f32>,
    /// Of each query head a logit that joins the softmax's denominator and has no value, as in gpt-oss.
    pub sinks: Option<Vec<f32>>,
}

impl AttentionShape {
    fn group(&self) -> usize {
        self.heads / self.key_heads
    }

    /// The keys that queries `start..end` of a span see between them.
    fn keys(&self, start: usize, end: usize) -> Range<usize> {
        self.window.map_or(0, |window| (start + 1).saturating_sub(window))..end
    }

    fn sink(&self, head: usize) -> Option<f32> {
        self.sinks.as_ref().map(|sinks| sinks[head])
    }

    /// The rows of each span out of all rows, `width` values each.
    fn split<'a>(&self, mut rest: &'a mut [f32], width: usize) -> Vec<&'a mut [f32]> {
        let own = |span: &Range<usize>| {
            let (own, tail) = std::mem::take(&mut rest).split_at_mut(span.len() * width);
            rest = tail;
            own
        };
        self.spans.iter().map(own).collect()
    }
}

/// O = softmax(mask(s Q K^T)) V per head, with s = `scale`; scores s Q K^T that are capped, and a sink beside them, as the
/// shape says.
///
/// q [rows, heads * head_dim], k and v [rows, key_heads * head_dim] -> [rows, heads * head_dim]
pub fn causal_attention(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, shape: &AttentionShape) -> Tensor<2> {
    if let Some(dtype) = reduced(&q) {
        return round(causal_attention(widen(q), widen(k), widen(v), shape), dtype);
    }
    if !is_cpu(&q.device()) {
        let (q, k, v) = (fold_queries(q, shape), fold_keys(k, shape), fold_keys(v, shape));
        let output = probabilities(q, k, shape).0.matmul(v);
        return unfold_queries(output, shape);
    }
    let [rows, width] = q.dims();
    let kv = k.dims()[1];
    let (q, k, v) = (contiguous(q), contiguous(k), contiguous(v));
    let (q, k, v) = (values(&q), values(&k), values(&v));
    let dim = shape.head_dim;
    let mut output = vec![0.0f32; rows * width];
    shape.spans.par_iter().zip(shape.split(&mut output, width)).for_each(|(span, output)| {
        let (q, k, v) = (&q[span.start * width..], &k[span.start * kv..], &v[span.start * kv..]);
        output.par_chunks_mut(QUERY_BLOCK * width).enumerate().for_each(|(block, output)| {
            let start = block * QUERY_BLOCK;
            let count = output.len() / width;
            let seen = shape.keys(start, start + count);
            let keys = seen.len();
            let mut scores = Scores::new(shape);
            for h in 0..shape.heads {
                let key = seen.start * kv + h / shape.group() * dim;
                let q = MatrixRef::rows(&q[start * width + h * dim..], count, dim, width);
                let k = MatrixRef::rows(&k[key..], keys, dim, kv);
                let v = MatrixRef::rows(&v[key..], keys, dim, kv);
                scores.fill(q, k, start - seen.start, shape.sink(h));
                let p = MatrixRef::rows(&scores.p, count, keys, keys);
                let mut o = View { values: &mut output[h * dim..], rows: count, cols: dim, row_stride: width };
                accumulate(&mut o, p, v, Accumulate::Replace, gemm::Parallelism::None);
            }
        });
    });
    tensor(output, [rows, width])
}

/// Gradients of [`causal_attention`]: with P the probabilities and s = `scale`,
/// dV = P^T dO, dP = dO V^T, dS = s P (dP - rowsum(P dP)), dQ = dS K, dK = dS^T Q;
/// dK and dV are summed over the query heads of a group. Of capped scores z, s is s (1 - (z / c)^2).
///
/// d_output as the output, q, k, v as in the forward pass -> (d_q, d_k, d_v)
pub fn causal_attention_backward(
    d_output: Tensor<2>,
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    shape: &AttentionShape,
) -> (Tensor<2>, Tensor<2>, Tensor<2>) {
    if let Some(dtype) = reduced(&q) {
        let (d_q, d_k, d_v) = causal_attention_backward(widen(d_output), widen(q), widen(k), widen(v), shape);
        return (round(d_q, dtype), round(d_k, dtype), round(d_v, dtype));
    }
    if !is_cpu(&q.device()) {
        let d_output = fold_queries(d_output, shape);
        let (q, k, v) = (fold_queries(q, shape), fold_keys(k, shape), fold_keys(v, shape));
        let (p, slopes) = probabilities(q.clone(), k.clone(), shape);
        let d_v = p.clone().swap_dims(2, 3).matmul(d_output.clone());
        let d_p = d_output.matmul(v.swap_dims(2, 3));
        let mean = (p.clone() * d_p.clone()).sum_dim(3);
        let d_s = p * (d_p - mean) * shape.scale;
        let d_s = if let Some(slopes) = slopes { d_s * slopes } else { d_s };
        let d_q = d_s.clone().matmul(k);
        let d_k = d_s.swap_dims(2, 3).matmul(q);
        return (unfold_queries(d_q, shape), unfold_keys(d_k, shape), unfold_keys(d_v, shape));
    }
    let ([rows, width], kv) = (q.dims(), k.dims()[1]);
    let (d, q, k, v) = (contiguous(d_output), contiguous(q), contiguous(k), contiguous(v));
    let (d, q, k, v) = (values(&d), values(&q), values(&k), values(&v));
    let (dim, group) = (shape.head_dim, shape.group());
    let mut d_q = vec![0.0f32; rows * width];
    let (mut d_k, mut d_v) = (vec![0.0f32; rows * kv], vec![0.0f32; rows * kv]);
    let gradients = (shape.split(&mut d_q, width), shape.split(&mut d_k, kv), shape.split(&mut d_v, kv));
    (shape.spans.par_iter()).zip(gradients.0.into_par_iter().zip(gradients.1).zip(gradients.2)).for_each(
        |(span, ((d_q, d_k), d_v))| {
            let (wide, narrow) = (span.start * width, span.start * kv);
            let heads: Vec<_> = (0..shape.key_heads)
                .into_par_iter()
                .map(|key_head| {
                    let (wide, narrow) = (wide + key_head * group * dim, narrow + key_head * dim);
                    let head = KeyHead { d: &d[wide..], q: &q[wide..], k: &k[narrow..], v: &v[narrow..], width, kv };
                    head.backward(key_head, span.len(), shape)
                })
                .collect();
            for (key_head, (q, k, v)) in heads.iter().enumerate() {
                place(d_q, q, key_head, group * dim, width);
                place(d_k, k, key_head, dim, kv);
                place(d_v, v, key_head, dim, kv);
            }
        },
    );
    (tensor(d_q, [rows, width]), tensor(d_k, [rows, kv]), tensor(d_v, [rows, kv]))
}

/// How the output of [`causal_attention`] moves where queries, keys and values move by t_q, t_k and t_v: with P the
/// probabilities, dS = s (t_q K^T + Q t_k^T) and dP = P (dS - rowsum(P dS)), it is dP V + P t_v. Sinks stay where they are.
///
/// Each pair is a value and how it moves, shaped as in the forward pass -> as the output
pub fn causal_attention_tangent(
    [q, t_q]: [Tensor<2>; 2],
    [k, t_k]: [Tensor<2>; 2],
    [v, t_v]: [Tensor<2>; 2],
    shape: &AttentionShape,
) -> Tensor<2> {
    if !is_cpu(&q.device()) {
        let [q, t_q] = [q, t_q].map(|x| fold_queries(x, shape));
        let [k, t_k, v, t_v] = [k, t_k, v, t_v].map(|x| fold_keys(x, shape));
        let (p, slopes) = probabilities(q.clone(), k.clone(), shape);
        let d_s = (t_q.matmul(k.swap_dims(2, 3)) + q.matmul(t_k.swap_dims(2, 3))) * shape.scale;
        let d_s = if let Some(slopes) = slopes { d_s * slopes } else { d_s };
        let mean = (p.clone() * d_s.clone()).sum_dim(3);
        let d_p = p.clone() * (d_s - mean);
        return unfold_queries(d_p.matmul(v) + p.matmul(t_v), shape);
    }
    let ([rows, width], kv, dim) = (q.dims(), k.dims()[1], shape.head_dim);
    let buffers = [q, t_q, k, t_k, v, t_v].map(contiguous);
    let [q, t_q, k, t_k, v, t_v] = buffers.each_ref().map(values);
    let mut output = vec![0.0f32; rows * width];
    shape.spans.par_iter().zip(shape.split(&mut output, width)).for_each(|(span, output)| {
        output.par_chunks_mut(QUERY_BLOCK * width).enumerate().for_each(|(block, output)| {
            let start = block * QUERY_BLOCK;
            let count = output.len() / width;
            let seen = shape.keys(start, start + count);
            let keys = seen.len();
            let (mut scores, mut d) = (Scores::new(shape), vec![0.0f32; count * keys]);
            for h in 0..shape.heads {
                let query = (span.start + start) * width + h * dim;
                let key = (span.start + seen.start) * kv + h / shape.group() * dim;
                let [q, t_q] = [q, t_q].map(|x| MatrixRef::rows(&x[query..], count, dim, width));
                let [k, t_k, v, t_v] = [k, t_k, v, t_v].map(|x| MatrixRef::rows(&x[key..], keys, dim, kv));
                scores.fill(q, k, start - seen.start, shape.sink(h));
                product(&mut d, t_q, k.transposed(), Accumulate::Replace);
                product(&mut d, q, t_k.transposed(), Accumulate::Add);
                scores.slope(&mut d);
                score_gradients(&mut d, &scores.p, keys, shape.scale);
                let mut o = View { values: &mut output[h * dim..], rows: count, cols: dim, row_stride: width };
                let [d, p] = [&d, &scores.p].map(|x| MatrixRef::rows(x, count, keys, keys));
                accumulate(&mut o, d, v, Accumulate::Replace, gemm::Parallelism::None);
                accumulate(&mut o, p, t_v, Accumulate::Add, gemm::Parallelism::None);
            }
        });
    });
    tensor(output, [rows, width])
}

/// One key head of one span with its group of query heads, inside the interleaved buffers.
struct KeyHead<'a> {
    d: &'a [f32],
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    width: usize,
    kv: usize,
}

impl KeyHead<'_> {
    /// (d_q [length, group * head_dim], d_k [length, head_dim], d_v [length, head_dim])
    fn backward(&self, number: usize, length: usize, shape: &AttentionShape) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (dim, group, scale) = (shape.head_dim, shape.group(), shape.scale);
        let mut d_q = vec![0.0f32; length * group * dim];
        let (mut d_k, mut d_v) = (vec![0.0f32; length * dim], vec![0.0f32; length * dim]);
        let (mut scores, mut d_s) = (Scores::new(shape), Vec::new());
        for start in (0..length).step_by(QUERY_BLOCK) {
            let end = (start + QUERY_BLOCK).min(length);
            let (count, seen) = (end - start, shape.keys(start, end));
            let keys = seen.len();
            d_s.resize(count * keys, 0.0);
            let k = MatrixRef::rows(&self.k[seen.start * self.kv..], keys, dim, self.kv);
            let v = MatrixRef::rows(&self.v[seen.start * self.kv..], keys, dim, self.kv);
            let rows = seen.start * dim..end * dim;
            for g in 0..group {
                let offset = start * self.width + g * dim;
                let q = MatrixRef::rows(&self.q[offset..], count, dim, self.width);
                let d = MatrixRef::rows(&self.d[offset..], count, dim, self.width);
                scores.fill(q, k, start - seen.start, shape.sink(number * group + g));
                let p_view = MatrixRef::rows(&scores.p, count, keys, keys);
                product(&mut d_v[rows.clone()], p_view.transposed(), d, Accumulate::Add);
                product(&mut d_s, d, v.transposed(), Accumulate::Replace);
                score_gradients(&mut d_s, &scores.p, keys, scale);
                scores.slope(&mut d_s);
                let d_s = MatrixRef::rows(&d_s, count, keys, keys);
                product(&mut d_k[rows.clone()], d_s.transposed(), q, Accumulate::Add);
                let mut d_q = View {
                    values: &mut d_q[(start * group + g) * dim..],
                    rows: count,
                    cols: dim,
                    row_stride: group * dim,
                };
                accumulate(&mut d_q, d_s, k, Accumulate::Replace, gemm::Parallelism::None);
            }
        }
        (d_q, d_k, d_v)
    }
}

/// dL/d sink of each head: - sum over rows of p_sink rowsum(P dP), with p_sink what the keys leave of 1.
///
/// d_output as the output, q, k, v as in the forward pass -> [1, heads]; made for training, by burn's operations.
pub fn sink_gradients(
    d_output: Tensor<2>,
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    shape: &AttentionShape,
) -> Tensor<2> {
    let [d_output, q, k, v] = [d_output, q, k, v].map(widen);
    let (d_output, q) = (fold_queries(d_output, shape), fold_queries(q, shape));
    let p = probabilities(q, fold_keys(k, shape), shape).0;
    let d_p = d_output.matmul(fold_keys(v, shape).swap_dims(2, 3));
    let left = p.clone().sum_dim(3).neg() + 1.0;
    let by_row = (p * d_p).sum_dim(3) * left;
    let [batch, _, rows, _] = by_row.dims();
    let by_head = by_row.reshape([batch, shape.heads, rows / shape.group()]).sum_dim(2).sum_dim(0);
    by_head.reshape([1, shape.heads]).neg()
}

/// Dense destination (+)= a b on the calling thread.
fn product(destination: &mut [f32], a: MatrixRef<'_>, b: MatrixRef<'_>, mode: Accumulate) {
    let mut view = View::rows(destination, a.rows, b.cols);
    accumulate(&mut view, a, b, mode, gemm::Parallelism::None);
}

/// Probabilities of a block of queries over the keys that they see between them.
struct Scores {
    scale: f32,
    window: usize,
    cap: Option<f32>,
    /// [queries, keys]
    p: Vec<f32>,
    /// d(c tanh(z / c)) / dz = 1 - tanh(z / c)^2, where there is a cap.
    slopes: Vec<f32>,
}

impl Scores {
    fn new(shape: &AttentionShape) -> Self {
        let (scale, cap, window) = (shape.scale, shape.cap, shape.window.unwrap_or(usize::MAX));
        Self { scale, window, cap, p: Vec::new(), slopes: Vec::new() }
    }

    /// Softmax of scaled scores of queries over keys, zero where a query does not see a key; the first query is as far into
    /// the keys as `start` says.
    ///
    /// q [count, head_dim], k [keys, head_dim]
    fn fill(&mut self, q: MatrixRef<'_>, k: MatrixRef<'_>, start: usize, sink: Option<f32>) {
        let keys = k.rows;
        self.p.resize(q.rows * keys, 0.0);
        product(&mut self.p, q, k.transposed(), Accumulate::Replace);
        let mut scale = self.scale;
        if let Some(cap) = self.cap {
            self.slopes.resize(q.rows * keys, 0.0);
            for (score, slope) in self.p.iter_mut().zip(&mut self.slopes) {
                let bent = (*score * scale / cap).tanh();
                (*score, *slope) = (cap * bent, 1.0 - bent * bent);
            }
            scale = 1.0;
        }
        let (scores, window) = (&mut self.p, self.window);
        vectorised(
            #[inline(always)]
            || {
                for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
                    let (row, unseen) = row.split_at_mut(start + i + 1);
                    let (past, seen) = row.split_at_mut(row.len().saturating_sub(window));
                    // Scores are scaled after the maximum is taken off.
                    let mut max = lane_max(seen);
                    if let Some(sink) = sink {
                        max = max.max(sink / scale);
                    }
                    for s in seen.iter_mut() {
                        *s = exp((*s - max) * scale);
                    }
                    let sum = lane_sum(
                        seen.len(),
                        #[inline(always)]
                        |j| seen[j],
                    );
                    let inverse = 1.0 / (sum + sink.map_or(0.0, |sink| exp(sink - max * scale)));
                    for s in seen.iter_mut() {
                        *s *= inverse;
                    }
                    past.fill(0.0);
                    unseen.fill(0.0);
                }
            },
        );
    }

    /// From gradients of capped scores to those of scores, or how these move to how those do.
    fn slope(&self, d: &mut [f32]) {
        if self.cap.is_some() {
            d.iter_mut().zip(&self.slopes).for_each(|(d, slope)| *d *= slope);
        }
    }
}

/// dS = s P (dP - rowsum(P dP)), in place over dP.
fn score_gradients(d_p: &mut [f32], p: &[f32], keys: usize, scale: f32) {
    vectorised(
        #[inline(always)]
        || {
            for (d, p) in d_p.chunks_exact_mut(keys).zip(p.chunks_exact(keys)) {
                let mean = lane_sum(
                    keys,
                    #[inline(always)]
                    |j| p[j] * d[j],
                );
                for (d, &p) in d.iter_mut().zip(p) {
                    *d = scale * p * (*d - mean);
                }
            }
        },
    );
}

/// Copies dense rows of `block` values to column `index * block` of rows `width` wide.
fn place(destination: &mut [f32], source: &[f32], index: usize, block: usize, width: usize) {
    for (row, values) in destination.chunks_exact_mut(width).zip(source.chunks_exact(block)) {
        row[index * block..(index + 1) * block].copy_from_slice(values);
    }
}

/// [rows, heads * dim] -> [sequences, key heads, group * longest, dim], zero beyond a sequence's end
fn fold_queries(x: Tensor<2>, shape: &AttentionShape) -> Tensor<4> {
    let group = shape.group();
    let x = shape.sequences.padded(&x, 0..shape.sequences.len());
    let [batch, tokens, _] = x.dims();
    x.reshape([batch, tokens, shape.heads, shape.head_dim]).swap_dims(1, 2).reshape([
        batch,
        shape.key_heads,
        group * tokens,
        shape.head_dim,
    ])
}

fn unfold_queries(x: Tensor<4>, shape: &AttentionShape) -> Tensor<2> {
    let [batch, _, tokens, _] = x.dims();
    let tokens = tokens / shape.group();
    let x = x.reshape([batch, shape.heads, tokens, shape.head_dim]).swap_dims(1, 2);
    shape.sequences.unpadded(x.reshape([batch * tokens, shape.heads * shape.head_dim]))
}

/// [rows, key heads * dim] -> [sequences, key heads, longest, dim], zero beyond a sequence's end
fn fold_keys(x: Tensor<2>, shape: &AttentionShape) -> Tensor<4> {
    let x = shape.sequences.padded(&x, 0..shape.sequences.len());
    let [batch, tokens, _] = x.dims();
    x.reshape([batch, tokens, shape.key_heads, shape.head_dim]).swap_dims(1, 2)
}

fn unfold_keys(x: Tensor<4>, shape: &AttentionShape) -> Tensor<2> {
    let [batch, _, tokens, _] = x.dims();
    shape.sequences.unpadded(x.swap_dims(1, 2).reshape([batch * tokens, shape.key_heads * shape.head_dim]))
}

/// [batch, key heads, group * tokens, tokens], causal inside each span; and the slopes of what caps the scores.
fn probabilities(q: Tensor<4>, k: Tensor<4>, shape: &AttentionShape) -> (Tensor<4>, Option<Tensor<4>>) {
    let device = q.device();
    let (mut scores, mut slopes) = (q.matmul(k.swap_dims(2, 3)) * shape.scale, None);
    if let Some(cap) = shape.cap {
        let bent = (scores / cap).tanh();
        scores = bent.clone() * cap;
        slopes = Some(bent.square().neg() + 1.0);
    }
    let [batch, heads, rows, tokens] = scores.dims();
    let unseen = unseen(shape, &device).repeat_dim(2, shape.group()).expand([batch, heads, rows, tokens]);
    let scores = scores.mask_fill(unseen, f32::NEG_INFINITY);
    let Some(sinks) = &shape.sinks else { return (activation::softmax(scores, 3), slopes) };
    let sinks = Tensor::<1>::from_data(TensorData::new(sinks.clone(), [shape.heads]), &device);
    let sinks = sinks.reshape([1, shape.heads, 1]).repeat_dim(2, rows / shape.group());
    let sinks = sinks.reshape([1, heads, rows, 1]).expand([batch, heads, rows, 1]);
    let with_sink = activation::softmax(Tensor::cat(vec![scores, sinks], 3), 3);
    (with_sink.narrow(3, 0, tokens), slopes)
}

/// True where the token of the row must not see that of the column: later ones, those behind the window, and those of other
/// spans.
///
/// Beyond a sequence's end rows see their like: a row that sees nothing has no softmax.
///
/// [1 or sequences, 1, longest, longest]
fn unseen(shape: &AttentionShape, device: &Device) -> Tensor<4, Bool> {
    let (batch, tokens) = (shape.sequences.len(), shape.sequences.longest());
    let mut future = Tensor::<2, Bool>::tril_mask([tokens, tokens], 0, device).reshape([1, 1, tokens, tokens]);
    if let Some(window) = shape.window.filter(|&window| window < tokens) {
        let near = Tensor::<2, Bool>::tril_mask([tokens, tokens], -(window as i64), device);
        future = future.bool_or(near.bool_not().reshape([1, 1, tokens, tokens]));
    }
    if shape.spans.len() == batch {
        return future;
    }
    // 0 lies beyond the end.
    let mut numbers = vec![0_i32; batch * tokens];
    let mut spans = (1..).zip(&shape.spans).peekable();
    for (sequence, rows) in shape.sequences.iter().enumerate() {
        while let Some((number, span)) = spans.next_if(|(_, span)| span.end <= rows.end) {
            let first = sequence * tokens + span.start - rows.start;
            numbers[first..first + span.len()].fill(number);
        }
    }
    let numbers = Tensor::<1, Int>::from_data(TensorData::new(numbers, [batch * tokens]), device);
    let size = [batch, 1, tokens, tokens];
    let own = numbers.clone().reshape([batch, 1, tokens, 1]).expand(size);
    let other = numbers.reshape([batch, 1, 1, tokens]).expand(size);
    own.not_equal(other).bool_or(future.expand(size))
}
