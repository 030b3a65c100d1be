//! Pipeline file to plan: every wire resolved, every problem found, every key computed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};
use whence_artifact::{Kind, Manifest, Recipe, State, Store, bad_input};

use crate::file::{self, PipelineFile, StepTable};
use crate::leaf;
use crate::problems::{Problems, hint};
use crate::stage::{Need, Stage};
use crate::step::{self, Source, Step, Wire};

/// A pipeline that can be run once its leaves are there.
#[derive(Debug)]
pub struct Plan {
    /// Steps in the order in which they run.
    pub steps: Vec<Step>,
    /// Where artifacts are.
    pub store: Store,
    /// The pipeline file.
    pub path: PathBuf,
    /// What is not there, by step.
    pub(crate) missing: Vec<(String, String)>,
}

impl Plan {
    /// Reads a pipeline, `sets` (`steps.x.knob=value`) applied. Missing leaves are no error yet: `run` refuses them.
    ///
    /// # Errors
    /// One [`whence_artifact::Error::Input`] with a line for each problem, unknown keys first.
    pub fn read(path: &Path, sets: &[String], store: Store) -> Result<Self> {
        let mut problems = Problems::default();
        let file = file::read(path, sets, &mut problems)?;
        let mut reader = Reader { file: &file, store: &store, problems, missing: Vec::new(), digests: BTreeMap::new() };
        let stages: Vec<Option<Stage>> = file.steps.iter().map(|table| reader.stage(table)).collect();
        let kinds: Vec<Option<Kind>> = (file.steps.iter().zip(&stages))
            .map(|(table, stage)| stage.and_then(|stage| stage.writes(&json(&table.knobs))))
            .collect();
        let mut steps = Vec::new();
        for (table, stage) in file.steps.iter().zip(&stages) {
            steps.extend(stage.and_then(|stage| reader.step(table, stage, &kinds)));
        }
        let Reader { problems: mut found, missing, .. } = reader;
        let order = if steps.len() == file.steps.len() { order(&steps, &mut found) } else { Vec::new() };
        let leaves: Vec<String> = missing.iter().map(|(name, what)| format!("step `{name}`: {what}")).collect();
        if found.check(&[]).is_err() {
            found.check(&leaves)?;
        }
        let mut plan = Self { steps: sorted(steps, &order), store, path: path.into(), missing };
        plan.identify()?;
        Ok(plan)
    }

    /// The step of that name.
    pub fn find(&self, name: &str) -> Result<&Step> {
        let names: Vec<&str> = self.steps.iter().map(|step| step.name.as_str()).collect();
        let found = self.steps.iter().find(|step| step.name == name);
        found.ok_or_else(|| bad_input(format!("no step `{name}` in {}{}", self.path.display(), hint(name, &names))))
    }

    /// The study's folder under `data/runs`.
    pub fn runs_folder(&self) -> PathBuf {
        Path::new("data/runs").join(file::stem(&self.path))
    }

    /// The steps that `to` needs, itself last; all without it. Refused while leaves of theirs are missing.
    pub(crate) fn ready(&self, to: Option<&str>) -> Result<Vec<usize>> {
        let mut wanted = vec![to.is_none(); self.steps.len()];
        if let Some(to) = to {
            let last = &self.find(to)?.name;
            for index in (0..self.steps.len()).rev() {
                if &self.steps[index].name == last {
                    wanted[index] = true;
                }
                if wanted[index] {
                    self.steps[index].needs().for_each(|before| wanted[before] = true);
                }
            }
        }
        let wanted: Vec<usize> = (0..self.steps.len()).filter(|&index| wanted[index]).collect();
        let lines: Vec<String> = (self.missing.iter())
            .filter(|(name, _)| wanted.iter().any(|&index| &self.steps[index].name == name))
            .map(|(name, what)| format!("step `{name}`: {what}"))
            .collect();
        Problems::default().check(&lines)?;
        Ok(wanted)
    }

    /// Key or digest of a source.
    pub(crate) fn identity(&self, source: &Source) -> Option<String> {
        match source {
            Source::Step(step) => self.steps[*step].key(),
            Source::Artifact { key, .. } => Some(key.clone()),
            Source::Leaf { digest, .. } => digest.clone(),
        }
    }

