//! What the model makes of each token: -log p(token | tokens before it), by a forward pass alone.
//!
//! reads   tokens, model
//! writes  losses

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Artifact, Draft, Kind, Loss, Losses, Span, Tokens};
use wherefrom_model::{Batch, Model, Precision, Sizes, open_device};
use wherefrom_stage::{About, Checkpoint, Cost, Exec, Machine, Planned, Role, Stage, Writes};

use crate::sequence;

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `losses`.
pub static STAGE: Stage<Config> = Stage {
    about: About { model: Checkpoint::Runs, inherits: &["precision"], ..About::new("losses", VERSION) },
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Of the model's forward pass.
    pub precision: Precision,
}

/// What is read.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Training sequences or queries.
    pub tokens: Artifact<Tokens>,
    /// Hugging Face folder.
    pub model: PathBuf,
}

/// Cross-entropy in nats of every target token, and its sum over the example (never the mean), each token times the
/// weight of its segment: of a query, -f.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    let device = open_device(exec.device.gpu())?;
    let model = Model::load(&inputs.model, &device)?.with_precision(config.precision)?;
    let spans: Vec<Span> = draft.plan(|| inputs.tokens.spans())?;
    let length = |span: &Span| span.len() as u64;
    let done = spans.iter().enumerate().filter(|(part, _)| draft.has(*part)).map(|(_, span)| length(span)).sum();
    exec.reporter.begin("losses", "examples", spans.iter().map(length).sum(), done);
    for (part, span) in spans.iter().enumerate().filter(|(part, _)| !draft.has(*part)) {
        let examples = inputs.tokens.read_span(span)?;
        let lengths: Vec<_> = examples.iter().map(|example| example.input_ids.len()).collect();
        let mut rows = Vec::with_capacity(examples.len());
        for group in model.batches(&lengths, exec.batch_tokens) {
            let sequences: Vec<_> = group.iter().map(|&index| sequence(&examples[index])).collect();
            let by_sequence = model.token_losses(&Batch::new(&sequences, &device))?;
            for (&index, by_token) in group.iter().zip(by_sequence) {
                let sum =
                    |tokens: std::ops::Range<usize>| by_token[tokens].iter().map(|&loss| f64::from(loss)).sum::<f64>();
                let example = &examples[index];
                let loss = example.parts().map(|(tokens, weight)| f64::from(weight) * sum(tokens)).sum::<f64>() as f32;
                rows.push(Loss { example: example.example, loss, by_token });
            }
            exec.reporter.advance(group.len() as u64);
        }
        rows.sort_by_key(|row| row.example);
        draft.write_rows::<Losses, _>(part, &rows)?;
    }
    exec.reporter.end();
    Ok(())
}

fn cost(_config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = planned.attributed(machine, Sizes::new) else { return Cost::new(0.0, 0.0, 0.0) };
    let tokens = planned.size_of("tokens").tokens;
    Cost::new(sizes.forward_bytes(), tokens * 4.0, 2.0 * sizes.forward * tokens)
}
