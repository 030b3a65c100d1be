//! Models and datasets from a hub on loopback: what is fetched, when, and what is said where it cannot be.

use std::fs;

use serde_json::Value;

use crate::bench::{Bench, Said, files, fixture};
use crate::hub_server::{COMMIT, HubServer};
use crate::study::made;

const STUDY: &str = r#"
[model]
path = "hf:owner/tiny"
modules = ["model.layers.3.mlp.down_proj"]
[steps.train]
stage = "tokenize"
corpus = "hf:datasets/owner/texts/data/train.jsonl"
max-tokens = 32
[steps.covariances]
stage = "covariance"
inputs = { tokens = "train" }
"#;
const RUN: &[&str] = &["run", "study.toml"];
const MODEL: &str = "huggingface/hub/models--owner--tiny";
const DATASET: &str = "huggingface/hub/datasets--owner--texts";

/// The first rows of the reference corpus.
fn corpus() -> String {
    let text = fs::read_to_string(fixture("train.jsonl")).unwrap();
    text.lines().take(40).map(|line| format!("{line}\n")).collect()
}

/// A server with the reference model and a corpus, and a study that names them.
fn bench() -> (HubServer, Bench) {
    let server = HubServer::new();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        server.file("owner/tiny", name, fs::read(fixture("model").join(name)).unwrap());
    }
    for name in ["README.md", "pytorch_model.bin", "onnx/model.safetensors"] {
        server.file("owner/tiny", name, "not wanted");
    }
    server.file("datasets/owner/texts", "data/train.jsonl", corpus());
    server.file("datasets/owner/texts", "data/test.jsonl", "not wanted");
    let bench = online(&server);
    bench.file("study.toml", STUDY);
    (server, bench)
}

fn online(server: &HubServer) -> Bench {
    let mut bench = Bench::new();
    bench.variable("HF_ENDPOINT", &server.endpoint);
    bench.variable("HF_HUB_OFFLINE", "0");
    bench
}

/// Runs a study of one knob changed and returns what it is refused with.
fn refused(bench: &Bench, from: &str, to: &str) -> String {
    assert!(STUDY.contains(from));
    bench.file("study.toml", STUDY.replace(from, to));
    let said = bench.refused(RUN);
    bench.file("study.toml", STUDY);
    said
}

fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

#[test]
fn what_a_study_names_is_fetched_once_and_identified_by_content() {
    let (server, bench) = bench();

    // Planning asks for sizes and fetches nothing.
    let plan = bench.ok(&["plan", "study.toml"]);
    let bytes = ["config.json", "tokenizer.json", "model.safetensors"]
        .map(|name| fs::metadata(fixture("model").join(name)).unwrap().len());
    let size = format!("(3 of its 3 files, {:.1} MB)", bytes.iter().sum::<u64>() as f64 / 1e6);
    contains(&plan, &["train        tokenize      ?", "`wherefrom run` fetches it", &size]);
    assert!(server.requests().iter().all(|line| line.starts_with("GET /api/")));
    assert!(!bench.path(MODEL).join("blobs").exists());

    let steps = made(&bench.ok(RUN));
    let requests = server.requests();
    assert!(requests.iter().any(|line| line.contains("/storage/owner/tiny/")), "{requests:?}");
    assert!(
        !requests.iter().any(|line| ["README", "pytorch", "onnx", "test.jsonl"].iter().any(|name| line.contains(name)))
    );

    // The layout that Python shares.
    assert_eq!(bench.text(&format!("{MODEL}/refs/main")), COMMIT);
    let snapshot = bench.path(MODEL).join("snapshots").join(COMMIT);
    let names: Vec<_> = files(&snapshot).into_iter().map(|path| path.file_name().unwrap().to_os_string()).collect();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert!(fs::read_link(snapshot.join("config.json")).unwrap().starts_with("../../blobs"));
    assert_eq!(
        fs::read(snapshot.join("model.safetensors")).unwrap(),
        fs::read(fixture("model/model.safetensors")).unwrap()
    );
    assert_eq!(bench.text(&format!("{DATASET}/snapshots/{COMMIT}/data/train.jsonl")), corpus());

    // A second run asks for nothing.
    assert!(made(&bench.ok(RUN)).iter().all(|step| step.cached));
    assert_eq!(server.requests(), [""; 0]);

    // The commit is on record, and in no key: the same files elsewhere make the same artifacts.
    let lock = bench.text("data/runs/study/lock.toml");
    contains(
        &lock,
        &[&format!("\"hf:owner/tiny@main\" = \"{COMMIT}\""), "hf:datasets/owner/texts@main/data/train.jsonl"],
    );
    let manifest: Value =
        serde_json::from_slice(&fs::read(steps[1].sealed(&bench).join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["provenance"]["hub"]["hf:owner/tiny@main"], COMMIT);
    bench.file("corpus.jsonl", corpus());
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        bench.file(&format!("model/{name}"), fs::read(fixture("model").join(name)).unwrap());
    }
    let local = STUDY.replace("hf:owner/tiny", "model");
    bench.file("local.toml", local.replace("hf:datasets/owner/texts/data/train.jsonl", "corpus.jsonl"));
    assert!(made(&bench.ok(&["run", "local.toml"])).iter().all(|step| step.cached));
}

