//! A loaded model: losses, taps, parameter gradients, logits.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use wherefrom_linalg::kernels::{cross_entropy, product, round, sample_rows, widen};
use wherefrom_linalg::random;

use crate::batch::{Batch, Target, TokenRows, batches};
use crate::config::Config;
use crate::decoder::{self, scatter_rows};
use crate::device::fits;
use crate::error::bad_input;
use crate::family::NormKind;
use crate::footprint;
use crate::layer::Norm;
use crate::module::{Module, Selection};
use crate::precision::Precision;
use crate::walk::{Event, Until};
use crate::weights::{self, Parameters};

/// Logits in memory at once: 48 MiB of f32. A third less cost a twentieth of the speed.
pub(crate) const HEAD_LOGITS: usize = 3 << 22;

/// Which labels the loss is taken against, as a knob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelsKind {
    /// One draw per token from the model's own next-token distribution (Grosse et al. 2023, section 2.3).
    #[default]
    Sampled,
    /// The text's own tokens.
    Empirical,
}

/// Which labels the loss is taken against.
#[derive(Debug, Clone)]
pub enum Labels {
    /// The text's own tokens.
    Empirical,
    /// Drawn from the model; the uniform number is a hash of (seed, example, position of the target).
    Sampled {
        /// The seed.
        seed: u64,
    },
    /// Given by example: entry t replaces token t as the target of position t - 1.
    Given(Arc<HashMap<u64, Vec<i64>>>),
}

impl Labels {
    /// The labels of a knob and its seed.
    pub fn new(kind: LabelsKind, seed: u64) -> Self {
        match kind {
            LabelsKind::Sampled => Self::Sampled { seed },
            LabelsKind::Empirical => Self::Empirical,
        }
    }
}

/// One module's activations and output gradients over a batch: a row for each token that it saw.
#[derive(Debug)]
pub struct Tap<'a> {
    /// Place of the module in the selection.
    pub index: usize,
    /// The module.
    pub module: &'a Module,
    /// Which tokens those are.
    pub tokens: &'a TokenRows,
    /// a [rows, in].
    pub activations: Tensor<2>,
    /// d [rows, out]: gradient of the summed loss at the module's output.
    pub output_gradients: Tensor<2>,
}

/// A language model on a device.
#[derive(Debug, Clone)]
pub struct Model {
    /// Its sizes.
    pub config: Config,
    /// Where it lies.
    pub device: Device,
    /// Its weights.
    pub parameters: Parameters,
    precision: Precision,
    modules: Vec<Module>,
}

