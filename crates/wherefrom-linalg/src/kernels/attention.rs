//! Causal grouped-query attention, forward and backward.
//!
//! Neither direction keeps the probabilities: memory is linear in tokens on the CPU, and the
//! backward pass computes them again from queries and keys.

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
}

impl AttentionShape {
    fn group(&self) -> usize {
        self.heads / self.key_heads
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

/// O = softmax(mask(s Q K^T)) V per head, with s = `scale`.
///
/// q [rows, heads * head_dim], k and v [rows, key_heads * head_dim] -> [rows, heads * head_dim]
pub fn causal_attention(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, shape: &AttentionShape) -> Tensor<2> {
    if let Some(dtype) = reduced(&q) {
        return round(causal_attention(widen(q), widen(k), widen(v), shape), dtype);
    }
    if !is_cpu(&q.device()) {
        let (q, k, v) = (fold_queries(q, shape), fold_keys(k, shape), fold_keys(v, shape));
        let output = probabilities(q, k, shape).matmul(v);
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
            let end = start + count;
            let mut scores = vec![0.0f32; count * end];
            for h in 0..shape.heads {
                let key = h / shape.group() * dim;
                let q = MatrixRef::rows(&q[start * width + h * dim..], count, dim, width);
                let k = MatrixRef::rows(&k[key..], end, dim, kv);
                let v = MatrixRef::rows(&v[key..], end, dim, kv);
                block_probabilities(&mut scores, q, k, start, shape.scale);
                let p = MatrixRef::rows(&scores, count, end, end);
                let mut o = View { values: &mut output[h * dim..], rows: count, cols: dim, row_stride: width };
                accumulate(&mut o, &p, &v, Accumulate::Replace, gemm::Parallelism::None);
            }
        });
    });
    tensor(output, [rows, width])
}

/// Gradients of [`causal_attention`]: with P the probabilities and s = `scale`,
/// dV = P^T dO, dP = dO V^T, dS = s P (dP - rowsum(P dP)), dQ = dS K, dK = dS^T Q;
/// dK and dV are summed over the query heads of a group.
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
        let p = probabilities(q.clone(), k.clone(), shape);
        let d_v = p.clone().swap_dims(2, 3).matmul(d_output.clone());
        let d_p = d_output.matmul(v.swap_dims(2, 3));
        let mean = (p.clone() * d_p.clone()).sum_dim(3);
        let d_s = p * (d_p - mean) * shape.scale;
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
                    head.backward(span.len(), shape)
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
/// probabilities, dS = s (t_q K^T + Q t_k^T) and dP = P (dS - rowsum(P dS)), it is dP V + P t_v.
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
        let p = probabilities(q.clone(), k.clone(), shape);
        let d_s = (t_q.matmul(k.swap_dims(2, 3)) + q.matmul(t_k.swap_dims(2, 3))) * shape.scale;
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
            let end = start + count;
            let (mut p, mut d) = (vec![0.0f32; count * end], vec![0.0f32; count * end]);
            for h in 0..shape.heads {
                let query = (span.start + start) * width + h * dim;
                let key = span.start * kv + h / shape.group() * dim;
                let [q, t_q] = [q, t_q].map(|x| MatrixRef::rows(&x[query..], count, dim, width));
                let [k, t_k, v, t_v] = [k, t_k, v, t_v].map(|x| MatrixRef::rows(&x[key..], end, dim, kv));
                block_probabilities(&mut p, q, k, start, shape.scale);
                product(&mut d, t_q, k.transposed(), Accumulate::Replace);
                product(&mut d, q, t_k.transposed(), Accumulate::Add);
                score_gradients(&mut d, &p, end, shape.scale);
                let mut o = View { values: &mut output[h * dim..], rows: count, cols: dim, row_stride: width };
                let [d, p] = [&d, &p].map(|x| MatrixRef::rows(x, count, end, end));
                accumulate(&mut o, &d, &v, Accumulate::Replace, gemm::Parallelism::None);
                accumulate(&mut o, &p, &t_v, Accumulate::Add, gemm::Parallelism::None);
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
    fn backward(&self, length: usize, shape: &AttentionShape) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (dim, group, scale) = (shape.head_dim, shape.group(), shape.scale);
        let mut d_q = vec![0.0f32; length * group * dim];
        let (mut d_k, mut d_v) = (vec![0.0f32; length * dim], vec![0.0f32; length * dim]);
        let (mut p, mut d_s) = (Vec::new(), Vec::new());
        for start in (0..length).step_by(QUERY_BLOCK) {
            let end = (start + QUERY_BLOCK).min(length);
            let count = end - start;
            p.resize(count * end, 0.0);
            d_s.resize(count * end, 0.0);
            let k = MatrixRef::rows(self.k, end, dim, self.kv);
            let v = MatrixRef::rows(self.v, end, dim, self.kv);
            for g in 0..group {
                let offset = start * self.width + g * dim;
                let q = MatrixRef::rows(&self.q[offset..], count, dim, self.width);
                let d = MatrixRef::rows(&self.d[offset..], count, dim, self.width);
                block_probabilities(&mut p, q, k, start, scale);
                let p_view = MatrixRef::rows(&p, count, end, end);
                product(&mut d_v[..end * dim], p_view.transposed(), d, Accumulate::Add);
                product(&mut d_s, d, v.transposed(), Accumulate::Replace);
                score_gradients(&mut d_s, &p, end, scale);
                let d_s = MatrixRef::rows(&d_s, count, end, end);
                product(&mut d_k[..end * dim], d_s.transposed(), q, Accumulate::Add);
                let mut d_q = View {
                    values: &mut d_q[(start * group + g) * dim..],
                    rows: count,
                    cols: dim,
                    row_stride: group * dim,
                };
                accumulate(&mut d_q, &d_s, &k, Accumulate::Replace, gemm::Parallelism::None);
            }
        }
        (d_q, d_k, d_v)
    }
}

