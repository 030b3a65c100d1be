//! The stage `trait-report`: a trait of character on one page, each number beside what it is held against.
//!
//! reads   a trait; answers, judgements, vectors, controls, projections and steered answers where they are wired
//! writes  report
//!
//! `read` gathers what is shown, `figures` draws it, and `page` puts it into one HTML file, which loads and runs nothing.

mod figures;
mod page;
mod read;

use std::path::PathBuf;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{
    Artifact, Draft, Judgements, Kind, Projections, Tokens, Trait, Vectors, bad_input, write_atomically,
};
use wherefrom_stage::{About, Cost, Exec, File, Role, Stage, Writes, at_least};

use self::read::Portrait;

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `trait-report`.
pub static STAGE: Stage<Config> = Stage {
    about: About { files: &[File::Tokenizer], ..About::new("trait-report", VERSION) },
    roles: &[
        Role::required("trait", &[Kind::Trait]),
        Role::optional("positive", &[Kind::Tokens]),
        Role::optional("negative", &[Kind::Tokens]),
        Role::optional("positive-judgements", &[Kind::Judgements]),
        Role::optional("negative-judgements", &[Kind::Judgements]),
        Role::optional("vectors", &[Kind::Vectors]),
        Role::optional("controls", &[Kind::Vectors]),
        Role::optional("random", &[Kind::Vectors]),
        Role::optional("other-vectors", &[Kind::Vectors]),
        Role::optional("eval-positive", &[Kind::Tokens]),
        Role::optional("eval-negative", &[Kind::Tokens]),
        Role::optional("positive-projections", &[Kind::Projections]),
        Role::optional("negative-projections", &[Kind::Projections]),
        Role::optional("random-positive-projections", &[Kind::Projections]),
        Role::optional("random-negative-projections", &[Kind::Projections]),
        Role::optional("steered", &[Kind::Tokens]),
        Role::optional("steered-judgements", &[Kind::Judgements]),
        Role::optional("random-steered", &[Kind::Tokens]),
        Role::optional("random-steered-judgements", &[Kind::Judgements]),
    ],
    parse: |knobs| at_least("texts", 1, knobs),
    check: Config::check,
    writes: Writes::One(Kind::Report),
    makes_model: |_| None,
    cost: |_, _, _| Cost::new(Cost::ROWS, 1e6, 0.0),
    run: |config, given, exec, draft| {
        let inputs = Inputs {
            about: given.open("trait")?,
            answers: [given.maybe("positive")?, given.maybe("negative")?],
            judgements: [given.maybe("positive-judgements")?, given.maybe("negative-judgements")?],
            vectors: given.maybe("vectors")?,
            controls: [given.maybe("controls")?, given.maybe("random")?],
            others: given.maybe("other-vectors")?,
            held_out: [given.maybe("eval-positive")?, given.maybe("eval-negative")?],
            projections: [given.maybe("positive-projections")?, given.maybe("negative-projections")?],
            random_projections: [
                given.maybe("random-positive-projections")?,
                given.maybe("random-negative-projections")?,
            ],
            steered: [given.maybe("steered")?, given.maybe("random-steered")?],
            steered_judgements: [given.maybe("steered-judgements")?, given.maybe("random-steered-judgements")?],
            tokenizer: given.file(File::Tokenizer),
        };
        run(config, &inputs, exec, draft)
    },
};

/// What is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Heading of the page; by default the trait's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Texts that are shown as examples, of each kind.
    pub texts: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { title: None, texts: 4 }
    }
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        if self.texts == 0 {
            return Err(bad_input("texts = 0 shows none; set it to 1 or more"));
        }
        Ok(())
    }
}

/// What is shown, as far as it is there. Pairs are of the positive side and the negative one, or of the vector and its controls.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The trait.
    pub about: Artifact<Trait>,
    /// Answers that the vector is made of.
    pub answers: [Option<Artifact<Tokens>>; 2],
    /// What a judge makes of them.
    pub judgements: [Option<Artifact<Judgements>>; 2],
    /// The trait's directions.
    pub vectors: Option<Artifact<Vectors>>,
    /// Directions that stand for nothing.
    pub controls: [Option<Artifact<Vectors>>; 2],
    /// Directions of other traits.
    pub others: Option<Artifact<Vectors>>,
    /// Answers to other questions.
    pub held_out: [Option<Artifact<Tokens>>; 2],
    /// How far they lie along the directions.
    pub projections: [Option<Artifact<Projections>>; 2],
    /// How far they lie along directions that stand for nothing.
    pub random_projections: [Option<Artifact<Projections>>; 2],
    /// Answers that were steered by the vector, and by random directions.
    pub steered: [Option<Artifact<Tokens>>; 2],
    /// What a judge makes of those.
    pub steered_judgements: [Option<Artifact<Judgements>>; 2],
    /// The `tokenizer.json` of the tokens.
    pub tokenizer: Option<PathBuf>,
}

/// Writes `index.html`.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for inputs that do not belong together.
pub fn run(config: &Config, inputs: &Inputs, _exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    draft.clear()?;
    let portrait = Portrait::read(config, inputs)?;
    write_atomically(&draft.folder().join("index.html"), page::page(config, &portrait).as_bytes())?;
    draft.summary("trait", &portrait.persona.about.name)
}
