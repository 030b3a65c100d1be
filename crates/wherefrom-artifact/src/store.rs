//! The store: artifacts found by key, made once, by one writer at a time.
//!
//! ```text
//! <store>/<kind>-v<version>/<key>/          sealed: manifest.json and parts
//! <store>/<kind>-v<version>/<key>.draft/    in the making: plan.json, parts, scratch
//! <store>/<kind>-v<version>/<key>.lock      held while a process writes the draft
//! <store>/leaves.json                       digests of input files by path, size and time
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Instant, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::artifact::open_any;
use crate::disk;
use crate::draft::{self, Draft};
use crate::error::{Error, bad_input};
use crate::exec::Reporter;
use crate::kinds::Kind;
use crate::manifest::{MANIFEST, Manifest};
use crate::recipe::Recipe;

/// A folder of artifacts.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// What the store has under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Sealed.
    Cached,
    /// A draft with so many of so many parts.
    Partial(usize, usize),
    /// Nothing.
    Missing,
}

/// One line of [`Store::list`].
#[derive(Debug)]
pub struct Entry {
    /// The kind.
    pub kind: Kind,
    /// The key.
    pub key: String,
    /// The folder.
    pub folder: PathBuf,
    /// The manifest, or why it cannot be read.
    pub manifest: Result<Manifest>,
}

#[derive(Clone, Serialize, Deserialize, PartialEq)]
struct Leaf {
    bytes: u64,
    modified_ns: u128,
    blake3: String,
}

/// `lambda/3f9a` or `3f9a`.
fn kind_and_prefix(name: &str) -> (Option<Kind>, &str) {
    match name.split_once('/') {
        Some((kind, prefix)) => (Kind::from_name(kind), prefix),
        None => (None, name),
    }
}

impl Store {
    /// The store in `root`; nothing is created until something is written.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Creates the folder if needed and proves that it can be written.
    ///
    /// # Errors
    /// [`Error::Unwritable`].
    pub fn writable(&self) -> Result<()> {
        let probe = self.root.join(format!("probe-{}.tmp", std::process::id()));
        let attempt = || -> std::io::Result<()> {
            fs::create_dir_all(&self.root)?;
            fs::write(&probe, b"wherefrom")?;
            fs::remove_file(&probe)?;
            // Backup programs skip folders with this tag; git ignores what is in the store.
            for (name, text) in
                [("CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55\n"), (".gitignore", "*\n")]
            {
                let path = self.root.join(name);
                if !path.exists() {
                    fs::write(path, text)?;
                }
            }
            Ok(())
        };
        attempt().map_err(|error| Error::Unwritable { path: self.root.clone(), what: error.to_string() }.into())
    }

    /// Where the artifact of that key lies, or would.
    pub fn folder(&self, kind: Kind, key: &str) -> PathBuf {
        self.root.join(format!("{}-v{}", kind.name(), kind.version())).join(key)
    }

    fn beside(&self, kind: Kind, key: &str, ending: &str) -> PathBuf {
        self.folder(kind, &format!("{key}.{ending}"))
    }

    /// Whether the artifact is there, sealed or in part.
    pub fn state(&self, kind: Kind, key: &str) -> State {
        if self.folder(kind, key).join(MANIFEST).exists() {
            return State::Cached;
        }
        match Draft::progress(&self.beside(kind, key, "draft")) {
            Some((done, total)) => State::Partial(done, total),
            None => State::Missing,
        }
    }

    /// The artifact of `recipe`: found, or made by `fill` and sealed. Returns its folder and whether it was found.
    ///
    /// Takes the key's lock, so that two processes never write one draft; the second waits and then finds.
    pub fn produce(
        &self,
        kind: Kind,
        recipe: Recipe,
        reporter: &dyn Reporter,
        fill: impl FnOnce(&mut Draft) -> Result<()>,
    ) -> Result<(PathBuf, bool)> {
        let key = recipe.key();
        let target = self.folder(kind, &key);
        if target.join(MANIFEST).exists() {
            open_any(&target)?;
            return Ok((target, true));
        }
        self.writable()?;
        let _lock = self.lock(kind, &key, reporter)?;
        if target.join(MANIFEST).exists() {
            open_any(&target)?;
            return Ok((target, true));
        }
        let begun = self.beside(kind, &key, "draft");
        if Manifest::read(&begun).is_ok_and(|manifest| manifest.key == key) {
            draft::finish(&begun, &target)?;
            return Ok((target, false));
        }
        let mut draft = Draft::open(kind, &key, begun)?;
        let start = Instant::now();
        fill(&mut draft)?;
        draft.provenance("wall_seconds", start.elapsed().as_secs_f64())?;
        draft.seal(recipe, &target)?;
        Ok((target, false))
    }

