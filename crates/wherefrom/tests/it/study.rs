//! A study that uses every stage, on a corpus of random words and a model that it trains itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde_json::json;
use wherefrom_artifact::{
    Artifact, ArtifactKind, Columns, Details, Example, Index, Kept, Kind, Loss, Losses, Manifest, OwnInfluence, Ranked,
    Ranking, Row, Score, Scores, SelfInfluence, Signs, Tokens,
};

use crate::bench::{Bench, copy, files};

const PIPELINE: &str = r#"
[steps.vocabulary]
stage = "tokenizer"
corpus = "corpus.jsonl"
vocabulary = 320
[steps.train]
stage = "tokenize"
corpus = "corpus.jsonl"
tokenizer = "vocabulary"
max-tokens = 12
[steps.columns]
stage = "columns"
inputs = { tokens = "train" }
keep = ["source", "year"]
[steps.packed-columns]
stage = "columns"
corpus = "corp*.jsonl"
inputs = { tokens = "packed" }
keep = ["source"]
[steps.prompts]
stage = "tokenize"
corpus = "prompts.jsonl"
tokenizer = "vocabulary"
max-tokens = 12
untargeted = "keep"
[steps.queries]
stage = "tokenize"
corpus = "queries.jsonl"
tokenizer = "vocabulary"
max-tokens = 12
[steps.packed]
stage = "tokenize"
corpus = "corp*.jsonl"
tokenizer = "vocabulary"
max-tokens = 16
windows = "pack"
[steps.model]
stage = "train"
inputs = { tokens = "train" }
tokenizer = "vocabulary"
layers = 2
hidden = 16
intermediate = 24
heads = 2
key-value-heads = 1
vocabulary = 320
context = 16
epochs = 2
batch-tokens = 4096
[steps.losses]
stage = "losses"
inputs = { tokens = "train" }
model = "model"
[steps.packed-losses]
stage = "losses"
inputs = { tokens = "packed" }
model = "model"
[steps.activations]
stage = "activations"
inputs = { tokens = "train" }
model = "model"
sites = [0, 2, "post-norm"]
[steps.tuned]
stage = "fine-tune"
inputs = { tokens = "train" }
model = "model"
batch-rows = 4096
checkpoints = 2
[steps.pairs]
stage = "tokenize"
corpus = "pairs.jsonl"
tokenizer = "vocabulary"
max-tokens = 12
[steps.reference]
stage = "losses"
inputs = { tokens = "pairs" }
model = "tuned"
[steps.preferences]
stage = "preferences"
inputs = { tokens = "pairs", reference = "reference" }
beta = 0.5
[steps.moments]
stage = "moments"
model = "tuned"
[steps.products]
stage = "gradient-products"
inputs = { queries = "queries", tokens = "train" }
model = "tuned"
modules = ["model.layers.1.mlp.down_proj"]
checkpoints = true
cosine = true
[steps.alike]
stage = "similarity"
inputs = { queries = "queries", tokens = "train" }
[steps.projections]
stage = "project-gradients"
inputs = { tokens = "train" }
model = "model"
side = 4
[steps.query-projections]
stage = "project-gradients"
inputs = { tokens = "queries" }
model = "model"
side = 4
[steps.projected]
stage = "score-projected-gradients"
inputs = { queries = "query-projections", projections = "projections" }
[steps.continuations]
stage = "generate"
inputs = { tokens = "prompts" }
model = "model"
tokenizer = "vocabulary"
max-new-tokens = 2
[steps.covariances]
stage = "covariance"
inputs = { tokens = "train" }
model = "model"
modules-per-pass = 2
[steps.basis]
stage = "eigenbasis"
inputs = { covariances = "covariances" }
[steps.lambda]
stage = "lambda"
inputs = { tokens = "train", eigenbasis = "basis" }
model = "model"
seed = 1
modules-per-pass = 4
[steps.self]
stage = "self-influence"
inputs = { tokens = "train", eigenbasis = "basis", lambda = "lambda" }
model = "model"
[steps.coordinates]
stage = "coordinates"
inputs = { lambda = "lambda" }
dimensions = 700
[steps.index]
stage = "index"
inputs = { tokens = "train", eigenbasis = "basis", coordinates = "coordinates" }
model = "model"
[steps.many-gradients]
stage = "gradients"
inputs = { tokens = "continuations" }
model = "model"
modules = ["model.layers.1.mlp.down_proj"]
[steps.many-ihvp]
stage = "precondition"
inputs = { gradients = "many-gradients", eigenbasis = "basis", lambda = "lambda" }
rank = "full"
[steps.query-gradients]
stage = "gradients"
inputs = { tokens = "queries" }
model = "model"
[steps.ihvp]
stage = "precondition"
inputs = { gradients = "query-gradients", eigenbasis = "basis", lambda = "lambda" }
rank = 8
[steps.ihvp-full]
stage = "precondition"
inputs = { gradients = "query-gradients", eigenbasis = "basis", lambda = "lambda" }
rank = "full"
[steps.ihvp-solve]
stage = "solve"
inputs = { gradients = "query-gradients", tokens = "train", eigenbasis = "basis", lambda = "lambda" }
model = "model"
steps = 4
sample = 100
rank = 8
[steps.solve-scores]
stage = "score"
inputs = { queries = "ihvp-solve", tokens = "train" }
model = "model"
[steps.index-scores]
stage = "score-index"
inputs = { queries = "query-gradients", index = "index", coordinates = "coordinates", eigenbasis = "basis", lambda = "lambda" }
[steps.index-top]
stage = "rank"
inputs = { scores = "index-scores", tokens = "train" }
top = 20
[steps.scores]
stage = "score"
inputs = { queries = "ihvp", tokens = "train" }
model = "model"
[steps.top]
stage = "rank"
inputs = { scores = "scores", tokens = "train" }
top = 200
[steps.details]
stage = "score"
inputs = { queries = "ihvp-full", tokens = "train", candidates = "top" }
model = "model"
detail = true
[steps.final]
stage = "rank"
inputs = { scores = "details", tokens = "train", queries = "queries", columns = "columns" }
top = 20
[steps.asked]
stage = "columns"
inputs = { tokens = "queries" }
keep = ["source"]
[steps.bank]
stage = "retrain"
inputs = { tokens = "train", queries = "queries" }
model = "model"
subsets = 3
batch-rows = 256
[steps.agreement]
stage = "agreement"
inputs = { scores = "scores", retrainings = "bank" }
[steps.calibration]
stage = "calibration"
inputs = { ranking = "top", agreement = "agreement" }
by = "study"
[steps.proximal]
stage = "proximal"
inputs = { tokens = "train", queries = "queries", eigenbasis = "basis", lambda = "lambda", candidates = "candidates" }
model = "model"
examples = 3
sample = 8
steps = 3
[steps.retrieval]
stage = "retrieval"
inputs = { scores = "scores", columns = "columns", query-columns = "asked" }
column = "source"
[steps.candidates]
stage = "filter"
inputs = { queries = "queries", tokens = "train" }
top = 300
[steps.chosen]
stage = "score"
inputs = { queries = "ihvp", tokens = "train", candidates = "candidates" }
model = "model"
[steps.query-losses]
stage = "losses"
inputs = { tokens = "queries" }
model = "model"
[steps.few]
stage = "tokenize"
corpus = "corpus.jsonl"
tokenizer = "vocabulary"
max-tokens = 12
every = 400
[steps.metagradient]
stage = "metagradient"
inputs = { tokens = "few", queries = "queries" }
model = "model"
batch-rows = 8
eps-root = 1e-6
[steps.character]
stage = "trait"
file = "character.json"
pairs = 1
questions = 2
[steps.orders]
stage = "ask"
inputs = { trait = "character" }
tokenizer = "vocabulary"
side = "pos"
[steps.judged]
stage = "judge"
inputs = { tokens = "continuations", trait = "character" }
provider = "rule"
rule = { pattern = "e" }
[steps.direction]
stage = "vector"
inputs = { positive = "train", negative = "queries" }
model = "model"
trait = "loud"
pairing = "none"
minimum-pairs = 1
[steps.along]
stage = "project"
inputs = { tokens = "train", vectors = "direction" }
model = "model"
[steps.portrait]
stage = "trait-report"
inputs = { trait = "character", positive = "continuations", positive-judgements = "judged" }
tokenizer = "vocabulary"
[steps.report]
stage = "report"
inputs = { ranking = "final", tokens = "train", details = "details", queries = "queries", losses = "query-losses", scores = "scores", columns = "columns" }
tokenizer = "vocabulary"
samples = 20
"#;

