//! What a hub, or whoever stands between, may send, and what comes of it. Whatever it is: it ends in time, the token stays at
//! the endpoint, nothing is written outside the cache, and what has a name in the cache is what the hub listed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use wherefrom_artifact::Silent;
use wherefrom_tests::hub::{Answer, COMMIT, Request, Server, Then, git, sha256};

use super::model::{files, honest, listing};
use crate::{Hub, Reference};

/// How long these clients wait for something to come.
const PATIENCE: Duration = Duration::from_millis(400);
/// The longest that a fetch of the model may take: some stalls, and a body that only just comes.
const LONGEST: Duration = Duration::from_secs(20);

/// A cache deep in a folder that is otherwise empty, and a client for it.
pub(super) struct Client {
    root: TempDir,
    pub(super) hub: Hub,
}

impl Client {
    pub(super) fn new(endpoint: String, patience: Duration) -> Self {
        let root = tempfile::tempdir().unwrap();
        let cache = root.path().join("a/b/c/hub");
        let token = Some("SECRET".into());
        Self { hub: Hub { cache, endpoint, token, offline: false, patience }, root }
    }

    /// Fetches the model; else what it is refused with.
    pub(super) fn fetch(&self) -> Result<PathBuf, String> {
        let reference = Reference::parse("hf:o/n").unwrap().unwrap();
        match self.hub.fetch(&reference, &Silent) {
            Ok(found) => Ok(found.path),
            Err(error) => {
                assert!(error.is::<wherefrom_artifact::Error>(), "the user can mend it: {error:#}");
                Err(format!("{error:#}"))
            }
        }
    }

    fn repository(&self) -> PathBuf {
        self.hub.cache.join("models--o--n")
    }

    /// The laws of the cache.
    pub(super) fn check(&self) {
        let cache = self.hub.cache.strip_prefix(self.root.path()).unwrap();
        let mut content: Vec<Vec<u8>> = files().into_values().collect();
        content.push(b"other".to_vec());
        for path in walk(self.root.path(), self.root.path()) {
            let inside = path.strip_prefix(cache).unwrap_or_else(|_| panic!("outside the cache: {}", path.display()));
            let parts: Vec<&str> = inside.iter().map(|part| part.to_str().unwrap()).collect();
            let whole = || fs::read(self.root.path().join(&path)).unwrap();
            match parts[..] {
                [".locks", "models--o--n", _] => {}
                ["models--o--n", "refs", "main"] => assert_eq!(whole(), COMMIT.as_bytes()),
                ["models--o--n", ".wherefrom", name] => assert_eq!(name, format!("{COMMIT}.json")),
                ["models--o--n", "blobs", name] if name.ends_with(".incomplete") => {}
                ["models--o--n", "blobs", name] => {
                    let whole = whole();
                    assert!([git(&whole), sha256(&whole)].contains(&name.into()), "{name} is not what it is called");
                    assert!(content.contains(&whole), "{name}");
                }
                ["models--o--n", "snapshots", COMMIT, name] => assert!(content.contains(&whole()), "{name}"),
                _ => panic!("no part of a cache: {}", path.display()),
            }
        }
    }
}

/// Files below a folder, links not followed.
fn walk(root: &Path, folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(walk(root, &entry.path())),
            false => found.push(entry.path().strip_prefix(root).unwrap().into()),
        }
    }
    found
}

/// A list of files with one thing changed.
fn listed(change: impl Fn(&mut Value)) -> Answer {
    let mut listing = listing();
    change(&mut listing);
    Answer::new("200 OK", &[], listing.to_string())
}

fn each(listing: &mut Value, change: impl Fn(&mut Value)) {
    listing["siblings"].as_array_mut().unwrap().iter_mut().for_each(change);
}

/// An honest answer with more headers.
fn with(request: &Request, headers: &str) -> Answer {
    let mut answer = honest(request);
    answer.head = answer.head.replacen("\r\n", &format!("\r\n{headers}\r\n"), 1);
    answer
}

/// What a server answers, given the request, the endpoint's port and that of a stranger.
type Attack = fn(&Request, [u16; 2]) -> Answer;

