//! A loaded model: losses, taps, parameter gradients, logits.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};
use serde_json::Value;
use wherefrom_linalg::kernels::{product, round, widen};
use wherefrom_linalg::random;

use crate::adapter::{Adapters, Attribute, Lora, ends_in};
use crate::batch::{Batch, batches};
use crate::checkpoint::{self, Checkpoint};
use crate::config::Config;
use crate::decoder::Decoder;
use crate::error::bad_input;
use crate::family::NormKind;
use crate::footprint::{self, Footprint, Held};
use crate::head::{HEAD_LOGITS, Labels};
use crate::measurement::{Measured, Measurement};
use crate::module::{Module, Selection};
use crate::outline::{Outline, Shape};
use crate::outside::{Outside, Predicted};
use crate::precision::Precision;
use crate::site::Site;
use crate::stored::Stored;
use crate::taps::{Event, Goal, Pass, Tap};
use crate::weights::{self, Parameters, Weights};

/// A language model on a device.
#[derive(Debug, Clone)]
pub struct Model {
    /// Its sizes.
    pub config: Config,
    /// Its tensors and maps.
    pub outline: Outline,
    /// Where it lies.
    pub device: Device,
    /// Its weights; of a model that was opened and is not held, gains and biases.
    pub parameters: Parameters,
    /// Where the other weights lie.
    stored: Option<Arc<Stored>>,
    pub(crate) precision: Precision,
}

impl Model {
    /// Loads a Hugging Face folder, with all weights in memory in float32, as training changes them.
    ///
    /// # Errors
    /// [`crate::BadInput`] for a broken checkpoint, and for a parameter larger than the device takes in one piece.
    pub fn load(checkpoint: impl Into<Checkpoint>, device: &Device) -> Result<Self> {
        Self::open(checkpoint, device)?.held_as(|_| FloatDType::F32)
    }

    /// Opens a Hugging Face folder, or one with adapters. Matrices stay in their files: a pass reads and widens each where it needs it, forward and
    /// again backward, and drops it. What comes out is the same bit for bit as of [`Model::load`].
    ///
    /// # Errors
    /// As [`Model::load`], but for a matrix that holds what is no number: that is refused when a pass reads it, as is a file
    /// that was written since.
    pub fn open(checkpoint: impl Into<Checkpoint>, device: &Device) -> Result<Self> {
        let (config, outline, parameters, stored) = weights::open(&checkpoint.into(), device)?;
        let (device, stored) = (device.clone(), Some(Arc::new(stored)));
        Ok(Self { config, outline, device, parameters, stored, precision: Precision::F32 })
    }

    /// The model with all weights in memory, each matrix in the format of its file if that has 16 bits, and of the precision if
    /// that has: what is narrower than a product takes it is widened for the product. A GPU holds the type that it multiplies.
    ///
    /// # Errors
    /// [`crate::BadInput`] for a weight that is no number, and for a file that was written since it was opened.
    pub fn held(self) -> Result<Self> {
        let types = self.held_types();
        self.held_as(|name| types[name])
    }

    fn held_as(mut self, dtype: impl Fn(&str) -> FloatDType) -> Result<Self> {
        let Some(stored) = self.stored.take() else { return Ok(self) };
        for shape in self.outline.tensors() {
            if !self.parameters.contains_key(&shape.name) {
                let weight = stored.read_as(&shape.name, dtype(&shape.name))?;
                self.parameters.insert(shape.name.clone(), weight);
            }
        }
        Ok(self)
    }

    /// In what each weight is held, or would be.
    fn held_types(&self) -> HashMap<String, FloatDType> {
        let (products, cpu) = (self.precision.matrices(), self.device == Device::flex());
        let of = |name: &String| match (self.parameters.get(name), &self.stored) {
            (Some(weight), _) => float_type(weight),
            (None, Some(stored)) if products == FloatDType::F32 && cpu => stored.dtype(name),
            _ => products,
        };
        self.outline.tensors().iter().map(|shape| (shape.name.clone(), of(&shape.name))).collect()
    }

    /// The model with all weights in memory where they, batches of `batch_tokens` and `beside` further bytes fit the limit.
    ///
    /// # Errors
    /// As [`Model::held`].
    pub fn fitting(self, batch_tokens: usize, limit: Option<u64>, beside: u64) -> Result<Self> {
        let fits = self.footprint(batch_tokens).fitting(limit, beside).holds_weights;
        if fits { self.held() } else { Ok(self) }
    }

    /// Bytes that it takes with batches of `batch_tokens`, with its weights where they are.
    pub fn footprint(&self, batch_tokens: usize) -> Footprint {
        let (types, widest) = (self.held_types(), self.precision.matrices());
        let held = |shape: &Shape| Held {
            bytes: bytes_of(types[&shape.name]),
            widened: widest == FloatDType::F32 && types[&shape.name] != widest,
        };
        let footprint = Footprint::new(&self.outline, batch_tokens).holding(&self.outline, held);
        Footprint { holds_weights: self.stored.is_none(), ..footprint }
    }

