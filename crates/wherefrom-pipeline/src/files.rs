//! Files that no step makes: corpora, tokenizers and checkpoints, identified by their content.

use std::path::{Path, PathBuf};

use anyhow::Result;
use wherefrom_artifact::{CHECKPOINTS, Draft, MANIFEST, Manifest, OPTIMIZER, Reporter, Store, bad_input};
use wherefrom_model::GENERATION;
use wherefrom_stage::File;
use wherefrom_vocabulary::{Beside, TEMPLATE, TOKENIZER_CONFIG};

use crate::stage::Stage;
use crate::step::ADAPTER;

/// The role of a checkpoint.
const MODEL: &str = "model";
/// What the files beside a tokenizer.json say of its tokens.
const BESIDE: &str = "tokens of files beside it";
/// What a draft was begun from, beside its parts.
const READ: &str = "read";

/// One of the files of an input, or what is read of it.
struct Part {
    /// Its name in the digest of several.
    name: String,
    path: PathBuf,
    digest: String,
}

/// The digest of an input in a role: that of its file, or one over those of its files.
pub(crate) fn digest(store: &Store, stage: Stage, role: &str, path: &Path) -> Result<String> {
    Ok(combined(role, &parts(store, stage, role, path)?))
}

/// BLAKE3 over the digests of config.json and of the weights that are read, in name order: model.safetensors, or without
/// it the index and every file that it names; those of the checkpoints, too, where the folder keeps any; the key, where the
/// folder is a `model` artifact.
pub(crate) fn model_digest(store: &Store, folder: &Path) -> Result<String> {
    if folder.join(MANIFEST).exists() {
        return Ok(Manifest::read(folder)?.key);
    }
    Ok(combined(MODEL, &model_parts(store, folder)?))
}

/// What of an input a stage reads.
fn parts(store: &Store, stage: Stage, role: &str, path: &Path) -> Result<Vec<Part>> {
    let whole = |name: String, path: PathBuf| Ok(Part { digest: store.file_digest(&path)?, name, path });
    match stage.file(role) {
        None if role == ADAPTER && path.join(MANIFEST).exists() => Ok(Vec::new()),
        None if role == ADAPTER => adapter_parts(store, path),
        None if role != MODEL => Ok(vec![whole(String::new(), path.into())?]),
        None if path.join(MANIFEST).exists() => Ok(Vec::new()),
        None => model_parts(store, path),
        Some(File::Corpus) => {
            let files = wherefrom_tokenize::corpus_files(path)?.into_iter();
            files.map(|file| whole(file.name, file.path)).collect()
        }
        Some(File::Tokenizer | File::TokenizerFiles) if path.is_dir() => Err(bad_input(format!(
            "{} is a folder; give the file in it: {}",
            path.display(),
            path.join("tokenizer.json").display()
        ))),
        // What lies in a folder of its own afterwards.
        Some(File::TokenizerFiles) => {
            wherefrom_vocabulary::files(path)?.into_iter().map(|(name, path)| whole(name, path)).collect()
        }
        Some(File::Tokenizer) => {
            let mut parts = vec![whole(String::new(), path.into())?];
            let tokens = Beside::of(path)?.tokens();
            parts.extend(tokens.map(|tokens| {
                let digest = blake3::hash(tokens.to_string().as_bytes()).to_hex().to_string();
                Part { name: BESIDE.into(), path: path.into(), digest }
            }));
            Ok(parts)
        }
        Some(File::ChatTemplate) => {
            let files = wherefrom_vocabulary::conversation_files(path)?;
            files.into_iter().map(|(name, path)| whole(name, path)).collect()
        }
        Some(File::Trait) => {
            wherefrom_persona::trait_files(path)?.into_iter().map(|(name, path)| whole(name, path)).collect()
        }
        Some(File::GenerationConfig | File::Judgements) => Ok(vec![whole(String::new(), path.into())?]),
    }
}

/// BLAKE3 over the digests of adapter_config.json and adapter_model.safetensors, in that order; the key, where the folder is an
/// artifact.
pub(crate) fn adapter_digest(store: &Store, folder: &Path) -> Result<String> {
    if folder.join(MANIFEST).exists() {
        return Ok(Manifest::read(folder)?.key);
    }
    Ok(combined(ADAPTER, &adapter_parts(store, folder)?))
}

/// One digest of a base with adapters, and of what is attributed of it: that of the base alone, where there are none.
pub(crate) fn with_adapters(base: String, adapters: &[String], attribute: &str) -> String {
    if adapters.is_empty() {
        return base;
    }
    blake3::hash(format!("{base}\n{}\n{attribute}", adapters.join("\n")).as_bytes()).to_hex().to_string()
}

