//! The store: artifacts found by key, made once, by one writer at a time.
//!
//! ```text
//! <store>/<kind>-v<version>/<key>/          sealed: manifest.json and parts
//! <store>/<kind>-v<version>/<key>.draft/    in the making: plan.json, parts, scratch
//! <store>/<kind>-v<version>/<key>.lock      held while a process writes the draft, by several while each writes its share
//! <store>/digests/                          digests of input files
//! <store>/incoming/                         what is being fetched from a remote
//! <store>/records/                          a record of every run
//! <store>/housekeeping.lock                 held while unneeded artifacts are removed
//! ```

pub(crate) mod digests;
pub(crate) mod disk;
pub(crate) mod draft;
pub(crate) mod remote;
pub(crate) mod share;

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::artifact::open_any;
use crate::error::{Error, bad_input};
use crate::kinds::Kind;
use crate::manifest::{MANIFEST, Manifest};
use crate::recipe::Recipe;
use crate::reporter::Reporter;
use crate::store::draft::Draft;
use crate::store::remote::Remote;
use crate::store::share::{Share, busy};

/// What the name of a draft ends with.
const DRAFT: &str = ".draft";
/// Digits of a key.
const KEY_DIGITS: usize = 32;

/// A folder of artifacts.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    remote: Option<Arc<dyn Remote>>,
}

/// What the store has under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Sealed.
    Cached,
    /// A draft with so many of so many parts.
    Partial(usize, usize),
    /// Sealed at the remote.
    Remote,
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

/// The state that a share leaves when it is done.
fn done(share: Share) -> String {
    format!("share-{}-of-{}", share.index, share.of)
}

/// `lambda/3f9a` or `3f9a`.
fn kind_and_prefix(name: &str) -> Result<(Option<Kind>, &str)> {
    let Some((kind, prefix)) = name.split_once('/') else { return Ok((None, name)) };
    match Kind::from_name(kind) {
        Some(known) => Ok((Some(known), prefix)),
        None => Err(bad_input(format!(
            "`{name}`: `{kind}` is no kind of artifact, and there is no artifact in a folder of that name; kinds are {}",
            Kind::ALL.map(Kind::name).join(", ")
        ))),
    }
}

impl Store {
    /// The store in `root`; nothing is created until something is written.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), remote: None }
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
        self.check_folder()?;
        let probe = self.root.join(format!("probe-{}.tmp", disk::unique()));
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

    /// Refuses a store that is a file, or lies below one; one that is not there is empty.
    ///
    /// # Errors
    /// [`Error::Unwritable`].
    pub fn check_folder(&self) -> Result<()> {
        let file = self.root.ancestors().find(|above| above.is_file());
        file.map_or(Ok(()), |file| {
            Err(Error::Unwritable { path: self.root.clone(), what: format!("{} is a file", file.display()) }.into())
        })
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
        let mut draft = Draft::open(kind, &key, begun, Share::WHOLE)?;
        let start = Instant::now();
        fill(&mut draft)?;
        draft.provenance("wall_seconds", start.elapsed().as_secs_f64())?;
        draft.seal(recipe, &target)?;
        Ok((target, false))
    }