/// Answers files so and lists as it should be.
macro_rules! files {
    (|$request:ident, $ports:pat_param| $answer:expr) => {
        |$request: &Request, $ports: [u16; 2]| if $request.lists() { honest($request) } else { $answer }
    };
}

/// Lists so, and answers files as it should be.
macro_rules! lists {
    (|$ports:pat_param| $answer:expr) => {
        |request: &Request, $ports: [u16; 2]| if request.lists() { $answer } else { honest(request) }
    };
}

/// Name of an attack, what is sent, and what the refusal says; none where the model is fetched all the same.
const ATTACKS: &[(&str, Attack, Option<&str>)] = &[
    ("none", |request, _| honest(request), None),
    // The token.
    (
        "redirect to another host",
        files!(|r, [_, other]| Answer::redirect(&format!("http://localhost:{other}{}", r.path))),
        None,
    ),
    (
        "redirect to another port",
        files!(|r, [_, other]| Answer::redirect(&format!("http://127.0.0.1:{other}{}", r.path))),
        None,
    ),
    (
        "redirect without a scheme",
        files!(|r, [_, other]| Answer::redirect(&format!("//127.0.0.1:{other}{}", r.path))),
        None,
    ),
    (
        "redirect to another spelling of the host",
        files!(|r, [own, _]| if r.token().is_some() {
            Answer::redirect(&format!("http://localhost:{own}{}", r.path))
        } else {
            honest(r)
        }),
        None,
    ),
    (
        "list of another host",
        lists!(|[_, other]| Answer::redirect(&format!("http://127.0.0.1:{other}/api/models/o/n"))),
        Some("it sends on to"),
    ),
    // Redirects.
    ("redirect without a place", files!(|_r, _| Answer::new("302 Found", &[], "")), Some("without a place")),
    ("redirect to itself", files!(|r, _| Answer::redirect(&r.path)), Some("redirects more than 5 times")),
    ("redirect to nothing", files!(|_r, _| Answer::redirect("")), Some("redirects more than 5 times")),
    ("redirect to a file", files!(|_r, _| Answer::redirect("file:///etc/passwd")), Some("`file:///etc/passwd`")),
    (
        "redirect with a password",
        files!(|_r, [_, other]| Answer::redirect(&format!("http://u:p@127.0.0.1:{other}/"))),
        Some("not followed"),
    ),
    ("redirect to no address", files!(|_r, _| Answer::redirect("http://[::1")), Some("not followed")),
    ("redirect to a closed port", files!(|_r, _| Answer::redirect("http://127.0.0.1:1/x")), Some("run again to go on")),
    (
        "redirected list, same origin",
        |request, _| match &*request.path {
            "/api/elsewhere" => listed(|_| {}),
            _ if request.lists() => Answer::redirect("/api/elsewhere"),
            _ => honest(request),
        },
        None,
    ),
    // Headers that became paths.
    ("tag that climbs", files!(|r, _| with(r, "ETag: \"../../../../evil\"")), None),
    ("commit that climbs", files!(|r, _| with(r, "X-Repo-Commit: ../../../../evil")), None),
    ("other commit", files!(|r, _| with(r, "X-Repo-Commit: ffffffffffffffffffffffffffffffffffffffff")), None),
    ("linked tag that climbs", files!(|r, _| with(r, "X-Linked-Etag: \"/tmp/evil\"")), None),
    ("disposition", files!(|r, _| with(r, "Content-Disposition: attachment; filename=../../evil")), None),
    // The list.
    ("commit of the list that climbs", lists!(|_| listed(|l| l["sha"] = json!("../../../../evil"))), Some("no commit")),
    ("commit of the list with slashes", lists!(|_| listed(|l| l["sha"] = json!("x/y/z"))), Some("no commit")),
    ("no commit", lists!(|_| listed(|l| l["sha"] = json!("main"))), Some("no commit")),
    (
        "blob that climbs",
        lists!(|_| listed(|l| each(l, |e| e["blobId"] = json!("../../../../evil")))),
        Some("cannot be fetched"),
    ),
    (
        "large blob that climbs",
        lists!(|_| listed(|l| each(l, |e| e["lfs"] = json!({ "sha256": "../../../../evil" })))),
        Some("cannot be fetched"),
    ),
    (
        "names that climb",
        lists!(|_| listed(|l| for name in ["../../../../evil.json", "/tmp/wherefrom-evil.json", "a/../../x"] {
            l["siblings"].as_array_mut().unwrap().push(json!({ "rfilename": name, "size": 4, "blobId": git(b"evil") }));
        })),
        None,
    ),
    (
        "a wanted name that climbs",
        lists!(|_| listed(|l| {
            l["siblings"]
                .as_array_mut()
                .unwrap()
                .push(json!({ "rfilename": "tokenizer\\..\\..\\x.json", "size": 4, "blobId": git(b"evil") }));
        })),
        Some("cannot be fetched"),
    ),
    (
        "a name twice",
        lists!(|_| listed(|l| {
            let first = l["siblings"][0].clone();
            l["siblings"].as_array_mut().unwrap().push(first);
        })),
        Some("a name twice"),
    ),
    ("no sizes", lists!(|_| listed(|l| each(l, |e| e["size"] = Value::Null))), Some("cannot be fetched")),
    ("negative sizes", lists!(|_| listed(|l| each(l, |e| e["size"] = json!(-5)))), Some("cannot be fetched")),
    ("no size at all", lists!(|_| listed(|l| each(l, |e| e["size"] = json!(1_u64 << 63)))), Some("no list of files")),
    (
        "sizes one too small",
        lists!(|_| listed(|l| each(l, |e| e["size"] = json!(e["size"].as_i64().unwrap() - 1)))),
        Some("cannot be fetched"),
    ),
    (
        "sizes one too large",
        lists!(|_| listed(|l| each(l, |e| e["size"] = json!(e["size"].as_u64().unwrap() + 1)))),
        Some("not as long as the hub says"),
    ),
    (
        "a description of terabytes",
        lists!(|_| listed(|l| each(l, |e| e["size"] = json!(1_u64 << 42)))),
        Some("a file beside the weights"),
    ),
    (
        "no files",
        lists!(|_| Answer::new("200 OK", &[], json!({ "sha": COMMIT }).to_string())),
        Some("no list of files"),
    ),
    ("no JSON", lists!(|_| Answer::new("200 OK", &[], "<html>log in</html>")), Some("no list of files")),
    ("deep JSON", lists!(|_| Answer::new("200 OK", &[], "[".repeat(1_000_000))), Some("no list of files")),
    (
        "deep JSON in a field",
        lists!(|_| Answer::new("200 OK", &[], format!("{{\"x\": {}", "[".repeat(1_000_000)))),
        Some("no list of files"),
    ),
    (
        "endless list",
        lists!(|_| Answer::open("200 OK", "{", Then::Forever(vec![b' '; 1 << 20], Duration::ZERO))),
        Some("its list of files is longer than 64 MB"),
    ),
    ("list that stalls", lists!(|_| Answer::open("200 OK", "{", Then::Stall)), Some("next to nothing came")),
    (
        "list that drips",
        lists!(|_| Answer::open("200 OK", "{", Then::Forever(vec![b' '], Duration::from_millis(50)))),
        Some("next to nothing came"),
    ),
    (
        "an answer that never begins",
        lists!(|_| Answer { head: String::new(), ..Answer::open("", "", Then::Stall) }),
        Some("next to nothing came"),
    ),
    (
        "headers without end",
        lists!(|_| Answer {
            head: "HTTP/1.1 200 OK\r\n".into(),
            body: vec![],
            then: Then::Forever(b"X: y\r\n".repeat(2000), Duration::ZERO)
        }),
        Some("cannot be reached"),
    ),
    (
        "no HTTP",
        lists!(|_| Answer { head: "SSH-2.0-OpenSSH\r\n".into(), ..Answer::open("", "", Then::Close) }),
        Some("cannot be reached"),
    ),
    ("status 500", lists!(|_| Answer::new("500 Oops", &[], "oops")), Some("status 500")),
    ("status 429", lists!(|_| Answer::new("429 Slow down", &[("Retry-After", "100000")], "")), Some("status 429")),
    (
        "another error code",
        lists!(|_| Answer::new("403 No", &[("X-Error-Code", "\u{1b}[31m")], "")),
        Some("cannot be reached"),
    ),
    // Bodies.
    (
        "endless body",
        files!(|_r, _| Answer::open("200 OK", "", Then::Forever(vec![b'x'; 1 << 20], Duration::ZERO))),
        Some("longer than the hub says"),
    ),
    (
        "endless chunks",
        files!(|_r, _| Answer {
            head: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            body: vec![],
            then: Then::Forever([&b"10000\r\n"[..], &[b'x'; 0x10000], b"\r\n"].concat(), Duration::ZERO),
        }),
        Some("longer than the hub says"),
    ),
    (
        "a length of its own",
        files!(|_r, _| Answer::new("200 OK", &[], vec![b'x'; 1 << 20])),
        Some("longer than the hub says"),
    ),
    (
        "body that stalls",
        files!(|r, _| {
            let mut answer = honest(r);
            answer.body.truncate(10);
            Answer { then: Then::Stall, ..answer }
        }),
        Some("next to nothing came"),
    ),
    (
        "body that drips",
        files!(|r, _| {
            let mut answer = honest(r);
            answer.body.truncate(1);
            Answer { then: Then::Forever(vec![b'x'], Duration::from_millis(100)), ..answer }
        }),
        Some("next to nothing came"),
    ),
    (
        "body that breaks off",
        files!(|r, _| {
            let mut answer = honest(r);
            answer.body.truncate(3);
            answer
        }),
        Some("run again to go on"),
    ),
    (
        "body that breaks off in silence",
        files!(|r, _| Answer::open("200 OK", &honest(r).body[..3], Then::Close)),
        Some("not as long as the hub says"),
    ),
    (
        "one bit of the weights",
        files!(|r, _| {
            let mut answer = honest(r);
            if r.name() == "model.safetensors" {
                answer.body[100_000] ^= 1;
            }
            answer
        }),
        Some("its content is not what the hub lists"),
    ),
    (
        "one bit of the configuration",
        files!(|r, _| {
            let mut answer = honest(r);
            if r.name() == "config.json" {
                answer.body[5] ^= 1;
            }
            answer
        }),
        Some("its content is not what the hub lists"),
    ),
    (
        "a file that is gone",
        files!(|r, _| match r.name() {
            "tokenizer.json" => Answer::new("404 Not Found", &[], ""),
            _ => honest(r),
        }),
        Some("not there any more"),
    ),
    (
        "a file behind a gate",
        files!(|_r, _| Answer::new("403 Forbidden", &[("X-Error-Code", "GatedRepo")], "")),
        Some("gated"),
    ),
    ("status 503", files!(|_r, _| Answer::new("503 Later", &[], "")), Some("status 503")),
    (
        "a part that was not asked for",
        files!(|r, _| Answer::new("206 Partial Content", &[("Content-Range", "bytes 1-5/6")], honest(r).body)),
        Some("another part of it"),
    ),
    ("a part without a range", files!(|r, _| Answer::new("206 Partial Content", &[], honest(r).body)), None),
    (
        "a part of petabytes",
        files!(|r, _| Answer::new(
            "206 Partial Content",
            &[("Content-Range", "bytes 0-9/99999999999999999999999")],
            honest(r).body
        )),
        None,
    ),
    ("packed as it was not asked for", files!(|r, _| with(r, "Content-Encoding: gzip")), None),
];

