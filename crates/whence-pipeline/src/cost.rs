//! What a plan will cost, roughly: memory, disk and floating point operations from shapes and token counts.

use std::io::Read as _;
use std::path::Path;

use serde_json::Value;
use whence_artifact::{Kind, Manifest, State};

use crate::plan::Plan;
use crate::stage::Stage;
use crate::step::{Source, Step};

/// Bytes of a corpus whose lines are counted.
const BEGINNING: u64 = 1 << 16;

/// Rough cost of one step, or of all.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Bytes held at once.
    pub memory: f64,
    /// Bytes written.
    pub disk: f64,
    /// Floating point operations.
    pub flops: f64,
}

/// A model's size in the terms of the formulas.
#[derive(Debug, Clone, Copy, Default)]
struct Shape {
    parameters: f64,
    /// Sum of in² + out².
    squares: f64,
    /// Sum of in · out.
    products: f64,
    /// Sum of in + out.
    sums: f64,
}

impl Plan {
    /// Cost of the steps that are not there yet: disk and operations add up, memory is the largest.
    pub fn cost(&self) -> Cost {
        let mut total = Cost::default();
        for step in self.steps.iter().filter(|step| step.state != State::Cached) {
            let cost = self.step_cost(step);
            total.memory = total.memory.max(cost.memory);
            total.disk += cost.disk;
            total.flops += cost.flops;
        }
        total
    }

    fn step_cost(&self, step: &Step) -> Cost {
        let shape = self.shape(step);
        let model = shape.parameters * 4.0;
        let (tokens, rows) = self.size(self.wire(step, "tokens"));
        match step.stage {
            Stage::Tokenizer => Cost::default(),
            Stage::Tokenize => {
                let (tokens, _) = self.size(Some(step));
                Cost { memory: 1e8, disk: tokens * 5.0, flops: 0.0 }
            }
            Stage::Train => {
                let epochs = step.config["epochs"].as_f64().unwrap_or(1.0);
                Cost { memory: model * 6.0, disk: model, flops: 6.0 * epochs * shape.parameters * tokens }
            }
            // A continuation is some dozens of forward passes.
            Stage::Generate => {
                Cost { memory: model * 2.0, disk: tokens * 5.0, flops: 48.0 * shape.parameters * tokens }
            }
            Stage::Covariance => Cost {
                memory: model + shape.squares * 8.0,
                disk: shape.squares * 4.0,
                flops: 4.0 * shape.parameters * tokens + 2.0 * tokens * shape.squares,
            },
            Stage::Eigenbasis => {
                Cost { memory: shape.squares * 8.0, disk: shape.squares * 4.0, flops: 9.0 * shape.squares.powf(1.5) }
            }
            Stage::Lambda => Cost {
                memory: model + (shape.squares + 2.0 * shape.products) * 4.0,
                disk: shape.products * 4.0,
                flops: 4.0 * shape.parameters * tokens + 2.0 * tokens * (shape.squares + shape.products),
            },
            Stage::Gradients => {
                Cost { memory: model * 2.0, disk: tokens * shape.sums * 4.0, flops: 4.0 * shape.parameters * tokens }
            }
            Stage::Precondition => {
                let (_, queries) = self.size(self.wire(step, "gradients"));
                let row = rank(step).map_or(shape.products, |rank| (shape.sums * rank).min(shape.products));
                let each = 4.0 * (shape.squares * shape.products).sqrt();
                Cost { memory: shape.products * 12.0, disk: queries * row * 4.0, flops: queries * each }
            }
            Stage::Score => {
                let (_, queries) = self.size(self.wire(step, "queries"));
                let rank = self.wire(step, "queries").map_or(Some(32.0), rank);
                let pair = rank.map_or(shape.products, |rank| rank * shape.sums);
                // Chosen pairs are few: some hundreds a query.
                let pairs = if self.wire(step, "candidates").is_some() { 200f64.min(rows) } else { rows };
                let scanned = if rows > 0.0 { tokens * pairs / rows } else { 0.0 };
                Cost {
                    memory: model * 2.0 + queries * pair * 4.0,
                    disk: queries * pairs * if step.kind == Kind::Details { 1000.0 } else { 12.0 },
                    flops: 4.0 * shape.parameters * tokens + 2.0 * scanned * pair * queries,
                }
            }
            Stage::Losses => Cost { memory: model * 2.0, disk: tokens * 4.0, flops: 2.0 * shape.parameters * tokens },
            Stage::Filter | Stage::Rank => Cost { memory: 1e8, disk: 1e6, flops: 0.0 },
            Stage::External => Cost::default(),
        }
    }