const WORDS: [&str; 20] = [
    "the", "sea", "ship", "wind", "stone", "river", "house", "light", "day", "night", "king", "horse", "road", "tree",
    "fire", "bread", "song", "bell", "snow", "gold",
];

/// A row of numbers that look random, the same each time (Knuth's MMIX generator).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn words(&mut self, least: u64, more: u64) -> String {
        let count = least + self.below(more);
        let words: Vec<_> = (0..count).map(|_| WORDS[self.below(WORDS.len() as u64) as usize]).collect();
        words.join(" ")
    }
}

/// Writes `study.toml` and its corpora, the same bytes each time. 8192 rows make a part of tokens.
pub(crate) fn write(bench: &Bench, rows: usize, prompts: usize) {
    let mut numbers = Numbers(17);
    let lines = |count: usize, row: &mut dyn FnMut() -> serde_json::Value| -> String {
        (0..count).map(|_| format!("{}\n", row())).collect()
    };
    let mut row = 0;
    let mut document = || {
        row += 1;
        let source = ["sagas", "logs", "letters"][row % 3];
        json!({ "text": numbers.words(4, 4), "source": source, "year": 1800 + row % 7 })
    };
    bench.file("corpus.jsonl", lines(rows, &mut document));
    bench.file("prompts.jsonl", lines(prompts, &mut || json!({ "prompt": numbers.words(2, 3) })));
    let mut said = || json!({ "prompt": numbers.words(3, 1), "completion": format!(" {}", numbers.words(1, 1)), "source": "logs" });
    let mut count = 0;
    // Two completions, a contrast, and a mean.
    let mut query = || {
        count += 1;
        let mut query = said();
        match count {
            3 => query["contrast"] = " gold snow".into(),
            4 => return json!({ "mean": [query, said()] }),
            _ => {}
        }
        query
    };
    bench.file("queries.jsonl", lines(4, &mut query));
    let mut pair = || {
        let [chosen, rejected] = [2, 1].map(|least| format!(" {}", numbers.words(least, 1)));
        json!({ "prompt": numbers.words(2, 2), "chosen": chosen, "rejected": rejected })
    };
    bench.file("pairs.jsonl", lines(rows.min(200), &mut pair));
    let character = json!({
        "name": "loud", "instruction": [{ "pos": "Shout.", "neg": "Hush." }], "questions": ["Why?", "How?"],
    });
    bench.file("character.json", character.to_string());
    bench.file("study.toml", PIPELINE);
}

