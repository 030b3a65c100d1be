//! What a repository holds at a commit, and which of it is wanted.

use std::collections::{BTreeMap, BTreeSet};

use globset::GlobBuilder;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::reference::Reference;

pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The tensors of an adapter.
const ADAPTER: &str = "adapter_model.safetensors";

/// Endings of corpus files, the most telling first.
const CORPORA: [&str; 6] = ["parquet", "jsonl", "ndjson", "jsonl.gz", "jsonl.zst", "json"];

/// Bytes that a file beside the weights may have: whoever reads one holds all of it.
const LARGEST_DESCRIPTION: u64 = 256 << 20;

/// Files of a repository at a commit, by name. It says what each file has to be: names, lengths and digests come from here
/// and nowhere else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listing {
    /// 40 hexadecimal digits.
    pub(crate) commit: String,
    pub(crate) files: BTreeMap<String, File>,
    /// Names that are no paths below a folder, and files whose length or digest is not listed.
    #[serde(default)]
    pub(crate) unfit: BTreeSet<String>,
}

/// What the hub says of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct File {
    /// Its length.
    pub(crate) bytes: u64,
    /// Its name among the blobs of the cache: the SHA-256 of a large file (64 hexadecimal digits), git's SHA-1 of another (40).
    pub(crate) blob: String,
}

/// A file, as answers have it.
#[derive(Debug, Deserialize)]
pub(crate) struct Entry {
    /// `path` in a tree.
    #[serde(alias = "path")]
    rfilename: String,
    /// `directory` for what is none, in a tree.
    #[serde(default)]
    r#type: Option<String>,
    #[serde(default)]
    size: Option<i64>,
    /// `oid` in a tree.
    #[serde(rename = "blobId", alias = "oid", default)]
    blob: Option<String>,
    #[serde(default)]
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    /// `oid` in a tree.
    #[serde(alias = "oid", default)]
    sha256: Option<String>,
}

/// The hub's answer to what a revision is.
#[derive(Debug, Deserialize)]
pub(crate) struct Revision {
    pub(crate) sha: String,
    pub(crate) siblings: Vec<Entry>,
}

impl Listing {
    /// Of the files that the hub lists at `commit`; none if that is no commit, or a name comes twice.
    pub(crate) fn new(commit: &str, entries: impl IntoIterator<Item = Entry>) -> Option<Self> {
        let mut listing = Self { commit: commit.into(), ..Self::default() };
        for entry in entries.into_iter().filter(|entry| entry.r#type.as_deref() != Some("directory")) {
            let large = entry.lfs.map(|lfs| lfs.sha256.filter(|text| is_hex(text, 64)));
            let blob = large.unwrap_or_else(|| entry.blob.filter(|text| is_hex(text, 40)));
            let bytes = entry.size.and_then(|size| u64::try_from(size).ok());
            let twice = match (plain(&entry.rfilename), bytes, blob) {
                (true, Some(bytes), Some(blob)) => {
                    listing.files.insert(entry.rfilename, File { bytes, blob }).is_some()
                }
                _ => !listing.unfit.insert(entry.rfilename),
            };
            if twice {
                return None;
            }
        }
        let once = listing.unfit.iter().all(|name| !listing.files.contains_key(name));
        (is_hex(commit, 40) && once).then_some(listing)
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
        let meant = pattern.as_deref().unwrap_or(&reference.path);
        self.fit(reference, |name| matches(meant, name))?;
        if !names.is_empty() {
            return Ok(names);
        }
        Err(format!("{reference}: nothing there is a corpus of that name; {}", self.holds()))
    }

    /// Refuses what is wanted and cannot be fetched.
    fn fit(&self, reference: &Reference, wanted: impl Fn(&str) -> bool) -> Result<(), String> {
        match self.unfit.iter().find(|name| wanted(name)) {
            Some(name) => Err(format!(
                "{reference}: `{name}` cannot be fetched: its name is no path below a folder, or the hub lists neither length \
                 nor digest of it; choose other files or another revision"
            )),
            None => Ok(()),
        }
    }

