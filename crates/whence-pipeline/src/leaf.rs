//! Leaves: what no step makes. Corpora, tokenizers and checkpoints, identified by their content.

use std::path::{Path, PathBuf};

use anyhow::Result;
use whence_artifact::{MANIFEST, Manifest, Store, bad_input};

/// BLAKE3 over the digests of config.json, every *.safetensors and their index, in name order;
/// the key, where the folder is a `model` artifact.
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
    files.sort();
    let has = |ending: &str| files.iter().any(|path| path.to_string_lossy().ends_with(ending));
    for (ending, what) in [("config.json", "config.json"), (".safetensors", "*.safetensors file")] {
        if !has(ending) {
            return Err(bad_input(format!("the model folder {shown} has no {what}; give a Hugging Face checkpoint")));
        }
    }
    let mut digest = blake3::Hasher::new();
    for file in files {
        digest.update(store.leaf(&file)?.as_bytes());
    }
    Ok(digest.finalize().to_hex().to_string())
}

/// Where `hf:owner/name@revision` lies in the local cache of Hugging Face; other paths are what they are.
pub(crate) fn model_folder(path: &str) -> Result<PathBuf, String> {
    let Some(name) = path.strip_prefix("hf:") else { return Ok(path.into()) };
    let (repository, revision) = name.split_once('@').unwrap_or((name, "main"));
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let hub = variable("HF_HUB_CACHE")
        .or_else(|| Some(variable("HF_HOME")?.join("hub")))
        .or_else(|| Some(variable("HOME")?.join(".cache/huggingface/hub")))
        .unwrap_or_default()
        .join(format!("models--{}", repository.replace('/', "--")));
    let commit = std::fs::read_to_string(hub.join("refs").join(revision)).unwrap_or_else(|_| revision.into());
    let folder = hub.join("snapshots").join(commit.trim());
    if folder.is_dir() {
        return Ok(folder);
    }
    Err(format!(
        "`{path}` is not in the Hugging Face cache {}; fetch it with `hf download {repository} --revision {revision}`, or give a \
         folder",
        hub.display()
    ))
}
