//! What a plan will cost: memory, disk, floating point operations and seconds of each step, as its stage says.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use wherefrom_artifact::{Kind, Manifest, State, parse_bytes};
use wherefrom_model::Precision;
use wherefrom_stage::{Cost, Device, Exec, Machine, Planned, Size};

use crate::plan::Plan;
use crate::probe::{LIMIT, Probe};
use crate::rates::{self, Basis, Known, Time, Work};
use crate::size;
use crate::step::{ADAPTER, Source, Step};

/// Operations that no machine takes long for: nothing is measured for so few.
const FEW: f64 = 1e11;
/// Operations a second that any machine has.
const SLOW: f64 = 1e10;

/// What a plan says of one step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Estimate {
    /// The step's name.
    pub name: String,
    /// What is still to be done; none where it is cached.
    pub cost: Option<Cost>,
    /// How long that takes on this machine; none where nobody knows.
    pub time: Option<Time>,
    /// Where the machine is too small for it, or it takes most of too much disk or time: what to change. Said once where it is the
    /// same of several steps.
    pub warnings: Vec<String>,
}

/// This machine, as a run would use it.
pub fn this_machine(exec: &Exec) -> Machine {
    let memory = exec.device.limit(exec.memory, wherefrom_model::available_bytes);
    Machine { memory, device: exec.device.clone(), batch_tokens: exec.batch_tokens }
}

/// So many GPUs with so much memory each, weights and sums spread over all of them: `8x80GB`.
///
/// # Errors
/// What to write instead.
pub fn parse_machine(text: &str) -> Result<Machine, String> {
    let wrong = || format!("`{text}` is no machine; write GPUs x memory: 8x80GB");
    let (devices, memory) = text.split_once('x').ok_or_else(wrong)?;
    let devices = devices.trim().parse::<u64>().ok().filter(|&devices| devices > 0).ok_or_else(wrong)?;
    let memory = parse_bytes(memory.trim()).map_err(|_| wrong())?;
    let batch_tokens = Exec::default().batch_tokens;
    let memory = devices.checked_mul(memory);
    Ok(Machine { memory, device: Device::Gpu { index: 0, name: text.into(), memory }, batch_tokens })
}

impl Plan {
    /// Every step's cost on that machine, in order.
    pub fn estimates(&self, machine: &Machine) -> Vec<Estimate> {
        self.estimated(&self.planned(true), machine)
    }

    /// The same on the machine of `exec`, with the time that it takes there: by earlier runs, or else by a measurement of some
    /// seconds, which the store keeps.
    pub fn timed_estimates(&self, exec: &Exec) -> Vec<Estimate> {
        let planned = self.planned(true);
        let mut estimates = self.estimated(&planned, &this_machine(exec));
        let machine = rates::machine(&exec.device);
        let work: Vec<Option<Work>> = (self.steps.iter().zip(&planned).zip(&estimates))
            .map(|((step, planned), estimate)| Work::new(step.stage, planned, estimate.cost.as_ref()?, &machine))
            .collect();
        let computed = work.iter().flatten().filter(|work| work.computes()).map(|work| work.amount).sum::<f64>();
        let mut known = Known::new(&self.store, machine);
        if computed > FEW {
            let kinds = self.steps.iter().map(|step| step.kind);
            let all: Vec<(Kind, Arc<Planned>)> = kinds.zip(planned.iter().cloned()).collect();
            let mut probes: Vec<Probe> = Vec::new();
            for (work, planned) in work.iter().zip(&planned) {
                if work.as_ref().is_some_and(|work| known.time(work).is_none()) {
                    probes.extend(Probe::new(planned, &all).filter(|probe| !probes.contains(probe)));
                }
            }
            let busy = if probes.is_empty() { None } else { rates::busy() };
            let deadline = Instant::now() + Duration::from_secs(LIMIT);
            let (mut broken, mut late) = (None, false);
            for probe in probes {
                let measured = probe.run(&self.store, exec, deadline).and_then(|measured| {
                    late |= !measured.whole;
                    known.keep(measured.rates, busy.is_some())
                });
                broken = broken.or(measured.err());
            }
            if let Some(error) = broken {
                exec.reporter
                    .warn(&format!("this machine could not be measured, so that not all times are known: {error:#}"));
            }
            if late {
                exec.reporter.warn(&unmeasured(&self.steps, &work, &known));
            }
            if let Some((load, processors)) = busy {
                exec.reporter.warn(&format!(
                    "other programs kept this machine busy while it was measured (a load of {load:.0} on {processors} processors): the times \
                     are those of a busy machine, and a `wherefrom plan` when it is idle measures again"
                ));
            }
        }
        for (estimate, work) in estimates.iter_mut().zip(&work) {
            let assumed = |work: &Work| Time { seconds: work.amount / SLOW, basis: Basis::Assumed };
            let time = |work| known.time(work).or_else(|| (computed <= FEW).then(|| assumed(work)));
            estimate.time = work.as_ref().and_then(time);
        }
        self.advise_whole(&mut estimates, &planned, &this_machine(exec), &known);
        estimates
    }

