//! A second study with other queries, damping or method takes the fit of the first.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::bench::{Bench, Stamp, fixture, stamps};
use crate::study::{Made, made};

const FIT: [&str; 3] = ["covariances", "basis", "lambda"];

/// What a study asks, on the same model and corpus.
struct Study<'a> {
    file: &'a str,
    queries: &'a str,
    method: &'a str,
    damping: &'a str,
    lambda: &'a str,
}

const FIRST: Study<'_> = Study {
    file: "first.toml",
    queries: "queries.jsonl",
    method: "ekfac",
    damping: "{ relative = 0.1 }",
    lambda: "lambda",
};

impl Study<'_> {
    fn write(&self, bench: &Bench) {
        let Study { file, queries, method, damping, lambda } = self;
        let text = format!(
            r#"
about = "The same fit, other questions."
[model]
path = {model:?}
modules = ["model.layers.3.mlp.*"]
[steps.train]
stage = "tokenize"
corpus = "train.jsonl"
max-tokens = 96
[steps.queries]
stage = "tokenize"
corpus = "{queries}"
max-tokens = 96
[steps.covariances]
stage = "covariance"
inputs = {{ tokens = "train" }}
labels = "sampled"
[steps.basis]
stage = "eigenbasis"
inputs = {{ covariances = "covariances" }}
[steps.lambda]
stage = "lambda"
inputs = {{ tokens = "train", eigenbasis = "basis" }}
labels = "sampled"
seed = 1
[steps.lambda-standard]
stage = "lambda"
inputs = {{ tokens = "train" }}
labels = "sampled"
seed = 1
[steps.gradients]
stage = "gradients"
inputs = {{ tokens = "queries" }}
[steps.ihvp]
stage = "precondition"
inputs = {{ gradients = "gradients", eigenbasis = "basis", lambda = "{lambda}" }}
method = "{method}"
damping = {damping}
[steps.scores]
stage = "score"
inputs = {{ queries = "ihvp", tokens = "train" }}
[steps.top]
stage = "rank"
inputs = {{ scores = "scores", tokens = "train" }}
top = 5
"#,
            model = fixture("model"),
        );
        bench.file(file, text);
    }
}

/// The first study, run.
fn first() -> (Bench, Vec<Made>) {
    let bench = Bench::new();
    let lines = |name: &str, skip: usize, count: usize| -> String {
        let text = std::fs::read_to_string(fixture(name)).unwrap();
        text.lines().skip(skip).take(count).flat_map(|line| [line, "\n"]).collect()
    };
    bench.file("train.jsonl", lines("train.jsonl", 0, 200));
    bench.file("queries.jsonl", lines("queries.jsonl", 0, 2));
    bench.file("others.jsonl", lines("queries.jsonl", 2, 3));
    FIRST.write(&bench);
    let steps = made(&bench.ok(&["run", "first.toml"]));
    assert!(steps.iter().all(|step| !step.cached));
    (bench, steps)
}

fn fit(bench: &Bench, steps: &[Made]) -> BTreeMap<PathBuf, Stamp> {
    let fitted = steps.iter().filter(|step| FIT.contains(&step.name.as_str()));
    fitted.flat_map(|step| stamps(&step.sealed(bench))).collect()
}

/// Name and state of each step of a plan.
fn states(plan: &str) -> Vec<(String, String)> {
    let lines = plan.lines().take_while(|line| !line.is_empty());
    let words = lines.map(|line| line.split_whitespace().map(String::from).collect::<Vec<_>>());
    words.map(|words| (words[0].clone(), words[3].clone())).collect()
}