    /// Folder or file of a source.
    pub(crate) fn place(&self, source: &Source) -> Option<PathBuf> {
        match source {
            Source::Step(step) => self.steps[*step].folder(&self.store),
            Source::Artifact { folder, .. } => Some(folder.clone()),
            Source::Leaf { path, .. } => Some(path.clone()),
        }
    }

    /// Recipes, states and reasons, in order.
    fn identify(&mut self) -> Result<()> {
        let lock = self.lock();
        for index in 0..self.steps.len() {
            let step = &self.steps[index];
            let inputs: Option<BTreeMap<_, _>> = (step.wires.iter().filter(|wire| wire.used))
                .map(|wire| Some((wire.role.clone(), self.identity(&wire.source)?)))
                .collect();
            let model = step.model.as_ref().map(|model| self.identity(model));
            let recipe = match (inputs, model) {
                (Some(inputs), None) => Some((inputs, None)),
                (Some(inputs), Some(Some(model))) => Some((inputs, Some(model))),
                _ => None,
            }
            .map(|(inputs, model)| Recipe {
                stage: step.stage.name().into(),
                version: step.version,
                config: step.config.clone(),
                inputs,
                model,
            });
            let state = recipe.as_ref().map_or(State::Missing, |recipe| self.store.state(step.kind, &recipe.key()));
            self.check_basis(step)?;
            let why = self.reason(step, recipe.as_ref(), state, &lock);
            let step = &mut self.steps[index];
            (step.recipe, step.state, step.why) = (recipe, state, why);
        }
        Ok(())
    }

    /// Lambda belongs to the basis that it was fitted in: `ekfac` takes its own eigenbasis' one, `diagonal` that of none.
    fn check_basis(&self, step: &Step) -> Result<()> {
        let wire = |role: &str| {
            let mut wires = step.wires.iter().filter(|wire| wire.used && step.stage == Stage::Precondition);
            wires.find(|wire| wire.role == role).map(|wire| &wire.source)
        };
        let recipe = match wire("lambda") {
            Some(Source::Step(lambda)) => self.steps[*lambda].recipe.clone(),
            Some(Source::Artifact { folder, .. }) => Some(Manifest::read(folder)?.recipe),
            _ => None,
        };
        let Some(recipe) = recipe.filter(|recipe| recipe.stage == Stage::Lambda.name()) else { return Ok(()) };
        let own = wire("eigenbasis").and_then(|basis| self.identity(basis));
        if recipe.inputs.get("eigenbasis") == own.as_ref() {
            return Ok(());
        }
        let needs = if own.is_some() { "with the same eigenbasis" } else { "without an eigenbasis" };
        let method = step.config["method"].as_str().unwrap_or_default();
        Err(bad_input(format!(
            "step `{}`: method {method} takes a `lambda` that was fitted {needs}; wire a lambda step {needs}",
            step.name
        )))
    }

    fn reason(&self, step: &Step, recipe: Option<&Recipe>, state: State, lock: &toml::Table) -> String {
        let Some(recipe) = recipe else {
            let own = self.missing.iter().find(|(name, _)| name == &step.name);
            return own.map_or_else(|| "an input of an input is not there".into(), |(_, what)| what.clone());
        };
        match state {
            State::Cached => return "cached".into(),
            State::Partial(..) => return "begun, not finished".into(),
            State::Missing => {}
        }
        let before = lock.get(&step.name).and_then(toml::Value::as_str).and_then(|name| self.store.resolve(name).ok());
        if let Some(before) = before.and_then(|folder| Manifest::read(&folder).ok()) {
            let changed = changes(&before.recipe, recipe);
            if !changed.is_empty() {
                return format!("{} changed", changed.join(", "));
            }
        }
        let unmade = step.wires.iter().find(|wire| match wire.source {
            Source::Step(before) => wire.used && self.steps[before].state != State::Cached,
            _ => false,
        });
        unmade.map_or_else(|| "never made".into(), |wire| format!("input {} is missing", wire.role))
    }

    /// The keys of the last run.
    fn lock(&self) -> toml::Table {
        let text = std::fs::read_to_string(self.runs_folder().join("lock.toml")).unwrap_or_default();
        toml::from_str(&text).unwrap_or_default()
    }
}

