//! A sealed artifact, opened once and trusted after.

use std::collections::{HashMap, HashSet};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

use anyhow::Result;
use arrow::record_batch::RecordBatch;

use crate::error::Error;
use crate::ipc::Access;
use crate::kinds::{ArtifactKind, Kind};
use crate::manifest::Manifest;
use crate::part;
use crate::sound::Sound;
use crate::store::disk;

/// A handle to a sealed artifact of kind `K`: manifest, version, key and columns are checked.
#[derive(Debug, Clone)]
pub struct Artifact<K> {
    folder: PathBuf,
    manifest: Manifest,
    /// Parts by the modules of their rows, once somebody has asked.
    pub(crate) by_module: Arc<OnceLock<HashMap<String, Vec<usize>>>>,
    kind: PhantomData<K>,
}

impl<K: ArtifactKind> Artifact<K> {
    /// Opens the artifact in `folder`.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Kind`], [`Error::Version`], [`Error::Corrupt`], [`Error::Schema`].
    pub fn open(folder: &Path) -> Result<Self> {
        let manifest = open_any(folder)?;
        if manifest.kind != K::KIND {
            return Err(Error::Kind {
                path: folder.into(),
                expected: K::KIND.name().into(),
                found: manifest.kind.name().into(),
            }
            .into());
        }
        Ok(Self { folder: folder.into(), manifest, by_module: Arc::default(), kind: PhantomData })
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its key.
    pub fn key(&self) -> &str {
        &self.manifest.key
    }

    /// Number of parts.
    pub fn parts(&self) -> usize {
        self.manifest.parts.len()
    }

    /// The record batches of a part, its digest checked first; `columns` limits what a Parquet part reads, empty reads all.
    pub fn batches(&self, part: usize, columns: &[&str]) -> Result<impl Iterator<Item = Result<RecordBatch>> + use<K>> {
        verify_part(&self.folder, &self.manifest, part)?;
        let entry = &self.manifest.parts[part];
        part::read(K::KIND, &self.folder.join(&entry.name), Access::Sealed(entry.bytes), columns, None)
    }

    /// Rows `start..start + length` of a Parquet part, its digest checked first.
    pub(crate) fn batches_from(
        &self,
        part: usize,
        start: usize,
        length: usize,
    ) -> Result<impl Iterator<Item = Result<RecordBatch>> + use<K>> {
        verify_part(&self.folder, &self.manifest, part)?;
        let entry = &self.manifest.parts[part];
        let (path, access) = (self.folder.join(&entry.name), Access::Sealed(entry.bytes));
        part::read(K::KIND, &path, access, &[], Some(part::Rows { start, length }))
    }

    /// Every record batch of every part, all digests checked first. A part is open only while it is read.
    pub fn all_batches(&self) -> Result<impl Iterator<Item = Result<RecordBatch>> + use<K>> {
        every_batch(&self.folder, &self.manifest)
    }

    /// A line of the schema metadata that every part has, without its `wherefrom.`.
    pub fn metadata(&self, name: &str) -> Result<Option<String>> {
        let Some(first) = self.manifest.parts.first() else { return Ok(None) };
        verify_part(&self.folder, &self.manifest, 0)?;
        let metadata = part::metadata(K::KIND, &self.folder.join(&first.name), Access::Sealed(first.bytes))?;
        Ok(metadata.get(&format!("wherefrom.{name}")).cloned())
    }

    /// A file of a folder artifact, its digest checked first.
    pub fn file(&self, name: &str) -> Result<PathBuf> {
        for (index, part) in self.manifest.parts.iter().enumerate() {
            if part.name == name {
                verify_part(&self.folder, &self.manifest, index)?;
                return Ok(self.folder.join(name));
            }
        }
        Err(Error::Missing { path: self.folder.join(name) }.into())
    }
}

/// Every record batch of a table of whatever kind, all digests checked first.
pub fn table(folder: &Path) -> Result<impl Iterator<Item = Result<RecordBatch>> + use<>> {
    every_batch(folder, &open_any(folder)?)
}

fn every_batch(folder: &Path, manifest: &Manifest) -> Result<impl Iterator<Item = Result<RecordBatch>> + use<>> {
    (0..manifest.parts.len()).try_for_each(|part| verify_part(folder, manifest, part))?;
    let (folder, kind) = (folder.to_path_buf(), manifest.kind);
    Ok(manifest.parts.clone().into_iter().flat_map(move |entry| {
        let read = part::read(kind, &folder.join(&entry.name), Access::Sealed(entry.bytes), &[], None);
        read.unwrap_or_else(|error| Box::new(std::iter::once(Err(error))))
    }))
}

/// Opens an artifact of whatever kind: manifest, sizes and columns are checked, digests are not.
pub fn open_any(folder: &Path) -> Result<Manifest> {
    let manifest = Manifest::read(folder)?;
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let names_key = name.len() == manifest.key.len() && name.bytes().all(|digit| digit.is_ascii_hexdigit());
    if names_key && name != manifest.key {
        let what = format!("the folder is named {name} and holds the artifact {}", manifest.key);
        return Err(Error::Corrupt { path: folder.join(crate::manifest::MANIFEST), what }.into());
    }
    for entry in &manifest.parts {
        let path = folder.join(&entry.name);
        let corrupt = |what: String| Error::Corrupt { path: path.clone(), what };
        match std::fs::metadata(&path) {
            Err(_) => return Err(corrupt(format!("part {} is missing", entry.name)).into()),
            Ok(found) if found.len() != entry.bytes => {
                return Err(
                    corrupt(format!("part {} has {} bytes, not {}", entry.name, found.len(), entry.bytes)).into()
                );
            }
            Ok(_) => {}
        }
    }
    Ok(manifest)
}

/// Parts that this process has checked, with the digests that they had.
static VERIFIED: LazyLock<Mutex<HashSet<(PathBuf, String)>>> = LazyLock::new(Mutex::default);

/// Checks one part's digest and rows, once a process.
fn verify_part(folder: &Path, manifest: &Manifest, part: usize) -> Result<()> {
    let entry = &manifest.parts[part];
    let path = folder.join(&entry.name);
    let verified = || VERIFIED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let known = (path.clone(), entry.blake3.clone());
    if verified().contains(&known) {
        return Ok(());
    }
    if disk::digest(&path)? != entry.blake3 {
        let what = format!("the digest of part {} differs from its manifest", entry.name);
        return Err(Error::Corrupt { path, what }.into());
    }
    // Whoever has a hash function can seal: the rows are checked all the same.
    let before = manifest.parts[..part].iter().map(|part| part.rows).fold(0, u64::saturating_add);
    let rows = part::check_rows(&path, Access::Sealed(entry.bytes), &mut Sound::new(manifest.kind, before))?;
    if rows != entry.rows {
        let what = format!("part {} has {rows} rows, not {}", entry.name, entry.rows);
        return Err(Error::Corrupt { path, what }.into());
    }
    verified().insert(known);
    Ok(())
}

/// Checks manifest, sizes, digests, columns and rows of the artifact in `folder`; returns its kind.
pub fn verify(folder: &Path) -> Result<Kind> {
    let manifest = open_any(folder)?;
    for (index, entry) in manifest.parts.iter().enumerate() {
        let known = (folder.join(&entry.name), entry.blake3.clone());
        VERIFIED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&known);
        verify_part(folder, &manifest, index)?;
    }
    Ok(manifest.kind)
}
