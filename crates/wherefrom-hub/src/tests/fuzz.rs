//! Random answers: of the hub's lists in memory, and of a whole hub on loopback.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};
use wherefrom_tests::hold;
use wherefrom_tests::hub::{Answer, COMMIT, Request, Server, Then};

use super::hostile::Client;
use super::model::honest;
use crate::client::next;
use crate::listing::{Entry, Listing, Revision, is_hex};
use crate::reference::Reference;

/// Words that mean something to one who builds a path, an address or a list of files of them.
fn word() -> impl Strategy<Value = String> {
    let words = [
        "",
        ".",
        "..",
        "../x",
        "../../../../evil",
        "/etc/passwd",
        "a//b",
        "a\\..\\b",
        "C:\\x",
        "con",
        "nul.json",
        "a\0b",
        "a\nb",
        "\u{1b}[31m",
        "\u{202e}",
        "%2e%2e%2f",
        "a b",
        "é",
        "config.json",
        "tokenizer.json",
        "tokenizer_x.json",
        "data/a.jsonl",
        "model.safetensors",
        "model.safetensors.index.json",
        "model-1.safetensors",
        "data/**/x.parquet",
        "[",
        "{a,b}",
        "*",
        "main",
        COMMIT,
        "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a",
        "sha256",
        "path",
        "file",
        "directory",
        "http://localhost:1/x",
        "//x",
        "?",
        "#",
        "http://u:p@x/",
        "file:///x",
        "-",
        "18446744073709551616",
        "-1",
    ];
    prop_oneof![4 => select(words.to_vec()).prop_map(String::from), 1 => ".{0,40}", 1 => "[a-f0-9]{40}", 1 => "[a-f0-9]{64}"]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        3 => word().prop_map(Value::from),
        2 => any::<i64>().prop_map(Value::from),
        1 => any::<u64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
    ];
    let keys = select(vec![
        "sha",
        "siblings",
        "rfilename",
        "path",
        "size",
        "blobId",
        "oid",
        "lfs",
        "sha256",
        "type",
        "weight_map",
        "x",
    ]);
    leaf.prop_recursive(3, 24, 6, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            vec((keys.clone(), inner), 0..6)
                .prop_map(|fields| fields.into_iter().map(|(key, value)| (key.to_string(), value)).collect()),
        ]
    })
}

/// A sibling that is mostly as it should be.
fn entry() -> impl Strategy<Value = Value> {
    let size = prop_oneof![4 => (0_u64..1 << 40).prop_map(Value::from), 1 => value()];
    let blob = prop_oneof![4 => "[a-f0-9]{40}".prop_map(Value::from), 1 => value()];
    let lfs = prop_oneof![3 => Just(None), 2 => "[a-f0-9]{64}".prop_map(|oid| Some(json!({ "sha256": oid }))), 1 => value().prop_map(Some)];
    (word(), size, blob, lfs, any::<bool>()).prop_map(|(name, size, blob, lfs, tree)| {
        let (name_key, blob_key) = if tree { ("path", "oid") } else { ("rfilename", "blobId") };
        let mut entry = json!({ name_key: name, "size": size, blob_key: blob });
        lfs.into_iter().for_each(|lfs| entry["lfs"] = lfs);
        entry
    })
}

/// Changes to bytes: each replaces some by others.
fn cuts() -> impl Strategy<Value = Vec<(Index, usize, Vec<u8>)>> {
    vec((any::<Index>(), 0_usize..9, vec(any::<u8>(), 0..9)), 0..4)
}

fn cut(text: &mut Vec<u8>, cuts: &[(Index, usize, Vec<u8>)]) {
    for (at, length, by) in cuts {
        let from = at.index(text.len() + 1);
        text.splice(from..(from + length).min(text.len()), by.iter().copied());
    }
}

