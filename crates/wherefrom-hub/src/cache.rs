//! The local cache, as `huggingface_hub` lays it out, and what of a name is there.
//!
//! ```text
//! <cache>/models--<owner>--<name>/refs/<revision>              the commit of a branch or tag
//! <cache>/models--<owner>--<name>/blobs/<digest>               contents; <digest>.incomplete while they come in
//! <cache>/models--<owner>--<name>/snapshots/<commit>/<file>    links to blobs
//! <cache>/models--<owner>--<name>/.wherefrom/<commit>.json        our own: names, lengths and digests of the repository's files
//! <cache>/.locks/models--<owner>--<name>/<digest>.lock         held by whoever brings a blob
//! ```
//!
//! The last one tells a whole snapshot from one that was interrupted.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use wherefrom_artifact::write_atomically;

use crate::listing::{INDEX, Listing, WEIGHTS, is_hex, matches, pattern, shards};
use crate::reference::Reference;

/// How long the hub may say nothing, unless `HF_HUB_DOWNLOAD_TIMEOUT` says so.
const PATIENCE: u64 = 10;

/// The hub as the environment has it: `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_HUB_DOWNLOAD_TIMEOUT` and
/// `HF_HUB_OFFLINE` mean what they mean to `huggingface_hub`.
#[derive(Debug, Clone)]
pub struct Hub {
    pub(crate) cache: PathBuf,
    pub(crate) endpoint: String,
    pub(crate) token: Option<String>,
    pub(crate) offline: bool,
    /// For a connection, an answer, and each piece of a body.
    pub(crate) patience: Duration,
}

/// Files of the hub that are here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// A checkpoint's folder, a file, or a glob.
    pub path: PathBuf,
    /// The commit that branch or tag stood for when it was fetched.
    pub commit: String,
}

