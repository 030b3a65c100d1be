//! What the study was: model, corpus, method, and the artifacts with what each cost.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;
use wherefrom_artifact::{Artifact, ArtifactKind, Format, Kind, Manifest, Store, grouped};

use crate::Inputs;

/// The head of the page.
#[derive(Debug, Default)]
pub(crate) struct Header {
    /// Name and value.
    pub(crate) facts: Vec<(&'static str, String)>,
    /// Unit of the influences.
    pub(crate) unit: Option<String>,
    /// What their sign means.
    pub(crate) sign: Option<String>,
    /// Every artifact that led here and is still there.
    pub(crate) artifacts: Vec<Made>,
    /// Recipes whose artifacts were not found.
    pub(crate) lost: usize,
}

/// An artifact and what it cost.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) kind: Kind,
    pub(crate) stage: String,
    pub(crate) key: String,
    pub(crate) folder: PathBuf,
    /// From the report's folder, where both lie in one store.
    pub(crate) link: Option<String>,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) seconds: Option<f64>,
    pub(crate) tokens_per_second: Option<f64>,
    pub(crate) device: Option<String>,
}

impl Header {
    /// Follows the recipes of the inputs through the store they lie in. `draft` is the report's own folder in the making.
    pub(crate) fn new(inputs: &Inputs, draft: &Path) -> Result<Self> {
        let mut found: BTreeMap<String, (PathBuf, Manifest)> = BTreeMap::new();
        let mut order = Vec::new();
        let mut pending: VecDeque<(PathBuf, Manifest)> = VecDeque::new();
        add(&mut pending, Some(&inputs.ranking));
        add(&mut pending, inputs.details.as_ref());
        add(&mut pending, inputs.scores.as_ref());
        add(&mut pending, inputs.losses.as_ref());
        add(&mut pending, inputs.queries.as_ref());
        add(&mut pending, Some(&inputs.tokens));
        let mut lost = std::collections::BTreeSet::new();
        while let Some((folder, manifest)) = pending.pop_front() {
            if found.contains_key(&manifest.key) {
                continue;
            }
            for key in manifest.recipe.inputs.values().chain(&manifest.recipe.model).filter(|key| key.len() == 32) {
                match beside(&folder, key) {
                    Some(next) => pending.push_back(next),
                    None => drop(lost.insert(key.clone())),
                }
            }
            order.push(manifest.key.clone());
            found.insert(manifest.key.clone(), (folder, manifest));
        }
        lost.retain(|key| !found.contains_key(key));
        let mut artifacts: Vec<Made> = Vec::new();
        for key in order.iter().rev() {
            let (folder, manifest) = &found[key];
            artifacts.push(made(folder, manifest, &found, draft));
        }
        artifacts.sort_by_key(|made| made.kind);
        let manifests: Vec<&Manifest> = order.iter().map(|key| &found[key].1).collect();
        Ok(Self {
            facts: facts(inputs, &manifests),
            unit: inputs.ranking.metadata("unit")?,
            sign: inputs.ranking.metadata("sign")?,
            artifacts,
            lost: lost.len(),
        })
    }
}

fn add<K: ArtifactKind>(pending: &mut VecDeque<(PathBuf, Manifest)>, artifact: Option<&Artifact<K>>) {
    pending.extend(artifact.map(|artifact| (artifact.folder().to_path_buf(), artifact.manifest().clone())));
}

/// The store that holds a folder `<store>/<kind>-v<version>/<key>`.
fn root(folder: &Path) -> Option<&Path> {
    folder.parent()?.parent()
}

/// The artifact of that key in the store where `folder` lies.
fn beside(folder: &Path, key: &str) -> Option<(PathBuf, Manifest)> {
    let store = Store::new(root(folder)?);
    Kind::ALL.into_iter().find_map(|kind| {
        let folder = store.folder(kind, key);
        Some((folder.clone(), Manifest::read(&folder).ok()?))
    })
}

fn made(folder: &Path, manifest: &Manifest, found: &BTreeMap<String, (PathBuf, Manifest)>, draft: &Path) -> Made {
    let seconds = manifest.provenance.get("wall_seconds").and_then(Value::as_f64);
    let inputs = &manifest.recipe.inputs;
    // A pass over chosen pairs does not read every token.
    let whole = manifest.recipe.model.is_some() && !inputs.contains_key("candidates");
    let tokens = inputs.get("tokens").and_then(|key| found.get(key)).and_then(|(_, tokens)| tokens.count("tokens"));
    let rate = tokens.filter(|_| whole).zip(seconds).map(|(tokens, seconds)| tokens as f64 / seconds);
    let in_store = root(folder).is_some_and(|of| root(draft) == Some(of));
    let name = |path: Option<&Path>| path.and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    Made {
        kind: manifest.kind,
        stage: manifest.recipe.stage.clone(),
        key: manifest.key.clone(),
        folder: folder.to_path_buf(),
        link: in_store.then(|| format!("../../{}/{}/", name(folder.parent()), name(Some(folder)))),
        rows: manifest.rows(),
        bytes: manifest.bytes(),
        seconds,
        tokens_per_second: rate.filter(|rate| rate.is_finite()),
        device: manifest.provenance.get("device").and_then(Value::as_str).map(Into::into),
    }
}