/// Whatever a list says: what is wanted of it lies below the snapshot, and blobs are named by digests.
#[test]
fn fuzz_lists_of_files_name_files_below_the_snapshot() {
    let text = prop_oneof![
        3 => (prop_oneof![4 => Just(json!(COMMIT)), 1 => value()], vec(entry(), 0..12)).prop_map(|(sha, all)| json!({ "sha": sha, "siblings": all })),
        2 => vec(entry(), 0..12).prop_map(Value::from),
        1 => value(),
    ];
    let index = prop_oneof![1 => Just(None), 2 => vec((word(), word()), 0..6).prop_map(|map| {
        Some(json!({ "weight_map": map.into_iter().collect::<std::collections::BTreeMap<_, _>>() }).to_string())
    }), 1 => ".{0,60}".prop_map(Some)];
    let path = prop_oneof![
        Just("hf:o/n".to_string()),
        word().prop_map(|path| format!("hf:datasets/o/n/{path}")),
        word().prop_map(|path| format!("hf:o/n@{path}"))
    ];
    let check = |(text, cuts, index, path): (Value, Vec<_>, Option<String>, String)| {
        let mut text = text.to_string().into_bytes();
        cut(&mut text, &cuts);
        let revision =
            serde_json::from_slice::<Revision>(&text).ok().and_then(|all| Listing::new(&all.sha, all.siblings));
        let tree = || serde_json::from_slice::<Vec<Entry>>(&text).ok().and_then(|all| Listing::new(COMMIT, all));
        let (Some(listing), Some(Ok(reference))) = (revision.or_else(tree), Reference::parse(&path)) else {
            return Ok(());
        };
        prop_assert!(is_hex(&listing.commit, 40));
        for file in listing.files.values() {
            prop_assert!(is_hex(&file.blob, 40) || is_hex(&file.blob, 64), "{}", file.blob);
        }
        for name in listing.wanted(&reference, index.as_deref()).unwrap_or_default() {
            prop_assert!(listing.files.contains_key(&name), "{name}");
            let inside = |part| matches!(part, std::path::Component::Normal(_));
            prop_assert!(Path::new(&name).components().all(inside) && !name.contains('\\'), "{name}");
        }
        Ok(())
    };
    hold(2000, (text, cuts(), index, path), check);
}

/// Names of the hub, and where redirects lead: no panic, and never out of the schemes.
#[test]
fn fuzz_names_and_addresses_are_read_or_refused() {
    let base = select(vec!["http://127.0.0.1:1/a/b", "https://hub.co/o/n/resolve/c/x.json"]);
    let check = |(base, first, second): (&str, String, String)| {
        let at = base.parse().unwrap();
        for location in
            [first.clone(), format!("{first}{second}"), format!("{first}:{second}"), format!("//{first}/{second}")]
        {
            if let Some(to) = next(&at, &location) {
                prop_assert!(matches!(
                    (at.scheme_str(), to.scheme_str()),
                    (_, Some("https")) | (Some("http"), Some("http"))
                ));
                prop_assert!(to.host().is_some() && !to.authority().unwrap().as_str().contains('@'));
            }
            if let Some(Ok(reference)) = Reference::parse(&format!("hf:{location}")) {
                prop_assert!(!reference.folder().contains(['/', '\\']) && !reference.revision.contains(".."));
            }
        }
        Ok(())
    };
    hold(2000, (base, word(), word()), check);
}

/// What is done to the answer to one request.
#[derive(Debug, Clone)]
enum Change {
    Nothing,
    Status(u16),
    Header(String, String),
    Head(Vec<(Index, usize, Vec<u8>)>),
    Body(Vec<(Index, usize, Vec<u8>)>),
    /// The same, with a length that fits.
    Content(Vec<(Index, usize, Vec<u8>)>),
    Short(Index, bool),
    Redirect(String),
    Elsewhere,
    List(Value),
    Forever(Vec<u8>, bool),
}

