//! A place elsewhere that keeps sealed artifacts, for others to fetch in place of making them.
//!
//! ```text
//! <remote>/<kind>-v<version>/<key>/<digest>-<length>     a part, under the BLAKE3 of its content
//! <remote>/<kind>-v<version>/<key>/manifest.json         last, and never replaced
//! <store>/incoming/<kind>-v<version>-<key>/              what is being fetched: parts whose digests are right
//! ```
//!
//! Parts are named by their content, so that two processes that send one artifact never mix: whatever the manifest names is what
//! it was sealed with.

use std::fmt::Debug;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::artifact::{open_any, verify};
use crate::error::{Error, bad_input};
use crate::kinds::Kind;
use crate::manifest::{MANIFEST, Manifest, Part};
use crate::reporter::Reporter;
use crate::store::{State, Store, disk};

/// Files under names, somewhere else. Names have steps, joined by `/`.
pub trait Remote: Debug + Send + Sync {
    /// Its address, as it was given, without what is secret.
    fn address(&self) -> &str;

    /// The bytes of a small file; none if there is no such file.
    ///
    /// # Errors
    /// Where that cannot be told: no connection, no permission.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>>;

    /// Length of a file; none if there is no such file.
    ///
    /// # Errors
    /// As [`Remote::read`].
    fn length(&self, name: &str) -> Result<Option<u64>>;

    /// Writes a file of that many bytes into `to`, which is empty, and says after each piece how many bytes it had.
    ///
    /// # Errors
    /// As [`Remote::read`], and for a file that is not there or shorter.
    fn fetch(&self, name: &str, bytes: u64, to: &mut File, piece: &dyn Fn(u64)) -> Result<()>;

    /// Puts a file there, whole or not at all; one of that name has the same content.
    ///
    /// # Errors
    /// As [`Remote::read`].
    fn send(&self, name: &str, from: &Path, piece: &dyn Fn(u64)) -> Result<()>;

    /// Puts a small file there if there is none of that name; whether it did.
    ///
    /// # Errors
    /// As [`Remote::read`].
    fn create(&self, name: &str, bytes: &[u8]) -> Result<bool>;

    /// Removes a file.
    ///
    /// # Errors
    /// As [`Remote::read`].
    fn remove(&self, name: &str) -> Result<()>;
}

/// The folder of an artifact.
fn place(kind: Kind, key: &str) -> String {
    format!("{}-v{}/{key}", kind.name(), kind.version())
}

/// The name of a part in the folder `place`.
fn part_name(place: &str, part: &Part) -> String {
    format!("{place}/{}-{}", part.blake3, part.bytes)
}

impl Store {
    /// The same store, with a place where others keep what they have sealed.
    #[must_use]
    pub fn with_remote(self, remote: Option<std::sync::Arc<dyn Remote>>) -> Self {
        Self { remote, ..self }
    }

    /// The place where others keep what they have sealed.
    pub fn remote(&self) -> Option<&dyn Remote> {
        self.remote.as_deref()
    }

    /// As [`Store::state`]; what is not here may be at the remote.
    ///
    /// # Errors
    /// As [`Store::remote_manifest`].
    pub fn find(&self, kind: Kind, key: &str) -> Result<State> {
        match self.state(kind, key) {
            State::Cached => Ok(State::Cached),
            here => Ok(self.remote_manifest(kind, key)?.map_or(here, |_| State::Remote)),
        }
    }

    /// The manifest that the remote has under a key; none where it has none.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for one that is no manifest of that artifact, and where the remote does not answer.
    pub fn remote_manifest(&self, kind: Kind, key: &str) -> Result<Option<Manifest>> {
        let Some(remote) = self.remote() else { return Ok(None) };
        let name = format!("{}/{MANIFEST}", place(kind, key));
        let found = remote.read(&name).with_context(|| format!("ask {} for {name}", remote.address()))?;
        found.map(|bytes| parse(remote, &name, kind, key, &bytes)).transpose()
    }

    /// Fetches a sealed artifact from the remote, if it is not here and is there; whether it was fetched. What was fetched and has
    /// the right digest is kept where that is interrupted.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the remote serves other bytes than the manifest names.
    pub fn receive(&self, kind: Kind, key: &str, reporter: &dyn Reporter) -> Result<bool> {
        let Some(remote) = self.remote() else { return Ok(false) };
        let target = self.folder(kind, key);
        if target.join(MANIFEST).exists() {
            return Ok(false);
        }
        let Some(manifest) = self.remote_manifest(kind, key)? else { return Ok(false) };
        self.writable()?;
        let _lock = self.lock(kind, key, reporter)?;
        if target.join(MANIFEST).exists() {
            return Ok(false);
        }
        let (place, own) = (place(kind, key), self.root().join("incoming"));
        let folder = own.join(place.replace('/', "-"));
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        disk::remove_temporary(&folder)?;
        let there = |part: &&Part| {
            let path = folder.join(&part.name);
            path.metadata().is_ok_and(|file| file.len() == part.bytes)
                && disk::digest(&path).is_ok_and(|digest| digest == part.blake3)
        };
        let (done, left): (Vec<_>, Vec<_>) = manifest.parts.iter().partition(there);
        reporter.begin("fetch", "bytes", manifest.bytes(), done.iter().map(|part| part.bytes).sum());
        for part in left {
            let (path, name) = (folder.join(&part.name), part_name(&place, part));
            fs::create_dir_all(path.parent().context("a part has a folder")?)?;
            let fetched = disk::replace_checked(
                &path,
                |file| remote.fetch(&name, part.bytes, file, &|bytes| reporter.advance(bytes)),
                |temporary| match disk::digest(temporary)? == part.blake3 {
                    true => Ok(()),
                    false => Err(damaged(remote, &name, "its content has another digest than its manifest names")),
                },
            );
            fetched.with_context(|| format!("fetch {} of {} from {}", part.name, place, remote.address()))?;
        }
        reporter.end();
        disk::write_atomically(&folder.join(MANIFEST), serde_json::to_string_pretty(&manifest)?.as_bytes())?;
        if target.exists() {
            fs::remove_dir_all(&target).with_context(|| format!("remove {}", target.display()))?;
        }
        disk::rename(&folder, &target)?;
        let _others_are_there = fs::remove_dir(own);
        open_any(&target)?;
        // What was begun here is not needed any more.
        let _none = fs::remove_dir_all(self.beside(kind, key, "draft"));
        Ok(true)
    }

