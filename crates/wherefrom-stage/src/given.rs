//! What a stage is given to run with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use wherefrom_artifact::{Artifact, ArtifactKind, Kind, open_any};

use crate::model_files::ModelFiles;
use crate::stage::File;

/// Role to folder of an artifact or to file, and the checkpoint's files.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// Role to path.
    pub inputs: BTreeMap<String, PathBuf>,
    /// The checkpoint.
    pub model: Option<ModelFiles>,
    /// The pipeline's folder, in which programs of the user's run; the current directory where there is no pipeline.
    pub folder: Option<PathBuf>,
}

impl Given {
    /// The artifact of a required role.
    ///
    /// # Errors
    /// As [`Artifact::open`].
    pub fn open<K: ArtifactKind>(&self, role: &str) -> Result<Artifact<K>> {
        Artifact::open(self.path(role)?)
    }

    /// The artifact of a role, if it is wired.
    ///
    /// # Errors
    /// As [`Artifact::open`].
    pub fn maybe<K: ArtifactKind>(&self, role: &str) -> Result<Option<Artifact<K>>> {
        self.inputs.get(role).map(|path| Artifact::open(path)).transpose()
    }

    /// What a role that takes several kinds is given; none if it is not wired.
    ///
    /// # Errors
    /// As [`open_any`].
    pub fn kind(&self, role: &str) -> Result<Option<Kind>> {
        self.inputs.get(role).map(|path| Ok(open_any(path)?.kind)).transpose()
    }

    /// A file, if it is given.
    pub fn file(&self, file: File) -> Option<PathBuf> {
        self.inputs.get(file.name()).cloned()
    }

    /// A file that has to be there.
    ///
    /// # Errors
    /// It is not.
    pub fn required_file(&self, file: File) -> Result<PathBuf> {
        self.path(file.name()).map(Path::to_path_buf)
    }

    /// The checkpoint of a stage that runs one.
    ///
    /// # Errors
    /// It has none.
    pub fn model(&self) -> Result<ModelFiles> {
        self.model.clone().context("the stage runs a model and has none")
    }

    fn path(&self, role: &str) -> Result<&Path> {
        self.inputs.get(role).map(PathBuf::as_path).with_context(|| format!("the role `{role}` is not wired"))
    }
}
