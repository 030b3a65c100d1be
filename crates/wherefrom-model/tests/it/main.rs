//! Tiny random Llamas against `transformers` in float64 (tests/fixtures/llama/make_fixtures.py).

mod adapters;
mod cached;
mod checkpoints;
mod configs;
mod families;
mod fuzz;
mod outside;
mod stored;
mod streams;
mod tangents;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use safetensors::SafeTensors;
use wherefrom_linalg::test_support::with_burn_operations;
use wherefrom_model::{Batch, Labels, Model, Modules, Preference, Selection, Sequence, resolve_device};

/// Float32 against float64.
const TOLERANCE: f32 = 2e-5;

/// The same tests run on the first adapter of a build that can reach one (`just test-gpu`).
const DEVICE: &str = if cfg!(feature = "wgpu") { "gpu:0" } else { "cpu" };

struct Fixture {
    folder: PathBuf,
    model: Model,
    sequences: Vec<Vec<u32>>,
    floats: BTreeMap<String, Vec<f32>>,
}

impl Fixture {
    fn read(name: &str) -> Self {
        let folder = fixtures("llama");
        let (floats, ids) = reference(&folder.join(format!("{name}.safetensors")));
        Self::new(folder.join(name), ids, floats)
    }

    /// One of `families`, with the first rows of their corpus.
    fn family(name: &str) -> Self {
        let folder = fixtures("families");
        let (floats, _) = reference(&folder.join(format!("{name}.safetensors")));
        let rows = std::fs::read_to_string(folder.join("train.jsonl")).unwrap();
        let ids = |row: &str| {
            serde_json::from_value(serde_json::from_str::<serde_json::Value>(row).unwrap()["input_ids"].clone())
                .unwrap()
        };
        Self::new(folder.join(name), rows.lines().take(2).map(ids).collect(), floats)
    }

    fn new(folder: PathBuf, sequences: Vec<Vec<u32>>, floats: BTreeMap<String, Vec<f32>>) -> Self {
        let model = Model::load(&folder, &resolve_device(DEVICE).unwrap()).unwrap();
        Self { folder, model, sequences, floats }
    }

    /// The gradient of every parameter, and the losses.
    fn gradients_agree(&self, name: &str) {
        let (gradients, losses, targets) = self.model.parameter_gradients(&self.batch()).unwrap();
        assert_eq!(targets, self.sequences.iter().map(|ids| ids.len() - 1).sum::<usize>());
        let by_token = self.model.token_losses(&self.batch()).unwrap();
        let expected: Vec<f32> = by_token.iter().map(|losses| losses.iter().sum()).collect();
        assert_close("losses", &losses.iter().map(|&loss| loss as f32).collect::<Vec<_>>(), &expected);
        let expected: Vec<_> = self.floats.iter().filter(|(name, _)| name.starts_with("gradient.")).collect();
        assert_eq!(gradients.len(), expected.len(), "{name}");
        for (parameter, expected) in expected {
            let parameter = &parameter["gradient.".len()..];
            // `transformers` 5 calls the head of GPT-NeoX so, and writes it under its old name.
            let own =
                if name.starts_with("gpt_neox") { parameter.replace("lm_head", "embed_out") } else { parameter.into() };
            let mut found = gradients[&own].clone();
            if self.transposed(&own) {
                found = found.transpose();
            }
            let found = values(found);
            assert_close_or_zero(&format!("{name} {own}"), &found, expected);
        }
    }

    fn transposed(&self, name: &str) -> bool {
        self.model.outline.tensors().iter().any(|shape| shape.name == name && shape.transposed)
    }

    /// Both sequences, of different lengths, in one batch; every token but the first is a target.
    fn batch(&self) -> Batch {
        let masks: Vec<Vec<bool>> = self.sequences.iter().map(|ids| (0..ids.len()).map(|t| t > 0).collect()).collect();
        let sequences: Vec<_> = (self.sequences.iter().zip(&masks).enumerate())
            .map(|(example, (ids, mask))| Sequence::new(example as u64, ids, mask))
            .collect();
        Batch::new(&sequences, &self.model.device)
    }
}

fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// Tensors of floats by name, and the two sequences where the file has them.
fn reference(path: &Path) -> (BTreeMap<String, Vec<f32>>, Vec<Vec<u32>>) {
    let bytes = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Vec<[u8; 4]> {
        tensors.tensor(name).unwrap().data().chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
    };
    let names = tensors.names();
    let (ids, floats): (Vec<_>, Vec<_>) =
        names.into_iter().filter(|name| !name.starts_with("scores")).partition(|name| name.starts_with("ids"));
    let floats =
        floats.into_iter().map(|name| (name.to_string(), words(name).into_iter().map(f32::from_le_bytes).collect()));
    let mut ids: Vec<_> = ids;
    ids.sort_unstable();
    let ids = ids.into_iter().map(|name| words(name).into_iter().map(u32::from_le_bytes).collect()).collect();
    (floats.collect(), ids)
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    assert_within(TOLERANCE, what, found, expected);
}

/// The same where a reference of zeros is right: of an expert that saw no token, or none that matters, and of the bias of keys that
/// are not turned.
fn assert_close_or_zero(what: &str, found: &[f32], expected: &[f32]) {
    let nothing = |values: &[f32], most: f32| values.iter().all(|value| value.abs() <= most);
    match nothing(expected, 1e-12) && (what.contains(".experts.") || what.contains("k_proj.bias")) {
        true => assert!(nothing(found, if what.contains(".experts.") { 0.0 } else { 1e-5 }), "{what}"),
        false => assert_close(what, found, expected),
    }
}

fn assert_within(tolerance: f32, what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
    assert!(scale > 0.0, "{what}: a reference of zeros proves nothing");
    let worst = found.iter().zip(expected).fold(0.0_f32, |max, (x, y)| max.max((x - y).abs())) / scale;
    assert!(worst <= tolerance, "{what}: {worst:.1e}");
}

fn logits_agree(name: &str) {
    let fixture = Fixture::read(name);
    let batch = fixture.batch();
    let width = fixture.model.config.vocab_size;
    let found = values(fixture.model.logits(&batch).unwrap());
    for (i, ids) in fixture.sequences.iter().enumerate() {
        let rows = batch.tokens.sequences.of(i);
        assert_eq!(rows.len(), ids.len());
        assert_close(name, &found[rows.start * width..rows.end * width], &fixture.floats[&format!("logits.{i}")]);
    }
}

fn gradients_agree(name: &str) {
    let fixture = Fixture::read(name);
    fixture.gradients_agree(name);
    let by_token = fixture.model.token_losses(&fixture.batch()).unwrap();
    assert_close("token losses", &[by_token.iter().flatten().sum()], &fixture.floats["loss"]);
}

#[test]
fn bfloat16_shards_with_grouped_queries_and_an_untied_head_agree() {
    logits_agree("sharded");
    gradients_agree("sharded");
}

#[test]
fn float16_with_a_tied_head_agrees() {
    logits_agree("half");
    gradients_agree("half");
}

/// What every stage rests on: sum_t d_t a_t^T of the taps is the module's gradient.
#[test]
fn taps_make_the_gradient_of_every_module() {
    let fixture = Fixture::read("sharded");
    let selection = Selection::new(&Modules::Named("all".into()), fixture.model.modules()).unwrap();
    let mut seen = 0;
    let visit = &mut |tap: wherefrom_model::Tap<'_>| {
        let gradient = values(tap.output_gradients.transpose().matmul(tap.activations));
        let name = format!("gradient.{}.weight", tap.module.name);
        assert_close(&name, &gradient, &fixture.floats[&name]);
        seen += 1;
        Ok(())
    };
    let losses = fixture.model.taps(&fixture.batch(), &Labels::Empirical, &selection, visit).unwrap();
    assert_eq!(seen, 14);
    assert_close("loss", &[losses.iter().sum()], &fixture.floats["loss"]);
}

