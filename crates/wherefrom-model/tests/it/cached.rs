//! Text token by token, with keys and values that are kept, is the text of a whole pass.

use burn::tensor::{Tensor, TensorData};
use wherefrom_linalg::random::uniform;
use wherefrom_model::{Addition, At, Batch, Model, Sequence, resolve_device};

use crate::families::FAMILIES;
use crate::{DEVICE, Fixture, assert_close, fixtures, reference, values};

/// Logits of every position of whole sequences.
fn whole(model: &Model, sequences: &[&[u32]]) -> Vec<Vec<f32>> {
    let masks: Vec<_> = sequences.iter().map(|ids| vec![false; ids.len()]).collect();
    let rows: Vec<_> = sequences.iter().zip(&masks).map(|(ids, mask)| Sequence::new(0, ids, mask)).collect();
    let batch = Batch::new(&rows, &model.device);
    let (all, width) = (values(model.logits(&batch).unwrap()), model.config.vocab_size);
    batch.tokens.sequences.iter().map(|rows| all[rows.start * width..rows.end * width].to_vec()).collect()
}

#[test]
fn steps_are_the_whole_pass_for_every_family_in_batches_of_any_rows() {
    for name in FAMILIES {
        let Fixture { model, sequences, .. } = Fixture::family(name);
        let width = model.config.vocab_size;
        // A third row, and prompts of unlike lengths: rows end at different steps.
        let rows: Vec<&[u32]> = vec![&sequences[0], &sequences[1], &sequences[0][..sequences[0].len().min(5)]];
        let expected = whole(&model, &rows);
        let prompts = [2, 3, 1];
        let ids: Vec<&[u32]> = rows.iter().zip(prompts).map(|(ids, prompt)| &ids[..prompt]).collect();
        let (mut cache, mut logits) = model.prefill(&ids, &[&[], &[], &[]]).unwrap();
        let mut open: Vec<usize> = (0..rows.len()).collect();
        let mut lengths = prompts.to_vec();
        loop {
            let found = values(logits);
            for (place, &row) in open.iter().enumerate() {
                let at = lengths[row] - 1;
                let expected = &expected[row][at * width..(at + 1) * width];
                assert_close(
                    &format!("{name} row {row} token {at}"),
                    &found[place * width..(place + 1) * width],
                    expected,
                );
            }
            let left: Vec<_> =
                (0..open.len()).filter(|&place| lengths[open[place]] < rows[open[place]].len()).collect();
            if left.is_empty() {
                break;
            }
            open = left.iter().map(|&place| open[place]).collect();
            let next: Vec<_> = open.iter().map(|&row| rows[row][lengths[row]]).collect();
            open.iter().for_each(|&row| lengths[row] += 1);
            cache.keep(&left);
            logits = model.step(&mut cache, &next).unwrap();
        }
    }
}

/// What is added to the stream at chosen positions is the same with kept keys and values as in a whole pass, and nothing is added
/// elsewhere.
#[test]
fn additions_are_the_same_with_kept_keys_and_values() {
    let Fixture { model, sequences, .. } = Fixture::family("qwen3");
    let (ids, width) = (&sequences[0][..], model.config.vocab_size);
    let vector: Vec<f32> = (0..model.config.hidden_size).map(|i| if i % 3 == 0 { 0.5 } else { -0.25 }).collect();
    let prompt = 4;
    let plain = whole(&model, &[ids]).remove(0);
    for at in [At::Response, At::AfterPrompt, At::Prompt, At::All] {
        let addition = [Addition { site: 1, at, vector: vector.clone() }];
        let mask = vec![false; ids.len()];
        let batch = Batch::new(&[Sequence::new(0, ids, &mask)], &model.device).steered(&[&addition], &[0], &[prompt]);
        let expected = values(model.logits(&batch).unwrap());
        let (mut cache, mut logits) = model.prefill(&[&ids[..prompt]], &[&addition]).unwrap();
        for end in prompt..=ids.len() {
            let found = values(logits.clone());
            assert_close(&format!("{at:?} token {}", end - 1), &found, &expected[(end - 1) * width..end * width]);
            if end < ids.len() {
                logits = model.step(&mut cache, &[ids[end]]).unwrap();
            }
        }
        // The first position that is steered is the first whose logits differ.
        let differs =
            (0..ids.len()).find(|t| plain[t * width..(t + 1) * width] != expected[t * width..(t + 1) * width]);
        let first = match at {
            At::Response => prompt - 1,
            At::AfterPrompt => prompt,
            At::Prompt | At::All => 0,
        };
        assert_eq!(differs, Some(first), "{at:?}");
    }
}