fn change() -> impl Strategy<Value = Change> {
    let header = select(vec![
        "ETag",
        "X-Repo-Commit",
        "X-Linked-Etag",
        "X-Linked-Size",
        "Content-Range",
        "Content-Length",
        "Transfer-Encoding",
        "Location",
        "Content-Encoding",
        "X-Error-Code",
        "Link",
        "Connection",
        "Content-Disposition",
        "Retry-After",
    ]);
    let header_value = prop_oneof![
        word(),
        select(vec!["chunked", "gzip", "bytes 0-0/1", "bytes 7-/x", "0", "18446744073709551615"])
            .prop_map(String::from)
    ];
    prop_oneof![
        6 => Just(Change::Nothing),
        1 => (100_u16..600).prop_map(Change::Status),
        3 => (header.prop_map(String::from), header_value).prop_map(|(name, value)| Change::Header(name, value)),
        2 => cuts().prop_map(Change::Head),
        2 => cuts().prop_map(Change::Body),
        1 => cuts().prop_map(Change::Content),
        2 => (any::<Index>(), any::<bool>()).prop_map(|(at, stall)| Change::Short(at, stall)),
        1 => word().prop_map(Change::Redirect),
        2 => Just(Change::Elsewhere),
        1 => vec(entry(), 0..6).prop_map(|all| Change::List(json!({ "sha": COMMIT, "siblings": all }))),
        1 => (vec(any::<u8>(), 1..9), any::<bool>()).prop_map(|(bytes, slow)| Change::Forever(bytes, slow)),
    ]
}

fn changed(request: &Request, change: &Change, other: u16) -> Answer {
    let mut answer = honest(request);
    match change.clone() {
        Change::Nothing => {}
        Change::Status(status) => answer.head = answer.head.replacen("200 OK", &format!("{status} X"), 1),
        Change::Header(name, value) => {
            answer.head = answer.head.replacen("\r\n", &format!("\r\n{name}: {value}\r\n"), 1)
        }
        Change::Head(cuts) => {
            let mut head = answer.head.into_bytes();
            cut(&mut head, &cuts);
            head.append(&mut answer.body);
            (answer.head, answer.body) = (String::new(), head);
        }
        Change::Body(cuts) => cut(&mut answer.body, &cuts),
        Change::Content(cuts) => {
            cut(&mut answer.body, &cuts);
            answer = Answer::new("200 OK", &[], answer.body);
        }
        Change::Short(at, stall) => {
            answer.body.truncate(at.index(answer.body.len() + 1));
            answer.then = if stall { Then::Stall } else { Then::Close };
        }
        Change::Redirect(to) => answer = Answer::redirect(&to),
        Change::Elsewhere => answer = Answer::redirect(&format!("http://127.0.0.1:{other}{}", request.path)),
        Change::List(list) if request.lists() => answer = Answer::new("200 OK", &[], list.to_string()),
        Change::List(_) => {}
        Change::Forever(bytes, slow) => {
            let (bytes, pause) =
                if slow { (bytes, Duration::from_millis(10)) } else { (bytes.repeat(4096), Duration::ZERO) };
            answer = Answer::open("200 OK", answer.body, Then::Forever(bytes, pause));
        }
    }
    answer
}

/// A hub that answers at random: the fetch ends in time, and the laws of the cache and the token hold.
#[test]
fn fuzz_a_hub_that_answers_at_random_breaks_no_law() {
    let plan: Arc<Mutex<Vec<Change>>> = Arc::default();
    let stranger = Server::new(honest);
    let (now, other) = (plan.clone(), stranger.port);
    let server = Server::new(move |request| {
        let change = now.lock().unwrap().pop().unwrap_or(Change::Nothing);
        changed(request, &change, other)
    });
    let check = |changes: Vec<Change>| {
        *plan.lock().unwrap() = changes;
        let client = Client::new(server.address(), Duration::from_millis(60));
        let start = Instant::now();
        let fetched = client.fetch();
        prop_assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
        client.check();
        let told = stranger.requests().into_iter().find(|request| request.token().is_some());
        prop_assert!(told.is_none(), "a stranger has the token: {told:?}");
        server.requests();
        if let Ok(folder) = fetched {
            prop_assert!(folder.starts_with(&client.hub.cache), "{}", folder.display());
        }
        Ok(())
    };
    hold(20, vec(change(), 1..8), check);
}
