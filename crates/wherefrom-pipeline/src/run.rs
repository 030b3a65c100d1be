//! Plan to artifacts, step by step.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};
use serde_json::Value;
use wherefrom_artifact::origin::Origin;
use wherefrom_artifact::{
    Artifact, Draft, Example, Format, Kind, MANIFEST, Manifest, State, Tokens, bad_input, open_any, write_atomically,
};
use wherefrom_stage::{Configured, Device, Exec, File, Given, ModelFiles, Size};

use crate::belong;
use crate::external::COMMAND;
use crate::files::Files;
use crate::paths;
use crate::plan::Plan;
use crate::records::Recording;
use crate::stage::Stage;
use crate::step::{Source, Step};

/// As pinned in Cargo.toml.
const BURN: &str = "0.22.1";

/// A step that is there.
#[derive(Debug)]
pub struct Done {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// What it holds.
    pub kind: Kind,
    /// Whether it was there before.
    pub cached: bool,
    /// How long it took.
    pub seconds: f64,
}

impl Plan {
    /// Makes what is missing, up to step `to`; `each` hears of every step as it is done.
    pub fn run(&self, to: Option<&str>, exec: &Exec, mut each: impl FnMut(&Done) -> Result<()>) -> Result<Vec<Done>> {
        let mut recording = Recording::begin(self, &self.ready(to)?, to, &*exec.reporter);
        let all = self.run_unrecorded(to, exec, |done| {
            recording.iter_mut().for_each(|recording| recording.done(done));
            each(done)
        });
        if let Some(recording) = recording {
            recording.end(all.as_ref().map(drop), &*exec.reporter);
        }
        let all = all?;
        self.write_lock(&all, exec);
        Ok(all)
    }

    /// The device of that name, if any step up to `to` is to be made on it: otherwise none is looked for, and it is the CPU.
    ///
    /// # Errors
    /// As [`crate::device`], and where `to` is no step or lacks something.
    pub fn device(&self, to: Option<&str>, name: &str) -> Result<Device> {
        wherefrom_model::check_device_name(name)?;
        match self.ready(to)?.iter().any(|&index| self.steps[index].wants_device()) {
            true => crate::device(name),
            false => Ok(Device::cpu()),
        }
    }

    /// The same without a lock file.
    pub fn run_unrecorded(
        &self,
        to: Option<&str>,
        exec: &Exec,
        mut each: impl FnMut(&Done) -> Result<()>,
    ) -> Result<Vec<Done>> {
        let wanted = self.ready(to)?;
        // What is all there can be had from a store that cannot be written.
        if wanted.iter().any(|&index| self.steps[index].state != State::Cached) {
            self.store.writable()?;
        }
        if wanted.iter().any(|&index| self.steps[index].wants_device()) {
            wherefrom_model::open_device(exec.device.gpu())?;
        }
        for step in wanted.iter().map(|&index| &self.steps[index]).filter(|step| step.state == State::Remote) {
            self.receive(step, exec)?;
        }
        self.check_models(&wanted, exec)?;
        let mut all = Vec::new();
        let mut checked = false;
        for (place, &index) in wanted.iter().enumerate() {
            let step = &self.steps[index];
            exec.reporter.step(&step.name, place + 1, wanted.len());
            if !checked && !step.stage.reads_corpus() {
                self.check_tokens(&wanted)?;
                checked = true;
            }
            let done = self.make(step, exec).with_context(|| format!("step `{}`", step.name))?;
            each(&done)?;
            all.push(done);
        }
        Ok(all)
    }

    /// Fetches what is at the remote.
    pub(crate) fn receive(&self, step: &Step, exec: &Exec) -> Result<()> {
        let key = step.key().context("a step without a key is nowhere")?;
        let fetched = self.store.receive(step.kind, &key, &*exec.reporter);
        fetched.map(drop).with_context(|| format!("step `{}`", step.name))
    }

    /// Looks at the headers of every checkpoint of a step that is to be made, before the first is; weights are read once,
    /// by the step.
    fn check_models(&self, wanted: &[usize], exec: &Exec) -> Result<()> {
        let mut seen = Vec::new();
        for step in wanted.iter().map(|&index| &self.steps[index]).filter(|step| step.is_to_be_made()) {
            if let (true, Some(checkpoint)) = (step.runs_model(), step.checkpoint())
                && !seen.contains(&checkpoint)
            {
                let notes =
                    wherefrom_model::check(checkpoint.clone()).with_context(|| format!("step `{}`", step.name))?;
                notes.iter().for_each(|note| exec.reporter.warn(note));
                seen.push(checkpoint);
            }
        }
        Ok(())
    }

