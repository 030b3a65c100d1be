//! Configs in old and new spellings against `transformers` (tests/fixtures/configs/make_fixtures.py): each is read as it is
//! there, or refused.

use serde_json::{Value, json};
use wherefrom_model::{Config, Positions, Scaling, end_tokens};

use crate::fixtures;

/// Kinds of cases that `transformers` reads and that are refused here, with why.
const REFUSED: [(&str, &str); 10] = [
    ("gelu and hidden_activation", "hidden_activation"),
    ("null rope_type", "rope_type"),
    ("nested", "nested"),
    ("nested with layer types", "layer"),
    ("partial and linear", "partial_rotary_factor"),
    ("partial twice", "partial_rotary_factor"),
    ("type beside rope_type", "factor"),
    ("layer types chunked", "layer_types"),
    ("layer types", "layer_types"),
    ("layer types and window", "layer_types"),
];

/// The same, of one family.
const REFUSED_IN: [(&str, &str); 18] = [
    ("mistral hidden no multiple", "head_dim"),
    ("olmo2 hidden no multiple", "head_dim"),
    ("qwen2 hidden no multiple", "head_dim"),
    ("gpt_neox theta", "rotary_emb_base"),
    ("gpt_neox both thetas", "rotary_emb_base"),
    ("gpt_neox scaling", "rotary_emb_base"),
    ("gpt_neox parameters and theta", "rotary_emb_base"),
    ("gpt_neox parameters without theta", "rotary_emb_base"),
    ("gpt_neox partial", "rotary_pct"),
    ("gpt_neox head_dim", "head_dim"),
    ("gemma hidden_activation", "hidden_activation"),
    ("gpt2 n_embd and hidden_size", "n_embd"),
    ("gpt2 n_positions and max_position_embeddings", "n_positions"),
    ("llama hidden_activation", "hidden_activation"),
    ("mistral hidden_activation", "hidden_activation"),
    ("olmo2 hidden_activation", "hidden_activation"),
    ("qwen2 hidden_activation", "hidden_activation"),
    ("qwen3 hidden_activation", "hidden_activation"),
];

fn load(config: &Value) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    Config::load(folder.path()).map_err(|error| {
        assert!(error.is::<wherefrom_model::BadInput>(), "{error:?}");
        error.to_string()
    })
}

#[test]
fn every_config_is_read_as_transformers_reads_it_or_refused_by_name() {
    let cases = std::fs::read_to_string(fixtures("configs").join("configs.jsonl")).unwrap();
    let (mut read, mut others) = (0, Vec::new());
    for case in cases.lines() {
        let case: Value = serde_json::from_str(case).unwrap();
        let (name, right) = (case["name"].as_str().unwrap(), &case["transformers"]);
        let kind = name.split_once(' ').unwrap().1;
        let refusal = (REFUSED_IN.iter().filter(|(of, _)| *of == name))
            .chain(REFUSED.iter().filter(|(of, _)| *of == kind))
            .map(|(_, why)| *why)
            .next();
        match (load(&case["config"]), refusal) {
            (Err(error), Some(why)) => assert!(error.contains(why), "{name}: {error}"),
            (Err(error), None) if right.get("error").is_none() => others.push(format!("{name}: {error}")),
            (Err(_), None) => {}
            (Ok(_), _) if right.get("error").is_some() => others.push(format!("{name}: transformers refuses it")),
            (Ok(config), _) => {
                agrees(name, &config, right);
                read += 1;
            }
        }
    }
    assert!(others.is_empty(), "{others:#?}");
    assert!(read > 250, "{read}");
}

fn agrees(name: &str, config: &Config, right: &Value) {
    let found = json!({
        "head_dim": config.head_dim,
        "heads": config.num_attention_heads,
        "hidden": config.hidden_size,
        "tied": config.tie_word_embeddings,
        "epsilon": config.norm_epsilon,
    });
    for (key, value) in found.as_object().unwrap() {
        assert_eq!(value, &right[key], "{name}: {key}");
    }
    if !name.starts_with("gpt") {
        assert_eq!(json!(config.num_key_value_heads), right["key_value_heads"], "{name}");
    }
    assert_eq!(Some(config.max_position_embeddings as u64), right["context"].as_u64(), "{name}");
    let window = config.layers.iter().find_map(|layer| layer.window);
    assert_eq!(window.map(|window| window as u64), right["window"].as_u64(), "{name}");
    let activation = match right["activation"].as_str().unwrap() {
        "silu" => "Silu",
        "gelu" => "Gelu",
        _ => "GeluTanh",
    };
    assert_eq!(format!("{:?}", config.activation), activation, "{name}");
    let rope = &right["rope"];
    let Some(rotary) = &config.rotary else {
        assert!(rope.is_null(), "{name}");
        return;
    };
    assert_eq!((json!(rotary.theta), json!(rotary.dims)), (rope["theta"].clone(), rope["dims"].clone()), "{name}");
    let number = |key: &str| rope[key].as_f64().unwrap_or_else(|| panic!("{name}: {key}"));
    let right = match rope["kind"].as_str().unwrap() {
        "default" | "dynamic" => Scaling::Default,
        "linear" => Scaling::Linear { factor: number("factor") },
        "yarn" => Scaling::Yarn {
            factor: number("factor"),
            fast: 32.0,
            slow: 1.0,
            context: number("original"),
            truncate: true,
            amplitude: 0.1 * number("factor").ln() + 1.0,
        },
        "llama3" => Scaling::Llama3 {
            factor: number("factor"),
            low: number("low"),
            high: number("high"),
            context: number("original"),
        },
        other => panic!("{name}: {other} is not refused"),
    };
    assert_eq!(rotary.scaling, right, "{name}");
}

