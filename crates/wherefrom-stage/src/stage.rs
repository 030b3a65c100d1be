//! The descriptor of a stage.

use std::fmt;

use anyhow::Result;
use serde::de::{DeserializeOwned, Error as _};
use serde_json::Value;
use wherefrom_artifact::{Draft, Kind};

use crate::cost::{Cost, Machine, Planned};
use crate::exec::Exec;
use crate::given::Given;

/// The knob of stages that may go over the tokens several times: how many modules they sum in one pass.
pub const MODULES_PER_PASS: &str = "modules-per-pass";

/// A stage whose knobs are a `C`: what is hashed, checked and run is one and the same value.
pub struct Stage<C: 'static> {
    /// What needs no configuration.
    pub about: About,
    /// Its inputs.
    pub roles: &'static [Role<C>],
    /// Knobs to configuration, every default filled in, and what changes nothing set to its default. An error is said of
    /// the knob at fault.
    pub parse: fn(Value) -> serde_json::Result<C>,
    /// Refuses a configuration, in words for the user.
    pub check: fn(&C) -> Result<()>,
    /// What it writes.
    pub writes: Writes<C>,
    /// The `config.json` of the checkpoint that it makes, if it makes one.
    pub makes_model: fn(&C) -> Option<Value>,
    /// What it takes, from shapes and token counts alone.
    pub cost: fn(&C, &Planned, &Machine) -> Cost,
    /// Fills the draft.
    pub run: fn(&C, &Given, &Exec, &mut Draft) -> Result<()>,
}

/// What is known of a stage whatever its configuration is.
#[derive(Debug, Clone, Copy)]
pub struct About {
    /// As in a pipeline's `stage`.
    pub name: &'static str,
    /// Raised when results of the same configuration and inputs change.
    pub version: u32,
    /// Knobs that are paths of files which no step makes: they are in no configuration, but inputs by content.
    pub files: &'static [File],
    /// What it makes of `model`.
    pub model: Checkpoint,
    /// Its knobs to which `[model]` gives a default.
    pub inherits: &'static [&'static str],
    /// Whether it has the knob [`MODULES_PER_PASS`], which is in no configuration and no key.
    pub several_passes: bool,
    /// Whether it computes on the device though it runs no checkpoint of its step's.
    pub on_device: bool,
    /// Whether several processes can do a share each: it makes part i where [`Draft::has`] has not, or sums.
    pub splits: bool,
}

impl About {
    /// A stage that reads artifacts and nothing else.
    pub const fn new(name: &'static str, version: u32) -> Self {
        Self {
            name,
            version,
            files: &[],
            model: Checkpoint::None,
            inherits: &[],
            several_passes: false,
            on_device: false,
            splits: false,
        }
    }

    /// The same where it computes on the device.
    pub const fn on_device(self) -> Self {
        Self { on_device: true, ..self }
    }

    /// The same where several processes can do a share each.
    pub const fn split(self) -> Self {
        Self { splits: true, ..self }
    }

    /// Knobs that are no part of the configuration.
    pub fn beside(&self) -> impl Iterator<Item = &'static str> {
        let files = self.files.iter().filter(|file| file.is_knob()).map(|file| file.name());
        files.chain(self.several_passes.then_some(MODULES_PER_PASS))
    }
}

/// A file that no step makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum File {
    /// Rows: a file, a folder or a glob. It has to be given.
    Corpus,
    /// A `tokenizer.json`, or a step that makes one; by default that of the checkpoint.
    Tokenizer,
    /// The same with every file beside it that belongs to the tokenizer.
    TokenizerFiles,
    /// A `tokenizer_config.json` that has a chat template, or has one beside it; by default that of the checkpoint.
    ChatTemplate,
    /// A trait that somebody has written, where the step is not to have one written.
    Trait,
    /// Judgements of answers that somebody has made.
    Judgements,
    /// What the checkpoint says of how it generates: no knob, and none where it says nothing.
    GenerationConfig,
}

