//! The stage `project`: how far the residual stream of each text lies along directions, p = ⟨h, v⟩ / ‖v‖.
//!
//! reads   tokens, vectors, a model; tokens of the same prompts answered otherwise, as a baseline
//! writes  projections

use std::collections::HashMap;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{
    Artifact, Draft, Example, Kind, Over, Projection, Projections, Tokens, Vectors, Wanted, bad_input,
};
use wherefrom_model::{Labels, Precision, Site, Sites};
use wherefrom_pass::{Corpus, open, place, sequence, sizes_of};
use wherefrom_stage::{About, Checkpoint, Cost, Exec, Machine, ModelFiles, Planned, Role, Size, Stage, Writes};

use crate::streams::{mean, norm};

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `project`.
pub static STAGE: Stage<Config> = Stage {
    about: About { model: Checkpoint::Runs, inherits: &["precision"], ..About::new("project", VERSION).split() },
    roles: &[
        Role::required("tokens", &[Kind::Tokens]),
        Role::required("vectors", &[Kind::Vectors]),
        Role::optional("baseline", &[Kind::Projections]),
    ],
    parse: serde_json::from_value,
    check: Config::check,
    writes: Writes::One(Kind::Projections),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| {
        let baseline = given.inputs.contains_key("baseline").then(|| given.open("baseline")).transpose()?;
        let inputs =
            Inputs { tokens: given.open("tokens")?, vectors: given.open("vectors")?, baseline, model: given.model()? };
        run(config, &inputs, exec, draft)
    },
};

/// On what is projected, and what of a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Sites whose vectors are taken.
    pub layers: Sites,
    /// Which vectors are taken, by the tokens that they were averaged over.
    pub over: Over,
    /// What of a text is projected.
    pub at: Over,
    /// What `difference` is against: nothing, the same rows of the input `baseline`, or the last token of the row's own prompt.
    pub baseline: Baseline,
    /// Whether the projection of every token is kept.
    pub by_token: bool,
    /// Precision of the model's forward pass.
    pub precision: Precision,
}

/// What a difference is against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Baseline {
    /// Nothing: `difference` is not there.
    None,
    /// The projections in the input `baseline`, row by row: the model's own answers to the same prompts, or another model's.
    Projections,
    /// The last token of the row's prompt, which needs no other answer.
    PromptLast,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            layers: Sites::All,
            over: Over::ResponseAvg,
            at: Over::ResponseAvg,
            baseline: Baseline::None,
            by_token: false,
            precision: Precision::F32,
        }
    }
}

impl Config {
    /// Refuses knobs that say nothing.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        match &self.layers {
            Sites::Some(sites) if sites.is_empty() => {
                Err(bad_input("layers = [] projects on nothing; name some, such as [12], or write \"all\""))
            }
            _ if self.at == Over::PromptLast && self.baseline == Baseline::PromptLast => Err(bad_input(
                "baseline = \"prompt-last\" is what at = \"prompt-last\" projects: the difference is nothing",
            )),
            _ => Ok(()),
        }
    }
}

/// What is read.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Texts.
    pub tokens: Artifact<Tokens>,
    /// Directions.
    pub vectors: Artifact<Vectors>,
    /// Projections of the same rows, answered otherwise.
    pub baseline: Option<Artifact<Projections>>,
    /// Hugging Face folder.
    pub model: ModelFiles,
}

/// A direction of length 1 at a site.
struct Direction {
    site: Site,
    values: Vec<f32>,
}

