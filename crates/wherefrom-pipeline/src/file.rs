//! The pipeline file as it is written: `[model]`, and steps with wires and knobs.

use std::path::{Path, PathBuf};

use anyhow::Result;
use toml::{Table, Value};
use wherefrom_artifact::bad_input;

use crate::paths::{self, Base};
use crate::problems::{Problems, Setting, hint, nearest};

/// Keys of a pipeline.
const KEYS: [&str; 3] = ["about", "model", "steps"];

/// A parsed pipeline file, settings applied.
#[derive(Debug)]
pub(crate) struct PipelineFile {
    /// The checkpoint folder.
    pub(crate) model: Option<String>,
    /// The adapters on it.
    pub(crate) adapted: Adapted,
    /// Knobs that steps inherit from `[model]`: `modules`, `precision`.
    pub(crate) inherited: Table,
    /// Steps in file order.
    pub(crate) steps: Vec<StepTable>,
    /// The folder of the file.
    folder: PathBuf,
    /// What was given with `--set`: `steps.x.corpus`.
    set: Vec<String>,
}

impl PipelineFile {
    /// What a relative path that stands at `place` (`steps.x.corpus`) is taken from.
    pub(crate) fn base(&self, place: &str) -> Base<'_> {
        let around =
            |set: &String| place.strip_prefix(&**set).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        if self.set.iter().any(around) { Base::Here } else { Base::Pipeline(&self.folder) }
    }
}

/// The adapters that stand beside a model, and which of its maps are attributed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Adapted {
    /// Steps or folders; none where nothing is said.
    pub(crate) adapters: Option<Vec<String>>,
    pub(crate) attribute: Option<String>,
}

impl Adapted {
    /// Takes `adapter` and `attribute` out of a table.
    fn take(table: &mut Table, place: &str, problems: &mut Problems) -> Self {
        let text = |value: Value| if let Value::String(text) = value { Some(text) } else { None };
        let adapters = table.remove("adapter").map(|value| match value {
            Value::Array(items) => items.into_iter().map(text).collect::<Option<Vec<_>>>(),
            value => text(value).map(|text| vec![text]),
        });
        if matches!(adapters, Some(None)) {
            problems.other(
                place,
                "`adapter` is a text, or a list of texts: a folder of PEFT, hf:OWNER/NAME@REVISION or a step",
            );
        }
        let attribute = table.remove("attribute").map(text);
        if matches!(attribute, Some(None)) {
            problems.other(place, "`attribute` is a text");
        }
        let attribute = attribute.flatten();
        if let Some(Err(error)) = attribute.as_deref().map(wherefrom_model::Attribute::named) {
            problems.other(place, &format!("{error:#}"));
        }
        Self { adapters: adapters.flatten(), attribute }
    }
}

/// One `[steps.NAME]`.
#[derive(Debug)]
pub(crate) struct StepTable {
    /// Its name.
    pub(crate) name: String,
    /// What it runs.
    pub(crate) stage: Option<String>,
    /// Role to wire.
    pub(crate) inputs: Vec<(String, String)>,
    /// Whether all of `inputs` could be read; what could not is told of and is not missing as well.
    pub(crate) wired: bool,
    /// A step or a folder.
    pub(crate) model: Option<String>,
    /// The adapters on it.
    pub(crate) adapted: Adapted,
    /// Every other key.
    pub(crate) knobs: Table,
}

impl StepTable {
    /// How messages call it.
    pub(crate) fn place(&self) -> String {
        format!("step `{}`", self.name)
    }

    /// Where a key of it stands in the file: `steps.x.corpus`.
    pub(crate) fn key(&self, key: &str) -> String {
        format!("steps.{}.{key}", self.name)
    }
}

