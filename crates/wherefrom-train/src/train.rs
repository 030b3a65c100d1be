//! The stage `train`: a Llama from random weights, by AdamW on the mean loss per target token.
//!
//! reads   tokens, tokenizer.json
//! writes  model (a Hugging Face folder)
//!
//! A step is a pure function of the state before it and of (seed, epoch, step), so a run that was interrupted ends with
//! the weights of one that was not.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use burn::tensor::Device;
use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wherefrom_artifact::{Artifact, Draft, Example, Kind, Tokens, bad_input, write_atomically};
use wherefrom_linalg::random::uniform;
use wherefrom_model::{Batch, Model, Precision, Sequence, Sizes, batches, open_device};
use wherefrom_stage::{About, Cost, Exec, File, Machine, Planned, Role, Stage, Writes};

use crate::adam::{AdamW, Moments};
use crate::course::{learnable, trainable};
use crate::state::{self, Progress};
use crate::tokenizer;

/// Raised when the model of the same configuration and inputs changes.
pub const VERSION: u32 = 1;

/// The stage `train`.
pub static STAGE: Stage<Config> = Stage {
    about: About { files: &[File::TokenizerFiles], ..About::new("train", VERSION).on_device() },
    roles: &[Role::required("tokens", &[Kind::Tokens])],
    parse: |knobs| {
        let config: Config = serde_json::from_value(knobs)?;
        config.model().map_err(serde_json::Error::custom)?;
        Ok(config)
    },
    check: |config| config.model().map(drop),
    writes: Writes::One(Kind::Model),
    makes_model: |config| Some(config.model().ok()?.to_json()),
    cost,
    run: |config, given, exec, draft| {
        run(config, &Inputs { tokens: given.open("tokens")?, tokenizer: given.file(File::TokenizerFiles) }, exec, draft)
    },
};

/// Name of the checkpoint in the draft.
const STATE: &str = "state";
/// Time between checkpoints; one more is written at each epoch's end.
const INTERVAL: Duration = Duration::from_secs(20);

/// Sizes of the model, and how it is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Layers.
    #[serde(default = "defaults::layers")]
    pub layers: usize,
    /// Width of the residual stream.
    #[serde(default = "defaults::hidden")]
    pub hidden: usize,
    /// Width of the MLP.
    #[serde(default = "defaults::intermediate")]
    pub intermediate: usize,
    /// Query heads.
    #[serde(default = "defaults::heads")]
    pub heads: usize,
    /// Key and value heads.
    #[serde(default = "defaults::key_value_heads")]
    pub key_value_heads: usize,
    /// Rows of the embedding, which is also the head.
    pub vocabulary: usize,
    /// Longest sequence.
    #[serde(default = "defaults::context")]
    pub context: usize,
    /// Passes over the tokens.
    #[serde(default = "defaults::epochs")]
    pub epochs: usize,
    /// Tokens of a step, where all its sequences are as long as the longest. It changes the result.
    #[serde(default = "defaults::batch_tokens")]
    pub batch_tokens: usize,
    /// Peak learning rate.
    #[serde(default = "defaults::learning_rate")]
    pub learning_rate: f64,
    /// Share of the steps in which the learning rate rises.
    #[serde(default = "defaults::warmup_share")]
    pub warmup_share: f64,
    /// Learning rate of the last step over the peak.
    #[serde(default = "defaults::minimum_learning_rate_share")]
    pub minimum_learning_rate_share: f64,
    /// Decoupled weight decay of matrices.
    #[serde(default = "defaults::weight_decay")]
    pub weight_decay: f64,
    /// Longest gradient of the mean loss.
    #[serde(default = "defaults::clip")]
    pub clip: f64,
    /// Seed of the initial weights and of the order of the batches.
    #[serde(default)]
    pub seed: u64,
    /// Precision of the products, `f32` or `bf16`; weights and moments are float32.
    #[serde(default, skip_serializing_if = "Precision::is_f32")]
    #[schemars(!skip_serializing_if)]
    pub precision: Precision,
}

mod defaults {
    pub(super) fn layers() -> usize {
        4
    }
    pub(super) fn hidden() -> usize {
        128
    }
    pub(super) fn intermediate() -> usize {
        352
    }
    pub(super) fn heads() -> usize {
        8
    }
    pub(super) fn key_value_heads() -> usize {
        4
    }
    pub(super) fn context() -> usize {
        128
    }
    pub(super) fn epochs() -> usize {
        12
    }
    pub(super) fn batch_tokens() -> usize {
        2048
    }
    pub(super) fn learning_rate() -> f64 {
        2e-3
    }
    pub(super) fn warmup_share() -> f64 {
        0.05
    }
    pub(super) fn minimum_learning_rate_share() -> f64 {
        0.1
    }
    pub(super) fn weight_decay() -> f64 {
        0.01
    }
    pub(super) fn clip() -> f64 {
        1.0
    }
}

