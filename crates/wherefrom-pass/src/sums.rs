//! Sums over a corpus, of some modules in each pass, that survive a kill: modules whose pass is over are parts of the
//! draft, and of the pass that is on each share has one checkpoint {modules, sums, next span}, replaced atomically every so
//! often.

use std::io::{Read, Write};
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Draft, Share, Span, bad_input};
use wherefrom_linalg::kernels::{Form, Sum};
use wherefrom_model::{ACTIVATION_BYTES, Labels, Model, Module, Selection, Sequence, Tap};

use crate::corpus::{Corpus, sequence};
use crate::memory::{fits, split};
use crate::shares::{Grid, add_in_pairs};

/// Seconds between checkpoints at least; writing one may take a twentieth of the time.
const INTERVAL: Duration = Duration::from_secs(20);
/// Name of the checkpoint; that of one share of several has its numbers behind it.
const SUMS: &str = "sums-by-module";
/// Numbers that are read or written at once.
pub(crate) const CHUNK: usize = 1 << 16;

/// What was summed over.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Tokens.
    pub tokens: u64,
    /// Sequences.
    pub examples: u64,
}

impl Counts {
    /// As an earlier pass of this draft found them.
    ///
    /// # Errors
    /// As [`Draft::restore`].
    pub fn restore(draft: &Draft) -> Result<Option<Self>> {
        draft.restore("counts")?.map(|bytes| serde_json::from_slice(&bytes).context("read the counts")).transpose()
    }

    /// For later passes, and in the metadata of every part. Called before a part is written.
    ///
    /// # Errors
    /// As [`Draft::checkpoint`].
    pub fn note(self, draft: &mut Draft) -> Result<()> {
        draft.checkpoint("counts", &serde_json::to_vec(&self)?)?;
        draft.metadata("tokens", self.tokens.to_string());
        draft.metadata("examples", self.examples.to_string());
        draft.summary("tokens", self.tokens)?;
        draft.summary("examples", self.examples)
    }
}

/// A sum over a corpus of what each module's taps give.
#[derive(Clone, Copy)]
pub struct Reduction<'a> {
    /// What is summed over.
    pub corpus: Corpus<'a>,
    /// Of the loss whose gradients are summed.
    pub labels: &'a Labels,
    /// Modules that are summed.
    pub selection: &'a Selection,
    /// Bytes for sums, as [`crate::place_beside_sums`] has them.
    pub room: Option<u64>,
    /// How many numbers are summed for a module.
    pub numbers: &'a dyn Fn(&Module) -> u64,
}

