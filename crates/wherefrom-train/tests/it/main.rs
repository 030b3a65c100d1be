//! Both stages through the store, as the pipeline runs them.

mod truth;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use serde_json::{Value, json};
use tempfile::TempDir;
use wherefrom_artifact::{
    Artifact, Draft, Error, Example, Kind, Manifest, Over, Recipe, Reporter, Row as _, Silent, Store, Tokens,
    TraitVector, Vectors,
};
use wherefrom_model::Precision;
use wherefrom_stage::Exec;
use wherefrom_train::course::Training;
use wherefrom_train::{fine_tune, generate, train};

const VOCABULARY: usize = 24;
const CONTEXT: usize = 12;

/// Counts upwards from `first`: a corpus that is easy to learn.
fn row(example: u64, first: u32, length: u32) -> Example {
    let input_ids: Vec<_> = (0..length).map(|token| 3 + (first + token) % 20).collect();
    Example {
        example,
        docs: vec![format!("row {example}")],
        doc_starts: vec![0],
        target_mask: (0..input_ids.len()).map(|position| position > 0).collect(),
        text: input_ids.iter().map(|id| format!("w{id} ")).collect::<String>().trim_end().into(),
        input_ids,
        ..Example::default()
    }
}

fn prompt(example: u64, first: u32, length: u32) -> Example {
    let row = row(example, first, length);
    Example { target_mask: vec![false; row.input_ids.len()], ..row }
}

fn corpus() -> Vec<Example> {
    (0..40).map(|example| row(example, example as u32 * 7, 4 + example as u32 % 7)).collect()
}

struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }

    fn produce(
        &self,
        store: &str,
        kind: Kind,
        config: Value,
        fill: impl FnOnce(&mut Draft) -> Result<()>,
    ) -> Result<PathBuf> {
        let recipe = Recipe { stage: kind.name().into(), version: 1, config, inputs: BTreeMap::new(), model: None };
        let store = Store::new(self.folder.path().join(store));
        Ok(store.produce(kind, recipe, &Silent, fill)?.0)
    }

    fn tokens(&self, name: &str, parts: &[&[Example]]) -> Artifact<Tokens> {
        let folder = self.produce(name, Kind::Tokens, json!({}), |draft| {
            for (part, rows) in parts.iter().enumerate() {
                draft.write(part, &[Example::to_batch(rows)?])?;
            }
            Ok(())
        });
        Artifact::open(&folder.unwrap()).unwrap()
    }

    fn tokenizer(&self) -> PathBuf {
        let special = ["<|pad|>", "<|bos|>", "<|eos|>"].map(String::from);
        let words = special.clone().into_iter().chain((3..VOCABULARY).map(|id| format!("w{id}")));
        let words: serde_json::Map<_, _> = words.enumerate().map(|(id, word)| (word, id.into())).collect();
        let added = special.iter().enumerate().map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        });
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": words, "unk_token": "<|pad|>"},
        });
        let path = self.folder.path().join("tokenizer.json");
        std::fs::write(&path, json.to_string()).unwrap();
        path
    }

    fn train(&self, store: &str, config: &train::Config, rows: &[Example], exec: &Exec) -> Result<PathBuf> {
        let tokens = self.tokens("tokens", &[rows]);
        let inputs = train::Inputs { tokens, tokenizer: Some(self.tokenizer()) };
        self.produce(store, Kind::Model, serde_json::to_value(config)?, |draft| {
            train::run(config, &inputs, exec, draft)
        })
    }

    fn generate(
        &self,
        store: &str,
        config: &generate::Config,
        rows: &Artifact<Tokens>,
        model: &Path,
    ) -> Result<Artifact<Tokens>> {
        let inputs = generate::Inputs {
            tokens: rows.clone(),
            vectors: None,
            model: model.into(),
            tokenizer: model.join("tokenizer.json"),
        };
        let folder = self.produce(store, Kind::Tokens, serde_json::to_value(config)?, |draft| {
            generate::run(config, &inputs, &Exec::default(), draft)
        })?;
        Artifact::open(&folder)
    }
}

fn config(epochs: usize) -> train::Config {
    let config = json!({
        "layers": 1, "hidden": 32, "intermediate": 48, "heads": 4, "key-value-heads": 2, "vocabulary": VOCABULARY,
        "context": CONTEXT, "epochs": epochs, "batch-tokens": 64, "learning-rate": 0.01, "seed": 3,
    });
    serde_json::from_value(config).unwrap()
}

