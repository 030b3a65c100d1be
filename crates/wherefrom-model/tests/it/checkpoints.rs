//! What a checkpoint's files say of each other, and what hostile bytes do.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use tempfile::TempDir;
use wherefrom_model::{BadInput, Batch, Model, Sequence, check, resolve_device, weight_files};

use crate::{fixtures, values};

pub(crate) type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn read(file: &Path) -> Tensors {
    let bytes = std::fs::read(file).unwrap();
    let whole = SafeTensors::deserialize(&bytes).unwrap();
    let tensor =
        |(name, view): (String, TensorView<'_>)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
    whole.tensors().into_iter().map(tensor).collect()
}

fn write(file: &Path, tensors: &Tensors) {
    let view = |(name, (dtype, shape, bytes)): (&String, &(Dtype, Vec<usize>, Vec<u8>))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap().data().to_vec(), *dtype, shape.clone())
    };
    let owned: Vec<_> = tensors.iter().map(view).collect();
    let views =
        owned.iter().map(|(name, bytes, dtype, shape)| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    std::fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A copy of a family's checkpoint, with its tensors changed and its head tied or not.
pub(crate) fn checkpoint(family: &str, tied: bool, change: impl FnOnce(&mut Tensors)) -> TempDir {
    let from = fixtures("families").join(family);
    let folder = TempDir::new().unwrap();
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    config["tie_word_embeddings"] = tied.into();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let mut tensors = read(&from.join("model.safetensors"));
    change(&mut tensors);
    write(&folder.path().join("model.safetensors"), &tensors);
    folder
}

fn logits(folder: &Path) -> Vec<f32> {
    let model = Model::load(folder, &resolve_device("cpu").unwrap()).unwrap();
    let sequence = Sequence::new(0, &[3, 1, 4, 1, 5], &[false, true, true, true, true]);
    values(model.logits(&Batch::new(&[sequence], &model.device)).unwrap())
}

fn refused(folder: &Path) -> String {
    let error = check(folder).unwrap_err();
    assert!(error.is::<BadInput>(), "{error:?}");
    let error = Model::load(folder, &resolve_device("cpu").unwrap()).unwrap_err();
    assert!(error.is::<BadInput>(), "{error:?}");
    error.to_string()
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// As `transformers` 5 does: what is in the file counts.
#[test]
fn a_head_that_differs_from_the_embedding_is_the_head() {
    let untied = checkpoint("llama3", false, |_| {});
    assert!(check(untied.path()).unwrap().is_empty());
    let other = checkpoint("llama3", true, |_| {});
    let notes = check(other.path()).unwrap();
    assert!(notes.len() == 1 && notes[0].contains(HEAD) && notes[0].contains("tie_word_embeddings"), "{notes:?}");
    assert_eq!(logits(other.path()), logits(untied.path()));
}

#[test]
fn a_tied_checkpoint_may_hold_its_tensor_twice_or_under_the_name_of_the_head() {
    let copy = |tensors: &mut Tensors| {
        let embedding = tensors[EMBEDDING].clone();
        tensors.insert(HEAD.into(), embedding);
    };
    let twice = checkpoint("llama3", true, copy);
    let embedding = checkpoint("llama3", true, |tensors| drop(tensors.remove(HEAD)));
    let head = checkpoint("llama3", true, |tensors| {
        copy(tensors);
        tensors.remove(EMBEDDING);
    });
    for folder in [&twice, &embedding, &head] {
        assert!(check(folder.path()).unwrap().is_empty());
        assert_eq!(logits(folder.path()), logits(embedding.path()));
    }
    // The same numbers in another type are the same numbers.
    let wider = checkpoint("llama3", true, |tensors| {
        copy(tensors);
        let (dtype, shape, bytes) = tensors[EMBEDDING].clone();
        let wide = match dtype {
            Dtype::F32 => bytes.clone(),
            Dtype::BF16 => bytes.chunks_exact(2).flat_map(|b| [0, 0, b[0], b[1]]).collect(),
            other => panic!("{other:?}"),
        };
        tensors.insert(HEAD.into(), (Dtype::F32, shape, wide));
    });
    assert!(check(wider.path()).unwrap().is_empty());
    let missing = checkpoint("llama3", false, |tensors| drop(tensors.remove(HEAD)));
    assert!(refused(missing.path()).contains(HEAD));
}

#[test]
fn a_tensor_that_is_there_twice_is_refused_and_one_of_no_use_is_named() {
    let bare = checkpoint("llama3", false, |tensors| {
        let embedding = tensors[EMBEDDING].clone();
        tensors.insert("embed_tokens.weight".into(), embedding);
    });
    assert!(refused(bare.path()).contains("`embed_tokens.weight`"));
    let spare = checkpoint("llama3", false, |tensors| {
        let norm = tensors["model.norm.weight"].clone();
        tensors.insert("model.layers.9.self_attn.q_proj.bias".into(), norm.clone());
        tensors.insert("model.rotary_emb.inv_freq".into(), norm);
    });
    let notes = check(spare.path()).unwrap();
    assert!(notes.len() == 1 && notes[0].contains("model.layers.9.self_attn.q_proj.bias"), "{notes:?}");
}

/// The checkpoint in two shards, as their index names them.
pub(crate) fn sharded(one: &str, two: &str) -> TempDir {
    let folder = checkpoint("llama3", false, |_| {});
    let whole = folder.path().join("model.safetensors");
    let (first, second): (Tensors, Tensors) = read(&whole).into_iter().partition(|(name, _)| name.contains("mlp"));
    std::fs::remove_file(whole).unwrap();
    let mut index = BTreeMap::new();
    for (file, tensors) in [(one, first), (two, second)] {
        index.extend(tensors.keys().map(|name| (name.clone(), file.to_string())));
        let path = folder.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        write(&path, &tensors);
    }
    let index = json!({ "metadata": {}, "weight_map": index });
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    folder
}

#[test]
fn shards_lie_in_the_folder_or_below() {
    let right = logits(checkpoint("llama3", false, |_| {}).path());
    for two in ["two.safetensors", "sub/two.safetensors", "a/b/two.bin"] {
        let folder = sharded("one.safetensors", two);
        assert_eq!(logits(folder.path()), right, "{two}");
        assert_eq!(weight_files(folder.path()).unwrap().len(), 2);
    }
    for two in
        ["../two.safetensors", "sub/../../two.safetensors", "/tmp/two.safetensors", "./two.safetensors", "..", ""]
    {
        let folder = sharded("one.safetensors", "two.safetensors");
        let index = folder.path().join("model.safetensors.index.json");
        let text = std::fs::read_to_string(&index).unwrap().replace("two.safetensors", two);
        std::fs::write(&index, text).unwrap();
        assert!(refused(folder.path()).contains("model.safetensors.index.json"), "{two}");
    }
    // As the cache of the hub has them: links to blobs beside the snapshot.
    #[cfg(unix)]
    {
        let folder = sharded("one.safetensors", "two.safetensors");
        let blobs = TempDir::new().unwrap();
        let file = folder.path().join("two.safetensors");
        std::fs::copy(&file, blobs.path().join("5f3a")).unwrap();
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink(blobs.path().join("5f3a"), &file).unwrap();
        assert_eq!(logits(folder.path()), right);
    }
    let folder = sharded("one.safetensors", "two.safetensors");
    std::fs::copy(folder.path().join("one.safetensors"), folder.path().join("three.safetensors")).unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index).unwrap().replacen("two.safetensors", "three.safetensors", 1);
    std::fs::write(&index, text).unwrap();
    assert!(refused(folder.path()).contains("twice"));
}
