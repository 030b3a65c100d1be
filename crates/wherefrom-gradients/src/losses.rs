//! What the model makes of each token: -log p(token | tokens before it), by a forward pass alone.
//!
//! reads   tokens, model
//! writes  losses

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Artifact, Draft, Kind, Loss, Losses, Tokens};
use wherefrom_model::Precision;
use wherefrom_pass::{Corpus, open, place, sizes_of};
use wherefrom_stage::{About, Checkpoint, Cost, Exec, Machine, ModelFiles, Planned, Role, Stage, Writes};

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `losses`.
pub static STAGE: Stage<Config> = Stage {
    about: About { model: Checkpoint::Runs, inherits: &["precision"], ..About::new("losses", VERSION).split() },
    roles: &[Role::required("tokens", &[Kind::Tokens])],
    parse: serde_json::from_value,
    check: |_| Ok(()),
    writes: Writes::One(Kind::Losses),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| {
        run(config, &Inputs { tokens: given.open("tokens")?, model: given.model()? }, exec, draft)
    },
};

/// What is computed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Precision of the model's forward pass.
    pub precision: Precision,
}

/// What is read.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Training sequences or queries.
    pub tokens: Artifact<Tokens>,
    /// Hugging Face folder.
    pub model: ModelFiles,
}

/// Cross-entropy in nats of every target token, and its sum over the example (never the mean), each token times the
/// weight of its segment: of a query, -f.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    let (model, _) = place(open(&inputs.model, config.precision, exec)?, &[], &inputs.tokens, exec, 0)?;
    let corpus = Corpus::new("losses", &model, &inputs.tokens, exec);
    corpus.parts(corpus.spans(draft)?, |part, examples| {
        let mut rows = Vec::with_capacity(examples.len());
        corpus.batches(examples, |group, batch| {
            let by_sequence = model.token_losses(batch)?;
            for (&index, by_token) in group.iter().zip(by_sequence) {
                let example = &examples[index];
                let loss = example.loss(&by_token);
                rows.push(Loss { example: example.example, loss, by_token });
            }
            Ok(())
        })?;
        rows.sort_by_key(|row| row.example);
        draft.write_rows::<Losses, _>(part, &rows)
    })
}

fn cost(_config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = sizes_of(planned, machine) else { return Cost::new(0.0, 0.0, 0.0) };
    let (sizes, tokens) = (sizes.fitting(machine.memory, 0.0), planned.size_of("tokens").tokens);
    Cost::new(sizes.forward_bytes(), tokens * 4.0, 2.0 * sizes.forward * tokens).note(sizes.footprint.note())
}
