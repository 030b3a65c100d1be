//! LoRA adapters against `peft` in float64 (tests/fixtures/adapters/make_fixtures.py), and what of them is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use wherefrom_linalg::test_support::with_burn_operations;
use wherefrom_model::{
    Attribute, Checkpoint, Config, Coverage, Footprint, Labels, Model, Modules, Outline, Precision, Selection, Tap,
    check, resolve_device,
};

use crate::tangents::products_are_those_of_logits;
use crate::{
    DEVICE, Fixture, assert_close, cosine, fixtures, reference, segments_agree_with_sequences, summed, values,
};

/// Cases, and the number of their adapters.
const CASES: [(&str, usize); 6] =
    [("gpt2", 1), ("gpt_neox", 1), ("llama3", 1), ("llama_linear", 1), ("olmo2", 2), ("qwen2", 1)];

const ATTRIBUTES: [Attribute; 3] = [Attribute::Adapter, Attribute::Merged, Attribute::Base];

fn checkpoint(case: &str, adapters: usize, attribute: Attribute) -> Checkpoint {
    let of = |name: String| fixtures("adapters").join(name);
    let adapters = match adapters {
        1 => vec![of(case.into())],
        count => (0..count).map(|index| of(format!("{case}.{index}"))).collect(),
    };
    Checkpoint { folder: fixtures("families").join(case), adapters, attribute }
}

fn fixture(case: &str, adapters: usize, attribute: Attribute) -> Fixture {
    let checkpoint = checkpoint(case, adapters, attribute);
    let (floats, _) = reference(&fixtures("adapters").join(format!("{case}.safetensors")));
    Fixture {
        model: Model::load(checkpoint, &resolve_device(DEVICE).unwrap()).unwrap(),
        floats,
        ..Fixture::family(case)
    }
}

fn each(mut of: impl FnMut(&str, Attribute, Fixture)) {
    for (case, adapters) in CASES {
        for attribute in ATTRIBUTES {
            of(&format!("{case} {attribute:?}"), attribute, fixture(case, adapters, attribute));
        }
    }
}

fn all(model: &Model) -> Selection {
    Selection::new(&Modules::Named("all".into()), model.modules()).unwrap()
}

#[test]
fn logits_and_losses_agree() {
    each(|name, _, fixture| {
        let agree = || {
            let batch = fixture.batch();
            let width = fixture.model.config.vocab_size;
            let found = values(fixture.model.logits(&batch).unwrap());
            let losses = fixture.model.token_losses(&batch).unwrap();
            for (i, own) in losses.iter().enumerate() {
                let rows = batch.tokens.sequences.of(i);
                assert_close(
                    name,
                    &found[rows.start * width..rows.end * width],
                    &fixture.floats[&format!("logits.{i}")],
                );
                assert_close(name, own, &fixture.floats[&format!("losses.{i}")]);
            }
        };
        agree();
        with_burn_operations(agree);
    });
}

/// sum_t d_t a_t^T is the gradient of A, of B, and of the base's weight, whichever are the modules; without its bias.
#[test]
fn taps_make_the_gradient_of_every_module() {
    each(|name, attribute, fixture| {
        let mut seen = Vec::new();
        let mut check = |tap: Tap<'_>| {
            let mut found = tap.output_gradients.transpose().matmul(tap.activations);
            if tap.module.bias {
                found = found.narrow(1, 0, tap.module.in_features - 1);
            }
            if fixture.transposed(&tap.module.weight()) {
                found = found.transpose();
            }
            let expected = &fixture.floats[&format!("gradient.{}", tap.module.weight())];
            assert_close(&format!("{name}: {}", tap.module.name), &values(found), expected);
            seen.push(tap.module.name.clone());
            Ok(())
        };
        fixture.model.taps(&fixture.batch(), &Labels::Empirical, &all(&fixture.model), &mut check).unwrap();
        let lora = |name: &&String| name.contains("lora_");
        let expected = fixture.floats.keys().filter(|name| name.starts_with("gradient."));
        let expected = expected.filter(|name| lora(name) == (attribute == Attribute::Adapter)).count();
        assert_eq!(seen.len(), expected, "{name}: {seen:?}");
        seen.reverse();
        let modules: Vec<_> = all(&fixture.model).modules().iter().map(|module| module.name.clone()).collect();
        assert_eq!(seen, modules, "{name}: last to first");
    });
}

