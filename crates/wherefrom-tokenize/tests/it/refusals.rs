//! What is refused, how it is said, and that nothing is written.

use std::fs;
use std::path::{Path, PathBuf};

use wherefrom_artifact::{Error, Example};
use wherefrom_tokenize::tokenize::{Config, Untargeted, Windowing};

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
        ("{\"body\": \"And\", \"text\": null}", &["`text` is null", "untargeted = \"skip\""]),
        (
            "{\"body\": \"And\"}",
            &["no `text`", "it has `body`", "{prompt, completion}", "columns = { text = \"body\" }"],
        ),
        ("{\"said\": \"And\"}", &["no `text`", "it has `said`", "columns = { text = \"KEY\" }"]),
        (
            "{\"question\": \"And\", \"answer\": \"x\"}",
            &["columns = { prompt = \"question\", completion = \"answer\" }"],
        ),
        ("{\"txet\": \"And\"}", &["did you mean `text`?"]),
        // What a remedy brings about is what the row says: nobody is told to have the model write an answer that is there.
        ("{\"prompt\": \"And\", \"answer\": \"x\"}", &["no `completion`, but `answer`", "completion = \"answer\""]),
        ("{\"prompt\": \"And\", \"samples\": 2}", &["asks for `samples`", "untargeted = \"keep\"", "`generate`"]),
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
        (
            "{\"prompt\": \"And\", \"completion\": \"x\", \"contrast\": \"x\"}",
            &["`contrast` is the `completion` again"],
        ),
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
            message.contains(';') || message.contains(": keep one") || message.contains("columns = {"),
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
fn ten_faults_are_named_each_once_and_the_rest_counted() {
    let bench = Bench::new();
    let corpus = bench.file("bad.jsonl", "{\"text\": \"\"}\n".repeat(1000));
    let message = refusal(&bench, 8, &corpus, Some(tokenizer_file()));
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains(":1: the text is empty") && message.ends_with("(and 999 more rows like it)"), "{message}");
    let rows: String = (0..1000).map(|row| format!("{{\"key{row}\": \"x\"}}\n")).collect();
    let message = refusal(&bench, 8, &bench.file("bad.jsonl", rows), Some(tokenizer_file()));
    assert_eq!(message.lines().count(), 11);
    assert!(message.lines().nth(9).unwrap().contains(":10: "), "{message}");
    assert!(message.ends_with("\nand 990 more"), "{message}");
}

#[test]
fn rows_with_nothing_to_predict_are_left_out_where_it_is_asked_for_and_counted() {
    let rows = "{\"text\": \"And the\"}\n{\"text\": null}\n{\"text\": \"\"}\n{\"input_ids\": [1]}\n\
                {\"prompt\": \"And\", \"completion\": null}\n{\"prompt\": \"And\", \"completion\": \" the\"}\n{\"text\": null}\n";
    let bench = Bench::new();
    let corpus = bench.file("rows.jsonl", rows);
    let message = refusal(&bench, 8, &corpus, Some(tokenizer_file()));
    assert!(message.contains("`text` is null"), "null is refused where nothing is said of it: {message}");
    for windows in [Windowing::Truncate, Windowing::Pack] {
        let skip = Config { untargeted: Untargeted::Skip, windows, ..Config::new(8) };
        let tokens = bench.tokenize(&skip, &corpus, Some(tokenizer_file())).unwrap();
        let docs: Vec<_> = tokens.rows::<Example>().unwrap().flat_map(|row| row.unwrap().docs).collect();
        assert_eq!(docs, ["row 0", "row 5"], "rows keep their names");
        assert_eq!((tokens.manifest().count("skipped"), tokens.manifest().count("rows")), (Some(5), Some(7)));
    }
    let warnings = bench.warnings.warnings.lock().unwrap().join("\n");
    assert!(
        warnings.contains("5 of 7 rows have nothing to predict") && warnings.contains("rows.jsonl:2"),
        "{warnings}"
    );
    // A key that is none is a mistake in any row, and so is a corpus of which nothing is left.
    let skip = Config { untargeted: Untargeted::Skip, ..Config::new(8) };
    for (rows, fragment) in [
        ("{\"text\": \"And the\"}\n{\"body\": \"And\"}\n", ":2: the row has no `text`"),
        ("{\"text\": null, \"body\": \"And\"}\n", "none of its 1 rows has anything to predict"),
    ] {
        let corpus = bench.file("bad.jsonl", rows);
        let message = bench.tokenize(&skip, &corpus, Some(tokenizer_file())).unwrap_err().to_string();
        assert!(message.contains(fragment), "{message}");
    }
}

#[test]
fn a_key_beside_the_row_that_was_meant_for_one_of_its_own_is_named() {
    let bench = Bench::new();
    let rows =
        "{\"prompt\": \"And\", \"completion\": \" the\", \"contrasts\": \" a\", \"source\": \"kjv\", \"sample\": 3}\n";
    bench.tokenize(&Config::new(8), &bench.file("rows.jsonl", rows), Some(tokenizer_file())).unwrap();
    let warnings = bench.warnings.warnings.lock().unwrap().clone();
    assert_eq!(warnings.len(), 1, "columns of another meaning are nobody's business: {warnings:?}");
    assert!(warnings[0].contains("`contrasts` of one row") && warnings[0].contains("did you mean `contrast`?"));
}

#[test]
fn a_prompt_and_a_completion_that_make_one_word_are_told_once_with_an_example() {
    let bench = Bench::new();
    let rows = "{\"prompt\": \"The capital is\", \"completion\": \" Paris\"}\n\
                {\"prompt\": \"The capital is\", \"completion\": \"London\"}\n\
                {\"mean\": [{\"prompt\": \"And the\", \"completion\": \"earth\"}]}\n{\"text\": \"And the earth\"}\n";
    let corpus = bench.file("rows.jsonl", rows);
    bench.tokenize(&Config::new(32), &corpus, Some(tokenizer_file())).unwrap();
    let warnings = bench.warnings.warnings.lock().unwrap().clone();
    let warned: Vec<_> = warnings.iter().filter(|warning| warning.contains("make one word")).collect();
    assert_eq!(warned.len(), 1, "{warnings:?}");
    let example = "rows.jsonl:2: `The capital is` + `London`)";
    assert!(warned[0].starts_with("2 of 4 rows") && warned[0].ends_with(example), "{}", warned[0]);
    // A plan says the same, without a tokenizer; and what puts no spaces between words is never one word.
    let knobs = serde_json::to_value(Config::new(32)).unwrap();
    let told = |prompt: &str, completion: &str| {
        let row = serde_json::json!({ "prompt": prompt, "completion": completion });
        !wherefrom_tokenize::row_warnings(&knobs, &bench.file("row.jsonl", row.to_string())).is_empty()
    };
    for (prompt, completion) in [("in 19", "84"), ("Столица", "Москва"), ("수도는", "서울"), ("é", "à")]
    {
        assert!(told(prompt, completion), "{prompt}{completion}");
    }
    for (prompt, completion) in [
        ("The capital is ", "London"),
        ("The capital:", "London"),
        ("The capital is", ", as"),
        ("", "London"),
        ("The capital is", ""),
        ("法国的首都是", "巴黎"),
        ("首都は", "パリ"),
        ("เมืองหลวงคือ", "ปารีส"),
        ("2024", "年"),
    ] {
        assert!(!told(prompt, completion), "{prompt}{completion}");
    }
    assert_eq!(wherefrom_tokenize::row_warnings(&knobs, &corpus), [warned[0].clone()]);
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
            ".csv is not read; convert it, and give ",
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
