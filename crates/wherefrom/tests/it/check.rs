//! `wherefrom check` and `wherefrom devices`, and the knob `precision`.

use std::collections::HashMap;
use std::fs;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use crate::bench::{Bench, fixture};
use crate::study;

/// The golden model, with the weights whose names end so multiplied.
pub(crate) fn scaled(bench: &Bench, ending: &str, factor: f32) {
    scaled_each(bench, &[(ending, factor)]);
}

pub(crate) fn scaled_each(bench: &Bench, factors: &[(&str, f32)]) {
    for name in ["config.json", "tokenizer.json"] {
        if let Ok(content) = fs::read(fixture("model").join(name)) {
            bench.file(&format!("model/{name}"), content);
        }
    }
    let bytes = fs::read(fixture("model/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut found = 0;
    let changed: Vec<_> = (tensors.tensors().into_iter())
        .map(|(name, view)| {
            let values = view.data().chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap()));
            let factor = factors.iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, factor)| *factor);
            found += usize::from(factor.is_some());
            let values = values.map(|value| value * factor.unwrap_or(1.0));
            (name, view.dtype(), view.shape().to_vec(), values.flat_map(f32::to_le_bytes).collect::<Vec<u8>>())
        })
        .collect();
    assert!(found >= factors.len(), "a weight is scaled");
    let views = changed
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    bench.file("model/model.safetensors", safetensors::serialize(views, Some(metadata)).unwrap());
}

fn rows() -> String {
    fixture("train.jsonl").display().to_string()
}

#[test]
fn a_sound_model_passes_and_its_coverage_is_named() {
    let bench = Bench::new();
    let model = fixture("model").display().to_string();
    let out = bench.ok(&["check", &model, "--corpus", &rows(), "--rows", "5", "--precision", "f16"]);
    for words in ["f16   all modules", "rows      5 of", "not model.embed_tokens"] {
        assert!(out.contains(words), "{words}: {out}");
    }
    assert!(out.ends_with("all within the thresholds\n") && !out.contains("FAILS"), "{out}");
    assert!(!bench.path("data").exists(), "nothing is left behind");
}

/// In bfloat16 this model's gradients keep their direction, but what little unrelated rows have in common is lost.
#[test]
fn scores_that_change_their_order_fail_by_module() {
    let bench = Bench::new();
    let model = fixture("model").display().to_string();
    let said = bench.wherefrom(&["check", &model, "--corpus", &rows(), "--rows", "5", "--precision", "bf16"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.out.contains("FAILS") && said.err.contains("bf16 is not to be trusted on this model"), "{}", said.err);
}

#[test]
fn a_model_of_which_little_is_covered_is_warned_about() {
    let bench = Bench::new();
    let model = fixture("model").display().to_string();
    let (corpus, one) = (rows(), "model.layers.0.mlp.up_proj");
    let out = bench.ok(&["check", &model, "--corpus", &corpus, "--rows", "3", "--precision", "f16", "--modules", one]);
    assert!(out.contains("warning   less than half") && !out.contains("bf16  all"), "{out}");
}

#[test]
fn a_model_that_overflows_float16_fails_by_name() {
    let bench = Bench::new();
    scaled(&bench, "layers.0.mlp.down_proj.weight", 1e6);
    let said = bench.wherefrom(&["check", "model", "--corpus", &rows(), "--rows", "4"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("f16 does not run on this model") && said.err.contains("overflow"), "{}", said.err);
    assert!(said.out.contains("bf16  all modules"), "{}", said.out);
}

#[test]
fn a_module_that_underflows_float16_fails_by_name() {
    let bench = Bench::new();
    scaled(&bench, "layers.1.mlp.up_proj.weight", 1e-9);
    let said = bench.wherefrom(&["check", "model", "--corpus", &rows(), "--rows", "4", "--precision", "f16"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.err.contains("f16 is not to be trusted on this model"), "{}", said.err);
    assert!(said.err.contains("model.layers.1.mlp.gate_proj"), "{}", said.err);
}

#[test]
fn a_model_without_a_tokenizer_is_checked_on_random_ids() {
    let bench = Bench::new();
    for name in ["config.json", "model.safetensors"] {
        bench.file(&format!("model/{name}"), fs::read(fixture("model").join(name)).unwrap());
    }
    let out = bench.wherefrom(&["check", "model", "--rows", "3", "--precision", "f16"]).out;
    assert!(out.contains("random ids"), "{out}");
}

#[test]
fn devices_are_listed_with_the_choice_of_auto() {
    let out = Bench::new().ok(&["devices"]);
    let lines: Vec<_> = out.lines().collect();
    assert!(lines.iter().any(|line| line.starts_with("cpu ") && line.contains("f32, f16, bf16")), "{out}");
    assert!(lines.last().unwrap().starts_with("auto    "), "{out}");
    if !cfg!(feature = "wgpu") {
        assert!(out.contains("--features wgpu"), "{out}");
    }
}

#[test]
fn precision_is_part_of_what_is_computed() {
    let bench = Bench::new();
    study::write(&bench, 300, 40);
    let full = study::made(&bench.ok(&["run", "study.toml", "--to", "scores"]));
    let half = study::made(&bench.ok(&["run", "study.toml", "--to", "scores", "--set", "model.precision=bf16"]));
    let key =
        |steps: &[study::Made], name: &str| steps.iter().find(|step| step.name == name).unwrap().key().to_string();
    assert_ne!(key(&full, "covariances"), key(&half, "covariances"));
    assert_ne!(key(&full, "scores"), key(&half, "scores"));
    let refused = bench.refused(&["run", "study.toml", "--set", "model.precision=int8"]);
    assert!(refused.contains("int8") && refused.contains("`bf16`"), "{refused}");
}
