//! Where the work of a subject lies: its store, its model's folder, and its artifacts by key.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;
use wherefrom_artifact::{Artifact, ArtifactKind, Recipe, State, Store};
use wherefrom_model::Config;
use wherefrom_stage::Device;

use crate::work::{Subject, Work};

/// The root of the repository that the program is run in, wherever it was compiled; the working directory, outside of one.
pub(crate) fn root() -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    root_above(&here).unwrap_or(&here).into()
}

fn root_above(folder: &Path) -> Option<&Path> {
    folder.ancestors().find(|folder| folder.join("crates/wherefrom-bench").is_dir())
}

/// Where everything is written: `target/bench`.
pub(crate) fn folder() -> PathBuf {
    root().join("target/bench")
}

/// A subject's artifacts.
pub(crate) struct Place {
    pub(crate) subject: Subject,
    pub(crate) store: Store,
    /// What the work runs on.
    pub(crate) device: Device,
}

impl Place {
    /// On the CPU, where `just bench` writes.
    pub(crate) fn new(subject: Subject) -> Self {
        Self::at(subject, &folder(), Device::cpu())
    }

    pub(crate) fn at(subject: Subject, folder: &Path, device: Device) -> Self {
        Self { subject, store: Store::new(folder.join("store")), device }
    }

    /// What makes the work's artifact what it is.
    pub(crate) fn recipe(&self, work: Work) -> Recipe {
        let needs = work.needs(self.subject).into_iter();
        let inputs: BTreeMap<_, _> = needs.map(|need| (need.name(), self.recipe(need).key())).collect();
        let config = json!({ "subject": self.subject.name() });
        Recipe { stage: format!("bench-{}", work.name()), version: work.version(), config, inputs, model: None }
    }

    /// Where the work's artifact lies, or would.
    pub(crate) fn artifact(&self, work: Work) -> Result<PathBuf> {
        let kind = work.kind().with_context(|| format!("{} writes no artifact", work.name()))?;
        Ok(self.store.folder(kind, &self.recipe(work).key()))
    }

    pub(crate) fn open<K: ArtifactKind>(&self, work: Work) -> Result<Artifact<K>> {
        Artifact::open(&self.artifact(work)?)
    }

    /// Whether the work's artifact is there.
    pub(crate) fn has(&self, work: Work) -> bool {
        work.kind().is_some_and(|kind| self.store.state(kind, &self.recipe(work).key()) == State::Cached)
    }

    /// The model's folder.
    pub(crate) fn model(&self) -> Result<PathBuf> {
        match self.subject {
            Subject::Quickstart => Ok(root().join("data/models/quickstart")),
            Subject::Smollm2 | Subject::Shape(_) => self.artifact(Work::Weights),
        }
    }

    /// The folder that has SmolLM2's `config.json`, without weights.
    pub(crate) fn shape(&self) -> PathBuf {
        root().join("crates/wherefrom-bench/shapes/smollm2")
    }

    pub(crate) fn config(&self) -> Result<Config> {
        match self.subject {
            Subject::Quickstart => Config::load(&self.model()?),
            Subject::Smollm2 => Config::load(&self.shape()),
            Subject::Shape(shape) => Config::from_json(&shape.config()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_that_of_the_checkout_one_works_in() {
        let other = std::env::temp_dir().join(format!("wherefrom-bench-{}", wherefrom_artifact::unique()));
        let inside = other.join("crates/wherefrom-bench/src");
        std::fs::create_dir_all(&inside).unwrap();
        assert_eq!(root_above(&inside), Some(&*other));
        std::fs::remove_dir_all(&other).unwrap();
    }
}
