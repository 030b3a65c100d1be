//! What is refused, how it is said, and that nothing is made of it.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::bench::{Bench, fixture, results};

const RUN: &[&str] = &["run", "study.toml"];

/// A whole study on the reference model; `model` is a copy that a test may break.
const PIPELINE: &str = r#"
[model]
path = "model"
modules = ["model.layers.3.mlp.*"]
[steps.train]
stage = "tokenize"
corpus = "train.jsonl"
max-tokens = 32
[steps.covariances]
stage = "covariance"
inputs = { tokens = "train" }
[steps.basis]
stage = "eigenbasis"
inputs = { covariances = "covariances" }
[steps.lambda]
stage = "lambda"
inputs = { tokens = "train", eigenbasis = "basis" }
[steps.queries]
stage = "tokenize"
corpus = "queries.jsonl"
max-tokens = 32
[steps.gradients]
stage = "gradients"
inputs = { tokens = "queries" }
[steps.ihvp]
stage = "precondition"
inputs = { gradients = "gradients", eigenbasis = "basis", lambda = "lambda" }
[steps.scores]
stage = "score"
inputs = { queries = "ihvp", tokens = "train" }
[steps.top]
stage = "rank"
inputs = { scores = "scores", tokens = "train" }
[steps.details]
stage = "score"
inputs = { queries = "ihvp", tokens = "train", candidates = "top" }
detail = true
[steps.final]
stage = "rank"
inputs = { scores = "details", tokens = "train" }
"#;

fn bench() -> Bench {
    let bench = Bench::new();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        bench.file(&format!("model/{name}"), fs::read(fixture("model").join(name)).unwrap());
    }
    let good: String = (0..20).map(|row| format!("{{\"text\": \"And God said, {row}\"}}\n")).collect();
    bench.file("train.jsonl", good);
    bench.file("queries.jsonl", "{\"prompt\": \"And God\", \"completion\": \" said\"}\n");
    bench.file("study.toml", PIPELINE);
    bench
}

/// The run is refused with all of `fragments`; `made` are the only kinds of which there may be an artifact, and no
/// draft of any kind holds a file.
fn refused_with(bench: &Bench, words: &[&str], fragments: &[&str], made: &[&str]) {
    let error = bench.refused(words);
    for fragment in fragments {
        assert!(error.contains(fragment), "no `{fragment}` in: {error}");
    }
    for path in results(&bench.store()) {
        let inside = path.strip_prefix(bench.store()).unwrap().display().to_string();
        assert!(made.iter().any(|kind| inside.starts_with(&format!("{kind}-v"))), "{inside} was made: {error}");
        assert!(!inside.contains(".draft/"), "{inside} was begun: {error}");
    }
}

/// Refused before anything is made.
fn refused(bench: &Bench, fragments: &[&str]) {
    refused_with(bench, RUN, fragments, &[]);
}

#[test]
fn the_good_study_runs() {
    let bench = bench();
    assert_eq!(crate::study::made(&bench.ok(RUN)).len(), 11);
}

// Corpora and queries.

#[test]
fn a_missing_corpus_is_refused() {
    for name in ["train.jsonl", "queries.jsonl"] {
        let bench = bench();
        fs::remove_file(bench.path(name)).unwrap();
        refused(&bench, &[name, "`corpus`", "step `", "there is no such file"]);
    }
}

/// Rows that are refused: the line, and what is said beside file and row.
const ROWS: [(&str, &[&str]); 9] = [
    ("{\"text\": \"And", &["malformed JSON", "one JSON object a line"]),
    ("[1, 2]", &["the row is a list", "one JSON object a line"]),
    ("{\"body\": \"And God\"}", &["no `text`", "`body`", "columns = { text = \"body\" }"]),
    ("{\"text\": 7}", &["`text` is a number", "make it a string"]),
    ("{\"prompt\": \"And God\"}", &["no completion tokens", "give it a `completion`"]),
    ("{\"prompt\": \"And God\", \"completion\": \"\"}", &["no completion tokens", "give it a `completion`"]),
    ("{\"input_ids\": [5]}", &["no targets", "give it more tokens"]),
    ("{\"input_ids\": [5, 6], \"target_mask\": [false, false]}", &["no targets", "give it more tokens"]),
    ("{\"input_ids\": [5, -6]}", &["`input_ids[1]` is -6", "make it a token number"]),
];

#[test]
fn bad_rows_are_refused_by_file_and_line() {
    // The queries are the last file of the pipeline, and are refused no later than the first.
    for (name, made) in [("train.jsonl", &[][..]), ("queries.jsonl", &["tokens"])] {
        let bench = bench();
        let good = fs::read_to_string(bench.path(name)).unwrap();
        for (row, what) in ROWS {
            bench.file(name, format!("{good}{row}\n{good}"));
            let place = format!("{name}:{}: ", good.lines().count() + 1);
            refused_with(&bench, RUN, &[&[&place[..]], what].concat(), made);
        }
    }
}

