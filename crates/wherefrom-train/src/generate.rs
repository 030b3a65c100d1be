//! The stage `generate`: rows without a target get a continuation, which is their target.
//!
//! reads   tokens, a model, tokenizer.json; vectors, which steer it
//! writes  tokens, a part for each span of the input

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use burn::tensor::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;
use wherefrom_artifact::{Artifact, Draft, Example, Kind, RowCounts, Span, Tokens, Vectors, bad_input};
use wherefrom_linalg::kernels::sample_rows;
use wherefrom_linalg::random::uniform;
use wherefrom_model::{Addition, Batch, Cache, Labels, Model, Precision, Sequence, Sizes, open_device};
use wherefrom_stage::{
    About, Checkpoint, Cost, Exec, File, Machine, ModelFiles, Planned, Role, Size, Stage, Writes, at_least,
};

use crate::checkpoint::checkpoint;
use crate::steer::{Course, Steer};
use crate::tokenizer;

/// Raised when the tokens of the same configuration and inputs change.
pub const VERSION: u32 = 4;

/// Bytes that the keys and values of rows may take that are continued side by side.
const CACHE_BYTES: u64 = 512 << 20;

/// The stage `generate`.
pub static STAGE: Stage<Config> = Stage {
    about: About {
        files: &[File::Tokenizer, File::GenerationConfig],
        model: Checkpoint::Runs,
        ..About::new("generate", VERSION).split()
    },
    roles: &[Role::required("tokens", &[Kind::Tokens]), Role::optional("vectors", &[Kind::Vectors])],
    parse: |knobs| at_least("max-new-tokens", 1, knobs),
    check: Config::check,
    writes: Writes::One(Kind::Tokens),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| {
        let (tokens, tokenizer) = (given.open("tokens")?, given.required_file(File::Tokenizer)?);
        let vectors = given.inputs.contains_key("vectors").then(|| given.open("vectors")).transpose()?;
        run(config, &Inputs { tokens, vectors, model: given.model()?, tokenizer }, exec, draft)
    },
};

/// How a continuation is drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Longest continuation.
    #[serde(default = "max_new_tokens")]
    pub max_new_tokens: usize,
    /// What logits are divided by before a draw; 0 takes the likeliest token.
    #[serde(default)]
    pub temperature: f64,
    /// Seed of the draws.
    #[serde(default)]
    pub seed: u64,
    /// Precision of the model's forward pass.
    #[serde(default, skip_serializing_if = "Precision::is_f32")]
    #[schemars(!skip_serializing_if)]
    pub precision: Precision,
    /// What the input `vectors` adds to the residual stream; each prompt gets a text for each layer and coefficient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steer: Option<Steer>,
}

fn max_new_tokens() -> usize {
    24
}

impl Default for Config {
    fn default() -> Self {
        Self { max_new_tokens: max_new_tokens(), temperature: 0.0, seed: 0, precision: Precision::F32, steer: None }
    }
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        if self.max_new_tokens == 0 {
            return Err(bad_input("max-new-tokens = 0 leaves rows without a target; set it to 1 or more"));
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(bad_input(format!(
                "temperature = {} is out of range; set it to 0 (the likeliest token) or more",
                self.temperature
            )));
        }
        self.steer.as_ref().map_or(Ok(()), Steer::check)
    }
}

/// What is continued, and by which model.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The rows; those with a target pass through unchanged.
    pub tokens: Artifact<Tokens>,
    /// Directions that steer it.
    pub vectors: Option<Artifact<Vectors>>,
    /// The model's folder.
    pub model: ModelFiles,
    /// Its `tokenizer.json`.
    pub tokenizer: PathBuf,
}