/// Labels are hashed from (seed, example, position): neither the batch nor its order matters.
#[test]
fn sampled_labels_do_not_depend_on_the_batch() {
    let fixture = Fixture::read("half");
    let selection = Selection::new(&Modules::Named("mlp".into()), fixture.model.modules()).unwrap();
    let losses = |order: &[usize]| {
        let masks: Vec<Vec<bool>> =
            fixture.sequences.iter().map(|ids| (0..ids.len()).map(|t| t > 0).collect()).collect();
        let sequence = |&i: &usize| Sequence::new(i as u64, &fixture.sequences[i], &masks[i]);
        let batch = Batch::new(&order.iter().map(sequence).collect::<Vec<_>>(), &fixture.model.device);
        fixture.model.taps(&batch, &Labels::Sampled { seed: 7 }, &selection, &mut |_| Ok(())).unwrap()
    };
    let (together, turned) = (losses(&[0, 1]), losses(&[1, 0]));
    assert_close("turned", &turned, &[together[1], together[0]]);
    assert_close("alone", &losses(&[1]), &together[1..]);
    assert_close("drawn on a device", &with_burn_operations(|| losses(&[0, 1])), &together);
}

/// Gradient of every module, summed over a batch, and the loss of each sequence.
fn summed(model: &Model, batch: &Batch) -> (BTreeMap<String, Vec<f32>>, Vec<f32>) {
    let selection = Selection::new(&Modules::Named("all".into()), model.modules()).unwrap();
    let mut gradients = BTreeMap::new();
    let visit = &mut |tap: wherefrom_model::Tap<'_>| {
        let gradient = values(tap.output_gradients.transpose().matmul(tap.activations));
        gradients.insert(tap.module.name.clone(), gradient);
        Ok(())
    };
    let losses = model.taps(batch, &Labels::Empirical, &selection, visit).unwrap();
    (gradients, losses)
}

fn cosine(x: &[f32], y: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
    dot(x, y) / (dot(x, x) * dot(y, y)).sqrt()
}

/// Segments in one row are what they are alone, whatever stands beside them: logits, losses, weighted gradients; on both
/// paths of the kernels.
fn segments_agree_with_sequences(fixture: &Fixture) {
    let Fixture { model, sequences, .. } = fixture;
    let (first, second) = (&sequences[0][..], &sequences[1][..]);
    let parts = [second, &first[..3], first];
    let weights = [1.0_f32, -2.0, 0.25];
    let ids: Vec<u32> = parts.concat();
    let starts = [0, second.len() as u32, second.len() as u32 + 3];
    let mask: Vec<bool> = (0..ids.len() as u32).map(|t| !starts.contains(&t)).collect();
    let packed = Sequence {
        example: 0,
        input_ids: &ids,
        target_mask: &mask,
        segments: &starts,
        weights: &weights,
        preference: None,
    };
    // Beside it a plain sequence of another length.
    let plain_mask: Vec<bool> = (0..first.len()).map(|t| t > 0).collect();
    let plain = Sequence::new(1, first, &plain_mask);
    let batch = Batch::new(&[packed, plain], &model.device);
    let alone = |ids: &[u32]| {
        let mask: Vec<bool> = (0..ids.len()).map(|t| t > 0).collect();
        Batch::new(&[Sequence::new(0, ids, &mask)], &model.device)
    };

    let width = model.config.vocab_size;
    let logits: Vec<f32> = parts.iter().flat_map(|ids| values(model.logits(&alone(ids)).unwrap())).collect();
    assert_close("logits", &values(model.logits(&batch).unwrap())[..ids.len() * width], &logits);

    let (gradients, losses) = summed(model, &batch);
    let mut expected: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut loss = 0.0;
    for (ids, weight) in parts.iter().chain([&first]).zip(weights.iter().chain([&1.0])) {
        let (own, own_loss) = summed(model, &alone(ids));
        for (name, own) in own {
            let sum = expected.entry(name).or_insert_with(|| vec![0.0; own.len()]);
            sum.iter_mut().zip(own).for_each(|(sum, value)| *sum += f64::from(*weight) * f64::from(value));
        }
        loss += weight * own_loss[0];
    }
    assert_close("loss", &[losses.iter().sum()], &[loss]);
    assert_eq!(gradients.len(), expected.len());
    for (name, expected) in expected {
        let expected: Vec<_> = expected.into_iter().map(|value| value as f32).collect();
        assert_close_or_zero(&name, &gradients[&name], &expected);
    }
    let by_token = model.token_losses(&batch).unwrap();
    let own: Vec<f32> = parts.iter().flat_map(|ids| model.token_losses(&alone(ids)).unwrap().remove(0)).collect();
    assert_close("token losses", &by_token[0], &own);
}

