//! Pipeline file to plan: every wire resolved, every problem found, every key computed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use wherefrom_artifact::origin::{Origin, Wired, kept};
use wherefrom_artifact::{Kind, Manifest, Recipe, State, Store, bad_input};

use crate::belong;
use crate::file;
use crate::files;
use crate::hub::HubFile;
use crate::paths;
use crate::problems::{Problem, Problems, Setting, hint};
use crate::reader::Reader;
use crate::stage::Stage;
use crate::step::{Source, Step};

/// A pipeline that can be run once its files are there.
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
    /// What is read from the hub, by step.
    pub(crate) hub: Vec<HubFile>,
    /// What the command has set.
    pub(crate) sets: Vec<Setting>,
}

impl Plan {
    /// Reads a pipeline, `sets` (`steps.x.knob=value`) applied. Missing files are no error yet: `run` refuses them.
    ///
    /// # Errors
    /// One [`wherefrom_artifact::Error::Input`] with a line for each problem, unknown keys first.
    pub fn read(path: &Path, sets: &[String], store: Store) -> Result<Self> {
        let mut problems = Problems::default();
        let file = file::read(path, sets, &mut problems)?;
        let mut reader = Reader::new(&file, &store, problems);
        let stages: Vec<Option<Stage>> = file.steps.iter().map(|table| reader.stage(table)).collect();
        let kinds: Vec<Option<Kind>> = (0..file.steps.len()).map(|step| reader.writes(step)).collect();
        let mut steps = Vec::new();
        for (table, stage) in file.steps.iter().zip(&stages) {
            steps.extend(stage.and_then(|stage| reader.step(table, stage, &kinds)));
        }
        let Reader { problems: mut found, missing, hub_files: hub, .. } = reader;
        let order = if steps.len() == file.steps.len() { order(&steps, &mut found) } else { Vec::new() };
        let mut plan = Self { steps: sorted(steps, &order), store, path: path.into(), missing, hub, sets: Vec::new() };
        if found.check(&[]).is_err() {
            let files: Vec<Problem> = plan.lacking().map(|(name, what)| Problem::of_step(name, what)).collect();
            found.check(&files)?;
        }
        plan.check_contexts(&mut found);
        found.check(&[])?;
        plan.sets = found.sets;
        plan.identify()?;
        Ok(plan)
    }

    /// The step of that name.
    pub fn find(&self, name: &str) -> Result<&Step> {
        let names: Vec<&str> = self.steps.iter().map(|step| step.name.as_str()).collect();
        let found = self.steps.iter().find(|step| step.name == name);
        found.ok_or_else(|| bad_input(format!("no step `{name}` in {}{}", self.path.display(), hint(name, &names))))
    }

    /// The command that does something of this plan, as a shell reads it, with the settings of the plan.
    pub fn command(&self, verb: &str, to: Option<&str>) -> String {
        let mut words = vec!["wherefrom".to_string(), verb.into(), self.path.display().to_string()];
        words.extend(to.into_iter().flat_map(|to| ["--to".into(), to.into()]));
        words.extend(self.sets.iter().flat_map(|set| ["--set".into(), set.text.clone()]));
        words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
    }

    /// The pipeline's folder in `runs`, beside the store: see `paths::record`.
    pub fn runs_folder(&self) -> PathBuf {
        paths::record(self.store.root(), &self.path)
    }

    /// The steps that `to` needs, itself last; all without it.
    pub(crate) fn wanted(&self, to: Option<&str>) -> Result<Vec<usize>> {
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
        Ok((0..self.steps.len()).filter(|&index| wanted[index]).collect())
    }

    /// One error of what steps lack, each fault once.
    pub(crate) fn refuse(&self, lacking: &[Problem]) -> Result<()> {
        Problems::of(&self.sets).check(lacking)
    }

