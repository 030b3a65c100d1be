//! What to change where a step does not fit the machine, or all of them the disk or the patience: tried, not guessed.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use wherefrom_artifact::{Kind, bytes, duration, enough};
use wherefrom_model::{Config, Modules, Outline, Selection};
use wherefrom_stage::{Cost, MODULES_PER_PASS, Machine, Planned};

use crate::cost::Estimate;
use crate::plan::Plan;
use crate::rates::{self, Known, Time, Work};
use crate::step::{Source, Step};

/// Seconds that are worth a word.
const LONG: f64 = 86_400.0;

/// A knob with another value.
struct Change {
    knob: &'static str,
    value: Value,
    /// What it changes of the results.
    means: &'static str,
}

/// A knob's value with which a step fits.
struct Advice {
    knob: &'static str,
    /// Where the knob stands.
    table: String,
    /// Its place among the values of the knob: the later one changes more.
    place: usize,
    /// A line to write, what it needs then, and what it means.
    says: String,
}

impl Advice {
    /// Whether it is of the same knob in the same table, so that only one of the two can be followed.
    fn rivals(&self, other: &Self) -> bool {
        (self.knob, &self.table) == (other.knob, &other.table)
    }
}

/// Steps of which the same is to be said, with the bytes that each needs.
type Concerned = Vec<(usize, f64)>;

impl Plan {
    /// Gives each step that exceeds the machine a warning; steps of which the same is to be said share that of the first. Where a knob
    /// helps several steps by different values, the one that helps all of them is named.
    pub(crate) fn advise(&self, estimates: &mut [Estimate], planned: &[Arc<Planned>], machine: &Machine) {
        let Some(limit) = machine.memory else { return };
        let mut found: Vec<(Option<Advice>, Concerned)> = Vec::new();
        for (index, estimate) in estimates.iter().enumerate() {
            let Some(cost) = estimate.cost.as_ref().filter(|cost| cost.memory > limit as f64) else { continue };
            let advice = self.tried(&self.steps[index], &planned[index], cost, machine);
            let needs = match advice {
                None => least(&self.steps[index], &planned[index], machine),
                Some(_) => cost.memory,
            };
            let same = |other: &Option<Advice>| match (other, &advice) {
                (Some(other), Some(advice)) => other.rivals(advice),
                (None, None) => true,
                _ => false,
            };
            match found.iter_mut().find(|(other, _)| same(other)) {
                Some((other, steps)) => {
                    steps.push((index, needs));
                    if let (Some(other), Some(advice)) = (other, advice)
                        && advice.place > other.place
                    {
                        *other = advice;
                    }
                }
                None => found.push((advice, vec![(index, needs)])),
            }
        }
        for (advice, steps) in found {
            let first = steps[0].0;
            let most = steps.iter().map(|(_, needs)| *needs).fold(0.0, f64::max);
            let says = advice.map_or_else(
                || {
                    format!(
                        "no knob makes that fit; the least that does is --memory {}, where it is there",
                        enough(most)
                    )
                },
                |advice| advice.says,
            );
            let warning = format!("{}: {} may be held here; {says}", self.largest(steps), bytes(limit as f64));
            estimates[first].warnings.push(warning);
        }
    }

    /// The steps by name, in order: all of a few, of many the three that need most.
    fn largest(&self, mut steps: Concerned) -> String {
        let count = steps.len();
        if count > 4 {
            steps.sort_by(|one, other| other.1.total_cmp(&one.1));
            steps.truncate(3);
            steps.sort_by_key(|&(index, _)| index);
        }
        let named = steps.iter().map(|&(index, needs)| format!("`{}` ({})", self.steps[index].name, bytes(needs)));
        let named = named.collect::<Vec<_>>().join(", ");
        match count {
            1 => format!("step {named}"),
            2..=4 => format!("steps {named}"),
            _ => format!("{count} steps, {named} the largest"),
        }
    }

