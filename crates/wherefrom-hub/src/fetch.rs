//! From the hub into the cache, with the `hf-hub` crate.
//!
//! A file comes in as `blobs/<etag>.part` and goes on from there after an interruption; it gets its name when it is whole.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use serde_json::Value;
use wherefrom_artifact::{Reporter, bad_input};

use crate::cache::{Found, Hub, place};
use crate::listing::Listing;
use crate::reference::Reference;

/// Tries that bring nothing new before a download is given up.
const TRIES: u32 = 4;
/// Wait after the first of them; each next is twice as long.
const PAUSE: Duration = Duration::from_millis(250);
/// How long the hub may take to list a repository.
const PATIENCE: Duration = Duration::from_secs(30);

impl Hub {
    /// Asks the hub what `reference` holds, so that [`Hub::find`] knows names and sizes; brings no file.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], with the remedy: offline, no such repository or revision, no access, no network.
    pub fn ask(&self, reference: &Reference) -> Result<()> {
        self.list(reference).map(drop)
    }

    /// Brings what is not here of `reference` into the cache.
    ///
    /// # Errors
    /// As [`Hub::ask`]; and where the repository has nothing of use, or a file did not come through.
    pub fn fetch(&self, reference: &Reference, reporter: &dyn Reporter) -> Result<Found> {
        if let Ok(found) = self.find(reference) {
            return Ok(found);
        }
        let listing = self.list(reference)?;
        let api = self.api()?;
        let kind = if reference.dataset { RepoType::Dataset } else { RepoType::Model };
        // By commit: a branch may move while its files come in.
        let repository = api.repo(Repo::with_revision(reference.repository.clone(), kind, listing.commit.clone()));
        let task = Task { hub: self, reference, listing: &listing, repository, reporter };
        let weights = |name: &String| name.ends_with(".safetensors") && reference.is_model();
        let wanted = || {
            let index = self.index(reference, &listing.commit);
            listing.wanted(reference, index.as_deref()).map_err(bad_input)
        };
        // The index first: it names the shards.
        task.bring(wanted()?.into_iter().filter(|name| !weights(name)).collect())?;
        let names = wanted()?;
        task.bring(names.clone())?;
        Ok(Found {
            path: place(&self.snapshot(reference, &listing.commit), reference, &names),
            commit: listing.commit.clone(),
        })
    }

    fn api(&self) -> Result<Api> {
        let cache = Cache::new(self.cache.clone());
        let api = ApiBuilder::from_cache(cache).with_endpoint(self.endpoint.clone()).with_token(self.token.clone());
        Ok(api.with_progress(false).with_user_agent("wherefrom", env!("CARGO_PKG_VERSION")).build()?)
    }

    /// The repository's files at the revision.
    fn list(&self, reference: &Reference) -> Result<Listing> {
        if self.offline {
            return Err(bad_input(
                self.find(reference).err().unwrap_or_else(|| format!("{reference}: HF_HUB_OFFLINE is set")),
            ));
        }
        let kind = if reference.dataset { RepoType::Dataset } else { RepoType::Model };
        let repository = Repo::with_revision(reference.repository.clone(), kind, reference.revision.clone());
        let request = self.api()?.repo(repository).info_request().query("blobs", "true");
        let request = request.config().timeout_global(Some(PATIENCE)).http_status_as_error(false).build();
        let mut answer = request.call().map_err(|error| self.unreachable(reference, &error.to_string()))?;
        let status = answer.status().as_u16();
        let code =
            answer.headers().get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or_default().to_string();
        if status != 200 {
            return Err(self.refused(reference, status, &code));
        }
        let text = answer.body_mut().with_config().limit(1 << 28).read_to_string();
        let text = text.map_err(|error| self.unreachable(reference, &error.to_string()))?;
        let listing = serde_json::from_str::<Value>(&text).ok().as_ref().and_then(Listing::read);
        let listing = listing.ok_or_else(|| self.unreachable(reference, "its answer is no list of files"))?;
        self.keep(reference, &listing).map_err(|error| self.unwritable(&error))?;
        Ok(listing)
    }

    fn unreachable(&self, reference: &Reference, what: &str) -> anyhow::Error {
        bad_input(format!(
            "{reference}: the hub {} cannot be reached ({what}); check the network and HF_ENDPOINT, or give a local path",
            self.endpoint
        ))
    }

    fn unwritable(&self, error: &dyn std::fmt::Display) -> anyhow::Error {
        bad_input(format!(
            "the Hugging Face cache {} cannot be written ({error:#}); make room or give another folder as HF_HOME",
            self.cache.display()
        ))
    }

    /// The hub's refusals, told by status and `X-Error-Code`.
    fn refused(&self, reference: &Reference, status: u16, code: &str) -> anyhow::Error {
        let page = format!("{}/{}", self.endpoint, reference.page());
        let token = match &self.token {
            Some(_) => "the token that was sent (HF_TOKEN, or of `hf auth login`) does not open it",
            None => "no token was sent; set HF_TOKEN or use `hf auth login`",
        };
        bad_input(match (status, code) {
            (401 | 403, "GatedRepo") => {
                format!("{reference}: access is gated: accept the terms on {page}; {token}")
            }
            (_, "RevisionNotFound") => {
                format!(
                    "{reference}: there is no revision `{}`; see the branches and tags of {page}",
                    reference.revision
                )
            }
            (401 | 403, _) => {
                format!("{reference}: there is no such repository, or it is private; check the name; {token}")
            }
            (404, _) => format!("{reference}: there is no such repository; check the name: {page}"),
            _ => format!("{reference}: the hub answers with status {status}; try again later: {page}"),
        })
    }
}