impl<'a> Reduction<'a> {
    /// The passes that are still to be made; a module's part is numbered by its place in the selection. `bytes` is what
    /// one pass needs for these modules. A pass that was killed goes on as it was, if it still fits. Of a share they are those of its
    /// modules; of the whole, modules of which all shares have left their sums are added up, without the model.
    ///
    /// # Errors
    /// As [`Draft::plan`] and [`Draft::restore`].
    pub fn passes(&self, draft: &Draft, bytes: impl Fn(&[Module]) -> u64) -> Result<Vec<Pass<'a>>> {
        draft.parts(self.selection.modules().len());
        let (Corpus { task, tokens, exec, .. }, share) = (self.corpus, draft.share());
        let spans: Vec<Span> = draft.plan(|| tokens.spans(share))?;
        let modules = self.selection.modules();
        let (per_pass, room) = (exec.modules_per_pass, self.room);
        let bytes = |chosen: &[usize]| bytes(&chosen.iter().map(|&place| modules[place].clone()).collect::<Vec<_>>());
        let grid = match share {
            Share::WHOLE => Grid::found(draft)?,
            Share { of, .. } => Some(Grid::agreed(draft, || {
                let bytes: Vec<_> = modules.iter().map(|module| 8 * (self.numbers)(module)).collect();
                Grid::new(of, &bytes, wherefrom_stage::Sums::LIMIT)
            })?),
        };
        let (own, group): (Vec<usize>, usize) = match &grid {
            Some(grid) if share != Share::WHOLE => {
                let (own, group) = grid.of_share(share);
                (own.iter().copied().filter(|&place| !draft.has_state(&grid.name(place, group))).collect(), group)
            }
            _ => ((0..modules.len()).collect(), 0),
        };
        let missing = own.into_iter().filter(|&place| !draft.made(place));
        let handed =
            |place: &usize| share == Share::WHOLE && grid.as_ref().is_some_and(|grid| grid.has_all(draft, *place));
        let (handed, mut left): (Vec<usize>, Vec<usize>) = missing.partition(handed);
        let begun: Vec<usize> = match draft.restore_each(&checkpoint(share))? {
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
        let summed = passes.len();
        passes.extend(split(&handed, per_pass, room, bytes));
        for pass in &passes {
            if let (Some(room), [alone]) = (room.filter(|&room| per_pass.is_none() && bytes(pass) > room), &pass[..]) {
                exec.reporter.warn(&format!(
                    "{task}: {} alone needs {} where {} are left; give more --memory (`wherefrom plan` with as little names what is enough), or set `blocks` of the covariance step",
                    modules[*alone].name,
                    wherefrom_artifact::bytes(bytes(pass) as f64),
                    wherefrom_artifact::bytes(room as f64)
                ));
                break;
            }
        }
        let of = passes.len();
        let pass = |(number, places): (usize, Vec<usize>)| Pass {
            reduction: *self,
            selection: self.selection.only(&places),
            places,
            spans: spans.clone(),
            grid: grid.clone(),
            group,
            handed: number >= summed,
            number,
            of,
        };
        Ok(passes.into_iter().enumerate().map(pass).collect())
    }
}

/// Some modules, in one pass over the tokens.
pub struct Pass<'a> {
    reduction: Reduction<'a>,
    /// The modules of this pass.
    pub selection: Selection,
    /// Their places in the whole selection: the numbers of their parts.
    pub places: Vec<usize>,
    spans: Vec<Span>,
    /// How shares lie, and the group of spans of this one.
    grid: Option<Grid>,
    group: usize,
    /// Whether the sums are those that shares have left.
    handed: bool,
    number: usize,
    of: usize,
}

/// Sums by slot.
pub struct Sums {
    /// The sums, each of its form.
    pub slots: Vec<Sum>,
    /// Tokens that each module of the pass saw.
    pub seen: Vec<u64>,
    /// What was summed over.
    pub counts: Counts,
    next: usize,
}