#[test]
fn a_second_study_reuses_the_fit() {
    let (bench, steps) = first();
    let before = fit(&bench, &steps);
    // Three artifacts of a manifest and a part for each of three modules.
    assert_eq!(before.len(), 12);
    let studies = [
        (Study { file: "queries.toml", queries: "others.jsonl", ..FIRST }, "queries"),
        (Study { file: "damping.toml", damping: "{ absolute = 1e-3 }", ..FIRST }, "ihvp"),
        (Study { file: "kfac.toml", method: "kfac", ..FIRST }, "ihvp"),
        (Study { file: "diagonal.toml", method: "diagonal", lambda: "lambda-standard", ..FIRST }, "ihvp"),
        (Study { file: "identity.toml", method: "identity", ..FIRST }, "ihvp"),
        (Study { file: "all.toml", queries: "others.jsonl", method: "kfac", damping: "0.01", ..FIRST }, "gradients"),
    ];
    for (study, changed) in studies {
        study.write(&bench);
        let plan = states(&bench.ok(&["plan", study.file]));
        for name in FIT.into_iter().chain(["train", "lambda-standard"]) {
            assert!(plan.contains(&(name.into(), "cached".into())), "{}: {plan:?}", study.file);
        }
        if study.file != "all.toml" {
            assert!(plan.contains(&(changed.into(), "missing".into())), "{}: {plan:?}", study.file);
        }
        let run = made(&bench.ok(&["run", study.file]));
        for step in &run {
            let planned = plan.iter().find(|(name, _)| *name == step.name).unwrap();
            assert_eq!(step.cached, planned.1 == "cached", "{}: {planned:?}, {step:?}", study.file);
            if FIT.contains(&step.name.as_str()) {
                assert!(steps.contains(&Made { cached: false, ..step.clone() }), "another fit: {step:?}");
            }
        }
        assert!(run.iter().any(|step| step.name == "scores" && !step.cached), "{}", study.file);
        assert_eq!(fit(&bench, &run), before, "{}: the fit was written again", study.file);
    }
}

#[test]
fn the_fit_needs_no_forward_pass_and_no_corpus_row() {
    // The rows of the fit are gone, and the fit is still taken: it can only have been read.
    let (bench, steps) = first();
    let train = steps.iter().find(|step| step.name == "train").unwrap();
    let part = train.sealed(&bench).join("part-00000.parquet");
    let mut bytes = std::fs::read(&part).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    let study = Study { file: "second.toml", damping: "0.5", ..FIRST };
    study.write(&bench);
    let run = made(&bench.ok(&["run", "second.toml", "--to", "ihvp"]));
    let last = run.last().unwrap();
    assert_eq!((&last.name[..], last.cached), ("ihvp", false));
    assert!(run[..run.len() - 1].iter().all(|step| step.cached));
}

#[test]
fn a_knob_that_is_set_is_the_knob_that_is_written() {
    let (bench, _) = first();
    let study = Study { file: "written.toml", method: "kfac", damping: "{ absolute = 0.25 }", ..FIRST };
    study.write(&bench);
    let words = ["plan", "first.toml", "--set", "steps.ihvp.method=kfac", "--set", "steps.ihvp.damping.absolute=0.25"];
    let keys = |plan: &str| -> Vec<String> {
        plan.lines().take(10).map(|line| line.split_whitespace().nth(2).unwrap().into()).collect()
    };
    assert_eq!(keys(&bench.ok(&words)), keys(&bench.ok(&["plan", "written.toml"])));
    assert_ne!(keys(&bench.ok(&words)), keys(&bench.ok(&["plan", "first.toml"])));
}

#[test]
fn what_changes_the_fit_makes_it_again() {
    let (bench, _) = first();
    for (set, missing) in [
        ("steps.covariances.seed=7", &["covariances", "basis", "lambda", "ihvp", "scores", "top"][..]),
        ("steps.covariances.blocks=2", &["covariances", "basis", "lambda", "ihvp", "scores", "top"]),
        ("steps.covariances.modules-per-pass=1", &[]),
        ("steps.lambda.modules-per-pass=1", &[]),
        ("steps.lambda.labels=empirical", &["lambda", "ihvp", "scores", "top"]),
        ("steps.lambda.store=f16", &["lambda", "ihvp", "scores", "top"]),
        ("steps.ihvp.store=f16", &["ihvp", "scores", "top"]),
        ("steps.ihvp.damping=0.2", &["ihvp", "scores", "top"]),
        ("steps.ihvp.method=identity", &["ihvp", "scores", "top"]),
        ("steps.top.top=4", &["top"]),
        (
            "steps.train.max-tokens=95",
            &["train", "covariances", "basis", "lambda", "lambda-standard", "ihvp", "scores", "top"],
        ),
    ] {
        let plan = states(&bench.ok(&["plan", "first.toml", "--set", set]));
        let found: Vec<_> = plan.iter().filter(|(_, state)| state == "missing").map(|(name, _)| &name[..]).collect();
        assert_eq!(found, missing, "{set}");
    }
}