/// What differs between two recipes, in the words of a pipeline.
fn changes(before: &Recipe, now: &Recipe) -> Vec<String> {
    let mut changed = Vec::new();
    if (&before.stage, before.version) != (&now.stage, now.version) {
        changed.push("stage version".into());
    }
    for (name, value) in now.config.as_object().into_iter().flatten() {
        if before.config.get(name) != Some(value) {
            changed.push(name.clone());
        }
    }
    for (role, key) in &now.inputs {
        if before.inputs.get(role) != Some(key) {
            changed.push(format!("input {role}"));
        }
    }
    if before.model != now.model {
        changed.push("model".into());
    }
    changed
}

/// Whether a program can be started: a path, or a name on PATH.
fn found(program: &str) -> bool {
    let path = Path::new(program);
    if path.components().count() > 1 {
        return path.is_file();
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(program).is_file())
}

/// Steps with those they need before them, those that read a corpus as early as they can (a bad row must not come to
/// light after hours), otherwise as in the file; cycles are noted.
fn order(steps: &[Step], problems: &mut Problems) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::new();
    // Unused wires order nothing, but a cycle through one is still a mistake worth no hour: it is allowed.
    while let Some(next) = (0..steps.len())
        .filter(|index| !order.contains(index) && steps[*index].needs().all(|before| order.contains(&before)))
        .min_by_key(|&index| !steps[index].stage.reads_corpus())
    {
        order.push(next);
    }
    if let Some(start) = (0..steps.len()).find(|index| !order.contains(index)) {
        let mut walk = vec![start];
        loop {
            let last = walk[walk.len() - 1];
            let Some(next) = steps[last].needs().find(|before| !order.contains(before)) else { break };
            if let Some(first) = walk.iter().position(|seen| *seen == next) {
                let mut names: Vec<&str> = walk[first..].iter().map(|&step| steps[step].name.as_str()).collect();
                names.push(&steps[next].name);
                problems.other(
                    &format!("step `{}`", names[0]),
                    &format!("its inputs form a cycle: {}", names.join(" <- ")),
                );
                break;
            }
            walk.push(next);
        }
    }
    order
}

fn sorted(steps: Vec<Step>, order: &[usize]) -> Vec<Step> {
    let mut places = vec![0; steps.len()];
    order.iter().enumerate().for_each(|(place, &step)| places[step] = place);
    let mut sorted: Vec<Step> = order.iter().map(|&step| steps[step].clone()).collect();
    for step in &mut sorted {
        for source in step.wires.iter_mut().map(|wire| &mut wire.source).chain(&mut step.model) {
            if let Source::Step(before) = source {
                *before = places[*before];
            }
        }
    }
    sorted
}

fn json(knobs: &toml::Table) -> Value {
    serde_json::to_value(knobs).unwrap_or_else(|_| json!({}))
}

/// Resolves steps and notes problems.
struct Reader<'a> {
    file: &'a PipelineFile,
    store: &'a Store,
    problems: Problems,
    missing: Vec<(String, String)>,
    digests: BTreeMap<PathBuf, Option<String>>,
}