fn llama() -> Value {
    json!({ "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 200 })
}

/// Nothing is made of such sizes: a list of the modules would take all memory.
#[test]
fn sizes_that_cannot_be_are_refused() {
    for model_type in [
        "llama",
        "gpt2",
        "gpt_neox",
        "gemma",
        "gemma2",
        "gemma3_text",
        "granite",
        "mistral",
        "olmo2",
        "olmo3",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
    ] {
        let mut base = llama();
        base["model_type"] = model_type.into();
        assert!(model_type != "llama" || load(&base).is_ok());
        for key in [
            "num_hidden_layers",
            "hidden_size",
            "intermediate_size",
            "n_inner",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "vocab_size",
            "max_position_embeddings",
        ] {
            for size in
                [json!(u64::MAX), json!(1_000_000_000_000_u64), json!(100_000_000), json!(0), json!(-1), json!(2.5)]
            {
                let mut config = base.clone();
                config[key] = size.clone();
                match load(&config) {
                    Err(error) => assert!(error.contains("config.json"), "{error}"),
                    // Keys of other families.
                    Ok(config) => assert!(
                        (key == "n_inner" && model_type != "gpt2")
                            || (["n_inner", "num_key_value_heads", "head_dim", "intermediate_size"].contains(&key)
                                && model_type.starts_with("gpt")),
                        "{model_type} {key} {size}: {config:?}"
                    ),
                }
            }
        }
    }
    let absurd = |key: &str, size: u64| {
        let mut config = llama();
        config[key] = size.into();
        load(&config).unwrap_err()
    };
    assert!(absurd("num_hidden_layers", 10_000_000).starts_with("`num_hidden_layers` cannot be 10000000"));
    assert!(absurd("head_dim", 1 << 22).starts_with("`num_attention_heads` times `head_dim` cannot be 16777216"));
}

#[test]
fn malformed_configs_are_refused_with_their_file() {
    let folder = tempfile::tempdir().unwrap();
    let nested = "[".repeat(100_000);
    for text in ["", "{", "[]", "3", "null", "\u{feff}{}", "{\"model_type\": \"llama\"", "{\"model_type\": 3}", &nested]
    {
        std::fs::write(folder.path().join("config.json"), text).unwrap();
        let error = Config::load(folder.path()).unwrap_err();
        assert!(error.is::<wherefrom_model::BadInput>() && error.to_string().contains("config.json"), "{error}");
    }
    for (key, value) in [
        ("rope_scaling", json!({ "rope_type": "linear", "factor": 0 })),
        ("rope_scaling", json!({ "rope_type": "linear", "factor": -2 })),
        ("rope_scaling", json!({ "rope_type": 3, "factor": 2 })),
        ("rope_scaling", json!([2])),
        ("rope_scaling", json!(2)),
        ("rope_theta", json!(0)),
        ("rope_theta", json!("10000")),
        ("rms_norm_eps", json!("1e-5")),
        ("tie_word_embeddings", json!("yes")),
        ("hidden_act", json!(["silu"])),
        ("per_layer_config", json!({ "0": {} })),
        ("layer_types", json!("full_attention")),
    ] {
        let mut config = llama();
        config[key] = value.clone();
        let error = load(&config).expect_err(&format!("{key} {value}"));
        assert!(error.contains("config.json"), "{key} {value}: {error}");
    }
}

fn family(model_type: &str, keys: Value) -> Result<Config, String> {
    let mut config = llama();
    config["model_type"] = model_type.into();
    config["num_hidden_layers"] = 7.into();
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    load(&config)
}

/// `su` and Phi-3's `yarn` mean LongRoPE; the original context at the top level wins, and is 4096 where it says none.
#[test]
fn the_stretched_context_of_phi3_is_read() {
    let table = |kind: &str| {
        json!({ "rope_type": kind, "short_factor": [1, 1, 1, 1], "long_factor": [2, 2, 2, 2],
                "original_max_position_embeddings": 16 })
    };
    for (kind, top, expected) in [("su", json!(32), 32.0), ("yarn", Value::Null, 4096.0), ("longrope", json!(64), 64.0)]
    {
        let keys = json!({ "rope_scaling": table(kind), "original_max_position_embeddings": top,
                           "max_position_embeddings": 131_072 });
        let rotary = family("phi3", keys).unwrap().rotary.unwrap();
        let Scaling::Long { context, amplitude, .. } = rotary.scaling else { panic!("{kind}") };
        assert_eq!(context, expected, "{kind}");
        assert_eq!(amplitude, (1.0 + (131_072.0 / expected).ln() / expected.ln()).sqrt(), "{kind}");
    }
}

/// What YaRN takes where a config says nothing; `truncate` is read beside the kinds of layers and not inside them.
#[test]
fn yarn_is_read_with_its_defaults() {
    let yarn = |truncate: bool| {
        json!({ "full_attention": { "rope_type": "yarn", "factor": 8, "rope_theta": 5e5, "truncate": false,
                                    "original_max_position_embeddings": 64 },
                "sliding_attention": { "rope_theta": 5e5 }, "truncate": truncate })
    };
    for truncate in [false, true] {
        let config = family("olmo3", json!({ "rope_parameters": yarn(truncate) })).unwrap();
        let amplitude = 0.1 * 8.0_f64.ln() + 1.0;
        let expected = Scaling::Yarn { factor: 8.0, fast: 32.0, slow: 1.0, context: 64.0, truncate, amplitude };
        assert_eq!(config.rotary.unwrap().scaling, expected);
        assert_eq!(config.local_rotary.unwrap().scaling, Scaling::Default);
    }
}

/// Which layers see a window, turn, or have experts, where a config leaves it to the family.
#[test]
fn layers_differ_as_their_family_has_it() {
    let windows = |config: &Config| (0..7).map(|layer| config.layer(layer).window.is_some()).collect::<Vec<_>>();
    let every = |number: usize| (1..=7).map(|layer| layer % number != 0).collect::<Vec<_>>();
    assert_eq!(windows(&family("gemma2", json!({})).unwrap()), every(2));
    assert_eq!(windows(&family("olmo3", json!({})).unwrap()), every(4));
    let gemma = family("gemma3_text", json!({})).unwrap();
    assert_eq!(windows(&gemma), every(6));
    assert_eq!((gemma.rotary.unwrap().theta, gemma.local_rotary.unwrap().theta), (1e6, 1e4));
    assert_eq!(windows(&family("gemma3_text", json!({ "sliding_window_pattern": 3 })).unwrap()), every(3));
    // Scores of Gemma 3 are never bent, whatever is said.
    assert_eq!(family("gemma3_text", json!({ "attn_logit_softcapping": 50 })).unwrap().attention_cap, None);
    let smollm = family("smollm3", json!({})).unwrap();
    let turned: Vec<_> = (0..7).map(|layer| smollm.layer(layer).positions == Positions::Global).collect();
    assert_eq!(turned, every(4), "a 1 in `no_rope_layers` is a layer that turns");

    let qwen = json!({ "decoder_sparse_step": 2, "mlp_only_layers": [3], "num_experts": 6, "num_experts_per_tok": 2 });
    let qwen = family("qwen3_moe", qwen).unwrap();
    let sparse: Vec<_> = (0..7).filter(|&layer| qwen.layer(layer).experts).collect();
    assert_eq!((sparse, qwen.experts.unwrap().normalised), (vec![1, 5], false));
    assert!(family("mixtral", json!({ "num_key_value_heads": 2 })).unwrap().experts.unwrap().normalised);
    let error = family("olmoe", json!({ "num_experts": 4, "num_experts_per_tok": 5 })).unwrap_err();
    assert!(error.contains("`num_experts_per_tok` is 5 of 4 experts"), "{error}");
    let error = family("olmoe", json!({ "num_experts": 100_000, "num_hidden_layers": 100 })).unwrap_err();
    assert!(error.contains("`num_hidden_layers` times `num_experts`"), "{error}");
}

#[test]
fn an_adapter_beside_the_base_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), llama().to_string()).unwrap();
    assert!(Config::load(folder.path()).is_ok());
    for name in ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"] {
        let path = folder.path().join(name);
        std::fs::write(&path, "{}").unwrap();
        let error = Config::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("as `adapter`"), "{error}");
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn generation_ends_as_the_generation_config_says() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, value: Value| std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    let ends = || end_tokens(folder.path()).map_err(|error| error.to_string());
    write("config.json", json!({ "eos_token_id": 2 }));
    assert_eq!(ends(), Ok(vec![2]));
    write("generation_config.json", json!({ "eos_token_id": [7, 9] }));
    assert_eq!(ends(), Ok(vec![7, 9]));
    write("generation_config.json", json!({ "eos_token_id": 5 }));
    assert_eq!(ends(), Ok(vec![5]));
    write("generation_config.json", json!({ "do_sample": true }));
    assert_eq!(ends(), Ok(vec![2]));
    write("config.json", json!({ "eos_token_id": null }));
    assert_eq!(ends(), Ok(vec![]));
    for wrong in [json!("</s>"), json!(-1), json!([2, null]), json!(1.5)] {
        write("generation_config.json", json!({ "eos_token_id": wrong }));
        assert!(ends().unwrap_err().contains("generation_config.json"), "{wrong}");
    }
}
