//! The verbs about the store: what is in it and whose it is, what could go, and artifacts by the names of their steps.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::json;
use wherefrom_artifact::{Kind, State, Store, bad_input, bytes, used, utc};
use wherefrom_pipeline::{
    Garbage, Plan, Progress, Recorded, distinct, garbage, pipeline_name, pipeline_path, records, remove_garbage,
};

use crate::output::{say, say_json};

/// Characters of a key that a list shows: as many as name an artifact.
const KEY: usize = 12;

/// Artifacts by the names of the steps that make them.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// The pipeline whose steps are meant: STEP as it stands, STEP@N in its Nth last run, @N that run's last ranking, or without
    /// one its last scores.
    #[arg(long, value_name = "FILE")]
    pub(crate) pipeline: Option<PathBuf>,
    /// Change a knob of the pipeline: steps.STEP.KNOB=VALUE.
    #[arg(long, value_name = "KEY=VALUE", requires = "pipeline")]
    pub(crate) set: Vec<String>,
}

/// What a list adds up.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum By {
    /// By kind.
    Kind,
    /// By pipeline: what several need counts for each.
    Pipeline,
}

impl Named {
    /// The folder of the artifact that `name` means: of a step of the pipeline, if one is given, else of the store.
    pub(crate) fn folder(&self, store: &Store, name: &str) -> Result<PathBuf> {
        let Some(pipeline) = &self.pipeline else {
            return store.resolve(name).map_err(|error| hinted(store, name, error));
        };
        match name.rsplit_once('@') {
            Some((step, number)) => in_run(store, pipeline, step, number),
            None => {
                let plan = Plan::read(pipeline, &self.set, store.clone())?;
                crate::commands::made(&plan, name)
            }
        }
    }

    /// The folders of all artifacts that are there: that the pipeline has made, if one is given, else of the store.
    pub(crate) fn all(&self, store: &Store) -> Result<Vec<PathBuf>> {
        let Some(pipeline) = &self.pipeline else {
            return Ok(store.list()?.into_iter().map(|entry| entry.folder).collect());
        };
        let plan = Plan::read(pipeline, &self.set, store.clone())?;
        let made = plan.steps.iter().filter(|step| step.state == State::Cached);
        Ok(made.filter_map(|step| step.folder(store)).collect())
    }

    /// As [`Named::folder`], of what is to be removed, which may be unfinished.
    pub(crate) fn any_folder(&self, store: &Store, name: &str) -> Result<PathBuf> {
        let Some(pipeline) = &self.pipeline else {
            return store.resolve_any(name).map_err(|error| hinted(store, name, error));
        };
        let plan = Plan::read(pipeline, &self.set, store.clone())?;
        let begun = plan.find(name).ok().and_then(|step| step.key());
        let begun = begun.and_then(|key| store.begun().ok()?.into_iter().find(|(_, begun, _)| *begun == key));
        begun.map_or_else(|| self.folder(store, name), |(_, _, folder)| Ok(folder))
    }
}

/// The refusal of a name that is no key, with the pipelines that have a step of that name.
fn hinted(store: &Store, name: &str, error: anyhow::Error) -> anyhow::Error {
    let has = |run: &&Recorded| run.record.steps.iter().any(|recorded| recorded.name == name);
    if name.contains('@') {
        return bad_input(format!("`{name}` is of a run: give its pipeline, --pipeline FILE"));
    }
    let known = records(store).unwrap_or_default();
    match known.iter().find(has) {
        Some(run) => {
            let pipeline = shown(store, &run.record.pipeline);
            bad_input(format!("{error:#}; `{name}` is a step of {pipeline}: add --pipeline {pipeline}"))
        }
        None => error,
    }
}