    /// Forward and backward run in that precision from here on. Of float16 the weights are rounded; of bfloat16 those that are
    /// held stay what they are, and are rounded for each product.
    ///
    /// # Errors
    /// [`crate::BadInput`] where the device does not compute in it.
    pub fn with_precision(mut self, precision: Precision) -> Result<Self> {
        precision.check(&self.device)?;
        if precision == Precision::F16 {
            let parameters = std::mem::take(&mut self.parameters).into_iter();
            self.parameters = parameters.map(|(name, weight)| (name, round(weight, precision.matrices()))).collect();
        }
        self.precision = precision;
        Ok(self)
    }

    /// A model with random weights: normal with standard deviation 0.02, gains 1, biases 0.
    pub fn random(config: Config, seed: u64, device: &Device) -> Self {
        let gain = if config.layout().norm == NormKind::RmsAboveOne { 0.0 } else { 1.0 };
        let outline = Outline::new(&config);
        let mut parameters = Parameters::new();
        for (stream, shape) in outline.tensors().iter().enumerate() {
            let n: usize = shape.sizes.iter().product();
            let (values, sizes): (Vec<f32>, _) = match shape.sizes[..] {
                [width] => (vec![if shape.name.ends_with(".bias") { 0.0 } else { gain }; n], [1, width]),
                _ => (
                    (0..n).map(|i| (0.02 * random::normal(seed, stream as u64, i as u64)) as f32).collect(),
                    [shape.sizes[0], shape.sizes[1]],
                ),
            };
            parameters.insert(shape.name.clone(), Tensor::from_data(TensorData::new(values, sizes), device));
        }
        Self { config, outline, device: device.clone(), parameters, stored: None, precision: Precision::F32 }
    }

    /// The model, which is in memory and has no adapters beside its maps, with a new one: A uniform within 1 / sqrt(in), as
    /// PEFT's `kaiming_uniform_` makes it, and B zero, so that it computes what it did. From here on training changes A and B
    /// alone.
    ///
    /// # Errors
    /// [`crate::BadInput`] for a target that is no map of the blocks.
    pub fn with_adapter(mut self, lora: Lora, seed: u64) -> Result<Self> {
        ensure!(self.stored.is_none(), "an adapter is put on a model in memory");
        let names: Vec<_> = Outline::new(&Config { adapters: Adapters::default(), ..self.config.clone() })
            .modules()
            .iter()
            .filter(|module| module.part.is_map())
            .map(|module| module.name.clone())
            .collect();
        let reached = |target: &&String| names.iter().any(|name| ends_in(name, target));
        if let Some(target) = lora.target_names().iter().find(|target| !reached(target)) {
            let first: BTreeSet<_> = names.iter().filter_map(|name| name.rsplit('.').next()).collect();
            let first: Vec<_> = first.into_iter().collect();
            return Err(bad_input(format!(
                "lora: the target `{target}` is no map of the blocks, which end in {}; targets are what their names end in",
                first.join(", ")
            )));
        }
        self.config.adapters = Adapters { list: vec![lora], attribute: Attribute::Adapter };
        self.outline = Outline::new(&self.config);
        for (stream, half) in self.outline.halves().enumerate() {
            let [rows, columns] = [half.sizes[0], half.sizes[1]];
            let bound = (columns as f64).sqrt().recip();
            let begins = |place: usize| match stream % 2 {
                0 => ((2.0 * random::uniform(seed, stream as u64, place as u64) - 1.0) * bound) as f32,
                _ => 0.0,
            };
            let values: Vec<f32> = (0..rows * columns).map(begins).collect();
            self.parameters
                .insert(half.name.clone(), Tensor::from_data(TensorData::new(values, [rows, columns]), &self.device));
        }
        Ok(self)
    }

    /// What training changes: every parameter, or A and B of the adapters.
    pub fn trained(&self) -> Parameters {
        let own = |name: &&String| !self.trains_adapters() || self.outline.halves().any(|half| half.name == **name);
        self.parameters
            .iter()
            .filter(|(name, _)| own(name))
            .map(|(name, tensor)| (name.clone(), tensor.clone()))
            .collect()
    }

    /// The one adapter that is trained, as PEFT keeps it: `adapter_config.json`, and the bytes of `adapter_model.safetensors`.
    ///
    /// # Errors
    /// A model that trains no adapter, or several.
    pub fn to_peft(&self) -> Result<(Value, Vec<u8>)> {
        let [lora] = &self.config.adapters.list[..] else { bail!("one adapter is written, not several") };
        ensure!(self.trains_adapters(), "a model without adapters is no folder of PEFT");
        let paths: Vec<_> = self.outline.adapted.iter().map(|adapted| adapted.path.clone()).collect();
        Ok((
            lora.to_peft(&paths, self.config.layout().transposed),
            checkpoint::to_bytes(&self.outline, &self.parameters)?,
        ))
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
        footprint::batch_tokens(&self.outline, asked, bytes)
    }