/// Continues rows, and writes the parts that are not there yet.
///
/// A continuation ends with a token that the model ends with (which then is its last target), after `max_new_tokens`, or
/// where the model's context is full.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a knob out of its range, and for a row that the model cannot continue.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let device = open_device(exec.device.gpu())?;
    let tokenizer = wherefrom_vocabulary::open(&inputs.tokenizer)?;
    let limit = exec.device.limit(exec.memory, wherefrom_linalg::memory::available_bytes);
    let batch_tokens = exec.batch_of(inputs.tokens.tokens());
    let model = Model::open(checkpoint(&inputs.model)?, &device)?.with_precision(config.precision)?;
    let model = model.fitting(batch_tokens, limit, CACHE_BYTES)?;
    let courses = match (&config.steer, &inputs.vectors) {
        (None, None) => vec![Course::plain()],
        (Some(steer), Some(vectors)) => steer.courses(vectors, &model)?,
        (Some(_), None) => {
            return Err(bad_input(
                "steer is by the input `vectors`, which is not there: wire a step of the stage `vector`",
            ));
        }
        (None, Some(_)) => {
            return Err(bad_input(
                "the input `vectors` steers nothing: say how, steer = { layers = [12], coefficients = [1] }, or leave it out",
            ));
        }
    };
    let times = courses.len();
    let generator = Generator {
        config,
        ends: ends(&inputs.model.folder, &tokenizer)?,
        tokenizer,
        model,
        courses,
        device,
        batch_tokens: exec.batch_tokens,
    };
    let spans: Vec<Span> = draft.plan(|| inputs.tokens.spans(draft.share()))?;
    let own: Vec<_> = spans.iter().enumerate().filter(|(part, _)| draft.share().owns(*part)).collect();
    let texts = |span: &Span| (span.len() * times) as u64;
    let done = own.iter().filter(|(part, _)| draft.made(*part)).map(|(_, span)| texts(span)).sum();
    exec.reporter.begin("generate", "rows", own.iter().map(|(_, span)| texts(span)).sum(), done);
    let mut counts = RowCounts::default();
    for (part, span) in own {
        let name = format!("counts-{part:05}");
        if !draft.made(part) {
            let mut examples = generator.courses_of(inputs.tokens.read_span(span)?);
            generator.complete(&mut examples)?;
            draft.hand_over(&name, |into| Ok(serde_json::to_writer(into, &RowCounts::of(&examples))?))?;
            draft.write_rows::<Tokens, _>(part, &examples)?;
            exec.reporter.advance(texts(span));
        }
        let counted = draft.restore(&name)?.context("a part that is there was counted")?;
        counts = counts.and(serde_json::from_slice(&counted)?);
    }
    exec.reporter.end();

    draft.summary("examples", counts.examples)?;
    draft.summary("tokens", counts.tokens)?;
    draft.summary("targets", counts.targets)?;
    draft.summary("truncated", 0)?;
    if config.steer.is_some() {
        draft.summary("steering", generator.courses.iter().map(Course::to_json).collect::<Vec<_>>())?;
    }
    draft.summary("longest", counts.longest)?;
    draft.summary("largest_id", counts.largest_id)?;
    draft.summary("largest_id_example", counts.largest_id_example)
}

/// Tokens that end a continuation: the model's, or else the tokenizer's end of text.
fn ends(model: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let ends = wherefrom_model::end_tokens(model)?;
    Ok(if ends.is_empty() { tokenizer::special(tokenizer, tokenizer::END).into_iter().collect() } else { ends })
}

struct Generator<'a> {
    config: &'a Config,
    ends: Vec<u32>,
    tokenizer: Tokenizer,
    model: Model,
    device: Device,
    batch_tokens: usize,
    /// What each prompt gets a text by.
    courses: Vec<Course>,
}

