//! What `plan` prints: states and costs as tables, or as JSON.

use anyhow::Result;
use serde_json::{Map, Value, json};
use wherefrom_artifact::{State, bytes, flops};
use wherefrom_pipeline::{Cost, Estimate, Machine, Plan, Source, Step, Why};
use wherefrom_stage::Exec;

use crate::output::{say, say_json};

/// States, costs, the store, and what to be warned of.
pub(crate) fn table(plan: &Plan, why_store: Why, machine: &Machine, exec: &Exec) -> Result<()> {
    let width = plan.steps.iter().map(|step| step.name.len()).max().unwrap_or(0);
    for step in &plan.steps {
        let key = step.key().map_or_else(|| "?".into(), |key| key[..12].to_string());
        let state = match step.state {
            State::Cached => "cached".into(),
            State::Partial(done, total) => format!("partial {done}/{total}"),
            State::Missing => "missing".into(),
        };
        say(&format!("{:<width$}  {:<12}  {key:<12}  {state:<14}  {}", step.name, step.stage.name(), step.why))?;
    }
    let estimates = plan.estimates(machine);
    say(&format!("\n{}", costs(&estimates)))?;
    say(&format!("\nstore: {} ({why_store})", plan.store.root().display()))?;
    warnings(plan, &estimates).iter().for_each(|warning| exec.reporter.warn(warning));
    Ok(())
}

/// The same for programs: FORMAT.md has the fields.
pub(crate) fn json(plan: &Plan, why_store: Why, machine: &Machine) -> Result<()> {
    let estimates = plan.estimates(machine);
    let steps = plan.steps.iter().zip(&estimates).map(|(step, estimate)| {
        let (state, parts) = match step.state {
            State::Cached => ("cached", Value::Null),
            State::Partial(done, total) => ("partial", json!({ "done": done, "total": total })),
            State::Missing => ("missing", Value::Null),
        };
        let wires = step.wires.iter().map(|wire| (wire.role.clone(), source(plan, &wire.source)));
        let model = step.model.iter().map(|model| ("model".into(), source(plan, model)));
        json!({
            "name": step.name, "stage": step.stage.name(), "kind": step.kind.name(), "key": step.key(),
            "folder": step.folder(&plan.store), "state": state, "parts": parts, "why": step.why,
            "config": step.config(), "inputs": wires.chain(model).collect::<Map<_, _>>(),
            "cost": estimate.cost.as_ref().map(cost),
        })
    });
    say_json(&json!({
        "pipeline": plan.path,
        "store": { "path": plan.store.root(), "why": why_store.to_string() },
        "machine": { "device": machine.device.to_string(), "memory": machine.memory },
        "steps": steps.collect::<Vec<_>>(),
        "total": cost(&total(&estimates)),
        "warnings": warnings(plan, &estimates),
    }))
}

/// What the key of a step is made of.
pub(crate) fn preimage(step: &Step, as_json: bool) -> Result<()> {
    if as_json {
        return say_json(&json!({
            "step": step.name, "key": step.key(), "why": step.why, "recipe": step.recipe,
        }));
    }
    match &step.recipe {
        Some(recipe) => {
            say(&format!("{} {}: {}", step.name, recipe.key(), step.why))?;
            say(&serde_json::to_string_pretty(recipe)?)
        }
        None => say(&format!("{} ?: {}", step.name, step.why)),
    }
}

fn warnings(plan: &Plan, estimates: &[Estimate]) -> Vec<String> {
    let machine = estimates.iter().filter_map(|estimate| estimate.warning.clone());
    machine.chain(plan.thin_coverage()).chain(plan.uncompleted()).chain(plan.boundary_warnings()).collect()
}

/// A step by its name, all else by its path.
fn source(plan: &Plan, source: &Source) -> Value {
    match source {
        Source::Step(step) => json!({ "step": plan.steps[*step].name }),
        Source::Artifact { folder, .. } => json!({ "path": folder }),
        Source::File { path, .. } => json!({ "path": path }),
    }
}

fn cost(cost: &Cost) -> Value {
    json!({ "memory_bytes": cost.memory, "disk_bytes": cost.disk, "operations": cost.flops, "note": cost.note })
}

/// Of all steps that are still to be made: disk and operations add up, memory is the largest.
fn total(estimates: &[Estimate]) -> Cost {
    let mut total = Cost::default();
    for cost in estimates.iter().filter_map(|estimate| estimate.cost.as_ref()) {
        total.memory = total.memory.max(cost.memory);
        (total.disk, total.flops) = (total.disk + cost.disk, total.flops + cost.flops);
    }
    total
}

/// The costs of all steps that are still to be made, and of each.
fn costs(estimates: &[Estimate]) -> String {
    let width = estimates.iter().map(|estimate| estimate.name.len()).max().unwrap_or(0).max("step".len());
    let mut lines = vec![format!("{:<width$}  {:>9}  {:>9}  {:>12}", "step", "memory", "disk", "operations")];
    for Estimate { name, cost, .. } in estimates {
        let (cells, note) = match cost {
            Some(cost) => ([bytes(cost.memory), bytes(cost.disk), flops(cost.flops)], &cost.note[..]),
            None => (["-", "-", "-"].map(String::from), "cached"),
        };
        let [memory, disk, flops] = cells;
        lines.push(format!("{name:<width$}  {memory:>9}  {disk:>9}  {flops:>12}  {note}").trim_end().into());
    }
    let total = total(estimates);
    let (memory, disk) = (bytes(total.memory), bytes(total.disk));
    format!("to do, roughly: memory {memory}, disk {disk}, {}\n\n{}", flops(total.flops), lines.join("\n"))
}
