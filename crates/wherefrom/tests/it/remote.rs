//! A remote: what one person has made, another fetches and does not make again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use wherefrom_tests::hub::{Answer, Request, Server};

use crate::bench::Bench;
use crate::study;

/// A study that is made, and a folder with what of it was sent.
fn pushed() -> (Bench, PathBuf) {
    let bench = Bench::new();
    study::write(&bench, 60, 20);
    bench.ok(&["run", "study.toml", "--to", "scores"]);
    let remote = bench.path("remote");
    let said = bench.ok(&["push", "study.toml", "--to", "scores", "--remote", "remote"]);
    assert!(said.lines().count() > 5 && said.lines().all(|line| line.contains("  sent  ")), "{said}");
    (bench, remote)
}

fn other() -> Bench {
    let bench = Bench::new();
    study::write(&bench, 60, 20);
    bench
}

/// Every file below a folder, by name.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![folder.to_path_buf()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => pending.push(path),
                false => drop(found.insert(path.strip_prefix(folder).unwrap().into(), fs::read(&path).unwrap())),
            }
        }
    }
    found
}

#[test]
fn a_second_person_fetches_what_the_first_has_made_and_makes_none_of_it() {
    let (first, remote) = pushed();
    let second = other();
    let remote = remote.to_str().unwrap();
    let plan = second.ok(&["plan", "study.toml", "--remote", remote, "--json"]);
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    let state = |name: &str| {
        plan["steps"].as_array().unwrap().iter().find(|step| step["name"] == name).unwrap()["state"].clone()
    };
    for step in ["covariances", "basis", "lambda", "scores"] {
        assert_eq!(state(step), "remote", "{step}");
    }
    let said = second.ok(&["run", "study.toml", "--to", "scores", "--remote", remote]);
    let steps: Vec<_> = said.lines().filter(|line| line.contains("data/store")).collect();
    assert!(steps.len() > 5 && steps.iter().all(|line| line.contains("  fetched  ")), "{said}");
    for step in ["covariances", "basis", "lambda", "scores"] {
        let [one, other] = [&first, &second].map(|bench| files(&bench.made("study.toml", step)));
        assert_eq!(one, other, "{step}");
    }
    assert!(!second.store().join("incoming").exists());
    // What is here is not asked for, and what is there is not sent again.
    let again = second.ok(&["push", "study.toml", "--to", "scores", "--remote", remote]);
    assert!(again.lines().all(|line| line.contains("  there  ")), "{again}");
    assert!(second.ok(&["verify"]).lines().count() > 5);
}

#[test]
fn a_remote_that_serves_other_bytes_is_refused_and_nothing_is_sealed() {
    let (_first, remote) = pushed();
    let part = files(&remote.join("lambda-v1")).into_iter().find(|(path, _)| !path.ends_with("manifest.json")).unwrap();
    let (path, mut bytes) = (remote.join("lambda-v1").join(part.0), part.1);
    bytes[7] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let second = other();
    let error = second.refused(&["run", "study.toml", "--to", "scores", "--remote", remote.to_str().unwrap()]);
    for fragment in
        ["step `lambda`", "another digest", path.file_name().unwrap().to_str().unwrap(), "leave --remote out"]
    {
        assert!(error.contains(fragment), "{fragment}: {error}");
    }
    assert!(
        fs::read_dir(second.store().join("lambda-v1"))
            .into_iter()
            .flatten()
            .all(|entry| entry.unwrap().path().is_file())
    );
    // A part that is gone, and a manifest of something else.
    fs::remove_file(&path).unwrap();
    let error = second.wherefrom(&["run", "study.toml", "--to", "scores", "--remote", remote.to_str().unwrap()]).err;
    assert!(
        error.contains("step `lambda`") && error.contains("fetch part-0") && error.contains(" there: No such file"),
        "{error}"
    );
    let manifest = path.with_file_name("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap().replace("\"rows\": ", "\"rows\": 1");
    fs::write(&manifest, text).unwrap();
    let error = second.refused(&["plan", "study.toml", "--remote", remote.to_str().unwrap()]);
    assert!(error.contains("is damaged") && error.contains("seal"), "{error}");
    // Without the remote it is made here.
    second.ok(&["run", "study.toml", "--to", "scores"]);
}

