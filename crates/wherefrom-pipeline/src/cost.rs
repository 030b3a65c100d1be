//! What a plan will cost: memory, disk and floating point operations of each step, from shapes and token counts alone.

use std::slice;

use serde_json::Value;
use wherefrom_artifact::{Device, Exec, Kind, State};
use wherefrom_curvature::precondition::Rank;
use wherefrom_curvature::{covariance, eigenbasis, lambda, passes, precondition, waves};
use wherefrom_model::{Config, Footprint, Module, Modules, Outline, Selection};

use crate::plan::Plan;
use crate::stage::Stage;
use crate::step::Step;

/// A process that reads and writes artifacts and does nothing else: measured.
const IDLE: f64 = 2.4e7;
/// Rows of text on their way.
const ROWS: f64 = 1e7;
/// Tokens whose gradients lie in memory before they are written: a span.
const SPAN_TOKENS: f64 = 65_536.0;
/// Query matrices that a scan holds at once.
const QUERY_BYTES: f64 = wherefrom_score::QUERY_BYTES as f64;
/// The same of whole ones.
const WHOLE_QUERY_BYTES: f64 = wherefrom_score::WHOLE_QUERY_BYTES as f64;

/// Cost of one step, or of all.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Bytes held at once.
    pub memory: f64,
    /// Bytes written.
    pub disk: f64,
    /// Floating point operations.
    pub flops: f64,
}

/// What a plan says of one step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Estimate {
    /// The step's name.
    pub name: String,
    /// What is still to be done; none where it is cached.
    pub cost: Option<Cost>,
    /// Passes over the tokens, bytes a query.
    pub note: String,
    /// Where the machine is too small for it: the remedy.
    pub warning: Option<String>,
}

/// What the steps run on.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Bytes that may be held; none where nobody knows.
    memory: Option<u64>,
    device: Device,
    batch_tokens: usize,
}

impl Machine {
    /// This machine, as a run would use it.
    pub fn of(exec: &Exec) -> Self {
        Self { memory: passes::limit(exec), device: exec.device.clone(), batch_tokens: exec.batch_tokens }
    }

    /// So many GPUs with so much memory each, weights and sums spread over all of them: `8x80GB`.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no machine; write GPUs x memory: 8x80GB");
        let (devices, memory) = text.split_once('x').ok_or_else(wrong)?;
        let devices = devices.trim().parse::<u64>().ok().filter(|&devices| devices > 0).ok_or_else(wrong)?;
        let memory = wherefrom_artifact::parse_bytes(memory.trim()).map_err(|_| wrong())?;
        let batch_tokens = Exec::default().batch_tokens;
        let memory = devices.checked_mul(memory);
        let device = Device::Gpu { index: 0, name: text.into(), memory };
        Ok(Self { memory, device, batch_tokens })
    }
}

/// Sizes of the model that a step runs and of the modules that it attributes.
struct Shape {
    footprint: Footprint,
    modules: Vec<Module>,
    /// Multiply-adds of one token on its way forward: every linear map, and the vocabulary head.
    forward: f64,
    /// Sum of in · out.
    products: f64,
    /// Sum of in + out.
    sums: f64,
}

impl Shape {
    fn new(config: &Config, modules: &Value, batch_tokens: usize) -> Option<Self> {
        let choice: Modules = serde_json::from_value(modules.clone()).unwrap_or_default();
        let outline = Outline::new(config);
        let selection = Selection::new(&choice, outline.modules()).ok()?;
        let product = |module: &Module| (module.in_features * module.out_features) as f64;
        let head = outline.vocabulary() as f64 * outline.hidden() as f64;
        let modules = selection.modules().to_vec();
        Some(Self {
            footprint: Footprint::new(&outline, batch_tokens),
            forward: outline.modules().iter().map(product).sum::<f64>() + head,
            products: modules.iter().map(product).sum(),
            sums: modules.iter().map(|module| (module.in_features + module.out_features) as f64).sum(),
            modules,
        })
    }

