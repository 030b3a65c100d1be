//! Tiny random Llamas against `transformers` in float64 (tests/fixtures/llama/make_fixtures.py).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use safetensors::SafeTensors;
use whence_model::{Batch, Labels, Model, Modules, Selection, Sequence, resolve_device};

/// Float32 against float64.
const TOLERANCE: f32 = 2e-5;

struct Fixture {
    model: Model,
    sequences: Vec<Vec<u32>>,
    floats: BTreeMap<String, Vec<f32>>,
}

impl Fixture {
    fn read(name: &str) -> Self {
        let folder = fixtures();
        let bytes = std::fs::read(folder.join(format!("{name}.safetensors"))).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let words = |name: &str| -> Vec<[u8; 4]> {
            tensors.tensor(name).unwrap().data().chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
        };
        let ids = |i| words(&format!("ids.{i}")).into_iter().map(u32::from_le_bytes).collect();
        let names = tensors.names().into_iter().filter(|name| !name.starts_with("ids"));
        let floats = names.map(|name| (name.to_string(), words(name).into_iter().map(f32::from_le_bytes).collect()));
        let model = Model::load(&folder.join(name), &resolve_device("cpu").unwrap()).unwrap();
        Self { model, sequences: vec![ids(0), ids(1)], floats: floats.collect() }
    }

    /// Both sequences in one batch, the shorter one padded; every token but the first is a target.
    fn batch(&self) -> Batch {
        let masks: Vec<Vec<bool>> = self.sequences.iter().map(|ids| (0..ids.len()).map(|t| t > 0).collect()).collect();
        let sequences: Vec<_> = (self.sequences.iter().zip(&masks).enumerate())
            .map(|(example, (input_ids, target_mask))| Sequence { example: example as u64, input_ids, target_mask })
            .collect();
        Batch::new(&sequences, &self.model.device)
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama")
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
    assert!(scale > 0.0, "{what}: a reference of zeros proves nothing");
    let worst = found.iter().zip(expected).fold(0.0_f32, |max, (x, y)| max.max((x - y).abs())) / scale;
    assert!(worst <= TOLERANCE, "{what}: {worst:.1e}");
}

fn logits_agree(name: &str) {
    let fixture = Fixture::read(name);
    let batch = fixture.batch();
    let width = fixture.model.config.vocab_size;
    let found = values(fixture.model.logits(&batch));
    for (i, ids) in fixture.sequences.iter().enumerate() {
        let start = i * batch.tokens * width;
        assert_close(name, &found[start..start + ids.len() * width], &fixture.floats[&format!("logits.{i}")]);
    }
}

fn gradients_agree(name: &str) {
    let fixture = Fixture::read(name);
    let batch = fixture.batch();
    let (gradients, loss, targets) = fixture.model.parameter_gradients(&batch).unwrap();
    assert_eq!(targets, fixture.sequences.iter().map(|ids| ids.len() - 1).sum::<usize>());
    assert_close("loss", &[loss as f32], &fixture.floats["loss"]);
    let by_token = fixture.model.token_losses(&batch).unwrap();
    assert_close("token losses", &[by_token.iter().flatten().sum()], &fixture.floats["loss"]);
    let expected: Vec<_> = fixture.floats.iter().filter(|(name, _)| name.starts_with("gradient.")).collect();
    assert_eq!(gradients.len(), expected.len());
    for (name, expected) in expected {
        assert_close(name, &values(gradients[&name["gradient.".len()..]].clone()), expected);
    }
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
    let visit = &mut |tap: whence_model::Tap<'_>| {
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
        let sequence =
            |&i: &usize| Sequence { example: i as u64, input_ids: &fixture.sequences[i], target_mask: &masks[i] };
        let batch = Batch::new(&order.iter().map(sequence).collect::<Vec<_>>(), &fixture.model.device);
        fixture.model.taps(&batch, &Labels::Sampled { seed: 7 }, &selection, &mut |_| Ok(())).unwrap()
    };
    let (together, turned) = (losses(&[0, 1]), losses(&[1, 0]));
    assert_close("turned", &turned, &[together[1], together[0]]);
    assert_close("alone", &losses(&[1]), &together[1..]);
}