/// A glob of a dataset, and a dataset without a path, are corpora of several files.
#[test]
fn a_dataset_of_several_files_is_one_corpus() {
    let (server, bench) = bench();
    server.file("datasets/owner/shards", "data/a-00000.jsonl", corpus());
    server.file("datasets/owner/shards", "data/a-00001.jsonl", corpus());
    server.file("datasets/owner/shards", "README.md", "not wanted");
    let file = "hf:datasets/owner/texts/data/train.jsonl";
    for name in ["hf:datasets/owner/shards/data/a-*.jsonl", "hf:datasets/owner/shards"] {
        bench.file("shards.toml", STUDY.replace(file, name));
        let steps = made(&bench.ok(&["run", "shards.toml", "--to", "train"]));
        let manifest: Value =
            serde_json::from_slice(&fs::read(steps[0].sealed(&bench).join("manifest.json")).unwrap()).unwrap();
        assert_eq!(manifest["summary"]["examples"], 80);
    }
}

#[test]
fn offline_the_cache_is_all_there_is() {
    let (server, mut bench) = bench();
    bench.variable("HF_HUB_OFFLINE", "1");
    contains(
        &bench.refused(RUN),
        &[
            "step `train`",
            "hf:owner/tiny@main",
            "HF_HUB_OFFLINE is set",
            "hf download owner/tiny --revision main",
            "or give a folder",
            "--repo-type dataset",
        ],
    );
    let said = bench.wherefrom(&["plan", "study.toml"]);
    assert_eq!(said.code, Some(2), "{said:?}");
    contains(&said.out, &["?"]);
    contains(&said.err, &["HF_HUB_OFFLINE is set"]);
    bench.variable("HF_HUB_OFFLINE", "0");
    bench.ok(RUN);
    server.requests();
    bench.variable("HF_HUB_OFFLINE", "TRUE");
    assert!(made(&bench.ok(RUN)).iter().all(|step| step.cached));
    // Half of a model is no model.
    fs::remove_file(bench.path(format!("{MODEL}/snapshots/{COMMIT}/model.safetensors"))).unwrap();
    contains(&bench.refused(RUN), &["1 of its 3 files", "HF_HUB_OFFLINE"]);
    assert_eq!(server.requests(), [""; 0]);
    // Its content is still among the blobs: nothing is downloaded again.
    bench.variable("HF_HUB_OFFLINE", "0");
    bench.ok(RUN);
    assert!(server.requests().iter().all(|line| line.starts_with("GET /api/")));
}

