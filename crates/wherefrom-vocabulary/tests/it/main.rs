//! Folders of tokenizers against `transformers` (tests/fixtures/vocabularies/make_fixtures.py), and malformed ones.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use wherefrom_artifact::Error;
use wherefrom_vocabulary::{Beside, conversation_files, files, open, size};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/vocabularies")
}

/// A folder with the fixture's tokenizer.json and these files.
fn folder(files: &Value) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::copy(fixtures().join("tokenizer.json"), &path).unwrap();
    for (name, value) in files.as_object().unwrap() {
        let file = folder.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let text = value.as_str().map_or_else(|| value.to_string(), String::from);
        std::fs::write(file, text).unwrap();
    }
    (folder, path)
}

#[test]
fn every_folder_is_read_as_transformers_reads_it() {
    let cases = std::fs::read_to_string(fixtures().join("cases.jsonl")).unwrap();
    assert!(cases.lines().count() > 30);
    for case in cases.lines() {
        let case: Value = serde_json::from_str(case).unwrap();
        let (name, right) = (&case["name"], &case["transformers"]);
        let (_folder, path) = folder(&case["files"]);
        let tokenizer = open(&path).unwrap();
        let encoding = tokenizer.encode(case["text"].as_str().unwrap(), false).unwrap();
        assert_eq!(json!(encoding.get_ids()), right["ids"], "{name}");
        assert_eq!(json!(tokenizer.decode(encoding.get_ids(), true).unwrap()), right["decoded"], "{name}");
        assert_eq!(json!(size(&path).unwrap()), right["size"], "{name}");
        let beside = Beside::of(&path).unwrap();
        assert_eq!(json!(beside.specials), right["specials"], "{name}");
        assert_eq!(json!(beside.templates), right["templates"], "{name}");
    }
}

fn decoder(id: &str) -> Value {
    json!({ "tokenizer_config.json": { "added_tokens_decoder": { id: { "content": "<|im_start|>", "special": true } } } })
}

#[test]
fn two_ids_of_one_token_are_refused() {
    let (_folder, path) = folder(&decoder("260"));
    open(&path).unwrap();
    for (files, content) in [
        (decoder("300"), "<|im_start|>"),
        (json!({ "added_tokens.json": { "<|im_start|>": 300 } }), "<|im_start|>"),
        (json!({ "added_tokens.json": { "</s>": 260 } }), "</s>"),
    ] {
        let (_folder, path) = folder(&files);
        let error = open(&path).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(Error::Input(text)) if text.contains(content)), "{error:#}");
    }
}

#[test]
fn malformed_files_are_refused_by_name() {
    let token = json!({ "content": "<x>" });
    for (file, content) in [
        ("tokenizer_config.json", json!("{")),
        ("tokenizer_config.json", json!("[]")),
        ("tokenizer_config.json", json!("[".repeat(100_000))),
        ("tokenizer_config.json", json!({ "added_tokens_decoder": [] })),
        ("tokenizer_config.json", json!({ "added_tokens_decoder": { "one": token } })),
        ("tokenizer_config.json", json!({ "added_tokens_decoder": { "5000000000": token } })),
        ("tokenizer_config.json", json!({ "added_tokens_decoder": { "260": "<x>" } })),
        ("tokenizer_config.json", json!({ "chat_template": 3 })),
        ("special_tokens_map.json", json!("")),
        ("added_tokens.json", json!({ "<x>": "260" })),
        ("added_tokens.json", json!({ "<x>": -1 })),
    ] {
        let (_folder, path) = folder(&json!({ file: content }));
        let error = open(&path).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(Error::Input(text)) if text.contains(file)), "{error:#}");
    }
    let (_folder, path) = folder(&json!({ "tokenizer.json": "{\"model\": 5}" }));
    assert!(open(&path).unwrap_err().to_string().contains("tokenizer.json"));
}

/// Equal values give equal tokens; every difference that can be seen there is one of values.
#[test]
fn what_a_key_is_made_of_says_what_is_read() {
    let values = |files: Value| {
        let (_folder, path) = folder(&files);
        Beside::of(&path).unwrap().tokens()
    };
    assert_eq!(values(json!({})), None);
    let base =
        json!({ "added_tokens_decoder": { "260": { "content": "<x>", "special": true } }, "chat_template": "one" });
    let tokens = values(json!({ "tokenizer_config.json": base }));
    // What they do not depend on.
    for (name, value) in [("model_max_length", json!(5)), ("chat_template", json!("two"))] {
        let mut other = base.clone();
        other[name] = value;
        assert_eq!(values(json!({ "tokenizer_config.json": other })), tokens, "{name}");
    }
    for (name, value) in [("content", json!("<y>")), ("special", json!(false)), ("lstrip", json!(true))] {
        let mut other = base.clone();
        other["added_tokens_decoder"]["260"][name] = value;
        assert_ne!(values(json!({ "tokenizer_config.json": other })), tokens, "{name}");
    }
    let mut other = base.clone();
    other["bos_token"] = "<s>".into();
    assert_ne!(values(json!({ "tokenizer_config.json": other })), tokens);
    let (_folder, path) =
        folder(&json!({ "tokenizer_config.json": base, "chat_template.jinja": "two", "added_tokens.json": {},
                                          "additional_chat_templates/rag.jinja": "r", "special_tokens_map.json": {} }));
    let names = |files: Vec<(String, PathBuf)>| files.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let texts = [
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "additional_chat_templates/rag.jinja",
    ];
    let mut found = names(conversation_files(&path.with_file_name("tokenizer_config.json")).unwrap());
    found.sort();
    let mut right = texts.map(String::from).to_vec();
    right.sort();
    assert_eq!(found, right);
    assert_eq!(files(&path).unwrap().len(), 6);
}

#[test]
fn a_tokenizer_of_another_name_stands_alone_and_a_template_may_be_any_file() {
    let (folder, path) = folder(&json!({ "tokenizer_config.json": { "bos_token": "<s>", "chat_template": "one" },
                                         "mine.jinja": "three" }));
    let other = folder.path().join("mine.json");
    std::fs::rename(&path, &other).unwrap();
    assert_eq!(Beside::of(&other).unwrap(), Beside::default());
    assert_eq!(files(&other).unwrap().len(), 1);
    let beside = Beside::of(&folder.path().join("mine.jinja")).unwrap();
    assert_eq!((beside.templates["default"].as_str(), beside.specials["bos_token"].as_str()), ("three", "<s>"));
}
