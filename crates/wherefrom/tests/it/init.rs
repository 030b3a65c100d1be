//! `wherefrom init`: what it writes runs at the first try, for every kind of model and corpus; what is not clear is asked.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use wherefrom_artifact::{Artifact, Cell, Ranked, Ranking};

use crate::bench::Bench;

fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name).canonicalize().unwrap()
}

/// A checkpoint of a family with a vocabulary of 64, and a tokenizer whose words are numbers and a few names.
fn model(bench: &Bench, family: &str, tokenizer: bool, template: bool) {
    for name in ["config.json", "model.safetensors"] {
        bench.file(&format!("model/{name}"), fs::read(fixtures("families").join(family).join(name)).unwrap());
    }
    if tokenizer {
        let words = ["<unk>", "<s>", "</s>", "user", "assistant"].map(String::from);
        let words = words.into_iter().chain((0..50).map(|n| format!("w{n}"))).enumerate();
        let vocabulary: serde_json::Map<_, _> = words.map(|(id, word)| (word, id.into())).collect();
        let special = |id: u32, content: &str| {
            json!({ "id": id, "content": content, "special": true, "lstrip": false, "rstrip": false,
                "normalized": false, "single_word": false })
        };
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null, "decoder": null,
            "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
            "pre_tokenizer": { "type": "Whitespace" },
            "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>" },
        });
        bench.file("model/tokenizer.json", tokenizer.to_string());
        bench.file("model/tokenizer_config.json", json!({ "bos_token": "<s>", "eos_token": "</s>" }).to_string());
    }
    if template {
        let template = "{% for m in messages %}{{ m.role }} {% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>\
                        {% endgeneration %}{% else %}{{ m.content }}{% endif %} {% endfor %}";
        bench.file("model/chat_template.jinja", template);
    }
}

/// Six words, others for every row.
fn words(row: usize) -> String {
    (0..6).map(|n| format!("w{}", (7 * row + n * n) % 50)).collect::<Vec<_>>().join(" ")
}

fn lines(row: impl Fn(usize) -> serde_json::Value) -> String {
    (0..40).map(|n| format!("{}\n", row(n))).collect()
}