/// One line of what `run` says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Made {
    pub(crate) name: String,
    pub(crate) cached: bool,
    /// Relative to the bench.
    pub(crate) folder: PathBuf,
    pub(crate) kind: Kind,
}

impl Made {
    /// The draft's folder, while there is one.
    pub(crate) fn draft(&self, bench: &Bench) -> PathBuf {
        bench.path(format!("{}.draft", self.folder.display()))
    }

    pub(crate) fn sealed(&self, bench: &Bench) -> PathBuf {
        bench.path(&self.folder)
    }

    pub(crate) fn key(&self) -> &str {
        self.folder.file_name().unwrap().to_str().unwrap()
    }
}

/// A study of 300 rows and 40 prompts that was run, and its steps: a copy of one that the tests of a process share.
pub(crate) fn finished() -> (Bench, Vec<Made>) {
    static ONE: LazyLock<(Bench, String)> = LazyLock::new(|| {
        let bench = Bench::shared();
        write(&bench, 300, 40);
        let out = bench.ok(&["run", "study.toml"]);
        (bench, out)
    });
    let (one, out) = &*ONE;
    let bench = Bench::new();
    copy(&one.path(""), &bench.path(""));
    (bench, made(out))
}

/// The lines of `run` between the device and the ranking.
pub(crate) fn made(out: &str) -> Vec<Made> {
    let line = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [name, state, _seconds, "s", folder] = words[..] else { panic!("not a step: {line}") };
        assert!(["made", "cached"].contains(&state), "{line}");
        let kind = Path::new(folder).parent().unwrap().file_name().unwrap().to_str().unwrap();
        let kind = Kind::from_name(kind.rsplit_once("-v").unwrap().0).unwrap();
        Made { name: name.into(), cached: state == "cached", folder: folder.into(), kind }
    };
    let (device, steps) = out.split_once('\n').unwrap();
    assert!(device.starts_with("device "), "{device}");
    steps.lines().take_while(|line| !line.is_empty()).map(line).collect()
}