    /// Tokens that are there by now, against the checkpoints that will read them.
    fn check_tokens(&self, wanted: &[usize]) -> Result<()> {
        for step in wanted.iter().map(|&index| &self.steps[index]) {
            let mut given = self.given(step)?;
            given.inputs.retain(|_, path| path.join(MANIFEST).exists());
            if let (true, Some(Source::File { .. })) = (step.runs_model(), &step.model) {
                check_tokens(&given).with_context(|| format!("step `{}`", step.name))?;
            }
        }
        Ok(())
    }

    fn make(&self, step: &Step, exec: &Exec) -> Result<Done> {
        let recipe = step.recipe.clone().context("a step without a key cannot run")?;
        let configured = &**step.configured.as_ref().context("a step without a configuration cannot run")?;
        let (start, model) = (Instant::now(), recipe.model.clone());
        let given = self.given(step)?;
        let exec = &Exec { modules_per_pass: step.modules_per_pass, ..exec.clone() };
        let (tokens, machine) = (step.kind == Kind::Tokens, crate::this_machine(exec));
        let work = if step.state == State::Missing { self.work(step, &machine) } else { None };
        let files = Files { store: &self.store, stage: step.stage, files: step.files() };
        let (folder, cached) = self.store.produce(step.kind, recipe, &*exec.reporter, |draft| {
            draft.origin(check_inputs(step.stage, configured, &given, model.as_deref())?);
            files.guard(draft, &*exec.reporter, |draft| fill(configured, &given, exec, draft))?;
            let count = |name: &str| draft.count(name).unwrap_or(0) as f64;
            let made = tokens.then(|| Size { tokens: count("tokens"), rows: count("examples") });
            if let Some(work) = work.and_then(|work| work(made)) {
                draft.provenance("work", work)?;
            }
            commits(&self.commits(Some(&step.name)), draft)
        })?;
        Ok(Done { name: step.name.clone(), folder, kind: step.kind, cached, seconds: start.elapsed().as_secs_f64() })
    }

    pub(crate) fn given(&self, step: &Step) -> Result<Given> {
        let folder = std::path::absolute(paths::folder(&self.path).join("."))?;
        let mut given = Given { folder: Some(folder), ..Given::default() };
        for wire in step.wires.iter().filter(|wire| wire.used) {
            let mut path = self.place(&wire.source).context("a wire without a place")?;
            // A tokenizer step's file, where a path was expected.
            if step.stage.file(&wire.role).is_some_and(File::is_tokenizer) && path.is_dir() {
                path.push("tokenizer.json");
            }
            given.inputs.insert(wire.role.clone(), path);
        }
        let place = |source: &Source| self.place(source).context("a model without a place");
        if let Some(model) = &step.model {
            let adapters = step.adapters.iter().map(place).collect::<Result<_>>()?;
            given.model = Some(ModelFiles { folder: place(model)?, adapters, attribute: step.attribute.clone() });
        }
        Ok(given)
    }

    /// `runs/PIPELINE/lock.toml`: step to `kind/key`, name of the hub to commit. A study without one has lost nothing but the record.
    fn write_lock(&self, all: &[Done], exec: &Exec) {
        let write = || -> Result<()> {
            let folder = self.runs_folder();
            std::fs::create_dir_all(&folder)?;
            let key = |done: &Done| done.folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // What an earlier run made and this one had no need of (`--to`) stays.
            let mut table = self.lock();
            table.retain(|name, _| self.steps.iter().any(|step| step.name == *name));
            table.extend(self.commits(None).into_iter().map(|(name, commit)| (name, commit.into())));
            table.extend(
                all.iter().map(|done| (done.name.clone(), format!("{}/{}", done.kind.name(), key(done)).into())),
            );
            write_atomically(&folder.join("lock.toml"), toml::to_string(&table)?.as_bytes())
        };
        if let Err(error) = write() {
            exec.reporter.warn(&format!("no lock file: {error:#}"));
        }
    }
}

/// Refuses inputs that are damaged, that do not belong together, or that the model cannot read. What they agree on.
pub(crate) fn check_inputs(
    stage: Stage,
    configured: &dyn Configured,
    given: &Given,
    model: Option<&str>,
) -> Result<Origin> {
    verify_folders(stage, given)?;
    let origin = belong::of_given(configured, given, model)?;
    if stage.runs_model(configured.config()) {
        check_tokens(given)?;
    }
    Ok(origin)
}