/// The artifact of a step in the `number`th last run of a pipeline; where no step is named, of the last ranking or else scores.
fn in_run(store: &Store, pipeline: &Path, step: &str, number: &str) -> Result<PathBuf> {
    let name = pipeline_name(store.root(), pipeline);
    let runs: Vec<_> = distinct(records(store)?).into_iter().filter(|run| run.record.pipeline == name).collect();
    let shown = pipeline.display();
    let place = number.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
    let place = place.ok_or_else(|| {
        bad_input(format!("`{step}@{number}`: write STEP@1 for the last run, STEP@2 for the one before, and so on"))
    })?;
    let run = runs.get(place).ok_or_else(|| {
        let known = match runs.len() {
            0 => format!("the store has no record of a run of {shown}"),
            1 => format!("the store has the record of one run of {shown}, {step}@1"),
            count => format!("the store has the records of {count} runs of {shown}, {step}@1 to {step}@{count}"),
        };
        bad_input(format!("`{step}@{number}`: {known}; `wherefrom ls --runs` lists them"))
    })?;
    let last = |kind: Kind| run.record.steps.iter().rev().find(|recorded| recorded.kind == kind);
    let found = match step {
        "" => last(Kind::Ranking).or_else(|| last(Kind::Scores)),
        step => run.record.steps.iter().find(|recorded| recorded.name == step),
    };
    let found = found.ok_or_else(|| {
        let what = if step.is_empty() { "ranking and no scores".into() } else { format!("step `{step}`") };
        bad_input(format!("`{step}@{number}`: that run of {shown} has no {what}"))
    })?;
    let folder = store.folder(found.kind, &found.key);
    if !folder.is_dir() {
        let (name, which) = (&found.name, format!("`{step}@{number}`"));
        let before =
            if place + 1 < runs.len() { format!("; the run before it is {step}@{}", place + 2) } else { String::new() };
        return Err(bad_input(match found.state {
            Progress::Planned => format!(
                "{which}: that run of {shown} ({}, {}) has not made step `{name}`{before}; `wherefrom run {shown}` makes it",
                run.record.date,
                run.outcome()
            ),
            Progress::Cached | Progress::Made => {
                format!("{which}: the artifact of step `{name}` is not in the store any more")
            }
        }));
    }
    Ok(folder)
}

/// The pipeline of a record, from here.
fn shown(store: &Store, name: &str) -> String {
    pipeline_path(store.root(), name).display().to_string()
}

/// The name by which records have the pipeline, of which there is one at least.
fn known(store: &Store, pipeline: &Path) -> Result<String> {
    let name = pipeline_name(store.root(), pipeline);
    if records(store)?.iter().any(|run| run.record.pipeline == name) {
        return Ok(name);
    }
    let (pipeline, store) = (pipeline.display(), store.root().display());
    Err(bad_input(format!(
        "no run of {pipeline} is recorded in the store {store}; `wherefrom ls --runs` lists those that are"
    )))
}

/// Whose an artifact is: pipelines and steps by key, those of the last runs first.
struct Users(BTreeMap<String, Vec<(String, String)>>);

impl Users {
    fn of(store: &Store) -> Result<Self> {
        let mut users: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
        for run in records(store)? {
            for step in run.record.steps {
                let (known, user) =
                    (users.entry(step.key).or_default(), (shown(store, &run.record.pipeline), step.name));
                if !known.contains(&user) {
                    known.push(user);
                }
            }
        }
        Ok(Self(users))
    }

    fn get(&self, key: &str) -> &[(String, String)] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// Step and pipeline of the last run that had it, and how many others have it.
    fn cells(&self, key: &str) -> (String, String) {
        match self.get(key) {
            [] => ("-".into(), "-".into()),
            [(pipeline, step)] => (step.clone(), pipeline.clone()),
            [(pipeline, step), others @ ..] => (step.clone(), format!("{pipeline} and {} more", others.len())),
        }
    }
}

/// One line of the list.
struct Line {
    kind: Kind,
    key: String,
    folder: PathBuf,
    /// `sealed`, `unfinished`, or what is wrong.
    state: String,
    rows: Option<u64>,
    bytes: u64,
    date: String,
}