/// Against float64 (tests/fixtures/persona/README.md): logits of whole rows, and what is written greedily.
#[test]
fn steering_is_that_of_float64() {
    let folder = fixtures("persona");
    let model = Model::load(&folder.join("model"), &resolve_device(DEVICE).unwrap()).unwrap();
    let (floats, _) = reference(&folder.join("steering.safetensors"));
    let text = std::fs::read_to_string(folder.join("further.jsonl")).unwrap();
    let rows: Vec<Vec<u32>> = text
        .lines()
        .skip(3)
        .take(3)
        .map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            serde_json::from_value(row["input_ids"].clone()).unwrap()
        })
        .collect();
    let modes = [
        ("none", None),
        ("all", Some(At::All)),
        ("response", Some(At::Response)),
        ("after", Some(At::AfterPrompt)),
        ("prompt", Some(At::Prompt)),
    ];
    for (mode, (name, at)) in modes.into_iter().enumerate() {
        let additions: Vec<_> =
            at.map(|at| Addition { site: 3, at, vector: floats["v"].clone() }).into_iter().collect();
        for (row, ids) in rows.iter().enumerate() {
            let prompt = floats["n_prompt"][row] as usize;
            if let Some(expected) = floats.get(&format!("f{}/{name}", row + 3)) {
                let mask = vec![false; ids.len()];
                let batch = Batch::new(&[Sequence::new(0, ids, &mask)], &model.device);
                let batch = batch.steered(&[&additions], &[0], &[prompt]);
                assert_close(&format!("f{}/{name}", row + 3), &values(model.logits(&batch).unwrap()), expected);
            }
            let (mut cache, mut logits) = model.prefill(&[&ids[..prompt]], &[&additions]).unwrap();
            let mut written = Vec::new();
            for _ in 0..12 {
                let logit = values(logits);
                let next = (0..logit.len()).max_by(|&one, &other| logit[one].total_cmp(&logit[other])).unwrap();
                written.push(next as f32);
                logits = model.step(&mut cache, &[next as u32]).unwrap();
            }
            assert_eq!(written, floats["continuations"][(row * 5 + mode) * 12..][..12], "f{}/{name}", row + 3);
        }
    }
}

/// What training through them needs: the loss's gradient by every parameter, against central differences with a Richardson step. Along
/// one half of a gradient's entries, drawn by chance, and along the other the loss changes by the squared length of that half.
#[test]
fn gradients_through_additions_and_ablations_are_those_of_differences() {
    let Fixture { mut model, sequences, .. } = Fixture::family("qwen3");
    let ids = &sequences[0];
    let mask: Vec<_> = (0..ids.len()).map(|t| t > 0).collect();
    let vector: Vec<f32> = (0..model.config.hidden_size).map(|i| (i as f32 * 0.7).sin()).collect();
    let plain = || Batch::new(&[Sequence::new(0, ids, &mask)], &model.device);
    let zeros = plain().ablating(1, &vec![0.0; vector.len()]).unwrap_err().to_string();
    assert!(zeros.contains("no direction"), "{zeros}");
    let changed = [
        ("nothing", plain()),
        ("addition", plain().adding(1, &vector)),
        ("ablation", plain().ablating(1, &vector).unwrap()),
        ("both", plain().adding(1, &vector).ablating(2, &vector).unwrap()),
    ];
    let own: Vec<f64> = changed.iter().map(|(_, batch)| summed_loss(&model, batch)).collect();
    assert!((1..4).all(|one| (0..one).all(|other| (own[one] - own[other]).abs() > 1e-2)), "each is another: {own:?}");
    for (kind, batch) in changed {
        let (gradients, ..) = model.parameter_gradients(&batch).unwrap();
        let mut worst = (0.0, String::new());
        for (name, gradient) in &gradients {
            let shape = gradient.shape();
            let whole = values(gradient.clone());
            for half in [true, false] {
                let masked = |(place, &value): (usize, &f32)| {
                    if (uniform(7, 0, place as u64) < 0.5) == half { value } else { 0.0 }
                };
                let direction: Vec<f32> = whole.iter().enumerate().map(masked).collect();
                let length = direction.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
                // A change of the loss that is far above its rounding.
                let step = 0.1 / length;
                let slope = |model: &mut Model, step: f64| {
                    let old = model.parameters[name].clone();
                    let by = Tensor::<2>::from_data(TensorData::new(direction.clone(), shape.clone()), &model.device);
                    let mut at = |scale: f64| {
                        model.parameters.insert(name.clone(), old.clone() + by.clone() * scale);
                        summed_loss(model, &batch)
                    };
                    let slope = (at(step) - at(-step)) / (2.0 * step);
                    model.parameters.insert(name.clone(), old);
                    slope
                };
                let [wide, narrow] = [step, step / 2.0].map(|step| slope(&mut model, step));
                let error = ((4.0 * narrow - wide) / 3.0 / length - 1.0).abs();
                if error > worst.0 {
                    worst = (error, name.clone());
                }
            }
        }
        assert!(worst.0 < 2e-3, "{kind}: {worst:?}");
    }
}

fn summed_loss(model: &Model, batch: &Batch) -> f64 {
    model.token_losses(batch).unwrap().concat().iter().map(|&loss| f64::from(loss)).sum()
}
