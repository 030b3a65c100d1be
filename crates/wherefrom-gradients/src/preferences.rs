//! The DPO loss of pairs of a preference (Rafailov et al. 2023, Eq. 7), given to their tokens.
//!
//! reads   tokens of pairs, and the losses of the reference over them
//! writes  tokens
//!
//! The same windows, each with beta and the margin by which the reference prefers the chosen answer: whatever reads the tokens
//! then takes -log sigmoid(beta D) for a pair's loss, D = log p(chosen) - log p(rejected) - margin.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Artifact, Draft, Example, Kind, Loss, Losses, Row as _, Tokens, bad_input};
use wherefrom_stage::{About, Cost, Exec, Role, Stage, Writes};

/// Raised when results change.
pub const VERSION: u32 = 1;
/// Rows of a batch that is written.
const BATCH: usize = 512;
/// Of the summary of the pairs, what is said of the windows and not of how they were made.
const SUMMED: [&str; 9] = [
    "examples",
    "rows",
    "tokens",
    "targets",
    "truncated",
    "lost_tokens",
    "longest",
    "largest_id",
    "largest_id_example",
];

/// The stage `preferences`.
pub static STAGE: Stage<Config> = Stage {
    about: About::new("preferences", VERSION),
    roles: &[Role::required("tokens", &[Kind::Tokens]), Role::required("reference", &[Kind::Losses])],
    parse: serde_json::from_value,
    check: Config::check,
    writes: Writes::One(Kind::Tokens),
    makes_model: |_| None,
    cost: |_, planned, _| Cost::new(Cost::ROWS, planned.size.tokens * 5.0, 0.0),
    run: |config, given, exec, draft| {
        run(config, &Inputs { tokens: given.open("tokens")?, reference: given.open("reference")? }, exec, draft)
    },
};

/// The loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// beta, as the model was trained with: how far it may leave the reference.
    pub beta: f32,
}

impl Default for Config {
    fn default() -> Self {
        Self { beta: 0.1 }
    }
}

impl Config {
    /// Refuses a beta of no use.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        match self.beta.is_finite() && self.beta > 0.0 {
            true => Ok(()),
            false => Err(bad_input(format!("beta = {} is no number above 0; 0.1 is usual", self.beta))),
        }
    }
}

/// What is read.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Pairs: contrasts of a chosen answer with a rejected one.
    pub tokens: Artifact<Tokens>,
    /// Losses of the reference, over those tokens.
    pub reference: Artifact<Losses>,
}

/// Writes the pairs with their loss, part by part.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a row that is no pair, and for losses that lack one.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let Inputs { tokens, reference } = inputs;
    let summary = &tokens.manifest().summary;
    for name in SUMMED {
        if let Some(value) = summary.get(name) {
            draft.summary(name, value)?;
        }
    }
    draft.parts(tokens.parts());
    exec.reporter.begin("preferences", "pairs", tokens.examples(), 0);
    let mut losses = reference.rows::<Loss>()?;
    for part in 0..tokens.parts() {
        let mut examples = tokens.rows_in::<Example>(part)?;
        let mut next = || -> Result<Option<Vec<Example>>> {
            let mut pairs = Vec::new();
            for example in examples.by_ref().take(BATCH) {
                let mut example = example?;
                let number = example.example;
                let loss = losses.next().transpose()?.filter(|loss| loss.example == number);
                let loss = loss.ok_or_else(|| {
                    bad_input(format!(
                        "the losses of the reference have no row for example {number}; wire `reference` to a step `losses` over \
                         the same tokens"
                    ))
                })?;
                if example.weights != [1.0, -1.0] || !example.preference.is_empty() {
                    return Err(bad_input(format!(
                        "example {number} is no pair of a preference: give rows of `chosen` and `rejected`, or of `prompt`, \
                         `completion` and `contrast`"
                    )));
                }
                // Its loss is -log p(chosen) + log p(rejected).
                example.preference = vec![config.beta, -loss.loss];
                pairs.push(example);
                exec.reporter.advance(1);
            }
            Ok((!pairs.is_empty()).then_some(pairs))
        };
        if draft.has(part) {
            while next()?.is_some() {}
        } else {
            draft
                .write_each(part, std::iter::from_fn(|| next().transpose()).map(|pairs| Example::to_batch(&pairs?)))?;
        }
    }
    exec.reporter.end();
    Ok(())
}