impl Reader<'_> {
    fn names(&self) -> Vec<&str> {
        self.file.steps.iter().map(|step| step.name.as_str()).collect()
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.file.steps.iter().position(|step| step.name == name)
    }

    fn stage(&mut self, table: &StepTable) -> Option<Stage> {
        let known = Stage::ALL.map(Stage::name);
        let Some(name) = &table.stage else {
            self.problems
                .other(&table.place(), &format!("the key `stage` is missing; stages are {}", known.join(", ")));
            return None;
        };
        let stage = Stage::from_name(name);
        if stage.is_none() {
            self.problems.unknown(&table.place(), "stage", name, &known);
        }
        stage
    }

    fn step(&mut self, table: &StepTable, stage: Stage, kinds: &[Option<Kind>]) -> Option<Step> {
        let place = table.place();
        let mut knobs = json(&table.knobs);
        let mut wires = self.leaves(table, stage, &mut knobs);
        let default = self.file.modules.as_ref().and_then(|modules| serde_json::to_value(modules).ok());
        if stage.has_modules()
            && let Some(map) = knobs.as_object_mut()
        {
            map.entry("modules").or_insert(default.unwrap_or_else(|| "mlp".into()));
        }
        let version =
            if stage == Stage::External { self.external(&place, &knobs, &mut wires) } else { stage.version() };
        let config = step::configure(stage, &place, knobs.clone(), &mut self.problems);
        step::check_roles(stage, &place, &knobs, &table.inputs, &mut self.problems);
        for (role, wire) in &table.inputs {
            wires.extend(self.wire(table, stage, &knobs, role, wire, kinds));
        }
        let model = self.model(table, stage, &knobs, kinds);
        Some(Step {
            name: table.name.clone(),
            stage,
            kind: stage.writes(&knobs)?,
            version,
            config: config.unwrap_or_default(),
            wires,
            model,
            recipe: None,
            state: State::Missing,
            why: String::new(),
        })
    }

    fn wire(
        &mut self,
        table: &StepTable,
        stage: Stage,
        knobs: &Value,
        role: &str,
        wire: &str,
        kinds: &[Option<Kind>],
    ) -> Option<Wire> {
        let place = format!("step `{}`: inputs.{role}", table.name);
        let (source, kind) = match (self.index(wire), step::outside(self.store, wire)) {
            (Some(index), _) => (Source::Step(index), kinds[index]),
            (None, Some(Ok(source))) => {
                let kind = if let Source::Artifact { kind, .. } = &source { Some(*kind) } else { None };
                (source, kind)
            }
            (None, Some(Err(what))) => {
                self.problems.other(&place, &what);
                return None;
            }
            (None, None) => {
                let known = hint(wire, &self.names());
                self.problems.other(&place, &format!("no step `{wire}`{known}"));
                return None;
            }
        };
        let known = stage.roles(knobs).into_iter().find(|known| known.name == role);
        if let (Some(known), Some(kind)) = (known, kind)
            && !known.kinds.contains(&kind)
        {
            let takes: Vec<_> = known.kinds.iter().map(|kind| kind.name()).collect();
            self.problems.other(&place, &format!("`{wire}` is {}, the role takes {}", kind.name(), takes.join(" or ")));
        }
        let used = known.is_none_or(|known| known.need != Need::Unused);
        Some(Wire { role: role.into(), source, used })
    }

    /// A file that no step makes; noted if it is not there.
    fn leaf(&mut self, table: &StepTable, path: PathBuf, what: &str) -> Source {
        let digest = self.store.leaf(&path);
        if let Err(error) = &digest {
            self.missing.push((table.name.clone(), format!("`{what}`: {error:#}")));
        }
        Source::Leaf { path, digest: digest.ok() }
    }

    /// Knobs that are paths, taken out of the knobs.
    fn leaves(&mut self, table: &StepTable, stage: Stage, knobs: &mut Value) -> Vec<Wire> {
        let mut wires = Vec::new();
        for &name in stage.leaves() {
            let given = knobs.as_object_mut().and_then(|map| map.remove(name));
            let source = match given {
                Some(Value::String(path)) => match self.index(&path).filter(|_| name == "tokenizer") {
                    Some(step) if self.file.steps[step].stage.as_deref() != Some(Stage::Tokenizer.name()) => {
                        self.problems
                            .other(&table.place(), &format!("`tokenizer`: the step `{path}` makes no tokenizer"));
                        continue;
                    }
                    Some(step) => Source::Step(step),
                    None => self.leaf(table, path.into(), name),
                },
                Some(_) => {
                    self.problems.other(&table.place(), &format!("`{name}` is the path of a file"));
                    continue;
                }
                None if name == "corpus" => {
                    self.problems.other(&table.place(), "the key `corpus` is missing; give the path of a corpus file");
                    continue;
                }
                None => match self.tokenizer(table) {
                    Some(path) => self.leaf(table, path, name),
                    None => continue,
                },
            };
            wires.push(Wire { role: name.into(), source, used: true });
        }
        wires
    }

    /// The tokenizer.json beside the model, if there is one, or if the model itself is not there yet.
    fn tokenizer(&self, table: &StepTable) -> Option<PathBuf> {
        let own = table.model.as_ref().filter(|name| self.index(name).is_none());
        let model = leaf::model_folder(own.or(self.file.model.as_ref())?).ok()?;
        let path = model.join("tokenizer.json");
        (path.exists() || !model.is_dir()).then_some(path)
    }

    fn model(&mut self, table: &StepTable, stage: Stage, knobs: &Value, kinds: &[Option<Kind>]) -> Option<Source> {
        let place = table.place();
        let external = stage == Stage::External && table.model.is_some();
        if !stage.runs_model() && !external {
            if table.model.is_some() && stage != Stage::Tokenize {
                self.problems
                    .other(&place, &format!("`model`: the stage {} runs no model; remove the key", stage.name()));
            }
            return None;
        }
        let Some(name) = table.model.as_ref().or(self.file.model.as_ref()) else {
            self.problems
                .other(&place, "there is no model; write [model] with path = \"FOLDER\", or `model` in the step");
            return None;
        };
        if let Some(step) = self.index(name).filter(|_| table.model.is_some()) {
            if let Some(kind) = kinds[step].filter(|kind| *kind != Kind::Model) {
                self.problems.other(&place, &format!("`model`: the step `{name}` writes {}, not a model", kind.name()));
            }
            return Some(Source::Step(step));
        }
        let folder = leaf::model_folder(name).unwrap_or_else(|what| {
            self.missing.push((table.name.clone(), what));
            name.into()
        });
        if name.starts_with("hf:") && !folder.is_dir() {
            return Some(Source::Leaf { path: folder, digest: None });
        }
        self.modules(&place, &folder, knobs);
        if let Some(digest) = self.digests.get(&folder) {
            return Some(Source::Leaf { path: folder, digest: digest.clone() });
        }
        let digest = leaf::model_digest(self.store, &folder);
        if let Err(error) = &digest {
            let near = hint(name, &self.names());
            let near = if table.model.is_some() && near.contains("did you mean") { &near } else { "" };
            self.missing.push((table.name.clone(), format!("`model`: {error:#}{near}")));
        } else {
            self.digests.insert(folder.clone(), digest.as_ref().ok().cloned());
        }
        Some(Source::Leaf { path: folder, digest: digest.ok() })
    }

    /// Whether the checkpoint can be read and has the modules that are asked for.
    fn modules(&mut self, place: &str, folder: &Path, knobs: &Value) {
        if !folder.join("config.json").exists() {
            return;
        }
        let config = match whence_model::Config::load(folder) {
            Ok(config) => config,
            Err(error) => return self.problems.other(place, &format!("`model`: {error:#}")),
        };
        let modules = serde_json::from_value::<whence_model::Modules>(knobs["modules"].clone());
        if let Ok(modules) = modules
            && let Err(error) = whence_model::Selection::new(&modules, &config.modules())
        {
            self.problems.other(place, &format!("`modules`: {error:#}"));
        }
    }

    /// Knobs of an external step: `command`, `writes`, `version`. Files of the command are leaves.
    fn external(&mut self, place: &str, knobs: &Value, wires: &mut Vec<Wire>) -> u32 {
        let words: Option<Vec<String>> = serde_json::from_value(knobs["command"].clone()).ok();
        match words {
            Some(words) if !words.is_empty() => {
                if !found(&words[0]) {
                    self.problems.other(place, &format!("`command`: there is no program `{}`", words[0]));
                }
                for (index, word) in words.iter().enumerate().filter(|(_, word)| Path::new(word).is_file()) {
                    let digest = self.store.leaf(Path::new(word)).ok();
                    let source = Source::Leaf { path: word.into(), digest };
                    wires.push(Wire { role: format!("command.{index}"), source, used: true });
                }
            }
            _ => self
                .problems
                .other(place, "the key `command` is missing; give a list of words: command = [\"python3\", \"a.py\"]"),
        }
        match knobs["writes"].as_str() {
            Some(name) if Kind::from_name(name).is_none() => {
                self.problems.unknown(place, "kind in `writes`", name, &Kind::ALL.map(Kind::name));
            }
            Some(_) => {}
            None => self.problems.other(place, "the key `writes` is missing; name the kind that the command writes"),
        }
        let version = knobs["version"].as_u64().and_then(|version| u32::try_from(version).ok());
        if version.is_none() {
            self.problems
                .other(place, "the key `version` is missing; write version = 1 and raise it when results change");
        }
        version.unwrap_or(1)
    }
}
