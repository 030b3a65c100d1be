//! The other verbs, as scripts use them.

use std::fs;
use std::path::Path;

use wherefrom_artifact::Manifest;

use crate::bench::{Bench, fixture, results};
use crate::study::{self, Made};

#[test]
fn plan_prints_every_step_name_first_and_then_the_cost() {
    let bench = Bench::new();
    study::write(&bench, 300, 40);
    let before = bench.ok(&["plan", "study.toml"]);
    let (lines, cost) = before.split_once("\n\n").unwrap();
    let names: Vec<_> = lines.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert!(cost.starts_with("to do, roughly: memory "), "{cost}");
    let costs = cost.lines().skip(3).take_while(|line| !line.is_empty());
    let costs: Vec<_> = costs.map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(costs.iter().map(|words| words[0]).collect::<Vec<_>>(), names, "a cost for each step");
    let of = |name: &str| costs.iter().find(|words| words[0] == name).unwrap().join(" ");
    assert!(of("covariances").ends_with("3 passes over the tokens"), "{cost}");
    assert!(of("lambda").ends_with("2 passes over the tokens"), "{cost}");
    assert!(results(&bench.store()).is_empty(), "a plan makes nothing");

    let (bench, steps) = study::finished();
    assert_eq!(names, steps.iter().map(|step| &step.name[..]).collect::<Vec<_>>());
    let after = bench.ok(&["plan", "study.toml"]);
    for (line, step) in after.lines().zip(&steps) {
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!((words[0], words[2], words[3]), (&step.name[..], &step.key()[..12], "cached"), "{line}");
    }

    let why = bench.ok(&["plan", "study.toml", "--why", "ihvp"]);
    let ihvp = steps.iter().find(|step| step.name == "ihvp").unwrap();
    assert!(why.starts_with(&format!("ihvp {}: cached\n", ihvp.key())), "{why}");
    let json: serde_json::Value = serde_json::from_str(why.split_once('\n').unwrap().1).unwrap();
    assert_eq!((&json["config"]["rank"], &json["stage"]), (&8.into(), &"precondition".into()));
}

#[test]
fn a_leaf_that_is_not_there_is_planned_and_not_run() {
    let bench = Bench::new();
    study::write(&bench, 300, 40);
    fs::remove_file(bench.path("corpus.jsonl")).unwrap();
    let said = bench.wherefrom(&["plan", "study.toml"]);
    assert_eq!(said.code, Some(2), "{said:?}");
    let (lines, cost) = said.out.split_once("\n\n").unwrap();
    assert_eq!(lines.lines().count(), 59);
    for line in lines.lines().filter(|line| !line.starts_with("character ")) {
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words[2], "?", "everything but a trait hangs on the vocabulary: {line}");
    }
    assert!(lines.contains("no corpus: see below"), "{lines}");
    assert!(said.err.contains("corpus.jsonl"), "{}", said.err);
    assert!(cost.starts_with("to do, roughly: "), "{cost}");
    let error = bench.refused(&["run", "study.toml"]);
    assert!(error.contains("corpus.jsonl") && error.contains("`vocabulary`"), "{error}");
}

#[test]
fn path_prints_the_folder_and_nothing_else() {
    let (bench, steps) = study::finished();
    for step in &steps {
        assert_eq!(bench.ok(&["path", "study.toml", &step.name]), format!("{}\n", step.folder.display()));
    }
    let last = steps.last().unwrap();
    bench.ok(&["rm", last.key()]);
    let error = bench.refused(&["path", "study.toml", &last.name]);
    let remedy = format!("wherefrom run study.toml --to {}", last.name);
    assert!(error.contains("is not made yet") && error.contains(&remedy), "{error}");
}

