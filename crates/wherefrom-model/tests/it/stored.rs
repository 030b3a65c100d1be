//! Weights that stay in their files: the same numbers bit for bit, and a file that changes under way is refused.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use burn::tensor::Tensor;
use safetensors::Dtype;
use serde_json::Value;
use tempfile::TempDir;
use wherefrom_model::{
    BadInput, Batch, Footprint, Labels, Model, Modules, Precision, STORED, Selection, Sequence, Site, Sizes, Tap,
    resolve_device, stored_type,
};

use crate::DEVICE;
use crate::checkpoints::{Tensors, checkpoint};

/// Tied and untied heads, fused and separate maps, transposed ones, learned positions, biases, norms of heads.
const FAMILIES: [(&str, bool); 8] = [
    ("gemma", true),
    ("gpt2", true),
    ("gpt2_untied", false),
    ("gpt_neox", false),
    ("gpt_neox_sequential", true),
    ("llama3", false),
    ("olmo2", false),
    ("qwen3", false),
];

/// Every tensor in another type; of a float32 the upper half is a bfloat16.
fn stored_as(dtype: Dtype) -> impl Fn(&mut Tensors) {
    move |tensors| {
        for (from, _, bytes) in tensors.values_mut() {
            let wide: Vec<f32> = match from {
                Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
                Dtype::BF16 => bytes.chunks_exact(2).map(|b| f32::from_le_bytes([0, 0, b[0], b[1]])).collect(),
                other => panic!("{other:?}"),
            };
            *bytes = match dtype {
                Dtype::F32 => wide.iter().flat_map(|value| value.to_le_bytes()).collect(),
                Dtype::F16 => wide.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect(),
                _ => wide.iter().flat_map(|value| value.to_le_bytes()[2..].to_vec()).collect(),
            };
            *from = dtype;
        }
    }
}

/// In float32, of whatever precision.
fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec().unwrap()
}

fn batch(model: &Model) -> Batch {
    let (ids, targets) = ([3, 1, 4, 1, 5, 9, 2, 6], [false, true, true, true, true, true, true, true]);
    let sequences = [Sequence::new(0, &ids, &targets), Sequence::new(1, &ids[2..5], &targets[..3])];
    Batch::new(&sequences, &model.device)
}

/// Everything that a model makes of a batch.
fn made(model: &Model) -> Vec<Vec<f32>> {
    let batch = batch(model);
    let mut made = vec![values(model.logits(&batch).unwrap()), values(model.next_token_logits(&batch).unwrap())];
    made.extend(model.token_losses(&batch).unwrap());
    let all = Selection::new(&Modules::Named("all".into()), model.modules()).unwrap();
    // The last alone, with blocks before it that are computed again.
    let last = all.only(&[all.modules().len() - 1]);
    for selection in [all, last] {
        let losses = model.taps(&batch, &Labels::Sampled { seed: 3 }, &selection, &mut |tap: Tap<'_>| {
            made.extend([values(tap.activations), values(tap.output_gradients)]);
            Ok(())
        });
        made.push(losses.unwrap());
    }
    let sites = Site::all(model.config.num_hidden_layers);
    model
        .residual_streams(&batch, &sites, &mut |_, stream| {
            made.push(values(stream));
            Ok(())
        })
        .unwrap();
    let (gradients, losses, _) = model.parameter_gradients(&batch).unwrap();
    made.extend(gradients.into_values().map(values));
    made.push(losses.into_iter().map(|loss| loss as f32).collect());
    made
}

fn opened(folder: &Path) -> Model {
    Model::open(folder, &resolve_device(DEVICE).unwrap()).unwrap()
}

#[test]
fn weights_that_are_read_where_they_are_needed_give_the_same_bits() {
    for (family, tied) in FAMILIES {
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
            let folder = checkpoint(family, tied, stored_as(dtype));
            let (stored, held) = (opened(folder.path()), opened(folder.path()).held().unwrap());
            assert!(stored.parameters.len() < held.parameters.len(), "matrices are in their file");
            let expected = made(&Model::load(folder.path(), &stored.device).unwrap());
            assert_eq!(made(&stored), expected, "{family}, {dtype:?}");
            assert_eq!(made(&held), expected, "{family}, {dtype:?}");
            if stored.device == resolve_device("cpu").unwrap() {
                assert_eq!(types(&held), BTreeSet::from([bytes_of(dtype)]), "{family}: as they are in the file");
            }
        }
    }
}

/// Bytes of the numbers of the matrices that are held.
fn types(model: &Model) -> BTreeSet<usize> {
    let matrices = model.outline.tensors().iter().filter(|shape| shape.sizes.len() == 2);
    matrices.map(|shape| model.parameters[&shape.name].dtype().size()).collect()
}

fn bytes_of(dtype: Dtype) -> usize {
    if dtype == Dtype::F32 { 4 } else { 2 }
}

/// The weights are rounded on their way, as they are where all are in memory.
#[test]
fn so_do_they_in_reduced_precision() {
    let folder = checkpoint("llama3", false, stored_as(Dtype::F32));
    for precision in Precision::ALL.into_iter().filter(|precision| precision.runs_on(&resolve_device(DEVICE).unwrap()))
    {
        let stored = opened(folder.path()).with_precision(precision).unwrap();
        let before = made(&opened(folder.path()).held().unwrap().with_precision(precision).unwrap());
        assert_eq!(made(&stored), before, "{precision:?}");
        let held = stored.held().unwrap();
        assert_eq!(made(&held), before, "{precision:?}");
        assert_eq!(types(&held), BTreeSet::from([if precision == Precision::F32 { 4 } else { 2 }]));
    }
}