impl Hub {
    /// Reads the environment.
    pub fn from_env() -> Self {
        let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let text =
            |name: &str| env::var(name).ok().map(|value| value.trim().to_string()).filter(|value| !value.is_empty());
        let home = variable("HF_HOME")
            .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(variable("HOME")?.join(".cache/huggingface")))
            .unwrap_or_default();
        let token = || fs::read_to_string(variable("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"))).ok();
        let cache = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
        Self {
            cache: cache.unwrap_or_else(|| home.join("hub")),
            endpoint: text("HF_ENDPOINT")
                .map_or("https://huggingface.co".into(), |url| url.trim_end_matches('/').into()),
            token: text("HF_TOKEN")
                .or_else(token)
                .map(|token| token.trim().to_string())
                .filter(|token| !token.is_empty()),
            offline: text("HF_HUB_OFFLINE")
                .is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&&*value.to_uppercase())),
            patience: Duration::from_secs(
                text("HF_HUB_DOWNLOAD_TIMEOUT")
                    .and_then(|seconds| seconds.parse().ok())
                    .map_or(PATIENCE, |seconds: u64| seconds.clamp(1, 3600)),
            ),
        }
    }

    /// Where the files of `reference` lie, if all of them are here; makes no request.
    ///
    /// # Errors
    /// What is not here, and what to do.
    pub fn find(&self, reference: &Reference) -> Result<Found, String> {
        let Some(commit) = self.commit(reference) else { return Err(self.absent(reference, "")) };
        let snapshot = self.snapshot(reference, &commit);
        let found = |path: PathBuf| Ok(Found { path, commit: commit.clone() });
        if let Some(listing) = self.listing(reference, &commit) {
            let wanted = listing.wanted(reference, self.index(reference, &commit).as_deref())?;
            let absent: Vec<&String> = wanted.iter().filter(|name| !self.has(reference, &listing, name)).collect();
            if !absent.is_empty() {
                let bytes: f64 = absent.iter().map(|name| listing.files[*name].bytes as f64).sum();
                let files = format!(" ({} of its {} files, {:.1} MB)", absent.len(), wanted.len(), bytes / 1e6);
                return Err(self.absent(reference, &files));
            }
            return found(place(&snapshot, reference, &wanted));
        }
        // Fetched by another program: what it left out is not known.
        let whole = if reference.is_model() {
            let known = |name: &str| {
                snapshot.join(name).exists()
                    || self.folder(reference).join(".no_exist").join(&commit).join(name).exists()
            };
            let weights = snapshot.join(WEIGHTS).exists()
                || fs::read_to_string(snapshot.join(INDEX))
                    .is_ok_and(|index| shards(&index).iter().all(|name| snapshot.join(name).exists()));
            snapshot.join("config.json").exists() && weights && (self.offline || known("tokenizer.json"))
        } else {
            self.offline || snapshot.join(&reference.path).is_file()
        };
        if !whole {
            return Err(self.absent(reference, ""));
        }
        if reference.is_model() {
            return found(snapshot);
        }
        let names = wherefrom_artifact::files(&snapshot).unwrap_or_default();
        let pattern = pattern(&reference.path, names.iter().map(String::as_str));
        let names: Vec<String> =
            names.into_iter().filter(|name| pattern.as_ref().is_some_and(|pattern| matches(pattern, name))).collect();
        if names.is_empty() { Err(self.absent(reference, "")) } else { found(place(&snapshot, reference, &names)) }
    }

    fn absent(&self, reference: &Reference, what: &str) -> String {
        let cache = self.cache.display();
        if !self.offline {
            return format!("`{reference}`{what} is not in the Hugging Face cache {cache}; `wherefrom run` fetches it");
        }
        let (dataset, path) = if reference.dataset { (" --repo-type dataset", "path") } else { ("", "folder") };
        format!(
            "`{reference}`{what} is not in the Hugging Face cache {cache}, and HF_HUB_OFFLINE is set; unset it, or fetch it elsewhere \
             with `hf download {} --revision {}{dataset}`, or give a {path}",
            reference.repository, reference.revision
        )
    }

    /// Whether `HF_HUB_OFFLINE` forbids requests.
    pub fn is_offline(&self) -> bool {
        self.offline
    }

    pub(crate) fn folder(&self, reference: &Reference) -> PathBuf {
        self.cache.join(reference.folder())
    }

    pub(crate) fn snapshot(&self, reference: &Reference, commit: &str) -> PathBuf {
        self.folder(reference).join("snapshots").join(commit)
    }

    /// The commit that the cache has for a revision.
    fn commit(&self, reference: &Reference) -> Option<String> {
        let commit = fs::read_to_string(self.folder(reference).join("refs").join(&reference.revision));
        let commit = commit.map_or_else(|_| reference.revision.clone(), |text| text.trim().to_string());
        let known = || self.snapshot(reference, &commit).is_dir() || self.listing_file(reference, &commit).exists();
        (is_hex(&commit, 40) && known()).then_some(commit)
    }

    fn listing_file(&self, reference: &Reference, commit: &str) -> PathBuf {
        self.folder(reference).join(".wherefrom").join(format!("{commit}.json"))
    }

    fn listing(&self, reference: &Reference, commit: &str) -> Option<Listing> {
        serde_json::from_slice(&fs::read(self.listing_file(reference, commit)).ok()?).ok()
    }

    /// Keeps the listing and the commit of the revision, so that a run which is interrupted goes on with the same one.
    pub(crate) fn keep(&self, reference: &Reference, listing: &Listing) -> Result<()> {
        let reached = self.folder(reference).join("refs").join(&reference.revision);
        for (path, bytes) in [
            (self.listing_file(reference, &listing.commit), serde_json::to_vec(listing)?),
            (reached, listing.commit.clone().into_bytes()),
        ] {
            if fs::read(&path).is_ok_and(|known| known == bytes) {
                continue;
            }
            fs::create_dir_all(path.parent().unwrap_or(&path))?;
            write_atomically(&path, &bytes)?;
        }
        Ok(())
    }

    /// The index of a sharded checkpoint, once it is here.
    pub(crate) fn index(&self, reference: &Reference, commit: &str) -> Option<String> {
        fs::read_to_string(self.snapshot(reference, commit).join(INDEX)).ok()
    }

    /// Whether a file is here, and as long as the hub says.
    pub(crate) fn has(&self, reference: &Reference, listing: &Listing, name: &str) -> bool {
        let length = fs::metadata(self.snapshot(reference, &listing.commit).join(name)).map(|file| file.len());
        let bytes = listing.files.get(name).map(|file| file.bytes);
        length.is_ok_and(|length| bytes == Some(length))
    }
}

/// What a stage is given for the files `names` of a snapshot: the folder, the one file, or a glob of them.
pub(crate) fn place(snapshot: &Path, reference: &Reference, names: &[String]) -> PathBuf {
    match names {
        _ if reference.is_model() => snapshot.into(),
        [name] => snapshot.join(name),
        _ => snapshot.join(pattern(&reference.path, names.iter().map(String::as_str)).unwrap_or_default()),
    }
}