    /// Says where the steps write more than the disk has, or take days: which of them, and the knobs that help.
    pub(crate) fn advise_whole(
        &self,
        estimates: &mut [Estimate],
        planned: &[Arc<Planned>],
        machine: &Machine,
        known: &Known,
    ) {
        let trials = self.trials(estimates, planned, machine, known);
        let now = Whole::of(estimates.iter().filter_map(|estimate| Some((estimate.cost.as_ref()?, estimate.time))));
        if let Some(free) = free(self.store.root()).filter(|&free| now.disk > free) {
            let size = |estimate: &Estimate| estimate.cost.as_ref().map_or(0.0, |cost| cost.disk);
            let shown = |trial: &Trial| format!("{} {} ({})", trial.line, bytes(trial.whole.disk), trial.means);
            let helps = match trials.iter().find(|trial| trial.whole.disk <= free) {
                Some(trial) => shown(trial),
                None => {
                    let mut less: Vec<String> =
                        helpful(&trials, now.disk, |trial| Some(trial.whole.disk)).into_iter().map(shown).collect();
                    less.push("no one of these fits: give a --store on a larger disk".into());
                    less.join("; ")
                }
            };
            let (all, most) = (bytes(now.disk), most(estimates, size, bytes));
            let at = self.store.root().display();
            let warning =
                format!("the steps write {all}, most of it {most}, and {} are free for {at}; {helps}", bytes(free));
            push(estimates, size, warning);
        }
        if let Some(seconds) = now.seconds.filter(|&seconds| seconds > LONG) {
            let size = |estimate: &Estimate| estimate.time.map_or(0.0, |time| time.seconds);
            let shown = |trial: &Trial| {
                format!("{} {} ({})", trial.line, duration(trial.whole.seconds.unwrap_or(0.0)), trial.means)
            };
            let mut helps: Vec<String> =
                helpful(&trials, seconds, |trial| trial.whole.seconds).into_iter().map(shown).collect();
            let fits = |estimate: &&Estimate| {
                self.steps
                    .iter()
                    .any(|step| step.name == estimate.name && [Kind::Covariances, Kind::Lambda].contains(&step.kind))
            };
            if estimates.iter().filter(fits).map(size).sum::<f64>() > 0.1 * seconds {
                helps.extend(self.sampled());
            }
            helps.push("share it among machines: docs/engines.md".into());
            let (all, most) = (duration(seconds), most(estimates, size, duration));
            push(estimates, size, format!("the steps take {all} here, most of it {most}; {}", helps.join("; ")));
        }
    }

    /// Every change of a knob, with what all steps come to then.
    fn trials(&self, estimates: &[Estimate], planned: &[Arc<Planned>], machine: &Machine, known: &Known) -> Vec<Trial> {
        let left: Vec<usize> = (0..self.steps.len()).filter(|&index| estimates[index].cost.is_some()).collect();
        let mut trials: Vec<Trial> = Vec::new();
        for &of in &left {
            for change in changes(&planned[of]) {
                let Some(table) = self.table_of(&self.steps[of], change.knob) else { continue };
                let line = format!("with `{} = {}` in {table}", change.knob, toml(&change.value));
                if trials.iter().any(|trial| trial.line == line) {
                    continue;
                }
                let cost = |index: usize| {
                    let (step, tree) = (&self.steps[index], changed(&planned[index], &change));
                    let cost = step.stage.configure(&tree.config).ok()?.cost(&tree, machine);
                    let work = Work::new(step.stage, &tree, &cost, &rates::machine(&machine.device));
                    let time = work.and_then(|work| known.time(&work));
                    Some((cost, time))
                };
                let costs: Option<Vec<_>> = left.iter().map(|&index| cost(index)).collect();
                let Some(costs) = costs else { continue };
                let whole = Whole::of(costs.iter().map(|(cost, time)| (cost, *time)));
                trials.push(Trial { knob: change.knob, line, means: change.means, whole });
            }
        }
        trials
    }

    /// The lines with which the curvature is fitted on a tenth of the rows.
    fn sampled(&self) -> Option<String> {
        let fits = self.steps.iter().filter(|step| [Kind::Covariances, Kind::Lambda].contains(&step.kind));
        let (mut fitted, mut tokens) = (Vec::new(), None);
        for step in fits {
            let wire = step.wires.iter().find(|wire| wire.role == "tokens")?;
            let Source::Step(of) = wire.source else { return None };
            fitted.push(format!("[steps.{}]", step.name));
            tokens = Some(of);
        }
        let tokens = &self.steps[tokens?].name;
        let table = format!("copy [steps.{tokens}] as [steps.sample] with `every = 10` in it");
        Some(format!(
            "fit the curvature on a sample: {table}, and write `tokens = \"sample\"` in `inputs` of {}",
            fitted.join(" and ")
        ))
    }

