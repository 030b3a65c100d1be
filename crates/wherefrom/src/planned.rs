//! What `plan` prints: states and costs as tables, or as JSON.

use anyhow::Result;
use serde_json::{Map, Value, json};
use wherefrom_artifact::{State, bytes, duration, flops};
use wherefrom_pipeline::{Cost, Estimate, Machine, Plan, Source, Step, Why};
use wherefrom_stage::{Exec, Sums};

use crate::output::{say, say_json};

/// States, costs, the store, and what to be warned of.
pub(crate) fn table(plan: &Plan, why_store: Why, machine: Option<&Machine>, exec: &Exec) -> Result<()> {
    let width = plan.steps.iter().map(|step| step.name.len()).max().unwrap_or(0);
    for step in &plan.steps {
        let key = step.key().map_or_else(|| "?".into(), |key| key[..12].to_string());
        let state = match step.state {
            State::Cached => "cached".into(),
            State::Partial(done, total) => format!("partial {done}/{total}"),
            State::Missing => "missing".into(),
            State::Remote => "remote".into(),
        };
        say(&format!("{:<width$}  {:<12}  {key:<12}  {state:<14}  {}", step.name, step.stage.name(), step.why))?;
    }
    let estimates = estimates(plan, machine, exec);
    say(&format!("\n{}", costs(&estimates)))?;
    if machine.is_some() {
        say("\ntimes are known of the machine that this runs on: plan there without --machine")?;
    }
    if machine.is_none() {
        plan.arithmetic(exec).iter().try_for_each(|line| say(&format!("\n{line}")))?;
    }
    for folder in plan.bare_models() {
        say(&format!("\nplanned from config.json alone: the weights of {} are not there", folder.display()))?;
    }
    say(&format!("\nstore: {} ({why_store})", plan.store.root().display()))?;
    warnings(plan, &estimates, machine).iter().for_each(|warning| exec.reporter.warn(warning));
    complete(plan, machine)
}

/// With times, where the machine is the one that this runs on.
fn estimates(plan: &Plan, machine: Option<&Machine>, exec: &Exec) -> Vec<Estimate> {
    machine.map_or_else(|| plan.timed_estimates(exec), |machine| plan.estimates(machine))
}

/// Refuses a study that cannot run here, unless it is planned for another machine, which has its files.
fn complete(plan: &Plan, machine: Option<&Machine>) -> Result<()> {
    if machine.is_some() { Ok(()) } else { plan.complete() }
}

/// Shares that each step is to be done in, and what the command has set.
pub(crate) struct Shards<'a> {
    pub(crate) count: usize,
    pub(crate) set: &'a [String],
}

impl Shards<'_> {
    /// What an engine runs of a step that is missing: its shares, then what joins and seals them; `{K}` is a share's number.
    fn of(&self, plan: &Plan, step: &Step, cost: Option<&Cost>, exec: &Exec) -> Value {
        if step.state == State::Cached {
            return Value::Null;
        }
        let count = if step.stage.splits() && step.state != State::Remote { self.count } else { 1 };
        let missing = step.needs().map(|before| &plan.steps[before]).filter(|before| before.state != State::Cached);
        let command = |share: &[String]| {
            let words = ["wherefrom", "run"].map(String::from).into_iter();
            let places = [plan.path.display().to_string(), "--to".into(), step.name.clone(), "--store".into()];
            let store = plan.store.root().display().to_string();
            let sets = self.set.iter().flat_map(|set| ["--set".to_string(), set.clone()]);
            words.chain(places).chain([store]).chain(share.iter().cloned()).chain(sets).collect::<Vec<_>>()
        };
        let share = (count > 1).then(|| command(&["--shard".into(), format!("{{K}}/{count}")]));
        let sums = cost.and_then(|cost| cost.sums).filter(|_| count > 1).map(|sums| {
            let (modules, spans) = sums.groups(count, Sums::LIMIT);
            let bytes = sums.bytes.saturating_mul(spans as u64);
            json!({ "module_groups": modules, "span_groups": spans, "bytes": bytes, "limit": Sums::LIMIT })
        });
        json!({
            "count": count,
            "missing": step.key().map(|key| plan.store.missing_shares(step.kind, &key, count)),
            "waits_for": missing.map(|before| &before.name).collect::<Vec<_>>(),
            "share": share,
            "seal": command(&[]),
            "sums": sums,
            "runs_model": step.runs_model(),
            "gpu": step.runs_model() && exec.device.gpu().is_some(),
        })
    }
}