/// Runs the stage, or the program that stands for one, and notes with what.
pub(crate) fn fill(configured: &dyn Configured, given: &Given, exec: &Exec, draft: &mut Draft) -> Result<()> {
    match exec.device.gpu() {
        Some(_) => caught(|| configured.run(given, exec, draft))?,
        None => configured.run(given, exec, draft)?,
    }
    provenance(configured.config(), draft, exec)
}

/// burn panics where a GPU runs out of memory or its driver gives up: an error, to the user.
fn caught(run: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).into())).unwrap_or_default();
        Err(anyhow!(
            "the GPU gave up ({text}); if its memory ran out, attribute fewer `modules`, tokenise to fewer max-tokens, or use \
             --device cpu"
        ))
    })
}

/// Checks the digests of artifacts that are read as files: checkpoints, tokenizers, and all inputs of a foreign program.
fn verify_folders(stage: Stage, given: &Given) -> Result<()> {
    let inputs = given.inputs.iter().filter(|(role, _)| *role != "corpus" && !role.starts_with(COMMAND));
    let inputs = inputs.map(|(_, path)| path.as_path());
    for path in inputs.chain(given.model.iter().flat_map(ModelFiles::folders)) {
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
        let read_as_files = || Ok::<_, anyhow::Error>(open_any(folder)?.kind.format() == Format::Folder);
        if folder.join(MANIFEST).exists() && (stage.is_external() || read_as_files()?) {
            wherefrom_artifact::verify(folder)?;
        }
    }
    Ok(())
}

/// Which commits of the hub the artifact was made from: what went in is in the key by content.
pub(crate) fn commits(commits: &BTreeMap<String, String>, draft: &mut Draft) -> Result<()> {
    if commits.is_empty() { Ok(()) } else { draft.provenance("hub", commits) }
}

/// With what the artifact was made: never part of its key.
fn provenance(config: &Value, draft: &mut Draft, exec: &Exec) -> Result<()> {
    draft.provenance("device", exec.device.to_string())?;
    draft.provenance("dtype", config["precision"].as_str().unwrap_or("f32"))?;
    draft.provenance("burn", BURN)?;
    match wherefrom_model::peak_bytes() {
        Some(bytes) => draft.provenance("peak_bytes", bytes),
        None => Ok(()),
    }
}

/// Refuses tokens that the model has no embedding or no position for.
fn check_tokens(given: &Given) -> Result<()> {
    let Some(model) = &given.model else { return Ok(()) };
    let model = wherefrom_model::Config::load(&model.folder)?;
    for (role, folder) in &given.inputs {
        if Manifest::read(folder).is_ok_and(|manifest| manifest.kind == Kind::Tokens) {
            fits(folder, &model).with_context(|| format!("the input `{role}`"))?;
        }
    }
    Ok(())
}

/// Refuses tokens that the model cannot read.
fn fits(folder: &Path, model: &wherefrom_model::Config) -> Result<()> {
    let [largest, example, longest] = extent(folder)?;
    if largest >= model.vocab_size as u64 {
        return Err(bad_input(format!(
            "token id {largest} in example {example} is outside the model's vocabulary of {}; tokenise with the model's own \
             tokenizer.json",
            model.vocab_size
        )));
    }
    if longest > model.max_position_embeddings as u64 {
        return Err(bad_input(format!(
            "the longest window has {longest} tokens, the model has {} positions; set max-tokens of the tokenize \
             step to that or less",
            model.max_position_embeddings
        )));
    }
    Ok(())
}

/// The largest token id, its example, and the longest segment: from the summary, or counted where a stranger wrote none.
fn extent(folder: &Path) -> Result<[u64; 3]> {
    let tokens = Artifact::<Tokens>::open(folder)?;
    let known = ["largest_id", "largest_id_example", "longest"].map(|name| tokens.manifest().count(name));
    if let [Some(largest), Some(example), Some(longest)] = known {
        return Ok([largest, example, longest]);
    }
    let [mut largest, mut found, mut longest] = [0; 3];
    for row in tokens.rows::<Example>()? {
        let row = row?;
        longest = longest.max(row.longest_segment() as u64);
        if let Some(id) = row.input_ids.iter().map(|&id| u64::from(id)).max().filter(|&id| id > largest) {
            (largest, found) = (id, row.example);
        }
    }
    Ok([largest, found, longest])
}

#[cfg(test)]
mod tests {
    #[test]
    fn burn_is_the_one_in_the_manifest() {
        let pinned = format!("burn = {{ version = \"={}\"", super::BURN);
        assert!(include_str!("../../../Cargo.toml").contains(&pinned));
    }
}