fn rows(tokens: &Artifact<Tokens>) -> Vec<Example> {
    tokens.rows().unwrap().map(Result::unwrap).collect()
}

/// Panics once so many tokens are done, as a killed process would.
struct Killer(AtomicU64);

impl Reporter for Killer {
    fn begin(&self, _task: &str, _unit: &str, _total: u64, _done: u64) {}
    fn advance(&self, units: u64) {
        let left = self.0.load(Ordering::Relaxed).checked_sub(units).expect("killed");
        self.0.store(left, Ordering::Relaxed);
    }
    fn end(&self) {}
    fn warn(&self, _message: &str) {}
}

#[test]
fn knobs_have_defaults_and_unknown_ones_are_refused() {
    let config: train::Config = serde_json::from_value(json!({"vocabulary": 512})).unwrap();
    assert_eq!((config.layers, config.hidden, config.heads, config.key_value_heads), (4, 128, 8, 4));
    assert_eq!((config.context, config.epochs, config.batch_tokens, config.learning_rate), (128, 12, 2048, 2e-3));
    assert_eq!(serde_json::from_value::<generate::Config>(json!({})).unwrap(), generate::Config::default());
    serde_json::from_value::<train::Config>(json!({"vocabulary": 512, "layer": 1})).unwrap_err();
    serde_json::from_value::<train::Config>(json!({})).unwrap_err();
}

#[test]
fn loss_falls_and_the_folder_loads() {
    let bench = Bench::new();
    let config = config(30);
    let folder = bench.train("store", &config, &corpus(), &Exec::default()).unwrap();
    let manifest = Manifest::read(&folder).unwrap();
    let curve: Vec<(u64, u64, f64)> = serde_json::from_value(manifest.summary["loss_curve"].clone()).unwrap();
    let (first, last) = (curve[0], curve[curve.len() - 1]);
    assert_eq!(curve.len(), 50);
    assert!(first.2 > 2.0 && last.2 < 0.3 * first.2, "{curve:?}");
    let tokens: usize = corpus().iter().map(|row| row.input_ids.len()).sum();
    assert_eq!(last.1, 30 * tokens as u64);
    assert_eq!(manifest.summary["final_loss"], json!(last.2));
    let names: Vec<_> = manifest.parts.iter().map(|part| &part.name[..]).collect();
    assert_eq!(names, ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]);
    let device = wherefrom_model::resolve_device("cpu").unwrap();
    let model = wherefrom_model::Model::load(&folder, &device).unwrap();
    assert_eq!(model.config, config.model().unwrap());
    assert_eq!(manifest.summary["parameters"], json!(model.outline.parameters()));
    let json: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    assert_eq!((&json["bos_token_id"], &json["eos_token_id"]), (&json!(1), &json!(2)));
}

#[test]
fn resume_after_a_kill_equals_one_run() {
    let bench = Bench::new();
    let config = config(4);
    let whole = bench.train("whole", &config, &corpus(), &Exec::default()).unwrap();
    let tokens: usize = corpus().iter().map(|row| row.input_ids.len()).sum();
    // In the second epoch, and in the last.
    for at in [tokens * 3 / 2, tokens * 2] {
        let exec = Exec { reporter: Arc::new(Killer(AtomicU64::new(at as u64))), ..Exec::default() };
        let killed = catch_unwind(AssertUnwindSafe(|| bench.train("killed", &config, &corpus(), &exec)));
        assert!(killed.is_err());
    }
    let reporter = Arc::new(Killer(AtomicU64::new(tokens as u64)));
    let exec = Exec { reporter, ..Exec::default() };
    let resumed = bench.train("killed", &config, &corpus(), &exec).unwrap();
    let (whole, resumed) = (Manifest::read(&whole).unwrap(), Manifest::read(&resumed).unwrap());
    assert_eq!(whole.parts, resumed.parts);
    assert_eq!(whole.summary, resumed.summary);
}