/// Training changes A and B alone.
#[test]
fn gradients_of_what_is_trained_agree() {
    for (case, adapters) in CASES {
        let fixture = fixture(case, adapters, Attribute::Adapter);
        let agree = || {
            let (gradients, ..) = fixture.model.parameter_gradients(&fixture.batch()).unwrap();
            let expected = fixture.floats.iter().filter(|(name, _)| name.contains("lora_"));
            let expected: BTreeMap<_, _> =
                expected.map(|(name, values)| (&name["gradient.".len()..], values)).collect();
            assert_eq!(
                gradients.keys().map(String::as_str).collect::<Vec<_>>(),
                expected.keys().copied().collect::<Vec<_>>()
            );
            for (name, gradient) in gradients {
                assert_close(&format!("{case} {name}"), &values(gradient), expected[&*name]);
            }
        };
        agree();
        with_burn_operations(agree);
    }
}

#[test]
fn a_walk_that_ends_early_makes_the_same_taps() {
    each(|name, _, fixture| {
        let taps = |selection: &Selection| {
            let mut taps = Vec::new();
            let visit = &mut |tap: Tap<'_>| {
                taps.push((tap.module.name.clone(), values(tap.activations), values(tap.output_gradients)));
                Ok(())
            };
            fixture.model.taps(&fixture.batch(), &Labels::Sampled { seed: 3 }, selection, visit).unwrap();
            taps
        };
        let whole = taps(&all(&fixture.model));
        for (place, module) in all(&fixture.model).modules().iter().enumerate() {
            let one = Modules::Globs(vec![module.name.clone()]);
            let one = Selection::new(&one, fixture.model.modules()).unwrap();
            // As a pass of several for want of memory, too: blocks without it are computed again.
            for selection in [one, all(&fixture.model).only(&[place])] {
                let one = taps(&selection);
                assert_eq!(one.len(), 1);
                assert!(whole.contains(&one[0]), "{name}: {}", module.name);
            }
        }
    });
}

#[test]
fn segments_of_a_row_do_not_see_each_other() {
    each(|_, _, fixture| segments_agree_with_sequences(&fixture));
}

#[test]
fn gauss_newton_products_are_those_of_the_logits() {
    for (case, adapters) in CASES {
        for attribute in [Attribute::Adapter, Attribute::Base] {
            let mut fixture = fixture(case, adapters, attribute);
            fixture.sequences.truncate(2);
            products_are_those_of_logits(&format!("{case} {attribute:?}"), &fixture, 2e-3);
        }
    }
}

/// Weights that are read where a pass needs them, what is merged into them included.
#[test]
fn a_model_that_is_opened_and_not_held_makes_the_same() {
    for (case, adapters) in CASES {
        for attribute in ATTRIBUTES {
            let held = fixture(case, adapters, attribute);
            let opened = Model::open(checkpoint(case, adapters, attribute), &held.model.device).unwrap();
            let batch = held.batch();
            assert_eq!(values(held.model.logits(&batch).unwrap()), values(opened.logits(&batch).unwrap()));
            assert_eq!(summed(&held.model, &batch), summed(&opened, &batch), "{case} {attribute:?}");
        }
    }
}

/// What is merged is rounded once, behind the sum.
#[test]
fn taps_in_reduced_precision_stay_close() {
    each(|name, _, fixture| {
        let batch = fixture.batch();
        if !Precision::F16.runs_on(&fixture.model.device) {
            return;
        }
        let (full, _) = summed(&fixture.model, &batch);
        let (reduced, _) = summed(&fixture.model.with_precision(Precision::F16).unwrap(), &batch);
        for (module, full) in &full {
            let cosine = cosine(full, &reduced[module]);
            assert!(cosine > 0.999 && cosine < 1.0, "{name} {module}: {cosine}");
        }
    });
}

