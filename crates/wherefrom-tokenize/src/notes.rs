//! What was done to rows that their user should know: counted while the corpus is checked, and said at the end.

use serde::{Deserialize, Serialize};
use wherefrom_artifact::Reporter;

use crate::boundary::GLUED;
use crate::tokenize::Config;

/// What was done to one row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Notes {
    /// Tokens left out.
    pub(crate) lost: u64,
    /// How many of them were targets.
    pub(crate) lost_targets: u64,
    /// White space at the end of the prompt became a part of the completion.
    pub(crate) moved: bool,
    /// A token holds the end of the prompt and the beginning of the completion.
    pub(crate) shared: bool,
    /// The completion had nothing before it, and a special token was put there.
    pub(crate) begun: bool,
    /// The end of the prompt and the beginning of the completion, where the two make one word.
    pub(crate) glued: Option<String>,
    /// There was nothing to predict, and the row was left out.
    pub(crate) skipped: bool,
    /// It is an instruction as Alpaca has them.
    pub(crate) instruction: bool,
    /// It is a pair of a preference.
    pub(crate) pair: bool,
}

impl Notes {
    /// Both of two measurements of a row.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            lost: self.lost + other.lost,
            lost_targets: self.lost_targets + other.lost_targets,
            moved: self.moved || other.moved,
            shared: self.shared || other.shared,
            begun: self.begun || other.begun,
            glued: self.glued.or(other.glued),
            skipped: self.skipped || other.skipped,
            instruction: self.instruction || other.instruction,
            pair: self.pair || other.pair,
        }
    }
}

/// How often something was done to a row, and where first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Noted {
    pub(crate) rows: u64,
    first: String,
}

/// What is said of rows that are left out.
pub(crate) const SKIPPED: &str = "have nothing to predict: no text, no completion, or a single token; they were left out, as \
     untargeted = \"skip\" says";

/// What is said of pairs of preferences.
pub(crate) const PAIRS: &str = "are pairs of a preference: each is the contrast log p(chosen) − log p(rejected); a step of the stage \
     `preferences` behind this one gives them the DPO loss";

/// What is said of instructions.
pub(crate) fn form_of_instructions(config: &Config) -> &'static str {
    match config.chat {
        true => {
            "are instructions with an output: the user asks the instruction, and below it the input, and the assistant answers \
                 the output"
        }
        false => {
            "are instructions with an output: they are written out in Alpaca's words, and the output is predicted; chat = true \
                  renders them by the model's chat template"
        }
    }
}

impl Noted {
    pub(crate) fn add(&mut self, done: bool, place: &impl Fn() -> String) {
        if done {
            if self.rows == 0 {
                self.first = place();
            }
            self.rows += 1;
        }
    }

    fn merge(&mut self, later: &Self) {
        if self.rows == 0 {
            self.first.clone_from(&later.first);
        }
        self.rows += later.rows;
    }

    /// Says what was done to how many of `rows`, if it was done to any.
    pub(crate) fn say(&self, what: &str, rows: u64, reporter: &dyn Reporter) {
        if self.rows > 0 {
            reporter.warn(&format!("{} of {rows} rows {what} (the first: {})", self.rows, self.first));
        }
    }
}

/// The notes of many rows.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// Rows of which tokens were left out.
    pub(crate) cut: Noted,
    /// Tokens left out.
    pub(crate) lost: u64,
    lost_targets: u64,
    moved: Noted,
    shared: Noted,
    begun: Noted,
    #[serde(default)]
    glued: Noted,
    /// Rows that were left out.
    #[serde(default)]
    pub(crate) skipped: Noted,
    #[serde(default)]
    instructions: Noted,
    #[serde(default)]
    pairs: Noted,
}

impl Tally {
    /// Counts a row, which lies at `place`.
    pub(crate) fn add(&mut self, notes: &Notes, place: impl Fn() -> String) {
        self.cut.add(notes.lost > 0, &place);
        self.lost += notes.lost;
        self.lost_targets += notes.lost_targets;
        self.moved.add(notes.moved, &place);
        self.shared.add(notes.shared, &place);
        self.begun.add(notes.begun, &place);
        self.glued
            .add(notes.glued.is_some(), &|| format!("{}: {}", place(), notes.glued.as_deref().unwrap_or_default()));
        self.skipped.add(notes.skipped, &place);
        self.instructions.add(notes.instruction, &place);
        self.pairs.add(notes.pair, &place);
    }

    /// Counts the rows of a later part.
    pub(crate) fn merge(&mut self, later: &Self) {
        self.cut.merge(&later.cut);
        self.lost += later.lost;
        self.lost_targets += later.lost_targets;
        self.moved.merge(&later.moved);
        self.shared.merge(&later.shared);
        self.begun.merge(&later.begun);
        self.glued.merge(&later.glued);
        self.skipped.merge(&later.skipped);
        self.instructions.merge(&later.instructions);
        self.pairs.merge(&later.pairs);
    }

    /// Says what was done to how many of `rows`.
    pub(crate) fn say(&self, config: &Config, rows: u64, reporter: &dyn Reporter) {
        let Self { cut, lost, lost_targets, moved, shared, begun, glued, skipped, instructions, pairs } = self;
        let max = config.max_tokens;
        let said = [
            (
                cut,
                format!(
                    "were longer than max-tokens = {max} and were cut: {lost} tokens are lost, {lost_targets} of them targets; \
                     windows = \"split\" keeps those of documents"
                ),
            ),
            (
                moved,
                "have a prompt that ends in white space; it was moved to the beginning of the completion, where tokens that \
                 begin with a space have it, and is measured there"
                    .into(),
            ),
            (
                shared,
                "have a token that holds the end of the prompt and the beginning of the completion; it is measured as a part of \
                 the completion"
                    .into(),
            ),
            (
                begun,
                "have nothing before their completion, and the tokenizer puts nothing before a text: they begin with its special \
                 token for the beginning or end of a text, and their first token is measured after it"
                    .into(),
            ),
            (glued, GLUED.into()),
            (skipped, SKIPPED.into()),
            (instructions, form_of_instructions(config).into()),
            (pairs, PAIRS.into()),
        ];
        said.iter().for_each(|(noted, what)| noted.say(what, rows, reporter));
    }
}
