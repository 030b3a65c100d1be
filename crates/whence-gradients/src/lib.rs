//! Gradients of the summed loss, per example and module, as exact factors: G_z = sum_t d_t a_t^T.
//!
//! reads   tokens, model
//! writes  gradients

pub mod losses;

use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use whence_artifact::{Artifact, Draft, Example, Exec, Factors, Gradients, Row, Span, Tokens, bad_input};
use whence_model::{Batch, Coverage, Labels, Model, Modules, Selection, Sequence, batches, resolve_device};

/// Raised when results change.
pub const VERSION: u32 = 1;

/// Whose gradients.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Attributed modules.
    pub modules: Modules,
}

/// What they are taken of.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Queries, as a rule.
    pub tokens: Artifact<Tokens>,
    /// Hugging Face folder.
    pub model: PathBuf,
}

/// Gradients of L with the text's own labels; a contrast query's is L(completion) - L(rival).
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    let device = resolve_device(&exec.device)?;
    let model = Model::load(&inputs.model, &device)?;
    let selection = Selection::new(&config.modules, model.modules())?;
    draft.summary("coverage", Coverage::new(&model.config, &selection))?;
    let spans: Vec<Span> = draft.plan(|| inputs.tokens.spans())?;
    exec.reporter.begin("gradients", "tokens", inputs.tokens.tokens(), 0);
    for (part, span) in spans.iter().enumerate().filter(|(part, _)| !draft.has(*part)) {
        let examples = inputs.tokens.read_span(span)?;
        if let Some(row) = examples.iter().find(|row| !row.target_mask.contains(&true)) {
            return Err(bad_input(format!(
                "row {} of the tokens has no completion, so its gradient is nothing; give it one, or let a `generate` step \
                 complete it: {}",
                row.example,
                inputs.tokens.folder().display()
            )));
        }
        let mut rows: Vec<Vec<Factors>> = examples.iter().map(|_| Vec::new()).collect();
        let rivals: Vec<_> = (0..examples.len()).filter(|&index| !examples[index].contrast_ids.is_empty()).collect();
        let own: Vec<_> = (0..examples.len()).collect();
        for (sign, chosen) in [(1.0, own), (-1.0, rivals)] {
            let sequences: Vec<_> = chosen.iter().map(|&index| sequence(&examples[index], sign)).collect();
            let lengths: Vec<_> = sequences.iter().map(|sequence| sequence.input_ids.len()).collect();
            for group in batches(&lengths, exec.batch_tokens) {
                let batch = Batch::new(&group.iter().map(|&index| sequences[index]).collect::<Vec<_>>(), &device);
                let numbers: Vec<_> = group.iter().map(|&index| chosen[index]).collect();
                model.taps(&batch, &Labels::Empirical, &selection, &mut |tap| {
                    let (left, right) = (values(tap.output_gradients * sign)?, values(tap.activations)?);
                    for (b, &number) in numbers.iter().enumerate() {
                        let rows = &mut rows[number];
                        let name = &tap.module.name;
                        let start = b * batch.tokens;
                        let tokens = start..start + batch.lengths[b];
                        let d = columns(&left, tap.module.out_features, tokens.clone());
                        let a = columns(&right, tap.module.in_features, tokens);
                        match rows.iter_mut().find(|row| row.module == *name) {
                            Some(row) => append(row, d, a),
                            None => rows.push(factors(examples[number].example, name, d, a)),
                        }
                    }
                    Ok(())
                })?;
                exec.reporter.advance(batch.real_tokens() as u64);
            }
        }
        draft.write_each(
            part,
            rows.into_iter().map(|mut rows| {
                rows.reverse(); // backward came by the modules last to first
                <Factors as Row<Gradients>>::to_batch(&rows)
            }),
        )?;
    }
    exec.reporter.end();
    Ok(())
}

fn sequence(example: &Example, sign: f32) -> Sequence<'_> {
    if sign > 0.0 {
        Sequence { example: example.example, input_ids: &example.input_ids, target_mask: &example.target_mask }
    } else {
        Sequence { example: example.example, input_ids: &example.contrast_ids, target_mask: &example.contrast_mask }
    }
}

fn values(tensor: Tensor<2>) -> Result<Vec<f32>> {
    tensor.into_data().try_into_vec().map_err(|error| anyhow::anyhow!("{error:?}"))
}

/// A row-major matrix with one column per token.
struct Columns {
    rows: usize,
    tokens: usize,
    values: Vec<f32>,
}

/// Rows `tokens` of x [rows, width], transposed: [width, tokens].
fn columns(x: &[f32], width: usize, tokens: std::ops::Range<usize>) -> Columns {
    let values = (0..width).flat_map(|i| tokens.clone().map(move |t| x[t * width + i])).collect();
    Columns { rows: width, tokens: tokens.len(), values }
}

fn factors(example: u64, module: &str, d: Columns, a: Columns) -> Factors {
    Factors {
        row: example,
        module: module.into(),
        rank: d.tokens,
        left_shape: [d.rows, d.tokens],
        left: d.values,
        right_shape: [a.rows, a.tokens],
        right: a.values,
    }
}

/// [left | d] [right | a]^T = left right^T + d a^T.
fn append(row: &mut Factors, d: Columns, a: Columns) {
    let join = |x: &[f32], [rows, n]: [usize; 2], y: &Columns| {
        (0..rows)
            .flat_map(|i| x[i * n..(i + 1) * n].iter().chain(&y.values[i * y.tokens..(i + 1) * y.tokens]))
            .copied()
            .collect::<Vec<_>>()
    };
    row.left = join(&row.left, row.left_shape, &d);
    row.right = join(&row.right, row.right_shape, &a);
    row.rank += d.tokens;
    row.left_shape[1] = row.rank;
    row.right_shape[1] = row.rank;
}
