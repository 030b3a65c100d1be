//! A step of a plan: its wires, configuration, recipe and state.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use wherefrom_artifact::origin::Origin;
use wherefrom_artifact::{Kind, MANIFEST, Recipe, State, Store, open_any};
use wherefrom_stage::{Configured, MODULES_PER_PASS};

use crate::paths::Base;
use crate::problems::{Problems, nearest};
use crate::schema::means;
use crate::stage::Stage;

/// The role of an adapter.
pub(crate) const ADAPTER: &str = "adapter";

/// Where an input comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Another step, by its place in [`crate::Plan::steps`].
    Step(usize),
    /// A sealed artifact outside the pipeline.
    Artifact {
        /// Its folder.
        folder: PathBuf,
        /// What it holds.
        kind: Kind,
        /// Its key.
        key: String,
    },
    /// A file or a checkpoint folder.
    File {
        /// Where it lies.
        path: PathBuf,
        /// Its digest; none if it is not there.
        digest: Option<String>,
    },
}

/// One wire.
#[derive(Debug, Clone)]
pub struct Wire {
    /// The role.
    pub role: String,
    /// Where it comes from.
    pub source: Source,
    /// Whether the configuration makes use of it; otherwise it is in no key.
    pub used: bool,
}

/// One step, understood.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// What it runs.
    pub stage: Stage,
    /// What it writes.
    pub kind: Kind,
    /// Version of its results.
    pub version: u32,
    /// The stage with its configuration; none where its knobs make none, which is a problem of the plan.
    pub(crate) configured: Option<Arc<dyn Configured>>,
    /// Its inputs, files among them.
    pub wires: Vec<Wire>,
    /// The checkpoint it runs, without adapters.
    pub model: Option<Source>,
    /// The adapters on it, in order.
    pub adapters: Vec<Source>,
    /// What is attributed where there are any.
    pub attribute: String,
    /// Modules summed in one pass over the tokens, where the step says: never part of the key.
    pub modules_per_pass: Option<usize>,
    /// The key's preimage; none while a file is not there.
    pub recipe: Option<Recipe>,
    /// What it goes back to.
    pub origin: Origin,
    /// What the store has.
    pub state: State,
    /// Why it is in that state.
    pub why: String,
}

impl Step {
    /// Its key.
    pub fn key(&self) -> Option<String> {
        self.recipe.as_ref().map(Recipe::key)
    }

    /// Whether it is neither here nor at the remote.
    pub(crate) fn is_to_be_made(&self) -> bool {
        matches!(self.state, State::Missing | State::Partial(..))
    }

    /// Its folder in the store.
    pub fn folder(&self, store: &Store) -> Option<PathBuf> {
        Some(store.folder(self.kind, &self.key()?))
    }

    /// Its checkpoint, where no step makes any of it.
    pub(crate) fn checkpoint(&self) -> Option<wherefrom_model::Checkpoint> {
        let path = |source: &Source| match source {
            Source::File { path, .. } => Some(path.clone()),
            _ => None,
        };
        let adapters = self.adapters.iter().map(path).collect::<Option<Vec<_>>>()?;
        wherefrom_model::Checkpoint::new(&path(self.model.as_ref()?)?, &adapters, &self.attribute).ok()
    }

    /// Its configuration with defaults.
    pub fn config(&self) -> &Value {
        self.configured.as_ref().map_or(&Value::Null, |configured| configured.config())
    }

    /// Whether it runs a checkpoint.
    pub fn runs_model(&self) -> bool {
        self.stage.runs_model(self.config())
    }

    /// Whether it is to be made, and on the device.
    pub(crate) fn wants_device(&self) -> bool {
        self.is_to_be_made() && self.stage.uses_device(self.config())
    }

    /// Role, path and digest of what it reads that no step makes.
    pub(crate) fn files(&self) -> Vec<(String, PathBuf, String)> {
        let wires = self.wires.iter().filter(|wire| wire.used).map(|wire| (&*wire.role, &wire.source));
        let model = self.model.iter().map(|model| ("model", model));
        let adapters = self.adapters.iter().map(|adapter| (ADAPTER, adapter));
        wires
            .chain(model)
            .chain(adapters)
            .filter_map(|(role, source)| match source {
                Source::File { path, digest: Some(digest) } => Some((role.into(), path.clone(), digest.clone())),
                _ => None,
            })
            .collect()
    }

    /// Steps that have to be made before it.
    pub fn needs(&self) -> impl Iterator<Item = usize> {
        let wires = self.wires.iter().filter(|wire| wire.used).map(|wire| &wire.source);
        wires.chain(&self.model).chain(&self.adapters).filter_map(|source| match source {
            Source::Step(step) => Some(*step),
            _ => None,
        })
    }
}