    /// The line with which the step fits, the one first that changes least.
    fn tried(&self, step: &Step, planned: &Arc<Planned>, before: &Cost, machine: &Machine) -> Option<Advice> {
        let fits = |cost: &Cost| machine.memory.is_some_and(|limit| cost.memory <= limit as f64);
        if let Some(number) = planned.modules_per_pass {
            let freed = Planned { modules_per_pass: None, ..Planned::clone(planned) };
            let cost = step.configured.as_ref()?.cost(&freed, machine);
            if fits(&cost) {
                let table = format!("[steps.{}]", step.name);
                let line = format!("without `{MODULES_PER_PASS} = {number}` in {table}");
                let says = format!("{line} {}: the result is the same", costs(&cost, before));
                return Some(Advice { knob: MODULES_PER_PASS, table, place: 0, says });
            }
        }
        let all = changes(planned);
        all.iter().enumerate().find_map(|(at, change)| {
            let place = all[..at].iter().filter(|before| before.knob == change.knob).count();
            let tree = changed(planned, change);
            let cost = step.stage.configure(&tree.config).ok()?.cost(&tree, machine);
            let table = self.table_of(step, change.knob)?;
            let line = format!("with `{} = {}` in {table}", change.knob, toml(&change.value));
            let says = format!("{line} {}: {}", costs(&cost, before), change.means);
            fits(&cost).then_some(Advice { knob: change.knob, table, place, says })
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

/// What all steps that are left come to.
struct Whole {
    disk: f64,
    /// None where that of one is not known.
    seconds: Option<f64>,
}

impl Whole {
    fn of<'a>(steps: impl Iterator<Item = (&'a Cost, Option<Time>)> + Clone) -> Self {
        let seconds = steps.clone().map(|(_, time)| Some(time?.seconds)).sum();
        Self { disk: steps.map(|(cost, _)| cost.disk).sum(), seconds }
    }
}

/// A knob with another value, and what all steps come to with it.
struct Trial {
    knob: &'static str,
    line: String,
    means: &'static str,
    whole: Whole,
}

/// Of each knob the first value that helps by most of what any does, if that is a tenth or more of what there is.
fn helpful(trials: &[Trial], now: f64, of: impl Fn(&Trial) -> Option<f64>) -> Vec<&Trial> {
    let mut found = Vec::new();
    for knob in ["store", "precision", "rank", "blocks", "modules"] {
        let mine = || trials.iter().filter(|trial| trial.knob == knob);
        let least = mine().filter_map(&of).fold(f64::INFINITY, f64::min);
        let enough = now - 0.8 * (now - least);
        found.extend(mine().find(|trial| of(trial).is_some_and(|is| is <= enough && is < 0.9 * now)));
    }
    found
}

/// The two steps that are most of it: `scores` (3 days), `lambda` (1.2 days).
fn most(estimates: &[Estimate], size: impl Fn(&Estimate) -> f64, shown: impl Fn(f64) -> String) -> String {
    let mut sorted: Vec<&Estimate> = estimates.iter().collect();
    sorted.sort_by(|one, other| size(other).total_cmp(&size(one)));
    let named = sorted.iter().take(2).map(|estimate| format!("`{}` ({})", estimate.name, shown(size(estimate))));
    named.collect::<Vec<_>>().join(", ")
}

/// Puts a warning to the step that is most of it.
fn push(estimates: &mut [Estimate], size: impl Fn(&Estimate) -> f64, warning: String) {
    if let Some(most) = estimates.iter_mut().max_by(|one, other| size(one).total_cmp(&size(other))) {
        most.warnings.push(warning);
    }
}

/// Bytes that are free for a folder, or for the nearest above it that is there; none where the system does not say.
fn free(folder: &Path) -> Option<f64> {
    let folder = std::path::absolute(folder).ok()?;
    let there = folder.ancestors().find(|folder| folder.is_dir())?;
    #[cfg(unix)]
    return rustix::fs::statvfs(there).ok().map(|disk| disk.f_bavail as f64 * disk.f_frsize as f64);
    #[cfg(not(unix))]
    return None;
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
        // Of those that are attributed: others would answer another question.
        let outline = Outline::new(&config);
        let chosen = knob("modules").and_then(|value| serde_json::from_value(value).ok());
        let chosen = chosen.and_then(|modules: Modules| Selection::new(&modules, outline.modules()).ok());
        let chosen = chosen.as_ref().map_or(&[][..], Selection::modules);
        let first = chosen.iter().filter(|module| module.layer == chosen[0].layer);
        let names = first.filter_map(|module| module.name.rsplit('.').next());
        names.rev().for_each(|name| add("modules", json!([format!("*.{name}")]), fewer));
    }
    changes
}

/// The step and what it goes back to, with that value wherever the knob is.
fn changed(planned: &Arc<Planned>, change: &Change) -> Arc<Planned> {
    let mut changed = Planned::clone(planned);
    // Of several ranks those that are smaller already stay.
    let smaller =
        |value: &Value| change.knob == "rank" && value.as_u64().is_some_and(|rank| change.value.as_u64() > Some(rank));
    if let Some(value) = changed.config.get_mut(change.knob).filter(|value| !smaller(value)) {
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
