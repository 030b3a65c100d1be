//! Whole models through the command line: tables, norms and heads beside the maps of the blocks, against EK-FAC in float64
//! (tests/fixtures/families/make_everything.py).

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use wherefrom_artifact::{
    Artifact, Basis, Detail, Details, Eigenbasis, OwnInfluence, Score, Scores, SelfInfluence, Side,
};

use crate::bench::Bench;
use crate::families::{EXAMPLES, QUERIES, error, fixture, read, scores};

/// Families, each with the globs of what is no map of its blocks.
const FAMILIES: [(&str, &[&str]); 9] = [
    ("gpt2", &["*.wte", "*.wpe", "*.ln_*"]),
    ("gpt2_untied", &["*.wte", "*.wpe", "*.ln_*", "lm_head"]),
    ("gpt_neox", &["*.embed_in", "*norm", "embed_out"]),
    ("llama3", &["*.embed_tokens", "*norm", "lm_head"]),
    ("qwen2", &["*.embed_tokens", "*norm"]),
    ("qwen3", &["*.embed_tokens", "*norm", "lm_head"]),
    ("gemma2", &["*.embed_tokens", "*norm"]),
    ("granite", &["*.embed_tokens", "*norm", "lm_head"]),
    ("olmo2", &["*.embed_tokens", "*norm", "lm_head"]),
];

/// Every stage that takes these modules, with the text's own labels.
fn pipeline(family: &str, beside: &[&str]) -> String {
    let mut text = format!(
        r#"
[model]
path = {model:?}
modules = "everything"
[steps.train]
stage = "tokenize"
corpus = {train:?}
max-tokens = 16
[steps.queries]
stage = "tokenize"
corpus = {queries:?}
max-tokens = 16
[steps.covariances]
stage = "covariance"
inputs = {{ tokens = "train" }}
labels = "empirical"
[steps.basis]
stage = "eigenbasis"
inputs = {{ covariances = "covariances" }}
[steps.lambda]
stage = "lambda"
inputs = {{ tokens = "train", eigenbasis = "basis" }}
labels = "empirical"
[steps.self]
stage = "self-influence"
inputs = {{ tokens = "train", eigenbasis = "basis", lambda = "lambda" }}
[steps.details]
stage = "score"
inputs = {{ queries = "everything-ihvp", tokens = "train" }}
detail = true
"#,
        model = fixture(family),
        train = fixture("train.jsonl"),
        queries = fixture("queries.jsonl"),
    );
    for (name, tokens, modules) in [
        ("everything", "queries", "\"everything\"".into()),
        ("beside", "queries", format!("{beside:?}")),
        ("own", "train", "\"everything\"".into()),
    ] {
        text += &format!(
            r#"
[steps.{name}-gradients]
stage = "gradients"
inputs = {{ tokens = "{tokens}" }}
modules = {modules}
[steps.{name}-ihvp]
stage = "precondition"
inputs = {{ gradients = "{name}-gradients", eigenbasis = "basis", lambda = "lambda" }}
rank = "full"
[steps.{name}]
stage = "score"
inputs = {{ queries = "{name}-ihvp", tokens = "train" }}
"#
        );
    }
    text
}

fn folder(bench: &Bench, step: &str) -> PathBuf {
    bench.path(bench.ok(&["path", "study.toml", step]).trim_end())
}

#[test]
fn scores_of_whole_models_agree() {
    for (family, beside) in FAMILIES {
        let bench = Bench::new();
        bench.file("study.toml", pipeline(family, beside));
        let said = bench.ok(&["run", "study.toml", "--to", "everything"]);
        assert!(said.contains("(100.0 %)"), "{family}: {said}");
        bench.ok(&["run", "study.toml", "--to", "beside"]);
        for step in ["beside", "everything"] {
            let worst = error(&scores(&bench, step), &read("everything.safetensors", &format!("{family}.{step}")));
            assert!(worst <= 2e-5, "{family}, {step}: {worst:.2e}");
        }
    }
}

/// Details sum to the scores by module and by token, and an example's influence on itself is its score as a query.
#[test]
fn details_and_self_influences_agree_with_scores() {
    for family in ["gpt2", "gpt2_untied"] {
        let bench = Bench::new();
        bench.file("study.toml", pipeline(family, &["*.wte"]));
        bench.ok(&["run", "study.toml"]);
        let (mut by_module, mut by_token) = (vec![0.0; QUERIES * EXAMPLES], vec![0.0; QUERIES * EXAMPLES]);
        for row in Artifact::<Details>::open(&folder(&bench, "details")).unwrap().rows::<Detail>().unwrap() {
            let row = row.unwrap();
            let place = row.score.query as usize * EXAMPLES + row.score.example as usize;
            let sum = |values: &[f32]| values.iter().map(|&value| f64::from(value)).sum::<f64>() * EXAMPLES as f64;
            (by_module[place], by_token[place]) = (sum(&row.by_module), sum(&row.by_token));
        }
        let expected = scores(&bench, "everything");
        for found in [by_module, by_token] {
            let worst = error(&found, &expected);
            assert!(worst <= 2e-5, "{family}: {worst:.2e}");
        }
        let (mut own, mut expected) = (vec![0.0; EXAMPLES], vec![0.0; EXAMPLES]);
        for row in Artifact::<SelfInfluence>::open(&folder(&bench, "self")).unwrap().rows::<OwnInfluence>().unwrap() {
            let row = row.unwrap();
            own[row.example as usize] = f64::from(row.influence);
        }
        let scored = folder(&bench, "own");
        for row in Artifact::<Scores>::open(&scored).unwrap().rows::<Score>().unwrap() {
            let row = row.unwrap();
            if u64::from(row.query) == row.example {
                expected[row.example as usize] = f64::from(row.influence);
            }
        }
        let worst = error(&own, &expected);
        assert!(worst <= 2e-5, "{family}: {worst:.2e}");
    }
}

