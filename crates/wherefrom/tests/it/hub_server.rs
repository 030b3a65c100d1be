//! A hub on loopback that serves what a test gives it, as the real one does as far as a download goes: the list of a
//! repository's files, small files at once, large ones by way of a redirect, from any byte on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

pub(crate) use wherefrom_tests::hub::COMMIT;
use wherefrom_tests::hub::{Answer, Request, Server, git, is_large, listing, sha256};

/// What the server does with requests.
#[derive(Default)]
struct State {
    /// `owner/name` or `datasets/owner/name` to files.
    repositories: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Repositories whose files need the token, with it.
    gated: BTreeMap<String, String>,
    /// Downloads that are to break off, each after so many bytes.
    breaks: Vec<usize>,
    /// Whether broken downloads pretend to be whole.
    silent: bool,
}

/// The server; it ends with the process.
pub(crate) struct HubServer {
    state: Arc<Mutex<State>>,
    server: Server,
    pub(crate) endpoint: String,
}

impl HubServer {
    pub(crate) fn new() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let server = Server::new(move |request| {
            answer(&mut shared.lock().unwrap(), request).unwrap_or_else(|(status, code)| {
                Answer::new(&format!("{status} Refused"), &[("X-Error-Code", code)], "")
            })
        });
        Self { state, endpoint: server.address(), server }
    }

    pub(crate) fn file(&self, repository: &str, name: &str, content: impl Into<Vec<u8>>) {
        let mut state = self.state.lock().unwrap();
        state.repositories.entry(repository.into()).or_default().insert(name.into(), content.into());
    }

    pub(crate) fn gate(&self, repository: &str, token: &str) {
        self.state.lock().unwrap().gated.insert(repository.into(), token.into());
    }

    /// The next downloads of large files break off after so many bytes; silently, or short of the length they told.
    pub(crate) fn break_off(&self, after: &[usize], silent: bool) {
        let mut state = self.state.lock().unwrap();
        (state.breaks, state.silent) = (after.iter().rev().copied().collect(), silent);
    }

    /// The requests since the last call: a line each, with `Range` and `Authorization` behind, where they are there.
    pub(crate) fn requests(&self) -> Vec<String> {
        let line = |request: Request| {
            let seen =
                ["range", "authorization"].map(|name| request.headers.get(name).map(|value| format!(" {value}")));
            format!("{} {}{}", request.method, request.path, seen.map(Option::unwrap_or_default).concat())
        };
        self.server.requests().into_iter().map(line).collect()
    }
}

/// The answer, or status and error code.
fn answer(state: &mut State, request: &Request) -> Result<Answer, (u16, &'static str)> {
    let path = request.path.split('?').next().unwrap_or_default();
    let unknown = (404, "RepoNotFound");
    if let Some(rest) = path.strip_prefix("/api/") {
        let (repository, revision) = rest.split_once("/revision/").ok_or(unknown)?;
        let repository = repository.strip_prefix("models/").unwrap_or(repository);
        // The hub does not tell strangers what is private from what is not there.
        let files = state.repositories.get(repository).ok_or((401, "RepoNotFound"))?;
        if !["main", COMMIT, "refs%2Fpr%2F1"].contains(&revision) {
            return Err((404, "RevisionNotFound"));
        }
        let list = listing(repository, files).to_string();
        return Ok(Answer::new("200 OK", &[("Content-Type", "application/json")], list));
    }
    let stored = path.strip_prefix("/storage");
    let (repository, rest) = stored.unwrap_or(path)[1..].split_once("/resolve/").ok_or(unknown)?;
    let (revision, name) = rest.split_once('/').ok_or(unknown)?;
    let content = state.repositories.get(repository).ok_or(unknown)?.get(name).ok_or((404, "EntryNotFound"))?;
    assert_eq!(revision, COMMIT, "files are asked for by commit");
    if let Some(token) = state.gated.get(repository).filter(|_| stored.is_none()) {
        match request.token() {
            Some(sent) if sent == format!("Bearer {token}") => {}
            Some(_) => return Err((403, "GatedRepo")),
            None => return Err((401, "GatedRepo")),
        }
    }
    let tag = format!("\"{}\"", if is_large(name) { sha256(content) } else { git(content) });
    let (length, commit) = (content.len(), ("X-Repo-Commit", COMMIT));
    if is_large(name) && stored.is_none() {
        let to = format!(
            "{}/storage{path}",
            request.headers.get("host").map_or(String::new(), |host| format!("http://{host}"))
        );
        let linked = [("X-Linked-Etag", &tag[..]), ("X-Linked-Size", &length.to_string())];
        return Ok(Answer::new("302 Found", &[&[("Location", &to[..]), commit], &linked[..]].concat(), ""));
    }
    let (start, last) = request.range();
    let end = last.map_or(length, |last| length.min(last + 1));
    if start >= length {
        return Err((416, ""));
    }
    let range = format!("bytes {start}-{}/{length}", end - 1);
    let headers = [("ETag", &tag[..]), commit, ("Content-Range", &range)];
    let body = content[start..end].to_vec();
    let breaks = is_large(name) && body.len() > 1;
    let mut answer = Answer::new("206 Partial Content", &headers, body);
    if let Some(after) = breaks.then(|| state.breaks.pop()).flatten() {
        answer.body.truncate(after);
        if state.silent {
            let told = format!("Content-Length: {}\r\n", end - start);
            answer.head = answer.head.replacen(&told, "", 1);
        }
    }
    Ok(answer)
}
