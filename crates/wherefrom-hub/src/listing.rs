//! What a repository holds at a commit, and which of it is wanted.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use globset::GlobBuilder;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::reference::Reference;

pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Endings of corpus files, the most telling first.
const CORPORA: [&str; 6] = ["parquet", "jsonl", "ndjson", "jsonl.gz", "jsonl.zst", "json"];

/// Files of a repository at a commit, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listing {
    pub(crate) commit: String,
    pub(crate) files: BTreeMap<String, File>,
}

/// What the hub says of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct File {
    /// Its length.
    pub(crate) bytes: Option<u64>,
    /// Its name among the blobs of the cache.
    pub(crate) blob: Option<String>,
}

impl Listing {
    /// From the hub's answer `{sha, siblings: [{rfilename, size, blobId, lfs: {sha256}}]}`; names that would leave the
    /// snapshot are left out.
    pub(crate) fn read(answer: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().filter(|text| plain(text)).map(String::from);
        let file = |entry: &Value| {
            let blob = text(&entry["lfs"]["sha256"]).or_else(|| text(&entry["blobId"]));
            Some((text(&entry["rfilename"])?, File { bytes: entry["size"].as_u64(), blob }))
        };
        let files = answer["siblings"].as_array()?.iter().filter_map(file).collect();
        Some(Self { commit: text(&answer["sha"])?, files })
    }

    /// Names of the files that `reference` is about; for a sharded checkpoint those that its `index` names, or, while
    /// that is not there, all that it may name.
    ///
    /// # Errors
    /// What the repository lacks, and what to do.
    pub(crate) fn wanted(&self, reference: &Reference, index: Option<&str>) -> Result<Vec<String>, String> {
        if reference.is_model() {
            return self.checkpoint(reference, index);
        }
        let pattern = pattern(&reference.path, self.files.keys().map(String::as_str));
        let names: Vec<String> = pattern
            .iter()
            .flat_map(|pattern| self.files.keys().filter(|name| matches(pattern, name)))
            .cloned()
            .collect();
        if !names.is_empty() {
            return Ok(names);
        }
        Err(format!("{reference}: nothing there is a corpus of that name; {}", self.holds()))
    }

    fn checkpoint(&self, reference: &Reference, index: Option<&str>) -> Result<Vec<String>, String> {
        let has = |name: &str| self.files.contains_key(name);
        if !has("config.json") {
            return Err(format!(
                "{reference}: there is no config.json, so this is no checkpoint of `transformers`; {}",
                self.holds()
            ));
        }
        let mut names: Vec<String> = self.files.keys().filter(|name| describes(name)).cloned().collect();
        let weight = |name: &str| !name.contains('/') && name.ends_with(".safetensors");
        match index {
            _ if has(WEIGHTS) => names.push(WEIGHTS.into()),
            Some(index) if has(INDEX) => names.extend([vec![INDEX.into()], shards(index)].concat()),
            _ if has(INDEX) => {
                names.push(INDEX.into());
                names.extend(self.files.keys().filter(|name| weight(name)).cloned());
            }
            _ => {
                return Err(format!(
                    "{reference}: there is neither {WEIGHTS} nor {INDEX}, and pickled or quantised weights are not read; \
                     look for a revision with safetensors (the hub offers conversions as refs/pr/N), or write them with \
                     `save_pretrained` of `transformers` and give the folder; {}",
                    self.holds()
                ));
            }
        }
        if let Some(name) = names.iter().find(|name| !has(name)) {
            return Err(format!("{reference}: {INDEX} names `{name}`, which is not there; choose another revision"));
        }
        Ok(names)
    }

    fn holds(&self) -> String {
        let mut names: Vec<&str> =
            self.files.keys().map(String::as_str).filter(|name| *name != ".gitattributes").collect();
        let more = names.len().saturating_sub(12);
        names.truncate(12);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("it holds {}{more}", names.join(", "))
    }
}

/// Small files beside the weights that say what they are and how to write for them.
pub(crate) fn describes(name: &str) -> bool {
    ["config.json", "generation_config.json", "special_tokens_map.json", "chat_template.jinja"].contains(&name)
        || (!name.contains('/') && name.starts_with("tokenizer") && name.ends_with(".json"))
}

