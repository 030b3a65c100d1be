//! Gradients of the summed loss, or of another -f, per example and module, as exact factors: G_z = sum_t d_t a_t^T.
//!
//! reads   tokens, model, vectors
//! writes  gradients

pub mod activations;
mod kept;
pub mod losses;
pub mod measure;
pub mod preferences;
pub mod project_gradients;

use std::borrow::Cow;
use std::ops::Range;
use std::rc::Rc;

use anyhow::{Context as _, Result};
use burn::tensor::Tensor;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{
    Artifact, BATCH_BYTES, Draft, Example, Factors, Gradients, Kind, Tokens, Vectors, bad_input, into_batches,
};
use wherefrom_model::{Coverage, Footprint, Labels, Measurement, Module, Modules, Precision, Selection};
use wherefrom_pass::{Corpus, open, place, sequence, sizes_of};
use wherefrom_stage::{About, Checkpoint, Cost, Exec, Machine, ModelFiles, Planned, Role, Size, Stage, Writes};

use crate::kept::{Kept, Place};
use crate::measure::{Measure, Measures, reached};

/// Raised when results change.
pub const VERSION: u32 = 1;

/// Bytes of factors that are made before they are written.
const RUN: u64 = 2 << 30;

/// The stage `gradients`.
pub static STAGE: Stage<Config> = Stage {
    about: About {
        model: Checkpoint::Runs,
        inherits: &["modules", "precision"],
        ..About::new("gradients", VERSION).split()
    },
    roles: &[
        Role::required("tokens", &[Kind::Tokens]),
        Role::when("vectors", &[Kind::Vectors], |config| config.measure.is_some()),
    ],
    parse: serde_json::from_value,
    check: |_| Ok(()),
    writes: Writes::One(Kind::Gradients),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| {
        let vectors = given.maybe("vectors")?;
        run(config, &Inputs { tokens: given.open("tokens")?, vectors, model: given.model()? }, exec, draft)
    },
};

/// Whose gradients.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Attributed modules: `"mlp"`, `"all"`, `"everything"`, or globs on their names.
    pub modules: Modules,
    /// Precision of the model's forward and backward pass.
    pub precision: Precision,
    /// In place of the loss: minus the projection on a vector, `{ projection = SITE, over = "response-avg", trait = NAME }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measure: Option<Measure>,
}

/// What they are taken of.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Queries, as a rule.
    pub tokens: Artifact<Tokens>,
    /// Directions, where a projection is measured.
    pub vectors: Option<Artifact<Vectors>>,
    /// Hugging Face folder.
    pub model: ModelFiles,
}

/// Gradients of L with the text's own labels, or of -f of the measurement. Segments keep their weights: a contrast query's L is
/// L(completion) - L(rival), and its projection the difference of two means.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    let model = open(&inputs.model, config.precision, exec)?;
    let mut selection = Selection::new(&config.modules, model.modules())?;
    let mut measures = Measures::One(Measurement::LogProbability);
    if let Some(measure) = &config.measure {
        let vectors = inputs.vectors.as_ref().context("a projection is measured and no vectors are wired")?;
        let (projections, measured) = measure.of(vectors, model.outline.hidden())?;
        selection = reached(selection, projections.any(), &model.outline)?;
        measures = projections;
        draft.summary("measured", measured)?;
    }
    let each = token_bytes(selection.modules());
    let footprint = model.footprint(exec.batch_of(inputs.tokens.tokens())).tapping(selection.modules());
    let aside = beside(footprint, each, RUN, RUN, true);
    let (model, room) = place(model, selection.modules(), &inputs.tokens, exec, aside)?;
    draft.summary("coverage", Coverage::new(&model.outline, &selection))?;
    // Of experts no example may have a row.
    if selection.modules().iter().any(|module| module.routed.is_some()) {
        draft.summary("modules", selection.modules().iter().map(|module| &module.name).collect::<Vec<_>>())?;
    }
    let corpus = Corpus::new("gradients", &model, &inputs.tokens, exec);
    let pass = Pass { corpus, selection: &selection, measures: &measures };
    corpus.parts(corpus.spans(draft)?, |part, examples| {
        if let Some(row) = examples.iter().find(|row| !row.target_mask.contains(&true)) {
            return Err(bad_input(format!(
                "row {} of the tokens has no completion, so its gradient is nothing; give it one, or let a `generate` step \
                 complete it: {}",
                row.example,
                inputs.tokens.folder().display()
            )));
        }
        if let Some(row) = examples.iter().find(|row| config.measure.is_some() && !row.preference.is_empty()) {
            return Err(bad_input(format!(
                "row {} of the tokens is a preference, of which there is no projection; take its two answers as rows of their \
                 own, or leave `measure` out: {}",
                row.example,
                inputs.tokens.folder().display()
            )));
        }
        let lengths: Vec<_> = examples.iter().map(|example| example.input_ids.len()).collect();
        let rows = |run: Range<usize>| {
            let lengths = &lengths[run.clone()];
            let [all, longest] = [lengths.iter().sum::<usize>(), lengths.iter().copied().max().unwrap_or(0)];
            let held = beside(footprint, each, each * all as u64, each * longest as u64, false);
            let fits = room.is_none_or(|room| held <= room);
            pass.rows(&examples[run], &if fits { Place::Memory } else { Place::File(Rc::new(draft.aside()?)) })
        };
        let batches = runs(&lengths, each, RUN).into_iter().flat_map(|run| -> Box<dyn Iterator<Item = _>> {
            match rows(run) {
                // One example's rows: a record batch, or several where one would be too large.
                Ok(rows) => Box::new(rows.into_iter().flat_map(|rows| {
                    into_batches::<Gradients, _>(rows.into_iter().map(Kept::factors), BATCH_BYTES)
                })),
                Err(error) => Box::new(std::iter::once(Err(error))),
            }
        });
        draft.write_each(part, batches)
    })
}

