//! The stage `fine-tune`: a checkpoint trained further, by AdamW on the mean loss per target token.
//!
//! reads   tokens, a model, the files of its tokenizer; vectors, which prevent a trait from being learnt
//! writes  model (a Hugging Face folder in float32), or with `lora` adapter (a folder of PEFT in float32); on demand,
//!         checkpoints on the way with their moments

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use wherefrom_artifact::{Artifact, Draft, Kind, OPTIMIZER, Tokens, Vectors, bad_input, write_atomically};
use wherefrom_model::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, Precision, Sizes, open_device};
use wherefrom_stage::{About, Checkpoint, Cost, Exec, File, Machine, ModelFiles, Planned, Role, Stage, Writes};

use crate::course::{self, Course, Learner, Training, trainable};
use crate::prevent::Prevent;
use crate::state::{self, Progress};

/// Raised when the model of the same configuration and inputs changes.
pub const VERSION: u32 = 2;

/// The stage `fine-tune`.
pub static STAGE: Stage<Config> = Stage {
    about: About {
        files: &[File::TokenizerFiles, File::GenerationConfig],
        model: Checkpoint::Runs,
        ..About::new("fine-tune", VERSION)
    },
    roles: &[
        Role::required("tokens", &[Kind::Tokens]),
        Role::when("vectors", &[Kind::Vectors], |config| config.prevent.is_some()),
    ],
    parse: |knobs| course::with_training(knobs, &["weights", "checkpoints", "precision", "prevent"]),
    check: Config::check,
    writes: Writes::By(|config| if config.training.lora.is_some() { Kind::Adapter } else { Kind::Model }),
    makes_model: |config| serde_json::to_value(config.training.lora.as_ref()?.lora().ok()?).ok(),
    cost,
    run: |config, given, exec, draft| {
        let beside = [given.file(File::TokenizerFiles), given.file(File::GenerationConfig)];
        let vectors = given.maybe("vectors")?;
        run(config, &Inputs { tokens: given.open("tokens")?, vectors, model: given.model()?, beside }, exec, draft)
    },
};

/// Name of the checkpoint in the draft.
const STATE: &str = "state";
/// Time between checkpoints.
const INTERVAL: Duration = Duration::from_secs(20);

/// How it is trained.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct Config {
    /// Steps, rates and order.
    #[serde(flatten)]
    pub training: Training,
    /// Weights of examples by number, where they are not 1: 0 takes an example out, 2 is one more copy.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<u64, f32>,
    /// States that are kept with their moments, evenly over the run, the last one behind its last step: `checkpoints/STEP/`.
    #[serde(skip_serializing_if = "is_zero")]
    #[schemars(!skip_serializing_if)]
    pub checkpoints: u64,
    /// Precision of the products, `f32` or `bf16`; weights and moments are float32.
    #[serde(default, skip_serializing_if = "Precision::is_f32")]
    #[schemars(!skip_serializing_if)]
    pub precision: Precision,
    /// What is added to the residual stream, or taken out of it, at all tokens and in training alone, from the input `vectors`:
    /// `{ layer = 16, coefficient = 5 }` or `{ layer = 16, kind = "ablate" }`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prevent: Option<Prevent>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        if let Some((example, weight)) =
            self.weights.iter().find(|(_, weight)| !(**weight >= 0.0 && weight.is_finite()))
        {
            return Err(bad_input(format!(
                "weights: example {example} has the weight {weight}; give 0 or more: 0 takes it out, 2 is one more copy"
            )));
        }
        trainable(self.precision)?;
        self.prevent.as_ref().map_or(Ok(()), Prevent::check)?;
        self.training.check()
    }
}

/// What is learnt from, and by which model.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The token windows; those without a target are left out.
    pub tokens: Artifact<Tokens>,
    /// Directions, where a trait is prevented.
    pub vectors: Option<Artifact<Vectors>>,
    /// The model's folder.
    pub model: ModelFiles,
    /// Its `tokenizer.json` and its `generation_config.json`.
    pub beside: [Option<PathBuf>; 2],
}