/// The weight files that an index names.
pub(crate) fn shards(index: &str) -> Vec<String> {
    let index: Value = serde_json::from_str(index).unwrap_or_default();
    let map = index["weight_map"].as_object().into_iter().flatten();
    let mut names: Vec<String> =
        map.filter_map(|(_, name)| name.as_str()).filter(|name| plain(name)).map(String::from).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The glob of the corpus files at `path`: itself, if it names files; of a folder, the files below it of the first ending
/// in [`CORPORA`] that there is. None if nothing matches.
pub(crate) fn pattern<'a>(path: &str, names: impl Iterator<Item = &'a str> + Clone) -> Option<String> {
    if names.clone().any(|name| matches(path, name)) {
        return Some(path.into());
    }
    let below = if path.is_empty() { String::new() } else { format!("{path}/") };
    let ending = CORPORA.iter().find(|ending| {
        let dotted = format!(".{ending}");
        names.clone().any(|name| name.starts_with(&below) && name.ends_with(&dotted))
    })?;
    Some(format!("{below}**/*.{ending}"))
}

/// Whether `pattern`, a name or a glob, is of `name`. `*` stops at slashes, `**` does not.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    pattern == name
        || GlobBuilder::new(pattern)
            .literal_separator(true)
            .build()
            .is_ok_and(|glob| glob.compile_matcher().is_match(name))
}

/// Whether a name stays below the folder that it is joined to.
fn plain(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn listing(names: &[&str]) -> Listing {
        let siblings: Vec<Value> = names.iter().map(|name| json!({ "rfilename": name, "size": 3 })).collect();
        Listing::read(&json!({ "sha": "c0ffee", "siblings": siblings })).unwrap()
    }

    fn wanted(names: &[&str], reference: &str, index: Option<&str>) -> Result<Vec<String>, String> {
        listing(names).wanted(&Reference::parse(reference).unwrap().unwrap(), index)
    }

    #[test]
    fn a_checkpoint_is_its_descriptions_and_one_form_of_weights() {
        let names = [
            "README.md",
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "onnx/config.json",
            "model.safetensors",
            "consolidated.safetensors",
            "pytorch_model.bin",
            "onnx/tokenizer.json",
        ];
        let found = wanted(&names, "hf:o/n", None).unwrap();
        assert_eq!(
            found,
            ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
        );
    }

    #[test]
    fn shards_are_those_of_the_index() {
        let names = ["config.json", INDEX, "model-1.safetensors", "model-2.safetensors", "other.safetensors"];
        let index = json!({ "weight_map": { "a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors" } });
        let found = wanted(&names, "hf:o/n", Some(&index.to_string())).unwrap();
        assert_eq!(found, ["config.json", INDEX, "model-1.safetensors", "model-2.safetensors"]);
        assert_eq!(wanted(&names, "hf:o/n", None).unwrap().len(), 5, "before the index is there, all that it may name");
        let error = wanted(&names[..3], "hf:o/n", Some(&index.to_string())).unwrap_err();
        assert!(error.contains("`model-2.safetensors`"), "{error}");
    }

    #[test]
    fn a_dataset_is_what_its_path_names() {
        let names = [
            "README.md",
            "data/test-0.parquet",
            "data/train-0.parquet",
            "data/train-1.parquet",
            "extra/a.jsonl",
            "info.json",
        ];
        let found = |path: &str| wanted(&names, &format!("hf:datasets/o/n{path}"), None).unwrap();
        assert_eq!(found("/data/train-*.parquet"), names[2..4]);
        assert_eq!(found("/data/test-0.parquet"), names[1..2]);
        assert_eq!(found("/data"), names[1..4]);
        assert_eq!(found(""), names[1..4], "Parquet before other forms");
        assert_eq!(found("/extra"), names[4..5]);
        let error = wanted(&names, "hf:datasets/o/n/date", None).unwrap_err();
        assert!(error.contains("nothing there is a corpus") && error.contains("data/train-0.parquet"), "{error}");
    }

    #[test]
    fn names_that_leave_the_snapshot_are_left_out() {
        assert!(listing(&["../config.json", "/etc/passwd", "a/../../b", ""]).files.is_empty());
        assert!(shards(r#"{"weight_map": {"a": "../x.safetensors"}}"#).is_empty());
    }
}