#[test]
fn ls_show_and_verify_know_every_artifact() {
    let (bench, steps) = study::finished();
    let list = bench.ok(&["ls"]);
    assert_eq!(list.lines().count(), steps.len() + 1, "and a line for all of them");
    let verified = bench.ok(&["verify"]);
    for step in &steps {
        let line = list.lines().find(|line| line.contains(&step.key()[..12])).unwrap();
        assert!(line.starts_with(step.kind.name()), "{line}");
        assert!(verified.lines().any(|line| line.starts_with("ok ") && line.ends_with(step.key())), "{verified}");
        let shown = bench.ok(&["show", &step.key()[..8]]);
        assert!(shown.starts_with(&format!("{} {}\n", step.kind.name(), step.key())), "{shown}");
        assert_eq!(bench.ok(&["show", &step.folder.display().to_string()]), shown);
        assert_eq!(bench.ok(&["show", &format!("{}/{}", step.kind.name(), step.key())]), shown);
    }
    let one = bench.ok(&["verify", "ihvp", "--pipeline", "study.toml"]);
    assert!(one.lines().count() == 1 && one.starts_with("ok       preconditioned "), "{one}");
    // What the pipeline as it stands has made, and nothing of another.
    bench.ok(&["run", "study.toml", "--to", "ihvp", "--set", "steps.ihvp.damping=0.5"]);
    let ours = bench.ok(&["verify", "--pipeline", "study.toml"]);
    assert_eq!((ours.lines().count(), bench.ok(&["verify"]).lines().count()), (steps.len(), steps.len() + 1), "{ours}");
    for name in ["show", "rm", "verify"] {
        let error = bench.refused(&[name, "no-such-key"]);
        assert!(error.contains("no-such-key") && error.contains("wherefrom ls"), "{error}");
    }
}

#[test]
fn rm_takes_one_artifact_and_leaves_the_rest() {
    let (bench, steps) = study::finished();
    let scores = steps.iter().find(|step| step.name == "scores").unwrap();
    assert_eq!(bench.ok(&["rm", scores.key()]), format!("removed {}\n", scores.folder.display()));
    assert!(!scores.sealed(&bench).exists());
    let again = study::made(&bench.ok(&["run", "study.toml"]));
    let made: Vec<_> = again.iter().filter(|step| !step.cached).map(|step| &step.name[..]).collect();
    assert_eq!(made, ["scores"], "what follows is known by recipe");
}

#[test]
fn the_device_is_said_and_kept() {
    let bench = Bench::new();
    study::write(&bench, 300, 40);
    let out = bench.ok(&["run", "study.toml", "--to", "covariances", "--device", "cpu"]);
    assert!(out.lines().next().unwrap().contains(" cpu"), "{out}");
    let steps = study::made(&out);
    let manifest = Manifest::read(&steps.last().unwrap().sealed(&bench)).unwrap();
    assert!(manifest.provenance["device"].as_str().unwrap().starts_with("cpu"), "{:?}", manifest.provenance);
    let other = study::made(&bench.ok(&["run", "study.toml", "--to", "covariances"]));
    assert!(other.iter().all(|step| step.cached), "the device is no part of a key");
}

#[test]
fn to_stops_there() {
    let bench = Bench::new();
    study::write(&bench, 300, 40);
    let steps = study::made(&bench.ok(&["run", "study.toml", "--to", "candidates"]));
    let names: Vec<_> = steps.iter().map(|step| &step.name[..]).collect();
    assert_eq!(names, ["vocabulary", "train", "queries", "candidates"]);
}

#[test]
fn another_store_is_another_store() {
    let bench = Bench::new();
    study::write(&bench, 300, 40);
    let steps = study::made(&bench.ok(&["--store", "elsewhere", "run", "study.toml", "--to", "train"]));
    assert!(steps.iter().all(|step| step.folder.starts_with("elsewhere") && step.sealed(&bench).exists()));
    assert!(!bench.store().exists());
    let plan = bench.ok(&["plan", "study.toml"]);
    assert!(plan.lines().nth(1).unwrap().contains("missing"), "{plan}");
}

/// Parts of two artifacts, by name and digest.
fn same(left: &Path, right: &Path) {
    let parts = |folder: &Path| Manifest::read(folder).unwrap().parts;
    let (left, right) = (parts(left), parts(right));
    assert!(!left.is_empty());
    for (left, right) in left.iter().zip(&right) {
        // A part says its own key, which differs with where an input came from.
        assert_eq!((&left.name, left.rows), (&right.name, right.rows));
    }
    assert_eq!(left.len(), right.len());
}

