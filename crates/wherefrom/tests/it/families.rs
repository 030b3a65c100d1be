//! Every model family through the command line, against EK-FAC in float64 (tests/fixtures/families/make_fixtures.py).

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::{Value, json};
use wherefrom_artifact::{Artifact, Score, Scores};

use crate::bench::Bench;

pub(crate) const QUERIES: usize = 5;
pub(crate) const EXAMPLES: usize = 40;

/// Families; of those with experts the globs of their routers.
const FAMILIES: [(&str, &[&str]); 26] = [
    ("gemma", &[]),
    ("gemma2", &[]),
    ("gemma3", &[]),
    ("gemma3_inside", &[]),
    ("gpt2", &[]),
    ("gpt2_bare", &[]),
    ("gpt2_untied", &[]),
    ("gpt_neox", &[]),
    ("gpt_neox_sequential", &[]),
    ("gpt_oss", &["*.mlp.router"]),
    ("gpt_oss_mxfp4", &["*.mlp.router"]),
    ("granite", &[]),
    ("llama3", &[]),
    ("llama_linear", &[]),
    ("mistral", &[]),
    ("mixtral", &["*.mlp.gate"]),
    ("olmo2", &[]),
    ("olmo3", &[]),
    ("olmoe", &["*.mlp.gate"]),
    ("phi3", &[]),
    ("qwen2", &[]),
    ("qwen2_moe", &["*.mlp.gate", "*.mlp.shared_expert_gate"]),
    ("qwen2_window", &[]),
    ("qwen3", &[]),
    ("qwen3_moe", &["*.mlp.gate"]),
    ("smollm3", &[]),
];

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/families").join(name)
}