    fn estimated(&self, planned: &[Arc<Planned>], machine: &Machine) -> Vec<Estimate> {
        let steps = self.steps.iter().zip(planned);
        let mut estimates: Vec<_> = steps.map(|(step, planned)| estimate(step, planned, machine)).collect();
        self.advise(&mut estimates, planned, machine);
        estimates
    }

    /// What is known of every step. Tokens that are not there yet are guessed, or have no size.
    fn planned(&self, guess: bool) -> Vec<Arc<Planned>> {
        let mut planned: Vec<Arc<Planned>> = Vec::new();
        for step in &self.steps {
            let wires = step.wires.iter().filter(|wire| wire.used).map(|wire| (&wire.role[..], &wire.source));
            let sources = wires.chain(step.model.iter().map(|model| ("model", model)));
            let sources = sources.chain(step.adapters.iter().map(|adapter| (ADAPTER, adapter)));
            let inputs = sources.filter_map(|(role, source)| match source {
                Source::Step(index) => Some((role.to_string(), planned[*index].clone())),
                Source::Artifact { folder, .. } => Some((role.to_string(), Arc::new(outside(folder)?))),
                Source::File { .. } => None,
            });
            let inputs: Vec<_> = inputs.collect();
            let (size, assumed) = self.size(step, &inputs, guess);
            let (config, model) = (step.config().clone(), self.model_json(step));
            let modules_per_pass = step.modules_per_pass;
            planned.push(Arc::new(Planned { config, size, assumed, model, modules_per_pass, inputs }));
        }
        planned
    }

    /// The work of a step whose inputs are there; `made` is how many tokens and rows it has made, of a step that makes tokens.
    pub(crate) fn work(&self, step: &Step, machine: &Machine) -> Option<impl FnOnce(Option<Size>) -> Option<Work>> {
        let index = self.steps.iter().position(|other| other.name == step.name)?;
        let mut planned = Planned::clone(&self.planned(false)[index]);
        let (configured, machine, stage) = (step.configured.clone()?, machine.clone(), step.stage);
        Some(move |made: Option<Size>| {
            planned.size = made.unwrap_or(planned.size);
            Work::new(stage, &planned, &configured.cost(&planned, &machine), &rates::machine(&machine.device))
        })
    }

    /// The `config.json` of the model that the step runs or makes: read from its folder, with the type that its weights have
    /// there, or as it will be.
    fn model_json(&self, step: &Step) -> Option<Value> {
        let made = step.configured.as_ref()?.makes_model();
        if let Some(made) = made.filter(|_| step.kind == Kind::Model) {
            return Some(made);
        }
        let source = step.model.as_ref()?;
        let read = |text: Vec<u8>| serde_json::from_slice(&text).ok();
        let folder = self.place(source)?;
        let there = wherefrom_artifact::read(&folder.join("config.json")).ok().and_then(read);
        let there = there.map(|mut config: Value| {
            if let (Some(config), Some(stored)) = (config.as_object_mut(), wherefrom_model::stored_type(&folder)) {
                config.insert(wherefrom_model::STORED.into(), stored.into());
            }
            config
        });
        let mut json: Value = there.or_else(|| match source {
            Source::Step(index) => self.model_json(&self.steps[*index]),
            _ => None,
        })?;
        if let (Some(adapters), Some(json)) = (self.adapters_json(step), json.as_object_mut()) {
            json.insert(wherefrom_model::ADAPTERS.into(), adapters);
        }
        Some(json)
    }

