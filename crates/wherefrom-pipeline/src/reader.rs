//! Steps as they are written, to steps with wires, configurations and models; what is wrong is noted, not thrown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use wherefrom_artifact::{Kind, State, Store};
use wherefrom_hub::Hub;
use wherefrom_stage::{ATTRIBUTE, Checkpoint, Configured, File};

use crate::external;
use crate::file::{PipelineFile, StepTable};
use crate::files;
use crate::hub::{self, HubFile};
use crate::problems::{Problems, hint};
use crate::stage::Stage;
use crate::step::{self, ADAPTER, Source, Step, Wire};

/// Where the file names the model of all steps.
const MODEL: &str = "model.path";

/// The role of tokens.
const TOKENS: &str = "tokens";

/// The checkpoint of a step.
struct Checked {
    model: Option<Source>,
    adapters: Vec<Source>,
    attribute: String,
}

/// Resolves steps and notes problems.
pub(crate) struct Reader<'a> {
    pub(crate) file: &'a PipelineFile,
    pub(crate) store: &'a Store,
    pub(crate) problems: Problems,
    /// What is not there, by step.
    pub(crate) missing: Vec<(String, String)>,
    /// Digests of checkpoints, by folder.
    digests: BTreeMap<PathBuf, Option<String>>,
    hub: Hub,
    /// Steps whose checkpoints are being resolved: a cycle ends.
    unfolding: Vec<usize>,
    /// What is read from the hub, by step.
    pub(crate) hub_files: Vec<HubFile>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(file: &'a PipelineFile, store: &'a Store, problems: Problems) -> Self {
        let (missing, digests, hub_files) = (Vec::new(), BTreeMap::new(), Vec::new());
        Self { file, store, problems, missing, digests, hub: Hub::from_env(), unfolding: Vec::new(), hub_files }
    }

    fn names(&self) -> Vec<&str> {
        self.file.steps.iter().map(|step| step.name.as_str()).collect()
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.file.steps.iter().position(|step| step.name == name)
    }

    pub(crate) fn stage(&mut self, table: &StepTable) -> Option<Stage> {
        let known = Stage::names();
        let Some(name) = &table.stage else {
            self.problems
                .other(&table.place(), &format!("the key `stage` is missing; stages are {}", known.join(", ")));
            return None;
        };
        let stage = Stage::from_name(name);
        match (stage, Stage::renamed(name)) {
            (Some(_), _) => {}
            (None, Some(now)) => {
                self.problems.other(&table.place(), &format!("the stage `{name}` is called `{now}` now"));
            }
            (None, None) => self.problems.unknown(&table.place(), "stage", name, &known),
        }
        stage
    }

    /// What a step writes, so far as it can be read; what is wrong with it is noted elsewhere.
    pub(crate) fn writes(&self, step: usize) -> Option<Kind> {
        let table = &self.file.steps[step];
        let (stage, mut knobs) = (Stage::from_name(table.stage.as_deref()?)?, json(&table.knobs));
        knobs.as_object_mut()?.retain(|name, _| !stage.beside().contains(&&**name));
        let configured = step::configure(stage, "", knobs.clone(), &mut Problems::default());
        stage.writes(configured.as_deref(), &knobs)
    }

    pub(crate) fn step(&mut self, table: &StepTable, stage: Stage, kinds: &[Option<Kind>]) -> Option<Step> {
        let place = table.place();
        let mut knobs = json(&table.knobs);
        let mut wires = self.files(table, stage, &mut knobs);
        self.columns(table, &wires, &knobs);
        let modules_per_pass = step::modules_per_pass(stage, &place, &mut knobs, &mut self.problems);
        if let (Some(map), Value::Object(inherited)) = (knobs.as_object_mut(), json(&self.file.inherited)) {
            for (name, value) in inherited.into_iter().filter(|(name, _)| stage.inherits().contains(&name.as_str())) {
                map.entry(name).or_insert(value);
            }
        }
        let version = stage.version().unwrap_or_else(|| self.external(table, &mut knobs, &mut wires));
        let configured = step::configure(stage, &place, knobs.clone(), &mut self.problems);
        // Wires that stand beside `inputs` are told of there, and are not missing as well.
        let roles = stage.inputs(configured.as_deref()).unwrap_or_default();
        let beside = roles.iter().filter(|role| table.knobs.contains_key(role.name));
        let wired: Vec<_> =
            table.inputs.iter().cloned().chain(beside.map(|role| (role.name.into(), String::new()))).collect();
        if table.wired {
            step::check_roles(stage, configured.as_deref(), &place, &wired, &mut self.problems);
        }
        for (role, wire) in &table.inputs {
            wires.extend(self.wire(table, stage, configured.as_deref(), role, wire, kinds));
        }
        let Checked { model, adapters, attribute } = self.model(table, stage, &knobs, kinds);
        if let (true, Some(Source::File { path, .. })) = (stage.reads_generation_config(), &model)
            && let Some(path) = files::generation_config(path)
        {
            let role = File::GenerationConfig.name();
            let source = self.located(table, stage, path, role, "");
            wires.push(Wire { role: role.into(), source, used: true });
        }
        Some(Step {
            name: table.name.clone(),
            stage,
            kind: stage.writes(configured.as_deref(), &knobs)?,
            version,
            configured,
            wires,
            model,
            adapters,
            attribute,
            modules_per_pass,
            recipe: None,
            origin: Default::default(),
            state: State::Missing,
            why: String::new(),
        })
    }

    fn wire(
        &mut self,
        table: &StepTable,
        stage: Stage,
        configured: Option<&dyn Configured>,
        role: &str,
        wire: &str,
        kinds: &[Option<Kind>],
    ) -> Option<Wire> {
        let place = format!("step `{}`: inputs.{role}", table.name);
        let base = self.file.base(&table.key(&format!("inputs.{role}")));
        let known = stage.inputs(configured).unwrap_or_default().into_iter().find(|known| known.name == role);
        let (source, kind) = match (self.index(wire), step::outside(self.store, wire, base)) {
            (Some(index), _) => (Source::Step(index), kinds[index]),
            (None, Some(Ok(source))) => {
                let kind = if let Source::Artifact { kind, .. } = &source { Some(*kind) } else { None };
                (source, kind)
            }
            (None, Some(Err(what))) => {
                self.problems.other(&place, &what);
                return None;
            }
            (None, None) if is_path(wire) => {
                let (path, base) = (base.locate(wire), base.explain(wire));
                self.problems.other(&place, &format!("there is no artifact in {}{base}", path.display()));
                return None;
            }
            (None, None) => {
                let takes = known.map(|known| known.kinds).unwrap_or_default();
                let hint = hint(wire, &self.names());
                let hint =
                    if takes.is_empty() || hint.contains("did you mean") { hint } else { self.makers(takes, kinds) };
                self.problems.other(&place, &format!("no step `{wire}`{hint}"));
                return None;
            }
        };
        if let (Some(known), Some(kind)) = (known, kind)
            && !known.kinds.contains(&kind)
        {
            let takes: Vec<_> = known.kinds.iter().map(|kind| kind.name()).collect();
            self.problems.other(&place, &format!("`{wire}` is {}, the role takes {}", kind.name(), takes.join(" or ")));
        }
        let used = known.is_none_or(|known| known.used);
        Some(Wire { role: role.into(), source, used })
    }

    /// Steps that make one of the kinds, or else the stages that do.
    fn makers(&self, takes: &[Kind], kinds: &[Option<Kind>]) -> String {
        let listed = |names: Vec<&str>| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let fits = |kind: &Option<Kind>| kind.is_some_and(|kind| takes.contains(&kind));
        let steps: Vec<_> =
            self.names().into_iter().zip(kinds).filter(|(_, kind)| fits(kind)).map(|(name, _)| name).collect();
        if !steps.is_empty() {
            return format!("; of those that fit there are {}", listed(steps));
        }
        let stages: Vec<_> =
            Stage::all().filter(|stage| fits(&stage.writes(None, &Value::Null))).map(Stage::name).collect();
        let kinds = takes.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(" or ");
        format!("; no step makes {kinds}: add one with the stage {}", listed(stages))
    }

    /// Where the path that a knob has lies: from the base of its place (`steps.x.corpus`), or what a name of the hub stands
    /// for; none, and noted, if that is not here.
    fn locate(&mut self, table: &StepTable, what: &str, place: &str, text: &str) -> Option<PathBuf> {
        let reference = match hub::reference(what, text) {
            None => return Some(self.file.base(place).locate(text)),
            Some(Ok(reference)) => reference,
            Some(Err(error)) => {
                self.problems.other(&table.place(), &format!("`{what}`: {error}"));
                return None;
            }
        };
        let found = self.hub.find(&reference);
        let path = found.as_ref().ok().map(|found| found.path.clone());
        self.hub_files.push(HubFile { step: table.name.clone(), reference, found });
        path
    }

    /// A file that no step makes, at a path or a name of the hub; noted if it is not there.
    fn file(&mut self, table: &StepTable, stage: Stage, path: &str, what: &str) -> Source {
        self.file_at(table, stage, path, what, &table.key(what))
    }

    /// The same of a path that stands at another place.
    fn file_at(&mut self, table: &StepTable, stage: Stage, path: &str, what: &str, place: &str) -> Source {
        let Some(located) = self.locate(table, what, place, path) else {
            return Source::File { path: path.into(), digest: None };
        };
        self.located(table, stage, located, what, &explained(self.file, place, path))
    }

    /// The same of a path that is known; `base` follows an error about it.
    fn located(&mut self, table: &StepTable, stage: Stage, path: PathBuf, what: &str, base: &str) -> Source {
        let digest = files::digest(self.store, stage, what, &path);
        if let Err(error) = &digest {
            let error = with_base(&format!("{error:#}"), &path, base);
            self.missing.push((table.name.clone(), format!("`{what}`: {error}")));
        }
        Source::File { path, digest: digest.ok() }
    }

    /// Knobs that are paths, taken out of the knobs.
    fn files(&mut self, table: &StepTable, stage: Stage, knobs: &mut Value) -> Vec<Wire> {
        let mut wires = Vec::new();
        // What a stage reads beside a model it needs where it runs one.
        let idle = matches!(stage.checkpoint(), Checkpoint::RunsWhere(..)) && !stage.runs_model(knobs);
        for file in stage.files().iter().copied().filter(|file| file.is_knob()) {
            let name = file.name();
            let given = knobs.as_object_mut().and_then(|map| map.remove(name));
            if idle && given.is_none() && (file.is_tokenizer() || file == File::ChatTemplate) {
                continue;
            }
            let source = match given {
                Some(Value::String(path)) => match self.index(&path).filter(|_| file.is_tokenizer()) {
                    Some(step) if self.writes(step) != Some(Kind::Tokenizer) => {
                        self.problems
                            .other(&table.place(), &format!("`tokenizer`: the step `{path}` makes no tokenizer"));
                        continue;
                    }
                    Some(step) => Source::Step(step),
                    None => self.file(table, stage, &path, name),
                },
                Some(_) => {
                    self.problems.other(&table.place(), &format!("`{name}` is the path of a file"));
                    continue;
                }
                None if file.is_optional() => continue,
                None if file == File::Corpus => match self.corpus(table) {
                    Some((place, path)) => self.file_at(table, stage, &path, name, &place),
                    // Tokens that are not wired are told of there.
                    None if stage.inputs(None).is_some_and(|roles| roles.iter().any(|role| role.name == TOKENS))
                        && !table.inputs.iter().any(|(role, _)| role == TOKENS) =>
                    {
                        continue;
                    }
                    None => {
                        self.problems
                            .other(&table.place(), "the key `corpus` is missing; give a file, a folder or a glob");
                        continue;
                    }
                },
                None if file == File::ChatTemplate => {
                    let Some((place, written, Some(model))) = self.checkpoint(table) else { continue };
                    match files::chat_template(&model) {
                        Ok(Some(path)) => {
                            self.located(table, stage, path, name, &explained(self.file, &place, &written))
                        }
                        Ok(None) => continue,
                        Err(error) => {
                            self.problems.other(&table.place(), &format!("`model`: {error:#}"));
                            continue;
                        }
                    }
                }
                None => match self.tokenizer(table, stage) {
                    Some(source) => source,
                    None => continue,
                },
            };
            wires.push(Wire { role: name.into(), source, used: true });
        }
        wires
    }

    /// The corpus of the tokens that a step is given, and the place that names it.
    fn corpus(&self, table: &StepTable) -> Option<(String, String)> {
        let tokens = |step: &StepTable| {
            let (_, before) = step.inputs.iter().find(|(role, _)| role == TOKENS)?;
            Some(before.clone())
        };
        let mut before = tokens(table)?;
        // As many steps as there are: a cycle ends.
        for _ in &self.file.steps {
            let step = &self.file.steps[self.index(&before)?];
            match step.knobs.get(File::Corpus.name()) {
                Some(corpus) => return Some((step.key(File::Corpus.name()), corpus.as_str()?.to_string())),
                None => before = tokens(step)?,
            }
        }
        None
    }

    /// Whether the corpus has the columns that a step keeps.
    fn columns(&mut self, table: &StepTable, wires: &[Wire], knobs: &Value) {
        let keep: Option<Vec<String>> = knobs.get("keep").cloned().and_then(|keep| serde_json::from_value(keep).ok());
        let corpus = wires.iter().find(|wire| wire.role == File::Corpus.name()).map(|wire| &wire.source);
        if let (Some(keep), Some(Source::File { path, digest: Some(_) })) = (keep, corpus)
            && let Err(error) = wherefrom_tokenize::columns::check(path, &keep)
        {
            self.problems.other(&table.place(), &format!("{error:#}"));
        }
    }

    /// The tokenizer.json beside the model, if there is one, or if the model itself is not there yet.
    fn tokenizer(&mut self, table: &StepTable, stage: Stage) -> Option<Source> {
        let (place, name, model) = self.checkpoint(table)?;
        let Some(model) = model else { return Some(Source::File { path: name.into(), digest: None }) };
        if let Some(what) = files::no_folder(&model, files::KEYS) {
            let base = explained(self.file, &place, &name);
            self.missing.push((table.name.clone(), format!("`model`: {}", with_base(&what, &model, &base))));
            return Some(Source::File { path: name.into(), digest: None });
        }
        let path = model.join("tokenizer.json");
        let base = explained(self.file, &place, &name);
        path.exists().then(|| self.located(table, stage, path, "tokenizer", &base))
    }

    /// The checkpoint whose tokenizer a step takes: the place that names it, its name, and its folder if it is here.
    fn checkpoint(&mut self, table: &StepTable) -> Option<(String, String, Option<PathBuf>)> {
        let own = table.model.as_ref().filter(|name| self.index(name).is_none());
        let place = own.map_or_else(|| MODEL.into(), |_| table.key("model"));
        let name = own.or(self.file.model.as_ref())?.clone();
        let folder = self.locate(table, "model", &place, &name);
        Some((place, name, folder))
    }

    /// The checkpoint of a step: its own with its own adapters, or that of `[model]`.
    fn model(&mut self, table: &StepTable, stage: Stage, knobs: &Value, kinds: &[Option<Kind>]) -> Checked {
        let attribute = self.attribute(table);
        let Some(model) = self.base(table, stage, knobs, kinds) else {
            return Checked { model: None, adapters: Vec::new(), attribute };
        };
        // An adapter that a step trained stands on what that step ran.
        let (model, mut adapters) = self.unfolded(model, kinds);
        let inherited = if table.model.is_none() { self.file.adapted.adapters.clone() } else { None };
        let at = if table.adapted.adapters.is_some() { table.key("adapter") } else { "model.adapter".into() };
        for name in table.adapted.adapters.clone().or(inherited).unwrap_or_default() {
            adapters.extend(self.adapter(table, &at, &name, kinds));
        }
        if adapters.is_empty() && table.adapted.attribute.is_some() {
            self.problems.other(&table.place(), "`attribute` is of a model with adapters: name them as `adapter`");
        }
        let attributes = stage.inherits().contains(&"modules");
        self.modules(&table.place(), &model, &adapters, &attribute, attributes.then_some(knobs));
        Checked { model: Some(model), adapters, attribute }
    }

    fn attribute(&self, table: &StepTable) -> String {
        let said = table.adapted.attribute.clone().or(self.file.adapted.attribute.clone());
        said.unwrap_or_else(|| ATTRIBUTE.into())
    }

    /// A step that writes an adapter, as the base that it ran and the adapters on that, its own the last.
    fn unfolded(&mut self, source: Source, kinds: &[Option<Kind>]) -> (Source, Vec<Source>) {
        let Source::Step(step) = source else { return (source, Vec::new()) };
        if kinds[step] != Some(Kind::Adapter) || self.unfolding.contains(&step) {
            return (source, Vec::new());
        }
        let table = &self.file.steps[step];
        let Some(stage) = table.stage.as_deref().and_then(Stage::from_name) else { return (source, Vec::new()) };
        self.unfolding.push(step);
        let checked = self.model(table, stage, &Value::Null, kinds);
        self.unfolding.pop();
        let Some(model) = checked.model else { return (source, Vec::new()) };
        (model, checked.adapters.into_iter().chain([source]).collect())
    }

    /// An adapter: a step that writes one, a folder, or a name of the hub.
    fn adapter(&mut self, table: &StepTable, at: &str, name: &str, kinds: &[Option<Kind>]) -> Option<Source> {
        if let Some(step) = self.index(name) {
            if let Some(kind) = kinds[step].filter(|kind| *kind != Kind::Adapter) {
                let what = format!("`adapter`: the step `{name}` writes {}, not an adapter", kind.name());
                self.problems.other(&table.place(), &what);
            }
            return Some(Source::Step(step));
        }
        let Some(folder) = self.locate(table, ADAPTER, at, name) else {
            return Some(Source::File { path: name.into(), digest: None });
        };
        let digest = files::adapter_digest(self.store, &folder);
        if let Err(error) = &digest {
            let near = hint(name, &self.names());
            let near = if near.contains("did you mean") { &near } else { "" };
            let error = with_base(&format!("{error:#}"), &folder, &explained(self.file, at, name));
            self.missing.push((table.name.clone(), format!("`adapter`: {error}{near}")));
        }
        Some(Source::File { path: folder, digest: digest.ok() })
    }

    fn base(&mut self, table: &StepTable, stage: Stage, knobs: &Value, kinds: &[Option<Kind>]) -> Option<Source> {
        let place = table.place();
        let external = stage.is_external() && table.model.is_some();
        if !stage.runs_model(knobs) && !external {
            if table.model.is_some() && stage.checkpoint() == Checkpoint::None {
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
            if let Some(kind) = kinds[step].filter(|kind| ![Kind::Model, Kind::Adapter].contains(kind)) {
                self.problems.other(&place, &format!("`model`: the step `{name}` writes {}, not a model", kind.name()));
            }
            return Some(Source::Step(step));
        }
        let at = table.model.as_ref().map_or_else(|| MODEL.into(), |_| table.key("model"));
        let Some(folder) = self.locate(table, "model", &at, name) else {
            return Some(Source::File { path: name.into(), digest: None });
        };
        if let Some(digest) = self.digests.get(&folder) {
            return Some(Source::File { path: folder, digest: digest.clone() });
        }
        let digest = files::model_digest(self.store, &folder);
        if let Err(error) = &digest {
            let near = hint(name, &self.names());
            let near = if table.model.is_some() && near.contains("did you mean") { &near } else { "" };
            let error = with_base(&format!("{error:#}"), &folder, &explained(self.file, &at, name));
            self.missing.push((table.name.clone(), format!("`model`: {error}{near}")));
        } else {
            self.digests.insert(folder.clone(), digest.as_ref().ok().cloned());
        }
        Some(Source::File { path: folder, digest: digest.ok() })
    }

    /// Whether the checkpoint can be read and has the modules that are asked for.
    fn modules(&mut self, place: &str, model: &Source, adapters: &[Source], attribute: &str, knobs: Option<&Value>) {
        let path = |source: &Source| match source {
            Source::File { path, .. } => Some(path.clone()),
            _ => None,
        };
        let Some(folder) = path(model).filter(|folder| folder.join("config.json").exists()) else { return };
        let there = |folder: &PathBuf| folder.join(wherefrom_model::ADAPTER_CONFIG).exists();
        let folders: Option<Vec<_>> = adapters.iter().map(|adapter| path(adapter).filter(there)).collect();
        let known = folders.is_some();
        // Another word is told of where it stands.
        let checkpoint = wherefrom_model::Checkpoint::new(&folder, &folders.unwrap_or_default(), attribute);
        let Ok(checkpoint) = checkpoint else { return };
        let config = match wherefrom_model::Config::of(&checkpoint) {
            Ok(config) => config,
            Err(error) => return self.problems.other(place, &format!("`model`: {error:#}")),
        };
        // The maps of an adapter that is to be trained are known when it is there.
        let Some(knobs) = knobs.filter(|knobs| known && knobs.is_object()) else { return };
        let modules = knobs.get("modules").cloned().map_or_else(|| Ok(Default::default()), serde_json::from_value);
        let modules: Result<wherefrom_model::Modules, _> = modules;
        if let Ok(modules) = modules
            && let Err(error) =
                wherefrom_model::Selection::new(&modules, wherefrom_model::Outline::new(&config).modules())
        {
            let error = format!("{error:#}");
            self.problems.other(place, &format!("`modules`: {}", error.strip_prefix("modules: ").unwrap_or(&error)));
        }
    }

    /// Knobs of an external step: `command`, `writes`, `version`. Files of the command are inputs by content.
    /// In the configuration, and so in the key, they keep their names alone.
    fn external(&mut self, table: &StepTable, knobs: &mut Value, wires: &mut Vec<Wire>) -> u32 {
        let place = &table.place();
        let base = self.file.base(&table.key("command"));
        let words: Option<Vec<String>> = serde_json::from_value(knobs["command"].clone()).ok();
        match words {
            Some(words) if !words.is_empty() => {
                for (index, word) in words.iter().enumerate() {
                    let path = base.locate(word);
                    // A program's bare name is looked for on PATH.
                    if path.is_file() && (index > 0 || is_path(word)) {
                        knobs["command"][index] = path.file_name().unwrap_or_default().to_string_lossy().into();
                        let source = Source::File { digest: self.store.file_digest(&path).ok(), path };
                        wires.push(Wire { role: external::role(index), source, used: true });
                    } else if index == 0 && (is_path(word) || !on_path(word)) {
                        let base = if is_path(word) { base.explain(word) } else { String::new() };
                        let what =
                            format!("`command`: there is no program `{word}`{base}; install it or give its path");
                        self.missing.push((table.name.clone(), what));
                    }
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

/// Whether it leads somewhere, and is no bare name.
fn is_path(word: &str) -> bool {
    Path::new(word).components().count() > 1
}

/// Whether a program of that name can be started.
fn on_path(program: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(program).is_file())
}

/// An error about a path, followed by what that was taken from where it leads nowhere: whoever reads of a file that is there
/// knows where it is. A glob that leads somewhere is known by the error's being of one of its files.
fn with_base(error: &str, path: &Path, base: &str) -> String {
    let nowhere = !path.exists() && error.contains(&*path.to_string_lossy());
    format!("{error}{}", if nowhere { base } else { "" })
}

/// What the path that is written at a place was taken from; nothing of a name of the hub.
fn explained(file: &PipelineFile, place: &str, written: &str) -> String {
    if written.starts_with("hf:") { String::new() } else { file.base(place).explain(written) }
}

pub(crate) fn json(knobs: &toml::Table) -> Value {
    serde_json::to_value(knobs).unwrap_or_else(|_| json!({}))
}