#[test]
fn what_does_not_fit_is_refused() {
    let bench = Bench::new();
    let refused = |config: &train::Config, rows: &[Example], what: &str| {
        let bench = Bench::new();
        let error = bench.train("store", config, rows, &Exec::default()).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(Error::Input(_))), "{error:?}");
        assert!(error.to_string().contains(what), "{error}");
    };
    refused(&config(1), &[row(0, 0, 13)], "context = 12");
    refused(&config(1), &[prompt(0, 0, 4)], "no targets");
    refused(&train::Config { vocabulary: 20, ..config(1) }, &corpus(), "vocabulary = 20");
    refused(&train::Config { heads: 5, ..config(1) }, &corpus(), "key-value-heads");
    refused(&train::Config { learning_rate: f64::NAN, ..config(1) }, &corpus(), "learning-rate");

    let model = bench.train("store", &config(1), &corpus(), &Exec::default()).unwrap();
    let full = bench.tokens("full", &[&[prompt(0, 0, CONTEXT as u32)]]);
    let error = bench.generate("out", &generate::Config::default(), &full, &model).unwrap_err();
    assert!(error.to_string().contains("no room"), "{error}");
}

#[test]
fn generate_continues_prompts_and_passes_the_rest_through() {
    let bench = Bench::new();
    let model = bench.train("store", &config(30), &corpus(), &Exec::default()).unwrap();
    let given = [vec![row(0, 1, 5), prompt(1, 0, 4), prompt(2, 8, 7)], vec![prompt(3, 4, 3), row(4, 2, 11)]];
    let input = bench.tokens("prompts", &[&given[0], &given[1]]);
    let config = generate::Config { max_new_tokens: 3, ..generate::Config::default() };
    let output = bench.generate("greedy", &config, &input, &model).unwrap();
    assert_eq!(output.parts(), 2);
    let (before, after) = (rows(&input), rows(&output));
    assert_eq!([&after[0], &after[4]], [&before[0], &before[4]]);
    for (prompt, row) in [1, 2, 3].map(|index| (&before[index], &after[index])) {
        let length = prompt.input_ids.len();
        assert_eq!(row.input_ids[..length], prompt.input_ids);
        let first = prompt.input_ids[length - 1] - 3;
        let expected: Vec<_> = (1..=3).map(|token| 3 + (first + token) % 20).collect();
        assert_eq!(row.input_ids[length..], expected, "the corpus counts upwards");
        assert_eq!(row.target_mask, [vec![false; length], vec![true; 3]].concat());
        let text: String = row.input_ids.iter().map(|id| format!("w{id} ")).collect();
        assert_eq!(row.text, text.trim_end());
        assert_eq!((row.completion_start as usize, &row.docs), (prompt.text.len(), &prompt.docs));
    }
    let count = |name: &str| output.manifest().count(name);
    assert_eq!(count("tokens"), Some(after.iter().map(|row| row.input_ids.len() as u64).sum()));
    assert_eq!((count("examples"), count("targets"), count("truncated")), (Some(5), Some(4 + 9 + 10), Some(0)));
    assert_eq!(count("longest"), Some(11));
    assert_eq!(count("largest_id"), after.iter().flat_map(|row| &row.input_ids).max().map(|&id| u64::from(id)));

    // config.json says which tokens end a text.
    let ends = bench.folder.path().join("ends");
    std::fs::create_dir(&ends).unwrap();
    for name in ["model.safetensors", "tokenizer.json"] {
        std::fs::copy(model.join(name), ends.join(name)).unwrap();
    }
    let length = before[1].input_ids.len();
    let second = after[1].input_ids[length + 1];
    let mut json: Value = serde_json::from_slice(&std::fs::read(model.join("config.json")).unwrap()).unwrap();
    json["eos_token_id"] = json!([1, second]);
    std::fs::write(ends.join("config.json"), json.to_string()).unwrap();
    let ended = rows(&bench.generate("ends", &config, &input, &ends).unwrap());
    assert_eq!(ended[1].input_ids[length..], after[1].input_ids[length..length + 2]);

    let again = bench.generate("again", &config, &input, &model).unwrap();
    assert_eq!(again.manifest().parts, output.manifest().parts);

    // Draws repeat with the seed, differ between seeds, and end with the context.
    let draw = |store: &str, seed| {
        let config = generate::Config { max_new_tokens: 100, temperature: 5.0, seed, ..Default::default() };
        rows(&bench.generate(store, &config, &input, &model).unwrap())
    };
    let (one, two) = (draw("one", 1), draw("two", 2));
    assert_eq!(one, draw("one-again", 1));
    assert_ne!(one, two);
    assert!(one.iter().all(|row| row.input_ids.len() <= CONTEXT && row.target_mask.contains(&true)));
}

