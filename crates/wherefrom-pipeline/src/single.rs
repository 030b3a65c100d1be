//! One stage on its own, without a pipeline: `wherefrom stage`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;
use wherefrom_artifact::{MANIFEST, Manifest, Recipe, Store, bad_input};
use wherefrom_stage::{ATTRIBUTE, Exec, File, Given, ModelFiles};

use crate::files::{self, Files};
use crate::hub;
use crate::problems::{Problems, hint};
use crate::run::{check_inputs, commits, fill};
use crate::stage::Stage;
use crate::step::{self, ADAPTER};

/// What a lone stage is given.
#[derive(Debug, Clone)]
pub struct Single {
    /// Its name.
    pub stage: String,
    /// JSON (the configuration, or a request `{kind, version, key, config}`) or TOML.
    pub config: PathBuf,
    /// Role to folder, or to file (or name of the hub) for `corpus`, `tokenizer` and `chat-template`.
    pub inputs: Vec<(String, PathBuf)>,
    /// Where the artifact goes; must not exist, or be empty.
    pub output: PathBuf,
    /// The checkpoint: a folder or a name of the hub.
    pub model: Option<PathBuf>,
    /// The adapters on it, in order: folders or names of the hub.
    pub adapters: Vec<PathBuf>,
    /// What is attributed where there are any; by default they.
    pub attribute: Option<String>,
}

