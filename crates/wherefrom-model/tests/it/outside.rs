//! Tables, norms and heads as modules: their taps make the gradients that `gradients_of_every_parameter_agree` holds against float64.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use wherefrom_linalg::test_support::with_burn_operations;
use wherefrom_model::{Batch, Coverage, Labels, Model, Modules, Part, Precision, Selection, Sequence, Tap};

use crate::families::FAMILIES;
use crate::{Fixture, assert_close_or_zero, cosine, values};

fn everything(model: &Model) -> Selection {
    Selection::new(&Modules::Named("everything".into()), model.modules()).unwrap()
}

/// sum_t d_t a_t^T of every module and sequence.
fn gradients(model: &Model, batch: &Batch, selection: &Selection) -> BTreeMap<(String, usize), Tensor<2>> {
    let mut found: BTreeMap<(String, usize), Tensor<2>> = BTreeMap::new();
    let visit = &mut |tap: Tap<'_>| {
        let (rows, module) = (tap.tokens.positions.len(), tap.module);
        assert_eq!(tap.activations.dims(), [rows, module.in_features], "{}", module.name);
        assert_eq!(tap.output_gradients.dims(), [rows, module.out_features], "{}", module.name);
        for (sequence, rows) in tap.tokens.sequences.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
            let [d, a] = [&tap.output_gradients, &tap.activations].map(|x| x.clone().narrow(0, rows.start, rows.len()));
            assert!(found.insert((module.name.clone(), sequence), d.transpose().matmul(a)).is_none());
        }
        Ok(())
    };
    model.taps(batch, &Labels::Empirical, selection, visit).unwrap();
    found
}

#[test]
fn taps_make_the_gradient_of_everything() {
    for name in FAMILIES {
        let fixture = Fixture::family(name);
        let check = || {
            let (model, batch) = (&fixture.model, fixture.batch());
            let found = gradients(model, &batch, &everything(model));
            for (sequence, ids) in fixture.sequences.iter().enumerate() {
                let mask: Vec<_> = (0..ids.len()).map(|t| t > 0).collect();
                let alone = Batch::new(&[Sequence::new(0, ids, &mask)], &model.device);
                let (expected, ..) = model.parameter_gradients(&alone).unwrap();
                for module in model.modules().iter().filter(|module| !module.part.is_map()) {
                    let mut whole = expected[&module.weight()].clone();
                    if module.part == Part::Norm {
                        let bias = module.bias.then(|| expected[&module.bias()].clone());
                        whole = Tensor::cat([whole].into_iter().chain(bias).collect(), 1).transpose();
                    }
                    let own = &found[&(module.name.clone(), sequence)];
                    assert_eq!(own.dims(), whole.dims(), "{name} {}", module.name);
                    let what = format!("{name} {} {sequence}", module.name);
                    assert_close_or_zero(&what, &values(own.clone()), &values(whole));
                }
            }
        };
        check();
        with_burn_operations(check);
    }
}

/// Whatever is asked for alone has the gradient that it has among all.
#[test]
fn a_module_alone_has_the_gradient_that_it_has_among_all() {
    for name in ["gpt2", "gpt2_untied", "gpt_neox", "gemma2", "qwen3"] {
        let fixture = Fixture::family(name);
        let (model, batch) = (&fixture.model, fixture.batch());
        let all = gradients(model, &batch, &everything(model));
        for module in model.modules().iter().filter(|module| !module.part.is_map()) {
            let one = Selection::new(&Modules::Globs(vec![module.name.clone()]), model.modules()).unwrap();
            assert_eq!(one.modules().len(), 1);
            for ((module, sequence), own) in gradients(model, &batch, &one) {
                let among = all[&(module.clone(), sequence)].clone();
                assert_eq!(values(own), values(among), "{name} {module}");
            }
        }
    }
}

/// Everything is all parameters, the tied matrix once; what is left out is named.
#[test]
fn everything_covers_the_model() {
    for name in FAMILIES {
        let fixture = Fixture::family(name);
        let (outline, selection) = (&fixture.model.outline, everything(&fixture.model));
        let coverage = Coverage::new(outline, &selection);
        let own: u64 = selection.modules().iter().map(|module| (module.in_features * module.out_features) as u64).sum();
        assert_eq!(coverage.attributed, own, "{name}: each number of each module once");
        assert_eq!(coverage.total, outline.parameters());
        match name.starts_with("gpt_oss") {
            // Parameters of the softmax alone.
            true => assert!(coverage.unattributed.iter().all(|(name, _)| name.ends_with(".sinks"))),
            false => assert_eq!(coverage.unattributed, [], "{name}"),
        }
        let tied = selection.modules().iter().filter(|module| module.part == Part::Tied).count();
        let heads = selection.modules().iter().filter(|module| module.part == Part::Head).count();
        let config = &fixture.model.config;
        assert_eq!((tied, heads), if config.tie_word_embeddings { (1, 0) } else { (0, 1) }, "{name}");
        assert!(!coverage.is_thin());
    }
}

/// Words and globs of old choose what they chose; a glob that no map matches takes what else it matches.
#[test]
fn globs_take_maps_first() {
    let fixture = Fixture::family("llama3");
    let chosen = |globs: &[&str]| {
        let globs = globs.iter().map(ToString::to_string).collect();
        let selection = Selection::new(&Modules::Globs(globs), fixture.model.modules()).unwrap();
        selection.modules().iter().map(|module| module.name.clone()).collect::<Vec<_>>()
    };
    for globs in [&["*"][..], &["model.*"], &["model.layers.*"]] {
        let maps = fixture.model.modules().iter().filter(|module| module.part.is_map());
        assert_eq!(chosen(globs), maps.map(|module| module.name.clone()).collect::<Vec<_>>());
    }
    assert_eq!(chosen(&["lm_head", "*embed*"]), ["model.embed_tokens", "lm_head"]);
    assert_eq!(chosen(&["*norm"]).len(), 2 * 2 + 1);
    assert_eq!(chosen(&["model.layers.0.*", "model.norm"]).len(), 7 + 1);
    let error = Selection::new(&Modules::Named("whole".into()), fixture.model.modules()).unwrap_err().to_string();
    assert!(error.contains("\"everything\"") && error.contains("model.layers.0.self_attn.q_proj"), "{error}");
}

/// The loss scale of float16 is undone on both sides.
#[test]
fn taps_in_reduced_precision_stay_close() {
    for name in ["gpt2", "gpt2_untied", "qwen3"] {
        let fixture = Fixture::family(name);
        let batch = fixture.batch();
        let full = gradients(&fixture.model, &batch, &everything(&fixture.model));
        for (precision, least) in [(Precision::F16, 0.999), (Precision::Bf16, 0.99)] {
            if !precision.runs_on(&fixture.model.device) {
                continue;
            }
            let model = fixture.model.clone().with_precision(precision).unwrap();
            for (key, found) in gradients(&model, &batch, &everything(&model)) {
                let (full, found) = (values(full[&key].clone()), values(found));
                let (cosine, size) = (cosine(&full, &found), |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt());
                assert!(cosine > least, "{name} {key:?} {}: {cosine}", precision.name());
                let most = if precision == Precision::F16 { 0.05 } else { 0.2 };
                assert!((size(&found) / size(&full) - 1.0).abs() < most, "{name} {key:?} {}", precision.name());
            }
        }
    }
}