    fn lock(&self, kind: Kind, key: &str, reporter: &dyn Reporter) -> Result<File> {
        let path = self.beside(kind, key, "lock");
        fs::create_dir_all(path.parent().context("a lock has a folder")?)?;
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        if file.try_lock().is_err() {
            reporter.warn(&format!("another process is making {} {key}: waiting for it", kind.name()));
            file.lock().with_context(|| format!("lock {}", path.display()))?;
        }
        Ok(file)
    }

    /// Every sealed artifact, by kind and key.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let sealed = self.folders()?.into_iter().filter(|(_, name, _)| !name.ends_with(".draft"));
        let entry =
            |(kind, key, folder): (_, _, PathBuf)| Entry { kind, key, manifest: Manifest::read(&folder), folder };
        Ok(sealed.map(entry).collect())
    }

    /// Kind, name and path of every folder, sealed (`<key>`) or begun (`<key>.draft`), in this order.
    fn folders(&self) -> Result<Vec<(Kind, String, PathBuf)>> {
        let mut folders = Vec::new();
        for kind in Kind::ALL {
            let Ok(children) = fs::read_dir(self.folder(kind, "")) else { continue };
            for child in children {
                let folder = child?.path();
                let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if folder.is_dir() {
                    folders.push((kind, name, folder));
                }
            }
        }
        folders.sort_unstable();
        Ok(folders)
    }

    /// The artifact that `name` means: a key, the beginning of one (`3f9a`, `lambda/3f9a`), or a folder.
    pub fn resolve(&self, name: &str) -> Result<PathBuf> {
        let path = Path::new(name);
        if path.join(MANIFEST).exists() {
            return Ok(path.into());
        }
        let (kind, prefix) = kind_and_prefix(name);
        let mut matches: Vec<_> = self
            .list()?
            .into_iter()
            .filter(|entry| kind.is_none_or(|kind| kind == entry.kind) && entry.key.starts_with(prefix))
            .map(|entry| entry.folder)
            .collect();
        match matches.len() {
            1 if !prefix.is_empty() => Ok(matches.remove(0)),
            0 => Err(bad_input(format!(
                "no artifact `{name}` in the store {}: `wherefrom ls` lists what is there",
                self.root.display()
            ))),
            n => Err(bad_input(format!("`{name}` could be {n} artifacts of the store: give more of the key"))),
        }
    }

    /// Like [`Store::resolve`], but also finds what was begun and not finished: `<key>.draft`.
    pub fn resolve_any(&self, name: &str) -> Result<PathBuf> {
        self.resolve(name).or_else(|error| {
            let (kind, prefix) = kind_and_prefix(name);
            let mut drafts = self.folders()?.into_iter().filter(|(other, name, _)| {
                let meant = name.starts_with(prefix) && !prefix.is_empty() && kind.is_none_or(|kind| kind == *other);
                meant && name.ends_with(".draft")
            });
            match (drafts.next(), drafts.next()) {
                (Some((_, _, folder)), None) => Ok(folder),
                _ => Err(error),
            }
        })
    }

    /// Removes the artifact in `folder`, or a draft of its key.
    pub fn remove(&self, folder: &Path, reporter: &dyn Reporter) -> Result<()> {
        let (kind, key) = self.identify(folder)?;
        let _lock = self.lock(kind, &key, reporter)?;
        // The manifest goes first: without it the rest is no artifact.
        let _absent = fs::remove_file(folder.join(MANIFEST));
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))
    }

    fn identify(&self, folder: &Path) -> Result<(Kind, String)> {
        let name = |path: Option<&Path>| Some(path?.file_name()?.to_str()?.to_string());
        let kind = name(folder.parent()).and_then(|name| Kind::from_name(name.rsplit_once("-v")?.0));
        match (kind, name(Some(folder))) {
            (Some(kind), Some(key)) => Ok((kind, key.trim_end_matches(".draft").into())),
            _ => Err(bad_input(format!("{} is not in the store {}", folder.display(), self.root.display()))),
        }
    }

    /// BLAKE3 of an input file, remembered by path, size and modification time.
    pub fn leaf(&self, path: &Path) -> Result<String> {
        let metadata =
            fs::metadata(path).map_err(|error| bad_input(format!("cannot read {} ({error})", path.display())))?;
        let modified = metadata.modified()?.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        let memo = self.root.join("leaves.json");
        let mut leaves: BTreeMap<String, Leaf> =
            fs::read(&memo).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let name = fs::canonicalize(path)?.to_string_lossy().into_owned();
        if let Some(leaf) = leaves.get(&name)
            && leaf.bytes == metadata.len()
            && leaf.modified_ns == modified
        {
            return Ok(leaf.blake3.clone());
        }
        let blake3 = disk::digest(path)?;
        leaves.insert(name, Leaf { bytes: metadata.len(), modified_ns: modified, blake3: blake3.clone() });
        if self.root.is_dir() {
            // A lost memo costs a re-read, never a wrong key.
            let _unsaved = disk::write_atomically(&memo, &serde_json::to_vec_pretty(&leaves)?);
        }
        Ok(blake3)
    }
}