#[test]
fn a_hostile_hub_gets_no_token_and_no_file_of_its_own() {
    let mut wrong = Vec::new();
    for (name, attack, refusal) in ATTACKS {
        let stranger = Server::new(honest);
        let other = stranger.port;
        let own = Arc::new(std::sync::OnceLock::new());
        let port = own.clone();
        let server = Server::new(move |request| attack(request, [*port.wait(), other]));
        own.set(server.port).unwrap();
        let client = Client::new(server.address(), PATIENCE);
        let start = Instant::now();
        let fetched = client.fetch();
        assert!(start.elapsed() < LONGEST, "{name}: {:?}", start.elapsed());
        match (&fetched, refusal) {
            (Ok(folder), None) => {
                for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
                    assert_eq!(fs::read(folder.join(file)).unwrap(), files()[file], "{name}: {file}");
                }
            }
            (Err(error), Some(refusal)) if error.contains(refusal) => {}
            _ => wrong.push(format!("{name}: {fetched:?}")),
        }
        client.check();
        assert!(
            stranger.requests().iter().all(|request| request.token().is_none()),
            "{name}: a stranger has the token"
        );
        let asked = server.requests();
        assert!(asked[0].token() == Some("Bearer SECRET"), "{name}: {asked:?}");
        assert!(asked.len() < 60, "{name}: {} requests", asked.len());
    }
    assert_eq!(wrong, [""; 0]);
}