/// Runs it and moves the sealed artifact to `output`.
pub fn run_stage(single: &Single, exec: &Exec) -> Result<PathBuf> {
    let Some(stage) = Stage::from_name(&single.stage) else {
        if let Some(now) = Stage::renamed(&single.stage) {
            return Err(bad_input(format!("the stage `{}` is called `{now}` now", single.stage)));
        }
        return Err(bad_input(format!("no stage `{}`{}", single.stage, hint(&single.stage, &Stage::names()))));
    };
    let place = format!("stage `{}`", stage.name());
    let mut knobs = knobs(&single.config)?;
    let mut problems = Problems::default();
    let modules_per_pass = step::modules_per_pass(stage, &place, &mut knobs, &mut problems);
    let exec = &Exec { modules_per_pass, ..exec.clone() };
    let configured = step::configure(stage, &place, knobs.clone(), &mut problems);
    let wired: Vec<(String, String)> = (single.inputs.iter())
        .filter(|(role, _)| stage.file(role).is_none())
        .map(|(role, path)| (role.clone(), path.display().to_string()))
        .collect();
    step::check_roles(stage, configured.as_deref(), &place, &wired, &mut problems);
    if stage.reads_corpus() && !single.inputs.iter().any(|(role, _)| role == "corpus") {
        problems.other(&place, "give --input corpus=FILE");
    }
    if single.model.is_none() && (!single.adapters.is_empty() || single.attribute.is_some()) {
        problems.other(&place, "--adapter and --attribute say something of a model: give --model DIR");
    }
    if let Some(Err(error)) = single.attribute.as_deref().map(wherefrom_model::Attribute::named) {
        problems.other(&place, &format!("{error:#}"));
    }
    if stage.runs_model(&knobs) && single.model.is_none() {
        problems.other(&place, "it runs a model: give --model DIR");
    }
    let kind = stage.writes(configured.as_deref(), &knobs);
    if kind.is_none() {
        problems.other(&place, "the key `writes` is missing or names no kind");
    }
    problems.check(&[])?;
    let (kind, configured) = (kind.context("a kind")?, configured.context("a configuration")?);

    if std::fs::read_dir(&single.output).is_ok_and(|mut children| children.next().is_some()) {
        return Err(bad_input(format!("{} is not empty; give another --output", single.output.display())));
    }
    let mut beside = single.output.as_os_str().to_owned();
    beside.push(".making");
    let store = Store::new(PathBuf::from(&beside));
    store.writable()?;
    // The folder is taken up by the next attempt, and is one process' at a time.
    let busy = std::fs::File::create(Path::new(&beside).join("busy")).context("mark the working folder as busy")?;
    if busy.try_lock().is_err() {
        return Err(bad_input(format!("another process is writing {}; wait for it", single.output.display())));
    }

    let single = &mut single.clone();
    let mut hub = BTreeMap::new();
    let leaf_inputs = single.inputs.iter_mut().filter(|(role, _)| stage.file(role).is_some());
    let model = single.model.iter_mut().map(|model| ("model", model));
    let adapters = single.adapters.iter_mut().map(|adapter| (ADAPTER, adapter));
    for (role, path) in leaf_inputs.map(|(role, path)| (&**role, path)).chain(model).chain(adapters) {
        let commit;
        (*path, commit) = hub::local(role, path, &*exec.reporter)?;
        hub.extend(commit);
    }

    let attribute = single.attribute.clone().unwrap_or_else(|| ATTRIBUTE.into());
    let files = single.model.clone().map(|folder| ModelFiles { folder, adapters: single.adapters.clone(), attribute });
    let mut given = Given { model: files.clone(), ..Given::default() };
    let roles = configured.inputs().unwrap_or_default();
    let mut inputs = BTreeMap::new();
    let mut read = Vec::new();
    for (role, path) in &single.inputs {
        if roles.iter().any(|known| known.name == role && !known.used) {
            continue;
        }
        let folder = stage.file(role).is_some_and(File::is_tokenizer) && path.is_dir();
        let inside = if folder { path.join("tokenizer.json") } else { path.clone() };
        let identity = if path.join(MANIFEST).exists() || stage.file(role).is_none() {
            Manifest::read(path)?.key
        } else {
            let digest = files::digest(&store, stage, role, &inside)?;
            read.push((role.clone(), inside.clone(), digest.clone()));
            digest
        };
        inputs.insert(role.clone(), identity);
        given.inputs.insert(role.clone(), inside);
    }
    let model = match &files {
        Some(ModelFiles { folder, adapters, attribute }) if stage.runs_model(&knobs) || stage.is_external() => {
            let digest = files::model_digest(&store, folder)?;
            read.push(("model".into(), folder.clone(), digest.clone()));
            let mut digests = Vec::new();
            for adapter in adapters {
                digests.push(files::adapter_digest(&store, adapter)?);
                read.push((ADAPTER.into(), adapter.clone(), digests[digests.len() - 1].clone()));
            }
            Some(files::with_adapters(digest, &digests, attribute))
        }
        _ => None,
    };
    if let (true, Some(folder)) = (stage.reads_generation_config(), &single.model)
        && let Some(path) = files::generation_config(folder)
    {
        let role = File::GenerationConfig.name();
        let digest = files::digest(&store, stage, role, &path)?;
        inputs.insert(role.into(), digest.clone());
        read.push((role.into(), path, digest));
    }
    if let (true, Some(ModelFiles { folder, adapters, attribute })) = (stage.runs_model(&knobs), &files) {
        let checkpoint = wherefrom_model::Checkpoint::new(folder, adapters, attribute)?;
        wherefrom_model::check(checkpoint)?.iter().for_each(|note| exec.reporter.warn(note));
    }
    let origin = check_inputs(stage, &*configured, &given, model.as_deref())?;
    let version = match stage.version() {
        Some(version) => version,
        None => knobs["version"].as_u64().unwrap_or(1).try_into()?,
    };
    let config = configured.config().clone();
    let recipe = Recipe { stage: stage.name().into(), version, config, inputs, model };
    let files_read = Files { store: &store, stage, files: read };
    let (folder, _) = store.produce(kind, recipe, &*exec.reporter, |draft| {
        draft.origin(origin);
        files_read.guard(draft, &*exec.reporter, |draft| fill(&*configured, &given, exec, draft))?;
        commits(&hub, draft)
    })?;
    move_to(&folder, &single.output)?;
    std::fs::remove_dir_all(&beside).context("remove the working folder")?;
    Ok(single.output.clone())
}

fn knobs(path: &Path) -> Result<Value> {
    let shown = path.display();
    let text = wherefrom_artifact::read_text(path)
        .map_err(|error| bad_input(format!("cannot read the configuration {shown} ({error})")))?;
    let refused = |error: String| bad_input(format!("{shown}: {error}"));
    if path.extension().is_some_and(|ending| ending == "toml") {
        let table: toml::Table = toml::from_str(&text).map_err(|error| refused(error.to_string()))?;
        return Ok(serde_json::to_value(table)?);
    }
    let value: Value = serde_json::from_str(&text).map_err(|error| refused(error.to_string()))?;
    let request = ["kind", "version", "key", "config"].iter().all(|key| value.get(key).is_some());
    let value = if request { value["config"].clone() } else { value };
    if value.is_object() { Ok(value) } else { Err(refused("the configuration is not an object".into())) }
}

fn move_to(folder: &Path, output: &Path) -> Result<()> {
    if output.is_dir() {
        std::fs::remove_dir(output).with_context(|| format!("replace the empty folder {}", output.display()))?;
    }
    wherefrom_artifact::rename(folder, output)
}