impl Bench {
    fn fine_tune(&self, store: &str, config: &fine_tune::Config, model: &Path, exec: &Exec) -> Result<PathBuf> {
        self.fine_tune_by(store, config, model, None, exec)
    }

    fn fine_tune_by(
        &self,
        store: &str,
        config: &fine_tune::Config,
        model: &Path,
        vectors: Option<&Path>,
        exec: &Exec,
    ) -> Result<PathBuf> {
        let vectors = vectors.map(Artifact::open).transpose()?;
        let tokens = self.tokens("tokens", &[&corpus()]);
        let beside = [Some(model.join("tokenizer.json")), Some(model.join("generation_config.json"))];
        let inputs = fine_tune::Inputs { tokens, vectors, model: model.into(), beside };
        self.produce(store, Kind::Model, serde_json::to_value(config)?, |draft| {
            fine_tune::run(config, &inputs, exec, draft)
        })
    }
}

fn further() -> fine_tune::Config {
    let training = Training { epochs: 2, batch_rows: 6, learning_rate: 0.003, seed: 1, ..Training::default() };
    fine_tune::Config { training, ..Default::default() }
}

fn weights(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("model.safetensors")).unwrap()
}

#[test]
fn a_checkpoint_is_trained_further_and_resumes_where_it_was() {
    let bench = Bench::new();
    let base = bench.train("base", &config(2), &corpus(), &Exec::default()).unwrap();
    let config = fine_tune::Config { checkpoints: 2, ..further() };
    let whole = bench.fine_tune("whole", &config, &base, &Exec::default()).unwrap();
    let tokens: u64 = corpus().iter().map(|row| row.input_ids.len() as u64).sum();
    let exec = Exec { reporter: Arc::new(Killer(AtomicU64::new(tokens))), ..Exec::default() };
    assert!(catch_unwind(AssertUnwindSafe(|| bench.fine_tune("killed", &config, &base, &exec))).is_err());
    let resumed = bench.fine_tune("killed", &config, &base, &Exec::default()).unwrap();
    let (one, other) = (Manifest::read(&whole).unwrap(), Manifest::read(&resumed).unwrap());
    assert_eq!((&one.parts, &one.summary), (&other.parts, &other.summary));

    let device = wherefrom_model::resolve_device("cpu").unwrap();
    let load = |folder: &Path| wherefrom_model::Model::load(folder, &device).unwrap();
    let kept: Vec<_> = ["000007", "000014"].map(|step| whole.join("checkpoints").join(step)).into();
    let states = [weights(&base), weights(&kept[0]), weights(&kept[1])];
    assert!((0..3).all(|one| (0..one).all(|other| states[one] != states[other])), "every state is another");
    assert_eq!(states[2], weights(&whole), "the last is the model");
    let rates: BTreeMap<u64, f64> = serde_json::from_value(one.summary["checkpoints"].clone()).unwrap();
    assert!(rates.keys().eq(&[7, 14]) && rates[&7] > rates[&14], "{rates:?}");
    kept.iter().for_each(|folder| assert_eq!(load(folder).config, load(&base).config));
    let loss = one.summary["final_loss"].as_f64().unwrap();
    assert!(loss < one.summary["loss_curve"][0][2].as_f64().unwrap(), "{:?}", one.summary);
}

