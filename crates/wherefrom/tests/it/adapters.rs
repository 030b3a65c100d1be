//! LoRA adapters through the command line: scores against EK-FAC of `peft` in float64
//! (tests/fixtures/adapters/make_fixtures.py), keys, refusals, and adapters that a step trains.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::{Value, json};
use wherefrom_artifact::{Artifact, Manifest, Score, Scores};

use crate::bench::{Bench, copy};

const QUERIES: usize = 5;
const EXAMPLES: usize = 40;

/// Cases of the fixtures, and the folders of their adapters.
const CASES: [(&str, &[&str]); 6] = [
    ("gpt2", &["gpt2"]),
    ("gpt_neox", &["gpt_neox"]),
    ("llama3", &["llama3"]),
    ("llama_linear", &["llama_linear"]),
    ("olmo2", &["olmo2.0", "olmo2.1"]),
    ("qwen2", &["qwen2"]),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").canonicalize().unwrap().join(name)
}

fn adapter(name: &str) -> PathBuf {
    fixture("adapters").join(name)
}

/// A study of a base with adapters: `model` stands below `[model]`.
fn study(model: &str, modules: &Value) -> String {
    format!(
        r#"
[model]
{model}
modules = {modules}
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
[steps.gradients]
stage = "gradients"
inputs = {{ tokens = "queries" }}
[steps.ihvp]
stage = "precondition"
inputs = {{ gradients = "gradients", eigenbasis = "basis", lambda = "lambda" }}
rank = "full"
[steps.scores]
stage = "score"
inputs = {{ queries = "ihvp", tokens = "train" }}
"#,
        train = fixture("families/train.jsonl"),
        queries = fixture("families/queries.jsonl"),
    )
}

fn with(base: &str, adapters: &[&str], attribute: &str) -> String {
    let adapters: Vec<_> = adapters.iter().map(|name| adapter(name)).collect();
    let adapters = if let [one] = &adapters[..] { json!(one) } else { json!(adapters) };
    format!("path = {:?}\nadapter = {adapters}\nattribute = \"{attribute}\"", fixture("families").join(base))
}

/// Scores of a step, [queries, examples], without 1 / N.
fn scores(folder: &Path) -> Vec<f64> {
    let mut scores = vec![f64::NAN; QUERIES * EXAMPLES];
    for row in Artifact::<Scores>::open(folder).unwrap().rows::<Score>().unwrap() {
        let row = row.unwrap();
        scores[row.query as usize * EXAMPLES + row.example as usize] = f64::from(row.influence) * EXAMPLES as f64;
    }
    scores
}

fn reference(case: &str, scores: &str) -> Option<Vec<f64>> {
    let bytes = fs::read(adapter(&format!("{case}.safetensors"))).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor(&format!("scores.{scores}")).ok()?;
    assert_eq!(view.shape(), [QUERIES, EXAMPLES]);
    Some(view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect())
}

/// max|found - reference| / max|reference|.
fn error(found: &[f64], reference: &[f64]) -> f64 {
    let scale = reference.iter().fold(0.0_f64, |max, value| max.max(value.abs()));
    assert!(scale > 0.0 && found.iter().all(|value| value.is_finite()), "every pair has a score");
    found.iter().zip(reference).fold(0.0_f64, |max, (x, y)| max.max((x - y).abs())) / scale
}

#[test]
fn scores_of_every_case_agree() {
    for (case, adapters) in CASES {
        for attribute in ["adapter", "merged", "base"] {
            for modules in ["all", "mlp"] {
                let Some(expected) = reference(case, &format!("{attribute}.{modules}")) else {
                    assert_eq!((case, attribute, modules), ("qwen2", "adapter", "mlp"));
                    continue;
                };
                let bench = Bench::new();
                bench.file("study.toml", study(&with(case, adapters, attribute), &json!(modules)));
                let worst = error(&scores(&bench.made("study.toml", "scores")), &expected);
                assert!(worst <= 1e-4, "{case}, {attribute}, {modules}: {worst:.2e}");
            }
        }
    }
}