#[test]
fn what_python_has_fetched_is_used() {
    let (server, mut bench) = bench();
    let snapshot = format!("{MODEL}/snapshots/{COMMIT}");
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        bench.file(&format!("{snapshot}/{name}"), fs::read(fixture("model").join(name)).unwrap());
    }
    bench.file(&format!("{MODEL}/refs/main"), COMMIT);
    bench.file(&format!("{DATASET}/snapshots/{COMMIT}/data/train.jsonl"), corpus());
    bench.file(&format!("{DATASET}/refs/main"), COMMIT);
    bench.ok(RUN);
    bench.variable("HF_HUB_OFFLINE", "1");
    bench.ok(RUN);
    // By commit, too, and in a cache of another name.
    fs::rename(bench.path("huggingface/hub"), bench.path("elsewhere")).unwrap();
    bench.variable("HF_HUB_CACHE", bench.path("elsewhere").to_str().unwrap());
    bench.file("study.toml", STUDY.replace("owner/tiny", &format!("owner/tiny@{COMMIT}")));
    assert!(made(&bench.ok(RUN)).iter().all(|step| step.cached));
    assert_eq!(server.requests(), [""; 0]);
}

#[test]
fn the_token_is_sent_and_what_is_gated_says_so() {
    let (server, mut bench) = bench();
    server.gate("owner/tiny", "hf_secret");
    let page = format!("{}/owner/tiny", server.endpoint);
    contains(&bench.refused(RUN), &["hf:owner/tiny@main", "gated", &page, "no token was sent; set HF_TOKEN"]);
    bench.variable("HF_TOKEN", "hf_wrong");
    contains(&bench.refused(RUN), &["gated", "the token that was sent", "does not open it"]);
    bench.variable("HF_TOKEN", "hf_secret");
    server.requests();
    bench.ok(&["run", "study.toml", "--to", "train"]);
    let requests = server.requests();
    let sent = |line: &&String| !line.contains("/storage/");
    assert!(requests.iter().filter(sent).all(|line| line.ends_with(" Bearer hf_secret")), "{requests:?}");

    // From the file that `hf auth login` writes.
    let (server, bench) = self::bench();
    server.gate("owner/tiny", "hf_filed");
    bench.file("huggingface/token", "hf_filed\n");
    bench.ok(&["run", "study.toml", "--to", "train"]);
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    let (server, mut bench) = bench();
    server.file("owner/pickled", "config.json", "{}");
    server.file("owner/pickled", "pytorch_model.bin", "pickle");
    server.file("owner/bare", "README.md", "nothing");
    let model = "hf:owner/tiny";
    contains(
        &refused(&bench, model, "hf:owner/tinny"),
        &["hf:owner/tinny@main", "no such repository", "check the name"],
    );
    contains(&refused(&bench, model, "hf:owner/tiny@v9"), &["there is no revision `v9`", "branches and tags"]);
    contains(
        &refused(&bench, model, "hf:owner/pickled"),
        &[
            "neither model.safetensors nor model.safetensors.index.json",
            "refs/pr/N",
            "save_pretrained",
            "pytorch_model.bin",
        ],
    );
    contains(&refused(&bench, model, "hf:owner/bare"), &["no config.json", "it holds README.md"]);
    contains(
        &refused(&bench, "data/train.jsonl", "data/trian.jsonl"),
        &[
            "hf:datasets/owner/texts@main/data/trian.jsonl",
            "nothing there is a corpus of that name",
            "data/train.jsonl",
        ],
    );
    // What can be seen without asking is.
    server.requests();
    contains(&refused(&bench, model, "hf:tiny"), &["`hf:tiny` is no name of the Hugging Face hub", "hf:OWNER/NAME"]);
    contains(&refused(&bench, model, "hf:datasets/owner/texts"), &["names files; a model is"]);
    contains(
        &refused(&bench, "hf:datasets/owner/texts/data/train.jsonl", model),
        &["is a model; files are hf:datasets/"],
    );
    contains(&refused(&bench, "max-tokens = 32", "max-tokens = 1"), &["max-tokens"]);
    assert_eq!(server.requests(), [""; 0]);
    // Nobody listens on the discard port of loopback.
    bench.variable("HF_ENDPOINT", "http://127.0.0.1:9");
    contains(&bench.refused(RUN), &["the hub http://127.0.0.1:9 cannot be reached", "HF_ENDPOINT"]);
    let said = bench.wherefrom(&["plan", "study.toml"]);
    assert_eq!(said.code, Some(0));
    contains(&said.err, &["warning: ", "cannot be reached"]);
}

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    let (server, bench) = bench();
    let weights = format!("{MODEL}/snapshots/{COMMIT}/model.safetensors");
    let whole = fs::read(fixture("model/model.safetensors")).unwrap();
    let fetch = ["run", "study.toml", "--to", "train"];

    // Again and again, until it is given up; what came is kept, under no real name.
    server.break_off(&[100_000, 0, 0, 0], false);
    contains(&bench.refused(&fetch), &["model.safetensors could not be fetched", "run again"]);
    assert!(!bench.path(&weights).exists());
    let parts = files(&bench.path(MODEL).join("blobs"));
    let part = parts.iter().find(|path| path.extension().is_some_and(|ending| ending == "incomplete")).unwrap();
    assert_eq!(fs::read(part).unwrap(), whole[..100_000]);

    // Once more, and then through.
    server.requests();
    server.break_off(&[50_000], false);
    bench.ok(&fetch);
    let requests = server.requests();
    for range in ["bytes=100000-", "bytes=150000-"] {
        assert!(requests.iter().any(|line| line.contains("/storage/") && line.contains(range)), "{requests:?}");
    }
    assert_eq!(fs::read(bench.path(&weights)).unwrap(), whole);
}

