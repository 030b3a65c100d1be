//! Sums over a corpus, of some modules in each pass, that survive a kill: modules whose pass is over are parts of the
//! draft, and the pass that is on has one checkpoint {modules, sums, next span}, replaced atomically every so often.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Artifact, Draft, Example, Span, Tokens, bad_input};
use wherefrom_linalg::kernels::{Form, Sum};
use wherefrom_model::{Batch, Labels, Model, Module, Selection, Sequence, Tap};
use wherefrom_stage::Exec;

use crate::passes::{fits, room, split};

/// Seconds between checkpoints at least; writing one may take a twentieth of the time.
const INTERVAL: Duration = Duration::from_secs(20);
/// Name of the checkpoint.
const SUMS: &str = "sums-by-module";
/// Numbers that are read or written at once.
const CHUNK: usize = 1 << 16;

/// What was summed over.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) tokens: u64,
    pub(crate) examples: u64,
}

impl Counts {
    /// As an earlier pass of this draft found them.
    pub(crate) fn restore(draft: &Draft) -> Result<Option<Self>> {
        draft.restore("counts")?.map(|bytes| serde_json::from_slice(&bytes).context("read the counts")).transpose()
    }

    /// For later passes, and in the metadata of every part. Called before a part is written.
    pub(crate) fn note(self, draft: &mut Draft) -> Result<()> {
        draft.checkpoint("counts", &serde_json::to_vec(&self)?)?;
        draft.metadata("tokens", self.tokens.to_string());
        draft.metadata("examples", self.examples.to_string());
        draft.summary("tokens", self.tokens)?;
        draft.summary("examples", self.examples)
    }
}

/// What is summed over, and how.
pub(crate) struct Fit<'a> {
    /// For the reporter.
    pub(crate) task: &'a str,
    pub(crate) model: &'a Model,
    pub(crate) labels: &'a Labels,
    pub(crate) selection: &'a Selection,
    pub(crate) tokens: &'a Artifact<Tokens>,
    pub(crate) exec: &'a Exec,
}

impl<'a> Fit<'a> {
    /// The passes that are still to be made; a module's part is numbered by its place in the selection. `bytes` is what
    /// one pass needs for these modules. A pass that was killed goes on as it was, if it still fits.
    pub(crate) fn passes(&'a self, draft: &Draft, bytes: impl Fn(&[Module]) -> u64) -> Result<Vec<Pass<'a>>> {
        draft.parts(self.selection.modules().len());
        let spans: Vec<Span> = draft.plan(|| self.tokens.spans())?;
        let modules = self.selection.modules();
        let (per_pass, room) = (self.exec.modules_per_pass, room(self.exec, &self.model.outline));
        let bytes = |chosen: &[usize]| bytes(&chosen.iter().map(|&place| modules[place].clone()).collect::<Vec<_>>());
        let mut left: Vec<usize> = (0..modules.len()).filter(|&place| !draft.has(place)).collect();
        let begun: Vec<usize> = match draft.restore_each(SUMS)? {
            Some(mut saved) => {
                let saved = Header::read(&mut saved)?.modules;
                (0..modules.len()).filter(|&place| saved.iter().any(|(name, _)| *name == modules[place].name)).collect()
            }
            None => Vec::new(),
        };
        let mut passes = Vec::new();
        if begun.iter().any(|place| left.contains(place)) && fits(&begun, per_pass, room, bytes) {
            left.retain(|place| !begun.contains(place));
            passes.push(begun);
        }
        passes.extend(split(&left, per_pass, room, bytes));
        for pass in &passes {
            if let (Some(room), [alone]) = (room.filter(|&room| per_pass.is_none() && bytes(pass) > room), &pass[..]) {
                let (name, gigabytes) = (&modules[*alone].name, |bytes: u64| bytes as f64 / 1e9);
                self.exec.reporter.warn(&format!(
                    "{}: {name} alone needs {:.1} GB where {:.1} GB are left; give more --memory, or set blocks of the \
                     covariance step",
                    self.task,
                    gigabytes(bytes(pass)),
                    gigabytes(room)
                ));
            }
        }
        let of = passes.len();
        let pass = |(number, places): (usize, Vec<usize>)| Pass {
            fit: self,
            selection: self.selection.only(&places),
            places,
            spans: spans.clone(),
            number,
            of,
        };
        Ok(passes.into_iter().enumerate().map(pass).collect())
    }
}

/// Some modules, in one pass over the tokens.
pub(crate) struct Pass<'a> {
    fit: &'a Fit<'a>,
    /// The modules of this pass.
    pub(crate) selection: Selection,
    /// Their places in the whole selection: the numbers of their parts.
    pub(crate) places: Vec<usize>,
    spans: Vec<Span>,
    number: usize,
    of: usize,
}