/// Projects every text; a part per span of examples.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for vectors that the model does not fit, and for a text that has nothing to project.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let (model, _) = place(open(&inputs.model, config.precision, exec)?, &[], &inputs.tokens, exec, 0)?;
    let (directions, names) =
        directions(config, &inputs.vectors, model.config.num_hidden_layers, model.config.hidden_size)?;
    let mut sites: Vec<Site> = directions.iter().map(|direction| direction.site).collect();
    sites.sort();
    sites.dedup();
    let baseline = match (config.baseline, &inputs.baseline) {
        (Baseline::Projections, None) => {
            return Err(bad_input(
                "baseline = \"projections\" is against the input `baseline`, which is not there: wire the projections of the same \
                 rows with other answers, or take baseline = \"prompt-last\"",
            ));
        }
        (Baseline::Projections, Some(artifact)) => Some(read_baseline(artifact)?),
        _ => None,
    };
    draft.metadata("directions", serde_json::to_string(&names)?);
    draft.summary("directions", &names)?;
    let corpus = Corpus::new("project", &model, &inputs.tokens, exec);
    corpus.parts(corpus.spans(draft)?, |part, examples| {
        let untargeted = examples.iter().find(|row| !row.target_mask.contains(&true));
        if let (Some(row), Over::ResponseAvg) = (untargeted, config.at) {
            return Err(bad_input(format!(
                "row {} of the tokens has no answer: let a `generate` step complete it, or set at = \"prompt-last\": {}",
                row.example,
                inputs.tokens.folder().display()
            )));
        }
        let empty = Projection { query: 0, example: 0, projection: 0.0, cosine: 0.0, difference: f32::NAN, by_token: Vec::new() };
        let mut rows = vec![empty; examples.len() * directions.len()];
        corpus.batches(examples, |group, batch| {
            model.residual_streams(batch, &sites, &mut |site, stream| {
                let width = stream.dims()[1];
                let stream: Vec<f32> =
                    stream.into_data().try_into_vec().map_err(|error| anyhow::anyhow!("{error:?}"))?;
                for (&index, tokens) in group.iter().zip(batch.tokens.sequences.iter()) {
                    let stream = &stream[tokens.start * width..tokens.end * width];
                    let own = &examples[index];
                    for (query, direction) in directions.iter().enumerate().filter(|(_, one)| one.site == site) {
                        let row = &mut rows[index * directions.len() + query];
                        *row = projected(config, own, query as u32, stream, &direction.values);
                        if let Some(baseline) = &baseline {
                            let against = baseline.get(&(query as u32, own.example)).ok_or_else(|| lacking(own.example))?;
                            row.difference = row.projection - against;
                        }
                    }
                }
                Ok(())
            })
        })?;
        if let Some(place) = rows.iter().position(|row| !row.projection.is_finite()) {
            let example = &examples[place / directions.len()];
            return Err(model.overflow(sequence(example), "its residual stream", &Labels::Empirical));
        }
        draft.write_rows::<Projections, _>(part, &rows)
    })
}

/// p = ⟨h, v̂⟩ and p / ‖h‖, of a stream [tokens, width].
fn projected(config: &Config, example: &Example, query: u32, stream: &[f32], direction: &[f32]) -> Projection {
    let width = direction.len();
    let dot = |values: &[f32]| values.iter().zip(direction).map(|(&x, &v)| f64::from(x) * f64::from(v)).sum::<f64>();
    let at = |over: Over| mean(stream, width, &example.target_mask, over);
    let own = at(config.at);
    let projection = dot(&own);
    let difference = match config.baseline {
        Baseline::PromptLast => (projection - dot(&at(Over::PromptLast))) as f32,
        Baseline::None | Baseline::Projections => f32::NAN,
    };
    let by_token =
        if config.by_token { stream.chunks_exact(width).map(|token| dot(token) as f32).collect() } else { Vec::new() };
    Projection {
        query,
        example: example.example,
        projection: projection as f32,
        cosine: (projection / norm(&own).max(f64::MIN_POSITIVE)) as f32,
        difference,
        by_token,
    }
}

/// The vectors that are asked for, in the order of the artifact, and what they are called.
fn directions(
    config: &Config,
    vectors: &Artifact<Vectors>,
    blocks: usize,
    width: usize,
) -> Result<(Vec<Direction>, Vec<String>)> {
    let meant = |site: &str| match (&config.layers, site.parse()) {
        (Sites::All, _) => true,
        (Sites::Some(sites), Ok(site)) => sites.contains(&site),
        _ => false,
    };
    let wanted = Wanted { knob: "layers", over: config.over, trait_name: None, width };
    let (mut found, mut names) = (Vec::new(), Vec::new());
    for row in wanted.of_any_trait(vectors, meant)? {
        let site: Site = row.site.parse()?;
        if matches!(site, Site::Stream(layer) if layer > blocks) {
            return Err(bad_input(format!(
                "the vector of {} at site {site} is of another model: this one has {blocks} blocks",
                row.trait_name
            )));
        }
        names.push(format!("{}.{}.{site}", row.trait_name, row.over));
        found.push(Direction { site, values: row.direction()? });
    }
    Ok((found, names))
}

fn read_baseline(artifact: &Artifact<Projections>) -> Result<HashMap<(u32, u64), f32>> {
    let rows = artifact.rows::<Projection>()?;
    rows.map(|row| row.map(|row| ((row.query, row.example), row.projection))).collect()
}

fn lacking(example: u64) -> anyhow::Error {
    bad_input(format!(
        "the input `baseline` has no projection of row {example} on the same direction: it has to be of the same rows, and with the same \
         `layers` and `over`"
    ))
}

fn cost(config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = sizes_of(planned, machine) else { return Cost::new(0.0, 0.0, 0.0) };
    let Size { tokens, rows } = planned.size_of("tokens");
    let blocks = sizes.modules.last().map_or(0, |module| module.layer) + 1;
    let count = config.layers.of(blocks).len() as f64;
    let disk = count * (rows * 24.0 + if config.by_token { 4.0 * tokens } else { 0.0 });
    let sizes = sizes.fitting(machine.memory, 0.0);
    Cost::new(sizes.forward_bytes(), disk, 2.0 * sizes.forward * tokens).note(sizes.footprint.note())
}