#[test]
fn a_stage_runs_on_its_own() {
    let (bench, steps) = study::finished();
    let folder = |name: &str| steps.iter().find(|step| step.name == name).unwrap().folder.display().to_string();
    bench.file("tokenize.json", r#"{"max-tokens": 12}"#);
    let tokenizer = format!("tokenizer={}", folder("vocabulary"));
    let out = bench.ok(&[
        "stage",
        "tokenize",
        "--config",
        "tokenize.json",
        "--input",
        "corpus=queries.jsonl",
        "--input",
        &tokenizer,
        "--output",
        "queries",
    ]);
    assert_eq!(out, "queries\n");
    same(&bench.path("queries"), &bench.path(folder("queries")));

    bench.file("gradients.toml", "modules = \"mlp\"\n");
    let model = folder("model");
    bench.ok(&[
        "stage",
        "gradients",
        "--config",
        "gradients.toml",
        "--input",
        "tokens=queries",
        "--model",
        &model,
        "--output",
        "gradients",
    ]);
    same(&bench.path("gradients"), &bench.path(folder("query-gradients")));

    bench.file("ihvp.json", r#"{"rank": 8}"#);
    let (basis, lambda) = (format!("eigenbasis={}", folder("basis")), format!("lambda={}", folder("lambda")));
    bench.ok(&[
        "stage",
        "precondition",
        "--config",
        "ihvp.json",
        "--input",
        "gradients=gradients",
        "--input",
        &basis,
        "--input",
        &lambda,
        "--output",
        "ihvp",
    ]);
    same(&bench.path("ihvp"), &bench.path(folder("ihvp")));
    assert!(bench.ok(&["verify", "ihvp"]).starts_with("ok "));

    // What it left is taken by a pipeline as it is.
    bench.file(
        "lone.toml",
        format!(
            "[model]\npath = {model:?}\n[steps.scores]\nstage = \"score\"\ninputs = {{ queries = \"ihvp\", tokens = {:?} }}\n",
            folder("train")
        ),
    );
    assert_eq!(study::made(&bench.ok(&["run", "lone.toml"])).len(), 1);

    let error = bench.refused(&[
        "stage",
        "tokenize",
        "--config",
        "tokenize.json",
        "--input",
        "corpus=queries.jsonl",
        "--output",
        "queries",
    ]);
    assert!(error.contains("queries is not empty"), "{error}");
    let error = bench.refused(&["stage", "tokenise", "--config", "tokenize.json", "--output", "x"]);
    assert!(error.contains("did you mean `tokenize`?"), "{error}");
    let error = bench.refused(&["stage", "gradients", "--config", "gradients.toml", "--output", "x"]);
    assert!(error.contains("`inputs.tokens` is missing") && error.contains("--model"), "{error}");
    assert!(!bench.path("x").exists());
}

#[test]
fn the_reference_model_needs_no_tokenizer_for_rows_of_ids() {
    let bench = Bench::new();
    for name in ["config.json", "model.safetensors"] {
        bench.file(&format!("model/{name}"), fs::read(fixture("model").join(name)).unwrap());
    }
    bench.file("rows.jsonl", "{\"input_ids\": [1, 5, 9]}\n");
    bench.file(
        "study.toml",
        "[model]\npath = \"model\"\n[steps.rows]\nstage = \"tokenize\"\ncorpus = \"rows.jsonl\"\nmax-tokens = 8\n\
         [steps.losses]\nstage = \"losses\"\ninputs = { tokens = \"rows\" }\n",
    );
    assert_eq!(study::made(&bench.ok(&["run", "study.toml"])).len(), 2);
}

#[test]
fn self_influence_shows_the_strongest_with_their_texts() {
    let (bench, steps) = study::finished();
    let own = steps.iter().find(|step| step.name == "self").unwrap();
    let shown = bench.ok(&["show", own.key()]);
    assert!(shown.contains("influence on itself in nats per added copy"), "{shown}");
    let table = shown.split_once("influence on itself").unwrap().1.lines().skip(1);
    let words: Vec<Vec<&str>> = table.map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words.len(), 10);
    let influences: Vec<f64> = words.iter().map(|words| words[1].parse().unwrap()).collect();
    assert!(influences.is_sorted_by(|one, two| one >= two) && influences[9] > 0.0, "{shown}");
    let corpus = bench.text("corpus.jsonl");
    for words in words {
        let row = corpus.lines().nth(words[3].parse().unwrap()).unwrap();
        assert!(row.contains(&words[6..].join(" ")), "{words:?} is not {row}");
    }
}

#[test]
fn half_the_bytes_are_stored_with_their_error_said() {
    let bench = Bench::new();
    study::write(&bench, 300, 40);
    let command = ["run", "study.toml", "--to", "ihvp-full"];
    let whole = study::made(&bench.ok(&command));
    let half = ["--set", "steps.lambda.store=f16", "--set", "steps.ihvp-full.store=f16"];
    let halved = study::made(&bench.ok(&[&command[..], &half].concat()));
    for name in ["lambda", "ihvp-full"] {
        let bytes = |steps: &[Made]| {
            let step = steps.iter().find(|step| step.name == name).unwrap();
            Manifest::read(&step.sealed(&bench)).unwrap().bytes() as f64
        };
        assert!(bytes(&halved) < bytes(&whole), "{name}: {} of {}", bytes(&halved), bytes(&whole));
        let key = halved.iter().find(|step| step.name == name).unwrap().key();
        let shown = bench.ok(&["show", key]);
        assert!(shown.contains("summary   stored = {\"largest_relative_error\":"), "{shown}");
    }
}

#[test]
fn a_model_of_52_billion_parameters_is_planned_from_its_config() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let words = ["plan", "examples/52b/pipeline.toml", "--machine", "8x80GB"];
    let output =
        std::process::Command::new(env!("CARGO_BIN_EXE_wherefrom")).args(words).current_dir(root).output().unwrap();
    let plan = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{plan}");
    let line = |name: &str| plan.lines().rev().find(|line| line.starts_with(name)).unwrap().to_string();
    // 64 layers of A and S: 64 (6 8192² + 2 · 22016² + 5 8192² + ...) x 4 bytes do not fit beside 209 GB of weights.
    assert!(line("covariances").ends_with("passes over the tokens"), "{plan}");
    assert!(line("lambda").ends_with("passes over the tokens"), "{plan}");
    // rank 32: 64 (4 · 16384 + 3 · 30208) 32 x 4 bytes; full: 64 (4 · 8192² + 3 · 8192 · 22016) x 4 bytes.
    assert!(line("ihvp ").ends_with("1.3 GB a query"), "{plan}");
    assert!(line("ihvp-full").ends_with("207.2 GB a query"), "{plan}");
    assert_eq!(plan.matches("planned from config.json alone").count(), 1, "{plan}");
    assert!(line("train ").ends_with("10,000 rows of 512 tokens assumed: the corpus is not there"), "{plan}");
    assert!(plan.contains("EFLOP") || plan.contains("ZFLOP"), "{plan}");
}

