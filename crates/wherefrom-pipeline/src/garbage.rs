//! What of a store nobody needs: no pipeline that was named, and none of the last runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::Result;
use wherefrom_artifact::{Error, Kind, Manifest, Store, bad_input, used};

use crate::plan::Plan;
use crate::records::{self, Recorded, records};
use crate::step::Source;

/// Digits of an artifact's key; digests of files have more.
const KEY: usize = 32;

/// Reason an artifact could go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Nothing that is kept leads to it.
    Unneeded,
    /// It was begun, and nothing that is kept would finish it.
    Begun,
    /// This build does not read its version of the format.
    Outdated,
    /// It is not as it was sealed, and nothing that is kept leads to it.
    Damaged,
}

impl Reason {
    /// As it is listed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unneeded => "unneeded",
            Self::Begun => "unfinished",
            Self::Outdated => "old format",
            Self::Damaged => "damaged",
        }
    }
}

/// An artifact, or the beginning of one, that could go.
#[derive(Debug, Clone)]
pub struct Garbage {
    /// What it holds.
    pub kind: Kind,
    /// Its key.
    pub key: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Bytes on disk.
    pub bytes: u64,
    /// Reason.
    pub why: Reason,
}

/// What of a store could go.
#[derive(Debug, Default)]
pub struct Garbages {
    /// In the order of the store.
    pub found: Vec<Garbage>,
    /// How many artifacts are kept, and their bytes.
    pub kept: (usize, u64),
    /// Runs before the last ones, whose records could go.
    pub old_runs: Vec<String>,
}

/// What neither the pipelines lead to nor the last `keep_runs` runs, nor any run that goes on.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] where nothing says what is needed: no pipeline was named and no run recorded, or the
/// keys of a pipeline are not known because a file of it is missing.
pub fn garbage(store: &Store, pipelines: &[Plan], keep_runs: usize) -> Result<Garbages> {
    let records = records(store)?;
    if pipelines.is_empty() && records.is_empty() {
        return Err(bad_input(format!(
            "nothing says what of the store {} is needed: no run is recorded there; name the pipelines to keep",
            store.root().display()
        )));
    }
    let (kept_runs, old): (Vec<(usize, Recorded)>, Vec<_>) =
        records.into_iter().enumerate().partition(|(place, run)| *place < keep_runs || run.running);
    let mut needed = BTreeSet::new();
    for (_, run) in &kept_runs {
        needed.extend(run.record.steps.iter().map(|step| step.key.clone()));
        needed.extend(run.record.reads.iter().cloned());
    }
    for plan in pipelines {
        needed.extend(keys(plan)?);
    }
    let sealed = store.list()?;
    let manifests: BTreeMap<&str, &Manifest> =
        sealed.iter().filter_map(|entry| Some((&entry.key[..], entry.manifest.as_ref().ok()?))).collect();
    // What an artifact was made from is needed to say what it is about.
    let mut pending: Vec<String> = needed.iter().cloned().collect();
    while let Some(key) = pending.pop() {
        let Some(recipe) = manifests.get(&key[..]).map(|manifest| &manifest.recipe) else { continue };
        for input in recipe.inputs.values().chain(&recipe.model).filter(|input| input.len() == KEY) {
            if needed.insert(input.clone()) {
                pending.push(input.clone());
            }
        }
    }
    let mut all = Garbages { old_runs: old.into_iter().map(|(_, run)| run.id).collect(), ..Garbages::default() };
    let mut add = |kind, key: String, folder: PathBuf, why| {
        let bytes = used(&folder);
        if needed.contains(&key) && why != Reason::Outdated {
            all.kept = (all.kept.0 + 1, all.kept.1 + bytes);
        } else {
            all.found.push(Garbage { kind, key, folder, bytes, why });
        }
    };
    for entry in sealed.iter() {
        let why = if entry.manifest.is_ok() { Reason::Unneeded } else { Reason::Damaged };
        add(entry.kind, entry.key.clone(), entry.folder.clone(), why);
    }
    for (kind, key, folder) in store.begun()? {
        add(kind, key, folder, Reason::Begun);
    }
    for (kind, folder) in store.outdated()? {
        let key = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        add(kind, key, folder, Reason::Outdated);
    }
    Ok(all)
}

/// The same, and removes it; `each` hears of every artifact, and whether it is gone: what a process is making stays, and so do
/// links and what has no key for a name.
///
/// # Errors
/// As [`garbage`].
pub fn remove_garbage(
    store: &Store,
    pipelines: &[Plan],
    keep_runs: usize,
    mut each: impl FnMut(&Garbage, bool) -> Result<()>,
) -> Result<Garbages> {
    // A store of which nothing is known is left as it is.
    garbage(store, pipelines, keep_runs)?;
    store.writable()?;
    // From here on no run says anew what it needs, and nobody else removes.
    let _alone = store.housekeeping(true)?;
    let all = garbage(store, pipelines, keep_runs)?;
    for garbage in &all.found {
        let gone = match store.remove_idle(&garbage.folder) {
            // A link, or a folder of the user's own: it is not ours.
            Err(error) if error.is::<Error>() => false,
            gone => gone?,
        };
        each(garbage, gone)?;
    }
    all.old_runs.iter().try_for_each(|id| records::forget(store, id))?;
    Ok(all)
}

/// The keys that a pipeline leads to.
fn keys(plan: &Plan) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    for step in &plan.steps {
        keys.push(step.key().ok_or_else(|| {
            bad_input(format!(
                "{}: what step `{}` needs is not known ({}), and hence not what may go; give what is missing, or leave the \
                 pipeline to the records of its runs",
                plan.path.display(),
                step.name,
                step.why
            ))
        })?);
        for source in step.wires.iter().map(|wire| &wire.source).chain(&step.model).chain(&step.adapters) {
            if let Source::Artifact { key, .. } = source {
                keys.push(key.clone());
            }
        }
    }
    Ok(keys)
}
