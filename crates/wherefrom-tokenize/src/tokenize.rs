//! The stage `tokenize`: corpus rows become token windows with their targets, one a row or packed.
//!
//! reads   a corpus, tokenizer.json, tokenizer_config.json for conversations
//! writes  tokens
//!
//! All rows are checked before the first part is written, so a corpus is read twice; what the first reading counts is
//! frozen in the draft's plan, so a resumed run reads only what is left. A part begins with a row and, packed, with a window.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Draft, Example, Kind, Row as _, bad_input};
use wherefrom_stage::{About, Checkpoint, Cost, Exec, File, Stage, Writes, at_least};
use wherefrom_vocabulary::{Chat, Date, Encoder};

use crate::corpus::{Corpus, Place, RawRow, Rows};
use crate::notes::{Notes, Tally};
use crate::pack::Packer;
use crate::refusals::Refusals;
use crate::row::{Content, Names, Row};
use crate::window::{Window, Windows};

/// Raised when the tokens of the same configuration and inputs change.
pub const VERSION: u32 = 5;

/// The stage `tokenize`.
pub static STAGE: Stage<Config> = Stage {
    about: About {
        files: &[File::Corpus, File::Tokenizer, File::ChatTemplate],
        model: Checkpoint::Files,
        ..About::new("tokenize", VERSION)
    },
    roles: &[],
    parse: |knobs| at_least("max-tokens", 2, knobs),
    check: Config::check,
    writes: Writes::One(Kind::Tokens),
    makes_model: |_| None,
    cost: |_, planned, _| Cost::new(Cost::ROWS, planned.size.tokens * 5.0, 0.0),
    run: |config, given, exec, draft| {
        let [tokenizer, chat_template] = [File::Tokenizer, File::ChatTemplate].map(|file| given.file(file));
        run(config, &Inputs { corpus: given.required_file(File::Corpus)?, tokenizer, chat_template }, exec, draft)
    },
};

/// Windows of a part.
const PART: u64 = 8192;
/// Rows tokenised at once and written as one batch.
const CHUNK: usize = 512;

/// What a token window is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Longest window; of a query of several segments, the longest segment.
    pub max_tokens: usize,
    /// Column of the text: short for `columns = { text = … }`.
    #[serde(default = "text_column")]
    pub column: String,
    /// Columns by what they hold, where they are not named so: `text`, `id`, `prompt`, `completion`, `contrast`, `samples`,
    /// `messages`, `mean`, `instruction`, `input`, `output`, `chosen`, `rejected`, `input_ids`, `target_mask`. Of a row that
    /// could be several things it is the one whose columns are named.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, String>,
    /// Of each file only the rows 0, `every`, 2 `every`, …: a sample that runs through the whole corpus.
    #[serde(default = "all", skip_serializing_if = "is_all")]
    #[schemars(!skip_serializing_if)]
    pub every: u64,
    /// What to do with a row that has no targets.
    #[serde(default)]
    pub untargeted: Untargeted,
    /// Whether a prompt is what a user asks and a completion what the assistant answers, by the model's chat template.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(!skip_serializing_if)]
    pub chat: bool,
    /// The day that a chat template is told where it asks for one: `2024-07-26`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
    /// One window a row, several of a long row, or many rows in a window.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(!skip_serializing_if)]
    pub windows: Windowing,
    /// What a token of a packed window sees.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(!skip_serializing_if)]
    pub attend: Attend,
}

impl Config {
    /// Windows of `max_tokens` and every other knob at its default.
    pub fn new(max_tokens: usize) -> Self {
        Self {
            max_tokens,
            column: text_column(),
            columns: BTreeMap::new(),
            every: all(),
            untargeted: Untargeted::Refuse,
            chat: false,
            date: None,
            windows: Windowing::Truncate,
            attend: Attend::Document,
        }
    }

    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        if self.max_tokens < 2 {
            return Err(bad_input(format!(
                "max-tokens = {} leaves no room for a target and a token before it; set it to 2 or more",
                self.max_tokens
            )));
        }
        if self.every == 0 {
            return Err(bad_input("every = 0 takes no row; set it to 1 (all rows) or more"));
        }
        if self.windows != Windowing::Truncate && self.untargeted == Untargeted::Keep {
            let windows = if self.windows == Windowing::Pack { "pack" } else { "split" };
            return Err(bad_input(format!(
                "windows = \"{windows}\" takes no rows without targets; remove untargeted = \"keep\""
            )));
        }
        if self.windows != Windowing::Pack && self.attend == Attend::Window {
            return Err(bad_input("attend = \"window\" goes with windows = \"pack\"; set it or remove `attend`"));
        }
        self.day()?;
        Names::new(&self.column, &self.columns).map(drop)
    }

    pub(crate) fn day(&self) -> Result<Option<Date>> {
        self.date.as_deref().map(Date::parse).transpose()
    }
}