#[test]
fn a_model_of_52_billion_parameters_is_planned_for_512_shares() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let words = ["plan", "examples/52b/pipeline.toml", "--machine", "8x80GB", "--shards", "512", "--json"];
    let output =
        std::process::Command::new(env!("CARGO_BIN_EXE_wherefrom")).args(words).current_dir(root).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let shards = |name: &str| {
        let mut steps = plan["steps"].as_array().unwrap().iter();
        steps.find(|step| step["name"] == name).unwrap()["shards"].clone()
    };
    for step in ["covariances", "basis", "lambda", "query-gradients", "ihvp", "scores"] {
        assert_eq!(shards(step)["count"], 512, "{step}");
        assert_eq!(shards(step)["missing"].as_array().map_or(512, Vec::len), 512, "{step}");
    }
    // Triangles of A (the inputs of q, k and v are one, those of gate and up too) and S of 64 layers, in float64: already those of
    // one group of spans are above the limit, and 448 modules make no 512 groups.
    let triangle = |n: u64| n * (n + 1) / 2;
    let bytes = 8 * 64 * ((3 + 5) * triangle(8192) + (1 + 2) * triangle(22016));
    let sums = &shards("covariances")["sums"];
    assert_eq!((&sums["module_groups"], &sums["span_groups"]), (&256.into(), &2.into()), "{sums}");
    assert_eq!((sums["bytes"].as_u64(), sums["limit"].as_u64()), (Some(2 * bytes), Some(256 << 30)), "{sums}");
    assert!(shards("scores")["sums"].is_null());
}
