//! From the hub into the cache.
//!
//! The listing says what there is: names, lengths and digests. A file comes in as `<digest>.incomplete`, goes on from there
//! after an interruption, and gets its name when it is what the listing says.

use std::io::{self, Read as _};
use std::path::Path;
use std::thread::sleep;
use std::{fmt, fs};

use anyhow::Result;
use wherefrom_artifact::{Reporter, bad_input};

use crate::blob::Partial;
use crate::cache::{Found, Hub, place};
use crate::client::{Client, Reach, Trouble, next_page};
use crate::listing::{Entry, Listing, Revision, is_hex};
use crate::reference::Reference;

/// Tries that bring nothing new before a download is given up.
const TRIES: u32 = 4;
/// Part of the hub's patience that is waited after the first of them; each next wait is twice as long.
const PAUSE: u32 = 40;
/// Bytes that make a try worth another.
const PROGRESS: u64 = 64 << 10;
/// Bytes that make a try that stalled worth another: it has been waited for already.
const PROGRESS_OF_STALLED: u64 = 1 << 20;
/// Bytes of a list of files.
const LONGEST_LIST: u64 = 64 << 20;
/// Files of a repository, from which on the hub's first answer may leave some out.
const MANY_FILES: usize = 50_000;
/// Pages of the list of such a repository.
const PAGES: usize = 2000;

impl Hub {
    /// Asks the hub what `reference` holds, so that [`Hub::find`] knows names and sizes; brings no file.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], with the remedy: offline, no such repository or revision, no access, no network.
    pub fn ask(&self, reference: &Reference) -> Result<()> {
        let client = self.client(reference)?;
        self.list(&client, reference).map(drop)
    }