/// What to do with a row that has no targets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Untargeted {
    /// It is a mistake.
    #[default]
    Refuse,
    /// It is a prompt that the `generate` stage completes.
    Keep,
    /// It is left out, and counted.
    Skip,
}

/// How rows become windows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Windowing {
    /// A row is a window; what is too long is cut.
    #[default]
    Truncate,
    /// A row that is too long becomes several windows.
    Split,
    /// Rows fill windows; what is too long is split.
    Pack,
}

/// What a token of a packed window sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Attend {
    /// Its own document.
    #[default]
    Document,
    /// Everything before it in the window.
    Window,
}

/// Where rows and vocabulary come from.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The corpus: a file, a folder or a glob.
    pub corpus: PathBuf,
    /// `tokenizer.json`; not needed if every row is `input_ids`.
    pub tokenizer: Option<PathBuf>,
    /// `tokenizer_config.json` with the chat template; needed for conversations.
    pub chat_template: Option<PathBuf>,
}

/// The default of `column`.
pub(crate) fn text_column() -> String {
    "text".into()
}

fn all() -> u64 {
    1
}

fn is_all(every: &u64) -> bool {
    *every == all()
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// One part: where its rows begin, and what its windows hold.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Span {
    place: Place,
    /// Corpus rows of the part.
    rows: u64,
    /// Number of its first window.
    first: u64,
    windows: u64,
    tokens: u64,
    targets: u64,
    /// What was done to rows.
    tally: Tally,
    longest: u64,
    largest_id: u32,
    largest_id_example: u64,
}

/// Checks every row, then writes the parts that are not there yet.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] with `FILE:LINE: what is wrong; what to do` for the first bad rows.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let corpus = Corpus::open(&inputs.corpus, Names::new(&config.column, &config.columns)?)?.every(config.every);
    let encoder = inputs.tokenizer.as_deref().map(Encoder::open).transpose()?;
    let day = config.day()?;
    let chat = inputs.chat_template.as_deref().map(|path| Chat::open(path, day)).transpose()?;
    if let Some(dropout) = encoder.as_ref().and_then(|encoder| encoder.dropout) {
        exec.reporter.warn(&format!(
            "the tokenizer has a dropout of {dropout}, with which the tokens of a text are others each time; it is off here"
        ));
    }
    let windows = Windows::new(config, encoder.as_ref(), chat.as_ref());
    let spans = draft.plan(|| survey(&corpus, &windows, exec))?;

    let rows = |present: bool| {
        let spans = spans.iter().enumerate().filter(|&(part, _)| !present || draft.has(part));
        spans.map(|(_, span)| span.rows).sum()
    };
    exec.reporter.begin("tokenize", "rows", rows(false), rows(true));
    let mut rows = corpus.rows(Place::default());
    for (part, span) in spans.iter().enumerate().filter(|(part, _)| !draft.has(*part)) {
        // Parts in a row need no second opening of a file.
        if rows.place() != span.place {
            rows = corpus.rows(span.place);
        }
        write(&corpus, &windows, exec, draft, part, span, &mut rows)?;
    }
    exec.reporter.end();
    summarise(config, exec, draft, &spans)
}