fn lines(store: &Store) -> Result<Vec<Line>> {
    // The manifest is what was written last.
    let date = |folder: &Path| {
        let written = folder.join(wherefrom_artifact::MANIFEST).metadata().or_else(|_| folder.metadata());
        utc(written.and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH))
    };
    let sealed = store.list()?.into_iter().map(|entry| Line {
        state: entry.manifest.as_ref().err().map_or("sealed".into(), |error| format!("{error:#}")),
        rows: entry.manifest.as_ref().ok().map(|manifest| manifest.rows()),
        bytes: used(&entry.folder),
        date: date(&entry.folder),
        kind: entry.kind,
        key: entry.key,
        folder: entry.folder,
    });
    let begun = store.begun()?.into_iter().map(|(kind, key, folder)| Line {
        state: "unfinished".into(),
        rows: None,
        bytes: used(&folder),
        date: date(&folder),
        kind,
        key,
        folder,
    });
    Ok(sealed.chain(begun).collect())
}

/// What is in the store, whose, since when and how large.
pub(crate) fn list(store: &Store, by: Option<By>, pipeline: Option<&Path>, as_json: bool) -> Result<()> {
    let users = Users::of(store)?;
    let mut lines = lines(store)?;
    if let Some(pipeline) = pipeline {
        let name = known(store, pipeline)?;
        let name = shown(store, &name);
        lines.retain(|line| users.get(&line.key).iter().any(|(pipeline, _)| *pipeline == name));
    }
    let total: u64 = lines.iter().map(|line| line.bytes).sum();
    if as_json {
        let artifacts: Vec<_> = lines
            .iter()
            .map(|line| {
                let users = users.get(&line.key).iter();
                let users: Vec<_> =
                    users.map(|(pipeline, step)| json!({ "pipeline": pipeline, "step": step })).collect();
                json!({
                    "kind": line.kind.name(), "key": line.key, "folder": line.folder.display().to_string(),
                    "state": line.state, "rows": line.rows, "bytes": line.bytes, "date": line.date, "used_by": users,
                })
            })
            .collect();
        let all = json!({ "store": store.root().display().to_string(), "bytes": total, "artifacts": artifacts });
        return say_json(&all);
    }
    if let Some(by) = by {
        let mut sums: BTreeMap<String, (usize, u64)> = BTreeMap::new();
        for line in &lines {
            let mut names: BTreeSet<String> = match by {
                By::Kind => BTreeSet::from([line.kind.name().into()]),
                By::Pipeline => users.get(&line.key).iter().map(|(pipeline, _)| pipeline.clone()).collect(),
            };
            if names.is_empty() {
                names.insert("(no recorded run)".into());
            }
            for name in names {
                let sum = sums.entry(name).or_default();
                *sum = (sum.0 + 1, sum.1 + line.bytes);
            }
        }
        let width = sums.keys().map(|name| name.chars().count()).max().unwrap_or(0).max("total".len());
        for (name, (count, sum)) in &sums {
            say(&format!("{name:<width$}  {count:>6}  {:>9}", bytes(*sum as f64)))?;
        }
        return say(&format!("{:<width$}  {:>6}  {:>9}", "total", lines.len(), bytes(total as f64)));
    }
    let cells: Vec<_> = lines.iter().map(|line| users.cells(&line.key)).collect();
    let width = cells.iter().map(|(step, _)| step.chars().count()).max().unwrap_or(0).max(1);
    for (line, (step, pipeline)) in lines.iter().zip(&cells) {
        let Line { kind, key, date, .. } = line;
        let state = if line.state == "sealed" { String::new() } else { format!("  {}", line.state) };
        let (kind, size) = (kind.name(), bytes(line.bytes as f64));
        let key = &key[..key.len().min(KEY)];
        say(&format!("{kind:<14}  {key}  {step:<width$}  {date}  {size:>9}  {pipeline}{state}"))?;
    }
    let count = if lines.len() == 1 { "1 artifact".into() } else { format!("{} artifacts", lines.len()) };
    let old = store.outdated()?;
    let old_bytes: u64 = old.iter().map(|(_, folder)| used(folder)).sum();
    let beside = match (old.len(), pipeline) {
        (0, _) | (_, Some(_)) => String::new(),
        (many, None) => {
            format!(
                "; {many} more in formats of other versions, {}, are not listed: see `wherefrom gc`",
                bytes(old_bytes as f64)
            )
        }
    };
    say(&format!("total: {count}, {} in {}{beside}", bytes(total as f64), store.root().display()))
}