impl Pass<'_> {
    /// Runs the model over every span that is not yet summed; `visit` adds each tap to the slots, each of a module (by its place in
    /// this pass) and a form, in the order of the modules. None where it is one share of several: its sums stay in the draft.
    ///
    /// # Errors
    /// Those of the model and of `visit`; an example whose gradients are not finite, by its number.
    pub fn sum(
        &self,
        draft: &Draft,
        forms: &[(usize, Form)],
        mut visit: impl FnMut(Tap<'_>, &mut [Sum]) -> Result<()>,
    ) -> Result<Option<Sums>> {
        if let (true, Some(grid)) = (self.handed, &self.grid) {
            return self.join(draft, grid, forms).map(Some);
        }
        let slots = forms;
        let forms = &forms.iter().map(|&(_, form)| form).collect::<Vec<_>>()[..];
        let Reduction { corpus, labels, .. } = self.reduction;
        let (Corpus { task, model, tokens, exec }, share) = (corpus, draft.share());
        let mut sums = self.restore(draft, share, forms)?;
        let task = if self.of == 1 { task.into() } else { format!("{task}, pass {} of {}", self.number + 1, self.of) };
        let groups = self.grid.as_ref().filter(|_| share != Share::WHOLE).map_or(1, |grid| grid.span_groups);
        exec.reporter.begin(&task, "tokens", tokens.tokens() / groups as u64, sums.counts.tokens);
        let (mut saved, mut cost) = (Instant::now(), Duration::ZERO);
        let spans = self.spans.iter().enumerate().skip(sums.next).filter(|(index, _)| index % groups == self.group);
        for (index, span) in spans {
            let examples = tokens.read_span(span)?;
            for (_, batch) in corpus.batches_of(&examples, model.batch_tokens(exec.batch_tokens, ACTIVATION_BYTES)) {
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
                let sequences: Vec<_> = examples.iter().map(sequence).collect();
                return Err(overflow(model, &sequences, labels, &task));
            }
            sums.counts.examples += examples.len() as u64;
            sums.next = index + 1;
            if sums.next < self.spans.len() && saved.elapsed() > INTERVAL.max(20 * cost) {
                let start = Instant::now();
                self.save(&sums, draft, share, forms)?;
                if share == Share::WHOLE {
                    // For `wherefrom plan`; written after the sums, so it never promises too much.
                    self.note_done(draft, self.number * self.spans.len() + sums.next)?;
                }
                (saved, cost) = (Instant::now(), start.elapsed());
            }
        }
        exec.reporter.end();
        let Some(grid) = self.grid.as_ref().filter(|_| share != Share::WHOLE) else { return Ok(Some(sums)) };
        self.hand_over(&sums, draft, grid, slots)?;
        draft.forget(&checkpoint(share))?;
        Ok(None)
    }

    /// Leaves the sums of each module for whoever joins them.
    fn hand_over(&self, sums: &Sums, draft: &Draft, grid: &Grid, slots: &[(usize, Form)]) -> Result<()> {
        for (module, &place) in self.places.iter().enumerate() {
            let own = slots_of(slots, module);
            let forms: Vec<_> = slots[own.clone()].iter().map(|&(_, form)| form).collect();
            let header = Header {
                next: self.spans.len(),
                counts: sums.counts,
                modules: vec![(self.selection.modules()[module].name.clone(), sums.seen[module])],
                shapes: shapes(&forms),
            };
            draft.hand_over(&grid.name(place, self.group), |into| {
                header.write(into)?;
                sums.slots[own].iter().try_for_each(|sum| write_values(sum.values(), into))
            })?;
        }
        Ok(())
    }

    /// The sums that all shares have left of the modules of this pass.
    fn join(&self, draft: &Draft, grid: &Grid, slots: &[(usize, Form)]) -> Result<Sums> {
        let forms: Vec<_> = slots.iter().map(|&(_, form)| form).collect();
        let mut joined = self.zeros(&forms);
        for (module, &place) in self.places.iter().enumerate() {
            let own = slots_of(slots, module);
            let forms: Vec<_> = slots[own.clone()].iter().map(|&(_, form)| form).collect();
            let names = [self.selection.modules()[module].name.clone()];
            let mut readers = Vec::new();
            let mut counts = Counts::default();
            for group in 0..grid.span_groups {
                let name = grid.name(place, group);
                let mut saved =
                    draft.restore_each(&name)?.with_context(|| format!("{name} has gone from the draft"))?;
                let header = Header::read(&mut saved)?;
                ensure!(
                    header.is_of(&names, &forms) && header.next == self.spans.len(),
                    "{name} of the draft is no sum of this module and these shapes: remove the draft"
                );
                counts.tokens += header.counts.tokens;
                counts.examples += header.counts.examples;
                joined.seen[module] += header.modules[0].1;
                readers.push(saved);
            }
            add_in_pairs(&mut readers, joined.slots[own].iter_mut().map(Sum::values_mut))?;
            joined.counts = counts;
        }
        joined.next = self.spans.len();
        Ok(joined)
    }

    /// The modules of this pass are parts now: its sums have served their purpose.
    ///
    /// # Errors
    /// As [`Draft::forget`].
    pub fn end(&self, draft: &Draft) -> Result<()> {
        draft.forget(&checkpoint(Share::WHOLE))?;
        if let Some(grid) = &self.grid {
            let names =
                self.places.iter().flat_map(|&place| (0..grid.span_groups).map(move |group| grid.name(place, group)));
            names.into_iter().try_for_each(|name| draft.forget(&name))?;
        }
        match self.number + 1 < self.of {
            true => self.note_done(draft, (self.number + 1) * self.spans.len()),
            false => Ok(()),
        }
    }

    /// Spans that are summed, of those of all passes.
    fn note_done(&self, draft: &Draft, done: usize) -> Result<()> {
        draft.checkpoint("done", format!("{done}/{}", self.of * self.spans.len()).as_bytes())
    }

    fn names(&self) -> Vec<String> {
        self.selection.modules().iter().map(|module| module.name.clone()).collect()
    }

    fn zeros(&self, forms: &[Form]) -> Sums {
        let slots = forms.iter().map(|&form| Sum::zeros(form)).collect();
        Sums { slots, seen: vec![0; self.selection.modules().len()], counts: Counts::default(), next: 0 }
    }

    /// Slots of the given forms, zero, or as an earlier run left them for the same modules and shapes.
    fn restore(&self, draft: &Draft, share: Share, forms: &[Form]) -> Result<Sums> {
        let mut sums = self.zeros(forms);
        let Some(mut saved) = draft.restore_each(&checkpoint(share))? else { return Ok(sums) };
        let header = Header::read(&mut saved)?;
        if !header.is_of(&self.names(), forms) {
            return Ok(sums);
        }
        (sums.next, sums.counts) = (header.next, header.counts);
        sums.seen = header.modules.into_iter().map(|(_, seen)| seen).collect();
        let mut chunks = sums.slots.iter_mut().flat_map(|slot| slot.values_mut().chunks_mut(CHUNK));
        chunks.try_for_each(|values| read_values(&mut saved, values))?;
        Ok(sums)
    }

    fn save(&self, sums: &Sums, draft: &Draft, share: Share, forms: &[Form]) -> Result<()> {
        draft.checkpoint_each(&checkpoint(share), |into| {
            let modules = self.names().into_iter().zip(sums.seen.iter().copied()).collect();
            Header { next: sums.next, counts: sums.counts, modules, shapes: shapes(forms) }.write(into)?;
            sums.slots.iter().try_for_each(|slot| write_values(slot.values(), into))
        })
    }
}