impl Made {
    /// A line that opens its table in DuckDB, and one in Polars; none for what is no table.
    pub(crate) fn lines(&self) -> Option<[String; 2]> {
        let folder = self.folder.display();
        match self.kind.format() {
            Format::Parquet => Some([
                format!("import duckdb; duckdb.sql(\"from '{folder}/*.parquet'\")"),
                format!("import polars as pl; pl.read_parquet(\"{folder}/*.parquet\")"),
            ]),
            _ => None,
        }
    }
}

fn facts(inputs: &Inputs, manifests: &[&Manifest]) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    facts.extend(model(inputs).map(|text| ("model", text)));
    let coverage = manifests.iter().find_map(|manifest| coverage(manifest.summary.get("coverage")?));
    facts.extend(coverage.map(|text| ("coverage", text)));
    facts.push(("corpus", corpus(inputs)));
    let conditioned = |manifest: &&&Manifest| manifest.kind == Kind::Preconditioned;
    let all: Vec<_> = manifests.iter().rev().filter(conditioned).collect();
    // Each different pass over the queries once: the scan's, and the second one's.
    let said = |name: &str| {
        let mut values: Vec<String> = Vec::new();
        for manifest in &all {
            let value = words(&manifest.recipe.config[name]);
            if !value.is_empty() && !values.contains(&value) {
                values.push(value);
            }
        }
        (!values.is_empty()).then(|| values.join(", then "))
    };
    for name in ["method", "damping", "rank"] {
        facts.extend(said(name).map(|value| (name, value)));
    }
    facts
}

/// `relative 0.1` of `{"relative": 0.1}`, `full` of `"full"`.
fn words(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Object(map) => {
            map.iter().map(|(name, value)| format!("{name} {}", words(value))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

/// The folder of the tokenizer is mostly the model's: its name, and sizes from its `config.json`.
fn model(inputs: &Inputs) -> Option<String> {
    let folder = inputs.tokenizer.as_deref()?.parent()?;
    let config: Value = serde_json::from_slice(&wherefrom_artifact::read(&folder.join("config.json")).ok()?).ok()?;
    // `models--owner--name` of the Hugging Face cache.
    let cached =
        folder.iter().find_map(|part| part.to_str()?.strip_prefix("models--")).map(|name| name.replace("--", "/"));
    let name = cached.unwrap_or_else(|| folder.display().to_string());
    let number = |names: [&str; 2]| names.iter().find_map(|name| config[*name].as_u64()).map(grouped);
    let mut words = vec![config["architectures"][0].as_str().or(config["model_type"].as_str())?.to_string()];
    for (what, names) in [
        ("layers", ["num_hidden_layers", "n_layer"]),
        ("hidden", ["hidden_size", "n_embd"]),
        ("vocabulary", ["vocab_size", "vocab_size"]),
    ] {
        words.extend(number(names).map(|number| format!("{what} {number}")));
    }
    Some(format!("{name} ({})", words.join(", ")))
}

/// `540,672 of 1,000,576 parameters (54.0 %) are attributed`; of a model with adapters also what share of those trained.
fn coverage(coverage: &Value) -> Option<String> {
    let share = |of: &Value, what: &str| {
        let (attributed, total) = (of["attributed"].as_u64()?, of["total"].as_u64()?);
        let percent = 100.0 * attributed as f64 / total as f64;
        Some(format!("{} of {} {what} ({percent:.1} %)", grouped(attributed), grouped(total)))
    };
    let trained =
        share(&coverage["trained"], "that were trained").map_or_else(String::new, |share| format!(", {share}"));
    Some(format!("{}{trained} are attributed", share(coverage, "parameters")?))
}

fn corpus(inputs: &Inputs) -> String {
    let tokens = &inputs.tokens;
    let mut text = format!("{} sequences", grouped(tokens.examples()));
    if tokens.tokens() > 0 {
        text += &format!(", {} tokens", grouped(tokens.tokens()));
    }
    match tokens.manifest().count("truncated") {
        Some(cut) if cut > 0 => text + &format!(", {} of them cut", grouped(cut)),
        _ => text,
    }
}