#[test]
fn an_empty_corpus_is_refused() {
    for (name, made) in [("train.jsonl", &[][..]), ("queries.jsonl", &["tokens"])] {
        for content in ["", "\n \n"] {
            let bench = bench();
            bench.file(name, content);
            refused_with(&bench, RUN, &[name, "has no rows", "give a corpus"], made);
        }
    }
}

#[test]
fn a_prompt_and_completion_that_make_one_word_are_told_by_plan_and_run() {
    let bench = bench();
    bench.file("queries.jsonl", "{\"prompt\": \"And God\", \"completion\": \"said\"}\n");
    for words in [&["plan", "study.toml"][..], &["run", "study.toml", "--to", "queries"]] {
        let said = bench.wherefrom(words);
        assert_eq!(said.code, Some(0), "{said:?}");
        let warning = "1 of 1 rows have a prompt that ends in a letter or digit";
        assert_eq!(said.err.matches(warning).count(), 1, "{}", said.err);
        assert!(said.err.contains("queries.jsonl:1: `And God` + `said`"), "{}", said.err);
    }
}

#[test]
fn prompts_that_nothing_completes_are_told_before_anything_is_made() {
    let bench = bench();
    for words in [&["plan", "study.toml"][..], &["run", "study.toml", "--to", "queries"]] {
        let said = bench.wherefrom(&[words, &["--set", "steps.queries.untargeted=keep"]].concat());
        let warning = "step `queries` keeps rows without a completion (untargeted = \"keep\"), and no `generate` step";
        assert_eq!((said.code, said.err.matches(warning).count()), (Some(0), 1), "{}", said.err);
        assert!(!bench.wherefrom(words).err.contains("keeps rows"));
    }
}

#[test]
fn a_contrast_longer_than_the_window_is_refused() {
    let bench = bench();
    let long = " and".repeat(40);
    let row = format!("{{\"prompt\": \"And\", \"completion\": \" God\", \"contrast\": \"{long}\"}}\n");
    bench.file("queries.jsonl", row);
    let fragments = ["queries.jsonl:1: ", "the completion has ", "max-tokens = 32", "set max-tokens to "];
    refused_with(&bench, RUN, &fragments, &["tokens"]);
}

#[test]
fn a_window_longer_than_the_models_context_is_refused() {
    let bench = bench();
    let long = " and".repeat(150);
    bench.file("queries.jsonl", format!("{{\"prompt\": \"And\", \"completion\": \"{long}\"}}\n"));
    bench.file("study.toml", PIPELINE.replace("max-tokens = 32", "max-tokens = 400"));
    let fragments =
        ["step `train`: `max-tokens = 400`", "step `queries`: ", "which has 128 positions; set it to 128 or less"];
    for words in [RUN, &["plan", "study.toml"]] {
        refused_with(&bench, words, &fragments, &[]);
    }
}

#[test]
fn token_ids_beyond_the_vocabulary_are_refused() {
    for (name, step) in [("train.jsonl", "step `covariances`"), ("queries.jsonl", "step `gradients`")] {
        let bench = bench();
        let good = fs::read_to_string(bench.path(name)).unwrap();
        let row = good.lines().count();
        bench.file(name, format!("{good}{{\"input_ids\": [1, 1024, 7]}}\n"));
        // The model's own tokenizer cannot decode it either way; ids need none.
        fs::remove_file(bench.path("model/tokenizer.json")).unwrap();
        let ids = |line: &str| format!("{line}\n");
        let lines: String = (0..row).map(|_| ids("{\"input_ids\": [1, 2, 3]}")).collect();
        for file in ["train.jsonl", "queries.jsonl"] {
            bench.file(file, &lines);
        }
        bench.file(name, format!("{lines}{{\"input_ids\": [1, 1024, 7]}}\n"));
        let example = format!("in example {row}");
        let fragments = [step, "token id 1024", &example, "vocabulary of 1024", "tokenizer.json"];
        refused_with(&bench, RUN, &fragments, &["tokens"]);
    }
}

#[test]
fn a_foreign_tokenizer_is_refused_where_its_ids_do_not_fit() {
    let bench = bench();
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(bench.path("model/tokenizer.json")).unwrap()).unwrap();
    tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({
        "id": 5000, "content": "God", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": false,
    }));
    bench.file("model/tokenizer.json", tokenizer.to_string());
    let fragments = ["outside the model's vocabulary of 1024", "in example 0", "the model's own tokenizer.json"];
    refused_with(&bench, RUN, &fragments, &["tokens"]);
}

// Checkpoints.

/// Tensors of the reference checkpoint.
struct Checkpoint {
    tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
}

