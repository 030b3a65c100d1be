//! Foreign bytes: whatever a checkpoint's files say, they are read or refused by name, and nothing panics.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};
use tempfile::TempDir;
use wherefrom_model::{BadInput, Config, Footprint, Model, Outline, Sizes, check, end_tokens, resolve_device};
use wherefrom_tests::{damage, damaged, hold, memory};

use crate::checkpoints::sharded;
use crate::fixtures;

/// Layers of a model whose every tensor is looked at.
const LAYERS: usize = 16;

/// Configs of every family in every spelling.
static CONFIGS: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let cases = fs::read_to_string(fixtures("configs").join("configs.jsonl")).unwrap();
    cases.lines().map(|case| serde_json::from_str::<Value>(case).unwrap()["config"].clone()).collect()
});

/// Every key that one of them has, at the top or below.
static KEYS: LazyLock<Vec<String>> = LazyLock::new(|| {
    fn keys(value: &Value, found: &mut BTreeMap<String, ()>) {
        for (key, value) in value.as_object().into_iter().flatten() {
            found.insert(key.clone(), ());
            keys(value, found);
        }
    }
    let mut found = BTreeMap::new();
    CONFIGS.iter().for_each(|config| keys(config, &mut found));
    found.into_keys().collect()
});

fn value() -> impl Strategy<Value = Value> {
    let words = select(vec![
        "silu",
        "gelu",
        "gelu_new",
        "relu",
        "llama3",
        "linear",
        "yarn",
        "default",
        "dynamic",
        "full_attention",
        "sliding_attention",
        "llama",
        "gpt2",
        "gpt_neox",
        "gemma",
        "mistral",
        "olmo2",
        "qwen2",
        "qwen3",
        "",
        "x",
    ]);
    let leaf = prop_oneof![
        6 => (0_u64..300).prop_map(Value::from),
        2 => select(vec![0, 1, 1 << 20, (1 << 20) + 1, 1 << 24, (1 << 24) + 1, u64::MAX]).prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        2 => any::<f64>().prop_map(Value::from),
        2 => (0.0..4.0).prop_map(Value::from),
        3 => words.prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
    ];
    leaf.prop_recursive(2, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((any::<Index>(), inner), 0..4).prop_map(|fields| {
                fields.into_iter().map(|(key, value)| (key.get(&KEYS).clone(), value)).collect()
            }),
        ]
    })
}

/// What follows from a config that is read.
fn shapes_follow(json: &Value) -> Result<(), TestCaseError> {
    let config = match Config::from_json(json) {
        Ok(config) => config,
        Err(error) => {
            prop_assert!(error.is::<BadInput>() && error.to_string().contains("config.json"), "{error:?}");
            return Ok(());
        }
    };
    prop_assert!(config.head_dim > 0 && config.num_key_value_heads > 0);
    prop_assert!(config.norm_epsilon.is_finite() && config.attention_scale.is_finite(), "{config:?}");
    let shown = Config { num_hidden_layers: config.num_hidden_layers.min(LAYERS), ..config };
    let outline = Outline::new(&shown);
    let mut names = HashSet::new();
    let mut numbers = 0_u64;
    for shape in outline.tensors() {
        prop_assert!(names.insert(&shape.name), "{} twice", shape.name);
        prop_assert!((1..=2).contains(&shape.sizes.len()) && !shape.sizes.contains(&0), "{shape:?}");
        numbers = numbers.checked_add(shape.numbers()).unwrap();
    }
    prop_assert!(!outline.modules().is_empty());
    for module in outline.modules() {
        prop_assert!(module.in_features > 0 && module.out_features > 0, "{module:?}");
    }
    prop_assert!(Footprint::new(&outline, 64).weights as u64 >= numbers, "{numbers}");
    if json["num_hidden_layers"].as_u64().is_some_and(|layers| layers <= LAYERS as u64) {
        let sizes = Sizes::new(json, &Value::Null, 64);
        prop_assert!(sizes.is_some_and(|sizes| sizes.forward.is_finite() && sizes.products > 0.0));
    }
    Ok(())
}

#[test]
fn fuzz_configs_and_the_shapes_that_follow() {
    let changes = vec((any::<Index>(), value()), 0..5);
    hold(1000, (any::<Index>(), changes, damage(), 0..4), |(which, changes, damage, kind)| {
        let mut config = which.get(&CONFIGS).clone();
        if kind == 0 {
            let Ok(damaged) = serde_json::from_slice(&damaged(config.to_string().into_bytes(), &damage)) else {
                return Ok(());
            };
            config = damaged;
        }
        if config.is_object() {
            changes.into_iter().for_each(|(key, value)| config[key.get(&KEYS)] = value);
        }
        shapes_follow(&config)
    });
}

thread_local! {
    /// A checkpoint of two shards, and its files as they are.
    static CHECKPOINT: (TempDir, Vec<(PathBuf, Vec<u8>)>) = {
        let (from, folder) = (sharded("one.safetensors", "two.safetensors"), memory());
        fs::write(from.path().join("generation_config.json"), json!({ "eos_token_id": [2, 3] }).to_string()).unwrap();
        let names = ["config.json", "model.safetensors.index.json", "one.safetensors", "two.safetensors", "generation_config.json"];
        let files = names.map(|name| (folder.path().join(name), fs::read(from.path().join(name)).unwrap()));
        files.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
        (folder, files.into())
    };
}

/// Whatever the bytes, a refusal names a file, and what is loaded is finite.
#[test]
fn fuzz_checkpoints_are_read_or_refused() {
    let device = resolve_device("cpu").unwrap();
    hold(300, (0..5_usize, any::<bool>(), damage()), |(file, head, damage)| {
        CHECKPOINT.with(|(folder, files)| {
            let (path, before) = &files[file];
            // The header of a file of weights, and where it ends.
            let (start, rest) = before.split_at(if head { before.len().min(2048) } else { before.len() });
            fs::write(path, [&damaged(start.to_vec(), &damage)[..], rest].concat()).unwrap();
            let outcomes = [
                check(folder.path()).map(drop),
                Config::load(folder.path()).map(drop),
                end_tokens(folder.path()).map(drop),
                Model::load(folder.path(), &device).map(drop),
            ];
            fs::write(path, before).unwrap();
            for outcome in outcomes {
                if let Err(error) = outcome {
                    let named = error.to_string().contains(&*folder.path().to_string_lossy());
                    prop_assert!(error.is::<BadInput>() && named, "{error:?}");
                }
            }
            Ok(())
        })
    });
}
