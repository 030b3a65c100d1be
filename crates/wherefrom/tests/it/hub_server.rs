//! A hub on loopback that serves what a test gives it, as the real one does as far as a download goes: the list of a
//! repository's files, small files at once, large ones by way of a redirect, from any byte on.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::json;
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

/// The commit of every repository.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server does with requests.
#[derive(Default)]
struct State {
    /// `owner/name` or `datasets/owner/name` to files.
    repositories: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Repositories whose files need the token, with it.
    gated: BTreeMap<String, String>,
    /// Lines of requests, with `Range` and `Authorization` behind, where they are there.
    log: Vec<String>,
    /// Downloads that are to break off, each after so many bytes.
    breaks: Vec<usize>,
    /// Whether broken downloads pretend to be whole.
    silent: bool,
}

/// The server; it ends with the process.
pub(crate) struct HubServer {
    state: Arc<Mutex<State>>,
    pub(crate) endpoint: String,
}

struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

impl HubServer {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let (shared, address) = (state.clone(), endpoint.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, address) = (shared.clone(), address.clone());
                // A client that goes away is no matter.
                thread::spawn(move || serve(&stream, &state, &address));
            }
        });
        Self { state, endpoint }
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

    /// The requests since the last call.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }
}

/// Files that the hub keeps in its large file storage.
fn large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".parquet")
}

/// The digest that the hub lists: SHA-256 of large files, git's SHA-1 of others.
fn blob(name: &str, content: &[u8]) -> String {
    let hex = |digest: &[u8]| digest.iter().map(|byte| format!("{byte:02x}")).collect();
    if large(name) {
        return hex(&Sha256::digest(content));
    }
    hex(&Sha1::new_with_prefix(format!("blob {}\0", content.len())).chain_update(content).finalize())
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let line = lines.next()?.ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.into(), words.next()?.into());
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_string());
    }
    Some(Request { method, path, headers })
}

fn serve(mut stream: &TcpStream, state: &Mutex<State>, endpoint: &str) -> Option<()> {
    let request = read(stream)?;
    let mut state = state.lock().unwrap();
    let seen = ["range", "authorization"]
        .map(|name| request.headers.get(name).map_or(String::new(), |value| format!(" {value}")));
    state.log.push(format!("{} {}{}", request.method, request.path, seen.concat()));
    let (head, body, whole) = answer(&mut state, &request, endpoint).unwrap_or_else(|(status, code)| {
        (format!("{status} Refused\r\nX-Error-Code: {code}\r\nContent-Length: 0\r\n"), Vec::new(), true)
    });
    drop(state);
    stream.write_all(format!("HTTP/1.1 {head}Connection: close\r\n\r\n").as_bytes()).ok()?;
    stream.write_all(&body).ok()?;
    stream.flush().ok()?;
    if !whole {
        stream.shutdown(std::net::Shutdown::Both).ok()?;
    }
    Some(())
}

/// Status line and headers, the body, and whether it is whole; or status and error code.
type Answer = Result<(String, Vec<u8>, bool), (u16, &'static str)>;

fn answer(state: &mut State, request: &Request, endpoint: &str) -> Answer {
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
        let siblings = files.iter().map(|(name, content)| {
            let mut entry = json!({ "rfilename": name, "size": content.len(), "blobId": blob("", content) });
            if large(name) {
                entry["lfs"] = json!({ "sha256": blob(name, content), "size": content.len() });
            }
            entry
        });
        let body = json!({ "id": repository, "sha": COMMIT, "siblings": siblings.collect::<Vec<_>>() }).to_string();
        return Ok((
            format!("200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n", body.len()),
            body.into(),
            true,
        ));
    }
    let stored = path.strip_prefix("/storage");
    let (repository, rest) = stored.unwrap_or(path)[1..].split_once("/resolve/").ok_or(unknown)?;
    let (revision, name) = rest.split_once('/').ok_or(unknown)?;
    let content = state.repositories.get(repository).ok_or(unknown)?.get(name).ok_or((404, "EntryNotFound"))?.clone();
    assert_eq!(revision, COMMIT, "files are asked for by commit");
    if let Some(token) = state.gated.get(repository).filter(|_| stored.is_none()) {
        let bearer = format!("Bearer {token}");
        match request.headers.get("authorization") {
            Some(sent) if *sent == bearer => {}
            Some(_) => return Err((403, "GatedRepo")),
            None => return Err((401, "GatedRepo")),
        }
    }
    if large(name) && stored.is_none() {
        return Ok((
            format!(
                "302 Found\r\nLocation: {endpoint}/storage{path}\r\nX-Repo-Commit: {COMMIT}\r\nX-Linked-Etag: \"{}\"\r\n\
                 X-Linked-Size: {}\r\nContent-Length: 0\r\n",
                blob(name, &content),
                content.len()
            ),
            Vec::new(),
            true,
        ));
    }
    let range = request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let (start, end) = range.unwrap_or(("0", ""));
    let start: usize = start.parse().unwrap();
    let end = end.parse().map_or(content.len(), |last: usize| content.len().min(last + 1));
    if start >= content.len() {
        return Err((416, ""));
    }
    let mut body = content[start..end].to_vec();
    let mut length = format!("Content-Length: {}\r\n", body.len());
    let breaks = large(name) && body.len() > 1;
    let whole = match breaks.then(|| state.breaks.pop()).flatten() {
        Some(after) => {
            body.truncate(after);
            if state.silent {
                length.clear();
            }
            false
        }
        None => true,
    };
    let head = format!(
        "206 Partial Content\r\nETag: \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {start}-{}/{}\r\n{length}",
        blob(name, &content),
        end - 1,
        content.len()
    );
    Ok((head, body, whole))
}