    /// Brings what is not here of `reference` into the cache.
    ///
    /// # Errors
    /// As [`Hub::ask`]; and where the repository has nothing of use, or a file did not come through.
    pub fn fetch(&self, reference: &Reference, reporter: &dyn Reporter) -> Result<Found> {
        if let Ok(found) = self.find(reference) {
            return Ok(found);
        }
        let client = self.client(reference)?;
        let listing = self.list(&client, reference)?;
        let task = Task { hub: self, client: &client, reference, listing: &listing, reporter };
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

    fn client(&self, reference: &Reference) -> Result<Client> {
        if self.offline {
            return Err(bad_input(
                self.find(reference).err().unwrap_or_else(|| format!("{reference}: HF_HUB_OFFLINE is set")),
            ));
        }
        Client::new(self).map_err(|trouble| bad_input(format!("{reference}: {trouble}")))
    }

    /// The repository's files at the revision.
    fn list(&self, client: &Client, reference: &Reference) -> Result<Listing> {
        let listing = self.listed(client, reference).map_err(|trouble| match trouble {
            Trouble::Status(status, code) => self.refused(reference, status, &code),
            Trouble::Refused(what) => bad_input(format!(
                "{reference}: what the hub {} answers cannot be used ({what}); check HF_ENDPOINT, or give a local path",
                self.endpoint
            )),
            trouble => bad_input(format!(
                "{reference}: the hub {} cannot be reached ({trouble}); check the network and HF_ENDPOINT, or give a local path",
                self.endpoint
            )),
        })?;
        self.keep(reference, &listing).map_err(|error| self.unwritable(format_args!("{error:#}")))?;
        Ok(listing)
    }

    fn listed(&self, client: &Client, reference: &Reference) -> Result<Listing, Trouble> {
        let no_list = || Trouble::Refused("it is no list of files".into());
        let revision = escaped(&reference.revision).replace('/', "%2F");
        let address = format!("{}/revision/{revision}?blobs=true", self.api(reference));
        let answer = client.get(&address, 0, Reach::Endpoint)?;
        let text = client.text(answer.body, LONGEST_LIST)?;
        let Revision { sha, siblings } = serde_json::from_slice(&text).map_err(|_| no_list())?;
        if is_hex(&reference.revision, 40) && sha != reference.revision {
            return Err(Trouble::Refused("it is of another commit".into()));
        }
        let contradictory = || Trouble::Refused("its list of files has no commit, or a name twice".into());
        if siblings.len() < MANY_FILES {
            return Listing::new(&sha, siblings).ok_or_else(contradictory);
        }
        let commit = Some(&sha).filter(|sha| is_hex(sha, 40)).ok_or_else(contradictory)?;
        Listing::new(commit, self.tree(client, reference, commit)?).ok_or_else(contradictory)
    }

    /// The files of a very large repository, page by page: those of the folder that `reference` is about.
    fn tree(&self, client: &Client, reference: &Reference, commit: &str) -> Result<Vec<Entry>, Trouble> {
        let literal = reference.path.split(['*', '?', '[', '{']).next().unwrap_or_default();
        let folder = literal.rsplit_once('/').map_or_else(String::new, |(folder, _)| format!("/{}", escaped(folder)));
        let deep = !reference.is_model();
        let mut address = format!("{}/tree/{commit}{folder}?recursive={deep}", self.api(reference));
        let (mut entries, mut room) = (Vec::new(), 4 * LONGEST_LIST);
        for _ in 0..PAGES {
            let answer = client.get(&address, 0, Reach::Endpoint)?;
            let next = next_page(&answer);
            let text = client.text(answer.body, room)?;
            room -= text.len() as u64;
            let page: Vec<Entry> =
                serde_json::from_slice(&text).map_err(|_| Trouble::Refused("it is no list of files".into()))?;
            entries.extend(page);
            match next {
                None => return Ok(entries),
                Some(next) => address = next?,
            }
        }
        Err(Trouble::Refused(format!("its list of files has more than {PAGES} pages")))
    }

    fn api(&self, reference: &Reference) -> String {
        let kind = if reference.dataset { "datasets" } else { "models" };
        format!("{}/api/{kind}/{}", self.endpoint, reference.repository)
    }

    fn unwritable(&self, error: impl fmt::Display) -> anyhow::Error {
        bad_input(format!(
            "the Hugging Face cache {} cannot be written ({error}); make room or give another folder as HF_HOME",
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
    client: &'a Client,
    reference: &'a Reference,
    listing: &'a Listing,
    reporter: &'a dyn Reporter,
}

impl Task<'_> {
    /// Those of `names` that are not here yet.
    fn bring(&self, mut names: Vec<String>) -> Result<()> {
        names.retain(|name| !self.hub.has(self.reference, self.listing, name));
        if names.is_empty() {
            return Ok(());
        }
        let total = names.iter().fold(0_u64, |sum, name| sum.saturating_add(self.listing.files[name].bytes));
        self.reporter.begin(&format!("fetch {}", self.reference.repository), "bytes", total, 0);
        let brought = names.iter().try_for_each(|name| self.file(name));
        self.reporter.end();
        brought
    }

    /// One file: its content among the blobs, and a link to it.
    fn file(&self, name: &str) -> Result<()> {
        let listed = &self.listing.files[name];
        let waits =
            || self.reporter.warn(&format!("another process fetches {name} of {}; waiting for it", self.reference));
        let partial = Partial::open(&self.hub.folder(self.reference), listed, waits);
        if let Some(partial) = partial.map_err(|error| self.hub.unwritable(error))? {
            self.blob(name, partial)?;
        }
        let link = self.hub.snapshot(self.reference, &self.listing.commit).join(name);
        link_to(&link, name, &listed.blob).map_err(|error| self.hub.unwritable(error))
    }

    /// Brings a blob: tried again as long as something of it comes through.
    fn blob(&self, name: &str, mut partial: Partial<'_>) -> Result<()> {
        let (endpoint, page) = (&self.hub.endpoint, self.reference.page());
        let address = format!("{endpoint}/{page}/resolve/{}/{}", self.listing.commit, escaped(name));
        let (mut told, mut tries) = (partial.at, 0);
        // What an earlier download left may be what is wrong with the whole.
        let mut patched = partial.at > 0;
        self.reporter.advance(partial.at);
        loop {
            let before = partial.at;
            let trouble = match self.receive(&address, &mut partial, &mut told) {
                Ok(()) => match partial.check() {
                    Ok(()) => return partial.publish().map_err(|error| self.hub.unwritable(format_args!("{error:#}"))),
                    Err(_) if patched => {
                        patched = false;
                        partial.restart().map_err(|error| self.hub.unwritable(error))?;
                        continue;
                    }
                    Err(what) => Trouble::Refused(what),
                },
                Err(trouble) => trouble,
            };
            let came = partial.at.saturating_sub(before);
            let (passing, enough) = match &trouble {
                Trouble::Stalled(_) => (came >= PROGRESS_OF_STALLED, true),
                Trouble::Broken(_) | Trouble::Status(429 | 500..=599, _) => (true, came >= PROGRESS),
                Trouble::Status(..) | Trouble::Refused(_) | Trouble::Disk(_) => (false, false),
            };
            tries = if enough { 1 } else { tries + 1 };
            if !passing || tries >= TRIES {
                return Err(self.stopped(name, trouble, partial));
            }
            patched |= partial.at > 0;
            sleep(self.hub.patience / PAUSE * 2_u32.pow(tries - 1));
        }
    }

    /// One try: what follows what is here.
    fn receive(&self, address: &str, partial: &mut Partial<'_>, told: &mut u64) -> Result<(), Trouble> {
        if partial.missing() == 0 {
            return Ok(());
        }
        let mut answer = match self.client.get(address, partial.at, Reach::Anywhere) {
            // Asked to go on after what the hub takes for the end.
            Err(Trouble::Status(416, _)) => {
                partial.restart().map_err(Trouble::Disk)?;
                return Err(Trouble::Broken("it is not as long as the hub says".into()));
            }
            answer => answer?,
        };
        let from = answer.part.unwrap_or(0);
        if from != partial.at {
            partial.restart().map_err(Trouble::Disk)?;
            if from > 0 {
                return Err(Trouble::Broken("another part of it came than was asked for".into()));
            }
        }
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = match answer.body.read(&mut buffer) {
                Ok(0) | Err(_) if partial.missing() == 0 => return Ok(()),
                Ok(0) => return Err(Trouble::Broken("it is not as long as the hub says".into())),
                Ok(read) if read as u64 > partial.missing() => {
                    return Err(Trouble::Refused("it is longer than the hub says".into()));
                }
                Ok(read) => read,
                Err(error) => return Err(self.client.trouble(error.into())),
            };
            partial.append(&buffer[..read]).map_err(Trouble::Disk)?;
            if partial.at > *told {
                self.reporter.advance(partial.at - *told);
                *told = partial.at;
            }
        }
    }

    /// Words for the end of a download. What came of a file that may be as listed is kept.
    fn stopped(&self, name: &str, trouble: Trouble, partial: Partial<'_>) -> anyhow::Error {
        let what = match trouble {
            // The hub lists what is gated, and refuses it file by file.
            Trouble::Status(status @ (401 | 403), _) => return self.hub.refused(self.reference, status, "GatedRepo"),
            Trouble::Status(404, _) => "it is not there any more; try again".into(),
            Trouble::Disk(error) => return self.hub.unwritable(error),
            Trouble::Refused(what) => {
                let _left = partial.discard();
                what
            }
            trouble => format!("{trouble}; what has come is kept: run again to go on"),
        };
        bad_input(format!("{}: {name} could not be fetched: {what}", self.reference))
    }
}

/// A path as addresses have it.
fn escaped(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-~".contains(&byte);
    path.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// A relative link to a blob, as the cache has them; where there are no links, a second name.
fn link_to(link: &Path, name: &str, blob: &str) -> io::Result<()> {
    let folder = link.parent().unwrap_or(link);
    fs::create_dir_all(folder)?;
    let _gone = fs::remove_file(link);
    let blob = Path::new(&"../".repeat(2 + name.matches('/').count())).join("blobs").join(blob);
    #[cfg(unix)]
    return std::os::unix::fs::symlink(blob, link);
    #[cfg(not(unix))]
    return fs::hard_link(folder.join(blob), link);
}