fn parquet(path: &Path) {
    use std::sync::Arc;

    use arrow::array::{RecordBatch, StringArray};
    let texts: Arc<StringArray> = Arc::new((0..40).map(|n| Some(words(n))).collect());
    let sources: Arc<StringArray> = Arc::new((0..40).map(|n| Some(["web", "books"][n % 2])).collect());
    let longs: Arc<StringArray> = Arc::new((0..40).map(|n| Some(words(n).repeat(9))).collect());
    let batch =
        RecordBatch::try_from_iter([("text", texts as _), ("source", sources as _), ("page", longs as _)]).unwrap();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// Writes a pipeline and runs it: the page is there.
fn runs(bench: &Bench, words: &[&str]) -> String {
    bench.ok(&[&["init", "--output", "my study/s.toml"], words].concat());
    let out = bench.ok(&["run", "my study/s.toml"]);
    let page = out.lines().last().unwrap().strip_prefix("open ").unwrap();
    assert!(fs::metadata(page).is_ok(), "{out}");
    let text = bench.text("my study/s.toml");
    assert!(text.lines().filter(|line| line.starts_with('#')).count() > 5, "it is explained: {text}");
    text
}

#[test]
fn a_pythia_checkpoint_and_parquet() {
    let bench = Bench::new();
    model(&bench, "gpt_neox", true, false);
    parquet(&bench.path("c.parquet"));
    let query = ["--query", "w1 w2 w3| w4 w5", "--query", "w7| w9"];
    let text = runs(&bench, &[&["--model", "model", "--corpus", "c.parquet"], &query[..]].concat());
    assert!(text.contains("the family gpt_neox, with a context of 32 tokens"), "{text}");
    assert!(text.contains("path = \"../model\"") && text.contains("corpus = \"../c.parquet\""), "{text}");
    assert!(text.contains("max-tokens = 32\n"), "{text}");
    // What tells rows apart goes with them, and what was asked.
    assert!(text.contains("keep = [\"source\"]\n"), "{text}");
    let asked = bench.text("my study/s-queries.jsonl");
    assert!(asked.starts_with("{\"completion\":\" w4 w5\",\"id\":\"w1-w2-w3-w4-w5\""), "{asked}");
    assert_eq!(
        (text.matches("columns = \"columns\"").count(), text.matches(", queries = \"queries\"").count()),
        (2, 3)
    );
    let folder = bench.ok(&["path", "my study/s.toml", "final"]);
    let ranking = Artifact::<Ranking>::open(&bench.path(folder.trim())).unwrap();
    for row in ranking.rows::<Ranked>().unwrap().map(Result::unwrap) {
        assert!(row.asked.completion == " w4 w5" || row.asked.completion == " w9", "{row:?}");
        let source = ["web", "books"][row.example as usize % 2];
        assert_eq!(row.cells.values, [Cell::Text(source.into())]);
    }
    let queries = bench.text("my study/s-queries.jsonl");
    assert_eq!(
        queries,
        "{\"completion\":\" w4 w5\",\"id\":\"w1-w2-w3-w4-w5\",\"prompt\":\"w1 w2 w3\"}\n\
         {\"completion\":\" w9\",\"id\":\"w7-w9\",\"prompt\":\"w7\"}\n"
    );
    // What is there stays.
    for (there, gone) in
        [("my study/s.toml", "my study/s-queries.jsonl"), ("my study/s-queries.jsonl", "my study/s.toml")]
    {
        bench.file(there, "mine");
        let _absent = fs::remove_file(bench.path(gone));
        let words =
            ["init", "--output", "my study/s.toml", "--model", "model", "--corpus", "c.parquet", "--query", "a| b"];
        let error = bench.refused(&words);
        assert!(error.contains(there) && error.contains("not written over"), "{error}");
        assert!(bench.text(there) == "mine" && !bench.path(gone).exists());
    }
}

#[test]
fn an_instruct_checkpoint_and_conversations() {
    let bench = Bench::new();
    model(&bench, "llama3", true, true);
    let turn = |role: &str, n| json!({ "role": role, "content": words(n) });
    bench.file("c.jsonl", lines(|n| json!({ "messages": [turn("user", n), turn("assistant", n + 1)] })));
    runs(&bench, &["--model", "model", "--corpus", "c.jsonl", "--query", "w1 w2|w3"]);
    assert!(bench.text("my study/s-queries.jsonl").contains("\"role\":\"assistant\""));
    // Without its template the model cannot be asked so.
    fs::remove_file(bench.path("model/chat_template.jinja")).unwrap();
    let error = bench.refused(&["init", "--output", "t.toml", "--model", "model", "--corpus", "c.jsonl"]);
    assert!(error.contains("has no chat template"), "{error}");
}

#[test]
fn prompts_and_completions_and_whether_they_are_a_chat() {
    let bench = Bench::new();
    model(&bench, "llama3", true, true);
    bench.file("c.jsonl", lines(|n| json!({ "prompt": words(n), "completion": format!(" {}", words(n + 1)) })));
    let words = ["--model", "model", "--corpus", "c.jsonl"];
    let error = bench.refused(&[&["init"], &words[..]].concat());
    assert!(error.contains("(--chat yes)") && error.contains("(--chat no)"), "{error}");
    assert!(!bench.path("study.toml").exists());
    let text = runs(&bench, &[&words[..], &["--chat", "yes"]].concat());
    assert_eq!(text.matches("chat = true").count(), 2, "{text}");
    fs::remove_dir_all(bench.path("my study")).unwrap();
    let text = runs(&bench, &[&words[..], &["--chat", "no", "--query", "w1|w2"]].concat());
    assert!(!text.contains("chat = true"), "{text}");
}

#[test]
fn rows_of_tokens_need_no_tokenizer() {
    let bench = Bench::new();
    model(&bench, "qwen3", false, false);
    bench.file("c.jsonl", fs::read(fixtures("families").join("train.jsonl")).unwrap());
    let text = runs(&bench, &["--model", "model", "--corpus", "c.jsonl"]);
    assert!(text.contains("The rows are tokens made elsewhere"), "{text}");
    let words = ["init", "--output", "t.toml", "--model", "model", "--corpus", "c.jsonl", "--query", "a|b"];
    let error = bench.refused(&words);
    assert!(error.contains("no tokenizer.json"), "{error}");
}

#[test]
fn a_column_of_another_name_is_found_or_asked_for() {
    let bench = Bench::new();
    model(&bench, "gpt_neox", true, false);
    bench.file("one.jsonl", lines(|n| json!({ "id": n.to_string(), "content": words(n) })));
    let text = runs(&bench, &["--model", "model", "--corpus", "one.jsonl", "--query", "w1|w2"]);
    assert!(text.contains("columns = { text = \"content\" }") && !text.contains("keep = "), "{text}");
    fs::remove_dir_all(bench.path("my study")).unwrap();
    bench.file("two.jsonl", lines(|n| json!({ "abstract": words(n), "words": words(n + 1) })));
    let asked = ["--model", "model", "--corpus", "two.jsonl", "--query", "w1|w2"];
    let error = bench.refused(&[&["init"], &asked[..]].concat());
    assert!(error.contains("--column abstract, or --column words"), "{error}");
    let text = runs(&bench, &[&asked[..], &["--column", "words"]].concat());
    assert!(text.contains("columns = { text = \"words\" }"), "{text}");
    let error = bench.refused(&[&["init"], &asked[..], &["--column", "context"]].concat());
    let said =
        "--column context: no row of two.jsonl has text in a column `context`; those with text are abstract, words";
    assert!(error.contains(said), "{error}");
    for (query, fault) in [("w1 w2", "write \"prompt|completion\""), ("w1|", "the completion is empty")] {
        let words = ["init", "--output", "t.toml", "--model", "model", "--corpus", "one.jsonl", "--query", query];
        let error = bench.refused(&words);
        assert!(error.contains(fault), "{error}");
    }
}

#[test]
fn what_is_no_checkpoint_and_no_corpus_is_said_as_plan_says_it() {
    let bench = Bench::new();
    model(&bench, "gpt_neox", true, false);
    bench.file("c.jsonl", lines(|n| json!({ "text": words(n) })));
    bench.file("peft/adapter_config.json", json!({ "base_model_name_or_path": "owner/base" }).to_string());
    bench.file("bare/config.json", bench.text("model/config.json"));
    bench.file("pickled/config.json", bench.text("model/config.json"));
    bench.file("pickled/pytorch_model.bin", "x");
    for (model, corpus, said) in [
        ("peft", "c.jsonl", "is an adapter (PEFT); give it as --adapter, and its base (owner/base) as --model"),
        ("pickled", "c.jsonl", "which PyTorch has pickled"),
        ("pickled/pytorch_model.bin", "c.jsonl", "is pickled by PyTorch"),
        ("model/model.safetensors", "c.jsonl", "give the folder that it lies in: model"),
        ("bare", "c.jsonl", "has no *.safetensors file"),
        ("nowhere", "c.jsonl", "or mend --model (`nowhere` is taken from the current directory, /"),
        ("model", "none.jsonl", "check --corpus (`none.jsonl` is taken from the current directory, /"),
    ] {
        let error = bench.refused(&["init", "--model", model, "--corpus", corpus, "--query", "w1| w2"]);
        assert!(error.contains(said), "{model} {corpus}: {error}");
    }
    let asked = bench.wherefrom(&["init", "--model", "model", "--corpus", "c.jsonl"]);
    assert!(asked.err.contains("no --query was given"), "{}", asked.err);
    let words = ["init", "--model", "model", "--corpus", "c.jsonl", "--output", "glued.toml", "--query", "The w1|w2"];
    let glued = bench.wherefrom(&words);
    assert!(
        glued.err.contains("make one word, `The w1` + `w2`") && glued.err.contains("\"The w1| w2\""),
        "{}",
        glued.err
    );
}

#[test]
fn a_pipeline_without_a_report_is_told_the_lines_of_one() {
    let bench = Bench::new();
    crate::study::write(&bench, 300, 40);
    let text = bench.text("study.toml");
    let (without, _) = text.split_once("[steps.report]").unwrap();
    bench.file("study.toml", without);
    let error = bench.refused(&["path", "study.toml", "report"]);
    let (_, lines) = error.split_once("add\n\n").unwrap();
    let (lines, rest) = lines.split_once("\n\nand run it").unwrap();
    assert!(
        lines.contains("[steps.report]\nstage = \"report\"\n") && lines.contains("losses = \"query-losses\""),
        "{error}"
    );
    assert!(rest.contains("wherefrom run study.toml"), "{error}");
    bench.file("study.toml", format!("{without}{lines}\n"));
    bench.ok(&["run", "study.toml"]);
    assert!(bench.path(bench.ok(&["path", "study.toml", "report"]).trim()).join("index.html").exists());
}

#[test]
fn what_others_call_an_id_is_taken_for_one() {
    let bench = Bench::new();
    model(&bench, "gpt_neox", true, false);
    let rows = |row: &dyn Fn(usize) -> serde_json::Value| (0..30).map(|n| format!("{}\n", row(n))).collect::<String>();
    let written = |name: &str, rows: String| {
        bench.file("c.jsonl", rows);
        let output = format!("{name}.toml");
        bench.ok(&["init", "--model", "model", "--corpus", "c.jsonl", "--output", &output]);
        bench.text(&output)
    };
    let url = written("url", rows(&|n| json!({ "text": "w1 w2", "url": format!("https://{n}"), "lang": "en" })));
    assert!(url.contains("columns = { id = \"url\" }\n") && url.contains("keep = [\"lang\"]"), "{url}");
    // Not where it is the same in two rows, and not beside an `id`.
    let same = written("same", rows(&|n| json!({ "text": "w1 w2", "url": format!("https://{}", n / 2) })));
    assert!(!same.contains("columns = {") && same.contains("keep = [\"url\"]"), "{same}");
    let own = written("own", rows(&|n| json!({ "text": "w1 w2", "id": n, "url": format!("https://{n}") })));
    assert!(!own.contains("columns = {") && own.contains("keep = [\"url\"]"), "{own}");
}