/// Sums by slot.
pub(crate) struct Sums {
    pub(crate) slots: Vec<Sum>,
    /// Tokens that each module of the pass saw.
    pub(crate) seen: Vec<u64>,
    pub(crate) counts: Counts,
    next: usize,
}

impl Pass<'_> {
    /// Runs the model over every span that is not yet summed; `visit` adds each tap to the slots, which have these forms.
    pub(crate) fn sum(
        &self,
        draft: &Draft,
        forms: &[Form],
        mut visit: impl FnMut(Tap<'_>, &mut [Sum]) -> Result<()>,
    ) -> Result<Sums> {
        let Fit { task, model, labels, tokens, exec, .. } = *self.fit;
        let names = self.selection.modules().iter().map(|module| module.name.clone()).collect::<Vec<_>>();
        let mut sums = Sums::restore(draft, &names, forms)?;
        let task = if self.of == 1 { task.into() } else { format!("{task}, pass {} of {}", self.number + 1, self.of) };
        exec.reporter.begin(&task, "tokens", tokens.tokens(), sums.counts.tokens);
        let (mut saved, mut cost) = (Instant::now(), Duration::ZERO);
        for (index, span) in self.spans.iter().enumerate().skip(sums.next) {
            let examples = tokens.read_span(span)?;
            let sequences: Vec<_> = examples.iter().map(sequence).collect();
            let lengths: Vec<_> = sequences.iter().map(|sequence| sequence.input_ids.len()).collect();
            for chosen in model.batches(&lengths, exec.batch_tokens) {
                let chosen: Vec<_> = chosen.into_iter().map(|index| sequences[index]).collect();
                let batch = Batch::new(&chosen, &model.device);
                model.taps(&batch, labels, &self.selection, &mut |tap| {
                    sums.seen[tap.index] += tap.tokens.sequences.rows() as u64;
                    visit(tap, &mut sums.slots)
                })?;
                sums.counts.tokens += batch.rows() as u64;
                exec.reporter.advance(batch.rows() as u64);
            }
            sums.slots.iter_mut().try_for_each(Sum::settle)?;
            let broken = |values: &[f64]| values.iter().any(|value| !value.is_finite());
            if sums.slots.iter().any(|slot| slot.values().par_chunks(CHUNK).any(broken)) {
                return Err(overflow(model, &sequences, labels, &task));
            }
            sums.counts.examples += examples.len() as u64;
            sums.next = index + 1;
            if sums.next < self.spans.len() && saved.elapsed() > INTERVAL.max(20 * cost) {
                let start = Instant::now();
                sums.save(draft, &names, forms)?;
                // For `wherefrom plan`; written after the sums, so it never promises too much.
                let (done, all) = (self.number * self.spans.len() + sums.next, self.of * self.spans.len());
                draft.checkpoint("done", format!("{done}/{all}").as_bytes())?;
                (saved, cost) = (Instant::now(), start.elapsed());
            }
        }
        exec.reporter.end();
        Ok(sums)
    }
}

impl Pass<'_> {
    /// The modules of this pass are parts now: its sums have served their purpose.
    pub(crate) fn end(&self, draft: &Draft) -> Result<()> {
        draft.forget(SUMS)?;
        if self.number + 1 < self.of {
            let (done, all) = ((self.number + 1) * self.spans.len(), self.of * self.spans.len());
            draft.checkpoint("done", format!("{done}/{all}").as_bytes())?;
        }
        Ok(())
    }
}