/// A map of the base alone is chosen by globs on its name, one of an adapter by its own.
#[test]
fn globs_choose_among_what_is_attributed() {
    let bench = Bench::new();
    let globs = json!(["*.self_attn.?_proj.lora_A"]);
    bench.file("study.toml", study(&with("llama3", &["llama3"], "adapter"), &globs));
    let manifest = Manifest::read(&bench.made("study.toml", "covariances")).unwrap();
    // r = 2 of q in layer 0, else 3, of q, k and v in two layers.
    let trained = &manifest.summary["coverage"]["trained"];
    assert_eq!(trained["attributed"], (2 + 5 * 3) * 24, "{trained}");
    let said = bench.ok(&["run", "study.toml", "--to", "covariances"]);
    assert!(said.contains("that were trained"), "{said}");
    bench.file("study.toml", study(&with("llama3", &["llama3"], "merged"), &globs));
    assert!(bench.refused(&["run", "study.toml"]).contains("matches no module"));
}

fn keys(bench: &Bench) -> Value {
    let plan: Value = serde_json::from_str(&bench.ok(&["plan", "study.toml", "--json"])).unwrap();
    let steps = plan["steps"].as_array().unwrap();
    let model = steps.iter().filter(|step| step["inputs"].get("model").is_some());
    model.map(|step| step["key"].clone()).collect()
}