/// A stranger that sends back to the endpoint has not become the endpoint.
#[test]
fn the_token_does_not_come_back() {
    let own = Arc::new(std::sync::OnceLock::new());
    let port = own.clone();
    let stranger =
        Server::new(move |request| Answer::redirect(&format!("http://127.0.0.1:{}{}?back", port.wait(), request.path)));
    let other = stranger.port;
    let server = Server::new(move |request| match request.path.strip_suffix("?back") {
        None if !request.lists() => Answer::redirect(&format!("http://127.0.0.1:{other}{}", request.path)),
        path => honest(&Request { path: path.unwrap_or(&request.path).into(), ..request.clone() }),
    });
    own.set(server.port).unwrap();
    let client = Client::new(server.address(), PATIENCE);
    client.fetch().unwrap();
    let requests = server.requests();
    let (back, straight): (Vec<_>, Vec<_>) = requests.iter().partition(|request| request.path.ends_with("?back"));
    assert!(back.len() == 3 && back.iter().all(|request| request.token().is_none()), "{back:?}");
    assert!(straight.iter().all(|request| request.token().is_some()), "{straight:?}");
}

#[test]
fn an_interrupted_download_goes_on_and_a_false_beginning_does_not_stay() {
    let server = Server::new(honest);
    let weights = files()["model.safetensors"].clone();
    let blob = |client: &Client| client.repository().join("blobs").join(format!("{}.incomplete", sha256(&weights)));
    let begun = |beginning: &[u8]| {
        let client = Client::new(server.address(), PATIENCE);
        fs::create_dir_all(blob(&client).parent().unwrap()).unwrap();
        fs::write(blob(&client), beginning).unwrap();
        client
    };
    let asked = || -> Vec<usize> {
        server
            .requests()
            .iter()
            .filter(|request| request.name() == "model.safetensors")
            .map(|request| request.range().0)
            .collect()
    };
    for (beginning, ranges) in [
        (&weights[..1000], vec![1000]),
        // All of it was there.
        (&weights[..], vec![]),
        // Of another file: it is fetched again, once.
        (&[7; 1000], vec![1000, 0]),
        (&vec![7; weights.len()], vec![0]),
        (&vec![7; weights.len() + 1], vec![0]),
    ] {
        let client = begun(beginning);
        let folder = client.fetch().unwrap();
        assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights);
        assert_eq!(asked(), ranges);
        assert!(!blob(&client).exists());
        client.check();
    }
}

