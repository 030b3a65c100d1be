//! A model on a hub of loopback, which answers as the real one does unless a test has it answer otherwise.

use std::collections::BTreeMap;

use serde_json::Value;
use wherefrom_tests::hub::{self, Answer, COMMIT, Request, git};

/// The model, by file.
pub(super) fn files() -> BTreeMap<String, Vec<u8>> {
    let weights = (0..200_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()[..1].to_vec());
    BTreeMap::from([
        ("config.json".into(), br#"{"model_type": "llama"}"#.to_vec()),
        ("tokenizer.json".into(), br#"{"version": "1.0", "model": {}}"#.repeat(20)),
        ("model.safetensors".into(), weights.collect()),
        ("empty.json".into(), Vec::new()),
        ("tokenizer_config.json".into(), Vec::new()),
    ])
}

/// The list of its files.
pub(super) fn listing() -> Value {
    hub::listing("o/n", &files())
}

/// What the real hub answers.
pub(super) fn honest(request: &Request) -> Answer {
    if request.lists() {
        return Answer::new("200 OK", &[("Content-Type", "application/json")], listing().to_string());
    }
    let prefix = format!("/o/n/resolve/{COMMIT}/");
    let Some(content) = request.path.strip_prefix(&prefix).and_then(|name| files().remove(name)) else {
        return Answer::new("404 Not Found", &[("X-Error-Code", "EntryNotFound")], "");
    };
    let tag = format!("\"{}\"", git(&content));
    let headers = [("ETag", &*tag), ("X-Repo-Commit", COMMIT)];
    match request.range().0 {
        0 => Answer::new("200 OK", &headers, content),
        from if from >= content.len() => Answer::new("416 Range Not Satisfiable", &[], ""),
        from => {
            let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
            Answer::new("206 Partial Content", &[&headers[..], &[("Content-Range", &range)]].concat(), &content[from..])
        }
    }
}