#[test]
fn segments_of_a_row_do_not_see_each_other() {
    for name in ["sharded", "half"] {
        let fixture = Fixture::read(name);
        segments_agree_with_sequences(&fixture);
        with_burn_operations(|| segments_agree_with_sequences(&fixture));
    }
}

/// The loss of a pair is -log sigmoid(beta (log p(chosen) - log p(rejected) - margin)), and its gradient that of the contrast
/// times what the chain rule says; drawn labels draw which answer is preferred.
#[test]
fn a_pair_of_a_preference_has_the_loss_of_dpo() {
    let Fixture { model, sequences, .. } = &Fixture::read("sharded");
    let (chosen, rejected) = (&sequences[0][..], &sequences[1][..]);
    let ids = [chosen, rejected].concat();
    let starts = [0, chosen.len() as u32];
    let mask: Vec<bool> = (0..ids.len() as u32).map(|t| !starts.contains(&t)).collect();
    let plain_mask: Vec<bool> = (0..chosen.len()).map(|t| t > 0).collect();
    let plain = Sequence::new(9, chosen, &plain_mask);
    let (beta, margin) = (0.3_f32, 2.5_f32);
    let pair = |example: u64, preference| Sequence {
        example,
        input_ids: &ids,
        target_mask: &mask,
        segments: &starts,
        weights: &[1.0, -1.0],
        preference,
    };
    let preference = Some(Preference { beta, margin });
    let (contrast, loss) = summed(model, &Batch::new(&[pair(0, None)], &model.device));
    let (alone, _) = summed(model, &Batch::new(&[plain], &model.device));
    let difference = f64::from(beta) * (f64::from(-loss[0]) - f64::from(margin));
    let chosen = 1.0 / (1.0 + (-difference).exp());

    // Beside a plain sequence, which keeps its own loss.
    let batch = Batch::new(&[pair(0, preference), plain], &model.device);
    let (gradients, losses) = summed(model, &batch);
    assert!((f64::from(losses[0]) + chosen.ln()).abs() < 1e-5, "{losses:?} {chosen}");
    for (name, own) in &gradients {
        let factor = f64::from(beta) * (1.0 - chosen);
        let sum =
            contrast[name].iter().zip(&alone[name]).map(|(&pair, &plain)| (factor * f64::from(pair)) as f32 + plain);
        assert_close(name, own, &sum.collect::<Vec<_>>());
    }
    let (parameters, own, _) = model.parameter_gradients(&batch).unwrap();
    assert!((own[0] - f64::from(losses[0])).abs() < 1e-5 && !parameters.is_empty());
    let by_token = model.token_losses(&batch).unwrap();
    assert!(by_token[0].iter().all(|&loss| loss >= 0.0), "tokens have their own losses");

    // Of many draws as many prefer the chosen one as the model does.
    let many: Vec<_> = (0..400).map(|example| pair(example, preference)).collect();
    let selection = Selection::new(&Modules::default(), model.modules()).unwrap();
    let drawn = many.chunks(20).flat_map(|pairs| {
        let batch = Batch::new(pairs, &model.device);
        model.taps(&batch, &Labels::Sampled { seed: 3 }, &selection, &mut |_| Ok(())).unwrap()
    });
    let drawn: Vec<f64> = drawn.map(f64::from).collect();
    let preferred = drawn.iter().filter(|&&loss| (loss + chosen.ln()).abs() < 1e-4).count();
    assert!(drawn.iter().all(|&loss| (loss + chosen.ln()).abs() < 1e-4 || (loss + (1.0 - chosen).ln()).abs() < 1e-4));
    assert!((preferred as f64 / 400.0 - chosen).abs() < 0.1, "{preferred} of 400 at {chosen}");
    // A Gauss-Newton product is not made for it.
    let refused = model.linearised(&batch, &selection).err().unwrap().to_string();
    assert!(refused.contains("example 0") && refused.contains("DPO"), "{refused}");
}
