//! A training run that can be told again with other weights on its examples: which rows each step reads never changes.
//!
//! ```text
//! loss of a step  =  sum over its rows n of w_n L_n  /  targets of its rows
//! ```
//!
//! L_n is the summed cross-entropy of row n, and w_n = 1 unless somebody asks what would have been: 0 takes the row out,
//! 2 is one more copy. Neither batches nor steps nor the denominator know of the weights.

use anyhow::Result;
use burn::tensor::Device;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use wherefrom_artifact::{Artifact, Example, Tokens, bad_input};
use wherefrom_linalg::random::uniform;
use wherefrom_model::{Attribute, Batch, Checkpoint, Model, Parameters, Precision, Sequence};
use wherefrom_stage::ModelFiles;

use crate::adam::{AdamW, Moments};
use crate::checkpoint::{Adapter, checkpoint};
use crate::prevent::Prevention;

/// Tokens whose activations are held at once, in a narrow model; a step may have more.
const PIECE_TOKENS: usize = 4096;
/// Bytes of those activations at most.
const PIECE_BYTES: usize = 1 << 30;

/// How a checkpoint is trained further.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Training {
    /// Passes over the rows, all in one order.
    pub epochs: usize,
    /// Rows of a step.
    pub batch_rows: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Share of the steps in which the learning rate rises.
    pub warmup_share: f64,
    /// Learning rate of the last step over the peak; 1 keeps it constant.
    pub minimum_learning_rate_share: f64,
    /// AdamW's b1 and b2.
    pub betas: [f64; 2],
    /// Added to AdamW's root.
    pub eps: f64,
    /// Added under AdamW's root: what makes the run differentiable where a gradient vanishes.
    pub eps_root: f64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Longest gradient of the mean loss; without it nothing is clipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
    /// Seed of the order of the rows, and of a new adapter.
    pub seed: u64,
    /// A LoRA adapter that is trained in place of the model's own weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<Adapter>,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            epochs: 1,
            batch_rows: 16,
            learning_rate: 1e-4,
            warmup_share: 0.1,
            minimum_learning_rate_share: 0.1,
            betas: [0.9, 0.95],
            eps: 1e-8,
            eps_root: 0.0,
            weight_decay: 0.01,
            clip: None,
            seed: 0,
            lora: None,
        }
    }
}

impl Training {
    pub(crate) fn optimizer(&self) -> AdamW {
        AdamW {
            learning_rate: self.learning_rate,
            warmup_share: self.warmup_share,
            minimum_share: self.minimum_learning_rate_share,
            betas: self.betas,
            epsilon: self.eps,
            epsilon_root: self.eps_root,
            weight_decay: self.weight_decay,
            clip: self.clip,
        }
    }

    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        let counts = [("epochs", self.epochs), ("batch-rows", self.batch_rows)];
        if let Some((name, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(bad_input(format!("{name} = 0 is out of range; set it to 1 or more")));
        }
        self.lora.as_ref().map(Adapter::lora).transpose()?;
        self.optimizer().check()
    }
}

/// Refuses a precision that weights are not trained in.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`].
pub(crate) fn trainable(precision: Precision) -> Result<()> {
    match precision {
        Precision::F32 | Precision::Bf16 => Ok(()),
        Precision::F16 => Err(bad_input(
            "precision = \"f16\" is not for training: small gradients vanish in it; use \"bf16\" or \"f32\"",
        )),
    }
}

/// A configuration that has the knobs of [`Training`] beside its own, `names`: serde's `flatten` alone would take any name.
///
/// # Errors
/// As serde, for the knob at fault.
pub fn with_training<C: DeserializeOwned>(knobs: Value, names: &[&str]) -> serde_json::Result<C> {
    let mut rest = knobs.clone();
    if let Some(rest) = rest.as_object_mut() {
        names.iter().for_each(|name| drop(rest.remove(*name)));
    }
    serde_json::from_value::<Training>(rest)?;
    serde_json::from_value(knobs)
}

/// Rows and steps of a run.
#[derive(Debug, Clone)]
pub struct Course {
    examples: Vec<Example>,
    /// Targets of each row.
    targets: Vec<usize>,
    /// Rows of each step of an epoch.
    batches: Vec<Vec<usize>>,
    epochs: usize,
    pub(crate) adam: AdamW,
    piece_tokens: usize,
    prevention: Option<Prevention>,
}