/// One download of several files.
struct Task<'a> {
    hub: &'a Hub,
    reference: &'a Reference,
    listing: &'a Listing,
    repository: ApiRepo,
    reporter: &'a dyn Reporter,
}

impl Task<'_> {
    /// Those of `names` that are not here yet.
    fn bring(&self, names: Vec<String>) -> Result<()> {
        let absent = names.into_iter().filter(|name| !self.here(name)).collect::<Vec<_>>();
        if absent.is_empty() {
            return Ok(());
        }
        let total = absent.iter().map(|name| self.listing.files[name].bytes.unwrap_or(0)).sum();
        self.reporter.begin(&format!("fetch {}", self.reference.repository), "bytes", total, 0);
        let brought = absent.iter().try_for_each(|name| self.file(name));
        self.reporter.end();
        brought
    }

    /// Whether the file is here; one that another commit has already is linked.
    fn here(&self, name: &str) -> bool {
        let (hub, listing) = (self.hub, self.listing);
        if !hub.has(self.reference, listing, name)
            && let Some(blob) = &listing.files[name].blob
            && hub.folder(self.reference).join("blobs").join(blob).exists()
        {
            let link = hub.snapshot(self.reference, &listing.commit).join(name);
            let up = "../".repeat(2 + name.matches('/').count());
            // What cannot be linked is fetched.
            let _linked = link_to(&format!("{up}blobs/{blob}"), &link);
        }
        hub.has(self.reference, listing, name)
    }

    /// One file: tried again as long as something of it comes through.
    fn file(&self, name: &str) -> Result<()> {
        let address = |c: char| c.is_ascii_alphanumeric() || "/._-+=,@()".contains(c);
        if !name.chars().all(address) {
            return Err(
                self.stopped(name, "its name cannot be asked for; fetch it with `hf download` and give the folder")
            );
        }
        let (mut told, mut tries, mut waited) = (0, 0, false);
        loop {
            if self.here(name) {
                return Ok(());
            }
            let before = told;
            // A link to nothing, or to what is too short, would stay as it is.
            let _gone = fs::remove_file(self.hub.snapshot(self.reference, &self.listing.commit).join(name));
            let bar = Bar { reporter: self.reporter, at: 0, told: &mut told };
            let error = match self.repository.download_with_progress(name, bar) {
                Ok(_) if self.hub.has(self.reference, self.listing, name) => continue,
                // The server closed early and said nothing: away with it, and again.
                Ok(_) => {
                    self.remove(name, "");
                    "it is not as long as the hub says".to_string()
                }
                // Another process is at it.
                Err(ApiError::LockAcquisition(_)) => {
                    if !std::mem::replace(&mut waited, true) {
                        self.reporter
                            .warn(&format!("another process fetches {name} of {}; waiting for it", self.reference));
                    }
                    continue;
                }
                Err(error) => self.trouble(name, error)?,
            };
            tries = if told > before { 1 } else { tries + 1 };
            if tries >= TRIES {
                let again = format!("{error}; what has come is kept: run again to go on");
                return Err(self.stopped(name, &again));
            }
            sleep(PAUSE * 2_u32.pow(tries - 1));
        }
    }

    /// Words for what may pass, and the end of what will not.
    fn trouble(&self, name: &str, error: ApiError) -> Result<String> {
        match &error {
            ApiError::InvalidResume => self.remove(name, ".part"),
            ApiError::RequestError(request) => match **request {
                // Asked to go on after the last byte.
                ureq::Error::StatusCode(416) => self.remove(name, ".part"),
                // The hub lists what is gated, and refuses it file by file.
                ureq::Error::StatusCode(status @ (401 | 403)) => {
                    return Err(self.hub.refused(self.reference, status, "GatedRepo"));
                }
                ureq::Error::StatusCode(404) => return Err(self.stopped(name, "it is not there any more; try again")),
                _ => {}
            },
            ApiError::IoError(io)
                if matches!(
                    io.kind(),
                    ErrorKind::StorageFull | ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                return Err(self.hub.unwritable(io));
            }
            _ => {}
        }
        Ok(error.to_string())
    }

    /// Removes a file of the wrong length, or, with the ending `.part`, the beginning of one.
    fn remove(&self, name: &str, ending: &str) {
        if let Some(blob) = &self.listing.files[name].blob {
            let _gone = fs::remove_file(self.hub.folder(self.reference).join("blobs").join(format!("{blob}{ending}")));
        }
    }

    fn stopped(&self, name: &str, what: &str) -> anyhow::Error {
        bad_input(format!("{}: {name} could not be fetched: {what}", self.reference))
    }
}

/// A relative link, as the cache has them.
fn link_to(target: &str, link: &Path) -> std::io::Result<()> {
    fs::create_dir_all(link.parent().unwrap_or(link))?;
    let _gone = fs::remove_file(link);
    #[cfg(unix)]
    return std::os::unix::fs::symlink(target, link);
    #[cfg(not(unix))]
    return Err(std::io::Error::new(ErrorKind::Unsupported, target.to_string()));
}

/// Bytes of one try; those that an earlier one has told of are not told again.
struct Bar<'a> {
    reporter: &'a dyn Reporter,
    at: u64,
    told: &'a mut u64,
}

impl Progress for Bar<'_> {
    fn init(&mut self, _size: usize, _name: &str) {
        self.at = 0;
    }

    fn update(&mut self, bytes: usize) {
        self.at += bytes as u64;
        if self.at > *self.told {
            self.reporter.advance(self.at - *self.told);
            *self.told = self.at;
        }
    }

    fn finish(&mut self) {}
}