/// Reads the file, applies `sets` (`steps.x.knob=value`), and notes unknown keys and wrong types.
pub(crate) fn read(path: &Path, sets: &[String], problems: &mut Problems) -> Result<PipelineFile> {
    let text = wherefrom_artifact::read_text(path).map_err(|error| unread(path, &error))?;
    let mut table: Table = toml::from_str(&text).map_err(|error| no_toml(path, &error))?;
    for set in sets {
        problems.sets.push(apply(&mut table, set)?);
    }
    let file = path.display().to_string();
    for (key, value) in &table {
        match &key[..] {
            "about" if !value.is_str() => problems.other(&file, "`about` is a text"),
            "about" | "model" | "steps" => {}
            _ => problems.unknown(&file, "key", key, &KEYS),
        }
    }
    // What stands under a misspelt key is what was meant: one slip is not many.
    let slipped: Vec<String> = table.keys().filter(|key| !KEYS.contains(&&key[..])).cloned().collect();
    for key in slipped {
        if let Some(meant @ ("steps" | "model")) = nearest(&key, &KEYS)
            && let Some(Value::Table(more)) = table.remove(&key)
            && let Value::Table(known) = table.entry(meant).or_insert_with(|| Value::Table(Table::new()))
        {
            known.extend(more);
        }
    }
    let (model, adapted, inherited) = model(&table, problems);
    let mut steps = Vec::new();
    match table.get("steps") {
        Some(Value::Table(tables)) => {
            for (name, value) in tables {
                match value {
                    Value::Table(table) => steps.push(step(name, table.clone(), problems)),
                    _ => problems
                        .other(&format!("step `{name}`"), "is not a table; write [steps.NAME] and keys below it"),
                }
            }
        }
        Some(_) => problems.other(&file, "`steps` is not a table; write [steps.NAME] and keys below it"),
        None => problems.other(&file, "there are no steps; write [steps.NAME] with a `stage`"),
    }
    let set = sets.iter().filter_map(|set| Some(set.split_once('=')?.0.trim().into())).collect();
    Ok(PipelineFile { model, adapted, inherited, steps, folder: paths::folder(path).into(), set })
}

fn model(table: &Table, problems: &mut Problems) -> (Option<String>, Adapted, Table) {
    let place = "[model]";
    let model = match table.get("model") {
        None => return Default::default(),
        Some(Value::Table(model)) => model,
        Some(_) => {
            problems.other(place, "is not a table; write [model] and path = \"...\" below it");
            return Default::default();
        }
    };
    let known = ["path", "adapter", "attribute", "modules", "precision"];
    for key in model.keys().filter(|key| !known.contains(&key.as_str())) {
        problems.unknown(place, "key", key, &known);
    }
    if model.get("path").is_some_and(|path| !path.is_str()) {
        problems.other(place, "`path` is a text");
    }
    let mut inherited = model.clone();
    inherited.remove("path");
    let adapted = Adapted::take(&mut inherited, place, problems);
    (model.get("path").and_then(Value::as_str).map(String::from), adapted, inherited)
}

fn step(name: &str, mut knobs: Table, problems: &mut Problems) -> StepTable {
    let place = format!("step `{name}`");
    let mut text = |key: &str, problems: &mut Problems| match knobs.remove(key) {
        Some(Value::String(text)) => Some(text),
        Some(_) => {
            problems.other(&place, &format!("`{key}` is a text"));
            None
        }
        None => None,
    };
    let (stage, model) = (text("stage", problems), text("model", problems));
    let adapted = Adapted::take(&mut knobs, &place, problems);
    let (mut inputs, mut wired) = (Vec::new(), true);
    match knobs.remove("inputs") {
        None => {}
        Some(Value::Table(wires)) => {
            for (role, wire) in wires {
                match wire {
                    Value::String(wire) => inputs.push((role, wire)),
                    _ => {
                        wired = false;
                        problems.other(&place, &format!("`inputs.{role}` is a text: a step, `store:KEY` or a folder"));
                    }
                }
            }
        }
        Some(value) => {
            wired = false;
            let step = value.as_str().unwrap_or("step");
            problems.other(&place, &format!("`inputs` is a table of roles: inputs = {{ role = \"{step}\" }}"));
        }
    }
    StepTable { name: name.into(), stage, inputs, wired, model, adapted, knobs }
}