/// Maps of one input share it: every A of queries, keys and values, and of gate and up; a B has one of its own.
#[test]
fn adapters_of_maps_that_read_one_input_share_it() {
    let model = fixture("llama3", 1, Attribute::Adapter).model;
    let inputs = model.modules().iter().filter(|module| module.layer == 1).map(|module| {
        let short = |name: &str| name.split_once("layers.1.").unwrap().1.to_string();
        (short(&module.name), short(&module.input), module.in_features, module.out_features)
    });
    let row = |name: &str, input: &str, inside, out| (name.to_string(), input.to_string(), inside, out);
    let expected = [
        row("self_attn.q_proj.lora_A", "self_attn.q_proj.lora_A", 24, 3),
        row("self_attn.k_proj.lora_A", "self_attn.q_proj.lora_A", 24, 3),
        row("self_attn.v_proj.lora_A", "self_attn.q_proj.lora_A", 24, 3),
        row("self_attn.q_proj.lora_B", "self_attn.q_proj.lora_B", 3, 40),
        row("self_attn.k_proj.lora_B", "self_attn.k_proj.lora_B", 3, 20),
        row("self_attn.v_proj.lora_B", "self_attn.v_proj.lora_B", 3, 20),
        row("mlp.gate_proj.lora_A", "mlp.gate_proj.lora_A", 24, 3),
        row("mlp.up_proj.lora_A", "mlp.gate_proj.lora_A", 24, 4),
        row("mlp.gate_proj.lora_B", "mlp.gate_proj.lora_B", 3, 37),
        row("mlp.up_proj.lora_B", "mlp.up_proj.lora_B", 4, 37),
        row("mlp.down_proj.lora_A", "mlp.down_proj.lora_A", 37, 3),
        row("mlp.down_proj.lora_B", "mlp.down_proj.lora_B", 3, 24),
    ];
    assert_eq!(inputs.collect::<Vec<_>>(), expected);
    let mlp = Selection::new(&Modules::default(), model.modules()).unwrap();
    assert_eq!(mlp.modules().len(), 12);
    let few = Modules::Globs(vec!["*.k_proj.lora_A".into(), "*.v_proj.*".into()]);
    let few = Selection::new(&few, model.modules()).unwrap();
    assert_eq!(few.modules()[1].input, few.modules()[0].name, "the first that is chosen");
}

#[test]
fn coverage_is_of_what_was_trained() {
    let numbers = |shapes: &[(usize, usize)]| shapes.iter().map(|(a, b)| (a * b) as u64).sum::<u64>();
    let coverage = |case, attribute, modules: &str| {
        let model = fixture(case, 1, attribute).model;
        let selection = Selection::new(&Modules::Named(modules.into()), model.modules()).unwrap();
        let coverage = Coverage::new(&model.outline, &selection);
        let left: u64 = coverage.unattributed.iter().map(|(_, size)| size).sum();
        assert_eq!(coverage.attributed + left, coverage.total);
        coverage
    };
    let plain = Coverage::new(&Fixture::family("gpt2").model.outline, &all(&Fixture::family("gpt2").model));
    assert_eq!(plain.trained, None);
    // r = 4 on maps of [105, 35], [35, 35], [52, 35] and [35, 52] in two layers.
    let attention = 2 * numbers(&[(4, 35 + 105), (4, 35 + 35)]);
    let mlp = 2 * numbers(&[(4, 35 + 52), (4, 52 + 35)]);
    let adapter = coverage("gpt2", Attribute::Adapter, "mlp");
    assert_eq!((adapter.attributed, adapter.total), (mlp, plain.total + attention + mlp));
    let trained = adapter.trained.unwrap();
    assert_eq!((trained.attributed, trained.total), (mlp, attention + mlp));
    assert!(adapter.is_thin(), "its maps of attention are more");
    assert!(!coverage("gpt2", Attribute::Adapter, "all").is_thin());
    let base = coverage("gpt2", Attribute::Base, "all");
    assert_eq!(base.total, plain.total + attention + mlp);
    assert_eq!(base.attributed, plain.attributed);
    assert_eq!((base.trained.unwrap().attributed, base.trained.unwrap().total), (0, attention + mlp));
    assert!(base.is_thin(), "nothing that was trained is attributed");
    let merged = coverage("gpt2", Attribute::Merged, "all");
    let weights = 2 * numbers(&[(35, 105), (35, 35), (35, 52), (52, 35)]);
    assert_eq!((merged.attributed, merged.total), (plain.attributed, plain.total));
    assert_eq!((merged.trained.unwrap().attributed, merged.trained.unwrap().total), (weights, weights));
    // A head that is saved whole was trained, and is no module.
    let saved = coverage("llama_linear", Attribute::Adapter, "all").trained.unwrap();
    assert_eq!(saved.total - saved.attributed, 61 * 24);
}