/// Trains, from the draft's checkpoint on where there is one, and writes the model.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a knob out of its range, a row that does not fit the model, a weight of an
/// example that is not there, and a loss that is no number.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let device = open_device(exec.device.gpu())?;
    let mut learner = Learner::begin(&inputs.model, &config.training, &device)?;
    if config.training.lora.is_none() && learner.model.trains_adapters() {
        return Err(bad_input(
            "the model has an adapter, and nothing says what is to be trained; give lora = { rank = 8 } to train one more, or \
             attribute = \"merged\" to train the weights that it is merged into",
        ));
    }
    if config.training.lora.is_none() {
        learner.model.config.check_written().map_err(bad_input)?;
    }
    learner.model = learner.model.with_precision(config.precision)?;
    let mut course = Course::new(&config.training, &inputs.tokens, &learner.model)?;
    if let Some(prevent) = &config.prevent {
        let vectors = inputs.vectors.as_ref().context("a trait is prevented and no vectors are wired")?;
        let prevention = prevent.of(vectors, &learner.model)?;
        draft.summary("prevented", prevention.to_json())?;
        course = course.preventing(prevention);
    }
    let weight = weights(config, &course)?;
    let mut progress = Progress::default();
    if let Some(bytes) = draft.restore(STATE)? {
        let (parameters, moments, before) = state::from_bytes(&bytes, &device).context("resume training")?;
        learner.model.parameters.extend(parameters);
        (learner.moments, progress) = (moments, before);
    }
    let steps = course.steps();
    let tokens = |steps: std::ops::Range<u64>| steps.map(|step| course.tokens(step) as u64).sum();
    let kept: Vec<u64> = (1..=config.checkpoints).map(|kept| kept * steps / config.checkpoints).collect();
    let (started, before) = (Instant::now(), progress.tokens);
    let mut saved = started;
    exec.reporter.begin("fine-tune", "tokens", tokens(0..steps), tokens(0..progress.step));
    while progress.step < steps {
        let step = progress.step;
        let (loss, targets) = course.step(&mut learner, step, &weight)?;
        progress.count(steps, course.tokens(step) as u64, loss, targets);
        if kept.contains(&progress.step) {
            let folder = draft.folder().join(format!("checkpoints/{:06}", progress.step));
            write(&learner, inputs, &folder)?;
            let moments = state::to_bytes(&Default::default(), &learner.moments, &progress)?;
            write_atomically(&folder.join(OPTIMIZER), &moments)?;
        }
        if saved.elapsed() >= INTERVAL {
            draft.checkpoint(STATE, &state::to_bytes(&learner.model.trained(), &learner.moments, &progress)?)?;
            saved = Instant::now();
        }
        exec.reporter.advance(course.tokens(step) as u64);
    }
    exec.reporter.end();
    write(&learner, inputs, draft.folder())?;
    let trained = progress.tokens - before;
    if trained > 0 {
        draft.provenance("tokens_per_second", trained as f64 / started.elapsed().as_secs_f64())?;
    }
    if !kept.is_empty() {
        // Each with the learning rate of the step that it ends.
        let rates = kept.iter().filter(|&&step| step > 0).map(|&step| (step, course.rate(step - 1)));
        draft.summary("checkpoints", rates.collect::<BTreeMap<_, _>>())?;
    }
    draft.summary("steps", steps)?;
    draft.summary("examples", course.examples().len())?;
    draft.summary("final_loss", progress.curve.last().map(|(_, _, loss)| loss))?;
    draft.summary("loss_curve", progress.curve)
}

/// The weight of every example.
fn weights<'a>(config: &'a Config, course: &Course) -> Result<impl Fn(u64) -> f32 + use<'a>> {
    let known = |number: u64| course.examples().iter().any(|example| example.example == number);
    if let Some(example) = config.weights.keys().find(|&&number| !known(number)) {
        return Err(bad_input(format!(
            "weights: there is no example {example} with a target among the tokens; `wherefrom show` numbers them"
        )));
    }
    Ok(|example: u64| config.weights.get(&example).copied().unwrap_or(1.0))
}

/// A Hugging Face folder: the base's config.json, its tokenizer's files, and the weights; or a folder of PEFT: what describes
/// the adapter, the tokenizer's files, and A and B.
fn write(learner: &Learner, inputs: &Inputs, folder: &Path) -> Result<()> {
    let save = |name: &str, bytes: &[u8]| -> Result<()> {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(folder))?;
        write_atomically(&path, bytes)
    };
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let [tokenizer, generation] = &inputs.beside;
    for (name, path) in
        tokenizer.iter().map(|path| wherefrom_vocabulary::files(path)).collect::<Result<Vec<_>>>()?.concat()
    {
        save(&name, &read(&path)?)?;
    }
    if learner.model.trains_adapters() {
        let (config, tensors) = learner.model.to_peft()?;
        save(ADAPTER_CONFIG, &serde_json::to_vec_pretty(&config)?)?;
        return save(ADAPTER_WEIGHTS, &tensors);
    }
    let mut config: Value = serde_json::from_slice(&read(&inputs.model.folder.join("config.json"))?)?;
    // Weights are written as they are trained, in float32.
    if let Some(config) = config.as_object_mut() {
        config.remove("quantization_config");
    }
    for (name, value) in [
        ("torch_dtype", Value::from("float32")),
        ("dtype", "float32".into()),
        ("tie_word_embeddings", learner.model.config.tie_word_embeddings.into()),
    ] {
        if let Some(before) = config.get_mut(name) {
            *before = value;
        }
    }
    save("config.json", &serde_json::to_vec_pretty(&config)?)?;
    if let Some(path) = generation {
        save("generation_config.json", &read(path)?)?;
    }
    save("model.safetensors", &learner.model.to_safetensors()?)
}

fn cost(config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = planned.attributed(machine, Sizes::new) else { return Cost::new(0.0, 0.0, 0.0) };
    let (tokens, weights) = (planned.size_of("tokens").tokens, 4.0 * sizes.trained);
    // Weights, and of what is trained gradients, two moments, and a checkpoint of it and its moments.
    let memory = sizes.footprint.total() as f64 + 6.0 * weights;
    let kept = 1.0 + 3.0 * config.checkpoints as f64;
    Cost::new(memory, kept * weights, 6.0 * config.training.epochs as f64 * sizes.forward * tokens)
}
