//! The study that `just demo` runs, on the data of the repository: its ranking makes sense to a reader.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use wherefrom_artifact::{Artifact, Ranked, Ranking};

use crate::bench::{Bench, copy};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A folder that looks like the repository to a pipeline; what is written stays in it.
fn bench() -> Bench {
    let (bench, repository) = (Bench::new(), repository());
    fs::create_dir(bench.path("data")).unwrap();
    for name in ["data/corpora", "data/models", "data/queries", "data/traits", "examples"] {
        symlink(repository.join(name), bench.path(name)).unwrap();
    }
    // The store is looked for where pipelines lie, not where a link to them does.
    copy(&repository.join("pipelines"), &bench.path("pipelines"));
    bench
}

#[test]
fn every_pipeline_plans() {
    let bench = bench();
    let mut planned = 0;
    for entry in fs::read_dir(bench.path("pipelines")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "toml") {
            let said = bench.wherefrom(&["plan", path.to_str().unwrap()]);
            // A model that is fetched need not be here.
            let text = fs::read_to_string(&path).unwrap();
            let fetched = text.contains("data/models/smollm2");
            let there = !text.contains("\"hf:") && (!fetched || bench.path("data/models/smollm2").exists());
            assert_eq!(said.code, Some(if there { 0 } else { 2 }), "{}: {}", path.display(), said.err);
            planned += 1;
        }
    }
    assert!(planned >= 3);
}

#[test]
fn what_takes_long_is_measured_once() {
    let bench = bench().with_cache();
    // What a plan that was killed has left.
    bench.file("data/store/rates.tmp/store-1/tokens-v3/x", "");
    let plan = bench.ok(&["plan", "pipelines/quickstart.toml"]);
    for step in ["covariances", "lambda", "scores", "details"] {
        let line = plan.lines().rev().find(|line| line.starts_with(step)).unwrap();
        assert!(line.contains("measured"), "{plan}");
    }
    let names = || -> Vec<_> { fs::read_dir(bench.store()).unwrap().map(|entry| entry.unwrap().file_name()).collect() };
    assert!(!names().iter().any(|name| name.to_string_lossy().ends_with(".tmp")), "{:?}", names());
    let rates = bench.text("cache/wherefrom/rates.json");
    bench.ok(&["plan", "pipelines/quickstart.toml"]);
    assert_eq!(bench.text("cache/wherefrom/rates.json"), rates);
    // Another store is another study, and the machine is the same.
    bench.ok(&["plan", "pipelines/quickstart.toml", "--store", "data/other"]);
    assert_eq!(bench.text("cache/wherefrom/rates.json"), rates);
}

#[test]
fn memorised_passages_find_their_own_rows() {
    let bench = bench();
    let said = bench.wherefrom(&["run", "pipelines/quickstart.toml"]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    let said = bench.wherefrom(&["path", "pipelines/quickstart.toml", "final"]);
    let ranking = Artifact::<Ranking>::open(&bench.path(said.out.trim())).unwrap();
    // (query, sign) -> documents, strongest first
    let mut docs: BTreeMap<(u32, bool), Vec<String>> = BTreeMap::new();
    for row in ranking.rows::<Ranked>().unwrap() {
        let row = row.unwrap();
        docs.entry((row.query, row.positive)).or_default().push(row.doc);
    }
    assert_eq!(docs.keys().map(|(query, _)| query).max(), Some(&12), "13 queries");
    let first = |query, positive| docs[&(query, positive)][0].as_str();
    assert_eq!(first(0, true), "kjv/genesis/1:1-5/a");
    assert!(first(1, true).starts_with("austen/pride-and-prejudice/p6478"));
    assert_eq!(first(2, true), "devil/telephone");
    assert_eq!(first(3, true), "udhr/ko/9");
    assert!(first(6, true).starts_with("factbook/japan/capital"));
    assert_eq!(first(7, true), "factbook/kenya/capital");
    // A contrast: Paris rather than London.
    assert!(first(9, true).starts_with("factbook/france/capital"));
    assert!(first(9, false).starts_with("factbook/united-kingdom/capital"));
}