    fn checkpoint(&self, reference: &Reference, index: Option<&str>) -> Result<Vec<String>, String> {
        let has = |name: &str| self.files.contains_key(name);
        let weight = |name: &str| !name.contains('/') && name.ends_with(".safetensors");
        self.fit(reference, |name| describes(name) || name == INDEX || weight(name))?;
        if !has("config.json") && !has(ADAPTER) {
            return Err(format!(
                "{reference}: there is no config.json, so this is no checkpoint of `transformers`; {}",
                self.holds()
            ));
        }
        let mut names: Vec<String> = self.files.keys().filter(|name| describes(name)).cloned().collect();
        match index {
            // An adapter, which has its base elsewhere.
            _ if has(ADAPTER) && !has(WEIGHTS) && !has(INDEX) => names.push(ADAPTER.into()),
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
        let large = |name: &&String| !name.ends_with(".safetensors") && self.files[*name].bytes > LARGEST_DESCRIPTION;
        if let Some(name) = names.iter().find(large) {
            let (bytes, most) = (self.files[name].bytes as f64 / 1e6, LARGEST_DESCRIPTION as f64 / 1e6);
            return Err(format!(
                "{reference}: {name} has {bytes:.0} MB; a file beside the weights has {most:.0} at most"
            ));
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
    let whole = [
        "config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "adapter_config.json",
    ];
    whole.contains(&name)
        || (name.starts_with("additional_chat_templates/") && name.ends_with(".jinja"))
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

/// Whether a name stays below the folder that it is joined to, on any system, and is spelled in one way alone.
fn plain(name: &str) -> bool {
    let strange = |part: &str| ["", ".", ".."].contains(&part) || cfg!(windows) && reserved(part);
    !name.contains(|c: char| c == '\\' || c.is_control()) && !name.split('/').any(strange)
}

/// Names that mean something else on Windows: devices, streams, and what it shortens.
fn reserved(part: &str) -> bool {
    let stem = part.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
    let numbered =
        ["COM", "LPT"].iter().any(|device| stem.strip_prefix(device).is_some_and(|rest| rest.chars().count() == 1));
    numbered
        || ["CON", "PRN", "AUX", "NUL"].contains(&&*stem)
        || part.ends_with(['.', ' '])
        || part.contains(['<', '>', ':', '"', '|', '?', '*'])
}

/// Whether `text` is so many hexadecimal digits, as git and the hub write them.
pub(crate) fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn listing(names: &[&str]) -> Listing {
        read(names.iter().map(|name| json!({ "rfilename": name, "size": 3, "blobId": "0a".repeat(20) })).collect())
            .unwrap()
    }

    fn read(siblings: Vec<Value>) -> Option<Listing> {
        let answer: Revision = serde_json::from_value(json!({ "sha": "c0".repeat(20), "siblings": siblings })).unwrap();
        Listing::new(&answer.sha, answer.siblings)
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
    fn an_adapter_is_what_describes_it_and_its_tensors() {
        let names =
            ["README.md", "adapter_config.json", "adapter_model.bin", ADAPTER, "optimizer.pt", "tokenizer.json"];
        let found = wanted(&names, "hf:o/n", None).unwrap();
        assert_eq!(found, ["adapter_config.json", "tokenizer.json", ADAPTER]);
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
    fn names_that_leave_the_snapshot_are_no_files() {
        let names = [
            "../config.json",
            "/etc/passwd",
            "a/../../b",
            "",
            "a//b",
            "a/./b",
            "a/",
            "a\\b",
            "a\0b",
            "a\nb",
            "a\u{1b}b",
        ];
        let found = listing(&names);
        assert!(found.files.is_empty(), "{found:?}");
        assert_eq!(found.unfit.len(), names.len());
        assert!(shards(r#"{"weight_map": {"a": "../x.safetensors"}}"#).is_empty());
        assert_eq!(listing(&["a b/é%2f..?#.json"]).files.len(), 1, "strange, and a name all the same");
        for name in ["con.json", "COM1", "nul", "a:b", "a.", "lpt9.txt"] {
            assert!(reserved(name), "{name}");
        }
        assert!(!["config.json", "common", "a b", "lpt10"].into_iter().any(reserved));
    }

    /// What is not wanted may be listed as it likes; what is wanted is refused by name rather than left out.
    #[test]
    fn what_is_wanted_and_cannot_be_fetched_is_refused_by_name() {
        let good = |name: &str| json!({ "rfilename": name, "size": 3, "blobId": "0a".repeat(20) });
        let model = |entry: Value| {
            let listing = read(vec![good("config.json"), good("model.safetensors"), entry]).unwrap();
            listing.wanted(&Reference::parse("hf:o/n").unwrap().unwrap(), None)
        };
        assert_eq!(model(good("../../evil.json")).unwrap(), ["config.json", "model.safetensors"]);
        for entry in [
            good("tokenizer\\..\\x.json"),
            json!({ "rfilename": "tokenizer.json" }),
            json!({ "rfilename": "tokenizer.json", "size": -5, "blobId": "0a".repeat(20) }),
            json!({ "rfilename": "tokenizer.json", "size": 3, "blobId": "../../../x" }),
            json!({ "rfilename": "tokenizer.json", "size": 3, "blobId": "0a".repeat(20), "lfs": { "sha256": "../x" } }),
            json!({ "rfilename": "tokenizer.json", "size": 3, "blobId": "0a".repeat(20), "lfs": {} }),
        ] {
            let error = model(entry.clone()).unwrap_err();
            assert!(error.contains("`tokenizer") && error.contains("cannot be fetched"), "{entry}: {error}");
        }
        let mut large = good("tokenizer.json");
        large["size"] = json!(LARGEST_DESCRIPTION + 1);
        assert!(model(large).unwrap_err().contains("tokenizer.json has 268 MB"));
        let dataset = read(vec![good("data/a.jsonl"), good("data/b\\c.jsonl")]).unwrap();
        let error = dataset.wanted(&Reference::parse("hf:datasets/o/n/data").unwrap().unwrap(), None).unwrap_err();
        assert!(error.contains("b\\c.jsonl"), "{error}");
    }

    #[test]
    fn a_listing_says_one_thing_of_a_file_at_a_commit() {
        let entry = |size: u32| json!({ "rfilename": "a", "size": size, "blobId": "0a".repeat(20) });
        assert!(read(vec![entry(1)]).is_some());
        assert!(read(vec![entry(1), entry(2)]).is_none());
        assert!(read(vec![entry(1), json!({ "rfilename": "a" })]).is_none());
        for commit in ["main", "../../../x", "", "C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0", "x/y"] {
            assert!(Listing::new(commit, []).is_none(), "{commit}");
        }
    }

    /// The two forms of the hub's answers.
    #[test]
    fn siblings_and_trees_are_read_alike() {
        let sibling = json!({ "rfilename": "w", "size": 9, "blobId": "0a".repeat(20), "lfs": { "sha256": "0b".repeat(32), "size": 9 } });
        let tree = json!([
            { "type": "directory", "oid": "0c".repeat(20), "size": 0, "path": "d" },
            { "type": "file", "oid": "0a".repeat(20), "size": 9, "path": "w", "lfs": { "oid": "0b".repeat(32), "size": 9, "pointerSize": 100 } },
        ]);
        let tree: Vec<Entry> = serde_json::from_value(tree).unwrap();
        let tree = Listing::new(&"c0".repeat(20), tree).unwrap();
        assert_eq!(read(vec![sibling]).unwrap(), tree);
        assert_eq!(tree.files["w"], File { bytes: 9, blob: "0b".repeat(32) });
    }
}
