//! Every family against `transformers` in float64 (tests/fixtures/families/make_fixtures.py).

use burn::tensor::Tensor;
use wherefrom_linalg::test_support::with_burn_operations;
use wherefrom_model::{Batch, Coverage, Labels, Model, Modules, Precision, Selection, Sequence, Tap, resolve_device};

use crate::{Fixture, assert_close, assert_close_or_zero, cosine, segments_agree_with_sequences, summed, values};

pub(crate) const FAMILIES: [&str; 26] = [
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_inside",
    "gpt2",
    "gpt2_bare",
    "gpt2_untied",
    "gpt_neox",
    "gpt_neox_sequential",
    "gpt_oss",
    "gpt_oss_mxfp4",
    "granite",
    "llama3",
    "llama_linear",
    "mistral",
    "mixtral",
    "olmo2",
    "olmo3",
    "olmoe",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen2_window",
    "qwen3",
    "qwen3_moe",
    "smollm3",
];

#[test]
fn logits_and_losses_agree() {
    for name in FAMILIES {
        let fixture = Fixture::family(name);
        let batch = fixture.batch();
        let width = fixture.model.config.vocab_size;
        let found = values(fixture.model.logits(&batch).unwrap());
        let losses = fixture.model.token_losses(&batch).unwrap();
        for (i, ids) in fixture.sequences.iter().enumerate() {
            let rows = batch.tokens.sequences.of(i);
            assert_eq!(rows.len(), ids.len());
            let found = &found[rows.start * width..rows.end * width];
            assert_close(name, found, &fixture.floats[&format!("logits.{i}")]);
            assert_close(name, &losses[i], &fixture.floats[&format!("losses.{i}")]);
        }
    }
}

/// Also on the burn path, which a GPU takes.
#[test]
fn gradients_of_every_parameter_agree() {
    for name in FAMILIES {
        let fixture = Fixture::family(name);
        fixture.gradients_agree(name);
        with_burn_operations(|| fixture.gradients_agree(name));
    }
}

/// sum_t d_t a_t^T is the module's gradient with its bias as last column; a tap has a row for each token and no other.
#[test]
fn taps_make_the_gradient_of_every_module() {
    for name in FAMILIES {
        let fixture = Fixture::family(name);
        let batch = fixture.batch();
        let (gradients, ..) = fixture.model.parameter_gradients(&batch).unwrap();
        let selection = Selection::new(&Modules::Globs(vec!["*".into()]), fixture.model.modules()).unwrap();
        let lengths: Vec<_> = fixture.sequences.iter().map(Vec::len).collect();
        assert_ne!(lengths[0], lengths[1], "{name}: equal lengths prove nothing");
        let positions: Vec<_> = lengths.iter().flat_map(|&length| 0..length).collect();
        let (mut seen, mut routed) = (Vec::new(), 0);
        let visit = &mut |tap: Tap<'_>| {
            let rows = tap.tokens.positions.len();
            assert_eq!(tap.activations.dims(), [rows, tap.module.in_features]);
            assert_eq!(tap.output_gradients.dims(), [rows, tap.module.out_features]);
            let own: Vec<_> = tap.tokens.sequences.iter().map(|rows| rows.len()).collect();
            match tap.module.expert() {
                None => assert_eq!((&own, &tap.tokens.positions), (&lengths, &positions)),
                // Some of the tokens, in order.
                Some(expert) => {
                    assert!(own.iter().zip(&lengths).all(|(own, all)| own <= all) && rows > 0, "{expert}");
                    for own in tap.tokens.sequences.iter() {
                        assert!(tap.tokens.positions[own].is_sorted_by(|one, next| one < next), "{expert}");
                    }
                    routed += rows;
                }
            }
            let mut expected = gradients[&tap.module.weight()].clone();
            if tap.module.bias {
                expected = Tensor::cat(vec![expected, gradients[&tap.module.bias()].clone().transpose()], 1);
            }
            let found = tap.output_gradients.transpose().matmul(tap.activations);
            assert_close_or_zero(&tap.module.name, &values(found), &values(expected));
            seen.push(tap.module.name.clone());
            Ok(())
        };
        fixture.model.taps(&batch, &Labels::Empirical, &selection, visit).unwrap();
        let (all, config) = (selection.modules(), &fixture.model.config);
        for module in all.iter().filter(|module| !seen.contains(&module.name)) {
            let gradient = values(gradients[&module.weight()].clone());
            assert!(module.routed.is_some() && gradient.iter().all(|&value| value == 0.0), "{name}: {}", module.name);
        }
        if let Some(experts) = &config.experts {
            let layers = config.layers.iter().filter(|layer| layer.experts).count();
            assert_eq!(routed, 3 * layers * experts.chosen * positions.len(), "{name}: three maps of each choice");
        }
    }
}

/// A selection in the middle of a block: the walk ends there, with the same taps.
#[test]
fn a_walk_that_ends_early_makes_the_same_taps() {
    for name in FAMILIES {
        let fixture = Fixture::family(name);
        let all = fixture.model.modules().to_vec();
        let taps = |choice: Modules| {
            let selection = Selection::new(&choice, &all).unwrap();
            let mut taps = Vec::new();
            let visit = &mut |tap: Tap<'_>| {
                taps.push((tap.module.name.clone(), values(tap.activations), values(tap.output_gradients)));
                Ok(())
            };
            fixture.model.taps(&fixture.batch(), &Labels::Sampled { seed: 3 }, &selection, visit).unwrap();
            taps
        };
        let whole = taps(Modules::Named("everything".into()));
        for module in &all {
            let one = taps(Modules::Globs(vec![module.name.clone()]));
            if one.is_empty() {
                assert!(
                    module.routed.is_some() && whole.iter().all(|(name, ..)| *name != module.name),
                    "{}",
                    module.name
                );
                continue;
            }
            assert_eq!(one.len(), 1);
            assert!(whole.contains(&one[0]), "{name}: {}", module.name);
        }
    }
}