/// The runs that the store has records of, the last first; `@N` as artifacts are named by it.
pub(crate) fn runs(store: &Store, pipeline: Option<&Path>, as_json: bool) -> Result<()> {
    let mut all = distinct(records(store)?);
    if let Some(pipeline) = pipeline {
        let name = known(store, pipeline)?;
        all.retain(|run| run.record.pipeline == name);
    }
    if as_json {
        let all: Vec<_> =
            all.iter().map(|run| json!({ "id": run.id, "outcome": run.outcome(), "record": run.record })).collect();
        return say_json(&json!({ "runs": all }));
    }
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    for run in &all {
        let record = &run.record;
        let number = numbers.entry(&record.pipeline).or_default();
        *number += 1;
        let made = record.steps.iter().filter(|step| step.state == wherefrom_pipeline::Progress::Made).count();
        let words: Vec<_> = record.to.iter().map(|to| format!(" --to {to}")).collect();
        let sets: Vec<_> = record.sets.iter().map(|set| format!(" --set {set}")).collect();
        let (pipeline, outcome) = (shown(store, &record.pipeline), run.outcome());
        let (date, steps) = (&record.date, record.steps.len());
        // Of a run that goes on or was interrupted nobody wrote down how long it took.
        let seconds = match record.outcome {
            wherefrom_pipeline::Outcome::Running => "-".into(),
            _ => format!("{:.1} s", record.seconds),
        };
        say(&format!(
            "{pipeline}@{number}  {date}  {outcome:<11}  {seconds:>10}  {made} of {steps} steps made{}{}",
            words.concat(),
            sets.concat()
        ))?;
    }
    if all.is_empty() { say("no run is recorded") } else { Ok(()) }
}

/// What of the store nobody needs; removed with `yes`.
pub(crate) fn collect(store: &Store, pipelines: &[PathBuf], keep_runs: usize, yes: bool) -> Result<()> {
    let plans: Vec<Plan> =
        pipelines.iter().map(|pipeline| Plan::read(pipeline, &[], store.clone())).collect::<Result<_>>()?;
    let users = Users::of(store)?;
    let line = |garbage: &Garbage, what: &str| {
        let Garbage { kind, key, bytes: size, why, .. } = garbage;
        let (step, pipeline) = users.cells(key);
        let (kind, size) = (kind.name(), bytes(*size as f64));
        let key = &key[..key.len().min(KEY)];
        say(&format!("{what}{kind:<14}  {key:<KEY$}  {:<10}  {size:>9}  {step}  {pipeline}", why.name()))
    };
    let mut gone = (0, 0);
    let all = if yes {
        remove_garbage(store, &plans, keep_runs, |garbage, removed| {
            if removed {
                gone = (gone.0 + 1, gone.1 + garbage.bytes);
            }
            line(garbage, if removed { "removed  " } else { "left     " })
        })?
    } else {
        let all = garbage(store, &plans, keep_runs)?;
        for garbage in &all.found {
            gone = (gone.0 + 1, gone.1 + garbage.bytes);
            line(garbage, "")?;
        }
        all
    };
    let (verb, remedy) = if yes { ("removed", "") } else { ("could go", "; add --yes to remove what is listed") };
    let runs = all.old_runs.len();
    let runs = if runs > 0 {
        format!(", and the records of runs before the last {keep_runs} ({runs})")
    } else {
        String::new()
    };
    say(&format!(
        "{} artifacts, {} {verb}{runs}; {} artifacts, {} are kept{remedy}",
        gone.0,
        bytes(gone.1 as f64),
        all.kept.0,
        bytes(all.kept.1 as f64)
    ))
}