/// The rows that have a target, without their texts; `fits` refuses what the model cannot read.
pub(crate) fn learnable(tokens: &Artifact<Tokens>, fits: impl Fn(&Example) -> Result<()>) -> Result<Vec<Example>> {
    let mut examples = Vec::new();
    for example in tokens.rows::<Example>()? {
        let mut example = example?;
        if !example.preference.is_empty() {
            return Err(bad_input(format!(
                "row {} of the tokens is a pair of a preference under the DPO loss, by which nothing is trained here; train on rows \
                 of text",
                example.example
            )));
        }
        if let Some(weight) = example.weights.iter().find(|&&weight| weight < 0.0) {
            return Err(bad_input(format!(
                "row {} of the tokens has a segment of weight {weight}: it is a query, and what it says against a text cannot \
                 be learnt; train on rows of text",
                example.example
            )));
        }
        fits(&example)?;
        example.text = String::new();
        if example.target_mask.iter().skip(1).any(|&target| target) {
            examples.push(example);
        }
    }
    if examples.is_empty() {
        return Err(bad_input("the tokens have no targets, so there is nothing to learn; give rows of text"));
    }
    Ok(examples)
}

/// A model on its way.
#[derive(Debug, Clone)]
pub struct Learner {
    /// The model as it is.
    pub model: Model,
    pub(crate) moments: Moments,
}

impl Learner {
    /// Before the first step.
    pub fn new(model: Model) -> Self {
        Self { moments: Moments::zeros(&model.trained()), model }
    }

    /// The model of a step as training begins with it: with a new adapter where there is to be one, on weights that adapters
    /// which are there already are merged into.
    ///
    /// # Errors
    /// As [`Model::load`] and [`Model::with_adapter`]; and for adapters in effect beside a base that is to be trained.
    pub fn begin(files: &ModelFiles, training: &Training, device: &Device) -> Result<Self> {
        let checkpoint = checkpoint(files)?;
        if let Some(adapter) = &training.lora {
            let merged = Checkpoint { attribute: Attribute::Merged, ..checkpoint };
            return Ok(Self::new(Model::load(merged, device)?.with_adapter(adapter.lora()?, training.seed)?));
        }
        if !files.adapters.is_empty() && checkpoint.attribute == Attribute::Base {
            return Err(bad_input(
                "attribute = \"base\" would train the base beneath an adapter, and no folder holds both; give \"merged\" to train \
                 the merged weights, or lora = { rank = 8 } to train one more adapter",
            ));
        }
        Ok(Self::new(Model::load(checkpoint, device)?))
    }
}

impl Course {
    /// Every row of the tokens that has a target, in the order of `training.seed`.
    ///
    /// # Errors
    /// Rows that cannot be learnt from: of contrasts, or longer than the model's context.
    pub fn new(training: &Training, tokens: &Artifact<Tokens>, model: &Model) -> Result<Self> {
        training.check()?;
        let most = model.config.max_position_embeddings;
        let examples = learnable(tokens, |example| {
            let (row, length) = (example.example, example.longest_segment());
            if length > most {
                return Err(bad_input(format!(
                    "row {row} of the tokens has {length} tokens, the model has {most} positions; set max-tokens of the \
                     tokenize step to that or less"
                )));
            }
            Ok(())
        })?;
        let mut order: Vec<_> = (0..examples.len()).collect();
        let place = |index: &usize| uniform(training.seed, 0, *index as u64);
        order.sort_by(|left, right| place(left).total_cmp(&place(right)).then(left.cmp(right)));
        let batches = order.chunks(training.batch_rows).map(<[usize]>::to_vec).collect();
        Ok(Self::of(examples, batches, training))
    }

    /// Given rows in given batches, begun again when they end.
    pub fn of(examples: Vec<Example>, batches: Vec<Vec<usize>>, training: &Training) -> Self {
        let count = |example: &Example| example.target_mask.iter().filter(|&&target| target).count();
        let targets = examples.iter().map(count).collect();
        let (epochs, adam) = (training.epochs, training.optimizer());
        Self { examples, targets, batches, epochs, adam, piece_tokens: PIECE_TOKENS, prevention: None }
    }

    /// The same run, whose batches go through the model in pieces of at most so many tokens, or of one row.
    pub fn in_pieces(self, piece_tokens: usize) -> Self {
        Self { piece_tokens, ..self }
    }

    /// The same run, with a vector added to the residual stream or its direction taken out.
    pub(crate) fn preventing(self, prevention: Prevention) -> Self {
        Self { prevention: Some(prevention), ..self }
    }

    /// Steps of the whole run.
    pub fn steps(&self) -> u64 {
        (self.batches.len() * self.epochs) as u64
    }

