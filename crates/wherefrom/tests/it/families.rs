//! Every model family through the command line, against EK-FAC in float64 (tests/fixtures/families/make_fixtures.py).

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::{Value, json};
use wherefrom_artifact::{Artifact, Score, Scores};

use crate::bench::Bench;

const QUERIES: usize = 5;
const EXAMPLES: usize = 40;

/// Families, and the globs of their MLPs.
const FAMILIES: [(&str, &str); 12] = [
    ("gemma", "model.layers.*.mlp.*"),
    ("gpt2", "transformer.h.*.mlp.*"),
    ("gpt2_bare", "transformer.h.*.mlp.*"),
    ("gpt2_untied", "transformer.h.*.mlp.*"),
    ("gpt_neox", "gpt_neox.layers.*.mlp.*"),
    ("gpt_neox_sequential", "gpt_neox.layers.*.mlp.*"),
    ("llama3", "model.layers.*.mlp.*"),
    ("llama_linear", "model.layers.*.mlp.*"),
    ("mistral", "model.layers.*.mlp.*"),
    ("olmo2", "model.layers.*.mlp.*"),
    ("qwen2", "model.layers.*.mlp.*"),
    ("qwen3", "model.layers.*.mlp.*"),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/families").join(name)
}

fn pipeline(model: &Path, glob: &str) -> String {
    let mut text = format!(
        r#"
[model]
path = {model:?}
modules = "all"
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
"#,
        train = fixture("train.jsonl"),
        queries = fixture("queries.jsonl"),
    );
    for (name, modules) in [("all", json!("all")), ("mlp", json!([glob]))] {
        text += &format!(
            r#"
[steps.{name}-gradients]
stage = "gradients"
inputs = {{ tokens = "queries" }}
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

/// Scores of a step, [queries, examples], without 1 / N.
fn scores(bench: &Bench, step: &str) -> Vec<f64> {
    let folder = bench.path(bench.ok(&["path", "study.toml", step]).trim_end());
    let mut scores = vec![f64::NAN; QUERIES * EXAMPLES];
    for row in Artifact::<Scores>::open(&folder).unwrap().rows::<Score>().unwrap() {
        let row = row.unwrap();
        scores[row.query as usize * EXAMPLES + row.example as usize] = f64::from(row.influence) * EXAMPLES as f64;
    }
    scores
}

fn reference(family: &str, step: &str) -> Vec<f64> {
    let bytes = fs::read(fixture(&format!("{family}.safetensors"))).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor(&format!("scores.{step}")).unwrap();
    assert_eq!(view.shape(), [QUERIES, EXAMPLES]);
    view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
}

/// max|found - reference| / max|reference|.
fn error(found: &[f64], reference: &[f64]) -> f64 {
    let scale = reference.iter().fold(0.0_f64, |max, value| max.max(value.abs()));
    assert!(scale > 0.0 && found.iter().all(|value| value.is_finite()), "every pair has a score");
    found.iter().zip(reference).fold(0.0_f64, |max, (x, y)| max.max((x - y).abs())) / scale
}

#[test]
fn scores_of_every_family_agree() {
    for (family, glob) in FAMILIES {
        let bench = Bench::new();
        bench.file("study.toml", pipeline(&fixture(family), glob));
        bench.ok(&["run", "study.toml"]);
        for step in ["all", "mlp"] {
            let worst = error(&scores(&bench, step), &reference(family, step));
            assert!(worst <= 2e-5, "{family}, {step}: {worst:.2e}");
        }
    }
}

/// A copy of a family's checkpoint with another config.
fn edited(family: &str, edit: impl Fn(&mut Value)) -> Bench {
    let bench = Bench::new();
    let text = fs::read(fixture(family).join("config.json")).unwrap();
    let mut config = serde_json::from_slice(&text).unwrap();
    edit(&mut config);
    bench.file("model/config.json", config.to_string());
    bench.file("model/model.safetensors", fs::read(fixture(family).join("model.safetensors")).unwrap());
    bench.file("study.toml", pipeline(Path::new("model"), "*"));
    bench
}

#[test]
fn variants_that_are_not_known_are_refused_by_name() {
    type Edit = fn(&mut Value);
    let cases: [(&str, Edit, &[&str]); 12] = [
        ("gpt2", |c| c["model_type"] = "mamba".into(), &["`mamba`", "supported: gemma, gpt2, gpt_neox, llama"]),
        ("gpt2", |c| c["add_cross_attention"] = true.into(), &["`add_cross_attention` is not supported"]),
        ("gpt2", |c| c["activation_function"] = "mish".into(), &["`activation_function` `mish`", "gelu_new"]),
        ("gpt2", |c| c["n_head"] = 4.into(), &["`n_embd` must be a multiple of `n_head`"]),
        ("gpt2", |c| c["n_embd"] = "35".into(), &["`n_embd`", "whole number above 0"]),
        ("gpt2", |c| c["n_positions"] = 20.into(), &["`transformer.wpe.weight` has shape [24, 35]"]),
        ("gpt_neox", |c| c["rope_scaling"] = json!({"type": "yarn", "factor": 2.0}), &["rope variant `yarn`"]),
        ("gpt_neox", |c| c["use_parallel_residual"] = 1.into(), &["`use_parallel_residual` must be true or false"]),
        ("llama3", |c| c["rope_parameters"]["rope_type"] = "longrope".into(), &["rope variant `longrope`"]),
        ("llama3", |c| c["rope_parameters"]["factor"] = "8".into(), &["`factor` must be a number"]),
        ("llama3", |c| c["quantization_config"] = json!({"bits": 4}), &["quantised", "unquantised checkpoint"]),
        ("gemma", |c| c["use_bidirectional_attention"] = true.into(), &["`use_bidirectional_attention`"]),
    ];
    for (family, edit, fragments) in cases {
        let error = edited(family, edit).refused(&["run", "study.toml"]);
        for fragment in fragments.iter().chain(&["model"]) {
            assert!(error.contains(fragment), "{family}: no `{fragment}` in: {error}");
        }
    }
}

/// Within a window attention sees all; a longer sequence is refused.
#[test]
fn a_sequence_longer_than_a_sliding_window_is_refused() {
    let error = edited("mistral", |c| c["sliding_window"] = 8.into()).refused(&["run", "study.toml"]);
    assert!(error.contains("which has 8 positions") && error.contains("max-tokens"), "{error}");
}

#[test]
fn a_checkpoint_that_is_pickled_is_refused_with_the_remedy() {
    let bench = edited("gpt2", |_| ());
    fs::rename(bench.path("model/model.safetensors"), bench.path("model/pytorch_model.bin")).unwrap();
    let error = bench.refused(&["run", "study.toml"]);
    assert!(error.contains("pytorch_model.bin") && error.contains("safetensors"), "{error}");
}