fn pipeline(model: &Path, routers: &[&str]) -> String {
    let mut text = format!(
        r#"
[model]
path = {model:?}
modules = ["*"]
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
    for (name, modules) in [("all", json!("all")), ("mlp", json!("mlp")), ("router", json!(routers))] {
        if modules == json!([]) {
            continue;
        }
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
pub(crate) fn scores(bench: &Bench, step: &str) -> Vec<f64> {
    let folder = bench.path(bench.ok(&["path", "study.toml", step]).trim_end());
    let mut scores = vec![f64::NAN; QUERIES * EXAMPLES];
    for row in Artifact::<Scores>::open(&folder).unwrap().rows::<Score>().unwrap() {
        let row = row.unwrap();
        scores[row.query as usize * EXAMPLES + row.example as usize] = f64::from(row.influence) * EXAMPLES as f64;
    }
    scores
}

fn reference(family: &str, step: &str) -> Vec<f64> {
    read(&format!("{family}.safetensors"), &format!("scores.{step}"))
}

/// Scores [queries, examples] of a file of references.
pub(crate) fn read(file: &str, name: &str) -> Vec<f64> {
    let bytes = fs::read(fixture(file)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor(name).unwrap();
    assert_eq!(view.shape(), [QUERIES, EXAMPLES]);
    view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
}

/// max|found - reference| / max|reference|.
pub(crate) fn error(found: &[f64], reference: &[f64]) -> f64 {
    let scale = reference.iter().fold(0.0_f64, |max, value| max.max(value.abs()));
    assert!(scale > 0.0 && found.iter().all(|value| value.is_finite()), "every pair has a score");
    found.iter().zip(reference).fold(0.0_f64, |max, (x, y)| max.max((x - y).abs())) / scale
}

#[test]
fn scores_of_every_family_agree() {
    for (family, routers) in FAMILIES {
        let bench = Bench::new();
        bench.file("study.toml", pipeline(&fixture(family), routers));
        bench.ok(&["run", "study.toml"]);
        for step in ["all", "mlp"].into_iter().chain((!routers.is_empty()).then_some("router")) {
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
    bench.file("study.toml", pipeline(Path::new("model"), &[]));
    bench
}

#[test]
fn variants_that_are_not_known_are_refused_by_name() {
    type Edit = fn(&mut Value);
    let cases: [(&str, Edit, &[&str]); 12] = [
        ("gpt2", |c| c["model_type"] = "mamba".into(), &["`mamba`", "supported: gemma, gemma2, gemma3"]),
        ("gpt2", |c| c["add_cross_attention"] = true.into(), &["`add_cross_attention` is not supported"]),
        ("gpt2", |c| c["activation_function"] = "mish".into(), &["`activation_function` `mish`", "gelu_new"]),
        ("gpt2", |c| c["n_head"] = 4.into(), &["`n_embd` must be a multiple of `n_head`"]),
        ("gpt2", |c| c["n_embd"] = "35".into(), &["`n_embd`", "whole number above 0"]),
        ("gpt2", |c| c["n_positions"] = 20.into(), &["`transformer.wpe.weight` has shape [24, 35]"]),
        ("gpt_neox", |c| c["rope_scaling"] = json!({"type": "axial", "factor": 2.0}), &["rope variant `axial`"]),
        ("gpt_neox", |c| c["use_parallel_residual"] = 1.into(), &["`use_parallel_residual` must be true or false"]),
        ("llama3", |c| c["rope_parameters"]["rope_type"] = "longrope".into(), &["`short_factor`", "5 numbers above 0"]),
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

/// Positions that differ by kind of layer are read in families that have such layers, and nowhere else (a reader that finds no
/// `rope_type` there and takes the default is silently wrong).
#[test]
fn rotary_positions_by_kind_of_layer_are_read_or_refused() {
    type Edit = fn(&mut Value);
    let cases: [(&str, Edit, &[&str]); 7] = [
        (
            "llama3",
            |c| c["rope_parameters"] = json!({"full_attention": {"rope_theta": 5.0}}),
            &["nested", "full_attention"],
        ),
        (
            "olmo3",
            |c| c["rope_parameters"]["chunked_attention"] = json!({}),
            &["`chunked_attention`", "no kind of layer"],
        ),
        ("olmo3", |c| c["rope_parameters"] = json!({"rope_theta": 5.0}), &["by kind of layer"]),
        (
            "olmo3",
            |c| {
                c["rope_parameters"] = Value::Null;
                c["rope_theta"] = 10_000.into();
            },
            &["`rope_theta` is 10000", "full attention alone"],
        ),
        ("gemma3", |c| c["sliding_window"] = Value::Null, &["`sliding_window` is null"]),
        ("smollm3", |c| c["no_rope_layers"] = json!([1, 2, 0]), &["`no_rope_layers` must be a list of 0 and 1"]),
        ("phi3", |c| c["rope_parameters"]["long_factor"] = json!([1.0]), &["`long_factor`", "2 numbers above 0"]),
    ];
    for (family, edit, fragments) in cases {
        let error = edited(family, edit).refused(&["run", "study.toml"]);
        for fragment in fragments {
            assert!(error.contains(fragment), "{family}: no `{fragment}` in: {error}");
        }
    }
}

/// Experts are modules of their own in `plan`, coverage and the covariances, whichever way the file has them; a router is named
/// by a glob alone; of an index of signs they are refused.
#[test]
fn experts_are_counted() {
    let bench = edited("olmoe", |_| ());
    let text = pipeline(Path::new("model"), &[]).replace(r#"modules = ["*"]"#, r#"modules = "all""#);
    bench.file("study.toml", text);
    let said = bench.ok(&["run", "study.toml"]);
    // 2 layers of 6 experts of 3 maps of 13 by 24.
    assert!(said.contains("11,232 of 18,096 parameters"), "{said}");
    let folder = bench.path(bench.ok(&["path", "study.toml", "covariances"]).trim_end());
    let manifest: Value = serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    let tokens = manifest["summary"]["tokens"].as_u64().unwrap();
    let experts = manifest["summary"]["expert_tokens"].as_object().unwrap();
    assert_eq!(experts.len(), 12);
    for layer in 0..2 {
        let own = experts.iter().filter(|(name, _)| name.starts_with(&format!("model.layers.{layer}.mlp.experts.")));
        assert_eq!(own.map(|(_, seen)| seen.as_u64().unwrap()).sum::<u64>(), 2 * tokens, "two experts see a token");
    }
}

#[test]
fn a_checkpoint_that_is_pickled_is_refused_with_the_remedy() {
    let bench = edited("gpt2", |_| ());
    fs::rename(bench.path("model/model.safetensors"), bench.path("model/pytorch_model.bin")).unwrap();
    let error = bench.refused(&["run", "study.toml"]);
    assert!(error.contains("pytorch_model.bin") && error.contains("safetensors"), "{error}");
}