/// Dense destination (+)= a b on the calling thread.
fn product(destination: &mut [f32], a: MatrixRef<'_>, b: MatrixRef<'_>, mode: Accumulate) {
    let mut view = View::rows(destination, a.rows, b.cols);
    accumulate(&mut view, &a, &b, mode, gemm::Parallelism::None);
}

/// Softmax of scaled scores of queries start.. over keys 0..k.rows, zero above the diagonal.
///
/// q [count, head_dim], k [keys, head_dim] -> scores [count, keys]
fn block_probabilities(scores: &mut [f32], q: MatrixRef<'_>, k: MatrixRef<'_>, start: usize, scale: f32) {
    let keys = k.rows;
    product(scores, q, k.transposed(), Accumulate::Replace);
    vectorised(
        #[inline(always)]
        || {
            for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
                let (seen, unseen) = row.split_at_mut(start + i + 1);
                let max = lane_max(seen);
                for s in seen.iter_mut() {
                    *s = exp((*s - max) * scale);
                }
                let inverse = 1.0
                    / lane_sum(
                        seen.len(),
                        #[inline(always)]
                        |j| seen[j],
                    );
                for s in seen.iter_mut() {
                    *s *= inverse;
                }
                unseen.fill(0.0);
            }
        },
    );
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

/// [batch, key heads, group * tokens, tokens], causal inside each span
fn probabilities(q: Tensor<4>, k: Tensor<4>, shape: &AttentionShape) -> Tensor<4> {
    let device = q.device();
    let scores = q.matmul(k.swap_dims(2, 3)) * shape.scale;
    let size = scores.dims();
    let unseen = unseen(shape, &device).repeat_dim(2, shape.group()).expand(size);
    activation::softmax(scores.mask_fill(unseen, f32::NEG_INFINITY), 3)
}

/// True where the token of the row must not see that of the column: later ones, and those of other spans.
///
/// Beyond a sequence's end rows see their like: a row that sees nothing has no softmax.
///
/// [1 or sequences, 1, longest, longest]
fn unseen(shape: &AttentionShape, device: &Device) -> Tensor<4, Bool> {
    let (batch, tokens) = (shape.sequences.len(), shape.sequences.longest());
    let future = Tensor::<2, Bool>::tril_mask([tokens, tokens], 0, device).reshape([1, 1, tokens, tokens]);
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
