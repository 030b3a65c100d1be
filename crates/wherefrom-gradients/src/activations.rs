//! The residual stream of every sequence at chosen sites: means over its tokens, and the last token of its prompt.
//!
//! reads   tokens, model
//! writes  activations

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Activations, Artifact, Draft, Example, Kind, Position, Streams, Tokens, bad_input};
use wherefrom_model::{Labels, Precision, Site, Sites};
use wherefrom_pass::{Corpus, mean, open, place, sequence, sizes_of};
use wherefrom_stage::{About, Checkpoint, Cost, Exec, Machine, ModelFiles, Planned, Role, Size, Stage, Writes};

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `activations`.
pub static STAGE: Stage<Config> = Stage {
    about: About { model: Checkpoint::Runs, inherits: &["precision"], ..About::new("activations", VERSION).split() },
    roles: &[Role::required("tokens", &[Kind::Tokens])],
    parse: |knobs| {
        let mut config: Config = serde_json::from_value(knobs)?;
        config.positions.sort();
        config.positions.dedup();
        Ok(config)
    },
    check: Config::check,
    writes: Writes::One(Kind::Activations),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| {
        run(config, &Inputs { tokens: given.open("tokens")?, model: given.model()? }, exec, draft)
    },
};

/// What is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Where the stream is read.
    pub sites: Sites,
    /// What is kept of its tokens, in the order of the columns.
    pub positions: Vec<Position>,
    /// Precision of the model's forward pass.
    pub precision: Precision,
}

impl Default for Config {
    fn default() -> Self {
        let positions = vec![Position::AllMean, Position::TargetMean, Position::PromptLast];
        Self { sites: Sites::All, positions, precision: Precision::default() }
    }
}

impl Config {
    /// Refuses knobs that keep nothing.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        if self.positions.is_empty() {
            return Err(bad_input(
                "positions = [] keeps nothing; name \"all-mean\", \"target-mean\" or \"prompt-last\"",
            ));
        }
        match &self.sites {
            Sites::Some(sites) if sites.is_empty() => {
                Err(bad_input("sites = [] keeps nothing; name sites such as 0 or \"post-norm\", or write \"all\""))
            }
            _ => Ok(()),
        }
    }
}

/// What is read.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Sequences of any kind.
    pub tokens: Artifact<Tokens>,
    /// Hugging Face folder.
    pub model: ModelFiles,
}

/// Reads the stream at every site; a part per span of examples. Means are summed in float64.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let (model, _) = place(open(&inputs.model, config.precision, exec)?, &[], &inputs.tokens, exec, 0)?;
    let sites = config.sites.of(model.config.num_hidden_layers);
    let names: Vec<_> = sites.iter().map(Site::to_string).collect();
    draft.metadata("sites", serde_json::to_string(&names)?);
    draft.metadata("positions", serde_json::to_string(&config.positions)?);
    draft.summary("sites", &names)?;
    draft.summary("positions", &config.positions)?;
    let corpus = Corpus::new("activations", &model, &inputs.tokens, exec);
    corpus.parts(corpus.spans(draft)?, |part, examples| {
        let untargeted = examples.iter().find(|row| !row.target_mask.contains(&true));
        if let (Some(row), true) = (untargeted, config.positions.contains(&Position::TargetMean)) {
            return Err(bad_input(format!(
                "row {} of the tokens has no target, and so no target-mean: leave that out of `positions`, or let a \
                 `generate` step complete the row: {}",
                row.example,
                inputs.tokens.folder().display()
            )));
        }
        let row = |example: &Example| Streams { example: example.example, ..Streams::default() };
        let mut rows: Vec<_> = examples.iter().map(row).collect();
        corpus.batches(examples, |group, batch| {
            model.residual_streams(batch, &sites, &mut |_, stream| {
                let width = stream.dims()[1];
                let stream: Vec<f32> =
                    stream.into_data().try_into_vec().map_err(|error| anyhow::anyhow!("{error:?}"))?;
                for (&index, tokens) in group.iter().zip(batch.tokens.sequences.iter()) {
                    rows[index].shape = [sites.len(), width];
                    let stream = &stream[tokens.start * width..tokens.end * width];
                    keep(&mut rows[index], &config.positions, &examples[index].target_mask, stream, width);
                }
                Ok(())
            })
        })?;
        let kept = |row: &Streams| {
            [&row.all_mean, &row.target_mean, &row.prompt_last].into_iter().flatten().all(|x| x.is_finite())
        };
        if let Some(place) = rows.iter().position(|row| !kept(row)) {
            return Err(model.overflow(sequence(&examples[place]), "its residual stream", &Labels::Empirical));
        }
        draft.write_rows::<Activations, _>(part, &rows)
    })
}

/// Adds a site to a row: what the positions keep of its stream [tokens, width].
fn keep(row: &mut Streams, positions: &[Position], targets: &[bool], stream: &[f32], width: usize) {
    let first_target = targets.iter().position(|&target| target).unwrap_or(targets.len());
    for position in positions {
        match position {
            Position::AllMean => row.all_mean.extend(mean(stream.chunks_exact(width), width)),
            Position::TargetMean => {
                let own =
                    stream.chunks_exact(width).zip(targets).filter(|(_, target)| **target).map(|(token, _)| token);
                row.target_mean.extend(mean(own, width));
            }
            Position::PromptLast => {
                let last = first_target.saturating_sub(1);
                row.prompt_last.extend_from_slice(&stream[last * width..][..width]);
            }
        }
    }
}

fn cost(config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = sizes_of(planned, machine) else { return Cost::new(0.0, 0.0, 0.0) };
    let Size { tokens, rows } = planned.size_of("tokens");
    let sites = config.sites.of(sizes.modules.last().map_or(0, |module| module.layer) + 1).len();
    let width = sizes.modules.first().map_or(0, |module| module.in_features);
    let row = 4.0 * (sites * width * config.positions.len()) as f64;
    let note = format!("{} a sequence", wherefrom_artifact::bytes(row));
    let sizes = sizes.fitting(machine.memory, 0.0);
    let flops = 2.0 * sizes.forward * tokens;
    Cost::new(sizes.forward_bytes(), rows * (row + 24.0), flops).note(sizes.footprint.note()).note(note)
}
