//! Leaves: what no step makes. Corpora, tokenizers and checkpoints, identified by their content.

use std::path::{Path, PathBuf};

use anyhow::Result;
use whence_artifact::{MANIFEST, Manifest, Store, bad_input};

/// BLAKE3 over the digests of config.json and of the weights that are read, in name order: model.safetensors, or without
/// it every *.safetensors and their index; the key, where the folder is a `model` artifact.
pub(crate) fn model_digest(store: &Store, folder: &Path) -> Result<String> {
    if folder.join(MANIFEST).exists() {
        return Ok(Manifest::read(folder)?.key);
    }
    let shown = folder.display();
    let children = std::fs::read_dir(folder).map_err(|error| {
        bad_input(format!(
            "the model folder {shown} cannot be read ({error}); download the checkpoint there or mend `path`"
        ))
    })?;
    let mut files: Vec<PathBuf> = Vec::new();
    for child in children {
        let path = child?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name == "config.json" || name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json") {
            files.push(path);
        }
    }
    if files.iter().any(|path| path.ends_with("model.safetensors")) {
        // The whole model: what lies beside it (another program's form of it) is not read.
        files.retain(|path| path.ends_with("config.json") || path.ends_with("model.safetensors"));
    }
    files.sort();
    let has = |ending: &str| files.iter().any(|path| path.to_string_lossy().ends_with(ending));
    if !has("config.json") {
        return Err(bad_input(format!("the model folder {shown} has no config.json; give a Hugging Face checkpoint")));
    }
    if !has(".safetensors") {
        return Err(whence_model::no_safetensors(folder));
    }
    let mut digest = blake3::Hasher::new();
    for file in files {
        digest.update(store.leaf(&file)?.as_bytes());
    }
    Ok(digest.finalize().to_hex().to_string())
}
