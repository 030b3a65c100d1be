//! What to change where a step does not fit the machine: tried, not guessed.

use std::sync::Arc;

use serde_json::{Value, json};
use wherefrom_artifact::bytes;
use wherefrom_model::{Config, Outline};
use wherefrom_stage::{Cost, MODULES_PER_PASS, Machine, Planned};

use crate::cost::Estimate;
use crate::plan::Plan;
use crate::step::Step;

/// A knob with another value.
struct Change {
    knob: &'static str,
    value: Value,
    /// What it changes of the results.
    means: &'static str,
}

/// What is to be said of some steps.
#[derive(PartialEq)]
enum Advice {
    /// A line to write, what it needs then, and what it means.
    Write(String),
    /// No knob helps.
    Nothing,
}

impl Plan {
    /// Gives each step that exceeds the machine a warning; steps of which the same is to be said share that of the first.
    pub(crate) fn advise(&self, estimates: &mut [Estimate], planned: &[Arc<Planned>], machine: &Machine) {
        let Some(limit) = machine.memory else { return };
        let mut found: Vec<(Advice, Vec<(usize, f64)>)> = Vec::new();
        for (index, estimate) in estimates.iter().enumerate() {
            let Some(cost) = estimate.cost.as_ref().filter(|cost| cost.memory > limit as f64) else { continue };
            let advice = self.tried(&self.steps[index], &planned[index], cost, machine);
            let (advice, needs) = advice.map_or_else(
                || (Advice::Nothing, least(&self.steps[index], &planned[index], machine)),
                |line| (Advice::Write(line), cost.memory),
            );
            match found.iter_mut().find(|(other, _)| *other == advice) {
                Some((_, steps)) => steps.push((index, needs)),
                None => found.push((advice, vec![(index, needs)])),
            }
        }
        for (advice, steps) in found {
            let names: Vec<_> = steps
                .iter()
                .map(|&(index, needs)| format!("`{}` ({})", self.steps[index].name, bytes(needs)))
                .collect();
            let noun = if names.len() == 1 { "step" } else { "steps" };
            let says = match advice {
                Advice::Write(line) => line,
                Advice::Nothing => {
                    let most = steps.iter().map(|(_, needs)| *needs).fold(0.0, f64::max);
                    format!("no knob makes that fit; take a machine on which {} may be held", bytes(most))
                }
            };
            let warning = format!("{noun} {}: {} may be held here; {says}", names.join(", "), bytes(limit as f64));
            estimates[steps[0].0].warning = Some(warning);
        }
    }

    /// The line with which the step fits, the one first that changes least.
    fn tried(&self, step: &Step, planned: &Arc<Planned>, before: &Cost, machine: &Machine) -> Option<String> {
        let fits = |cost: &Cost| machine.memory.is_some_and(|limit| cost.memory <= limit as f64);
        if let Some(number) = planned.modules_per_pass {
            let freed = Planned { modules_per_pass: None, ..Planned::clone(planned) };
            let cost = step.configured.as_ref()?.cost(&freed, machine);
            if fits(&cost) {
                let line = format!("without `{MODULES_PER_PASS} = {number}` in [steps.{}]", step.name);
                return Some(format!("{line} {}: the result is the same", costs(&cost, before)));
            }
        }
        changes(planned).into_iter().find_map(|change| {
            let tree = changed(planned, &change);
            let cost = step.stage.configure(&tree.config).ok()?.cost(&tree, machine);
            let line =
                format!("with `{} = {}` in {}", change.knob, toml(&change.value), self.table_of(step, change.knob)?);
            fits(&cost).then(|| format!("{line} {}: {}", costs(&cost, before), change.means))
        })
    }

    /// Where a knob stands that the step, or one before it, has.
    fn table_of(&self, step: &Step, knob: &str) -> Option<String> {
        if ["modules", "precision"].contains(&knob) {
            return Some("[model]".into());
        }
        if step.config().get(knob).is_some() {
            return Some(format!("[steps.{}]", step.name));
        }
        step.needs().find_map(|before| self.table_of(&self.steps[before], knob))
    }
}

/// What can be tried, from what changes results least to what changes them most; smaller steps first.
fn changes(planned: &Planned) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut add = |knob, value: Value, means| changes.push(Change { knob, value, means });
    let knob = |name: &str| planned.knob(name);
    if knob("store") == Some("f32".into()) {
        add("store", "f16".into(), "numbers are rounded to 11 bits");
    }
    if knob("precision") == Some("f32".into()) {
        add("precision", "bf16".into(), "the model computes in bfloat16");
    }
    if let Some(rank) = knob("rank") {
        for lower in
            [256, 128, 64, 32, 16, 8].into_iter().filter(|&lower| rank.as_u64().is_none_or(|rank| lower < rank))
        {
            add("rank", lower.into(), "queries are approximated by fewer directions");
        }
    }
    if let Some(blocks) = knob("blocks").and_then(|blocks| blocks.as_u64()) {
        for more in [2, 4, 8, 16, 32].map(|times| times * blocks) {
            add("blocks", more.into(), "the curvature is approximated by blocks");
        }
    }
    if let Some(dimensions) = knob("dimensions").and_then(|dimensions| dimensions.as_u64()) {
        for fewer in [2, 4, 8, 16].map(|times| dimensions / times).into_iter().filter(|&fewer| fewer > 0) {
            add("dimensions", fewer.into(), "the index keeps fewer coordinates");
        }
    }
    let fewer = "fewer modules are attributed";
    if knob("modules") == Some("all".into()) {
        add("modules", "mlp".into(), fewer);
    }
    if let Some(config) =
        planned.nearest(|step| Config::from_json(step.model.as_ref()?).ok()).filter(|_| knob("modules").is_some())
    {
        let outline = Outline::new(&config);
        let first = outline.modules().iter().filter(|module| module.layer == 0);
        let names = first.filter_map(|module| module.name.rsplit('.').next());
        names.rev().for_each(|name| add("modules", json!([format!("*.{name}")]), fewer));
    }
    changes
}

/// The step and what it goes back to, with that value wherever the knob is.
fn changed(planned: &Arc<Planned>, change: &Change) -> Arc<Planned> {
    let mut changed = Planned::clone(planned);
    if let Some(value) = changed.config.get_mut(change.knob) {
        value.clone_from(&change.value);
    }
    for (_, input) in &mut changed.inputs {
        *input = self::changed(input, change);
    }
    Arc::new(changed)
}

/// The least memory with which the step fits.
fn least(step: &Step, planned: &Planned, machine: &Machine) -> f64 {
    let Some(configured) = &step.configured else { return 0.0 };
    let mut machine = machine.clone();
    let mut needs = 0.0;
    // With more memory it may hold more.
    for _ in 0..16 {
        needs = configured.cost(planned, &machine).memory;
        if machine.memory.is_none_or(|memory| needs <= memory as f64) {
            break;
        }
        machine.memory = Some(needs.ceil() as u64);
    }
    needs
}

/// `it needs 3 GB, twice the operations`.
fn costs(cost: &Cost, before: &Cost) -> String {
    let note = if cost.note.is_empty() { String::new() } else { format!(", {}", cost.note) };
    let times = cost.flops / before.flops.max(1.0);
    let more = if times > 1.05 { format!(", {times:.1} times the operations") } else { String::new() };
    format!("it needs {}{note}{more}", bytes(cost.memory))
}

/// A value as a pipeline has it.
fn toml(value: &Value) -> String {
    toml::Value::try_from(value).map_or_else(|_| value.to_string(), |value| value.to_string())
}
