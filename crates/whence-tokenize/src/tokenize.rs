//! The stage `tokenize`: every corpus row becomes one token window with its targets.
//!
//! reads   a corpus file, tokenizer.json
//! writes  tokens
//!
//! All rows are checked before the first part is written, so a corpus is read twice; what the first reading counts is
//! frozen in the draft's plan, so a resumed run reads only what is left.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use whence_artifact::{Draft, Example, Exec, Row as _, bad_input};

use crate::corpus::{Corpus, Place, RawRow};
use crate::encoder::Encoder;
use crate::refusals::Refusals;
use crate::row::Row;
use crate::window::{Window, Windows};

/// Raised when the tokens of the same configuration and inputs change.
pub const VERSION: u32 = 3;

/// Rows of a part.
const PART: usize = 8192;
/// Rows tokenised at once and written as one batch; divides [`PART`].
const CHUNK: usize = 512;

/// What a token window is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Longest window.
    pub max_tokens: usize,
    /// Key of the text in a JSON row.
    #[serde(default = "text_column")]
    pub column: String,
    /// What to do with a row that has no targets.
    #[serde(default)]
    pub untargeted: Untargeted,
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`whence_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        if self.max_tokens < 2 {
            return Err(bad_input(format!(
                "max-tokens = {} leaves no room for a target and a token before it; set it to 2 or more",
                self.max_tokens
            )));
        }
        Ok(())
    }
}

/// What to do with a row that has no targets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Untargeted {
    /// It is a mistake.
    #[default]
    Refuse,
    /// It is a prompt that the `generate` stage completes.
    Keep,
}

/// Where rows and vocabulary come from.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The corpus file.
    pub corpus: PathBuf,
    /// `tokenizer.json`; not needed if every row is `input_ids`.
    pub tokenizer: Option<PathBuf>,
}

/// The default of `column`.
pub(crate) fn text_column() -> String {
    "text".into()
}

/// One part: where its rows begin, and what they hold.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Span {
    place: Place,
    first: u64,
    rows: u64,
    tokens: u64,
    targets: u64,
    truncated: u64,
    longest: u64,
    largest_id: u32,
    largest_id_example: u64,
}

/// Checks every row, then writes the parts that are not there yet.
///
/// # Errors
/// [`whence_artifact::Error::Input`] with `FILE:LINE: what is wrong; what to do` for the first bad rows.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let corpus = Corpus::open(&inputs.corpus)?;
    let encoder = inputs.tokenizer.as_deref().map(Encoder::open).transpose()?;
    let windows = Windows { config, encoder: encoder.as_ref() };
    let spans = draft.plan(|| survey(&corpus, &windows, exec))?;

    let rows = |present: bool| {
        let spans = spans.iter().enumerate().filter(|&(part, _)| !present || draft.has(part));
        spans.map(|(_, span)| span.rows).sum()
    };
    exec.reporter.begin("tokenize", "rows", rows(false), rows(true));
    for (part, span) in spans.iter().enumerate() {
        if !draft.has(part) {
            write(&corpus, &windows, exec, draft, part, span)?;
        }
    }
    exec.reporter.end();
    summarise(config, exec, draft, &spans)
}

/// The spans of the corpus, every row checked and counted.
fn survey(corpus: &Corpus, windows: &Windows<'_>, exec: &Exec) -> Result<Vec<Span>> {
    exec.reporter.begin("check corpus", "bytes", corpus.bytes, 0);
    let mut refusals = Refusals::of(corpus.path());
    let mut spans: Vec<Span> = Vec::new();
    let mut rows = corpus.rows(Place::default())?;
    let mut number = 0;
    loop {
        let place = rows.place();
        let chunk = rows.chunk(CHUNK)?;
        if chunk.is_empty() {
            break;
        }
        exec.reporter.advance(rows.place().bytes_since(place));
        if number % PART as u64 == 0 {
            spans.push(Span { place, first: number, ..Span::default() });
        }
        let span = spans.last_mut().context("a row has a span")?;
        for (raw, window) in chunk.iter().zip(tokenised(corpus, windows, &chunk, number)) {
            match window {
                Ok(window) => span.count(&window),
                Err(what) => refusals.add(raw.line, &what),
            }
        }
        number += chunk.len() as u64;
    }
    exec.reporter.end();
    refusals.check()?;
    if spans.is_empty() {
        return Err(bad_input(format!("{}: has no rows; give a corpus with one at least", corpus.path().display())));
    }
    Ok(spans)
}

/// The windows of `chunk`, whose first row is row `first` of the corpus.
fn tokenised(corpus: &Corpus, windows: &Windows<'_>, chunk: &[RawRow], first: u64) -> Vec<Result<Window, String>> {
    let window = |(index, raw): (usize, &RawRow)| {
        let row = Row::parse(raw, corpus.format, &windows.config.column)?;
        windows.window(row, first + index as u64)
    };
    chunk.par_iter().enumerate().map(window).collect()
}

/// Writes one part, a chunk of rows in memory at a time.
fn write(corpus: &Corpus, windows: &Windows<'_>, exec: &Exec, draft: &Draft, part: usize, span: &Span) -> Result<()> {
    let mut rows = corpus.rows(span.place)?;
    let end = span.first + span.rows;
    let chunks = (span.first..end).step_by(CHUNK).map(|first| {
        let chunk = rows.chunk(CHUNK.min((end - first) as usize))?;
        let examples = chunk.iter().zip(tokenised(corpus, windows, &chunk, first)).map(|(raw, window)| {
            // The survey passed this row: the file has changed since.
            let changed = |what| bad_input(format!("{}:{}: {what}", corpus.path().display(), raw.line));
            window.map(|window| window.example).map_err(changed)
        });
        let examples = examples.collect::<Result<Vec<Example>>>()?;
        exec.reporter.advance(examples.len() as u64);
        Example::to_batch(&examples)
    });
    draft.write_each(part, chunks)
}

fn summarise(config: &Config, exec: &Exec, draft: &mut Draft, spans: &[Span]) -> Result<()> {
    let sum = |field: fn(&Span) -> u64| spans.iter().map(field).sum::<u64>();
    let (examples, truncated) = (sum(|span| span.rows), sum(|span| span.truncated));
    draft.summary("examples", examples)?;
    draft.summary("tokens", sum(|span| span.tokens))?;
    draft.summary("targets", sum(|span| span.targets))?;
    draft.summary("truncated", truncated)?;
    draft.summary("longest", spans.iter().map(|span| span.longest).max())?;
    // The first of equals.
    let largest = spans.iter().rev().max_by_key(|span| span.largest_id).context("a corpus has a span")?;
    draft.summary("largest_id", largest.largest_id)?;
    draft.summary("largest_id_example", largest.largest_id_example)?;
    if truncated > 0 {
        let max = config.max_tokens;
        exec.reporter.warn(&format!("{truncated} of {examples} rows were longer than max-tokens = {max} and were cut"));
    }
    Ok(())
}

impl Span {
    fn count(&mut self, window: &Window) {
        let example = &window.example;
        let largest = example.input_ids.iter().max().copied().unwrap_or(0);
        if self.rows == 0 || largest > self.largest_id {
            self.largest_id = largest;
            self.largest_id_example = example.example;
        }
        self.rows += 1;
        self.tokens += example.input_ids.len() as u64;
        self.targets += example.target_mask.iter().filter(|&&target| target).count() as u64;
        self.truncated += u64::from(window.cut);
        self.longest = self.longest.max(example.longest_segment() as u64);
    }
}