/// A server that knows no ranges begins again, and one that says that there is nothing more is asked for the whole.
#[test]
fn servers_without_ranges_serve_the_whole() {
    for answer in [
        (|request: &Request| honest(&Request { headers: [].into(), ..request.clone() })) as fn(&Request) -> Answer,
        |request| {
            if request.range().0 > 0 { Answer::new("416 No", &[], "") } else { honest(request) }
        },
    ] {
        let server = Server::new(answer);
        let client = Client::new(server.address(), PATIENCE);
        let weights = &files()["model.safetensors"];
        let blobs = client.repository().join("blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{}.incomplete", sha256(weights))), &weights[..1000]).unwrap();
        assert_eq!(&fs::read(client.fetch().unwrap().join("model.safetensors")).unwrap(), weights);
    }
}

/// A link in the cache, whoever put it there, is not written through.
#[test]
#[cfg(unix)]
fn links_in_the_cache_are_not_followed() {
    let server = Server::new(honest);
    let client = Client::new(server.address(), PATIENCE);
    let (blobs, target) = (client.repository().join("blobs"), client.root.path().join("mine"));
    fs::create_dir_all(&blobs).unwrap();
    fs::write(&target, "mine").unwrap();
    let weights = sha256(&files()["model.safetensors"]);
    for name in [format!("{weights}.incomplete"), git(&files()["config.json"])] {
        std::os::unix::fs::symlink(&target, blobs.join(name)).unwrap();
    }
    client.fetch().unwrap();
    assert_eq!(fs::read_to_string(&target).unwrap(), "mine");
}

