//! A record of every run: what was run, when, with which settings, what came of it, and which artifacts it needs.
//!
//! `<store>/records/DATE-DIGITS.json`, written as a run begins and again as it ends, each time atomically. The lock beside it
//! is held while the run goes on: a record of a run that says it goes on, and does not, is of one that was interrupted.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Kind, Reporter, State, Store, bad_input, unique, utc, write_atomically};

use crate::paths;
use crate::plan::Plan;
use crate::run::Done;
use crate::step::Source;

/// Version of the form.
const FORM: u32 = 1;
/// Characters of an error that are kept.
const ERROR: usize = 2000;

/// A run, as its record has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this form.
    pub form: u32,
    /// Version of wherefrom.
    pub wherefrom: String,
    /// When it began: UTC, as in `2026-11-26T18:37:05Z`.
    pub date: String,
    /// How long it took, or has taken until it failed; 0 while it goes on.
    pub seconds: f64,
    /// The pipeline file: from the folder that has `data/store`, where it lies there, else absolute.
    pub pipeline: String,
    /// Its `--set`.
    pub sets: Vec<String>,
    /// Its `--to`.
    pub to: Option<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it was to make, in order.
    pub steps: Vec<RecordedStep>,
    /// Keys of artifacts that it read and no step of its made.
    pub reads: Vec<String>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Not yet, or it was interrupted.
    Running,
    /// All steps are there.
    Finished,
    /// A step was refused or failed.
    Failed,
}

/// A step of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedStep {
    /// Its name.
    pub name: String,
    /// What it writes.
    pub kind: Kind,
    /// Its key.
    pub key: String,
    /// What the run did about it.
    pub state: Progress,
}

/// What a run did about a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Progress {
    /// It did not come to it.
    Planned,
    /// It was there.
    Cached,
    /// It was made.
    Made,
}

/// A record, and its run.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// The name of its file, without the ending.
    pub id: String,
    /// What it says.
    pub record: Record,
    /// Whether the run goes on.
    pub running: bool,
}

impl Recorded {
    /// `finished`, `failed`, `running` or `interrupted`.
    pub fn outcome(&self) -> &'static str {
        match self.record.outcome {
            Outcome::Finished => "finished",
            Outcome::Failed => "failed",
            Outcome::Running if self.running => "running",
            Outcome::Running => "interrupted",
        }
    }
}

fn folder(store: &Store) -> PathBuf {
    store.root().join("records")
}

/// The records of a store, the last run first.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a record that cannot be read.
pub fn records(store: &Store) -> Result<Vec<Recorded>> {
    let files = fs::read_dir(folder(store)).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|ending| ending == "json")).collect();
    files.sort_unstable();
    files.reverse();
    let mut records = Vec::new();
    for path in files {
        let text = match fs::read(&path) {
            // Removed in the meantime.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            text => text.with_context(|| format!("read {}", path.display()))?,
        };
        let record: Record = serde_json::from_slice(&text).map_err(|error| {
            bad_input(format!("{}: is no record of a run that can be read ({error}); remove it", path.display()))
        })?;
        let id = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let running = record.outcome == Outcome::Running && is_held(&path.with_extension("lock"));
        records.push(Recorded { id, record, running });
    }
    Ok(records)
}

/// Without those that only looked: a run that found everything there, as the run of the pipeline before it had it.
pub fn distinct(records: Vec<Recorded>) -> Vec<Recorded> {
    let keys = |run: &Recorded| run.record.steps.iter().map(|step| step.key.clone()).collect::<Vec<_>>();
    let looked = |(place, run): (usize, &Recorded)| {
        let mut before = records[place + 1..].iter().filter(|other| other.record.pipeline == run.record.pipeline);
        let cached = run.record.steps.iter().all(|step| step.state == Progress::Cached);
        cached
            && run.record.outcome == Outcome::Finished
            && before.next().is_some_and(|before| keys(before) == keys(run))
    };
    let looked: Vec<bool> = records.iter().enumerate().map(looked).collect();
    records.into_iter().zip(looked).filter(|(_, looked)| !looked).map(|(run, _)| run).collect()
}