/// What a checkpoint says of itself, as JSON after its length (u64).
#[derive(Default, Serialize, Deserialize)]
struct Header {
    next: usize,
    counts: Counts,
    /// Modules and the tokens that each saw.
    modules: Vec<(String, u64)>,
    /// Of each slot: rows and columns, or the size of a symmetric matrix.
    shapes: Vec<Vec<usize>>,
}

impl Header {
    fn read(from: &mut impl Read) -> Result<Self> {
        let mut length = [0; 8];
        from.read_exact(&mut length).context("read a checkpoint")?;
        let length = u64::from_le_bytes(length);
        ensure!(length < 1 << 30, "a checkpoint has no such header: remove the draft");
        let mut header = vec![0; length as usize];
        from.read_exact(&mut header).context("read a checkpoint")?;
        serde_json::from_slice(&header).context("read a checkpoint")
    }

    fn write(&self, into: &mut dyn Write) -> Result<()> {
        let header = serde_json::to_vec(self)?;
        into.write_all(&(header.len() as u64).to_le_bytes())?;
        Ok(into.write_all(&header)?)
    }
}

impl Sums {
    /// Slots of the given forms, zero, or as an earlier run left them for the same modules and shapes.
    fn restore(draft: &Draft, names: &[String], forms: &[Form]) -> Result<Self> {
        let slots = forms.iter().map(|&form| Sum::zeros(form)).collect();
        let mut sums = Self { slots, seen: vec![0; names.len()], counts: Counts::default(), next: 0 };
        let Some(mut saved) = draft.restore_each(SUMS)? else { return Ok(sums) };
        let header = Header::read(&mut saved)?;
        let same = header.modules.iter().map(|(name, _)| name).eq(names) && header.shapes == shapes(forms);
        if !same {
            return Ok(sums);
        }
        (sums.next, sums.counts) = (header.next, header.counts);
        sums.seen = header.modules.into_iter().map(|(_, seen)| seen).collect();
        let mut bytes = vec![0; 8 * CHUNK];
        for values in sums.slots.iter_mut().flat_map(|slot| slot.values_mut().chunks_mut(CHUNK)) {
            let bytes = &mut bytes[..8 * values.len()];
            saved.read_exact(bytes).context("the checkpoint has another size: remove the draft")?;
            for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(8)) {
                *value = f64::from_le_bytes(bytes.try_into().unwrap_or_default());
            }
        }
        Ok(sums)
    }

    fn save(&self, draft: &Draft, names: &[String], forms: &[Form]) -> Result<()> {
        draft.checkpoint_each(SUMS, |into| {
            let modules = names.iter().cloned().zip(self.seen.iter().copied()).collect();
            Header { next: self.next, counts: self.counts, modules, shapes: shapes(forms) }.write(into)?;
            for values in self.slots.iter().flat_map(|slot| slot.values().chunks(CHUNK)) {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                into.write_all(&bytes)?;
            }
            Ok(())
        })
    }
}

/// Refuses examples of which one makes a sum infinite: the first whose own numbers are not finite, or all of them where only
/// a product overflows.
fn overflow(model: &Model, sequences: &[Sequence<'_>], labels: &Labels, task: &str) -> anyhow::Error {
    let what = format!("what it adds to the {task}");
    let first = sequences.iter().find(|sequence| model.first_overflow(**sequence, labels).is_some());
    match (first, sequences) {
        (Some(sequence), _) => model.overflow(*sequence, &what, labels),
        (None, [first, .., last]) => bad_input(format!(
            "one of the examples {} to {} has gradients whose squares overflow float32: leave it out of the {task}",
            first.example, last.example
        )),
        _ => model.overflow(sequences[0], &what, labels),
    }
}

fn shapes(forms: &[Form]) -> Vec<Vec<usize>> {
    let shape = |form: &Form| match *form {
        Form::Full(shape) => shape.to_vec(),
        Form::Symmetric(n) => vec![n],
    };
    forms.iter().map(shape).collect()
}

pub(crate) fn sequence(example: &Example) -> Sequence<'_> {
    Sequence {
        example: example.example,
        input_ids: &example.input_ids,
        target_mask: &example.target_mask,
        segments: &example.segments,
        weights: &example.weights,
    }
}