#[test]
fn two_processes_fetch_a_file_once() {
    let server = Server::new(honest);
    let client = Client::new(server.address(), Duration::from_secs(5));
    client.hub.ask(&Reference::parse("hf:o/n").unwrap().unwrap()).unwrap();
    let fetched = std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| client.fetch()));
        both.map(|one| one.join().unwrap().unwrap())
    });
    assert_eq!(fetched[0], fetched[1]);
    let weights = server.requests().iter().filter(|request| request.name() == "model.safetensors").count();
    assert_eq!(weights, 1);
    client.check();
}

/// Of a very large repository the first answer is not trusted to be whole: its tree is read page by page, on one origin.
#[test]
fn very_large_repositories_are_listed_page_by_page() {
    let entry = |path: String, content: &[u8]| json!({ "type": "file", "path": path, "size": content.len(), "oid": git(content) });
    let many = |_: &Request| {
        let sibling = |number: usize| json!({ "rfilename": format!("x{number}"), "size": 1, "blobId": git(b"x") });
        let siblings: Vec<Value> = (0..50_000).map(sibling).collect();
        Answer::new("200 OK", &[], json!({ "sha": COMMIT, "siblings": siblings }).to_string())
    };
    let page = move |request: &Request, next: &str| {
        let number = request.path.split("cursor=").nth(1).map_or(0, |number| number.parse().unwrap());
        let entries = json!([{ "type": "directory", "path": "data", "size": 0, "oid": git(b"") }, entry(format!("data/{number}.jsonl"), b"other")]);
        let link = format!("<{next}?recursive=true&cursor={}>; rel=\"next\"", number + 1);
        let link = if number < 2 || next.contains("http:") || next == "/api/endless" {
            vec![("Link", &*link)]
        } else {
            vec![]
        };
        Answer::new("200 OK", &link, entries.to_string())
    };
    let reference = Reference::parse("hf:datasets/o/n/data/*.jsonl").unwrap().unwrap();
    let stranger = Server::new(honest);
    let elsewhere = format!("http://127.0.0.1:{}/api", stranger.port);
    for (next, refusal) in
        [("/api/next", None), ("/api/endless", Some("more than 2000 pages")), (&*elsewhere, Some("it sends on to"))]
    {
        let next: String = next.into();
        let server = Server::new(move |request| match &*request.path {
            path if path.contains("/revision/") => many(request),
            path if path.starts_with("/api/") => page(request, &next),
            _ => Answer::new("200 OK", &[], "other"),
        });
        let client = Client::new(server.address(), Duration::from_secs(2));
        match (client.hub.fetch(&reference, &Silent), refusal) {
            (Ok(found), None) => {
                assert!(found.path.ends_with("data/*.jsonl"));
                for number in 0..3 {
                    assert_eq!(fs::read(found.path.with_file_name(format!("{number}.jsonl"))).unwrap(), b"other");
                }
                assert_eq!(server.requests()[1].path, format!("/api/datasets/o/n/tree/{COMMIT}/data?recursive=true"));
            }
            (Err(error), Some(refusal)) => assert!(format!("{error:#}").contains(refusal), "{error:#}"),
            (fetched, _) => panic!("{fetched:?}"),
        }
    }
    assert_eq!(stranger.requests().len(), 0);
}