impl File {
    /// The knob, and the role.
    pub fn name(self) -> &'static str {
        match self {
            Self::Corpus => "corpus",
            Self::Tokenizer | Self::TokenizerFiles => "tokenizer",
            Self::ChatTemplate => "chat-template",
            Self::Trait | Self::Judgements => "file",
            Self::GenerationConfig => "generation-config",
        }
    }

    /// What the knob holds, for the user.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Corpus => "Rows: a file, a folder, a glob, or hf:datasets/OWNER/NAME@REVISION/PATH.",
            Self::Tokenizer | Self::TokenizerFiles => {
                "A tokenizer.json, or a step that makes one; by default that of the checkpoint."
            }
            Self::ChatTemplate => {
                "A tokenizer_config.json that has a chat template, or has one beside it; by default that of the checkpoint."
            }
            Self::Trait => "A trait: a TOML or JSON file, or a folder with extract.json and eval.json.",
            Self::Judgements => "Judgements: JSON lines of {example or id, metric, score}.",
            Self::GenerationConfig => "What the checkpoint says of how it generates.",
        }
    }

    /// Whether it is a tokenizer, which a step may make.
    pub fn is_tokenizer(self) -> bool {
        matches!(self, Self::Tokenizer | Self::TokenizerFiles)
    }

    /// Whether there is none where no knob names it.
    pub fn is_optional(self) -> bool {
        matches!(self, Self::Trait | Self::Judgements)
    }

    /// Whether a knob may name it.
    pub fn is_knob(self) -> bool {
        self != Self::GenerationConfig
    }
}

/// What a stage makes of the checkpoint that its step names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkpoint {
    /// It takes none.
    None,
    /// It takes the files that stand beside the weights.
    Files,
    /// It runs it.
    Runs,
    /// It runs it where that knob has one of these values; elsewhere it takes the files beside the weights.
    RunsWhere(&'static str, &'static [&'static str]),
}

impl Checkpoint {
    /// Whether a stage with these knobs runs it.
    pub fn runs(self, knobs: &Value) -> bool {
        match self {
            Self::None | Self::Files => false,
            Self::Runs => true,
            Self::RunsWhere(knob, values) => knobs[knob].as_str().is_some_and(|value| values.contains(&value)),
        }
    }
}

/// One input of a stage.
pub struct Role<C> {
    /// As in `inputs`.
    pub name: &'static str,
    /// What it takes.
    pub kinds: &'static [Kind],
    /// Whether it has to be there.
    pub need: Need<C>,
}

/// Whether a role has to be wired.
pub enum Need<C> {
    /// It must be.
    Required,
    /// It may be.
    Optional,
    /// It must be where the configuration makes use of it; elsewhere it may be, changes nothing, and stays out of the key.
    When(fn(&C) -> bool),
}

impl<C> Role<C> {
    /// A role that must be wired.
    pub const fn required(name: &'static str, kinds: &'static [Kind]) -> Self {
        Self { name, kinds, need: Need::Required }
    }

    /// A role that may be wired.
    pub const fn optional(name: &'static str, kinds: &'static [Kind]) -> Self {
        Self { name, kinds, need: Need::Optional }
    }

    /// A role that must be wired where `used`.
    pub const fn when(name: &'static str, kinds: &'static [Kind], used: fn(&C) -> bool) -> Self {
        Self { name, kinds, need: Need::When(used) }
    }
}

/// What a stage writes.
pub enum Writes<C> {
    /// Always this.
    One(Kind),
    /// As the configuration says.
    By(fn(&C) -> Kind),
}

/// Knobs as a configuration, one of them no less than `least`.
///
/// # Errors
/// What serde makes of the knobs, or that the knob is out of range.
pub fn at_least<C: DeserializeOwned>(name: &str, least: u64, knobs: Value) -> serde_json::Result<C> {
    let given = knobs.get(name).and_then(Value::as_u64);
    let config = serde_json::from_value(knobs)?;
    match given {
        Some(number) if number < least => {
            Err(serde_json::Error::custom(format!("out of range; set it to {least} or more")))
        }
        _ => Ok(config),
    }
}

impl<C> fmt::Debug for Stage<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").field("about", &self.about).finish_non_exhaustive()
    }
}