/// The spans of the corpus, every row checked and counted.
fn survey(corpus: &Corpus, windows: &Windows<'_>, exec: &Exec) -> Result<Vec<Span>> {
    exec.reporter.begin("check corpus", "bytes", corpus.bytes(), 0);
    let mut refusals = Refusals::default();
    let mut spans: Vec<Span> = Vec::new();
    let mut rows = corpus.rows(Place::default());
    let mut maker = Maker::new(windows);
    let mut read = 0;
    loop {
        let chunk = rows.chunk(CHUNK)?;
        if chunk.is_empty() {
            break;
        }
        exec.reporter.advance(rows.bytes_read() - read);
        read = rows.bytes_read();
        for (raw, made) in chunk.iter().zip(tokenised(corpus, windows, &chunk)) {
            // A part begins with a window: rows that are left out end the one before.
            let skipped = made.as_ref().is_ok_and(Vec::is_empty);
            if spans.last().is_none_or(|span| span.windows >= PART && !skipped) {
                maker.end(spans.last_mut());
                let first = spans.last().map_or(0, |span| span.first + span.windows);
                spans.push(Span { place: raw.place, first, ..Span::default() });
            }
            let span = spans.last_mut().context("a row has a span")?;
            span.rows += 1;
            match made.and_then(|made| maker.add(made)) {
                Ok(notes) => span.tally.add(&notes, || corpus.shown(raw.place)),
                Err(what) => refusals.add(&corpus.shown(raw.place), &what),
            }
            span.count(&mut maker.ready);
        }
    }
    maker.end(spans.last_mut());
    exec.reporter.end();
    refusals.check()?;
    corpus.check_named()?;
    corpus.warnings().iter().for_each(|warning| exec.reporter.warn(warning));
    if spans.is_empty() {
        return Err(bad_input(format!("{}: has no rows; give a corpus with one at least", corpus.path().display())));
    }
    let rows: u64 = spans.iter().map(|span| span.rows).sum();
    if spans.iter().map(|span| span.tally.skipped.rows).sum::<u64>() == rows {
        return Err(nothing_left(corpus, rows));
    }
    Ok(spans)
}

/// The refusal of a corpus whose rows are all left out.
pub(crate) fn nothing_left(corpus: &Corpus, rows: u64) -> anyhow::Error {
    bad_input(format!(
        "{}: none of its {rows} rows has anything to predict, and all were left out as untargeted = \"skip\" says; check \
         `column` and `columns`",
        corpus.path().display()
    ))
}

/// The windows of each row of `chunk`.
pub(crate) fn tokenised(corpus: &Corpus, windows: &Windows<'_>, chunk: &[RawRow]) -> Vec<Result<Vec<Window>, String>> {
    let documents = windows.config.windows != Windowing::Truncate;
    let of = |raw: &RawRow| {
        let row = Row::parse(&raw.raw, corpus.names())?;
        corpus.note(raw.place, &row.unread);
        corpus.note_found(&row.named);
        if let (Content::Messages(conversation), Some(chat)) = (&row.content, windows.chat) {
            corpus.note(raw.place, &chat.unread(conversation));
        }
        let alone = match &row.content {
            Content::Prompt { contrast, samples, .. } if contrast.is_some() || samples.is_some() => {
                Some("a query, and queries")
            }
            Content::Mean(_) => Some("a query, and queries"),
            Content::Pair(_) => Some("a pair of a preference, and pairs"),
            _ => None,
        };
        if let Some(what) = alone.filter(|_| documents) {
            return Err(format!("the row is {what} are not packed or split; tokenise them in a step of their own"));
        }
        let mut made = windows.windows(row, corpus.document(raw.place))?;
        made.iter_mut().for_each(|window| window.example.rows = vec![raw.place.total]);
        Ok(made)
    };
    chunk.par_iter().map(of).collect()
}

/// Windows of rows to windows of the artifact: the same, or packed.
pub(crate) struct Maker<'a> {
    packer: Option<Packer<'a>>,
    /// Windows that are finished.
    pub(crate) ready: Vec<Example>,
}

impl<'a> Maker<'a> {
    pub(crate) fn new(windows: &Windows<'a>) -> Self {
        let Config { max_tokens, attend, windows: windowing, .. } = *windows.config;
        let packed = windowing == Windowing::Pack;
        Self { packer: packed.then(|| Packer::new(max_tokens, attend, windows.encoder)), ready: Vec::new() }
    }