/// Forgets a run.
pub(crate) fn forget(store: &Store, id: &str) -> Result<()> {
    for ending in ["json", "lock"] {
        match fs::remove_file(folder(store).join(format!("{id}.{ending}"))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove the record {id}"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_held(lock: &Path) -> bool {
    File::open(lock).is_ok_and(|file| file.try_lock_shared().is_err())
}

/// The record of a run that goes on.
pub(crate) struct Recording {
    path: PathBuf,
    /// Held until the run is over.
    _lock: File,
    record: Record,
    start: Instant,
}

impl Recording {
    /// Records what a run will need, before it makes anything; nothing where the store cannot be written, which is said.
    pub(crate) fn begin(plan: &Plan, wanted: &[usize], to: Option<&str>, reporter: &dyn Reporter) -> Option<Self> {
        // The run itself says so where it has something to make.
        let makes = wanted.iter().any(|&index| plan.steps[index].state != State::Cached);
        if makes && plan.store.writable().is_err() {
            return None;
        }
        let begun = Self::written(plan, wanted, to);
        begun.inspect_err(|error| reporter.warn(&format!("no record of this run: {error:#}"))).ok()
    }

    fn written(plan: &Plan, wanted: &[usize], to: Option<&str>) -> Result<Self> {
        plan.store.writable()?;
        let now = SystemTime::now();
        let milliseconds = now.duration_since(SystemTime::UNIX_EPOCH)?.subsec_millis();
        let date = utc(now);
        let stamp = date.trim_end_matches('Z').replace([':', '-'], "");
        let path = folder(&plan.store).join(format!("{stamp}.{milliseconds:03}-{}.json", &unique()[..8]));
        fs::create_dir_all(folder(&plan.store))?;
        let lock = path.with_extension("lock");
        let lock = File::create(&lock).with_context(|| format!("create {}", lock.display()))?;
        lock.lock()?;
        let steps = wanted.iter().map(|&index| &plan.steps[index]);
        let reads = steps
            .clone()
            .flat_map(|step| step.wires.iter().map(|wire| &wire.source).chain(&step.model).chain(&step.adapters));
        let reads = reads.filter_map(|source| match source {
            Source::Artifact { key, .. } => Some(key.clone()),
            _ => None,
        });
        let step = |step: &crate::Step| {
            let key = step.key()?;
            let state = if step.state == State::Cached { Progress::Cached } else { Progress::Planned };
            Some(RecordedStep { name: step.name.clone(), kind: step.kind, key, state })
        };
        let record = Record {
            form: FORM,
            wherefrom: env!("CARGO_PKG_VERSION").into(),
            date,
            seconds: 0.0,
            pipeline: paths::pipeline_name(plan.store.root(), &plan.path),
            sets: plan.sets.iter().map(|set| set.text.clone()).collect(),
            to: to.map(String::from),
            outcome: Outcome::Running,
            error: None,
            steps: steps.clone().filter_map(step).collect(),
            reads: reads.collect(),
        };
        let recording = Self { path, _lock: lock, record, start: Instant::now() };
        // Whoever removes what nobody needs reads the records first, and no run says what it needs in the meantime.
        let _shared = plan.store.housekeeping(false)?;
        recording.write()?;
        Ok(recording)
    }

    fn write(&self) -> Result<()> {
        write_atomically(&self.path, &serde_json::to_vec_pretty(&self.record)?)
    }

    /// A step is there.
    pub(crate) fn done(&mut self, done: &Done) {
        if let Some(step) = self.record.steps.iter_mut().find(|step| step.name == done.name) {
            step.state = if done.cached { Progress::Cached } else { Progress::Made };
        }
    }

    /// The run is over.
    pub(crate) fn end(mut self, outcome: Result<(), &anyhow::Error>, reporter: &dyn Reporter) {
        self.record.seconds = self.start.elapsed().as_secs_f64();
        self.record.outcome = if outcome.is_ok() { Outcome::Finished } else { Outcome::Failed };
        self.record.error = outcome.err().map(|error| format!("{error:#}").chars().take(ERROR).collect());
        if let Err(error) = self.write() {
            reporter.warn(&format!("no record of how this run ended: {error:#}"));
        }
        let _left = fs::remove_file(self.path.with_extension("lock"));
    }
}