/// The same for programs: FORMAT.md has the fields.
pub(crate) fn json(
    plan: &Plan,
    why_store: Why,
    machine: Option<&Machine>,
    shards: Option<Shards<'_>>,
    exec: &Exec,
) -> Result<()> {
    let estimates = estimates(plan, machine, exec);
    let asked = machine;
    let machine = machine.cloned().unwrap_or_else(|| wherefrom_pipeline::this_machine(exec));
    let steps = plan.steps.iter().zip(&estimates).map(|(step, estimate)| {
        let (state, parts) = match step.state {
            State::Cached => ("cached", Value::Null),
            State::Partial(done, total) => ("partial", json!({ "done": done, "total": total })),
            State::Missing => ("missing", Value::Null),
            State::Remote => ("remote", Value::Null),
        };
        let wires = step.wires.iter().map(|wire| (wire.role.clone(), source(plan, &wire.source)));
        let model = step.model.iter().map(|model| ("model".into(), source(plan, model)));
        let adapters = step.adapters.iter().map(|adapter| source(plan, adapter)).collect::<Vec<_>>();
        let adapters = (!adapters.is_empty()).then(|| ("adapters".into(), adapters.into()));
        let mut said = json!({
            "name": step.name, "stage": step.stage.name(), "kind": step.kind.name(), "key": step.key(),
            "folder": step.folder(&plan.store), "state": state, "parts": parts, "why": step.why,
            "config": step.config(), "inputs": wires.chain(model).chain(adapters).collect::<Map<_, _>>(),
            "cost": estimate.cost.as_ref().map(cost),
            "time": estimate.time.map(|time| json!({ "seconds": time.seconds, "basis": time.basis.to_string() })),
        });
        if let Some(shards) = &shards {
            said["shards"] = shards.of(plan, step, estimate.cost.as_ref(), exec);
        }
        said
    });
    let mut said = json!({
        "pipeline": plan.path,
        "store": { "path": plan.store.root(), "why": why_store.to_string() },
        "machine": { "device": machine.device.to_string(), "memory": machine.memory },
        "steps": steps.collect::<Vec<_>>(),
        "total": cost(&total(&estimates)),
        "seconds": seconds(&estimates),
        "arithmetic": if asked.is_none() { plan.arithmetic(exec) } else { Vec::new() },
        "warnings": warnings(plan, &estimates, asked),
    });
    if let Some(shards) = &shards {
        said["shards"] = shards.count.into();
    }
    say_json(&said)?;
    complete(plan, asked)
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

fn warnings(plan: &Plan, estimates: &[Estimate], machine: Option<&Machine>) -> Vec<String> {
    let exceeded = estimates.iter().flat_map(|estimate| estimate.warnings.clone());
    let missing = machine.and_then(|_| Some(format!("{:#}", plan.complete().err()?)));
    exceeded.chain(missing).chain(plan.thin_coverage()).chain(plan.uncompleted()).chain(plan.row_warnings()).collect()
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

/// Seconds of all of them; none where that of one is not known.
fn seconds(estimates: &[Estimate]) -> Option<f64> {
    let left = estimates.iter().filter(|estimate| estimate.cost.is_some());
    // A sum of nothing is -0.0.
    left.map(|estimate| Some(estimate.time?.seconds)).sum::<Option<f64>>().map(|seconds| seconds + 0.0)
}

/// Whether nobody knows what a step takes: it runs a model that is not there, or a program.
fn unknown(cost: &Cost) -> bool {
    cost.disk == 0.0 && cost.flops == 0.0
}

/// The costs of all steps that are still to be made, and of each.
fn costs(estimates: &[Estimate]) -> String {
    let width = estimates.iter().map(|estimate| estimate.name.len()).max().unwrap_or(0).max("step".len());
    let line = |name: &str, [memory, disk, flops, time, basis]: [&str; 5], note: &str| {
        let line = format!("{name:<width$}  {memory:>9}  {disk:>9}  {flops:>12}  {time:>7}  {basis:<11}  {note}");
        line.trim_end().to_string()
    };
    let mut lines = vec![line("step", ["memory", "disk", "operations", "time", "known by"], "")];
    for Estimate { name, cost, time, .. } in estimates {
        let Some(cost) = cost else {
            lines.push(line(name, ["-"; 5], "cached"));
            continue;
        };
        let (time, basis) = match time {
            Some(time) => (duration(time.seconds), time.basis.to_string()),
            None => ("-".into(), "-".into()),
        };
        let cells = [bytes(cost.memory), bytes(cost.disk), flops(cost.flops)];
        let [memory, disk, flops] = if unknown(cost) { ["?"; 3].map(String::from) } else { cells };
        lines.push(line(name, [&memory, &disk, &flops, &time, &basis], &cost.note));
    }
    let total = total(estimates);
    let (memory, disk) = (bytes(total.memory), bytes(total.disk));
    let time = seconds(estimates).map_or_else(String::new, |seconds| format!(", {}", duration(seconds)));
    let known = if estimates.iter().filter_map(|estimate| estimate.cost.as_ref()).any(unknown) {
        "; the steps marked ? come on top"
    } else {
        ""
    };
    let work = if total.flops > 0.0 { format!(", {}", flops(total.flops)) } else { String::new() };
    format!("to do, roughly: memory {memory}, disk {disk}{work}{time}{known}\n\n{}", lines.join("\n"))
}