    /// Everything that can be attributed, in forward order, as [`Outline::modules`] has it.
    pub fn modules(&self) -> &[Module] {
        self.outline.modules()
    }

    pub(crate) fn decoder(&self) -> Decoder<'_> {
        Decoder { config: &self.config, outline: &self.outline, weights: self.weights() }
    }

    pub(crate) fn weights(&self) -> Weights<'_> {
        Weights { parameters: &self.parameters, stored: self.stored.as_deref(), precision: self.precision, once: false }
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
        self.measurement_taps(batch, &Measurement::LogProbability, labels, selection, visit)
    }

    /// The same of -f, for a measurement f. A module that f does not depend on is not visited.
    ///
    /// # Errors
    /// As [`Model::taps`].
    pub fn measurement_taps(
        &self,
        batch: &Batch,
        measurement: &Measurement,
        labels: &Labels,
        selection: &Selection,
        visit: &mut dyn FnMut(Tap<'_>) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let goal = Goal::Taps(selection);
        let last = measurement.stream(&self.outline)?;
        let forward = self.decoder().forward_to(last, batch, Some(goal), &mut |_, _| {})?;
        let Measured { values, d, pairs } = self.measured(measurement, &forward.output, batch, labels)?;
        let outside = Outside { model: self, batch, selection, numbers: HEAD_LOGITS };
        let stream = forward.output.clone();
        let by_head = Predicted { stream: &stream, labels, pairs: pairs.as_ref() };
        let predicted = Some(&by_head).filter(|_| *measurement == Measurement::LogProbability);
        if let Some(predicted) = predicted {
            outside.head(predicted, visit)?;
        }
        let visit = &mut |event: Event<'_>| {
            let (number, tokens, activations, d) = match event {
                Event::Map(number, tokens, activations, d) => (number, tokens, activations, d),
                Event::Embeddings(d) => return outside.tables(d, predicted, visit),
                Event::Parameter(..) => return Ok(()),
            };
            let Some(index) = selection.place(number) else { return Ok(()) };
            visit(Tap {
                index,
                module: &self.modules()[number],
                tokens,
                activations: widen(activations),
                output_gradients: self.unscaled(d),
                precision: self.precision,
            })
        };
        self.decoder().backward(
            batch,
            forward,
            d,
            &mut Pass { weights: self.weights(), goal, tokens: &batch.tokens, visit },
        )?;
        Ok(values)
    }

    /// -f of each sequence, without a backward pass.
    ///
    /// # Errors
    /// As [`Model::taps`].
    pub fn measure(&self, batch: &Batch, measurement: &Measurement) -> Result<Vec<f32>> {
        let last = measurement.stream(&self.outline)?;
        let forward = self.decoder().forward_to(last, batch, None, &mut |_, _| {})?;
        Ok(self.measured(measurement, &forward.output, batch, &Labels::Empirical)?.values)
    }

    /// The residual stream of every token at the given sites, in forward order: [rows, hidden], in float32. Nothing is run
    /// beyond the last of them.
    ///
    /// # Errors
    /// Those of `visit`, and a site that the model does not have.
    pub fn residual_streams(
        &self,
        batch: &Batch,
        sites: &[Site],
        visit: &mut dyn FnMut(Site, Tensor<2>) -> Result<()>,
    ) -> Result<()> {
        let blocks = self.outline.blocks.len();
        let streams = sites.iter().map(|site| site.stream(blocks)).collect::<Result<Vec<_>>>()?;
        let Some(&last) = streams.iter().max() else { return Ok(()) };
        let mut outcome = Ok(());
        let mut see = |stream: usize, x: &Tensor<2>| {
            if outcome.is_ok() && sites.contains(&Site::Stream(stream)) {
                outcome = visit(Site::Stream(stream), widen(x.clone()));
            }
        };
        let output = self.decoder().forward_to(last, batch, None, &mut see)?.output;
        outcome?;
        if sites.contains(&Site::PostNorm) {
            visit(Site::PostNorm, widen(self.outline.final_norm.forward(self.weights(), output)))?;
        }
        Ok(())
    }

    /// -log p(token t | tokens of its segment before) at every target t, 0 elsewhere, whatever the segment's weight; one
    /// list a sequence.
    pub fn token_losses(&self, batch: &Batch) -> Result<Vec<Vec<f32>>> {
        let forward = self.decoder().forward(batch, None)?;
        let by_target = self.head_loss(&forward.output, batch, &Labels::Empirical, false)?.by_target;
        let mut losses: Vec<_> = batch.tokens.sequences.iter().map(|rows| vec![0.0; rows.len()]).collect();
        for (target, loss) in batch.targets.iter().zip(by_target) {
            losses[target.sequence][target.position] = loss;
        }
        Ok(losses)
    }

    /// Logits of every token: [rows, vocabulary].
    pub fn logits(&self, batch: &Batch) -> Result<Tensor<2>> {
        let forward = self.decoder().forward(batch, None)?;
        self.head_logits(forward.output, false)
    }

    /// Logits after each sequence's last token: [batch, vocabulary].
    pub fn next_token_logits(&self, batch: &Batch) -> Result<Tensor<2>> {
        let forward = self.decoder().forward(batch, None)?;
        let rows = batch.tokens.sequences.iter().map(|rows| rows.end - 1).collect();
        self.head_logits(forward.output.select(0, self.indices(rows)), false)
    }

    /// Whether training changes adapters and nothing else: where they are what is attributed.
    pub fn trains_adapters(&self) -> bool {
        self.config.adapters.are_modules()
    }

    /// Gradient of the summed loss with respect to every parameter that training changes, the loss of each sequence, and the number of targets.
    pub fn parameter_gradients(&self, batch: &Batch) -> Result<(Parameters, Vec<f64>, usize)> {
        // Where adapters are trained, all that is of the base stays.
        let adapters = self.trains_adapters().then(|| Selection::all(self.modules()));
        let goal = adapters.as_ref().map_or(Goal::Parameters, Goal::Taps);
        let forward = self.decoder().forward(batch, Some(goal))?;
        let loss = self.head_loss(&forward.output, batch, &Labels::Empirical, true)?;
        let mut losses = vec![0.0; batch.len()];
        for (target, loss) in batch.targets.iter().zip(&loss.by_target) {
            losses[target.sequence] += f64::from(target.weight * loss);
        }
        losses.iter_mut().enumerate().for_each(|(sequence, sum)| *sum = loss.of(batch, sequence, *sum));
        let mut gradients = loss.gradients;
        let visit = &mut |event: Event<'_>| {
            match event {
                Event::Map(number, _, activations, d) => {
                    let module = &self.modules()[number];
                    let gradient = product(self.precision.operand(d.clone()).transpose(), activations);
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
                // They are reported as parameters.
                Event::Embeddings(_) => {}
            }
            Ok(())
        };
        self.decoder().backward(
            batch,
            forward,
            loss.d,
            &mut Pass { weights: self.weights(), goal, tokens: &batch.tokens, visit },
        )?;
        // Experts that saw no token.
        for module in self.modules().iter().filter(|module| module.routed.is_some()) {
            let (out, width) = (module.out_features, module.in_features - usize::from(module.bias));
            let zeros = |size: [usize; 2]| Tensor::zeros(size, &self.device);
            gradients.entry(module.weight()).or_insert_with(|| zeros([out, width]));
            if module.bias {
                gradients.entry(module.bias()).or_insert_with(|| zeros([1, out]));
            }
        }
        Ok((gradients, losses, batch.targets.len()))
    }

    pub(crate) fn indices(&self, rows: Vec<usize>) -> Tensor<1, Int> {
        let rows: Vec<_> = rows.into_iter().map(|row| row as i32).collect();
        let n = rows.len();
        Tensor::from_data(TensorData::new(rows, [n]), &self.device)
    }

    /// The loss's gradient as the backward pass takes it: scaled, then rounded.
    pub(crate) fn scaled(&self, d: Tensor<2>) -> Tensor<2> {
        match self.precision {
            Precision::F32 | Precision::Bf16 => d,
            Precision::F16 => round(d * self.precision.loss_scale(), self.precision.activations()),
        }
    }

    /// An output gradient as a caller takes it.
    pub(crate) fn unscaled(&self, d: &Tensor<2>) -> Tensor<2> {
        match self.precision {
            Precision::F32 | Precision::Bf16 => d.clone(),
            Precision::F16 => widen(d.clone()) / self.precision.loss_scale(),
        }
    }
}

/// Bytes of a number.
fn bytes_of(dtype: FloatDType) -> u64 {
    if dtype == FloatDType::F32 { 4 } else { 2 }
}

fn float_type(weight: &Tensor<2>) -> FloatDType {
    match weight.dtype() {
        DType::F16 => FloatDType::F16,
        DType::BF16 => FloatDType::BF16,
        _ => FloatDType::F32,
    }
}

pub(crate) fn add(gradients: &mut Parameters, name: String, gradient: Tensor<2>) {
    let sum = match gradients.remove(&name) {
        Some(sum) => sum + gradient,
        None => gradient,
    };
    gradients.insert(name, sum);
}