fn adapter_parts(store: &Store, folder: &Path) -> Result<Vec<Part>> {
    if !folder.is_dir() {
        return Err(bad_input(format!(
            "the adapter folder {} is not there; give a folder that PEFT has written, or hf:OWNER/NAME@REVISION",
            folder.display()
        )));
    }
    let config = |folder: &Path| folder.join(wherefrom_model::ADAPTER_CONFIG);
    wherefrom_model::Lora::load(folder)?;
    let mut files = vec![config(folder), wherefrom_model::adapter_weights(folder)?];
    if folder.join(CHECKPOINTS).exists() {
        files.push(folder.join(CHECKPOINTS));
        for (kept, _) in wherefrom_artifact::kept_checkpoints(folder)? {
            let optimizer = Some(kept.join(OPTIMIZER)).filter(|path| path.exists());
            files.extend([config(&kept), wherefrom_model::adapter_weights(&kept)?].into_iter().chain(optimizer));
        }
    }
    files.into_iter().map(|path| Ok(Part { name: String::new(), digest: store.file_digest(&path)?, path })).collect()
}

fn model_parts(store: &Store, folder: &Path) -> Result<Vec<Part>> {
    if let Some(what) = no_checkpoint(folder, KEYS) {
        return Err(bad_input(what));
    }
    let config = folder.join("config.json");
    let mut files = wherefrom_model::weight_files(folder)?;
    if !files.iter().any(|file| *file == folder.join("model.safetensors")) {
        files.push(folder.join(wherefrom_model::INDEX));
    }
    files.push(config);
    if folder.join(CHECKPOINTS).exists() {
        files.push(folder.join(CHECKPOINTS));
        for (kept, _) in wherefrom_artifact::kept_checkpoints(folder)? {
            files.extend(wherefrom_model::weight_files(&kept)?);
            let beside = ["config.json", wherefrom_model::INDEX, OPTIMIZER].map(|name| kept.join(name));
            files.extend(beside.into_iter().filter(|path| path.exists()));
        }
    }
    files.sort();
    files.into_iter().map(|path| Ok(Part { name: String::new(), digest: store.file_digest(&path)?, path })).collect()
}

/// What a refusal calls the model and an adapter on it: the words of a pipeline, or of the command line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Called {
    model: &'static str,
    adapter: &'static str,
}

/// In a pipeline.
pub(crate) const KEYS: Called = Called { model: "`path`", adapter: "`adapter` beside `path` in [model]" };
/// On the command line.
pub(crate) const OPTIONS: Called = Called { model: "--model", adapter: "--adapter" };

/// Why there is no folder of a checkpoint at `path`, and what to do; none if there is one.
pub(crate) fn no_checkpoint(path: &Path, called: Called) -> Option<String> {
    let no_config = || (!path.join("config.json").exists()).then(|| no_config(path, called));
    no_folder(path, called).or_else(no_config)
}

/// Why there is no folder of a model at `path`, and what to do; none if there is one.
pub(crate) fn no_folder(path: &Path, called: Called) -> Option<String> {
    let shown = path.display();
    let error = std::fs::read_dir(path).err()?;
    if path.is_file() {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let what = match &path.extension().unwrap_or_default().to_string_lossy().to_lowercase()[..] {
            "safetensors" | "json" => {
                format!("is a file of a checkpoint; give the folder that it lies in: {}", folder.display())
            }
            "gguf" | "ggml" => {
                "is a file of llama.cpp, which is not read; give the folder of the Hugging Face checkpoint \
                                that it was made from"
                    .into()
            }
            "pt" | "pth" | "bin" | "ckpt" => format!(
                "is pickled by PyTorch, which is not read; give a folder with config.json, tokenizer.json and the weights as \
                 safetensors: {}",
                wherefrom_model::unpickle(path)
            ),
            _ => "is a file; give the folder of a Hugging Face checkpoint".into(),
        };
        return Some(format!("the model {shown} {what}"));
    }
    if let Some((_, name)) = path.to_string_lossy().split_once("huggingface.co/") {
        return Some(format!("the model {shown} is a page of the hub; write hf:{name}"));
    }
    let names: Vec<_> = path.components().collect();
    let hub = names.len() == 2 && names.iter().all(|name| matches!(name, std::path::Component::Normal(_)));
    let near =
        if hub { format!(", or write hf:{shown} if it is the name of a model on the hub") } else { String::new() };
    Some(format!(
        "the model folder {shown} cannot be read ({error}); download the checkpoint there or mend {}{near}",
        called.model
    ))
}

/// What a folder without a config.json is, and what to do.
fn no_config(folder: &Path, called: Called) -> String {
    let shown = folder.display();
    if folder.join("adapter_config.json").exists() {
        return format!(
            "the model folder {shown} is an adapter (PEFT); give it as {}, and {} as {}",
            called.adapter,
            base_of(folder),
            called.model
        );
    }
    let below = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut below: Vec<_> = below.filter(|path| path.join("config.json").exists()).collect();
    below.sort();
    if let Some(near) = below.first() {
        return format!("the model folder {shown} has no config.json; did you mean {}?", near.display());
    }
    format!("the model folder {shown} has no config.json; give a Hugging Face checkpoint")
}

/// What an adapter says that it was trained on.
fn base_of(adapter: &Path) -> String {
    let config = wherefrom_artifact::read(&adapter.join(wherefrom_model::ADAPTER_CONFIG)).ok();
    let config = config.and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    let base = config.and_then(|config| Some(config["base_model_name_or_path"].as_str()?.to_string()));
    base.map_or_else(|| "its base".into(), |base| format!("its base ({base})"))
}