/// Why a pipeline cannot be read, and which file may have been meant.
fn unread(path: &Path, error: &std::io::Error) -> anyhow::Error {
    let shown = path.display();
    if path.is_dir() {
        let files = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut pipelines: Vec<_> =
            files.filter(|file| file.extension().is_some_and(|ending| ending == "toml")).collect();
        pipelines.sort();
        let named: Vec<_> = pipelines.iter().take(5).map(|file| file.display().to_string()).collect();
        let named = if named.is_empty() { String::new() } else { format!(": {}", named.join(", ")) };
        return bad_input(format!("{shown} is a folder; name the pipeline file{named}"));
    }
    let with = path.with_extension("toml");
    let near = if with != path && with.is_file() {
        format!("did you mean {}?", with.display())
    } else {
        "check the path".into()
    };
    bad_input(format!("cannot read the pipeline {shown} ({error}); {near}"))
}

fn no_toml(path: &Path, error: &toml::de::Error) -> anyhow::Error {
    let (shown, error) = (path.display(), error.to_string());
    let error = error.trim_end();
    if path
        .extension()
        .is_some_and(|ending| ["json", "jsonl", "yaml", "yml", "parquet"].iter().any(|other| ending == *other))
    {
        return bad_input(format!("{shown} is no pipeline; a pipeline is a .toml file with [model] and [steps.NAME]"));
    }
    bad_input(format!("{shown}: not TOML: {error}"))
}

/// Keys of a table of which there can be one.
const ALTERNATIVES: [&str; 2] = ["relative", "absolute"];

/// `steps.x.knob=value`: a TOML value, or a bare word as text.
fn apply(table: &mut Table, set: &str) -> Result<Setting> {
    let wrong = |what: String| bad_input(format!("--set {set}: {what}"));
    let Some((place, value)) = set.split_once('=') else {
        return Err(wrong("write steps.STEP.KNOB=VALUE".into()));
    };
    let (place, value) = (place.trim(), value.trim());
    if value.is_empty() {
        return Err(wrong("the value is missing; write \"\" for an empty text".into()));
    }
    let value = toml::from_str::<Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(value.into()));
    let path: Vec<&str> = place.split('.').collect();
    let Some((last, parents)) = path.split_last() else { return Err(wrong("write steps.STEP.KNOB=VALUE".into())) };
    if parents.is_empty() || path.iter().any(|part| part.is_empty()) {
        return Err(wrong("write steps.STEP.KNOB=VALUE or model.KEY=VALUE".into()));
    }
    if !KEYS.contains(&path[0]) {
        let step = table.get("steps").and_then(Value::as_table).is_some_and(|steps| steps.contains_key(path[0]));
        return Err(wrong(if step {
            format!("write steps.{place}")
        } else {
            format!("unknown key `{}`{}", path[0], hint(path[0], &["model", "steps"]))
        }));
    }
    if path[0] == "steps" && path.len() == 2 {
        return Err(wrong(format!("write steps.{last}.KNOB=VALUE")));
    }
    let mut here = table;
    for (depth, part) in parents.iter().enumerate() {
        if depth == 1 && parents[0] == "steps" && !here.contains_key(*part) {
            let known: Vec<&str> = here.keys().map(String::as_str).collect();
            return Err(bad_input(format!("--set {set}: unknown step `{part}`{}", hint(part, &known))));
        }
        let entry = here.entry(*part).or_insert_with(|| Value::Table(Table::new()));
        if !entry.is_table() {
            *entry = Value::Table(Table::new());
        }
        here = entry.as_table_mut().ok_or_else(|| bad_input(format!("--set {set}: `{part}` is not a table")))?;
    }
    // `damping.relative=0.01` replaces another form of damping.
    if ALTERNATIVES.contains(last) {
        here.retain(|key, _| !ALTERNATIVES.contains(&key));
    }
    here.insert((*last).into(), value);
    let (step, knob) = match path[..] {
        ["steps", step, "inputs", role, ..] => (Some(step), role),
        ["steps", step, knob, ..] => (Some(step), knob),
        _ => (None, path[1]),
    };
    Ok(Setting { text: set.into(), step: step.map(String::from), knob: knob.into() })
}