    /// The adapters of the step's model, that which it trains included: read from their folders, or as they will be.
    fn adapters_json(&self, step: &Step) -> Option<Value> {
        let trained = |step: &Step| serde_json::from_value(step.configured.as_ref()?.makes_model()?).ok();
        let adapter = |source: &Source| -> Option<wherefrom_model::Lora> {
            let there = wherefrom_model::Lora::load(&self.place(source)?).ok();
            there.or_else(|| match source {
                Source::Step(index) => trained(&self.steps[*index]),
                _ => None,
            })
        };
        let mut list = step.adapters.iter().map(adapter).collect::<Option<Vec<_>>>()?;
        if step.kind == Kind::Adapter {
            list.extend(trained(step));
        }
        let attribute = wherefrom_model::Attribute::named(&step.attribute).ok()?;
        (!list.is_empty()).then(|| wherefrom_model::Adapters { list, attribute }.to_json())
    }

    /// What reduced precision is on this machine's CPU: a line for each that a step asks for which is still to be run.
    pub fn arithmetic(&self, exec: &Exec) -> Vec<String> {
        let asked = |precision: Precision| {
            let missing = self.steps.iter().filter(|step| step.is_to_be_made());
            missing.map(Step::config).any(|config| config["precision"] == precision.name())
        };
        let reduced = [Precision::Bf16, Precision::F16].into_iter();
        let reduced = reduced.filter(|&precision| exec.device.gpu().is_none() && asked(precision));
        let says = |precision| {
            match (precision, wherefrom_model::bf16_instructions()) {
            (Precision::Bf16, Some(instructions)) => {
                format!("precision = \"bf16\": this processor multiplies bfloat16 by {instructions}")
            }
            (Precision::Bf16, None) => {
                "precision = \"bf16\": this processor has no AVX512-BF16, so that products are rounded and multiplied in float32, \
                 slower than with \"f32\"; weights take half the memory, and the scores are those of bfloat16"
                    .into()
            }
            _ => "precision = \"f16\": on the CPU slower than \"f32\"; it shows what float16 does to the scores".into(),
        }
        };
        reduced.map(says).collect()
    }

    /// The model that the step runs or makes.
    pub(crate) fn model(&self, step: &Step) -> Option<wherefrom_model::Config> {
        wherefrom_model::Config::from_json(&self.model_json(step)?).ok()
    }
}

/// What is said where measuring took longer than it may: of which steps the time is not known now.
fn unmeasured(steps: &[Step], work: &[Option<Work>], known: &Known) -> String {
    let unknown =
        steps.iter().zip(work).filter(|(_, work)| work.as_ref().is_some_and(|work| known.time(work).is_none()));
    let names: Vec<_> = unknown.map(|(step, _)| format!("`{}`", step.name)).collect();
    let not = match names.len() {
        0 => "the times are rough".into(),
        1..=4 => format!("the time of {} is not known", names.join(", ")),
        more => format!("the times of {more} steps are not known, {} among them", names[..3].join(", ")),
    };
    format!(
        "measuring this machine was stopped after {LIMIT} seconds: {not}; a `wherefrom plan` when it is idle measures the rest"
    )
}

/// What is known of an artifact that no step of the plan makes.
fn outside(folder: &Path) -> Option<Planned> {
    let manifest = Manifest::read(folder).ok()?;
    let size = if manifest.kind == Kind::Tokens { size::measured(&manifest) } else { Size::default() };
    Some(Planned { config: manifest.recipe.config, size, ..Planned::default() })
}

fn estimate(step: &Step, planned: &Planned, machine: &Machine) -> Estimate {
    let name = step.name.clone();
    let (State::Missing | State::Partial(..), Some(configured)) = (step.state, &step.configured) else {
        return Estimate { name, ..Estimate::default() };
    };
    let mut cost = configured.cost(planned, machine);
    if let Some(assumed) = planned.assumed.as_ref().filter(|_| cost.note.is_empty()) {
        cost.note.clone_from(assumed);
    }
    Estimate { name, cost: Some(cost), ..Estimate::default() }
}
