//! Leaves: what no step makes. Corpora, tokenizers and checkpoints, identified by their content.

use std::path::{Path, PathBuf};

use anyhow::Result;
use wherefrom_artifact::{MANIFEST, Manifest, Store, bad_input};

/// A chat template in a file of its own.
const TEMPLATE: &str = "chat_template.jinja";

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
        return Err(wherefrom_model::no_safetensors(folder));
    }
    let mut digest = blake3::Hasher::new();
    for file in files {
        digest.update(store.leaf(&file)?.as_bytes());
    }
    Ok(digest.finalize().to_hex().to_string())
}

/// Content of a corpus: the digest of a file; of a folder or a glob one over the names and digests of the files.
pub(crate) fn corpus_digest(store: &Store, corpus: &Path) -> Result<String> {
    let files = wherefrom_tokenize::corpus_files(corpus)?;
    if let [file] = &files[..]
        && file.name.is_empty()
    {
        return store.leaf(&file.path);
    }
    let mut digest = blake3::Hasher::new();
    for file in files {
        digest.update(format!("{}\0{}\n", file.name, store.leaf(&file.path)?).as_bytes());
    }
    Ok(digest.finalize().to_hex().to_string())
}

/// Content of a chat template: of `tokenizer_config.json`, and of the `chat_template.jinja` beside it if there is one.
pub(crate) fn chat_digest(store: &Store, config: &Path) -> Result<String> {
    let beside = config.with_file_name(TEMPLATE);
    if !beside.exists() {
        return store.leaf(config);
    }
    let both = format!("{}{}", store.leaf(config)?, store.leaf(&beside)?);
    Ok(blake3::hash(both.as_bytes()).to_hex().to_string())
}

/// The `tokenizer_config.json` of a checkpoint, if it or a file beside it holds a chat template.
pub(crate) fn chat_template(model: &Path) -> Option<PathBuf> {
    let config = model.join("tokenizer_config.json");
    let text = std::fs::read_to_string(&config).ok()?;
    let value: serde_json::Value = serde_json::from_str(&text).ok()?;
    (model.join(TEMPLATE).exists() || !value["chat_template"].is_null()).then_some(config)
}

/// Content of a leaf by its role.
pub(crate) fn digest(store: &Store, role: &str, path: &Path) -> Result<String> {
    match role {
        "corpus" => corpus_digest(store, path),
        "chat-template" => chat_digest(store, path),
        _ => store.leaf(path),
    }
}
