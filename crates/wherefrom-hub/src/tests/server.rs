//! A hub on loopback with one model, which answers as the real one does unless a test has it answer otherwise.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha1::Digest as _;

/// The commit of the model.
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What was asked.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) path: String,
    /// The first byte of a range; 0 without one.
    pub(super) from: usize,
    pub(super) token: Option<String>,
}

impl Request {
    /// Whether it is for the list of files; else it is for a file.
    pub(super) fn lists(&self) -> bool {
        self.path.starts_with("/api/")
    }

    /// The file's name.
    pub(super) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// What a server writes, and what it does then.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) head: String,
    pub(super) body: Vec<u8>,
    pub(super) then: Then,
}

/// The end of an answer.
#[derive(Debug, Clone)]
pub(super) enum Then {
    /// Closes the connection.
    Close,
    /// Says nothing more and keeps the connection.
    Stall,
    /// Goes on with these bytes, again and again after a pause, until nobody listens.
    Forever(Vec<u8>, Duration),
}

impl Answer {
    /// A status line with headers, each ended by a line feed, and a body of the length that is told.
    pub(super) fn new(status: &str, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}Connection: close\r\n\r\n", body.len());
        Self { head, body, then: Then::Close }
    }

    /// Without a length: the body ends with the connection, or never.
    pub(super) fn open(status: &str, body: impl Into<Vec<u8>>, then: Then) -> Self {
        Self { head: format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n"), body: body.into(), then }
    }

    pub(super) fn redirect(to: &str) -> Self {
        Self::new("302 Found", &[("Location", to)], "")
    }
}

/// The model, by file.
pub(super) fn files() -> BTreeMap<String, Vec<u8>> {
    let weights = (0..200_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()[..1].to_vec());
    BTreeMap::from([
        ("config.json".into(), br#"{"model_type": "llama"}"#.to_vec()),
        ("tokenizer.json".into(), br#"{"version": "1.0", "model": {}}"#.repeat(20)),
        ("model.safetensors".into(), weights.collect()),
        ("empty.json".into(), Vec::new()),
        ("tokenizer_config.json".into(), Vec::new()),
    ])
}

/// Git's digest of a file.
pub(super) fn git(content: &[u8]) -> String {
    let digest = sha1::Sha1::new_with_prefix(format!("blob {}\0", content.len())).chain_update(content).finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn sha256(content: &[u8]) -> String {
    sha2::Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The list of files, as the hub answers it.
pub(super) fn listing() -> Value {
    let siblings = files().into_iter().map(|(name, content)| {
        let mut entry = json!({ "rfilename": name, "size": content.len(), "blobId": git(&content) });
        if name.ends_with(".safetensors") {
            entry["lfs"] = json!({ "sha256": sha256(&content), "size": content.len(), "pointerSize": 134 });
        }
        entry
    });
    json!({ "id": "o/n", "sha": COMMIT, "siblings": siblings.collect::<Vec<_>>() })
}

/// What the real hub answers.
pub(super) fn honest(request: &Request) -> Answer {
    if request.lists() {
        return Answer::new("200 OK", &[("Content-Type", "application/json")], listing().to_string());
    }
    let prefix = format!("/o/n/resolve/{COMMIT}/");
    let Some(content) = request.path.strip_prefix(&prefix).and_then(|name| files().remove(name)) else {
        return Answer::new("404 Not Found", &[("X-Error-Code", "EntryNotFound")], "");
    };
    let tag = format!("\"{}\"", git(&content));
    let headers = [("ETag", &*tag), ("X-Repo-Commit", COMMIT)];
    match request.from {
        0 => Answer::new("200 OK", &headers, content),
        from if from >= content.len() => Answer::new("416 Range Not Satisfiable", &[], ""),
        from => {
            let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
            Answer::new("206 Partial Content", &[&headers[..], &[("Content-Range", &range)]].concat(), &content[from..])
        }
    }
}

/// The server; it ends with the process.
pub(super) struct Server {
    pub(super) port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(super) fn new(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (requests, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
        let log: Arc<Mutex<Vec<Request>>> = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (log.clone(), answer.clone());
                // A client that goes away is no matter.
                thread::spawn(move || serve(&stream, &log, &*answer));
            }
        });
        Self { port, requests }
    }

    pub(super) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The requests since the last call.
    pub(super) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let line = lines.next()?.ok()?;
    let mut request = Request { path: line.split(' ').nth(1)?.into(), from: 0, token: None };
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match &*name.to_lowercase() {
            "range" => request.from = value.strip_prefix("bytes=")?.trim_end_matches('-').parse().ok()?,
            "authorization" => request.token = Some(value.into()),
            _ => {}
        }
    }
    Some(request)
}

fn serve(mut stream: &TcpStream, log: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Answer) -> Option<()> {
    let request = read(stream)?;
    log.lock().unwrap().push(request.clone());
    let Answer { head, body, then } = answer(&request);
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(&body).ok()?;
    match then {
        Then::Close => stream.shutdown(Shutdown::Both).ok(),
        Then::Stall => {
            stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
            stream.read(&mut [0]).ok().map(drop)
        }
        Then::Forever(bytes, pause) => {
            let end = Instant::now() + Duration::from_secs(60);
            while Instant::now() < end {
                stream.write_all(&bytes).ok()?;
                sleep(pause);
            }
            None
        }
    }
}