/// What is learnt from.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The token windows; those without a target are left out.
    pub tokens: Artifact<Tokens>,
    /// The `tokenizer.json` that goes with the model.
    pub tokenizer: Option<PathBuf>,
}

impl Config {
    fn optimizer(&self) -> AdamW {
        AdamW {
            learning_rate: self.learning_rate,
            warmup_share: self.warmup_share,
            minimum_share: self.minimum_learning_rate_share,
            betas: [0.9, 0.95],
            epsilon: 1e-8,
            epsilon_root: 0.0,
            weight_decay: self.weight_decay,
            clip: Some(self.clip),
        }
    }

    /// The sizes of the model, checked.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] for a knob out of its range, by name.
    pub fn model(&self) -> Result<wherefrom_model::Config> {
        let sizes = [
            ("layers", self.layers),
            ("hidden", self.hidden),
            ("intermediate", self.intermediate),
            ("heads", self.heads),
            ("key-value-heads", self.key_value_heads),
            ("vocabulary", self.vocabulary),
            ("context", self.context),
            ("epochs", self.epochs),
            ("batch-tokens", self.batch_tokens),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(bad_input(format!("{name} = 0 is out of range; set it to 1 or more")));
        }
        self.optimizer().check()?;
        trainable(self.precision)?;
        if !self.heads.is_multiple_of(self.key_value_heads) {
            return Err(bad_input(format!(
                "heads = {} is no multiple of key-value-heads = {}",
                self.heads, self.key_value_heads
            )));
        }
        if !self.hidden.is_multiple_of(2 * self.heads) {
            return Err(bad_input(format!(
                "hidden = {} is no multiple of 2 * heads = {}; a head's width must be a whole, even number",
                self.hidden,
                2 * self.heads
            )));
        }
        let config = wherefrom_model::Config {
            vocab_size: self.vocabulary,
            hidden_size: self.hidden,
            intermediate_size: self.intermediate,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: self.key_value_heads,
            max_position_embeddings: self.context,
            tie_word_embeddings: true,
            ..wherefrom_model::Config::llama(self.hidden / self.heads, 10_000.0, 1e-5)
        };
        config.check_size().map_err(bad_input)?;
        Ok(config)
    }
}

/// Trains, from the draft's checkpoint on where there is one, and writes the model.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a knob out of its range, a sequence that does not fit the model, and a loss
/// that is no number.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    let sizes = config.model()?;
    let vocabulary = Files::read(config, inputs.tokenizer.as_deref())?;
    let device = open_device(exec.device.gpu())?;
    let examples = examples(config, &inputs.tokens)?;
    let lengths: Vec<_> = examples.iter().map(|example| example.input_ids.len()).collect();
    let epoch_tokens = lengths.iter().sum::<usize>() as u64;
    let epoch_steps = batches(&lengths, config.batch_tokens).len() as u64;
    let steps = epoch_steps * config.epochs as u64;

    let mut model = Model::random(sizes, config.seed, &device).with_precision(config.precision)?;
    let mut moments = Moments::zeros(&model.parameters);
    let mut progress = Progress::default();
    if let Some(bytes) = draft.restore(STATE)? {
        (model.parameters, moments, progress) = state::from_bytes(&bytes, &device).context("resume training")?;
    }
    let (started, before) = (Instant::now(), progress.tokens);
    let mut saved = started;
    exec.reporter.begin("train", "tokens", epoch_tokens * config.epochs as u64, progress.tokens);
    for epoch in progress.step / epoch_steps..config.epochs as u64 {
        let order = order(&lengths, config, epoch);
        let done = (progress.step - epoch * epoch_steps) as usize;
        for members in &order[done..] {
            let batch = batch(&examples, members, &device);
            let (gradients, losses, targets) = model.parameter_gradients(&batch)?;
            let loss: f64 = losses.iter().sum();
            if !loss.is_finite() {
                return Err(bad_input(format!(
                    "the loss is {loss} after {} of {steps} steps; lower learning-rate = {}",
                    progress.step, config.learning_rate
                )));
            }
            moments.step(&config.optimizer(), progress.step, steps, &mut model.parameters, gradients, targets);
            progress.count(steps, batch.rows() as u64, loss, targets);
            if saved.elapsed() >= INTERVAL || progress.step.is_multiple_of(epoch_steps) {
                draft.checkpoint(STATE, &state::to_bytes(&model.parameters, &moments, &progress)?)?;
                saved = Instant::now();
            }
            exec.reporter.advance(batch.rows() as u64);
        }
    }
    exec.reporter.end();

    vocabulary.write(&model, draft.folder())?;
    let trained = progress.tokens - before;
    if trained > 0 {
        draft.provenance("tokens_per_second", trained as f64 / started.elapsed().as_secs_f64())?;
    }
    draft.summary("parameters", model.outline.parameters())?;
    draft.summary("final_loss", progress.curve.last().map(|(_, _, loss)| loss))?;
    draft.summary("loss_curve", progress.curve)
}