/// A sequence alone, and beside a longer one.
#[test]
fn what_stands_beside_a_sequence_changes_nothing() {
    for name in FAMILIES {
        let fixture = Fixture::family(name);
        let together = fixture.model.token_losses(&fixture.batch()).unwrap();
        for (i, ids) in fixture.sequences.iter().enumerate() {
            let mask: Vec<_> = (0..ids.len()).map(|t| t > 0).collect();
            let batch = Batch::new(&[Sequence::new(0, ids, &mask)], &fixture.model.device);
            assert_close(name, &fixture.model.token_losses(&batch).unwrap()[0], &together[i]);
        }
    }
}

/// Learned positions and rotary ones begin anew, and biases on padding reach no segment.
#[test]
fn segments_of_a_row_do_not_see_each_other() {
    for name in FAMILIES {
        let fixture = Fixture::family(name);
        segments_agree_with_sequences(&fixture);
        with_burn_operations(|| segments_agree_with_sequences(&fixture));
    }
}

#[test]
fn mlp_chooses_the_maps_of_every_mlp() {
    for name in FAMILIES {
        let fixture = Fixture::family(name);
        let config = &fixture.model.config;
        let selection = Selection::new(&Modules::Named("mlp".into()), fixture.model.modules()).unwrap();
        let expected: usize = (0..config.num_hidden_layers)
            .map(|layer| match &config.experts {
                Some(experts) if config.layer(layer).experts => {
                    3 * (experts.count + usize::from(experts.shared.is_some()))
                }
                _ if name.starts_with("gpt") || name == "phi3" => 2,
                _ => 3,
            })
            .sum();
        assert_eq!(selection.modules().len(), expected, "{name}");
        let coverage = Coverage::new(&fixture.model.outline, &selection);
        let left: u64 = coverage.unattributed.iter().map(|(_, size)| size).sum();
        assert_eq!(coverage.attributed + left, coverage.total);
        let own: u64 = selection.modules().iter().map(|module| (module.in_features * module.out_features) as u64).sum();
        assert_eq!(coverage.attributed, own, "{name}: weights and biases");
    }
}

#[test]
fn a_config_alone_makes_a_random_model() {
    for name in FAMILIES {
        let fixture = Fixture::family(name);
        let model = Model::random(fixture.model.config.clone(), 1, &fixture.model.device);
        let losses = model.token_losses(&fixture.batch()).unwrap();
        let count = losses.iter().flatten().filter(|&&loss| loss > 0.0).count() as f32;
        let mean = losses.iter().flatten().sum::<f32>() / count;
        assert!((mean - (model.config.vocab_size as f32).ln()).abs() < 0.5, "{name}: {mean}");
    }
}

/// Transposed tensors and those of all experts go back as they came, and so do old names.
#[test]
fn a_checkpoint_is_written_as_it_was_read() {
    for family in ["gpt2", "mixtral", "olmoe", "gpt_oss"] {
        let fixture = Fixture::family(family);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("model.safetensors"), fixture.model.to_safetensors().unwrap()).unwrap();
        std::fs::copy(fixture.folder.join("config.json"), folder.path().join("config.json")).unwrap();
        let again = Model::load(folder.path(), &resolve_device("cpu").unwrap()).unwrap();
        for (name, tensor) in &fixture.model.parameters {
            assert_eq!(values(tensor.clone()), values(again.parameters[name].clone()), "{name}");
        }
    }
}

/// Reduced precision changes every tap, a little, by what the type's significand leaves out.
#[test]
fn taps_in_reduced_precision_stay_close() {
    for (precision, least) in [(Precision::F16, 0.9999), (Precision::Bf16, 0.99)] {
        for name in FAMILIES {
            let fixture = Fixture::family(name);
            let batch = fixture.batch();
            if !precision.runs_on(&fixture.model.device) {
                let error = fixture.model.with_precision(precision).unwrap_err().to_string();
                assert!(error.contains("does not compute in"), "{error}");
                continue;
            }
            let experts_of = fixture.model.config.experts.is_some();
            let (full, losses) = summed(&fixture.model, &batch);
            let (reduced, rounded) = summed(&fixture.model.with_precision(precision).unwrap(), &batch);
            assert_ne!(losses, rounded, "nothing was rounded");
            for (module, full) in &full {
                let what = format!("{name} {module} in {}", precision.name());
                if experts_of && full.iter().all(|&value| value == 0.0) {
                    continue;
                }
                // A token may be routed elsewhere, and gates have kinks.
                let experts = experts_of;
                let least = if experts { 1.0 - 30.0 * (1.0 - least) } else { least };
                let cosine = cosine(full, &reduced[module]);
                assert!(cosine > least && cosine < 1.0, "{what}: {cosine}");
                let size = |gradient: &[f32]| gradient.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                let ratio = size(&reduced[module]) / size(full);
                assert!(
                    (ratio - 1.0).abs() < if experts { 0.3 } else { 0.05 },
                    "{what}: the loss scale is undone, {ratio}"
                );
            }
        }
    }
}