    /// Passes over the tokens and the bytes of the largest, with what running the model takes.
    fn passes(&self, step: &Step, machine: &Machine, bytes: impl Fn(&[Module]) -> u64) -> (usize, f64) {
        let running = self.footprint.total();
        let room = machine.memory.map(|memory| memory.saturating_sub(running));
        let of = |chosen: &[usize]| bytes(&chosen.iter().map(|&i| self.modules[i].clone()).collect::<Vec<_>>());
        let all: Vec<usize> = (0..self.modules.len()).collect();
        let passes = passes::split(&all, step.modules_per_pass, room, of);
        let largest = passes.iter().map(|pass| of(pass)).max().unwrap_or(0);
        (passes.len(), (running + largest) as f64)
    }

    /// Bytes of one query: factors, or whole matrices.
    fn query(&self, rank: Option<f64>, number: f64) -> f64 {
        let factors = |module: &Module| {
            let (inside, out) = (module.in_features as f64, module.out_features as f64);
            rank.filter(|&rank| rank < inside.min(out)).map_or(inside * out, |rank| rank * (inside + out))
        };
        number * self.modules.iter().map(factors).sum::<f64>()
    }
}

impl Plan {
    /// Every step's cost on that machine, in order.
    pub fn estimates(&self, machine: &Machine) -> Vec<Estimate> {
        self.steps.iter().map(|step| self.estimate(step, machine)).collect()
    }

    fn estimate(&self, step: &Step, machine: &Machine) -> Estimate {
        let name = step.name.clone();
        if step.state == State::Cached {
            return Estimate { name, note: "cached".into(), ..Estimate::default() };
        }
        let (cost, note) = self.cost(step, machine);
        let exceeds = machine.memory.filter(|&memory| cost.memory > memory as f64);
        let warning = exceeds.map(|memory| {
            let (needs, has) = (wherefrom_artifact::bytes(cost.memory), wherefrom_artifact::bytes(memory as f64));
            format!("step `{name}` needs {needs} where {has} may be held: {}", remedy(step.stage))
        });
        Estimate { name, cost: Some(cost), note, warning }
    }