    fn wire(&self, step: &Step, role: &str) -> Option<&Step> {
        step.wires.iter().find(|wire| wire.role == role).and_then(|wire| match wire.source {
            Source::Step(before) => Some(&self.steps[before]),
            _ => None,
        })
    }

    /// Tokens and rows of the tokens that `step` holds or came from, measured or guessed.
    fn size(&self, step: Option<&Step>) -> (f64, f64) {
        let Some(step) = step else { return (0.0, 0.0) };
        if step.kind != Kind::Tokens {
            return self.size(["gradients", "tokens"].into_iter().find_map(|role| self.wire(step, role)));
        }
        if let Some(manifest) = step.folder(&self.store).and_then(|folder| Manifest::read(&folder).ok()) {
            return (manifest.count("tokens").unwrap_or(0) as f64, manifest.rows() as f64);
        }
        if let Some(before) = self.wire(step, "tokens") {
            return self.size(Some(before));
        }
        let corpus = step.wires.iter().find(|wire| wire.role == "corpus").and_then(|wire| self.place(&wire.source));
        corpus.and_then(|path| guess(&path).ok()).unwrap_or_default()
    }

    /// Sizes of the modules that the step, or one before it, attributes, in the model that it runs.
    fn shape(&self, step: &Step) -> Shape {
        let modules = self.before(step, |step| step.config.get("modules").cloned()).unwrap_or_else(|| "mlp".into());
        self.before(step, |step| self.model(step)).and_then(|config| shape(&config, &modules)).unwrap_or_default()
    }

    /// What is found at the step, or else at one that it needs.
    fn before<T>(&self, step: &Step, find: impl Fn(&Step) -> Option<T> + Copy) -> Option<T> {
        find(step).or_else(|| step.needs().find_map(|index| self.before(&self.steps[index], find)))
    }

    /// The model that the step runs or trains: read from its folder, or as it will be.
    fn model(&self, step: &Step) -> Option<whence_model::Config> {
        if step.stage == Stage::Train {
            return serde_json::from_value::<whence_train::train::Config>(step.config.clone()).ok()?.model().ok();
        }
        let source = step.model.as_ref()?;
        whence_model::Config::load(&self.place(source)?).ok().or_else(|| match source {
            Source::Step(index) => self.model(&self.steps[*index]),
            _ => None,
        })
    }
}

/// Tokens of four bytes, and rows as long as the first ones.
fn guess(corpus: &Path) -> std::io::Result<(f64, f64)> {
    let bytes = std::fs::metadata(corpus)?.len() as f64;
    let mut beginning = Vec::new();
    std::fs::File::open(corpus)?.take(BEGINNING).read_to_end(&mut beginning)?;
    let lines = beginning.iter().filter(|&&byte| byte == b'\n').count().max(1);
    Ok((bytes / 4.0, (bytes * lines as f64 / beginning.len().max(1) as f64).ceil()))
}

fn rank(step: &Step) -> Option<f64> {
    step.config["rank"].as_f64()
}

fn shape(config: &whence_model::Config, modules: &Value) -> Option<Shape> {
    let modules: whence_model::Modules = serde_json::from_value(modules.clone()).unwrap_or_default();
    let selection = whence_model::Selection::new(&modules, &config.modules()).ok()?;
    let mut shape = Shape { parameters: config.parameters() as f64, ..Shape::default() };
    for module in selection.modules() {
        let (inside, out) = (module.in_features as f64, module.out_features as f64);
        shape.squares += inside * inside + out * out;
        shape.products += inside * out;
        shape.sums += inside + out;
    }
    Some(shape)
}

/// `1.5 GB`.
pub fn bytes(bytes: f64) -> String {
    scaled(bytes, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// `1.5 TFLOP`.
pub fn flops(flops: f64) -> String {
    scaled(flops, &["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"])
}

fn scaled(mut value: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0} {}", units[0]) } else { format!("{value:.1} {}", units[unit]) }
}