impl Generator<'_> {
    /// Each row as often as there are texts of it, numbered and named anew.
    fn courses_of(&self, examples: Vec<Example>) -> Vec<Example> {
        if self.config.steer.is_none() {
            return examples;
        }
        let times = self.courses.len() as u64;
        let each = |example: Example| {
            (0..).zip(&self.courses).map(move |(place, course)| {
                let docs = example.docs.iter().map(|doc| format!("{doc}/{}", course.name)).collect();
                Example { example: example.example * times + place, docs, ..example.clone() }
            })
        };
        examples.into_iter().flat_map(each).collect()
    }

    /// What is added to the stream of a row.
    fn additions(&self, example: u64) -> &[Addition] {
        &self.courses[(example % self.courses.len() as u64) as usize].additions
    }

    fn complete(&self, examples: &mut [Example]) -> Result<()> {
        let mut prompts: Vec<&mut Example> =
            examples.iter_mut().filter(|example| !example.target_mask.contains(&true)).collect();
        for prompt in &prompts {
            self.check(prompt)?;
        }
        let given: Vec<_> = prompts.iter().map(|prompt| prompt.input_ids.len()).collect();
        let longest: Vec<_> = given.iter().map(|&prompt| self.room(prompt)).collect();
        for members in self.groups(&given, &longest) {
            let given: Vec<_> = members.iter().map(|&index| given[index]).collect();
            self.go_on(&mut prompts, &members, &longest)?;
            for (&index, given) in members.iter().zip(given) {
                let prompt = &mut prompts[index];
                // For show: the ids stay as they were drawn, and are not encoded again.
                let text = self.continuation(&prompt.input_ids, given)?;
                prompt.completion_start = u32::try_from(prompt.text.len()).unwrap_or(0);
                prompt.text.push_str(&text);
            }
        }
        Ok(())
    }

    /// Tokens of the longest continuation of a prompt, with the prompt.
    fn room(&self, prompt: usize) -> usize {
        (prompt + self.config.max_new_tokens).min(self.model.config.max_position_embeddings)
    }

    fn check(&self, prompt: &Example) -> Result<()> {
        let (row, length) = (prompt.example, prompt.input_ids.len());
        if length == 0 {
            return Err(bad_input(format!("row {row} of the tokens is empty; give it a prompt or remove it")));
        }
        let context = self.model.config.max_position_embeddings;
        if length >= context {
            return Err(bad_input(format!(
                "row {row} of the tokens has {length} tokens and the model's context holds {context}, so there is no room \
                 for a continuation; lower max-tokens of the step that made the tokens"
            )));
        }
        let vocabulary = self.model.config.vocab_size;
        if let Some(id) = prompt.input_ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(bad_input(format!(
                "row {row} of the tokens has the token {id}, but the model knows {vocabulary}; give the model's tokenizer"
            )));
        }
        Ok(())
    }

    /// Rows that are continued side by side: prompts that are read in one batch, with keys and values that have room.
    fn groups(&self, given: &[usize], longest: &[usize]) -> Vec<Vec<usize>> {
        let room = (CACHE_BYTES / Cache::bytes_of_token(&self.model.config).max(1)) as usize;
        let mut groups = Vec::new();
        for batch in self.model.batches(given, self.batch_tokens) {
            let mut held = 0;
            for (place, &row) in batch.iter().enumerate() {
                held += longest[row];
                if place == 0 || held > room {
                    held = longest[row];
                    groups.push(Vec::new());
                }
                groups.last_mut().expect("pushed above").push(row);
            }
        }
        groups
    }

    /// Draws tokens for these rows until each has ended.
    fn go_on(&self, prompts: &mut [&mut Example], members: &[usize], longest: &[usize]) -> Result<()> {
        let several = members.iter().any(|&index| prompts[index].segments.len() > 1);
        let ids: Vec<_> = members.iter().map(|&index| &prompts[index].input_ids[..]).collect();
        let additions: Vec<_> = members.iter().map(|&index| self.additions(prompts[index].example)).collect();
        if let (true, Some(&first)) =
            (several && additions.iter().any(|additions| !additions.is_empty()), members.first())
        {
            return Err(bad_input(format!(
                "row {} of the tokens is of several segments, or beside such a row, and is not steered: give prompts of one segment",
                prompts[first].example
            )));
        }
        let mut cached = (!several).then(|| self.model.prefill(&ids, &additions)).transpose()?;
        let mut open = members.to_vec();
        loop {
            let logits = match &cached {
                Some((_, logits)) => logits.clone(),
                None => self.whole(prompts, &open)?,
            };
            let next = self.draw(prompts, &open, logits)?;
            for (&index, &id) in open.iter().zip(&next) {
                prompts[index].input_ids.push(id);
                prompts[index].target_mask.push(true);
            }
            let goes_on = |&place: &usize| {
                let ids = &prompts[open[place]].input_ids;
                ids.len() < longest[open[place]] && !ids.last().is_some_and(|last| self.ends.contains(last))
            };
            let left: Vec<_> = (0..open.len()).filter(goes_on).collect();
            if left.is_empty() {
                return Ok(());
            }
            open = left.iter().map(|&place| open[place]).collect();
            if let Some((cache, logits)) = &mut cached {
                cache.keep(&left);
                let next: Vec<_> = left.iter().map(|&place| next[place]).collect();
                *logits = self.model.step(cache, &next)?;
            }
        }
    }

    /// Logits after the last token of each row, of which some has several segments.
    fn whole(&self, prompts: &[&mut Example], open: &[usize]) -> Result<Tensor<2>> {
        let sequences: Vec<_> = open.iter().map(|&index| sequence(prompts[index])).collect();
        self.model.next_token_logits(&Batch::new(&sequences, &self.device))
    }

    /// The next token of every open row. A draw depends on (seed, example, position) alone.
    fn draw(&self, prompts: &[&mut Example], open: &[usize], logits: Tensor<2>) -> Result<Vec<u32>> {
        let sequences: Vec<_> = open.iter().map(|&index| sequence(prompts[index])).collect();
        let sums: Vec<f32> = logits.clone().sum_dim(1).to_data().iter::<f32>().collect();
        if let Some(place) = sums.iter().position(|sum| !sum.is_finite()) {
            return Err(self.model.overflow(sequences[place], "a next token's logit", &Labels::Empirical));
        }
        if self.config.temperature == 0.0 {
            return Ok(logits.argmax(1).to_data().iter::<u32>().collect());
        }
        // All texts of a prompt by the same numbers: what differs is what steers them.
        let times = self.courses.len() as u64;
        let draw = |row: &Sequence<'_>| uniform(self.config.seed, row.example / times, row.input_ids.len() as u64);
        let draws: Vec<_> = sequences.iter().map(draw).collect();
        Ok(sample_rows(logits / self.config.temperature, &draws))
    }

    /// The text of the tokens from `given` on, as it reads after those before.
    fn continuation(&self, ids: &[u32], given: usize) -> Result<String> {
        let decode = |ids: &[u32]| {
            self.tokenizer.decode(ids, true).map_err(|error| {
                bad_input(format!(
                    "the tokenizer cannot decode what the model wrote ({error}); give the model's tokenizer"
                ))
            })
        };
        match decode(ids)?.strip_prefix(&decode(&ids[..given])?[..]) {
            Some(text) => Ok(text.into()),
            None => decode(&ids[given..]),
        }
    }
}

fn sequence(prompt: &Example) -> Sequence<'_> {
    let Example { example, input_ids, target_mask, segments, .. } = prompt;
    Sequence { example: *example, input_ids, target_mask, segments, weights: &[], preference: None }
}

fn cost(config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = planned.attributed(machine, Sizes::new) else { return Cost::new(0.0, 0.0, 0.0) };
    let sizes = sizes.held(config.precision, machine.device.gpu().is_none());
    let Size { tokens, rows } = planned.size;
    // Keys and values are kept, so that each token passes once; a row of logits for each new one.
    let flops = 2.0 * ((sizes.forward - sizes.head) * tokens + sizes.head * rows * config.max_new_tokens as f64);
    let sizes = sizes.fitting(machine.memory, CACHE_BYTES as f64);
    let memory = sizes.forward_bytes() + CACHE_BYTES as f64;
    Cost::new(memory, planned.size.tokens * 5.0, flops).note(sizes.footprint.note())
}