/// The sequences that have a target, checked against the model's sizes.
fn examples(config: &Config, tokens: &Artifact<Tokens>) -> Result<Vec<Example>> {
    learnable(tokens, |example| {
        let (row, length) = (example.example, example.longest_segment());
        if length > config.context {
            return Err(bad_input(format!(
                "row {row} of the tokens has {length} tokens, more than context = {}; raise it, or lower max-tokens of the \
                 step that made the tokens",
                config.context
            )));
        }
        if let Some(id) = example.input_ids.iter().find(|&&id| id as usize >= config.vocabulary) {
            return Err(bad_input(format!(
                "row {row} of the tokens has the token {id}, but vocabulary = {}; set it to {} or more",
                config.vocabulary,
                id + 1
            )));
        }
        Ok(())
    })
}

/// The batches of an epoch: sequences of like length side by side, which of them and in which order by hashes of
/// (seed, epoch, index). Their number is that of every epoch.
fn order(lengths: &[usize], config: &Config, epoch: u64) -> Vec<Vec<usize>> {
    let shuffled = |first: usize, count: usize| {
        let mut order: Vec<_> = (0..count).collect();
        let hash = |index: &usize| uniform(config.seed, epoch, (first + index) as u64);
        order.sort_by(|left, right| hash(left).total_cmp(&hash(right)).then(left.cmp(right)));
        order
    };
    let sequences = shuffled(0, lengths.len());
    let permuted: Vec<_> = sequences.iter().map(|&index| lengths[index]).collect();
    let mut batches = batches(&permuted, config.batch_tokens);
    let order = shuffled(lengths.len(), batches.len());
    let mut take =
        |index: usize| std::mem::take(&mut batches[index]).into_iter().map(|place| sequences[place]).collect();
    order.into_iter().map(&mut take).collect()
}

fn batch(examples: &[Example], members: &[usize], device: &Device) -> Batch {
    let sequences: Vec<_> = members
        .iter()
        .map(|&index| {
            let Example { example, input_ids, target_mask, segments, weights, .. } = &examples[index];
            Sequence { example: *example, input_ids, target_mask, segments, weights, preference: None }
        })
        .collect();
    Batch::new(&sequences, device)
}

/// What lies beside the weights and comes from the tokenizer.
#[derive(Default)]
struct Files {
    copies: Vec<(String, Vec<u8>)>,
    begin: Option<u32>,
    end: Option<u32>,
    pad: Option<u32>,
}

impl Files {
    fn read(config: &Config, path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let tokenizer = wherefrom_vocabulary::open(path)?;
        let needed = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        if needed > config.vocabulary {
            return Err(bad_input(format!(
                "vocabulary = {} is less than the {needed} token ids of {}; set it to {needed} or more",
                config.vocabulary,
                path.display()
            )));
        }
        let mut copies = Vec::new();
        for (name, path) in wherefrom_vocabulary::files(path)? {
            copies.push((name, std::fs::read(&path).with_context(|| format!("read {}", path.display()))?));
        }
        let special = |names| tokenizer::special(&tokenizer, names);
        let (begin, end, pad) = (special(tokenizer::BEGIN), special(tokenizer::END), special(tokenizer::PAD));
        Ok(Self { copies, begin, end, pad })
    }

    /// Writes the whole folder.
    fn write(&self, model: &Model, folder: &Path) -> Result<()> {
        let specials = json!({ "bos_token_id": self.begin, "eos_token_id": self.end, "pad_token_id": self.pad });
        let mut config = model.config.to_json();
        if let (Value::Object(config), Value::Object(specials)) = (&mut config, specials.clone()) {
            config.extend(specials);
        }
        let save = |name: &str, bytes: &[u8]| write_atomically(&folder.join(name), bytes);
        save("config.json", &serde_json::to_vec_pretty(&config)?)?;
        save("generation_config.json", &serde_json::to_vec_pretty(&specials)?)?;
        for (name, bytes) in &self.copies {
            std::fs::create_dir_all(folder.join(name).parent().unwrap_or(folder))?;
            save(name, bytes)?;
        }
        save("model.safetensors", &model.to_safetensors()?)
    }
}

fn cost(config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = planned.attributed(machine, Sizes::new) else { return Cost::new(0.0, 0.0, 0.0) };
    let (tokens, weights) = (planned.size_of("tokens").tokens, sizes.footprint.weights as f64);
    // Weights, gradients, two moments, and a checkpoint of weights and moments.
    let memory = sizes.footprint.total() as f64 + 6.0 * weights;
    Cost::new(memory, weights, 6.0 * config.epochs as f64 * sizes.forward * tokens)
}
