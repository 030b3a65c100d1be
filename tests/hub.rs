//! A server on loopback, for the hub's or an endpoint's: a test says what it answers.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha1::Digest as _;

/// The commit of every repository.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What was asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`.
    pub method: String,
    /// With what follows a `?`.
    pub path: String,
    /// By their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// What follows them, of the length that they tell.
    pub body: Vec<u8>,
}

impl Request {
    /// Whether it is for the list of files; else it is for a file.
    pub fn lists(&self) -> bool {
        self.path.starts_with("/api/")
    }

    /// The file's name.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// The bytes that are asked for, the last of them if there is one; from 0 where no range is.
    pub fn range(&self) -> (usize, Option<usize>) {
        let range = self.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let (first, last) = range.unwrap_or(("0", ""));
        (first.parse().unwrap_or(0), last.parse().ok())
    }

    /// What it proves itself with.
    pub fn token(&self) -> Option<&str> {
        self.headers.get("authorization").map(String::as_str)
    }
}

/// What a server writes, and what it does then.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status line, headers and an empty line.
    pub head: String,
    /// What follows.
    pub body: Vec<u8>,
    /// What then.
    pub then: Then,
}

/// The end of an answer.
#[derive(Debug, Clone)]
pub enum Then {
    /// Closes the connection.
    Close,
    /// Says nothing more and keeps the connection.
    Stall,
    /// Goes on with these bytes, again and again after a pause, until nobody listens.
    Forever(Vec<u8>, Duration),
}

impl Answer {
    /// A status line with headers, each ended by a line feed, and a body of the length that is told.
    pub fn new(status: &str, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}Connection: close\r\n\r\n", body.len());
        Self { head, body, then: Then::Close }
    }

    /// Without a length: the body ends with the connection, or never.
    pub fn open(status: &str, body: impl Into<Vec<u8>>, then: Then) -> Self {
        Self { head: format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n"), body: body.into(), then }
    }

    /// To another place.
    pub fn redirect(to: &str) -> Self {
        Self::new("302 Found", &[("Location", to)], "")
    }
}

/// Git's digest of a file.
pub fn git(content: &[u8]) -> String {
    let digest = sha1::Sha1::new_with_prefix(format!("blob {}\0", content.len())).chain_update(content).finalize();
    hex(&digest)
}

/// The digest of what is in the large file storage.
pub fn sha256(content: &[u8]) -> String {
    hex(&sha2::Sha256::digest(content))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the hub keeps a file in its large file storage.
pub fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".parquet")
}

/// The list of a repository's files, as the hub answers it.
pub fn listing(repository: &str, files: &BTreeMap<String, Vec<u8>>) -> Value {
    let siblings = files.iter().map(|(name, content)| {
        let mut entry = json!({ "rfilename": name, "size": content.len(), "blobId": git(content) });
        if is_large(name) {
            entry["lfs"] = json!({ "sha256": sha256(content), "size": content.len(), "pointerSize": 134 });
        }
        entry
    });
    json!({ "id": repository, "sha": COMMIT, "siblings": siblings.collect::<Vec<_>>() })
}

/// The server; it ends with the process.
#[derive(Debug)]
pub struct Server {
    /// Of loopback.
    pub port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// A server that answers so; each answer in a thread of its own.
    ///
    /// # Panics
    /// Where the system has no port.
    pub fn new(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback");
        let port = listener.local_addr().expect("a port of loopback").port();
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

    /// `http://127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        Some(line.trim_end().to_string())
    };
    let first = line()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.into(), words.next()?.into());
    let mut headers = BTreeMap::new();
    while let Some((name, value)) = line()?.split_once(": ") {
        headers.insert(name.to_lowercase(), value.into());
    }
    let length = headers.get("content-length").and_then(|length: &String| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, path, headers, body })
}

fn serve(mut stream: &TcpStream, log: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Answer) -> Option<()> {
    let request = read(stream)?;
    log.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
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
