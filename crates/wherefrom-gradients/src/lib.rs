//! Gradients of the summed loss, per example and module, as exact factors: G_z = sum_t d_t a_t^T.
//!
//! reads   tokens, model
//! writes  gradients

pub mod losses;

use std::ops::Range;
use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Artifact, Draft, Example, Exec, Factors, Gradients, Row, Span, Tokens, bad_input};
use wherefrom_model::{Batch, Coverage, Labels, Model, Modules, Precision, Selection, Sequence, open_device};

/// Raised when results change.
pub const VERSION: u32 = 1;

/// Whose gradients.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Attributed modules.
    pub modules: Modules,
    /// Of the model's forward and backward pass.
    pub precision: Precision,
}

/// What they are taken of.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Queries, as a rule.
    pub tokens: Artifact<Tokens>,
    /// Hugging Face folder.
    pub model: PathBuf,
}

/// Gradients of L with the text's own labels. Segments keep their weights: a contrast query's L is L(completion) - L(rival).
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    let device = open_device(exec.device.gpu())?;
    let model = Model::load(&inputs.model, &device)?.with_precision(config.precision)?;
    let selection = Selection::new(&config.modules, model.modules())?;
    draft.summary("coverage", Coverage::new(&model.outline, &selection))?;
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
        let lengths: Vec<_> = examples.iter().map(|example| example.input_ids.len()).collect();
        for group in model.batches(&lengths, exec.batch_tokens) {
            let sequences: Vec<_> = group.iter().map(|&index| sequence(&examples[index])).collect();
            let batch = Batch::new(&sequences, &device);
            model.taps(&batch, &Labels::Empirical, &selection, &mut |tap| {
                let (left, right) = (values(tap.output_gradients)?, values(tap.activations)?);
                let ([out, inside], name) = ([tap.module.out_features, tap.module.in_features], &tap.module.name);
                for (&index, tokens) in group.iter().zip(tap.tokens.sequences.iter()) {
                    rows[index].push(Factors {
                        row: examples[index].example,
                        module: name.clone(),
                        rank: tokens.len(),
                        left_shape: [out, tokens.len()],
                        left: columns(&left, out, tokens.clone()),
                        right_shape: [inside, tokens.len()],
                        right: columns(&right, inside, tokens),
                    });
                }
                Ok(())
            })?;
            exec.reporter.advance(batch.rows() as u64);
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

fn sequence(example: &Example) -> Sequence<'_> {
    Sequence {
        example: example.example,
        input_ids: &example.input_ids,
        target_mask: &example.target_mask,
        segments: &example.segments,
        weights: &example.weights,
    }
}

fn values(tensor: Tensor<2>) -> Result<Vec<f32>> {
    tensor.into_data().try_into_vec().map_err(|error| anyhow::anyhow!("{error:?}"))
}

/// Rows `tokens` of x [rows, width], transposed: [width, tokens], row-major; a cache line of each row at a time.
fn columns(x: &[f32], width: usize, tokens: Range<usize>) -> Vec<f32> {
    const LINE: usize = 16;
    let mut transposed = vec![0.0; width * tokens.len()];
    transposed.par_chunks_mut(LINE * tokens.len()).enumerate().for_each(|(line, transposed)| {
        for (place, row) in x.chunks_exact(width).skip(tokens.start).take(tokens.len()).enumerate() {
            for (value, column) in row[LINE * line..].iter().zip(transposed.chunks_exact_mut(tokens.len())) {
                column[place] = *value;
            }
        }
    });
    transposed
}