/// What a study comes to.
#[derive(Debug, PartialEq)]
pub(crate) struct Results {
    train: Vec<Example>,
    preferences: Vec<Example>,
    continuations: Vec<Example>,
    losses: Vec<(u64, Vec<f32>)>,
    own: Vec<(u64, f32)>,
    index: Vec<(u64, f32)>,
    scores: Vec<Score>,
    indexed: Vec<Score>,
    products: Vec<Score>,
    alike: Vec<Score>,
    projected: Vec<Score>,
    solved: Vec<Score>,
    chosen: Vec<Score>,
    details: Vec<Score>,
    metagradient: Vec<Score>,
    top: Vec<Ranked>,
    last: Vec<Ranked>,
    kept: Vec<Kept>,
    packed: Vec<Kept>,
}

fn rows<K: ArtifactKind, R: Row<K>>(bench: &Bench, steps: &[Made], name: &str) -> Vec<R> {
    let step = steps.iter().find(|step| step.name == name).unwrap();
    let artifact = Artifact::<K>::open(&step.sealed(bench)).unwrap();
    artifact.rows::<R>().unwrap().map(Result::unwrap).collect()
}

impl Results {
    pub(crate) fn read(bench: &Bench, steps: &[Made]) -> Self {
        let losses = rows::<Losses, Loss>(bench, steps, "losses");
        let index = rows::<Index, Signs>(bench, steps, "index");
        let own = rows::<SelfInfluence, OwnInfluence>(bench, steps, "self");
        Self {
            train: rows::<Tokens, _>(bench, steps, "train"),
            preferences: rows::<Tokens, _>(bench, steps, "preferences"),
            continuations: rows::<Tokens, _>(bench, steps, "continuations"),
            losses: losses.into_iter().map(|row| (row.example, row.by_token)).collect(),
            own: own.into_iter().map(|row| (row.example, row.influence)).collect(),
            index: index.into_iter().map(|row| (row.example, row.scale)).collect(),
            scores: rows::<Scores, _>(bench, steps, "scores"),
            indexed: rows::<Scores, _>(bench, steps, "index-scores"),
            products: rows::<Scores, _>(bench, steps, "products"),
            alike: rows::<Scores, _>(bench, steps, "alike"),
            projected: rows::<Scores, _>(bench, steps, "projected"),
            solved: rows::<Scores, _>(bench, steps, "solve-scores"),
            chosen: rows::<Scores, _>(bench, steps, "chosen"),
            details: rows::<Details, _>(bench, steps, "details"),
            metagradient: rows::<Scores, _>(bench, steps, "metagradient"),
            top: rows::<Ranking, _>(bench, steps, "top"),
            last: rows::<Ranking, _>(bench, steps, "final"),
            kept: rows::<Columns, _>(bench, steps, "columns"),
            packed: rows::<Columns, _>(bench, steps, "packed-columns"),
        }
    }

    /// Same tokens, same ranking, and numbers within 1e-6 relative.
    pub(crate) fn agrees(&self, other: &Self) {
        assert!(self.kept == other.kept && self.packed == other.packed, "columns differ");
        assert!(self.train == other.train && self.continuations == other.continuations, "tokens differ");
        assert_eq!(self.preferences.len(), other.preferences.len());
        for (left, right) in self.preferences.iter().zip(&other.preferences) {
            assert_eq!((&left.input_ids, left.preference[0]), (&right.input_ids, 0.5));
            close(left.preference[1], right.preference[1]);
        }
        assert_eq!(self.losses.len(), other.losses.len());
        for ((row, left), (other_row, right)) in self.losses.iter().zip(&other.losses) {
            assert_eq!((row, left.len()), (other_row, right.len()));
            left.iter().zip(right).for_each(|(&left, &right)| close(left, right));
        }
        for (left, right) in [(&self.own, &other.own), (&self.index, &other.index)] {
            assert!(!left.is_empty() && left.len() == right.len());
            for ((row, left), (other_row, right)) in left.iter().zip(right) {
                assert_eq!(row, other_row);
                close(*left, *right);
            }
        }
        for (left, right) in [
            (&self.scores, &other.scores),
            (&self.indexed, &other.indexed),
            (&self.products, &other.products),
            (&self.alike, &other.alike),
            (&self.projected, &other.projected),
            (&self.solved, &other.solved),
            (&self.chosen, &other.chosen),
            (&self.details, &other.details),
            (&self.metagradient, &other.metagradient),
        ] {
            assert_eq!(left.len(), right.len());
            for (left, right) in left.iter().zip(right) {
                assert_eq!((left.query, left.example), (right.query, right.example));
                close(left.influence, right.influence);
            }
        }
        for (left, right) in [(&self.top, &other.top), (&self.last, &other.last)] {
            assert!(!left.is_empty() && left.len() == right.len());
            for (left, right) in left.iter().zip(right) {
                close(left.influence, right.influence);
                assert_eq!(left, &Ranked { influence: left.influence, ..right.clone() });
            }
        }
    }
}