/// The stage with these knobs, unknown ones noted and left out; none if they make no configuration.
pub(crate) fn configure(
    stage: Stage,
    place: &str,
    mut knobs: Value,
    problems: &mut Problems,
) -> Option<Arc<dyn Configured>> {
    if stage.is_external() && stage.writes(None, &knobs).is_none() {
        return None;
    }
    let mut meant: Vec<String> = Vec::new();
    // Each round takes one unknown field out, so that all of them are reported.
    for _ in 0..64 {
        let message = match stage.configure(&knobs) {
            Ok(configured) => {
                if let Err(error) = configured.check() {
                    problems.other(place, &format!("{error:#}"));
                }
                return Some(configured);
            }
            Err(error) => error.to_string(),
        };
        let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
        match quoted.split_first() {
            Some((name, known)) if message.starts_with("unknown field") => {
                let known: Vec<&str> = known
                    .iter()
                    .copied()
                    .chain(stage.beside())
                    .chain(["stage", "inputs", "model", "adapter", "attribute"])
                    .collect();
                // A wire that stands beside `inputs`.
                if stage.inputs(None).is_some_and(|roles| roles.iter().any(|role| role.name == *name)) {
                    problems.other(place, &format!("`{name}` is an input; write inputs = {{ {name} = \"STEP\" }}"));
                } else {
                    problems.unknown(place, "key", name, &known);
                }
                meant.extend(nearest(name, &known).map(String::from));
                if knobs.as_object_mut().is_none_or(|map| map.remove(*name).is_none()) {
                    return None;
                }
            }
            Some((name, _)) if message.starts_with("missing field") => {
                // What is misspelt is not missing.
                if !meant.iter().any(|meant| meant == name) {
                    let means = means(stage, name).map_or_else(String::new, |means| format!(" ({means})"));
                    let such =
                        if *name == "max-tokens" { ": max-tokens = 512, at most the model's context" } else { "" };
                    problems.other(place, &format!("the key `{name}` is missing{means}; give it a value{such}"));
                }
                return None;
            }
            _ => {
                problems.other(place, &culprit(stage, &knobs, &message));
                return None;
            }
        }
    }
    None
}

/// The knob `modules-per-pass`, taken out of the knobs of a stage that has it.
pub(crate) fn modules_per_pass(stage: Stage, place: &str, knobs: &mut Value, problems: &mut Problems) -> Option<usize> {
    let name = stage.several_passes().then_some(MODULES_PER_PASS)?;
    let value = knobs.as_object_mut()?.remove(name)?;
    let number = value.as_u64().and_then(|number| usize::try_from(number).ok()).filter(|&number| number > 0);
    if number.is_none() {
        problems
            .other(place, &format!("`{name} = {value}`: give a whole number, 1 or more; without it, as many as fit"));
    }
    number
}

/// Serde does not say which key a value was for: find the one without which the message is another.
fn culprit(stage: Stage, knobs: &Value, message: &str) -> String {
    for (name, value) in knobs.as_object().into_iter().flatten() {
        let rest = crate::stage::without(knobs, name);
        if stage.configure(&rest).err().is_none_or(|error| error.to_string() != message) {
            let said = plain(message);
            let list = if said.ends_with("give a list") { format!(": {name} = [{value}]") } else { String::new() };
            return format!("`{name} = {value}`: {said}{list}");
        }
    }
    plain(message)
}

/// What serde says of a value, in words for the user.
fn plain(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if let (Some((name, known)), true) = (quoted.split_first(), message.starts_with("unknown variant")) {
        let known: Vec<_> = known.iter().map(|name| format!("`{name}`")).collect();
        return format!("`{name}` is none of {}", known.join(", "));
    }
    let Some((found, expected)) = message
        .strip_prefix("invalid type: ")
        .or(message.strip_prefix("invalid value: "))
        .and_then(|rest| rest.split_once(", expected "))
    else {
        return message.into();
    };
    let expected = match expected {
        "usize" | "u64" | "u32" => "a whole number, 0 or more",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        "a string" => "a text",
        "a sequence" => "a list",
        "a map" => "a table: { key = value }",
        other => other,
    };
    let found = found.replace('`', "");
    let found = match found.split_once(' ') {
        Some(("string", text)) => format!("the text {text}"),
        Some(("integer", number)) => format!("the number {number}"),
        _ => match found.strip_prefix("floating point ") {
            Some(number) => format!("the number {number}"),
            None => found.replace("sequence", "a list").replace("map", "a table"),
        },
    };
    format!("is {found}; give {expected}")
}

/// What a wire that is no step means: `store:KEY`, or a folder with a manifest.
pub(crate) fn outside(store: &Store, wire: &str, base: Base<'_>) -> Option<Result<Source, String>> {
    let open = |folder: PathBuf| match open_any(&folder) {
        Ok(manifest) => Ok(Source::Artifact { folder, kind: manifest.kind, key: manifest.key }),
        Err(error) => Err(format!("{error:#}")),
    };
    if let Some(name) = wire.strip_prefix("store:") {
        return Some(store.resolve(name).map_err(|error| format!("{error:#}")).and_then(open));
    }
    let folder = base.locate(wire);
    folder.join(MANIFEST).exists().then(|| open(folder))
}

/// Missing and superfluous wires of a step.
pub(crate) fn check_roles(
    stage: Stage,
    configured: Option<&dyn Configured>,
    place: &str,
    wired: &[(String, String)],
    problems: &mut Problems,
) {
    let Some(roles) = stage.inputs(configured) else { return };
    let names: Vec<&str> = roles.iter().map(|role| role.name).collect();
    let unknown = || wired.iter().filter(|(name, _)| !names.contains(&name.as_str()));
    for role in &roles {
        let meant = |(name, _): &(String, String)| nearest(name, &names) == Some(role.name);
        if role.required && !wired.iter().any(|(name, _)| name == role.name) && !unknown().any(meant) {
            let kinds: Vec<_> = role.kinds.iter().map(|kind| kind.name()).collect();
            problems.other(
                place,
                &format!("`inputs.{}` is missing: wire a step that writes {}", role.name, kinds.join(" or ")),
            );
        }
    }
    for (name, _) in unknown() {
        problems.unknown(place, "input", name, &names);
    }
}