    /// Sends a sealed artifact to the remote: parts that are not there, then the manifest. Whether the remote lacked it.
    ///
    /// # Errors
    /// For an artifact that is not whole, and where the remote does not take it.
    pub fn send(&self, kind: Kind, key: &str, reporter: &dyn Reporter) -> Result<bool> {
        let remote = self.remote().context("a store without a remote")?;
        let folder = self.folder(kind, key);
        verify(&folder)?;
        let own = Manifest::read(&folder)?;
        let place = place(kind, key);
        // What it has may be of another process, and is whole if its parts are there.
        let there = self.remote_manifest(kind, key)?;
        let lacking = |manifest: &Manifest| -> Result<Vec<Part>> {
            let mut lacking = Vec::new();
            for part in &manifest.parts {
                match remote.length(&part_name(&place, part))? {
                    Some(bytes) if bytes == part.bytes => {}
                    _ => lacking.push(part.clone()),
                }
            }
            Ok(lacking)
        };
        let same = there.as_ref().is_none_or(|there| there.parts == own.parts);
        let missing = lacking(there.as_ref().unwrap_or(&own))?;
        if !same && !missing.is_empty() {
            return Err(bad_input(format!(
                "{place} at {} lacks {} of its parts, and was made from other bytes than the one here; remove its {MANIFEST} there, and \
                 send again",
                remote.address(),
                missing.len()
            )));
        }
        let total: u64 = missing.iter().map(|part| part.bytes).sum();
        reporter.begin("push", "bytes", total, 0);
        for part in &missing {
            let sent =
                remote.send(&part_name(&place, part), &folder.join(&part.name), &|bytes| reporter.advance(bytes));
            sent.with_context(|| format!("send {} of {place} to {}", part.name, remote.address()))?;
        }
        reporter.end();
        if there.is_some() {
            return Ok(!missing.is_empty());
        }
        let name = format!("{place}/{MANIFEST}");
        let bytes = fs::read(folder.join(MANIFEST)).with_context(|| format!("read {}", folder.display()))?;
        let created = remote.create(&name, &bytes).with_context(|| format!("send {name} to {}", remote.address()));
        match created {
            Ok(true) => Ok(true),
            // "It is there" may be an answer to oneself, tried twice, and an error may come after the deed: what is there decides.
            other => match self.remote_manifest(kind, key) {
                Ok(Some(_)) => Ok(false),
                _ => Err(other.err().unwrap_or_else(|| {
                    Error::Busy(format!("{name} at {} was neither taken nor is it there; try again", remote.address()))
                        .into()
                })),
            },
        }
    }

    /// Proves that the remote takes what is new and never replaces what is there: some that call themselves S3 do.
    ///
    /// # Errors
    /// [`Error::Input`] where it does not.
    pub fn check_remote(&self) -> Result<()> {
        let remote = self.remote().context("a store without a remote")?;
        let name = format!("probe/{}", disk::unique());
        let tried = (|| Ok::<_, anyhow::Error>([remote.create(&name, b"1")?, remote.create(&name, b"2")?]))();
        let _left = remote.remove(&name);
        match tried.with_context(|| format!("write to {}", remote.address()))? {
            [true, false] => Ok(()),
            [_, true] => Err(bad_input(format!(
                "{} replaces a file that is there though it is asked not to, so that two who send at once would mix; use a place that \
                 knows If-None-Match",
                remote.address()
            ))),
            [false, false] => Err(bad_input(format!("{} takes no new file", remote.address()))),
        }
    }
}

/// Bytes from elsewhere as the manifest of that artifact.
fn parse(remote: &dyn Remote, name: &str, kind: Kind, key: &str, bytes: &[u8]) -> Result<Manifest> {
    let manifest = Manifest::parse(Path::new(name), bytes)
        .map_err(|error| damaged(remote, name, &format!("it is no manifest that this build reads ({error:#})")))?;
    if (manifest.kind, &manifest.key[..]) != (kind, key) {
        return Err(damaged(remote, name, "it is the manifest of another artifact"));
    }
    Ok(manifest)
}

fn damaged(remote: &dyn Remote, name: &str, what: &str) -> anyhow::Error {
    bad_input(format!("{name} at {} is damaged: {what}; leave --remote out, or remove it there", remote.address()))
}
