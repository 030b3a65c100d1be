//! Names of the Hugging Face hub among the files that a pipeline reads: what a plan has of them, and what a run fetches first.
//!
//! Reading a plan makes no request. `run` fetches what is not in the cache and reads the plan again; from then on the files
//! are files like any others, identified by content.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Result;
use wherefrom_artifact::{Reporter, bad_input};
use wherefrom_hub::{Found, Hub, Reference};

use crate::plan::Plan;
use crate::problems::Problem;
use crate::step::ADAPTER;

/// A name of the hub that a step reads.
#[derive(Debug, Clone)]
pub(crate) struct HubFile {
    /// The step.
    pub(crate) step: String,
    /// The name.
    pub(crate) reference: Reference,
    /// Where it lies, or why it does not.
    pub(crate) found: Result<Found, String>,
}

/// The name that `text` is, if it is one and of what the knob `what` takes: a checkpoint for `model` and `adapter`, else files.
pub(crate) fn reference(what: &str, text: &str) -> Option<Result<Reference, String>> {
    Some(Reference::parse(text)?.and_then(|reference| match (what, reference.is_model()) {
        ("model" | ADAPTER, false) => Err(format!("`{text}` names files; a model is hf:OWNER/NAME@REVISION")),
        ("model" | ADAPTER, true) | (_, false) => Ok(reference),
        _ => Err(format!(
            "`{text}` is a model; files are hf:datasets/OWNER/NAME@REVISION/PATH or hf:OWNER/NAME@REVISION/FILE"
        )),
    }))
}

/// A path, or the place of what a name of the hub stands for, fetched if need be; with name and commit, if it is one.
///
/// # Errors
/// As [`Hub::fetch`].
pub(crate) fn local(what: &str, path: &Path, reporter: &dyn Reporter) -> Result<(PathBuf, Option<(String, String)>)> {
    let Some(reference) = path.to_str().and_then(|text| reference(what, text)) else { return Ok((path.into(), None)) };
    let reference = reference.map_err(bad_input)?;
    let found = Hub::from_env().fetch(&reference, reporter)?;
    Ok((found.path, Some((reference.to_string(), found.commit))))
}

/// The checkpoint folder of a path or a name of the hub, fetched if need be.
///
/// # Errors
/// No such repository or revision, no access, no network, nothing in it to run: each with the remedy.
pub fn model_folder(path: &Path, reporter: &dyn Reporter) -> Result<PathBuf> {
    Ok(local("model", path, reporter)?.0)
}

/// The same of an adapter.
///
/// # Errors
/// As [`model_folder`].
pub fn adapter_folder(path: &Path, reporter: &dyn Reporter) -> Result<PathBuf> {
    Ok(local(ADAPTER, path, reporter)?.0)
}

impl Plan {
    /// Fetches what the steps up to `to` read from the hub and the cache has not; whether there was anything. If so, the
    /// plan has to be read again: only now keys are known.
    ///
    /// # Errors
    /// What else these steps lack, before anything is fetched; then as [`Hub::fetch`].
    pub fn fetch(&self, to: Option<&str>, reporter: &dyn Reporter) -> Result<bool> {
        let wanted: BTreeSet<&str> = self.wanted(to)?.into_iter().map(|index| &*self.steps[index].name).collect();
        let others: Vec<Problem> = (self.missing.iter())
            .filter(|(step, _)| wanted.contains(&**step))
            .map(|(step, what)| Problem::of_step(step, what))
            .collect();
        self.refuse(&others)?;
        let absent: BTreeSet<&Reference> =
            self.absent().filter(|file| wanted.contains(&*file.step)).map(|file| &file.reference).collect();
        let hub = Hub::from_env();
        if hub.is_offline() {
            // `run` says what is not here, all of it.
            return Ok(false);
        }
        for reference in &absent {
            hub.fetch(reference, reporter)?;
        }
        Ok(!absent.is_empty())
    }

    /// Asks the hub for names and sizes of what the cache has not; whether it answered, so that a plan which is read again
    /// knows them. Refusals become warnings: a plan can be made without.
    pub fn ask(&self, reporter: &dyn Reporter) -> bool {
        let hub = Hub::from_env();
        let absent: BTreeSet<&Reference> = self.absent().map(|file| &file.reference).collect();
        let mut answered = false;
        for reference in absent.into_iter().filter(|_| !hub.is_offline()) {
            match hub.ask(reference) {
                Ok(()) => answered = true,
                Err(error) => reporter.warn(&format!("{error:#}")),
            }
        }
        answered
    }

    fn absent(&self) -> impl Iterator<Item = &HubFile> {
        self.hub.iter().filter(|file| file.found.is_err())
    }

    /// What is not here and `run` fetches, by step.
    pub(crate) fn fetched(&self) -> impl Iterator<Item = (&str, &str)> {
        let online = !Hub::from_env().is_offline();
        let absent = self.absent().filter(move |_| online);
        absent.filter_map(|file| Some((&*file.step, &**file.found.as_ref().err()?)))
    }

    /// Name to commit, of what `step` reads from the hub, or all steps.
    pub(crate) fn commits(&self, step: Option<&str>) -> BTreeMap<String, String> {
        let files = self.hub.iter().filter(|file| step.is_none_or(|step| file.step == step));
        files.filter_map(|file| Some((file.reference.to_string(), file.found.as_ref().ok()?.commit.clone()))).collect()
    }

    /// What is not here, by step: files, programs and names of the hub.
    pub(crate) fn lacking(&self) -> impl Iterator<Item = (&str, &str)> {
        let missing = self.missing.iter().map(|(step, what)| (&**step, &**what));
        missing.chain(self.absent().filter_map(|file| Some((&*file.step, &**file.found.as_ref().err()?))))
    }
}
