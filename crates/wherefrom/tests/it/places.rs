//! Where things lie: paths of a pipeline and of the command line, the store, and a study that is moved.

use std::fs;
use std::os::unix::fs::symlink;

use crate::bench::{Bench, copy, files, fixture};
use crate::study;

/// A folder with a name that is hard on globs and command lines.
const STUDY: &str = "my [first] {study}";

/// In `pipelines`, with everything beside that folder. The program knows its folder, and reads a file of it.
const PIPELINE: &str = r#"
[model]
path = "../data/model"
[steps.rows]
stage = "tokenize"
corpus = "../data/corpora/*.jsonl"
max-tokens = 24
[steps.losses]
stage = "losses"
inputs = { tokens = "rows" }
[steps.chosen]
stage = "external"
command = ["sh", "../programs/choose.sh"]
writes = "tokens"
version = 1
inputs = { tokens = "rows" }
"#;

/// Hands on what it is given: `--config C --input tokens=DIR --output DIR`.
const PROGRAM: &str = r#"test -f ../data/corpora/a.jsonl || exit 1
cp "${4#tokens=}"/*.parquet "$6"
"#;

fn write(bench: &Bench, study: &str) {
    for name in ["config.json", "model.safetensors"] {
        bench.file(&format!("{study}/data/model/{name}"), fs::read(fixture("model").join(name)).unwrap());
    }
    bench
        .file(&format!("{study}/data/corpora/a.jsonl"), "{\"input_ids\": [1, 5, 9, 11]}\n{\"input_ids\": [1, 5, 9]}\n");
    bench.file(&format!("{study}/data/corpora/b.jsonl"), "{\"input_ids\": [1, 6, 9, 12]}\n");
    bench.file(&format!("{study}/programs/choose.sh"), PROGRAM);
    bench.file(&format!("{study}/pipelines/p.toml"), PIPELINE);
}

/// Name, state and folder of each step.
fn steps(out: &str) -> Vec<(String, String, String)> {
    let lines = out.lines().skip(1).take_while(|line| !line.is_empty());
    let step = |line: &str| {
        let (words, folder) = line.split_once(" s  ").unwrap();
        let words: Vec<_> = words.split_whitespace().collect();
        (words[0].into(), words[1].into(), folder.into())
    };
    lines.map(step).collect()
}

fn states(out: &str) -> Vec<String> {
    steps(out).into_iter().map(|(_, state, _)| state).collect()
}

#[test]
fn a_study_runs_from_anywhere_and_is_moved_whole() {
    let bench = Bench::new();
    write(&bench, STUDY);
    let pipeline = format!("{STUDY}/pipelines/p.toml");
    let made = steps(&bench.ok(&["run", &pipeline]));
    assert_eq!(made.len(), 3);
    for (name, state, folder) in &made {
        assert_eq!(state, "made", "{name}");
        assert!(folder.starts_with(&format!("{STUDY}/data/store/")), "{folder}");
    }
    let lock = bench.text(&format!("{STUDY}/data/runs/p/lock.toml"));
    assert!(lock.contains("chosen = \"tokens/"), "{lock}");

    // The original is gone; the copy is reached by another path, from another directory, by a link.
    copy(&bench.path(STUDY), &bench.path("elsewhere/b"));
    fs::remove_dir_all(bench.path(STUDY)).unwrap();
    symlink(bench.path("elsewhere/b"), bench.path("link")).unwrap();
    for pipeline in ["elsewhere/b/pipelines/p.toml", "link/pipelines/p.toml", "elsewhere/b/data/../pipelines/p.toml"] {
        assert_eq!(states(&bench.ok(&["run", pipeline])), ["cached"; 3], "{pipeline}");
        let plan = bench.ok(&["plan", pipeline]);
        assert!(plan.contains("store: elsewhere/b/data/store (the nearest data/store"), "{plan}");
    }
    let mut recipes = 0;
    for path in files(&bench.path("elsewhere/b/data/store")) {
        if path.ends_with("manifest.json") {
            let manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let recipe = manifest["recipe"].to_string();
            assert!(!recipe.contains('/'), "a path in a key: {recipe}");
            recipes += 1;
        }
    }
    assert_eq!(recipes, 3);
}

#[test]
fn the_store_is_named_or_found() {
    let mut bench = Bench::new();
    write(&bench, "a/b");
    let plan = |bench: &Bench, more: &[&str]| {
        let plan = bench.ok(&[&["plan", "a/b/pipelines/p.toml"], more].concat());
        plan.lines().last().unwrap().to_string()
    };
    assert!(plan(&bench, &[]).starts_with("store: a/b/data/store (new"), "{}", plan(&bench, &[]));
    // A store on a disk of its own.
    fs::create_dir_all(bench.path("disk")).unwrap();
    fs::create_dir_all(bench.path("a/data")).unwrap();
    symlink(bench.path("disk"), bench.path("a/data/store")).unwrap();
    assert!(plan(&bench, &[]).starts_with("store: a/data/store (the nearest"), "{}", plan(&bench, &[]));
    assert_eq!(states(&bench.ok(&["run", "a/b/pipelines/p.toml", "--to", "rows"])), ["made"]);
    assert!(files(&bench.path("disk")).iter().any(|file| file.ends_with("manifest.json")));
    assert!(bench.path("a/data/runs/b/pipelines/p/lock.toml").exists());

    bench.variable("WHEREFROM_STORE", "variable");
    assert_eq!(plan(&bench, &[]), "store: variable (as WHEREFROM_STORE says)");
    assert_eq!(plan(&bench, &["--store", "named"]), "store: named (as --store says)");
    assert_eq!(states(&bench.ok(&["run", "a/b/pipelines/p.toml", "--to", "rows"])), ["made"]);
    // And the total.
    assert_eq!(bench.ok(&["ls"]).lines().count(), 2);
    assert!(bench.path("variable").exists());
}

#[test]
fn an_error_about_a_path_says_what_it_is_taken_from() {
    let bench = Bench::new();
    write(&bench, "study");
    let here = bench.path("").canonicalize().unwrap();
    let (pipeline, here) = ("study/pipelines/p.toml", here.display());
    for (from, to, path, base) in [
        ("../data/corpora/*", "data/corpora/*", "study/pipelines/data/corpora/*.jsonl", "`data/corpora/*.jsonl`"),
        ("../data/model", "data/model", "study/pipelines/data/model", "`data/model`"),
        ("\"sh\", \"..", "\"../data/sh\", \"..", "`../data/sh`", "(`../data/sh`"),
        ("{ tokens = \"rows\" }\n[", "{ tokens = \"../x\" }\n[", "study/x", "(`../x`"),
    ] {
        bench.file(pipeline, PIPELINE.replace(from, to));
        let error = bench.refused(&["run", pipeline]);
        assert!(error.contains(path) && error.contains(base), "{error}");
        assert!(
            error.contains(&format!("is taken from the folder of the pipeline, {here}/study/pipelines)")),
            "{error}"
        );
    }
    bench.file(pipeline, PIPELINE);
    for set in ["steps.rows.corpus=own.jsonl", "model.path=own", "steps.losses.model=own/m"] {
        let error = bench.refused(&["run", pipeline, "--set", set]);
        let name = set.split_once('=').unwrap().1;
        assert!(error.contains(&format!("(`{name}` of --set is taken from the current directory, {here})")), "{error}");
    }
    // What is there is found, whatever lies beside the pipeline.
    bench.file("own.jsonl", "{\"input_ids\": [1, 2]}\n");
    let words = ["run", pipeline, "--to", "rows", "--set", "steps.rows.corpus=own.jsonl"];
    assert_eq!(states(&bench.ok(&words)), ["made"]);
    let error = bench.refused(&["run", pipeline, "--set", "model.path=/no/such"]);
    assert!(error.contains("/no/such") && !error.contains("is taken from"), "{error}");
    // Of what was found and is refused it goes without saying.
    bench.file("own.csv", "text\nAnd\n");
    for (set, fault) in [
        ("steps.rows.corpus=own.csv", "own.csv: .csv is not read"),
        ("steps.rows.corpus=*.csv", "own.csv: .csv is not read"),
        ("model.path=own.csv", "the model own.csv is a file"),
        ("model.path=study", "the model folder study has no config.json"),
    ] {
        let error = bench.refused(&["run", pipeline, "--set", set]);
        assert!(error.contains(fault) && !error.contains("is taken from"), "{error}");
    }
}

#[test]
fn columns_are_of_the_corpus_that_their_tokens_came_from_wherever_that_was_named() {
    let bench = Bench::new();
    study::write(&bench, 20, 4);
    for name in ["study.toml", "corpus.jsonl", "prompts.jsonl", "queries.jsonl", "pairs.jsonl"] {
        bench.file(&format!("mine/{name}"), bench.text(name));
    }
    // As many rows as the corpus beside the pipeline, of another source.
    let other = bench
        .text("corpus.jsonl")
        .replace("sagas", "elsewhere")
        .replace("logs", "elsewhere")
        .replace("letters", "elsewhere");
    bench.file("corpus.jsonl", other);
    let words = ["run", "mine/study.toml", "--to", "columns", "--json", "--set", "steps.train.corpus=corpus.jsonl"];
    let said: serde_json::Value = serde_json::from_str(&bench.ok(&words)).unwrap();
    let step = said["steps"].as_array().unwrap().iter().find(|step| step["name"] == "columns").unwrap();
    let folder = bench.path(step["folder"].as_str().unwrap());
    let kept = wherefrom_artifact::Artifact::<wherefrom_artifact::Columns>::open(&folder).unwrap();
    for row in kept.rows::<wherefrom_artifact::Kept>().unwrap() {
        let cells = format!("{:?}", row.unwrap().cells);
        assert!(cells.contains("elsewhere"), "{cells}");
    }
}

#[test]
fn a_plan_refuses_rows_that_a_run_would_refuse() {
    let bench = Bench::new();
    study::write(&bench, 20, 4);
    bench.ok(&["run", "study.toml", "--to", "model"]);
    let model = bench.ok(&["path", "study.toml", "model"]);
    let pipeline = format!(
        "[model]\npath = {:?}\n[steps.train]\nstage = \"tokenize\"\ncorpus = \"rows.jsonl\"\nmax-tokens = 12\n",
        model.trim_end()
    );
    bench.file("small.toml", pipeline);
    for (row, fragments) in [
        (r#"{"text": "the sea"}"#, &[][..]),
        (r#"{"prompt": "the", "completions": " sea"}"#, &["did you mean `completion`?", "rows.jsonl:1"]),
        (r#"{"text": 12}"#, &["`text` is a number"]),
        (r#"{"text": null}"#, &["`text` is null"]),
        (r#"{"text": "the sea""#, &["malformed JSON"]),
    ] {
        bench.file("rows.jsonl", format!("{row}\n"));
        let said = bench.wherefrom(&["plan", "small.toml"]);
        assert_eq!(said.code, Some(if fragments.is_empty() { 0 } else { 2 }), "{row}: {said:?}");
        fragments.iter().for_each(|fragment| assert!(said.err.contains(fragment), "{row}: {}", said.err));
    }
}