    fn cost(&self, step: &Step, machine: &Machine) -> (Cost, String) {
        let (tokens, rows) = self.size(self.wire(step, "tokens"));
        let plain = |memory, disk, flops| (Cost { memory: IDLE + memory, disk, flops }, String::new());
        match step.stage {
            Stage::Tokenizer => return plain(ROWS, 1e6, 0.0),
            Stage::Tokenize => return plain(ROWS, self.size(Some(step)).0 * 5.0, 0.0),
            Stage::Filter => return plain(ROWS + 16.0 * tokens, 1e6, 0.0),
            Stage::Rank | Stage::Report => {
                let pairs = self.wire(step, "scores").map_or(0.0, |scores| {
                    let queries = self.wire(scores, "queries").map_or(1.0, |queries| self.size(Some(queries)).1);
                    queries * self.size(self.wire(scores, "tokens").or_else(|| self.wire(scores, "index"))).1
                });
                return plain(ROWS + 24.0 * pairs, 1e6, 0.0);
            }
            Stage::External => return plain(0.0, 0.0, 0.0),
            _ => {}
        }
        let modules = self.before(step, |step| step.config.get("modules").cloned()).unwrap_or_else(|| "mlp".into());
        let config = self.before(step, |step| self.model(step));
        // A batch has no more tokens than there are.
        let batch = machine.batch_tokens.min((tokens as usize).max(1));
        let shape = config.and_then(|config| Shape::new(&config, &modules, batch));
        let Some(shape) = shape else { return plain(0.0, 0.0, 0.0) };
        let blocks = self.before(step, |step| step.config["blocks"].as_u64()).unwrap_or(1) as usize;
        let number = passes::number_bytes(&machine.device);
        let running = shape.footprint.total() as f64;
        // Nothing is kept for the way back.
        let forward = shape.footprint.weights as f64 + shape.footprint.activations as f64 / 2.0;
        let (weights, scan) = (shape.footprint.weights as f64, 4.0 * shape.forward * tokens);
        let all = covariance::summed(&shape.modules, blocks) as f64;
        match step.stage {
            Stage::Train => {
                let epochs = step.config["epochs"].as_f64().unwrap_or(1.0);
                // Weights, gradients, two moments, and a checkpoint of weights and moments.
                plain(running + 6.0 * weights, weights, 6.0 * epochs * shape.forward * tokens)
            }
            // A continuation is some dozens of forward passes.
            Stage::Generate => plain(forward, tokens * 5.0, 48.0 * shape.forward * tokens),
            Stage::Losses => plain(forward, tokens * 4.0, 2.0 * shape.forward * tokens),
            Stage::Covariance => {
                let bytes = |modules: &[Module]| covariance::bytes(modules, blocks);
                let (passes, memory) = shape.passes(step, machine, bytes);
                let flops = passes as f64 * scan + 2.0 * tokens * all;
                (Cost { memory: IDLE + memory, disk: all * 4.0, flops }, passes_note(passes))
            }
            Stage::Eigenbasis => {
                let sizes = |modules: &[Module]| covariance::sizes(modules, blocks).collect::<Vec<_>>();
                // A block of n takes some 9 n³ operations, in float64.
                let flops = 9.0 * sizes(&shape.modules).into_iter().map(|n| (n as f64).powi(3)).sum::<f64>();
                let largest = |bytes: fn(usize) -> u64| {
                    let module = |module: &Module| sizes(slice::from_ref(module)).into_iter().map(bytes).sum();
                    shape.modules.iter().map(module).max().unwrap_or(0)
                };
                let held = waves::held(largest(eigenbasis::bytes), largest(eigenbasis::waiting), &Device::cpu());
                plain(held as f64, all * 4.0, flops)
            }
            Stage::Lambda => {
                let rotated = self.wire(step, "eigenbasis").map(|_| blocks);
                let bytes = |modules: &[Module]| lambda::bytes(modules, rotated, number);
                let (passes, memory) = shape.passes(step, machine, bytes);
                let work = shape.products + rotated.map_or(0.0, |_| all);
                let flops = passes as f64 * scan + 2.0 * tokens * work;
                (Cost { memory: IDLE + memory, disk: shape.products * width(step), flops }, passes_note(passes))
            }
            Stage::Gradients => {
                let held = tokens.min(SPAN_TOKENS) * shape.sums * 4.0;
                plain(running + 1.5 * held, tokens * shape.sums * 4.0, scan)
            }
            Stage::Precondition => {
                let (query_tokens, queries) = self.size(self.wire(step, "gradients"));
                let (each, rank) = ((query_tokens / queries.max(1.0)) as usize, rank(step));
                let work = |module: &Module| {
                    let (inside, out) = (module.in_features as f64, module.out_features as f64);
                    let (side, size) = (inside.min(out), inside * out);
                    match rank {
                        Some(_) => 2.0 * size * (each as f64 + side) + 9.0 * side.powi(3),
                        None => 2.0 * size * (each as f64 + inside + out),
                    }
                };
                let (mut largest, mut waiting) = (0, 0);
                for module in &shape.modules {
                    let ([out, inside], rotations) =
                        ([module.out_features, module.in_features], covariance::both_sides(module, blocks));
                    largest = precondition::bytes(out, inside, rotations, each, rank.is_some()).max(largest);
                    waiting = precondition::waiting(out, inside, rotations, each).max(waiting);
                }
                let query = shape.query(rank, width(step));
                let flops = queries * shape.modules.iter().map(work).sum::<f64>();
                let memory = IDLE + waves::held(largest, waiting, &machine.device) as f64;
                let cost = Cost { memory, disk: queries * query, flops };
                (cost, format!("{} a query", wherefrom_artifact::bytes(query)))
            }
            Stage::SelfInfluence => {
                let memory = running + lambda::bytes(&shape.modules, Some(blocks), 4) as f64;
                let flops = scan + 2.0 * tokens * (all + shape.products);
                plain(memory, rows * (12.0 + 4.0 * shape.modules.len() as f64), flops)
            }
            // Every coordinate lies in memory twice, until the least are let go.
            Stage::Coordinates => {
                let kept = dimensions(step, shape.products);
                plain(4.0 * shape.products + 64.0 * kept, 20.0 * kept, 2.0 * shape.products)
            }
            Stage::Index => {
                let kept = self.wire(step, "coordinates").map_or(0.0, |chosen| dimensions(chosen, shape.products));
                let memory = running + 4.0 * all + 4.0 * shape.products;
                let flops = scan + 2.0 * tokens * (all + shape.products);
                let (cost, _) = plain(memory, rows * (kept / 8.0 + 16.0), flops);
                (cost, format!("{} a sequence", wherefrom_artifact::bytes(kept / 8.0)))
            }
            Stage::ScoreIndex => {
                let kept = self.wire(step, "coordinates").map_or(0.0, |chosen| dimensions(chosen, shape.products));
                let (_, queries) = self.size(self.wire(step, "queries"));
                let (_, rows) = self.size(self.wire(step, "index"));
                let pairs = queries * rows;
                // Weights, in float32 and in bits, and the scores of a part.
                let memory = 5.0 * queries * kept + 100.0 * pairs.min(4e6) + 12.0 * shape.products;
                plain(memory, 12.0 * pairs, 2.0 * pairs * kept)
            }
            Stage::Score => {
                let before = self.wire(step, "queries");
                let (_, queries) = self.size(before);
                let rank = before.map_or(Some(32.0), rank);
                let query = shape.query(rank, 4.0);
                let most = if rank.is_some() { QUERY_BYTES } else { WHOLE_QUERY_BYTES };
                let held = (queries * query).min(most.max(query));
                let groups = (queries * query / held.max(1.0)).ceil().max(1.0);
                // Chosen pairs are few: some hundreds a query.
                let pairs = if self.wire(step, "candidates").is_some() { 200f64.min(rows) } else { rows };
                let scanned = if rows > 0.0 { tokens * pairs / rows } else { 0.0 };
                let work = match rank {
                    Some(_) => 2.0 * scanned * query / 4.0 * queries,
                    None => 2.0 * (scanned + pairs * queries) * query / 4.0,
                };
                let row = if step.kind == Kind::Details { 1000.0 } else { 12.0 };
                let note = if groups > 1.0 { format!("{groups} groups of queries") } else { String::new() };
                let flops = groups * scan + work;
                (Cost { memory: IDLE + running + held, disk: queries * pairs * row, flops }, note)
            }
            _ => plain(0.0, 0.0, 0.0),
        }
    }
}