#[test]
fn whoever_is_killed_while_sending_or_fetching_goes_on_from_there() {
    let (first, remote) = pushed();
    let whole = files(&remote);
    for round in 0..3 {
        fs::remove_dir_all(&remote).unwrap();
        let mut push = first.start(&["push", "study.toml", "--to", "scores", "--remote", "remote"], "push");
        push.until(|| remote.exists() && files_now(&remote) > 2 * round);
        push.kill();
        first.ok(&["push", "study.toml", "--to", "scores", "--remote", "remote"]);
        let sent = files(&remote).into_iter().filter(|(path, _)| path.extension().is_none_or(|ending| ending != "tmp"));
        let sent: BTreeMap<_, _> = sent.filter(|(path, _)| !path.starts_with("probe")).collect();
        assert_eq!(sent, whole);

        let second = other();
        let words = ["run", "study.toml", "--to", "scores", "--remote", remote.to_str().unwrap()];
        let mut pull = second.start(&words, "pull");
        pull.until(|| second.store().exists() && files_now(&second.store()) > 4 * round);
        pull.kill();
        let said = second.ok(&words);
        assert!(!said.contains("  made  "), "{said}");
        second.ok(&["verify"]);
    }
}

/// How many files there are, while others make more.
fn files_now(folder: &Path) -> usize {
    let (mut count, mut pending) = (0, vec![folder.to_path_buf()]);
    while let Some(next) = pending.pop() {
        for path in fs::read_dir(&next).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.is_dir() { pending.push(path) } else { count += 1 }
        }
    }
    count
}

#[test]
fn two_who_send_at_once_do_not_mix() {
    let benches = [other(), other()];
    benches.iter().for_each(|bench| drop(bench.ok(&["run", "study.toml", "--to", "lambda"])));
    let place = tempfile::tempdir().unwrap();
    let remote = place.path().join("remote");
    let words = ["push", "study.toml", "--to", "lambda", "--remote", remote.to_str().unwrap()];
    let mut pushes: Vec<_> = benches.iter().map(|bench| bench.start(&words, "push")).collect();
    let codes: Vec<_> = pushes.iter_mut().map(|push| push.code()).collect();
    assert_eq!(codes, [Some(0); 2], "{}{}", benches[0].text("push.err"), benches[1].text("push.err"));
    let third = other();
    let said = third.ok(&["run", "study.toml", "--to", "lambda", "--remote", remote.to_str().unwrap()]);
    assert!(!said.contains("  made  "), "{said}");
    third.ok(&["verify"]);
}

/// A web server over a folder, which ends the first answer for each part after half of its bytes.
fn web(folder: PathBuf) -> Server {
    let begun = Mutex::new(Vec::new());
    Server::new(move |request: &Request| {
        let Ok(bytes) = fs::read(folder.join(request.path.trim_start_matches('/'))) else {
            return Answer::new("404 Not Found", &[], "");
        };
        let (from, _) = request.range();
        let range = format!("bytes {from}-{}/{}", bytes.len().saturating_sub(1), bytes.len());
        let mut answer = match request.headers.contains_key("range") {
            true => Answer::new("206 Partial Content", &[("Content-Range", &range)], &bytes[from..]),
            false => Answer::new("200 OK", &[], bytes),
        };
        let mut begun = begun.lock().unwrap();
        if request.headers.contains_key("range") && !begun.contains(&request.path) {
            begun.push(request.path.clone());
            answer.body.truncate(answer.body.len() / 2);
        }
        answer
    })
}

#[test]
fn a_web_server_is_read_and_never_written() {
    let (_first, remote) = pushed();
    let server = web(remote.clone());
    let second = other();
    let said = second.ok(&["run", "study.toml", "--to", "basis", "--remote", &server.address()]);
    assert!(said.contains("  fetched  ") && !said.contains("  made  "), "{said}");
    assert!(
        server.requests().iter().any(|request| request.range().0 > 0),
        "a transfer that broke goes on where it was"
    );
    let error = second.refused(&["push", "study.toml", "--to", "basis", "--remote", &server.address()]);
    assert!(error.contains("nothing is sent to a web server"), "{error}");

    let locked = Server::new(|_| Answer::new("403 Forbidden", &[], ""));
    let address = locked.address().replace("http://", "http://me:secret@");
    let error = other().refused(&["plan", "study.toml", "--remote", &address]);
    assert!(error.contains("status 403") && !error.contains("secret"), "{error}");
    let gone = other().wherefrom(&["plan", "study.toml", "--remote", "http://127.0.0.1:1/x"]);
    assert!(gone.code != Some(0) && gone.err.contains("ask http://127.0.0.1:1/x for"), "{gone:?}");
}

#[test]
fn addresses_that_lead_nowhere_are_refused() {
    let bench = other();
    for (address, fragment) in [("ftp://host/x", "`ftp` is none of"), ("", "is empty"), ("http://", "no address")] {
        let error = bench.refused(&["plan", "study.toml", "--remote", address]);
        assert!(error.contains(fragment), "{address}: {error}");
    }
    assert!(bench.refused(&["push", "study.toml"]).contains("give --remote"));
    if !cfg!(feature = "remote") {
        assert!(bench.refused(&["plan", "study.toml", "--remote", "s3://bucket/x"]).contains("--features remote"));
    }
}
