//! What a plan will cost: memory, disk and floating point operations of each step, as its stage says.

use std::sync::Arc;

use serde_json::Value;
use wherefrom_artifact::{State, bytes, parse_bytes};
use wherefrom_stage::{Cost, Device, Exec, Machine, Planned};

use crate::plan::Plan;
use crate::step::{Source, Step};

/// What a plan says of one step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Estimate {
    /// The step's name.
    pub name: String,
    /// What is still to be done; none where it is cached.
    pub cost: Option<Cost>,
    /// Where the machine is too small for it: the remedy.
    pub warning: Option<String>,
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
        let mut planned: Vec<Arc<Planned>> = Vec::new();
        for step in &self.steps {
            planned.push(Arc::new(self.planned(step, &planned)));
        }
        self.steps.iter().zip(&planned).map(|(step, planned)| estimate(step, planned, machine)).collect()
    }

    /// What is known of a step, given the same of those before it.
    fn planned(&self, step: &Step, before: &[Arc<Planned>]) -> Planned {
        let wires = step.wires.iter().filter(|wire| wire.used).map(|wire| (&wire.role[..], &wire.source));
        let sources = wires.chain(step.model.iter().map(|model| ("model", model)));
        let inputs = sources.filter_map(|(role, source)| match source {
            Source::Step(index) => Some((role.to_string(), before[*index].clone())),
            _ => None,
        });
        Planned {
            config: step.config().clone(),
            size: self.size(Some(step)),
            model: self.model_json(step),
            modules_per_pass: step.modules_per_pass,
            inputs: inputs.collect(),
        }
    }

    /// The `config.json` of the model that the step runs or makes: read from its folder, or as it will be.
    fn model_json(&self, step: &Step) -> Option<Value> {
        if let Some(made) = step.configured.as_ref()?.makes_model() {
            return Some(made);
        }
        let source = step.model.as_ref()?;
        let read = |text: Vec<u8>| serde_json::from_slice(&text).ok();
        let there = std::fs::read(self.place(source)?.join("config.json")).ok().and_then(read);
        there.or_else(|| match source {
            Source::Step(index) => self.model_json(&self.steps[*index]),
            _ => None,
        })
    }

    /// The model that the step runs or makes.
    pub(crate) fn model(&self, step: &Step) -> Option<wherefrom_model::Config> {
        wherefrom_model::Config::from_json(&self.model_json(step)?).ok()
    }
}

fn estimate(step: &Step, planned: &Planned, machine: &Machine) -> Estimate {
    let name = step.name.clone();
    let (State::Missing | State::Partial(..), Some(configured)) = (step.state, &step.configured) else {
        return Estimate { name, ..Estimate::default() };
    };
    let cost = configured.cost(planned, machine);
    let exceeds = machine.memory.filter(|&memory| cost.memory > memory as f64);
    let warning = exceeds.map(|memory| {
        let (needs, has) = (bytes(cost.memory), bytes(memory as f64));
        format!("step `{name}` needs {needs} where {has} may be held: {}", step.stage.remedy())
    });
    Estimate { name, cost: Some(cost), warning }
}