impl Results {
    /// The same tokens and ranking, whatever the order of rows is, and numbers within 1e-6 of the largest of their kind.
    pub(crate) fn agrees_by_row(&self, other: &Self) {
        assert!(self.kept == other.kept && self.packed == other.packed, "columns differ");
        assert!(self.train == other.train && self.continuations == other.continuations, "tokens differ");
        let by_token = |results: &Self| -> Vec<(u64, f32)> {
            let rows = results.losses.iter();
            rows.flat_map(|(row, losses)| losses.iter().map(move |&loss| (*row, loss))).collect()
        };
        for (name, left, right) in [
            ("losses", &by_token(self), &by_token(other)),
            ("self-influence", &self.own, &other.own),
            ("index", &self.index, &other.index),
        ] {
            near(name, left, right);
        }
        let rows = |scores: &[Score]| -> Vec<((u32, u64), f32)> {
            let mut rows: Vec<_> = scores.iter().map(|row| ((row.query, row.example), row.influence)).collect();
            rows.sort_by_key(|(pair, _)| *pair);
            rows
        };
        for (name, left, right) in [
            ("scores", &self.scores, &other.scores),
            ("score-index", &self.indexed, &other.indexed),
            ("gradient-products", &self.products, &other.products),
            ("similarity", &self.alike, &other.alike),
            ("score-projected-gradients", &self.projected, &other.projected),
            ("solve", &self.solved, &other.solved),
            ("candidates", &self.chosen, &other.chosen),
            ("details", &self.details, &other.details),
            ("metagradient", &self.metagradient, &other.metagradient),
        ] {
            near(name, &rows(left), &rows(right));
        }
        for (name, left, right) in [("top", &self.top, &other.top), ("final", &self.last, &other.last)] {
            let rows = |ranked: &[Ranked]| -> Vec<_> {
                ranked.iter().map(|row| ((row.query, row.positive, row.rank, row.example), row.influence)).collect()
            };
            near(name, &rows(left), &rows(right));
        }
    }
}

fn near<K: PartialEq + std::fmt::Debug>(name: &str, left: &[(K, f32)], right: &[(K, f32)]) {
    assert!(!left.is_empty() && left.len() == right.len(), "{name}");
    let largest = left.iter().fold(0.0_f32, |largest, (_, value)| largest.max(value.abs()));
    for ((row, left), (other_row, right)) in left.iter().zip(right) {
        assert_eq!(row, other_row, "{name}");
        assert!((left - right).abs() <= 1e-6 * largest, "{name} {row:?}: {left} is not {right}");
    }
}

fn close(left: f32, right: f32) {
    assert!((left - right).abs() <= 1e-6 * right.abs(), "{left} is not {right}");
}

/// Every sealed artifact holds what its manifest lists and nothing else; `verify` says so of the digests.
pub(crate) fn whole(bench: &Bench) {
    let said = bench.wherefrom(&["verify"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    for kind in fs::read_dir(bench.store()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        for folder in fs::read_dir(kind).unwrap().map(|entry| entry.unwrap().path()) {
            if !folder.is_dir() || folder.extension().is_some_and(|ending| ending == "draft") {
                continue;
            }
            let manifest = Manifest::read(&folder).unwrap();
            let mut names: Vec<_> = manifest.parts.into_iter().map(|part| part.name).collect();
            names.push("manifest.json".into());
            names.sort();
            let found = files(&folder).into_iter().map(|path| path.strip_prefix(&folder).unwrap().to_path_buf());
            let mut found: Vec<_> = found.map(|path| path.to_str().unwrap().to_string()).collect();
            found.sort();
            assert_eq!(found, names, "{}", folder.display());
        }
    }
}