/// Products of bfloat16 learn as much, on weights that have all digits of float32.
#[test]
fn training_in_bfloat16_keeps_float32_weights() {
    let bench = Bench::new();
    let rounded = train::Config { precision: Precision::Bf16, ..config(30) };
    let [wide, narrow] = [("wide", config(30)), ("narrow", rounded)]
        .map(|(store, config)| bench.train(store, &config, &corpus(), &Exec::default()).unwrap());
    let loss = |folder: &Path| Manifest::read(folder).unwrap().summary["final_loss"].as_f64().unwrap();
    assert!((loss(&wide) - loss(&narrow)).abs() < 0.02 * loss(&wide), "{} and {}", loss(&wide), loss(&narrow));
    assert_ne!(weights(&wide), weights(&narrow));
    let device = wherefrom_model::resolve_device("cpu").unwrap();
    let model = wherefrom_model::Model::load(&narrow, &device).unwrap();
    let values: Vec<f32> = model.parameters[&model.outline.tensors()[0].name].to_data().try_into_vec().unwrap();
    let fine = values.iter().filter(|value| value.to_bits() & 0xffff != 0).count();
    assert!(2 * fine > values.len(), "{fine} of {} weights have more digits than a bfloat16", values.len());

    let further = fine_tune::Config { precision: Precision::Bf16, ..further() };
    let tuned = bench.fine_tune("tuned", &further, &narrow, &Exec::default()).unwrap();
    assert!(loss(&tuned) < 1.05 * loss(&narrow));
    let refused = fine_tune::Config { precision: Precision::F16, ..further };
    let error = bench.fine_tune("refused", &refused, &narrow, &Exec::default()).unwrap_err().to_string();
    assert!(error.contains("f16") && error.contains("bf16"), "{error}");

    let input = bench.tokens("prompts", &[&[prompt(0, 0, 4), prompt(1, 8, 7)]]);
    let config = generate::Config { max_new_tokens: 3, ..Default::default() };
    let continued = |store: &str, precision| {
        rows(&bench.generate(store, &generate::Config { precision, ..config.clone() }, &input, &narrow).unwrap())
    };
    assert_eq!(continued("one", Precision::Bf16), continued("two", Precision::F32), "the corpus counts upwards");
}

#[test]
fn an_example_of_weight_zero_is_not_learnt_from_and_moves_no_other() {
    let bench = Bench::new();
    let base = bench.train("base", &config(1), &corpus(), &Exec::default()).unwrap();
    let tuned = |store: &str, weights: &[(u64, f32)]| {
        let config = fine_tune::Config { weights: weights.iter().copied().collect(), ..further() };
        bench.fine_tune(store, &config, &base, &Exec::default())
    };
    let plain = weights(&tuned("plain", &[]).unwrap());
    assert_eq!(plain, weights(&tuned("one", &[(3, 1.0)]).unwrap()));
    let without = weights(&tuned("without", &[(3, 0.0)]).unwrap());
    assert_ne!(plain, without);
    let every: Vec<_> = (0..40).map(|example| (example, 0.0)).collect();
    let nothing = difference(&weights(&tuned("nothing", &every).unwrap()), &weights(&base));
    assert!(nothing < 0.003, "nothing but weight decay: {nothing}");
    let error = tuned("unknown", &[(40, 0.0)]).unwrap_err();
    assert!(error.to_string().contains("no example 40"), "{error}");
    let error = tuned("negative", &[(1, -1.0)]).unwrap_err();
    assert!(error.to_string().contains("weight -1"), "{error}");
}

/// The largest difference of two checkpoints' numbers, over the largest number.
fn difference(one: &[u8], other: &[u8]) -> f32 {
    let values = |bytes: &[u8]| -> Vec<f32> {
        let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
        let mut tensors = file.tensors();
        tensors.sort_by(|one, other| one.0.cmp(&other.0));
        let float = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
        tensors.iter().flat_map(|(_, view)| view.data().chunks_exact(4).map(float)).collect()
    };
    let (one, other) = (values(one), values(other));
    let largest = one.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    one.iter().zip(&other).fold(0.0_f32, |most, (one, other)| most.max((one - other).abs())) / largest
}