/// A plan reads `config.json` with the adapters beside it, and comes to the same model.
#[test]
fn a_plan_knows_the_adapters() {
    for (case, adapters) in CASES {
        for attribute in ATTRIBUTES {
            let checkpoint = checkpoint(case, adapters, attribute);
            let config = Config::of(&checkpoint).unwrap();
            let mut json: Value =
                serde_json::from_slice(&std::fs::read(checkpoint.folder.join("config.json")).unwrap()).unwrap();
            json[wherefrom_model::ADAPTERS] = config.adapters.to_json();
            let planned = Config::from_json(&serde_json::from_str(&json.to_string()).unwrap()).unwrap();
            assert_eq!(planned, config, "{case}");
            assert_eq!(Outline::new(&planned).modules(), Outline::new(&config).modules());
        }
    }
    let plain = Config::load(&fixtures("families").join("llama3")).unwrap();
    let adapted = Config::of(&checkpoint("llama3", 1, Attribute::Adapter)).unwrap();
    let [plain, adapted] = [plain, adapted].map(|config| Footprint::new(&Outline::new(&config), 256));
    assert!(adapted.weights > plain.weights && adapted.largest > plain.largest, "A and B are in memory");
}

/// A copy of the adapter of a case, to be changed.
struct Edited {
    folder: tempfile::TempDir,
    base: PathBuf,
}

impl Edited {
    fn new(case: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(fixtures("adapters").join(case).join(name), folder.path().join(name)).unwrap();
        }
        Self { folder, base: fixtures("families").join(case) }
    }

    fn config(self, key: &str, value: Value) -> Self {
        let path = self.folder.path().join("adapter_config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        std::fs::write(path, config.to_string()).unwrap();
        self
    }

    /// Changes what its tensors are, by name.
    fn tensors(self, edit: impl FnOnce(&mut BTreeMap<String, (Vec<usize>, Vec<u8>)>)) -> Self {
        let path = self.folder.path().join("adapter_model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let mut tensors: BTreeMap<_, _> = SafeTensors::deserialize(&bytes)
            .unwrap()
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, (view.shape().to_vec(), view.data().to_vec())))
            .collect();
        edit(&mut tensors);
        let views = tensors.iter().map(|(name, (shape, data))| {
            (name.clone(), TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
        });
        std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
        self
    }

    fn checkpoint(&self) -> Checkpoint {
        let adapters = vec![self.folder.path().to_path_buf()];
        Checkpoint { folder: self.base.clone(), adapters, attribute: Attribute::Adapter }
    }

    fn refused(&self) -> String {
        let checked = check(self.checkpoint()).unwrap_err().to_string();
        let opened = Model::open(self.checkpoint(), &resolve_device("cpu").unwrap()).unwrap_err().to_string();
        assert_eq!(checked, opened);
        checked
    }
}