    /// Refuses a plan that cannot run: each thing that is not there once, with what to do. What `run` fetches is no such thing,
    /// and neither are the weights of a model whose `config.json` is there: see [`Plan::bare_models`].
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`].
    pub fn complete(&self) -> Result<()> {
        let bare = |name: &str, what: &str| {
            let step = self.steps.iter().find(|step| step.name == name);
            what.starts_with("`model`") && step.is_some_and(|step| self.bare_model(step).is_some())
        };
        let fetched: Vec<_> = self.fetched().collect();
        let lacking = self.lacking().filter(|&(name, what)| !bare(name, what) && !fetched.contains(&(name, what)));
        let mut lacking: Vec<_> = lacking.map(|(name, what)| Problem::of_step(name, what)).collect();
        lacking.extend(self.refused_rows().iter().map(|(name, what)| Problem::of_step(name, what)));
        self.refuse(&lacking)
    }

    /// Folders of models that are planned from their `config.json` alone.
    pub fn bare_models(&self) -> Vec<PathBuf> {
        let mut folders: Vec<_> =
            self.steps.iter().filter_map(|step| self.bare_model(step)).map(Path::to_path_buf).collect();
        folders.sort();
        folders.dedup();
        folders
    }

    /// The folder of the step's model, if it has a `config.json` and no weights.
    fn bare_model<'a>(&self, step: &'a Step) -> Option<&'a Path> {
        let Some(Source::File { path, digest: None }) = &step.model else { return None };
        (path.join("config.json").exists() && !has_weights(path)).then_some(path)
    }

    /// As [`Plan::wanted`]. Refused while files of theirs are missing.
    pub(crate) fn ready(&self, to: Option<&str>) -> Result<Vec<usize>> {
        let wanted = self.wanted(to)?;
        let lacking: Vec<Problem> = (self.lacking())
            .filter(|(name, _)| wanted.iter().any(|&index| &self.steps[index].name == name))
            .map(|(name, what)| Problem::of_step(name, what))
            .collect();
        self.refuse(&lacking)?;
        Ok(wanted)
    }

    /// Key or digest of a source.
    pub(crate) fn identity(&self, source: &Source) -> Option<String> {
        match source {
            Source::Step(step) => self.steps[*step].key(),
            Source::Artifact { key, .. } => Some(key.clone()),
            Source::File { digest, .. } => digest.clone(),
        }
    }

    /// Folder or file of a source.
    pub(crate) fn place(&self, source: &Source) -> Option<PathBuf> {
        match source {
            Source::Step(step) => self.steps[*step].folder(&self.store),
            Source::Artifact { folder, .. } => Some(folder.clone()),
            Source::File { path, .. } => Some(path.clone()),
        }
    }

    /// Folders of the artifacts outside the store that steps read, by key.
    pub fn outside(&self) -> BTreeMap<String, PathBuf> {
        let sources = self.steps.iter().flat_map(|step| step.wires.iter().map(|wire| &wire.source));
        let outside = sources.filter_map(|source| match source {
            Source::Artifact { folder, key, .. } => Some((key.clone(), folder.clone())),
            _ => None,
        });
        outside.collect()
    }

    /// Recipes, states and reasons, in order.
    fn identify(&mut self) -> Result<()> {
        let lock = self.lock();
        for index in 0..self.steps.len() {
            let step = &self.steps[index];
            let inputs: Option<BTreeMap<_, _>> = (step.wires.iter().filter(|wire| wire.used))
                .map(|wire| Some((wire.role.clone(), self.identity(&wire.source)?)))
                .collect();
            let model = step.model.as_ref().map(|model| {
                let adapters: Option<Vec<_>> = step.adapters.iter().map(|adapter| self.identity(adapter)).collect();
                Some(files::with_adapters(self.identity(model)?, &adapters?, &step.attribute))
            });
            let recipe = match (inputs, model) {
                (Some(inputs), None) => Some((inputs, None)),
                (Some(inputs), Some(Some(model))) => Some((inputs, Some(model))),
                _ => None,
            }
            .map(|(inputs, model)| Recipe {
                stage: step.stage.name().into(),
                version: step.version,
                config: step.config().clone(),
                inputs,
                model,
            });
            let state = recipe.as_ref().map(|recipe| self.store.find(step.kind, &recipe.key())).transpose()?;
            let state = state.unwrap_or(State::Missing);
            let origin = recipe.as_ref().map(|recipe| self.origin(step, recipe)).transpose()?.unwrap_or_default();
            let why = self.reason(step, recipe.as_ref(), state, &lock);
            let step = &mut self.steps[index];
            (step.recipe, step.origin, step.state, step.why) = (recipe, origin, state, why);
        }
        Ok(())
    }

    /// What the inputs of a step agree on; those that no step makes say it themselves.
    fn origin(&self, step: &Step, recipe: &Recipe) -> Result<Origin> {
        let mut wired = Vec::new();
        for wire in step.wires.iter().filter(|wire| wire.used) {
            match &wire.source {
                Source::Step(before) => {
                    let before = &self.steps[*before];
                    let (kind, key) = (before.kind, before.key().unwrap_or_default());
                    wired.push(Wired { role: &wire.role, kind, key, origin: before.origin.clone() });
                }
                Source::Artifact { folder, .. } => wired.push(Wired::new(&wire.role, &Manifest::read(folder)?)),
                Source::File { .. } => {}
            }
        }
        let configured = step.configured.as_deref().context("a step without a configuration")?;
        let agreed = belong::origin(configured, &wired, recipe.model.as_deref());
        Ok(kept(step.kind, agreed.with_context(|| format!("step `{}`", step.name))?))
    }

    fn reason(&self, step: &Step, recipe: Option<&Recipe>, state: State, lock: &toml::Table) -> String {
        let Some(recipe) = recipe else {
            if self.bare_model(step).is_some() {
                return "the weights are not there".into();
            }
            if let Some(fetched) = self.fetched().find(|(name, _)| *name == step.name) {
                return fetched.1.into();
            }
            let own = self.lacking().find(|(name, _)| *name == step.name);
            let role = own.and_then(|(_, what)| what.split('`').nth(1));
            return role.map_or_else(|| "waits for what is not there".into(), |role| format!("no {role}: see below"));
        };
        match state {
            State::Cached => return "cached".into(),
            State::Remote => return "at the remote".into(),
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
    pub(crate) fn lock(&self) -> toml::Table {
        let text = std::fs::read_to_string(self.runs_folder().join("lock.toml")).unwrap_or_default();
        toml::from_str(&text).unwrap_or_default()
    }
}

/// A word as a shell reads it.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:@,+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// Whether a folder has a file of weights, of whatever kind, or a list of them.
fn has_weights(folder: &Path) -> bool {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let endings = [".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".gguf"];
    names.into_iter().any(|name| endings.iter().any(|ending| name.to_string_lossy().ends_with(ending)))
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
        for source in
            step.wires.iter_mut().map(|wire| &mut wire.source).chain(&mut step.model).chain(&mut step.adapters)
        {
            if let Source::Step(before) = source {
                *before = places[*before];
            }
        }
    }
    sorted
}