fn passes_note(passes: usize) -> String {
    if passes > 1 { format!("{passes} passes over the tokens") } else { String::new() }
}

/// Rank of what a step preconditions; none where it is whole.
fn rank(step: &Step) -> Option<f64> {
    match serde_json::from_value(step.config["rank"].clone()) {
        Ok(Rank::Low(rank)) => Some(rank as f64),
        _ => None,
    }
}

/// Coordinates that a step chooses of so many.
fn dimensions(step: &Step, of: f64) -> f64 {
    step.config["dimensions"].as_f64().map_or(of, |dimensions| dimensions.min(of))
}

/// Bytes of a stored number.
fn width(step: &Step) -> f64 {
    if step.config["store"] == "f16" { 2.0 } else { 4.0 }
}

fn remedy(stage: Stage) -> &'static str {
    match stage {
        Stage::Covariance | Stage::Lambda => {
            "give more --memory, choose fewer modules at a time (modules-per-pass), or set blocks of the covariance step"
        }
        Stage::Eigenbasis => "set blocks of the covariance step",
        Stage::Precondition | Stage::Score => {
            "lower rank, set blocks of the covariance step, or ask fewer queries at a time"
        }
        Stage::Index | Stage::SelfInfluence => "choose fewer modules, or set blocks of the covariance step",
        Stage::ScoreIndex => "ask fewer queries at a time, or set fewer dimensions of the coordinates step",
        Stage::Gradients => "ask fewer or shorter queries, or choose fewer modules",
        _ => "take a machine with more memory, or a smaller model",
    }
}