/// Cut short, overwritten in place, and replaced: what lies under the name counts only if it is what was opened.
#[test]
fn a_file_that_changes_under_way_is_refused() {
    let change = |change: &dyn Fn(&Path)| {
        let folder = checkpoint("gpt_neox", false, |_| {});
        let model = opened(folder.path());
        let before = made(&model);
        // The clock of a file system may tick every hundredth of a second.
        std::thread::sleep(std::time::Duration::from_millis(50));
        change(&folder.path().join("model.safetensors"));
        let batch = batch(&model);
        let outcomes = [
            model.logits(&batch).map(values),
            model.token_losses(&batch).map(|losses| losses.concat()),
            model.clone().held().map(|_| Vec::new()),
        ];
        (before[0].clone(), outcomes, folder)
    };
    let cut = |path: &Path| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    };
    let overwritten = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        let other: Vec<u8> = bytes.iter().rev().copied().collect();
        fs::write(path, other).unwrap();
    };
    for changed in [&cut as &dyn Fn(&Path), &overwritten] {
        let (_, outcomes, folder) = change(changed);
        for outcome in outcomes {
            let error = outcome.unwrap_err();
            assert!(error.is::<BadInput>(), "{error:?}");
            let error = error.to_string();
            let file = folder.path().join("model.safetensors");
            assert!(error.contains("changed while it was read") && error.contains(&*file.to_string_lossy()), "{error}");
        }
    }
    // Another file under the same name: the one that was opened is still what it was.
    let renamed = |path: &Path| {
        fs::write(path.with_extension("new"), b"another").unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    };
    let (before, [logits, ..], _) = change(&renamed);
    assert_eq!(logits.unwrap(), before);
}

#[test]
fn a_matrix_that_holds_no_number_is_refused_where_it_is_read() {
    let name = "model.layers.0.mlp.up_proj.weight";
    let folder = checkpoint("llama3", false, |tensors| {
        stored_as(Dtype::F32)(tensors);
        tensors.get_mut(name).unwrap().2[4 * 5..4 * 6].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let model = opened(folder.path());
    for error in [model.logits(&batch(&model)).map(drop).unwrap_err(), model.held().map(drop).unwrap_err()] {
        assert!(
            error.is::<BadInput>() && error.to_string().contains(&format!("`{name}` holds NaN at index 5")),
            "{error}"
        );
    }
}

/// Bytes: matrices and vectors by hand.
#[test]
fn weights_are_in_memory_where_the_limit_allows() {
    let folder: TempDir = checkpoint("gpt2", true, |_| {});
    let model = opened(folder.path());
    let held = Footprint::new(&model.outline, 64);
    let sizes = |of: &dyn Fn(&[usize]) -> bool| {
        let tensors = model.outline.tensors().iter().filter(|shape| of(&shape.sizes));
        tensors.map(|shape| shape.sizes.iter().product::<usize>() as u64).collect::<Vec<_>>()
    };
    let (vectors, matrices) = (sizes(&|sizes| sizes.len() == 1), sizes(&|sizes| sizes.len() == 2));
    assert_eq!(held.weight_bytes(), 4 * (vectors.iter().sum::<u64>() + matrices.iter().sum::<u64>()));
    assert_eq!(held.by_block().weight_bytes(), 4 * (vectors.iter().sum::<u64>() + matrices.iter().max().unwrap()));
    let limit = held.total() + 1000;
    assert!(held.fitting(Some(limit), 1000).holds_weights && held.fitting(None, 1000).holds_weights);
    assert!(!held.fitting(Some(limit), 1001).holds_weights);
    assert_eq!(model.footprint(64), held.by_block());
    let placed = |beside| model.clone().fitting(64, Some(limit), beside).unwrap().footprint(64);
    assert_eq!((placed(1000), placed(1001)), (held, held.by_block()));

    // In 16 bits a number, and in float32 that matrix which a product takes.
    let folder = checkpoint("gpt2", true, stored_as(Dtype::BF16));
    let model = opened(folder.path());
    let (matrices, vectors) = (matrices.iter().sum::<u64>(), vectors.iter().sum::<u64>());
    let footprint = model.clone().held().unwrap().footprint(64);
    assert_eq!(footprint.weight_bytes(), 2 * matrices + 4 * vectors + footprint.widened);
    assert_eq!(footprint.widened, held.by_block().weight_bytes() - 4 * vectors);
    let rounded = model.with_precision(Precision::Bf16).unwrap().held().unwrap().footprint(64);
    assert_eq!(rounded.weight_bytes(), 2 * matrices + 4 * vectors);
    // What a plan knows of it.
    let mut config: Value = serde_json::from_slice(&fs::read(folder.path().join("config.json")).unwrap()).unwrap();
    config[STORED] = stored_type(folder.path()).unwrap().into();
    let planned = |precision| Sizes::new(&config, &Value::Null, 64).unwrap().held(precision, true).footprint;
    assert_eq!((planned(Precision::F32), planned(Precision::Bf16)), (footprint, rounded));
}
