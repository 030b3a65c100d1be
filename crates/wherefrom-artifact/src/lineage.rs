//! What an artifact was made from: the inputs of its recipe, found by key.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::artifact::Artifact;
use crate::kinds::{Kind, Tokens};
use crate::manifest::Manifest;
use crate::store::Store;

/// Where artifacts are found: the store, and folders beside it.
#[derive(Debug, Clone, Copy)]
pub struct Lineage<'a> {
    store: &'a Store,
    outside: &'a BTreeMap<String, PathBuf>,
}

impl<'a> Lineage<'a> {
    /// `outside` are artifacts that are not in the store, by key.
    pub fn new(store: &'a Store, outside: &'a BTreeMap<String, PathBuf>) -> Self {
        Self { store, outside }
    }

    /// The folder of the input that has this role; none where it is no artifact, or is not there any more.
    pub fn input(&self, manifest: &Manifest, role: &str) -> Option<PathBuf> {
        let key = manifest.recipe.inputs.get(role)?;
        let folders = Kind::ALL.into_iter().map(|kind| self.store.folder(kind, key));
        folders.into_iter().find(|folder| folder.is_dir()).or_else(|| self.outside.get(key).cloned())
    }

    /// The tokens of the queries that the artifact in `folder` is about: of a ranking by way of its scores, of those by way
    /// of the queries' gradients.
    pub fn queries(&self, folder: &Path) -> Option<Artifact<Tokens>> {
        let manifest = Manifest::read(folder).ok()?;
        if manifest.kind == Kind::Tokens {
            return Artifact::open(folder).ok();
        }
        // Theirs are directions.
        if manifest.kind == Kind::Projections {
            return None;
        }
        let next = ["scores", "queries", "gradients", "tokens"].into_iter();
        let role = next.into_iter().find(|role| manifest.recipe.inputs.contains_key(*role))?;
        self.queries(&self.input(&manifest, role)?)
    }
}