/// The diagonal of a table's S is the share of each token, in the order of the vocabulary.
#[test]
fn a_table_has_the_counts_of_its_rows() {
    let bench = Bench::new();
    bench.file("study.toml", pipeline("llama3", &["lm_head"]));
    bench.ok(&["run", "study.toml", "--to", "basis"]);
    let mut counts = vec![0.0_f64; 61];
    for line in fs::read_to_string(fixture("train.jsonl")).unwrap().lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        row["input_ids"].as_array().unwrap().iter().for_each(|id| counts[id.as_u64().unwrap() as usize] += 1.0);
    }
    let all: f64 = counts.iter().sum();
    let rows =
        Artifact::<Eigenbasis>::open(&folder(&bench, "basis")).unwrap().module::<Basis>("model.embed_tokens").unwrap();
    let found = rows.iter().find(|row| row.side == Side::Gradient).unwrap();
    assert!(found.is_standard());
    for (value, count) in found.values.iter().zip(counts) {
        assert!((f64::from(*value) - count / all).abs() < 1e-6, "{value} and {count} of {all}");
    }
}

/// What a token adds to both sides of a tied matrix has one trace, as a whole gradient has (`factors = "shampoo"`): a diagonal that
/// left rows out, or took others, would differ.
#[test]
fn a_diagonal_has_the_trace_of_the_other_side() {
    for (family, shampoo) in [("gpt2", false), ("gpt2", true), ("gpt2_untied", true)] {
        let bench = Bench::new();
        let factors = "labels = \"empirical\"\nfactors = \"shampoo\"\n[steps.basis]";
        let text = pipeline(family, &["*.wte"]);
        bench.file(
            "study.toml",
            if shampoo { text.replacen("labels = \"empirical\"\n[steps.basis]", factors, 1) } else { text },
        );
        bench.ok(&["run", "study.toml", "--to", "basis"]);
        let basis = Artifact::<Eigenbasis>::open(&folder(&bench, "basis")).unwrap();
        let modules: &[&str] = match (family, shampoo) {
            (_, false) => &["transformer.wte"],
            ("gpt2", true) => &["transformer.wte", "transformer.wpe", "transformer.h.0.ln_1", "transformer.ln_f"],
            _ => &["transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"],
        };
        for module in modules {
            let mut traces = [0.0; 2];
            for row in basis.module::<Basis>(module).unwrap() {
                let sum: f64 = row.values.iter().map(|&value| f64::from(value)).sum();
                traces[usize::from(row.side == Side::Gradient)] += sum;
            }
            assert!(traces[0] > 0.0 && (traces[0] / traces[1] - 1.0).abs() < 1e-5, "{family} {module}: {traces:?}");
        }
    }
}

/// Stages that know linear maps alone, and a method that knows means over tokens, refuse by name.
#[test]
fn what_cannot_take_them_refuses_them_by_name() {
    let refused = |steps: &str, fragments: &[&str]| {
        let bench = Bench::new();
        bench.file("study.toml", pipeline("llama3", &["lm_head"]) + steps);
        let error = bench.refused(&["run", "study.toml", "--to", "last"]);
        for fragment in fragments {
            assert!(error.contains(fragment), "no `{fragment}` in: {error}");
        }
    };
    refused(
        "[steps.last]\nstage = \"precondition\"\nmethod = \"kfac\"\n\
         inputs = { gradients = \"beside-gradients\", eigenbasis = \"basis\" }\n",
        &["kfac", "lm_head", "\"ekfac\""],
    );
    refused(
        "[steps.last]\nstage = \"solve\"\n\
         inputs = { gradients = \"beside-gradients\", tokens = \"train\", eigenbasis = \"basis\", lambda = \"lambda\" }\n",
        &["solve takes linear maps", "lm_head"],
    );
    refused(
        "[steps.kept]\nstage = \"coordinates\"\ninputs = { lambda = \"lambda\" }\n\
         [steps.last]\nstage = \"index\"\ninputs = { tokens = \"train\", eigenbasis = \"basis\", coordinates = \"kept\" }\n",
        &["index takes linear maps"],
    );
}