#[test]
fn a_download_that_ends_early_and_says_nothing_is_no_file() {
    let (server, bench) = bench();
    let fetch = ["run", "study.toml", "--to", "train"];
    server.break_off(&[100_000, 0, 0, 0], true);
    let Said { code, err, .. } = bench.wherefrom(&fetch);
    assert_eq!(code, Some(2));
    contains(&err, &["model.safetensors could not be fetched", "not as long as the hub says"]);
    server.break_off(&[100_000], true);
    bench.ok(&fetch);
    let weights = fs::read(bench.path(format!("{MODEL}/snapshots/{COMMIT}/model.safetensors"))).unwrap();
    assert_eq!(weights, fs::read(fixture("model/model.safetensors")).unwrap());
}

#[test]
fn a_pipeline_is_written_for_names_of_the_hub() {
    let (_server, bench) = bench();
    let model = ["init", "--model", "hf:owner/tiny", "--output", "own.toml"];
    bench.ok(&[&model[..], &["--corpus", "hf:datasets/owner/texts/data/train.jsonl"]].concat());
    let text = bench.text("own.toml");
    contains(&text, &["path = \"hf:owner/tiny\"", "corpus = \"hf:datasets/owner/texts/data/train.jsonl\""]);
    assert!(bench.ok(&["run", "own.toml"]).lines().last().unwrap().starts_with("open /"));
}

#[test]
fn a_lone_stage_takes_names_of_the_hub() {
    let (server, bench) = bench();
    bench.file("tokenize.json", r#"{"max-tokens": 32}"#);
    bench.file("losses.json", "{}");
    let corpus = "corpus=hf:datasets/owner/texts/data/train.jsonl";
    let tokenizer = "tokenizer=hf:owner/tiny/tokenizer.json";
    let tokenize = [
        "stage",
        "tokenize",
        "--config",
        "tokenize.json",
        "--input",
        corpus,
        "--input",
        tokenizer,
        "--output",
        "tokens",
    ];
    bench.ok(&tokenize);
    assert!(!server.requests().iter().any(|line| line.contains("safetensors")), "one file was asked for");
    bench.ok(&[
        "stage",
        "losses",
        "--config",
        "losses.json",
        "--input",
        "tokens=tokens",
        "--model",
        "hf:owner/tiny@refs/pr/1",
        "--output",
        "losses",
    ]);
    contains(&bench.text("losses/manifest.json"), &["hf:owner/tiny@refs/pr/1", COMMIT]);
    contains(
        &bench.refused(&[
            "stage",
            "losses",
            "--config",
            "losses.json",
            "--input",
            "tokens=tokens",
            "--model",
            "hf:owner/no",
            "--output",
            "no",
        ]),
        &["no such repository"],
    );
}