/// Every byte of an adapter that is read, its place in the list, and what is attributed; not where it lies.
#[test]
fn an_adapter_is_in_the_key_by_content() {
    let bench = Bench::new();
    let (base, of) = (fixture("families/olmo2"), |name: &str| bench.path(name));
    for name in ["olmo2.0", "olmo2.1"] {
        copy(&adapter(name), &of(name));
    }
    copy(&adapter("olmo2.1"), &of("elsewhere"));
    let plan = |adapters: &str| {
        bench.file("study.toml", study(&format!("path = {base:?}\n{adapters}"), &json!("all")));
        keys(&bench)
    };
    let both = plan(r#"adapter = ["olmo2.0", "olmo2.1"]"#);
    assert_eq!(both, plan(r#"adapter = ["olmo2.0", "elsewhere"]"#));
    let mut others = vec![
        plan(""),
        plan(r#"adapter = "olmo2.0""#),
        plan(r#"adapter = ["olmo2.1", "olmo2.0"]"#),
        plan("adapter = [\"olmo2.0\", \"olmo2.1\"]\nattribute = \"merged\""),
        plan("adapter = [\"olmo2.0\", \"olmo2.1\"]\nattribute = \"base\""),
    ];
    assert_eq!(both, plan("adapter = [\"olmo2.0\", \"olmo2.1\"]\nattribute = \"adapter\""), "the default");
    for (name, byte) in [("adapter_config.json", None), ("adapter_model.safetensors", Some(0))] {
        let path = of("elsewhere").join(name);
        let before = fs::read(&path).unwrap();
        let mut after = before.clone();
        match byte {
            None => after.push(b' '),
            Some(_) => *after.last_mut().unwrap() ^= 1,
        }
        fs::write(&path, after).unwrap();
        others.push(plan(r#"adapter = ["olmo2.0", "elsewhere"]"#));
        fs::write(&path, before).unwrap();
    }
    for (place, other) in others.iter().enumerate() {
        assert_ne!(&both, other, "{place}");
        assert!(others[place + 1..].iter().all(|another| another != other), "{place}");
    }
    assert_eq!(plan(""), plan("adapter = []"), "none is none");
}

/// A step says which adapter is on its model: its own model has none of `[model]`.
#[test]
fn a_step_may_name_model_and_adapter() {
    let bench = Bench::new();
    let base = fixture("families/llama3");
    let losses =
        |keys: &str| format!("[steps.losses]\nstage = \"losses\"\ninputs = {{ tokens = \"train\" }}\n{keys}\n");
    let made = |model: &str, keys: &str| {
        bench.file("study.toml", study(model, &json!("all")) + &losses(keys));
        let folder = bench.made("study.toml", "losses");
        folder.file_name().unwrap().to_owned()
    };
    let adapted = with("llama3", &["llama3"], "adapter");
    let plain = format!("path = {base:?}");
    let [on, off] = [made(&adapted, ""), made(&plain, "")];
    assert_ne!(on, off);
    assert_eq!(off, made(&adapted, "adapter = []"));
    assert_eq!(off, made(&adapted, &format!("model = {base:?}")));
    assert_eq!(on, made(&plain, &format!("adapter = {:?}", adapter("llama3"))));
    assert_eq!(on, made(&plain, &format!("model = {base:?}\nadapter = [{:?}]", adapter("llama3"))));
}

#[test]
fn what_is_no_adapter_is_refused_before_anything_runs() {
    let base = fixture("families/llama3");
    for (model, fragments) in [
        (format!("path = {base:?}\nadapter = \"nowhere\""), vec!["adapter", "nowhere", "is not there"]),
        (format!("path = {base:?}\nadapter = {base:?}"), vec!["adapter", "whole model"]),
        (format!("path = {base:?}\nadapter = 3"), vec!["`adapter` is a text"]),
        (
            format!("path = {base:?}\nadapter = {:?}\nattribute = \"all\"", adapter("llama3")),
            vec!["attribute", "merged"],
        ),
        (format!("path = {base:?}\nadapter = {:?}", adapter("gpt2")), vec!["changes no map", "adapter"]),
        (format!("path = {:?}", adapter("llama3")), vec!["is an adapter (PEFT)", "as `adapter`"]),
    ] {
        let bench = Bench::new();
        bench.file("study.toml", study(&model, &json!("all")));
        let error = bench.refused(&["run", "study.toml"]);
        for fragment in fragments {
            assert!(error.contains(fragment), "no `{fragment}` in: {error}");
        }
        assert!(!bench.store().join("tokens-v1").exists(), "{model}");
    }
    // Maps of attention alone, under the default modules.
    let bench = Bench::new();
    bench.file("study.toml", study(&with("qwen2", &["qwen2"], "adapter"), &json!("mlp")));
    let error = bench.refused(&["run", "study.toml"]);
    assert!(error.contains("no map of an MLP") && error.contains("modules = \"all\""), "{error}");
}

/// What was trained by a step: a folder of PEFT, on the model that the step ran.
#[test]
fn an_adapter_is_trained_and_attributed() {
    let bench = Bench::new();
    let base = fixture("families/llama3");
    let tuned = "[steps.tuned]\nstage = \"fine-tune\"\ninputs = { tokens = \"train\" }\nadapter = []\nepochs = 2\n\
                 learning-rate = 0.02\ncheckpoints = 2\nlora = { rank = 2, alpha = 4, targets = [\"q_proj\", \"down_proj\"] }\n";
    let losses = |name: &str, model: &str| {
        format!("[steps.{name}]\nstage = \"losses\"\ninputs = {{ tokens = \"train\" }}\n{model}\n")
    };
    let more = losses("before", "adapter = []")
        + &losses("after", "")
        + &losses("of-step", "model = \"tuned\"\nadapter = []")
        + "[steps.moments]\nstage = \"moments\"\n[steps.tracin]\nstage = \"gradient-products\"\ncheckpoints = true\n\
           inputs = { queries = \"queries\", tokens = \"train\" }\n";
    bench.file("study.toml", study(&format!("path = {base:?}\nadapter = \"tuned\""), &json!("all")) + tuned + &more);
    bench.ok(&["plan", "study.toml"]);
    let said = bench.ok(&["run", "study.toml"]);
    let folder = |step: &str| bench.made("study.toml", step);
    assert_eq!(folder("after"), folder("of-step"), "one model, however it is named");
    let mean = |step: &str| {
        let rows = Artifact::<wherefrom_artifact::Losses>::open(&folder(step)).unwrap();
        let losses: Vec<wherefrom_artifact::Loss> = rows.rows().unwrap().collect::<Result<_, _>>().unwrap();
        losses.iter().map(|row| f64::from(row.loss)).sum::<f64>()
    };
    assert!(mean("after") < 0.99 * mean("before"), "{} {}", mean("after"), mean("before"));
    let config: Value =
        serde_json::from_slice(&fs::read(folder("tuned").join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["target_modules"], json!(["down_proj", "q_proj"]));
    let bytes = fs::read(folder("tuned").join("adapter_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.len(), 2 * 2 * 2);
    let a = tensors.tensor("base_model.model.model.layers.1.mlp.down_proj.lora_A.weight").unwrap();
    assert_eq!(a.shape(), [2, 37]);
    assert!(scores(&folder("scores")).iter().all(|score| score.is_finite()));
    assert!(scores(&folder("tracin")).iter().any(|score| *score != 0.0));
    assert!(said.contains("that were trained"), "{said}");
    // The same folder, given as one.
    bench.file("copy.toml", study(&format!("path = {base:?}\nadapter = {:?}", folder("tuned")), &json!("all")));
    assert_eq!(bench.made("copy.toml", "scores"), folder("scores"));
}

#[test]
fn training_beside_an_adapter_says_what_it_trains() {
    let tune =
        |keys: &str| format!("[steps.tuned]\nstage = \"fine-tune\"\ninputs = {{ tokens = \"train\" }}\n{keys}\n");
    let refused = |attribute: &str, keys: &str| {
        let bench = Bench::new();
        bench.file("study.toml", study(&with("llama3", &["llama3"], attribute), &json!("all")) + &tune(keys));
        bench.refused(&["run", "study.toml", "--to", "tuned"])
    };
    assert!(refused("adapter", "").contains("lora = { rank = 8 }"));
    assert!(refused("base", "").contains("attribute = \"base\""));
    assert!(refused("adapter", "lora = { rank = 0 }").contains("rank = 0"));
    assert!(refused("adapter", "lora = { targets = [\"q\"] }").contains("target `q` is no map"));
    assert!(refused("adapter", "lora = { r = 4 }").contains("unknown"));
    // One more adapter on one that is there; and the weights that it is merged into.
    let bench = Bench::new();
    let tuned = tune("lora = { rank = 1 }")
        + "[steps.next]\nstage = \"losses\"\nmodel = \"tuned\"\ninputs = { tokens = \"train\" }\n";
    bench.file("study.toml", study(&with("llama3", &["llama3"], "adapter"), &json!("all")) + &tuned);
    bench.made("study.toml", "next");
    let bench = Bench::new();
    bench.file("study.toml", study(&with("gpt2", &["gpt2"], "merged"), &json!("all")) + &tune("learning-rate = 1e-9"));
    let merged = bench.made("study.toml", "tuned");
    assert!(merged.join("model.safetensors").exists());
    let whole = study(&format!("path = {merged:?}"), &json!("all"));
    bench.file("whole.toml", whole);
    let worst = error(&scores(&bench.made("whole.toml", "scores")), &reference("gpt2", "merged.all").unwrap());
    assert!(worst <= 1e-4, "the merged weights as a model of their own: {worst:.2e}");
}

#[test]
fn a_stage_alone_takes_adapters() {
    let bench = Bench::new();
    bench.file("study.toml", study(&with("llama3", &["llama3"], "adapter"), &json!("all")));
    let (expected, tokens) = (bench.made("study.toml", "covariances"), bench.made("study.toml", "train"));
    bench.file("config.json", r#"{"labels": "empirical", "modules": "all"}"#);
    let (base, lora, tokens) = (fixture("families/llama3"), adapter("llama3"), format!("tokens={}", tokens.display()));
    let words = ["stage", "covariance", "--config", "config.json", "--output", "out", "--input", &tokens];
    let words = [&words[..], &["--model", base.to_str().unwrap(), "--adapter", lora.to_str().unwrap()]].concat();
    bench.ok(&words);
    assert_eq!(Manifest::read(&bench.path("out")).unwrap().key, Manifest::read(&expected).unwrap().key);
}

#[test]
fn init_and_check_take_adapters() {
    let bench = Bench::new();
    let (base, lora, rows) = (fixture("families/llama3"), adapter("qwen2"), fixture("families/train.jsonl"));
    let qwen = fixture("families/qwen2");
    let [base, lora, rows, qwen] = [&base, &lora, &rows, &qwen].map(|path| path.to_str().unwrap());
    bench.ok(&["init", "--model", qwen, "--adapter", lora, "--corpus", rows, "--output", "mine.toml"]);
    let text = bench.text("mine.toml");
    assert!(text.contains("adapter = [") && text.contains("modules = \"all\" "), "no map of an MLP: {text}");
    bench.ok(&["plan", "mine.toml"]);
    let llama = adapter("llama3");
    let words = ["check", base, "--adapter", llama.to_str().unwrap(), "--corpus", rows, "--rows", "4"];
    let said = bench.wherefrom(&[&words[..], &["--modules", "all", "--attribute", "adapter"]].concat());
    assert!(said.out.contains("2,068 of 2,068 that were trained"), "{said:?}");
}