/// The slots of a module, which lie side by side.
fn slots_of(slots: &[(usize, Form)], module: usize) -> Range<usize> {
    slots.partition_point(|(of, _)| *of < module)..slots.partition_point(|(of, _)| *of <= module)
}

/// The checkpoint of a share.
fn checkpoint(share: Share) -> String {
    match share {
        Share::WHOLE => SUMS.into(),
        Share { index, of } => format!("{SUMS}-{index}-of-{of}"),
    }
}

fn write_values(values: &[f64], into: &mut dyn Write) -> Result<()> {
    for values in values.chunks(CHUNK) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        into.write_all(&bytes)?;
    }
    Ok(())
}

/// The next numbers of a checkpoint.
pub(crate) fn read_values(from: &mut impl Read, values: &mut [f64]) -> Result<()> {
    let mut bytes = vec![0; 8 * values.len()];
    from.read_exact(&mut bytes).context("the checkpoint has another size: remove the draft")?;
    for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(8)) {
        *value = f64::from_le_bytes(bytes.try_into().unwrap_or_default());
    }
    Ok(())
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

    /// Whether the sums are of these modules and shapes.
    fn is_of(&self, names: &[String], forms: &[Form]) -> bool {
        self.modules.iter().map(|(name, _)| name).eq(names) && self.shapes == shapes(forms)
    }

    fn write(&self, into: &mut dyn Write) -> Result<()> {
        let header = serde_json::to_vec(self)?;
        into.write_all(&(header.len() as u64).to_le_bytes())?;
        Ok(into.write_all(&header)?)
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