impl Model {
    /// Loads a Hugging Face folder.
    ///
    /// # Errors
    /// [`crate::BadInput`] for a broken checkpoint, and for a parameter larger than the device takes in one piece.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let config = Config::load(folder)?;
        for shape in config.shapes() {
            fits(device, &format!("the parameter {}", shape.name), shape.sizes.iter().product())?;
        }
        let parameters = weights::load(folder, &config, device)?;
        Ok(Self { modules: config.modules(), config, device: device.clone(), parameters, precision: Precision::F32 })
    }

    /// The model with its weights rounded: forward and backward run in that precision from here on.
    ///
    /// # Errors
    /// [`crate::BadInput`] where the device does not compute in it.
    pub fn with_precision(mut self, precision: Precision) -> Result<Self> {
        precision.check(&self.device)?;
        let parameters = std::mem::take(&mut self.parameters).into_iter();
        self.parameters = parameters.map(|(name, weight)| (name, round(weight, precision.dtype()))).collect();
        self.precision = precision;
        Ok(self)
    }

    /// A model with random weights: normal with standard deviation 0.02, gains 1, biases 0.
    pub fn random(config: Config, seed: u64, device: &Device) -> Self {
        let gain = if config.layout().norm == NormKind::RmsAboveOne { 0.0 } else { 1.0 };
        let mut parameters = Parameters::new();
        for (stream, shape) in config.shapes().into_iter().enumerate() {
            let n: usize = shape.sizes.iter().product();
            let (values, sizes): (Vec<f32>, _) = match shape.sizes[..] {
                [width] => (vec![if shape.name.ends_with(".bias") { 0.0 } else { gain }; n], [1, width]),
                _ => (
                    (0..n).map(|i| (0.02 * random::normal(seed, stream as u64, i as u64)) as f32).collect(),
                    [shape.sizes[0], shape.sizes[1]],
                ),
            };
            parameters.insert(shape.name, Tensor::from_data(TensorData::new(values, sizes), device));
        }
        Self { modules: config.modules(), config, device: device.clone(), parameters, precision: Precision::F32 }
    }

    /// The checkpoint's `model.safetensors`.
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        weights::to_bytes(&self.config, &self.parameters)
    }

    /// Groups sequences of like length, as [`batches`] does, with fewer tokens a batch where the model is wide: its
    /// activations have to fit a gibibyte.
    pub fn batches(&self, lengths: &[usize], batch_tokens: usize) -> Vec<Vec<usize>> {
        batches(lengths, self.batch_tokens(batch_tokens, footprint::ACTIVATION_BYTES))
    }

    /// Tokens of a batch whose activations have to fit so many bytes.
    pub fn batch_tokens(&self, asked: usize, bytes: usize) -> usize {
        footprint::batch_tokens(&self.config, asked, bytes)
    }

    /// Every linear map of the blocks, in forward order.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// The vocabulary head, [vocabulary, hidden], and its name.
    fn head(&self) -> (String, &Tensor<2>) {
        let layout = self.config.layout();
        let name = if self.config.tie_word_embeddings { layout.embedding } else { layout.head[0] };
        let name = format!("{name}.weight");
        let weight = &self.parameters[&name];
        (name, weight)
    }

    fn final_norm(&self) -> Norm {
        Norm::new(&self.config, &self.parameters, self.config.layout().final_norm.into())
    }

    /// Logits of rows of the last residual stream.
    fn head_logits(&self, stream: Tensor<2>) -> Tensor<2> {
        product(self.final_norm().forward(stream), self.head().1.clone().transpose())
    }

    /// Forward and activation-only backward of L = sum over target tokens of cross-entropy, times the segment's weight.
    ///
    /// Calls `visit` for every selected module, last to first, with float32 tensors whatever the model's precision.
    /// Returns L of each sequence.
    ///
    /// # Errors
    /// Losses that are not finite, in reduced precision: it overflows.
    pub fn taps(
        &self,
        batch: &Batch,
        labels: &Labels,
        selection: &Selection,
        visit: &mut dyn FnMut(Tap<'_>) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let until = Until::Modules(selection);
        let forward = decoder::forward(&self.config, &self.parameters, batch, Some(until));
        let (by_target, d, _) = self.head_loss(&forward.output, batch, labels, false)?;
        decoder::backward(&self.config, &self.parameters, batch, forward, d, until, &mut |event| {
            let Event::Module(index, activations, d) = event else { return Ok(()) };
            let Some(place) = selection.place(index) else { return Ok(()) };
            let module = &self.modules[index];
            let output_gradients = self.unscaled(d);
            let (tokens, activations) = (&batch.tokens, widen(activations()));
            visit(Tap { index: place, module, tokens, activations, output_gradients })
        })?;
        let mut losses = vec![0.0; batch.len()];
        for (target, loss) in batch.targets.iter().zip(by_target) {
            losses[target.sequence] += target.weight * loss;
        }
        Ok(losses)
    }

    /// -log p(token t | tokens of its segment before) at every target t, 0 elsewhere, whatever the segment's weight; one
    /// list a sequence.
    pub fn token_losses(&self, batch: &Batch) -> Result<Vec<Vec<f32>>> {
        let forward = decoder::forward(&self.config, &self.parameters, batch, None);
        let (by_target, _, _) = self.head_loss(&forward.output, batch, &Labels::Empirical, false)?;
        let mut losses: Vec<_> = batch.tokens.sequences.iter().map(|rows| vec![0.0; rows.len()]).collect();
        for (target, loss) in batch.targets.iter().zip(by_target) {
            losses[target.sequence][target.position] = loss;
        }
        Ok(losses)
    }

    /// Logits of every token: [rows, vocabulary].
    pub fn logits(&self, batch: &Batch) -> Tensor<2> {
        let forward = decoder::forward(&self.config, &self.parameters, batch, None);
        self.head_logits(forward.output)
    }

    /// Logits after each sequence's last token: [batch, vocabulary].
    pub fn next_token_logits(&self, batch: &Batch) -> Tensor<2> {
        let forward = decoder::forward(&self.config, &self.parameters, batch, None);
        let rows = batch.tokens.sequences.iter().map(|rows| rows.end - 1).collect();
        self.head_logits(forward.output.select(0, self.indices(rows)))
    }

    /// Gradient of the summed loss with respect to every parameter, the loss, and the number of targets.
    pub fn parameter_gradients(&self, batch: &Batch) -> Result<(Parameters, f64, usize)> {
        let forward = decoder::forward(&self.config, &self.parameters, batch, Some(Until::Parameters));
        let (by_target, d, mut gradients) = self.head_loss(&forward.output, batch, &Labels::Empirical, true)?;
        decoder::backward(&self.config, &self.parameters, batch, forward, d, Until::Parameters, &mut |event| {
            match event {
                Event::Module(index, activations, d) => {
                    let module = &self.modules[index];
                    let gradient = product(d.clone().transpose(), activations());
                    if module.bias {
                        let width = module.in_features - 1;
                        let bias = gradient.clone().narrow(1, width, 1).transpose();
                        add(&mut gradients, module.bias(), bias);
                        add(&mut gradients, module.weight(), gradient.narrow(1, 0, width));
                    } else {
                        add(&mut gradients, module.weight(), gradient);
                    }
                }
                Event::Parameter(name, gradient) => add(&mut gradients, name, gradient.clone()),
            }
            Ok(())
        })?;
        let loss = batch.targets.iter().zip(by_target).map(|(target, loss)| f64::from(target.weight * loss)).sum();
        Ok((gradients, loss, batch.targets.len()))
    }

    fn indices(&self, rows: Vec<usize>) -> Tensor<1, Int> {
        let rows: Vec<_> = rows.into_iter().map(|row| row as i32).collect();
        let n = rows.len();
        Tensor::from_data(TensorData::new(rows, [n]), &self.device)
    }

    /// The vocabulary head at the positions that predict a target, in chunks: loss by target without its weight, and dL at
    /// the residual stream [rows, hidden]; with `parameters`, also the gradients of head and final norm.
    fn head_loss(
        &self,
        output: &Tensor<2>,
        batch: &Batch,
        labels: &Labels,
        parameters: bool,
    ) -> Result<(Vec<f32>, Tensor<2>, Parameters)> {
        let (name, head) = self.head();
        let norm = self.final_norm();
        let mut d_output = output.zeros_like();
        let mut losses = Vec::with_capacity(batch.targets.len());
        let mut gradients = Parameters::new();
        let chunk = (HEAD_LOGITS / self.config.vocab_size).max(1);
        for targets in batch.targets.chunks(chunk) {
            let rows = self.indices(targets.iter().map(|target| target.row).collect());
            let x = output.clone().select(0, rows.clone());
            let hidden = norm.forward(x.clone());
            let logits = product(hidden.clone(), head.clone().transpose());
            let labels = self.labels(&logits, batch, targets, labels)?;
            let (loss, mut d_logits) = cross_entropy(logits, &labels);
            self.finite(&loss)?;
            losses.extend(loss);
            if targets.iter().any(|target| target.weight != 1.0) {
                let weights: Vec<_> = targets.iter().map(|target| target.weight).collect();
                d_logits = d_logits * Tensor::from_data(TensorData::new(weights, [targets.len(), 1]), &self.device);
            }
            let d_logits = self.scaled(d_logits);
            let d_hidden = product(d_logits.clone(), head.clone());
            if parameters {
                add(&mut gradients, name.clone(), product(d_logits.transpose(), hidden));
                for (name, gradient) in norm.gradients(&d_hidden, &x) {
                    add(&mut gradients, name, gradient);
                }
            }
            let d_x = norm.backward(x.zeros_like(), d_hidden, x);
            d_output = scatter_rows(d_output, rows, d_x);
        }
        Ok((losses, d_output, gradients))
    }

    /// The loss's gradient as the backward pass takes it: scaled, then rounded.
    fn scaled(&self, d: Tensor<2>) -> Tensor<2> {
        match self.precision {
            Precision::F32 => d,
            reduced => round(d * reduced.loss_scale(), reduced.dtype()),
        }
    }

    /// An output gradient as a caller takes it.
    fn unscaled(&self, d: &Tensor<2>) -> Tensor<2> {
        match self.precision {
            Precision::F32 => d.clone(),
            reduced => widen(d.clone()) / reduced.loss_scale(),
        }
    }

    fn finite(&self, losses: &[f32]) -> Result<()> {
        if self.precision == Precision::F32 || losses.iter().all(|loss| loss.is_finite()) {
            return Ok(());
        }
        let name = self.precision.name();
        Err(bad_input(format!(
            "precision = \"{name}\": the model's loss is not a finite number, its activations overflow; use \"bf16\" or \
             \"f32\" (`wherefrom check` compares them)"
        )))
    }

    fn labels(&self, logits: &Tensor<2>, batch: &Batch, targets: &[Target], labels: &Labels) -> Result<Vec<u32>> {
        match labels {
            Labels::Empirical => Ok(targets.iter().map(|target| target.id).collect()),
            Labels::Sampled { seed } => {
                let uniform =
                    |target: &Target| random::uniform(*seed, batch.examples[target.sequence], target.position as u64);
                Ok(sample_rows(logits.clone(), &targets.iter().map(uniform).collect::<Vec<_>>()))
            }
            Labels::Given(given) => {
                let label = |target: &Target| {
                    let example = batch.examples[target.sequence];
                    let label = given.get(&example).and_then(|labels| labels.get(target.position));
                    let label = label.and_then(|label| u32::try_from(*label).ok());
                    label.with_context(|| {
                        format!("example {example} has no given label at position {}", target.position)
                    })
                };
                targets.iter().map(label).collect()
            }
        }
    }
}

fn add(gradients: &mut Parameters, name: String, gradient: Tensor<2>) {
    let sum = match gradients.remove(&name) {
        Some(sum) => sum + gradient,
        None => gradient,
    };
    gradients.insert(name, sum);
}
