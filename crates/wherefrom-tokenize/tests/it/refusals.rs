//! What is refused, how it is said, and that nothing is written.

use std::fs;
use std::path::{Path, PathBuf};

use wherefrom_artifact::Error;

use crate::{Bench, config, tokenizer_file};

/// The message of a refusal, checked to be one that the user can mend, with nothing written.
fn refusal(bench: &Bench, max_tokens: usize, corpus: &Path, tokenizer: Option<&Path>) -> String {
    let error = bench.tokenize(&config(max_tokens), corpus, tokenizer).expect_err(&corpus.display().to_string());
    assert_eq!(written(&bench.folder.path().join("store")), Vec::<PathBuf>::new());
    match error.downcast::<Error>() {
        Ok(Error::Input(message)) => message,
        other => panic!("not a refusal: {other:?}"),
    }
}

fn written(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.file_name().unwrap().to_str().unwrap() {
            "CACHEDIR.TAG" | ".gitignore" => {}
            name if name.ends_with(".lock") => {}
            _ if path.is_dir() => found.extend(written(&path)),
            _ => found.push(path),
        }
    }
    found
}

#[test]
fn each_bad_row_is_named_with_what_to_do() {
    let good = "{\"text\": \"And the earth\"}\n";
    let cases: &[(&str, &[&str])] = &[
        ("{\"text\": \"x", &["malformed JSON at column", "one JSON object a line"]),
        ("[{\"text\": \"And\"}]", &["the row is a list, not an object", "jq"]),
        ("\"And\"", &["the row is a string, not an object"]),
        (
            "{\"body\": \"And\", \"text\": null}",
            &["no `text`", "`body`, `text` (null)", "{prompt, completion}", "`column`"],
        ),
        ("{}", &["no `text`", "no keys at all"]),
        ("{\"text\": \"\"}", &["the text is empty"]),
        ("{\"text\": 5}", &["`text` is a number", "string"]),
        ("{\"text\": \"And\", \"id\": [1]}", &["`id` is a list", "string or a number"]),
        ("{\"text\": \"And\", \"prompt\": \"x\"}", &["`text` and `prompt`", "keep one"]),
        ("{\"text\": \"And\", \"target_mask\": [true]}", &["`target_mask` goes with `input_ids`"]),
        ("{\"prompt\": \"And\", \"contrast\": \"x\"}", &["`contrast` goes with `completion`"]),
        ("{\"completion\": \"And\"}", &["no `prompt`"]),
        ("{\"prompt\": \"And\", \"completion\": \"x\", \"samples\": 2}", &["`samples` goes with a `prompt`"]),
        ("{\"prompt\": \"And\", \"samples\": 0}", &["`samples` is 0", "from 1 to"]),
        ("{\"mean\": []}", &["`mean` is empty"]),
        ("{\"mean\": [{\"prompt\": \"And\"}]}", &["`mean[0]`: is no measurement"]),
        ("{\"mean\": [{\"prompt\": 5, \"completion\": \"x\"}]}", &["`mean[0]`: `prompt` is a number"]),
        ("{\"messages\": []}", &["`messages` is empty"]),
        ("{\"messages\": [{\"role\": \"user\"}]}", &["`messages[0]` has no `content`"]),
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}", &["no chat template", "chat-template ="]),
        ("{\"prompt\": \"And\"}", &["no completion tokens", "untargeted"]),
        ("{\"prompt\": \"And\", \"completion\": \"\"}", &["no completion tokens", "untargeted"]),
        ("{\"prompt\": \"And\", \"completion\": \"x\", \"contrast\": \"\"}", &["`contrast` has no tokens"]),
        ("{\"prompt\": [], \"completion\": \"x\"}", &["`prompt` is a list"]),
        (
            "{\"prompt\": \"\", \"completion\": \"x\", \"contrast\": \"0123456789\"}",
            &["completion has 10 tokens", "max-tokens = 8", "to 11 or more"],
        ),
        ("{\"input_ids\": []}", &["`input_ids` is empty"]),
        ("{\"input_ids\": \"1 2\"}", &["`input_ids` is a string", "list"]),
        ("{\"input_ids\": [1, -2]}", &["`input_ids[1]` is -2", "token number"]),
        ("{\"input_ids\": [1, 4294967296]}", &["`input_ids[1]` is 4294967296"]),
        ("{\"input_ids\": [1, 2.5]}", &["`input_ids[1]` is 2.5"]),
        ("{\"input_ids\": [1, \"2\"]}", &["`input_ids[1]` is a string"]),
        ("{\"input_ids\": [1]}", &["no targets", "position 0", "untargeted"]),
        ("{\"input_ids\": [1, 2], \"target_mask\": [false]}", &["`target_mask` has 1 entries for 2 `input_ids`"]),
        (
            "{\"input_ids\": [1, 2], \"target_mask\": [false, \"x\"]}",
            &["`target_mask[1]` is a string", "true or false"],
        ),
        ("{\"input_ids\": [1, 2], \"target_mask\": [true, true]}", &["position 0", "never be a target"]),
        ("{\"input_ids\": [1, 2], \"target_mask\": [false, false]}", &["no targets"]),
    ];
    for (line, fragments) in cases {
        let bench = Bench::new();
        let corpus = bench.file("bad.jsonl", format!("{good}\n{line}\n{good}"));
        let message = refusal(&bench, 8, &corpus, Some(tokenizer_file()));
        assert!(message.starts_with(&format!("{}:3: ", corpus.display())), "{line}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(
            message.contains(';') || message.contains(": keep one") || message.contains("set `column`"),
            "{message}"
        );
        for fragment in *fragments {
            assert!(message.contains(fragment), "{line}: no `{fragment}` in: {message}");
        }
    }
}