    /// Does a share of the artifact of `recipe` by `fill`, beside other processes that do theirs, and leaves it to
    /// [`Store::produce`] to seal it. Whether there was nothing to be done: it is sealed.
    ///
    /// # Errors
    /// [`Error::Busy`] while a process makes the whole.
    pub fn share(
        &self,
        kind: Kind,
        recipe: &Recipe,
        share: Share,
        fill: impl FnOnce(&mut Draft) -> Result<()>,
    ) -> Result<bool> {
        let key = recipe.key();
        let target = self.folder(kind, &key);
        self.writable()?;
        let path = self.beside(kind, &key, "lock");
        fs::create_dir_all(path.parent().context("a lock has a folder")?)?;
        let lock = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        // Where a file system knows no locks, a part is published once all the same.
        if matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)) {
            return Err(busy(format!("another process is making the whole of {} {key}; try again", kind.name())));
        }
        if target.join(MANIFEST).exists() {
            open_any(&target)?;
            return Ok(true);
        }
        let mut draft = Draft::open(kind, &key, self.beside(kind, &key, "draft"), share)?;
        fill(&mut draft)?;
        draft.hand_over(&done(share), |_| Ok(()))?;
        Ok(false)
    }

    /// Which of so many shares of what is not sealed are not done.
    pub fn missing_shares(&self, kind: Kind, key: &str, of: usize) -> Vec<usize> {
        let draft = self.beside(kind, key, "draft");
        let missing = |index: &usize| !Draft::has_state_in(&draft, &done(Share { index: *index, of }));
        (0..of).filter(missing).collect()
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

    /// Held while something is removed that nobody seems to need (`alone`), and while somebody says what it will need.
    pub fn housekeeping(&self, alone: bool) -> Result<File> {
        let path = self.root.join("housekeeping.lock");
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        let locked = if alone { file.lock() } else { file.lock_shared() };
        locked.with_context(|| format!("lock {}", path.display()))?;
        Ok(file)
    }

    /// What was begun and is not finished: kind, key and folder.
    pub fn begun(&self) -> Result<Vec<(Kind, String, PathBuf)>> {
        let begun = self.folders()?.into_iter();
        Ok(begun.filter_map(|(kind, name, folder)| Some((kind, name.strip_suffix(DRAFT)?.into(), folder))).collect())
    }

    /// Artifacts of format versions that this build does not read, with their kinds.
    pub fn outdated(&self) -> Result<Vec<(Kind, PathBuf)>> {
        self.check_folder()?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root).into_iter().flatten() {
            let folder = entry?.path();
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let kind = name.rsplit_once("-v").filter(|(_, version)| version.parse::<u32>().is_ok());
            let Some(kind) = kind.and_then(|(kind, _)| Kind::from_name(kind)) else { continue };
            if folder != self.folder(kind, "") {
                let inside = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
                found.extend(inside.filter(|path| path.is_dir()).map(|path| (kind, path)));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Every sealed artifact, by kind and key.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let sealed = self.folders()?.into_iter().filter(|(_, name, _)| !name.ends_with(DRAFT));
        let entry =
            |(kind, key, folder): (_, _, PathBuf)| Entry { kind, key, manifest: Manifest::read(&folder), folder };
        Ok(sealed.map(entry).collect())
    }

    /// Kind, name and path of every folder, sealed (`<key>`) or begun (`<key>.draft`), in this order.
    fn folders(&self) -> Result<Vec<(Kind, String, PathBuf)>> {
        self.check_folder()?;
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
        if Path::new(name).join(MANIFEST).exists() {
            return Ok(name.into());
        }
        self.named(name, |folder| !folder.ends_with(DRAFT))
    }

    /// What `name` means to whoever removes it: an artifact of this store, or what was begun and not finished
    /// (`<key>.draft`). A folder is one only if it lies in this store and is no link to another place.
    ///
    /// # Errors
    /// [`Error::Input`] where it is anything else, or could be several.
    pub fn resolve_any(&self, name: &str) -> Result<PathBuf> {
        let path = Path::new(name);
        if fs::symlink_metadata(path).is_ok() {
            self.identify(path)?;
            return Ok(path.into());
        }
        self.named(name, |_| true)
    }

    /// The only folder of the store whose key begins so.
    fn named(&self, name: &str, meant: impl Fn(&str) -> bool) -> Result<PathBuf> {
        let (kind, prefix) = kind_and_prefix(name)?;
        let mut matches = self.folders()?;
        matches
            .retain(|(other, key, _)| kind.is_none_or(|kind| kind == *other) && meant(key) && key.starts_with(prefix));
        if matches.iter().any(|(_, key, _)| key == prefix) {
            matches.retain(|(_, key, _)| key == prefix);
        }
        match matches.len() {
            1 if !prefix.is_empty() => Ok(matches.remove(0).2),
            0 => Err(bad_input(format!(
                "no artifact `{name}` in the store {}: `wherefrom ls` lists what is there",
                self.root.display()
            ))),
            n => Err(bad_input(format!("`{name}` could be {n} artifacts of the store: give more of the key"))),
        }
    }

    /// Removes the artifact in `folder`, or a draft of its key.
    pub fn remove(&self, folder: &Path, reporter: &dyn Reporter) -> Result<()> {
        let (kind, key, folder) = self.identify(folder)?;
        let _lock = self.lock(kind, &key, reporter)?;
        discard(&folder)
    }

    /// Removes as [`Store::remove`] does, but never what a process is making; whether it did.
    pub fn remove_idle(&self, folder: &Path) -> Result<bool> {
        let (kind, key, folder) = self.identify(folder)?;
        let path = self.beside(kind, &key, "lock");
        fs::create_dir_all(path.parent().context("a lock has a folder")?)?;
        let lock = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        if lock.try_lock().is_err() {
            return Ok(false);
        }
        discard(&folder).map(|()| true)
    }

    /// Kind, key and place of a folder `<store>/<kind>-v<version>/<key>` or `<key>.draft`. What a link leads to is not of
    /// this store.
    fn identify(&self, folder: &Path) -> Result<(Kind, String, PathBuf)> {
        let shown = folder.display();
        let foreign = || bad_input(format!("{shown} is no artifact of the store {}", self.root.display()));
        // A slash at the end would have the system follow a link.
        let named: PathBuf = folder.components().collect();
        if fs::symlink_metadata(&named).is_ok_and(|metadata| metadata.is_symlink()) {
            return Err(bad_input(format!("{shown} is a link; name the artifact that it leads to")));
        }
        let (Ok(folder), Ok(root)) = (fs::canonicalize(named), fs::canonicalize(&self.root)) else {
            return Err(foreign());
        };
        let inside: Vec<_> = folder.strip_prefix(&root).map(|path| path.iter().collect()).unwrap_or_default();
        let [Some(kind), Some(name)] = [0, 1].map(|place| inside.get(place).and_then(|name| name.to_str())) else {
            return Err(foreign());
        };
        let version = kind.rsplit_once("-v").filter(|(_, version)| version.parse::<u32>().is_ok());
        let kind = version.and_then(|(kind, _)| Kind::from_name(kind));
        let key = name.strip_suffix(DRAFT).unwrap_or(name);
        let is_key = key.len() == KEY_DIGITS && key.bytes().all(|digit| digit.is_ascii_hexdigit());
        match kind.filter(|_| inside.len() == 2 && is_key && folder.is_dir()) {
            Some(kind) => Ok((kind, key.into(), folder)),
            None => Err(foreign()),
        }
    }

    /// BLAKE3 of an input file, remembered for as long as it looks the same.
    ///
    /// # Errors
    /// [`Error::Input`] for what is no file, cannot be read, or changes while it is read.
    pub fn file_digest(&self, path: &Path) -> Result<String> {
        digests::digest(&self.root, path)
    }
}

/// Removes the folder of an artifact. The manifest goes first: without it the rest is no artifact.
fn discard(folder: &Path) -> Result<()> {
    let _absent = fs::remove_file(folder.join(MANIFEST));
    fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reporter::Silent;

    /// A store with these folders in it, each with a manifest's name or a plan's.
    fn store(folders: &[&str]) -> (tempfile::TempDir, Store) {
        let place = tempfile::tempdir().unwrap();
        for folder in folders {
            let folder = place.path().join("store").join(folder);
            fs::create_dir_all(&folder).unwrap();
            let name = if folder.to_string_lossy().ends_with(DRAFT) { "plan.json" } else { MANIFEST };
            fs::write(folder.join(name), "{}").unwrap();
        }
        let store = Store::new(place.path().join("store"));
        (place, store)
    }

    const ONE: &str = "11111111111111111111111111111111";
    const OTHER: &str = "11112222222222222222222222222222";

    fn refused(store: &Store, name: &str, fragment: &str) {
        let error = store.resolve_any(name).and_then(|folder| store.remove(&folder, &Silent)).unwrap_err();
        assert!(
            matches!(error.downcast_ref(), Some(Error::Input(text)) if text.contains(fragment)),
            "{name}: {error:#}"
        );
    }

    #[test]
    fn what_is_removed_is_of_this_store_and_named_without_doubt() {
        let draft = format!("tokens-v3/{OTHER}{DRAFT}");
        let (place, store) = store(&[&format!("tokens-v3/{ONE}"), &draft, &format!("lambda-v1/{ONE}")]);
        refused(&store, &format!("lambada/{ONE}"), "`lambada` is no kind");
        refused(&store, "", "give more of the key");
        refused(&store, "tokens/", "give more of the key");
        // Two artifacts and a draft: the draft is not meant for being the only one.
        refused(&store, "1111", "could be 3");
        refused(&store, "tokens/1111", "could be 2");
        refused(&store, ONE, "could be 2");
        refused(&store, "zz", "no artifact");
        for folder in ["", "tokens-v3"] {
            refused(&store, &store.root().join(folder).to_string_lossy(), "no artifact of the store");
        }
        // Of another store, by its path, by a link to it, and by a link that lies in this one.
        let elsewhere = place.path().join(format!("other/tokens-v3/{ONE}"));
        fs::create_dir_all(&elsewhere).unwrap();
        fs::write(elsewhere.join(MANIFEST), "{}").unwrap();
        refused(&store, &elsewhere.to_string_lossy(), "no artifact of the store");
        #[cfg(unix)]
        for link in [place.path().join("link"), store.folder(Kind::Scores, OTHER)] {
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
            refused(&store, &link.to_string_lossy(), "is a link");
            refused(&store, &format!("{}/", link.display()), "is a link");
        }
        refused(&store, &format!("scores/{OTHER}"), "is a link");
        assert!(elsewhere.join(MANIFEST).exists());

        for (name, gone) in [(format!("tokens/{ONE}"), format!("tokens-v3/{ONE}")), ("11112".into(), draft)] {
            // Of `1111 2…` the link in scores is one, too: the kind says which.
            let name = if name == "11112" { format!("tokens/{name}") } else { name };
            store.remove(&store.resolve_any(&name).unwrap(), &Silent).unwrap();
            assert!(!store.root().join(gone).exists());
        }
        assert!(store.folder(Kind::Lambda, ONE).join(MANIFEST).exists());
    }

    #[test]
    fn names_of_files_on_the_way_are_nobody_elses() {
        let names: std::collections::BTreeSet<String> = (0..1000).map(|_| disk::unique()).collect();
        assert_eq!(names.len(), 1000);
    }
}