/// Training to which a vector is added learns other weights, as many tokens at a time as it may; the weights that it leaves are those of
/// a step by the gradient with the vector there; and nothing is left of the vector where it is not asked for.
#[test]
fn a_trait_is_prevented_by_its_vector_in_training_alone() {
    let bench = Bench::new();
    let base = bench.train("base", &config(2), &corpus(), &Exec::default()).unwrap();
    let device = wherefrom_model::resolve_device("cpu").unwrap();
    let vector: Vec<f32> = (0..32).map(|i| (i as f32 * 0.7).sin()).collect();
    let row = |vector: &[f32]| TraitVector {
        trait_name: "up".into(),
        over: Over::ResponseAvg,
        site: "1".into(),
        layer: 1,
        vector: vector.to_vec(),
        positive: vec![],
        negative: vec![],
        deviation: f32::NAN,
        norm: vector.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt() as f32,
        median_norm: 2.0,
        pairs: 3,
    };
    let stored = |name: &str, rows: &[TraitVector]| {
        bench.produce(name, Kind::Vectors, json!({}), |draft| draft.write_rows::<Vectors, _>(0, rows)).unwrap()
    };
    let vectors = stored("vectors", &[row(&vector)]);
    let tuned = |store: &str, prevent: Value, vectors: &Path| {
        let prevent = serde_json::from_value(prevent)?;
        // One step over all rows.
        let training = Training { epochs: 1, batch_rows: 40, warmup_share: 0.0, ..further().training };
        let config = fine_tune::Config { training, prevent, ..Default::default() };
        let folder = bench.fine_tune_by(store, &config, &base, Some(vectors), &Exec::default())?;
        Ok::<_, anyhow::Error>((weights(&folder), Manifest::read(&folder)?.summary))
    };
    let (plain, summary) = tuned("plain", Value::Null, &vectors).unwrap();
    assert!(!summary.contains_key("prevented"));
    let (added, summary) = tuned("added", json!({ "layer": 1, "coefficient": 0.5 }), &vectors).unwrap();
    let norm = f64::from(row(&vector).norm);
    assert_eq!(summary["prevented"]["vector"], "up.response-avg.1");
    assert!((summary["prevented"]["strength"].as_f64().unwrap() - 0.5 * norm / 2.0).abs() < 1e-6);
    let (ablated, _) = tuned("ablated", json!({ "layer": 1, "kind": "ablate" }), &vectors).unwrap();
    assert!(
        difference(&plain, &added) > 1e-4 && difference(&plain, &ablated) > 1e-4 && difference(&added, &ablated) > 1e-4
    );
    // The length of the vector is that of the coefficient.
    let double: Vec<f32> = vector.iter().map(|value| 2.0 * value).collect();
    let double = stored("double", &[row(&double)]);
    assert_eq!(added, tuned("half", json!({ "layer": 1, "coefficient": 0.25 }), &double).unwrap().0);
    assert!(
        difference(&ablated, &tuned("ablated-double", json!({ "layer": 1, "kind": "ablate" }), &double).unwrap().0)
            < 1e-6
    );

    // By hand: its loss is that of the batch with the vector.
    let model = wherefrom_model::Model::load(&base, &device).unwrap();
    let rows = corpus();
    let sequences: Vec<_> =
        rows.iter().map(|row| wherefrom_model::Sequence::new(row.example, &row.input_ids, &row.target_mask)).collect();
    let half: Vec<f32> = vector.iter().map(|value| 0.5 * value).collect();
    let batch = wherefrom_model::Batch::new(&sequences, &device).adding(1, &half);
    let (_, losses, targets) = model.parameter_gradients(&batch).unwrap();
    let mean = losses.iter().sum::<f64>() / targets as f64;
    assert!(
        (summary["final_loss"].as_f64().unwrap() / mean - 1.0).abs() < 1e-5,
        "{} and {mean}",
        summary["final_loss"]
    );

    let refused =
        |prevent: Value, vectors: &Path| tuned("refused", prevent, vectors).map(drop).unwrap_err().to_string();
    for (prevent, what) in [
        (json!({ "layer": 1 }), "coefficient"),
        (json!({ "layer": 1, "coefficient": -2.0 }), "above 0"),
        (json!({ "layer": 1, "coefficient": 2.0, "kind": "ablate" }), "leave `coefficient` away"),
        (json!({ "layer": 0, "coefficient": 1.0 }), "site 0"),
        (json!({ "layer": "post-norm", "coefficient": 1.0 }), "site post-norm"),
        (json!({ "layer": 1, "coefficient": 1.0, "trait": "down" }), "no vector of down"),
    ] {
        let error = refused(prevent, &vectors);
        assert!(error.contains(what), "{what}: {error}");
    }
    let zero = stored("zero", &[row(&[0.0; 32])]);
    let error = refused(json!({ "layer": 1, "kind": "ablate" }), &zero);
    assert!(error.contains("it has no direction"), "{error}");
    let narrow = stored("narrow", &[row(&vector[1..])]);
    let error = refused(json!({ "layer": 1, "kind": "ablate" }), &narrow);
    assert!(error.contains("31 values") && error.contains("another model"), "{error}");
}