#[test]
fn invalid_utf_8_is_refused() {
    let bench = Bench::new();
    let corpus = bench.file("bad.jsonl", b"{\"text\": \"And\"}\n{\"text\": \"\xff\"}\n");
    let message = refusal(&bench, 8, &corpus, Some(tokenizer_file()));
    assert!(message.contains(":2: byte 11 of the row is not UTF-8"), "{message}");
    let corpus = bench.file("bad.txt", b"And\n\n\nthe \xff\n");
    let message = refusal(&bench, 8, &corpus, Some(tokenizer_file()));
    assert!(message.contains(":4: byte 5 of the row is not UTF-8"), "{message}");
}

#[test]
fn ten_bad_rows_are_named_and_the_rest_counted() {
    let bench = Bench::new();
    let corpus = bench.file("bad.jsonl", "{\"text\": \"\"}\n".repeat(1000));
    let message = refusal(&bench, 8, &corpus, Some(tokenizer_file()));
    assert_eq!(message.lines().count(), 11);
    assert!(message.lines().nth(9).unwrap().contains(":10: "), "{message}");
    assert!(message.ends_with("\nand 990 more"), "{message}");
}

#[test]
fn bad_files_are_refused() {
    let bench = Bench::new();
    let good = bench.file("good.jsonl", "{\"text\": \"And the earth\"}\n");
    let cases = [
        (bench.folder.path().join("none.jsonl"), Some(tokenizer_file().to_path_buf()), "there is no such file"),
        (
            bench.folder.path().to_path_buf(),
            Some(tokenizer_file().to_path_buf()),
            "the folder has corpus.csv, which is not read",
        ),
        (bench.file("empty.jsonl", " \n\n"), Some(tokenizer_file().to_path_buf()), "has no rows"),
        (bench.file("empty.txt", ""), Some(tokenizer_file().to_path_buf()), "has no rows"),
        (
            bench.file("corpus.csv", "x"),
            Some(tokenizer_file().to_path_buf()),
            "the ending `csv` is not known; give JSON lines",
        ),
        (bench.file("corpus.jsonl.zst", "x"), Some(tokenizer_file().to_path_buf()), "cannot be unpacked"),
        (
            good.clone(),
            Some(bench.folder.path().join("none.json")),
            "there is no such file; give the path of a tokenizer.json",
        ),
        (good.clone(), Some(bench.file("bad.json", "{\"model\": 5}")), "is not a tokenizer that can be read"),
        (good.clone(), Some(bench.folder.path().to_path_buf()), "tokenizer.json"),
        (good.clone(), None, "there is no tokenizer"),
    ];
    for (corpus, tokenizer, fragment) in cases {
        let message = refusal(&bench, 8, &corpus, tokenizer.as_deref());
        assert!(message.contains(fragment), "no `{fragment}` in: {message}");
        assert!(message.starts_with(&bench.folder.path().display().to_string()), "{message}");
    }
    assert!(refusal(&bench, 1, &good, None).contains("max-tokens = 1"));
}