    /// The learning rate of a step.
    pub fn rate(&self, step: u64) -> f64 {
        self.adam.rate(step, self.steps())
    }

    /// The rows that are learnt from.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// Tokens of a step.
    pub fn tokens(&self, step: u64) -> usize {
        self.batch(step).iter().map(|&row| self.examples[row].input_ids.len()).sum()
    }

    fn batch(&self, step: u64) -> &[usize] {
        &self.batches[(step % self.batches.len() as u64) as usize]
    }

    /// What the loss of a step is divided by.
    pub(crate) fn targets(&self, step: u64) -> usize {
        self.batch(step).iter().map(|&row| self.targets[row]).sum()
    }

    /// Numbers of the examples of a step.
    pub(crate) fn numbers(&self, step: u64) -> impl Iterator<Item = u64> {
        self.batch(step).iter().map(|&row| self.examples[row].example)
    }

    /// Takes a step, each example with the weight that `weight` gives its number. The summed loss, weighted, before it; and
    /// the targets that it is divided by.
    ///
    /// # Errors
    /// A loss that is no number.
    pub fn step(&self, learner: &mut Learner, step: u64, weight: &dyn Fn(u64) -> f32) -> Result<(f64, usize)> {
        let (gradients, losses) = self.gradients(&learner.model, step, weight)?;
        self.take(learner, step, gradients);
        Ok((losses.iter().sum(), self.targets(step)))
    }

    /// Takes a step, given the gradient of its summed loss.
    pub(crate) fn take(&self, learner: &mut Learner, step: u64, gradients: Parameters) {
        let (parameters, targets) = (&mut learner.model.parameters, self.targets(step));
        learner.moments.step(&self.adam, step, self.steps(), parameters, gradients, targets);
    }

    /// The gradient of the weighted sum, piece by piece, and the loss of each row that has a weight: the others are not run.
    ///
    /// # Errors
    /// A loss that is no number.
    pub(crate) fn gradients(
        &self,
        model: &Model,
        step: u64,
        weight: &dyn Fn(u64) -> f32,
    ) -> Result<(Parameters, Vec<f64>)> {
        let most = model.batch_tokens(self.piece_tokens, PIECE_BYTES);
        let mut rows = self.batch(step).iter().map(|&row| (&self.examples[row], weight(self.examples[row].example)));
        let (mut sum, mut losses): (Option<Parameters>, Vec<f64>) = (None, Vec::new());
        let mut piece: Vec<(&Example, Vec<f32>)> = Vec::new();
        let mut tokens = 0;
        loop {
            let next = rows.by_ref().find(|(_, weight)| *weight != 0.0);
            let length = next.map_or(usize::MAX, |(example, _)| example.input_ids.len());
            if !piece.is_empty() && tokens + length.min(most + 1) > most {
                let sequences: Vec<_> = piece.iter().map(|(example, weights)| sequence(example, weights)).collect();
                let mut batch = Batch::new(&sequences, &model.device);
                if let Some(prevention) = &self.prevention {
                    batch = prevention.on(batch)?;
                }
                let (gradients, of_piece, _) = model.parameter_gradients(&batch)?;
                losses.extend(of_piece);
                sum = Some(match sum {
                    Some(sum) => added(sum, gradients),
                    None => gradients,
                });
                piece.clear();
                tokens = 0;
            }
            let Some((example, weight)) = next else { break };
            piece.push((example, example.parts().map(|(_, own)| own * weight).collect()));
            tokens += length;
        }
        let loss: f64 = losses.iter().sum();
        if !loss.is_finite() {
            return Err(bad_input(format!(
                "the loss is {loss} after {step} of {} steps; lower learning-rate = {}",
                self.steps(),
                self.adam.learning_rate
            )));
        }
        let zeros = || model.trained().into_iter().map(|(name, tensor)| (name, tensor.zeros_like())).collect();
        Ok((sum.unwrap_or_else(zeros), losses))
    }
}

fn sequence<'a>(example: &'a Example, weights: &'a [f32]) -> Sequence<'a> {
    let Example { example, input_ids, target_mask, segments, .. } = example;
    Sequence { example: *example, input_ids, target_mask, segments, weights, preference: None }
}

fn added(mut sum: Parameters, gradients: Parameters) -> Parameters {
    for (name, gradient) in gradients {
        let gradient = match sum.remove(&name) {
            Some(before) => before + gradient,
            None => gradient,
        };
        sum.insert(name, gradient);
    }
    sum
}