fn combined(role: &str, parts: &[Part]) -> String {
    if let ([part], true) = (parts, role != MODEL && role != ADAPTER)
        && part.name.is_empty()
    {
        return part.digest.clone();
    }
    let mut digest = blake3::Hasher::new();
    for Part { name, digest: own, .. } in parts {
        match role {
            MODEL | ADAPTER => digest.update(own.as_bytes()),
            _ => digest.update(format!("{name}\0{own}\n").as_bytes()),
        };
    }
    digest.finalize().to_hex().to_string()
}

/// The file by which a checkpoint's chat templates are named, if it has any.
///
/// # Errors
/// For files of its tokenizer that are malformed.
pub(crate) fn chat_template(model: &Path) -> Result<Option<PathBuf>> {
    if Beside::read(model)?.templates.is_empty() {
        return Ok(None);
    }
    let named = [TOKENIZER_CONFIG, TEMPLATE].map(|name| model.join(name)).into_iter().find(|path| path.exists());
    Ok(named.or_else(|| {
        let others = std::fs::read_dir(model.join(wherefrom_vocabulary::TEMPLATES)).ok()?;
        others.filter_map(|entry| Some(entry.ok()?.path())).min()
    }))
}

/// The file that says how a checkpoint generates, if it has one.
pub(crate) fn generation_config(model: &Path) -> Option<PathBuf> {
    Some(model.join(GENERATION)).filter(|path| path.exists())
}

/// The files of a step that no step makes, with the digests that its key is made of.
pub(crate) struct Files<'a> {
    pub(crate) store: &'a Store,
    pub(crate) stage: Stage,
    /// Role, path and digest.
    pub(crate) files: Vec<(String, PathBuf, String)>,
}

impl Files<'_> {
    /// Fills the draft, and makes sure that what was read is what the key says: the files are asked before and after. A file
    /// that looks the same is the same; of one that does not, the digest decides. What was begun is forgotten where a file
    /// was changed, and where one was written since an earlier run began: who knows what that run read.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], naming the file that changed.
    pub(crate) fn guard(
        &self,
        draft: &mut Draft,
        reporter: &dyn Reporter,
        fill: impl FnOnce(&mut Draft) -> Result<()>,
    ) -> Result<()> {
        let before = self.parts()?;
        for ((role, path, digest), parts) in self.files.iter().zip(&before) {
            if !parts.is_empty() && combined(role, parts) != *digest {
                return Err(changed(path, "since the plan was made"));
            }
        }
        self.begin(&before, draft, reporter)?;
        if let Err(error) = fill(draft) {
            // Of what was refused before anything was made nothing is left.
            if std::fs::read_dir(draft.folder()).is_ok_and(|files| files.count() == 1) {
                draft.forget(READ)?;
            }
            return Err(error);
        }
        let outcome = self.parts().and_then(|after| match first_difference(&before, &after) {
            Some(path) => Err(changed(path, "while it was read")),
            None => Ok(()),
        });
        if outcome.is_err() {
            draft.clear()?;
        }
        outcome
    }

    fn parts(&self) -> Result<Vec<Vec<Part>>> {
        let parts = |(role, path, _): &(String, PathBuf, String)| parts(self.store, self.stage, role, path);
        self.files.iter().map(parts).collect()
    }

    fn begin(&self, parts: &[Vec<Part>], draft: &mut Draft, reporter: &dyn Reporter) -> Result<()> {
        let stamp = |part: &Part| Ok((part.path.clone(), wherefrom_artifact::written(&part.path)?));
        let stamps: Vec<(PathBuf, String)> = parts.iter().flatten().map(stamp).collect::<Result<_>>()?;
        if stamps.is_empty() {
            return Ok(());
        }
        let stamps = serde_json::to_vec(&stamps)?;
        if draft.restore(READ)?.is_some_and(|earlier| earlier != stamps) {
            reporter.warn("its files were written again since it was begun: it begins anew");
            draft.clear()?;
        }
        draft.checkpoint(READ, &stamps)
    }
}

/// The first file of which one reading found other than the other.
fn first_difference<'a>(before: &'a [Vec<Part>], after: &'a [Vec<Part>]) -> Option<&'a Path> {
    let (before, after) = (before.iter().flatten(), after.iter().flatten());
    let mut pairs = before.map(Some).chain(std::iter::repeat(None)).zip(after.map(Some).chain(std::iter::repeat(None)));
    let same = |one: Option<&Part>, other: Option<&Part>| match (one, other) {
        (Some(one), Some(other)) => one.path == other.path && one.digest == other.digest,
        (one, other) => one.is_none() && other.is_none(),
    };
    let (one, other) = pairs.find(|&(one, other)| !same(one, other) || one.is_none())?;
    one.or(other).map(|part| part.path.as_path())
}

fn changed(path: &Path, when: &str) -> anyhow::Error {
    bad_input(format!("{} changed {when}: nothing was kept; run again", path.display()))
}