impl Checkpoint {
    fn read() -> Self {
        let bytes = fs::read(fixture("model/model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let tensor =
            |(name, view): (String, TensorView<'_>)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec());
        Self { tensors: tensors.tensors().into_iter().map(tensor).collect() }
    }

    fn tensor(&mut self, name: &str) -> &mut (String, Dtype, Vec<usize>, Vec<u8>) {
        self.tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap()
    }

    fn write(&self, path: &Path) {
        let views: HashMap<_, _> = (self.tensors.iter())
            .map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()))
            .collect();
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }
}

const GATE: &str = "model.layers.0.mlp.gate_proj.weight";

/// Header and data of a safetensors file.
fn split(bytes: &[u8]) -> (Value, Vec<u8>) {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), bytes[8 + length..].to_vec())
}

fn joined(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

#[test]
fn a_truncated_checkpoint_is_refused() {
    let bench = bench();
    let path = bench.path("model/model.safetensors");
    let whole = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for length in [0, 4, 8, 100, 8 + header, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        refused(&bench, &["model.safetensors", "safetensors", "fetch it again"]);
    }
}

#[test]
fn a_checkpoint_whose_header_lies_is_refused() {
    let bench = bench();
    let path = bench.path("model/model.safetensors");
    let whole = fs::read(&path).unwrap();
    let (header, data) = split(&whole);
    let length = whole.len() as u64;
    for lie in [0, 1, 7, length, length * 2, u64::from(u32::MAX), i64::MAX as u64, u64::MAX] {
        fs::write(&path, [&lie.to_le_bytes()[..], &whole[8..]].concat()).unwrap();
        refused(&bench, &["model.safetensors", "safetensors", "fetch it again"]);
    }
    let offsets: Vec<u64> = serde_json::from_value(header[GATE]["data_offsets"].clone()).unwrap();
    let end = data.len() as u64;
    for lie in [
        json!([end, end + offsets[1] - offsets[0]]),
        json!([offsets[1], offsets[0]]),
        json!([offsets[0], offsets[1] + 4]),
        json!([offsets[0] + 1, offsets[1] + 1]),
        json!([0, u64::MAX]),
        json!([-4, 0]),
        json!("all"),
    ] {
        let mut header = header.clone();
        header[GATE]["data_offsets"] = lie;
        fs::write(&path, joined(&header, &data)).unwrap();
        refused(&bench, &["model.safetensors", "safetensors", "fetch it again"]);
    }
    for (field, lie, fragments) in [
        ("dtype", json!("F64"), ["model.safetensors", "fetch it again"]),
        ("dtype", json!("F99"), ["model.safetensors", "fetch it again"]),
        ("dtype", json!("I32"), [GATE, "I32; only F32, F16 and BF16 are read"]),
        ("shape", json!([352, 129]), ["model.safetensors", "fetch it again"]),
        ("shape", json!([128, 352]), [GATE, "has shape [128, 352], but config.json asks for [352, 128]"]),
        ("shape", json!([352 * 128]), [GATE, "config.json asks for [352, 128]"]),
        ("shape", json!([u64::MAX, 2]), ["model.safetensors", "fetch it again"]),
    ] {
        let mut header = header.clone();
        header[GATE][field] = lie;
        fs::write(&path, joined(&header, &data)).unwrap();
        refused(&bench, &[&fragments[..], &["model.safetensors"]].concat());
    }
    for garbage in ["{", "[]", "null", "{\"a\": 1}", "\u{0}\u{0}"] {
        let text = [&(garbage.len() as u64).to_le_bytes()[..], garbage.as_bytes(), &data].concat();
        fs::write(&path, text).unwrap();
        refused(&bench, &["model.safetensors", "fetch it again"]);
    }
}

#[test]
fn a_missing_tensor_is_refused_by_name() {
    let bench = bench();
    let mut checkpoint = Checkpoint::read();
    checkpoint.tensors.retain(|tensor| tensor.0 != GATE);
    checkpoint.write(&bench.path("model/model.safetensors"));
    refused(&bench, &[GATE, "missing", "model"]);
}

#[test]
fn weights_that_are_no_numbers_are_refused_by_tensor() {
    for (value, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let bench = bench();
        let mut checkpoint = Checkpoint::read();
        let data = &mut checkpoint.tensor(GATE).3;
        data[4 * 777..4 * 778].copy_from_slice(&value.to_le_bytes());
        checkpoint.write(&bench.path("model/model.safetensors"));
        // Weights are read once, by the first step that runs the model.
        refused_with(&bench, RUN, &[GATE, name, "index 777", "model.safetensors"], &["tokens"]);
    }
}

#[test]
fn weights_of_another_type_are_refused_by_tensor() {
    let bench = bench();
    let mut checkpoint = Checkpoint::read();
    let tensor = checkpoint.tensor(GATE);
    (tensor.1, tensor.3) = (Dtype::I64, vec![0; 8 * 352 * 128]);
    checkpoint.write(&bench.path("model/model.safetensors"));
    refused(&bench, &[GATE, "I64", "only F32, F16 and BF16 are read"]);
}

#[test]
fn shards_that_are_not_there_are_refused() {
    let bench = bench();
    let whole = fs::read(bench.path("model/model.safetensors")).unwrap();
    fs::remove_file(bench.path("model/model.safetensors")).unwrap();
    refused(&bench, &["has no *.safetensors file", "give a Hugging Face checkpoint"]);
    bench.file("model/model-00001-of-00002.safetensors", &whole);
    refused(&bench, &["model.safetensors.index.json", "model"]);
    let index = |map: Value| json!({ "metadata": {}, "weight_map": map }).to_string();
    bench.file("model/model.safetensors.index.json", index(json!({GATE: "model-00002-of-00002.safetensors"})));
    refused(&bench, &["1 of the 1 files that the index names is not there", "hf download"]);
    for (text, fragment) in [
        ("{".to_string(), "not JSON"),
        (index(json!({})), "weight_map"),
        (index(json!({GATE: "model-00002-of-00002.safetensors"})), "model-00002-of-00002.safetensors"),
        (index(json!({GATE: 5})), "weight_map"),
    ] {
        bench.file("model/model.safetensors.index.json", text);
        refused(&bench, &[fragment]);
    }
    let names: serde_json::Map<_, _> = Checkpoint::read()
        .tensors
        .into_iter()
        .map(|tensor| (tensor.0, "model-00001-of-00002.safetensors".into()))
        .collect();
    bench.file("model/model.safetensors.index.json", index(names.into()));
    bench.ok(&["run", "study.toml", "--to", "gradients"]);
}

#[test]
fn a_model_that_is_not_known_is_refused() {
    let text = fs::read_to_string(fixture("model/config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    let with = |key: &str, value: Value| {
        let mut config = config.clone();
        config[key] = value;
        config.to_string()
    };
    for (text, fragments) in [
        (with("model_type", json!("mamba")), ["`mamba`", "supported: gemma, gemma2, gemma3"]),
        (with("model_type", Value::Null), ["`model_type`", "config.json"]),
        (with("hidden_size", json!(-1)), ["`hidden_size`", "whole number above 0"]),
        (with("hidden_size", json!("128")), ["`hidden_size`", "whole number above 0"]),
        (with("num_key_value_heads", json!(3)), ["multiple of `num_key_value_heads`", "config.json"]),
        (with("hidden_act", json!("mish")), ["`mish`", "supported: silu, gelu"]),
        (with("rope_parameters", json!({"rope_type": "spiral"})), ["`spiral`", "supported: default, linear, llama3"]),
        (with("attention_bias", json!("yes")), ["`attention_bias`", "true or false"]),
        (with("quantization_config", json!({"bits": 4})), ["quantised", "unquantised checkpoint"]),
        ("{".into(), ["not JSON", "config.json"]),
        ("[]".into(), ["`model_type`", "config.json"]),
    ] {
        let bench = bench();
        bench.file("model/config.json", text);
        refused(&bench, &[&fragments[..], &["config.json"]].concat());
    }
}

#[test]
fn a_config_of_other_sizes_is_refused_by_tensor() {
    let text = fs::read_to_string(fixture("model/config.json")).unwrap();
    for (key, value) in [("vocab_size", 2048), ("intermediate_size", 353), ("num_hidden_layers", 5)] {
        let bench = bench();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config[key] = value.into();
        bench.file("model/config.json", config.to_string());
        refused(&bench, &["the tensor `model.", "model"]);
    }
}

#[test]
fn an_adapter_and_pickled_weights_are_named_with_what_to_do() {
    let bench = bench();
    fs::rename(bench.path("model/model.safetensors"), bench.path("model/pytorch_model.bin")).unwrap();
    refused(&bench, &["weights in pytorch_model.bin", "save_pretrained(sys.argv[1])\" 'model'"]);
    fs::rename(bench.path("model/pytorch_model.bin"), bench.path("model/consolidated.00.pth")).unwrap();
    refused(&bench, &["weights in consolidated.00.pth", "' 'model/model.safetensors'"]);
    bench.file("model/model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n");
    refused(&bench, &["a pointer of Git LFS", "git lfs pull"]);
    fs::remove_file(bench.path("model/config.json")).unwrap();
    bench.file("model/adapter_config.json", "{}");
    refused(&bench, &["is an adapter (PEFT)", "give it as `adapter` beside `path`", "its base as `path`"]);
}

#[test]
fn one_fault_of_the_model_is_said_once() {
    let bench = bench();
    let config = fs::read_to_string(bench.path("model/config.json")).unwrap();
    bench.file("model/config.json", config.replace("\"llama\"", "\"mamba\""));
    let error = bench.refused(RUN);
    assert_eq!(error.matches("mamba").count(), 1, "{error}");
    assert!(error.contains("step `covariances` (and `lambda`, `gradients`, `scores`, `details`): `model`"), "{error}");
}

#[test]
fn one_slip_is_told_once() {
    let bench = bench();
    let wire = "inputs = { tokens = \"train\" }";
    let columns = |wire: &str| format!("{PIPELINE}\n[steps.columns]\nstage = \"columns\"\n{wire}\nkeep = [\"id\"]\n");
    for (text, said) in [
        (PIPELINE.replace("[model]", "[modell]"), "unknown key `modell`; did you mean `model`?"),
        (
            PIPELINE.replacen(wire, "inputs = \"train\"", 1),
            "`inputs` is a table of roles: inputs = { role = \"train\" }",
        ),
        (columns("inputs = { token = \"train\" }"), "unknown input `token`; did you mean `tokens`?"),
        (PIPELINE.replace("[\"model.layers.3.mlp.*\"]", "[\"x.*\"]"), "`modules`: the glob `x.*` matches no"),
    ] {
        assert!(text != PIPELINE, "{said}");
        bench.file("study.toml", text);
        let error = bench.refused(RUN);
        assert!(error.contains(said) && error.lines().count() == 1, "{error}");
    }
    bench.file("study.toml", columns(wire).replace("[\"id\"]", "\"id\""));
    let error = bench.refused(RUN);
    assert!(error.contains("is the text \"id\"; give a list: keep = [\"id\"]"), "{error}");
}

#[test]
fn a_missing_model_is_refused() {
    let bench = bench();
    bench.file("study.toml", PIPELINE.replace("path = \"model\"", "path = \"modle\""));
    refused(&bench, &["the model folder modle cannot be read", "mend `path`"]);
    let error = bench.refused(&["run", "study.toml", "--set", "steps.train.corpus=trian.jsonl"]);
    assert!(error.contains("there is no such file; did you mean train.jsonl?"), "{error}");
    let error = bench.refused(&["run", "study.toml", "--set", "model.path=https://huggingface.co/a/b"]);
    assert!(error.contains("is a page of the hub; write hf:a/b"), "{error}");
    let error = bench.refused(&["run", "study.toml", "--set", "steps.train.corpus=none.jsonl"]);
    assert!(
        error.contains("--set steps.train.corpus=none.jsonl: step `train`: `corpus`: none.jsonl: there is no"),
        "{error}"
    );
    let error = bench.refused(&["run", "study.toml", "--set", "model.path=some/where"]);
    assert!(error.starts_with("error: --set model.path=some/where: step `train` (and `covariances`, "), "{error}");
    assert!(error.contains("write hf:some/where") && error.lines().count() == 1, "{error}");
    bench.file("model.gguf", "GGUF");
    bench.file("model.pt", "PK");
    for (path, fragments) in [
        ("model.gguf", &["a file of llama.cpp", "Hugging Face checkpoint"][..]),
        ("model.pt", &["pickled by PyTorch", "save_file(", "'model.pt' './model.safetensors'"]),
        ("model/config.json", &["is a file of a checkpoint", "lies in: model"]),
        (".", &["has no config.json", "did you mean ./model?"]),
    ] {
        let error = bench.refused(&["run", "study.toml", "--set", &format!("model.path={path}")]);
        assert!(error.lines().count() == 1 && !error.contains("os error"), "one fault once: {error}");
        fragments.iter().for_each(|fragment| assert!(error.contains(fragment), "no `{fragment}` in {error}"));
    }
    bench.file("study.toml", PIPELINE.replace("path = \"model\"", "path = \"hf:nobody/nothing@main\""));
    refused(&bench, &["hf:nobody/nothing@main", "hf download nobody/nothing", "or give a folder"]);
    bench.file("study.toml", PIPELINE.replace("path = \"model\"", ""));
    refused(&bench, &["step `covariances`", "there is no model", "[model]"]);
    fs::remove_file(bench.path("model/config.json")).unwrap();
    bench.file("study.toml", PIPELINE);
    refused(&bench, &["has no config.json", "give a Hugging Face checkpoint"]);
}

// Pipelines.

#[test]
fn what_a_pipeline_cannot_mean_is_refused_by_step_and_key() {
    let cases: &[(&str, &str, &[&str])] = &[
        // Unknown names, with the nearest right one.
        (
            "max-tokens = 32",
            "max-token = 32",
            &["step `train`", "unknown key `max-token`", "did you mean `max-tokens`?"],
        ),
        ("max-tokens = 32", "max-tokens = 32\nmax_tokens = 3", &["step `train`", "did you mean `max-tokens`?"]),
        ("detail = true", "details = true", &["step `details`", "unknown key `details`", "did you mean `detail`?"]),
        ("path = \"model\"", "path = \"model\"\nmodule = \"mlp\"", &["[model]", "`module`", "did you mean `modules`?"]),
        ("[model]", "[modle]\npath = \"x\"\n[model]", &["unknown key `modle`", "did you mean `model`?"]),
        ("stage = \"covariance\"", "stage = \"covariances\"", &["unknown stage", "did you mean `covariance`?"]),
        ("stage = \"rank\"", "stage = \"projections\"", &["the stage `projections` is called `project-gradients` now"]),
        ("stage = \"rank\"", "stage = \"zzz\"", &["unknown stage `zzz`", "known are `tokenizer`"]),
        ("eigenbasis = \"basis\" }", "eigenbasis = \"bassis\" }", &["no step `bassis`", "did you mean `basis`?"]),
        (
            "inputs = { covariances = \"covariances\" }",
            "inputs = { covariance = \"covariances\" }",
            &["unknown input `covariance`", "did you mean `covariances`?"],
        ),
        // Missing.
        ("stage = \"eigenbasis\"\n", "", &["step `basis`", "the key `stage` is missing", "eigenbasis"]),
        (
            "inputs = { covariances = \"covariances\" }",
            "covariances = \"covariances\"",
            &["`covariances` is an input; write inputs = { covariances = "],
        ),
        // Steps under a misspelt key are steps: nothing else is wrong.
        ("[steps.basis]", "[step.basis]", &["study.toml: unknown key `step`; did you mean `steps`?"]),
        (
            "max-tokens = 32\n[steps.cov",
            "[steps.cov",
            &["step `train`", "the key `max-tokens` is missing", "give it a value"],
        ),
        ("corpus = \"train.jsonl\"\n", "", &["step `train`", "the key `corpus` is missing", "give a file"]),
        (
            "inputs = { gradients = \"gradients\", eigenbasis = \"basis\", lambda = \"lambda\" }",
            "inputs = { gradients = \"gradients\", eigenbasis = \"basis\" }",
            &["step `ihvp`", "`inputs.lambda` is missing", "wire a step that writes lambda"],
        ),
        (
            "inputs = { covariances = \"covariances\" }",
            "",
            &["step `basis`", "`inputs.covariances` is missing", "wire a step that writes covariances"],
        ),
        // Wrong.
        (
            "stage = \"covariance\"",
            "stage = \"covariance\"\nblocks = 0",
            &["step `covariances`", "`blocks = 0`", "set it to 1 or more"],
        ),
        (
            "stage = \"covariance\"",
            "stage = \"covariance\"\nmodules-per-pass = 0",
            &["step `covariances`", "`modules-per-pass = 0`", "1 or more"],
        ),
        (
            "stage = \"lambda\"",
            "stage = \"lambda\"\nmodules-per-passes = 2",
            &["step `lambda`", "unknown key `modules-per-passes`", "did you mean `modules-per-pass`?"],
        ),
        ("stage = \"lambda\"", "stage = \"lambda\"\nstore = \"f8\"", &["step `lambda`", "`f8`", "`f16`"]),
        (
            "inputs = { covariances = \"covariances\" }",
            "inputs = { covariances = \"train\" }",
            &["step `basis`: inputs.covariances", "`train` is tokens, the role takes covariances"],
        ),
        (
            "inputs = { covariances = \"covariances\" }",
            "inputs = \"covariances\"",
            &["step `basis`", "`inputs` is a table"],
        ),
        ("max-tokens = 32", "max-tokens = \"many\"", &["step `train`", "`max-tokens", "many"]),
        ("max-tokens = 32", "max-tokens = -1", &["step `train`", "`max-tokens", "-1"]),
        ("stage = \"precondition\"", "stage = \"precondition\"\nrank = 0", &["step `ihvp`", "rank", "\"full\""]),
        ("stage = \"precondition\"", "stage = \"precondition\"\nrank = \"half\"", &["step `ihvp`", "half", "\"full\""]),
        (
            "stage = \"precondition\"",
            "stage = \"precondition\"\nmethod = \"ekfca\"",
            &["step `ihvp`", "ekfca", "`ekfac`"],
        ),
        ("stage = \"precondition\"", "stage = \"precondition\"\ndamping = { share = 1 }", &["step `ihvp`", "damping"]),
        (
            "stage = \"precondition\"",
            "stage = \"precondition\"\ndamping = -0.1",
            &["step `ihvp`", "damping -0.1", "0 or more"],
        ),
        (
            "stage = \"precondition\"",
            "stage = \"precondition\"\ndamping = { relative = 1e300 }",
            &["step `ihvp`", "damping", "1e15 or less"],
        ),
        (
            "stage = \"precondition\"",
            "stage = \"precondition\"\ndamping = { relative = 0.1, absolute = 1.0 }",
            &["step `ihvp`", "damping"],
        ),
        (
            "detail = true",
            "detail = true\ntraining-examples = 0",
            &["step `details`", "training-examples", "1 or more"],
        ),
        ("stage = \"covariance\"", "stage = \"covariance\"\nlabels = \"true\"", &["step `covariances`", "`empirical`"]),
        ("stage = \"covariance\"", "stage = \"covariance\"\nseed = -3", &["step `covariances`", "seed", "-3"]),
        (
            "modules = [\"model.layers.3.mlp.*\"]",
            "modules = [\"model.layers.9.mlp.*\"]",
            &["`modules`", "matches no module", "model.layers.0.self_attn.q_proj"],
        ),
        (
            "modules = [\"model.layers.3.mlp.*\"]",
            "modules = \"attention\"",
            &["`modules`", "\"attention\"", "\"mlp\", \"all\""],
        ),
        ("stage = \"rank\"", "stage = \"rank\"\nmodel = \"model\"", &["runs no model", "remove the key"]),
        ("stage = \"rank\"", "stage = \"rank\"\ntop = 0", &["step `top`", "`top = 0`", "set it to 1 or more"]),
        ("max-tokens = 32", "max-tokens = 1", &["step `train`", "`max-tokens = 1`", "set it to 2 or more"]),
        // No TOML.
        ("[steps.train]", "[steps.train", &["study.toml", "not TOML", "line"]),
        ("max-tokens = 32", "max-tokens = ", &["study.toml", "not TOML", "line"]),
        ("[steps.covariances]", "[steps.train]", &["study.toml", "not TOML", "train"]),
    ];
    let bench = bench();
    for (old, new, fragments) in cases {
        assert!(PIPELINE.contains(old), "{old}");
        bench.file("study.toml", PIPELINE.replacen(old, new, 1));
        refused(&bench, fragments);
        // The plan says so too, and what is no pipeline has no plan.
        refused_with(&bench, &["plan", "study.toml"], fragments, &[]);
    }
}

#[test]
fn every_problem_is_reported_at_once_unknown_keys_first() {
    let bench = bench();
    let text = PIPELINE
        .replace("max-tokens = 32", "max-token = 32")
        .replace("inputs = { covariances = \"covariances\" }", "")
        .replace("stage = \"rank\"", "stage = \"rang\"");
    bench.file("study.toml", text);
    let error = bench.refused(RUN);
    let lines: Vec<_> = error.lines().collect();
    let unknown = lines.iter().take_while(|line| line.contains("unknown ")).count();
    assert_eq!(unknown, 2, "two slips, each in two steps: {error}");
    // What is misspelt is not missing as well.
    assert!(!error.contains("`max-tokens` is missing"), "{error}");
    assert!(lines[unknown..].iter().all(|line| !line.contains("unknown ")), "{error}");
    assert!(lines[unknown..].iter().any(|line| line.contains("`inputs.covariances` is missing")), "{error}");
}

#[test]
fn a_cycle_is_refused_step_by_step() {
    let bench = bench();
    let old = "inputs = { queries = \"ihvp\", tokens = \"train\" }";
    let new = "inputs = { queries = \"ihvp\", tokens = \"train\", candidates = \"top\" }";
    bench.file("study.toml", PIPELINE.replace(old, new));
    refused(&bench, &["its inputs form a cycle: scores <- top <- scores"]);
    let old = "[steps.scores]\nstage = \"score\"\ninputs = { queries = \"ihvp\", tokens = \"train\" }";
    let new = "[steps.scores]\nstage = \"external\"\ncommand = [\"true\"]\nwrites = \"scores\"\nversion = 1\n\
               inputs = { again = \"scores\" }";
    assert!(PIPELINE.contains(old));
    bench.file("study.toml", PIPELINE.replace(old, new));
    refused(&bench, &["its inputs form a cycle: scores <- scores"]);
}

#[test]
fn a_pipeline_without_steps_is_refused() {
    let bench = bench();
    for (text, fragment) in [
        ("", "there are no steps"),
        ("steps = 5", "`steps` is not a table"),
        ("[steps]\na = 5", "is not a table"),
        ("steps = []", "`steps` is not a table"),
        ("[[steps]]\nstage = \"rank\"", "`steps` is not a table"),
    ] {
        bench.file("study.toml", text);
        refused(&bench, &[fragment, "[steps.NAME]"]);
    }
    let error = bench.refused(&["run", "nowhere.toml"]);
    assert!(error.contains("cannot read the pipeline nowhere.toml") && error.contains("check the path"), "{error}");
    bench.file("study.toml", PIPELINE);
    for (path, fragments) in [
        (".", &[". is a folder; name the pipeline file: ./bytes.toml, ./study.toml"][..]),
        ("study", &["did you mean study.toml?"]),
        ("train.jsonl", &["train.jsonl is no pipeline; a pipeline is a .toml file"]),
    ] {
        bench.file("bytes.toml", "");
        let error = bench.refused(&["run", path]);
        fragments.iter().for_each(|fragment| assert!(error.contains(fragment), "no `{fragment}` in {error}"));
    }
    let error = bench.refused(&["run", "study.toml", "--memory", "6"]);
    assert!(error.contains("write 6GB"), "{error}");
    bench.file("bytes.toml", b"\xff\xfe");
    let error = bench.refused(&["run", "bytes.toml"]);
    assert!(error.contains("bytes.toml"), "{error}");
}

#[test]
fn a_bad_setting_is_refused() {
    let bench = bench();
    for (set, fragments) in [
        ("steps.ihvp.damping", &["--set steps.ihvp.damping", "write steps.STEP.KNOB=VALUE"][..]),
        ("damping=3", &["--set damping=3"]),
        ("ihvp.damping=3", &["--set ihvp.damping=3: write steps.ihvp.damping"]),
        ("steps.ihvp.damping=", &["--set steps.ihvp.damping=: the value is missing"]),
        ("steps.ihvp=3", &["--set steps.ihvp=3: write steps.ihvp.KNOB=VALUE"]),
        ("steps.train.max_tokens=3", &["--set steps.train.max_tokens=3: step `train`: unknown key", "`max-tokens`?"]),
        ("steps.train.max-tokens=3a", &["--set steps.train.max-tokens=3a: ", "give a whole number"]),
        ("steps.train.max-tokens=999", &["--set steps.train.max-tokens=999: ", "128 positions"]),
        ("steps.ihvp.rank=-1", &["--set steps.ihvp.rank=-1: ", "write a whole number, or \"full\""]),
        ("steps..damping=3", &["--set steps..damping=3"]),
        ("steps.ivhp.damping=3", &["unknown step `ivhp`", "did you mean `ihvp`?"]),
        ("steps.ihvp.dampnig=3", &["step `ihvp`", "unknown key `dampnig`", "did you mean `damping`?"]),
        (
            "steps.ihvp.damping=much",
            &["--set steps.ihvp.damping=much: step `ihvp`", "much", "{ relative = 0.1 } or { absolute = 1e-6 }"],
        ),
        ("step.ihvp.damping=3", &["unknown key `step`", "did you mean `steps`?"]),
        ("=3", &["--set =3"]),
    ] {
        refused_with(&bench, &["run", "study.toml", "--set", set], fragments, &[]);
        refused_with(&bench, &["plan", "study.toml", "--set", set], fragments, &[]);
    }
    refused_with(
        &bench,
        &["run", "study.toml", "--to", "scoers"],
        &["no step `scoers`", "did you mean `scores`?"],
        &[],
    );
    refused_with(&bench, &["path", "study.toml", "scoers"], &["no step `scoers`", "did you mean `scores`?"], &[]);
    refused_with(&bench, &["plan", "study.toml", "--why", "tap"], &["no step `tap`", "did you mean `top`?"], &[]);
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let bench = bench();
    refused_with(
        &bench,
        &["--device", "tpu", "run", "study.toml"],
        &["unknown device `tpu`", "use auto, cpu, gpu"],
        &[],
    );
    // Without a GPU in the build, and with one but no such device.
    refused_with(&bench, &["--device", "gpu:700", "run", "study.toml"], &["gpu:700"], &[]);
}

#[test]
fn a_store_that_cannot_be_written_is_refused() {
    // Below a file: root may write anywhere else.
    let bench = bench();
    bench.file("file", "");
    let words = ["--store", "file/store", "run", "study.toml"];
    refused_with(
        &bench,
        &words,
        &["the store cannot be written", "give another folder with --store", "file/store"],
        &[],
    );
    let error = bench.refused(&["--store", "file", "run", "study.toml"]);
    assert!(error.contains("the store cannot be written"), "{error}");
    for words in [&["ls"][..], &["verify"], &["show", "abc"], &["path", "study.toml", "top"]] {
        for store in ["file", "file/below"] {
            let error = bench.refused(&[&["--store", store], words].concat());
            assert!(words[0] == "path" || error.contains("file is a file"), "{words:?}: {error}");
        }
    }
    assert_eq!(fs::read(bench.path("file")).unwrap(), b"");
}

#[test]
fn a_lambda_of_another_basis_is_refused() {
    let bench = bench();
    // The diagonal of the standard basis is a lambda step without an eigenbasis, and no other.
    let diagonal = PIPELINE.replace("stage = \"precondition\"", "stage = \"precondition\"\nmethod = \"diagonal\"");
    bench.file("study.toml", &diagonal);
    refused(&bench, &["step `ihvp`", "`lambda`", "without an eigenbasis"]);
    let standard = "inputs = { tokens = \"train\" }\n[steps.queries]";
    let fitted = "inputs = { tokens = \"train\", eigenbasis = \"basis\" }\n[steps.queries]";
    assert!(PIPELINE.contains(fitted));
    bench.file("study.toml", PIPELINE.replace(fitted, standard));
    refused(&bench, &["step `ihvp`", "`lambda`", "`eigenbasis`", "with the same eigenbasis"]);
    bench.file("study.toml", diagonal.replace(fitted, standard));
    bench.ok(RUN);
}