    /// Takes the windows of a row; says what was done to it.
    pub(crate) fn add(&mut self, made: Vec<Window>) -> Result<Notes, String> {
        // Samples and pieces of a row share theirs.
        let left_out = Notes { skipped: true, ..Notes::default() };
        let notes = made.first().map_or(left_out, |window| window.notes.clone());
        for window in made {
            match &mut self.packer {
                None => self.ready.push(window.example),
                Some(packer) => {
                    packer.add(window.example)?;
                    self.ready.append(&mut packer.full);
                }
            }
        }
        Ok(notes)
    }

    /// Ends a part.
    pub(crate) fn finish(&mut self) {
        if let Some(packer) = &mut self.packer {
            packer.close();
            self.ready.append(&mut packer.full);
        }
    }

    fn end(&mut self, span: Option<&mut Span>) {
        self.finish();
        if let Some(span) = span {
            span.count(&mut self.ready);
        }
    }
}

/// Writes one part, a chunk of rows in memory at a time.
fn write(
    corpus: &Corpus,
    windows: &Windows<'_>,
    exec: &Exec,
    draft: &Draft,
    part: usize,
    span: &Span,
    rows: &mut Rows<'_>,
) -> Result<()> {
    let mut maker = Maker::new(windows);
    let (mut left, mut number) = (span.rows, span.first);
    let chunks = std::iter::from_fn(|| {
        let mut next = || -> Result<Option<Vec<Example>>> {
            if left == 0 {
                return Ok(None);
            }
            let chunk = rows.chunk(CHUNK.min(usize::try_from(left)?))?;
            let changed = |place, what: &str| bad_input(format!("{}: {what}", corpus.shown(place)));
            if chunk.is_empty() {
                return Err(changed(span.place, "the corpus has become shorter; run again"));
            }
            for (raw, made) in chunk.iter().zip(tokenised(corpus, windows, &chunk)) {
                // The survey passed this row: the file has changed since.
                made.and_then(|made| maker.add(made)).map_err(|what| changed(raw.place, &what))?;
            }
            left -= chunk.len() as u64;
            exec.reporter.advance(chunk.len() as u64);
            if left == 0 {
                maker.finish();
            }
            let mut examples = std::mem::take(&mut maker.ready);
            for example in &mut examples {
                example.example = number;
                number += 1;
            }
            Ok(Some(examples))
        };
        next().transpose()
    });
    draft.write_each(part, chunks.map(|examples| Example::to_batch(&examples?)))
}

fn summarise(config: &Config, exec: &Exec, draft: &mut Draft, spans: &[Span]) -> Result<()> {
    let sum = |field: fn(&Span) -> u64| spans.iter().map(field).sum::<u64>();
    let rows = sum(|span| span.rows);
    let mut tally = Tally::default();
    spans.iter().for_each(|span| tally.merge(&span.tally));
    draft.summary("examples", sum(|span| span.windows))?;
    draft.summary("rows", rows)?;
    draft.summary("tokens", sum(|span| span.tokens))?;
    draft.summary("targets", sum(|span| span.targets))?;
    draft.summary("truncated", tally.cut.rows)?;
    draft.summary("lost_tokens", tally.lost)?;
    if config.untargeted == Untargeted::Skip {
        draft.summary("skipped", tally.skipped.rows)?;
    }
    draft.summary("longest", spans.iter().map(|span| span.longest).max())?;
    // The first of equals.
    let largest = spans.iter().rev().max_by_key(|span| span.largest_id).context("a corpus has a span")?;
    draft.summary("largest_id", largest.largest_id)?;
    draft.summary("largest_id_example", largest.largest_id_example)?;
    tally.say(config, rows, &*exec.reporter);
    Ok(())
}

impl Span {
    /// Counts finished windows, which are then forgotten.
    fn count(&mut self, windows: &mut Vec<Example>) {
        for example in windows.drain(..) {
            let largest = example.input_ids.iter().max().copied().unwrap_or(0);
            if self.windows == 0 || largest > self.largest_id {
                self.largest_id = largest;
                self.largest_id_example = self.first + self.windows;
            }
            self.windows += 1;
            self.tokens += example.input_ids.len() as u64;
            self.targets += example.target_mask.iter().filter(|&&target| target).count() as u64;
            self.longest = self.longest.max(example.longest_segment() as u64);
        }
    }
}