/// Traps 5, 6, 9: what computes something else is refused by name, with what to do.
#[test]
fn variants_that_are_not_known_are_refused_by_name() {
    for (key, value, what) in [
        ("peft_type", json!("LOHA"), "LOHA"),
        ("peft_type", json!(null), "peft_type"),
        ("use_dora", json!(true), "use_dora"),
        ("lora_bias", json!(true), "lora_bias"),
        ("bias", json!("all"), "bias"),
        ("bias", json!("lora_only"), "bias"),
        ("layer_replication", json!([[0, 1], [0, 1]]), "layer_replication"),
        ("trainable_token_indices", json!([1, 2]), "trainable_token_indices"),
        ("use_qalora", json!(true), "use_qalora"),
        ("alora_invocation_tokens", json!([3]), "alora_invocation_tokens"),
        ("target_parameters", json!(["mlp.experts.gate_up_proj"]), "target_parameters"),
        ("init_lora_weights", json!("pissa"), "pissa"),
        ("init_lora_weights", json!("pissa_niter_16"), "pissa_niter_16"),
        ("init_lora_weights", json!("olora"), "olora"),
        ("init_lora_weights", json!("corda"), "corda"),
        ("init_lora_weights", json!("loftq"), "loftq"),
        ("init_lora_weights", json!("lora_ga"), "lora_ga"),
        ("a_key_of_next_year", json!(1), "a_key_of_next_year"),
        ("target_modules", json!(null), "target_modules"),
        ("target_modules", json!([1]), "target_modules"),
        ("target_modules", json!("(q_proj"), "target_modules"),
        ("rank_pattern", json!({ "q_proj": 0 }), "rank_pattern"),
        ("layers_to_transform", json!(["1"]), "layers_to_transform"),
        ("r", json!(0), "`r`"),
    ] {
        let error = Edited::new("llama3").config(key, value.clone()).refused();
        assert!(error.contains(what) && error.contains("adapter_config.json"), "{key} {value}: {error}");
        if key.contains("use_") || key.contains("init") {
            assert!(error.contains("merge_and_unload"), "{error}");
        }
    }
    // How training began or went changes nothing of what is there.
    for (key, value) in [
        ("init_lora_weights", json!(false)),
        ("init_lora_weights", json!("gaussian")),
        ("fan_in_fan_out", json!(true)),
        ("lora_dropout", json!(0.5)),
        ("a_key_of_next_year", json!(null)),
    ] {
        let edited = Edited::new("llama3").config(key, value);
        assert_eq!(check(edited.checkpoint()).unwrap(), Vec::<String>::new(), "{key}");
    }
}