struct Pass<'a> {
    corpus: Corpus<'a>,
    selection: &'a Selection,
    measures: &'a Measures,
}

impl Pass<'_> {
    /// The factors of each sequence, modules in the order of the forward pass.
    fn rows(&self, examples: &[Example], place: &Place) -> Result<Vec<Vec<Kept>>> {
        let mut rows: Vec<Vec<Kept>> = examples.iter().map(|_| Vec::new()).collect();
        let model = self.corpus.model;
        for (measurement, places) in self.measures.shares(examples)? {
            let own = match places.len() == examples.len() {
                true => Cow::Borrowed(examples),
                false => Cow::Owned(places.iter().map(|&place| examples[place].clone()).collect()),
            };
            self.corpus.batches(&own, |group, batch| {
                let mut overflow = None;
                model.measurement_taps(batch, measurement, &Labels::Empirical, self.selection, &mut |tap| {
                    let (left, right) = (values(tap.output_gradients)?, values(tap.activations)?);
                    let ([out, inside], name) = ([tap.module.out_features, tap.module.in_features], &tap.module.name);
                    let wrong = |values: &[f32], width: usize| {
                        values.iter().position(|value| !value.is_finite()).map(|place| place / width)
                    };
                    if let Some(row) = wrong(&left, out).or_else(|| wrong(&right, inside)) {
                        let place = tap.tokens.sequences.iter().position(|tokens| tokens.contains(&row)).unwrap_or(0);
                        // Said once the pass is over: it is run again to find where.
                        overflow.get_or_insert((places[group[place]], name.clone()));
                        return Ok(());
                    }
                    // Of an expert, examples that route nothing there have no row.
                    for (&index, tokens) in
                        group.iter().zip(tap.tokens.sequences.iter()).filter(|(_, rows)| !rows.is_empty())
                    {
                        let index = places[index];
                        rows[index].push(place.keep(Factors {
                            row: examples[index].example,
                            module: name.clone(),
                            rank: tokens.len(),
                            left_shape: [out, tokens.len()],
                            left: columns(&left, out, tokens.clone()),
                            right_shape: [inside, tokens.len()],
                            right: columns(&right, inside, tokens),
                        })?);
                    }
                    Ok(())
                })?;
                if let Some((index, module)) = overflow {
                    let what = format!("its gradient in {module}");
                    return Err(model.overflow(sequence(&examples[index]), &what, &Labels::Empirical));
                }
                Ok(())
            })?;
        }
        // Backward came by the modules last to first.
        rows.iter_mut().for_each(|rows| rows.reverse());
        for (rows, example) in rows.iter_mut().zip(examples).filter(|(rows, _)| rows.is_empty()) {
            rows.push(place.keep(nothing(example.example, &self.selection.modules()[0]))?);
        }
        Ok(rows)
    }
}

/// The factors of an example that routes nothing to any chosen expert: zeros, so that it is there.
fn nothing(row: u64, module: &Module) -> Factors {
    let [out, inside] = [module.out_features, module.in_features];
    Factors {
        row,
        module: module.name.clone(),
        rank: 1,
        left_shape: [out, 1],
        left: vec![0.0; out],
        right_shape: [inside, 1],
        right: vec![0.0; inside],
    }
}

/// Consecutive items of these lengths, `each` bytes for one of a length, as many at a time as have room, and one at least.
fn runs(lengths: &[usize], each: u64, room: u64) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut held = 0;
    for (index, length) in lengths.iter().enumerate() {
        let bytes = each.saturating_mul(*length as u64);
        match runs.last_mut().filter(|_| bytes <= room.saturating_sub(held)) {
            Some(run) => {
                run.end = index + 1;
                held += bytes;
            }
            None => {
                runs.push(index..index + 1);
                held = bytes;
            }
        }
    }
    runs
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

/// Bytes of a token's factors.
fn token_bytes(modules: &[Module]) -> u64 {
    let each = |module: &Module| module.share() * (4 * (module.in_features + module.out_features)) as f64;
    modules.iter().map(each).sum::<f64>().round() as u64
}

/// Bytes that a run's factors take beside weights and activations until they are written, of which the longest example has so
/// many; `each` of a token, and where they wait in a file with `aside`.
fn beside(footprint: Footprint, each: u64, run: u64, longest: u64, aside: bool) -> u64 {
    let (activations, batch) = (footprint.activations, run.min(each.saturating_mul(footprint.batch_tokens)));
    // The states of a block are dropped where its factors are made, so that those of a batch take the room of its states.
    let making = if aside { activations } else { run - batch + batch.max(activations) };
    let written = longest.min(BATCH_BYTES as u64);
    making.max(2 * written + if aside { written } else { run }).saturating_sub(activations)
}

fn cost(_config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = sizes_of(planned, machine) else { return Cost::new(0.0, 0.0, 0.0) };
    let Size { tokens, rows } = planned.size_of("tokens");
    let each = token_bytes(&sizes.modules);
    let longest = each.saturating_mul((tokens / rows.max(1.0)) as u64);
    let run = each.saturating_mul(tokens as u64).min(RUN.max(longest));
    let [held, aside] = [false, true].map(|aside| beside(sizes.footprint, each, run, longest, aside));
    let least = beside(sizes.footprint, each, RUN, RUN, true) as f64;
    let sizes = sizes.fitting(machine.memory, least);
    let running = sizes.footprint.total();
    let memory = running + if machine.memory.is_none_or(|memory| running + held <= memory) { held } else { aside };
    Cost::new(memory as f64, tokens * sizes.sums * 4.0, sizes.scan(tokens)).note(sizes.footprint.note())
}
