//! Plan to artifacts, step by step.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result};
use whence_artifact::{Exec, Format, Kind, MANIFEST, Manifest, State, bad_input, open_any, write_atomically};

use crate::external;
use crate::plan::Plan;
use crate::stage::{Given, Stage};
use crate::step::{Source, Step};

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
        let wanted = self.ready(to)?;
        self.store.writable()?;
        if wanted.iter().any(|&index| self.steps[index].stage.runs_model()) {
            whence_model::resolve_device(&exec.device)?;
        }
        self.check_models(&wanted)?;
        let mut all = Vec::new();
        let mut checked = false;
        for &index in &wanted {
            let step = &self.steps[index];
            if !checked && !step.stage.reads_corpus() {
                self.check_tokens(&wanted)?;
                checked = true;
            }
            let done = self.make(step, exec).with_context(|| format!("step `{}`", step.name))?;
            each(&done)?;
            all.push(done);
        }
        self.write_lock(&all, exec);
        Ok(all)
    }

    /// Reads every checkpoint of a step that is to be made, before the first is: a broken one is found by its last byte.
    fn check_models(&self, wanted: &[usize]) -> Result<()> {
        let mut seen = BTreeSet::new();
        for step in wanted.iter().map(|&index| &self.steps[index]).filter(|step| step.state != State::Cached) {
            if let (true, Some(Source::Leaf { path, .. })) = (step.stage.runs_model(), &step.model)
                && seen.insert(path)
            {
                whence_model::check(path).with_context(|| format!("step `{}`", step.name))?;
            }
        }
        Ok(())
    }

    /// Tokens that are there by now, against the checkpoints that will read them.
    fn check_tokens(&self, wanted: &[usize]) -> Result<()> {
        for step in wanted.iter().map(|&index| &self.steps[index]) {
            let mut given = self.given(step)?;
            given.inputs.retain(|_, path| path.join(MANIFEST).exists());
            if let (true, Some(Source::Leaf { .. })) = (step.stage.runs_model(), &step.model) {
                check_tokens(&given).with_context(|| format!("step `{}`", step.name))?;
            }
        }
        Ok(())
    }

    fn make(&self, step: &Step, exec: &Exec) -> Result<Done> {
        let recipe = step.recipe.clone().context("a step without a key cannot run")?;
        let start = Instant::now();
        let given = self.given(step)?;
        let (folder, cached) = self.store.produce(step.kind, recipe, &*exec.reporter, |draft| {
            verify_folders(step.stage, &given)?;
            if step.stage.runs_model() {
                check_tokens(&given)?;
            }
            match step.stage {
                Stage::External => external::run(&step.config, &given, draft),
                stage => stage.run(&step.config, &given, exec, draft),
            }
        })?;
        Ok(Done { name: step.name.clone(), folder, kind: step.kind, cached, seconds: start.elapsed().as_secs_f64() })
    }

    fn given(&self, step: &Step) -> Result<Given> {
        let mut given = Given::default();
        for wire in step.wires.iter().filter(|wire| wire.used) {
            let mut path = self.place(&wire.source).context("a wire without a place")?;
            // A tokenizer step's file, where a path was expected.
            if step.stage.leaves().contains(&wire.role.as_str()) && path.is_dir() {
                path.push("tokenizer.json");
            }
            given.inputs.insert(wire.role.clone(), path);
        }
        given.model =
            step.model.as_ref().map(|model| self.place(model).context("a model without a place")).transpose()?;
        Ok(given)
    }

    /// `data/runs/STUDY/lock.toml`: step to `kind/key`. A study without one has lost nothing but the record.
    fn write_lock(&self, all: &[Done], exec: &Exec) {
        let write = || -> Result<()> {
            let folder = self.runs_folder();
            std::fs::create_dir_all(&folder)?;
            let key = |done: &Done| done.folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let table: toml::Table = all
                .iter()
                .map(|done| (done.name.clone(), format!("{}/{}", done.kind.name(), key(done)).into()))
                .collect();
            write_atomically(&folder.join("lock.toml"), toml::to_string(&table)?.as_bytes())
        };
        if let Err(error) = write() {
            exec.reporter.warn(&format!("no lock file: {error:#}"));
        }
    }
}

/// Checks the digests of artifacts that are read as files: checkpoints, tokenizers, and all inputs of a foreign program.
pub(crate) fn verify_folders(stage: Stage, given: &Given) -> Result<()> {
    let inputs = given.inputs.iter().filter(|(role, _)| *role != "corpus" && !role.starts_with("command."));
    for path in inputs.map(|(_, path)| path).chain(&given.model) {
        let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
        let read_as_files = || Ok::<_, anyhow::Error>(open_any(folder)?.kind.format() == Format::Folder);
        if folder.join(MANIFEST).exists() && (stage == Stage::External || read_as_files()?) {
            whence_artifact::verify(folder)?;
        }
    }
    Ok(())
}

/// Refuses tokens that the model has no embedding or no position for.
pub(crate) fn check_tokens(given: &Given) -> Result<()> {
    let (Some(folder), Some(model)) = (given.inputs.get("tokens"), &given.model) else { return Ok(()) };
    let (tokens, model) = (Manifest::read(folder)?, whence_model::Config::load(model)?);
    let example = tokens.count("largest_id_example").map_or(String::new(), |row| format!(" in example {row}"));
    if let Some(largest) = tokens.count("largest_id").filter(|&id| id >= model.vocab_size as u64) {
        return Err(bad_input(format!(
            "token id {largest}{example} is outside the model's vocabulary of {}; tokenise with the model's own \
             tokenizer.json",
            model.vocab_size
        )));
    }
    if let Some(longest) = tokens.count("longest").filter(|&longest| longest > model.max_position_embeddings as u64) {
        return Err(bad_input(format!(
            "the longest window has {longest} tokens, the model has {} positions; set max-tokens of the tokenize \
             step to that or less",
            model.max_position_embeddings
        )));
    }
    Ok(())
}