/// Traps 1 and 2: s is alpha / sqrt(r) or alpha / r with the map's own values, the first pattern in the file wins, and each is
/// held against the rows of A.
#[test]
fn ranks_are_those_of_the_tensors() {
    let error = Edited::new("llama3").config("rank_pattern", json!({})).refused();
    assert!(error.contains("q_proj.lora_A") && error.contains("[2, 24]") && error.contains("[3, 24]"), "{error}");
    // `^` fits a whole path alone, and a pattern that fits nothing changes nothing.
    let changed = json!({ "^layers.0.self_attn.q_proj": 2, "mlp.up_proj": 4, "nothing": 9 });
    assert!(Edited::new("llama3").config("rank_pattern", changed).refused().contains("q_proj.lora_A"));
    // In the order of the file, which no sorted map keeps: `z` is first, and fits.
    let path = |edited: &Edited| edited.folder.path().join("adapter_config.json");
    let edited = Edited::new("llama3").config("rank_pattern", json!({}));
    let text = std::fs::read_to_string(path(&edited)).unwrap();
    let order = r#""rank_pattern":{"model.layers.0.self_attn.q_proj":2,"mlp.up_proj":4,"a.*up_proj":1}"#;
    std::fs::write(path(&edited), text.replace(r#""rank_pattern":{}"#, order)).unwrap();
    check(edited.checkpoint()).unwrap();
    let order = r#""rank_pattern":{"model.layers.0.self_attn.q_proj":2,".*up_proj":1,"mlp.up_proj":4}"#;
    std::fs::write(path(&edited), text.replace(r#""rank_pattern":{}"#, order)).unwrap();
    assert!(edited.refused().contains("mlp.up_proj.lora_A"));
}

/// Trap 1: rsLoRA's scale is another.
#[test]
fn the_scale_follows_rslora() {
    let model = |edited: &Edited| Model::load(edited.checkpoint(), &resolve_device("cpu").unwrap()).unwrap();
    let batch = Fixture::family("llama3").batch();
    let logits = |edited: Edited| values(model(&edited).logits(&batch).unwrap());
    let rslora = logits(Edited::new("llama3"));
    assert_ne!(rslora, logits(Edited::new("llama3").config("use_rslora", json!(false))));
    let plain = |alpha: f64| {
        let alphas = json!({ ".*": alpha });
        logits(Edited::new("gpt2").config("alpha_pattern", alphas.clone()).config("use_rslora", json!(alpha == 12.0)))
    };
    // 12 / sqrt(4) = 24 / 4
    assert_eq!(plain(12.0), plain(24.0));
}

/// Traps 3 and 4: what is targeted is there, and nothing else is.
#[test]
fn tensors_and_targets_are_one_set() {
    let without = |name: &'static str| Edited::new("llama3").tensors(move |tensors| drop(tensors.remove(name)));
    let key = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight";
    let error = without(key).refused();
    assert!(error.contains(key) && error.contains("has no tensor"), "{error}");
    let more = |name: &'static str, shape: [usize; 2]| {
        Edited::new("llama3").tensors(move |tensors| {
            tensors.insert(name.into(), (shape.into(), vec![0; 4 * shape[0] * shape[1]]));
        })
    };
    // Left there unasked after a vocabulary was resized.
    for (name, shape) in [
        ("base_model.model.model.embed_tokens.weight", [61, 24]),
        ("base_model.model.lm_head.weight", [64, 24]),
        ("base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight", [3, 40]),
        ("base_model.model.model.layers.0.mlp.down_proj.lora_magnitude_vector.weight", [1, 24]),
        ("model.layers.0.mlp.down_proj.lora_A.weight", [3, 37]),
    ] {
        let error = more(name, shape).refused();
        assert!(error.contains(name) && error.contains("adapter_model.safetensors"), "{error}");
    }
    for (key, value) in [
        ("target_modules", json!("all-linear")),
        ("target_modules", json!(["q_proj"])),
        ("target_modules", json!(r"q_proj|.*k_proj")),
        ("exclude_modules", json!(["layers.0.mlp.down_proj"])),
        ("exclude_modules", json!(r".*\.0\.mlp.*")),
        ("modules_to_save", json!(["norm"])),
        ("layers_to_transform", json!(0)),
    ] {
        Edited::new("llama3").config(key, value).refused();
    }
    // The same maps, said otherwise.
    for (key, value) in [
        ("target_modules", json!(r".*(?<!self_attn\.o)_proj")),
        ("exclude_modules", json!(["o_proj"])),
        ("layers_to_transform", json!([0, 1])),
        ("layers_pattern", json!("layers")),
    ] {
        check(Edited::new("llama3").config(key, value.clone()).checkpoint())
            .unwrap_or_else(|error| panic!("{value}: {error}"));
    }
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let mut edited = Edited::new("llama3");
    edited.base = fixtures("families").join("mistral");
    assert!(edited.refused().contains("has shape [40, "), "{}", edited.refused());
}

/// Trap 11.
#[test]
fn an_adapter_whose_b_is_zero_is_warned_of() {
    let zero = |tensors: &mut BTreeMap<String, (Vec<usize>, Vec<u8>)>| {
        let b = tensors.iter_mut().filter(|(name, _)| name.contains("layers.0") && name.contains("lora_B"));
        b.for_each(|(_, (_, data))| data.fill(0));
    };
    let notes = check(Edited::new("llama3").tensors(zero).checkpoint()).unwrap();
    assert_eq!(notes.len(), 1);
    assert!(notes[0].contains("B is zero in 6 of 12"), "{notes:?}");
}

#[test]
fn folders_that_are_no_adapters_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |adapter: &Path| {
        let mut checkpoint = checkpoint("llama3", 1, Attribute::Adapter);
        checkpoint.adapters = vec![adapter.into()];
        check(checkpoint).unwrap_err().to_string()
    };
    assert!(refused(folder.path()).contains("adapter_config.json"));
    assert!(refused(&fixtures("families").join("llama3")).contains("whole model"));
    std::fs::copy(fixtures("adapters").join("llama3/adapter_config.json"), folder.path().join("adapter_config.json"))
        .unwrap();
    assert!(refused(folder.path()).contains("no adapter_model.safetensors"));
    std::fs::write(folder.path().join("adapter_model.bin"), "").unwrap();
    assert!(refused(folder.path()).contains("pickled") && refused(folder.path()).contains("python3 -c"));
}
