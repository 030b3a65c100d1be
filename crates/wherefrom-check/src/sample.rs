//! The rows of `wherefrom check`: the first of a corpus, sentences, or random ids.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use wherefrom_artifact::{Store, bad_input};
use wherefrom_pipeline::Plan;
use wherefrom_stage::Exec;

use crate::check::{Check, first_rows};

/// For a model with a tokenizer and a user without a corpus: rows of different lengths.
const SENTENCES: [&str; 8] = [
    "The capital of France is Paris.",
    "In the beginning God created the heaven and the earth. And the earth was without form, and void.",
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.",
    "Two and two are four.",
    "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and should \
     act towards one another in a spirit of brotherhood.",
    "def factorial(n):\n    return 1 if n < 2 else n * factorial(n - 1)",
    "Water boils at one hundred degrees Celsius at the pressure of the sea's surface.",
    "Die Sonne scheint, und der Wind weht aus Westen.",
];

/// A file of rows, and where they are from, in words.
pub(crate) fn corpus(
    check: &Check,
    model: &Path,
    folder: &Path,
    tokens: usize,
    exec: &Exec,
) -> Result<(PathBuf, String)> {
    let rows = folder.join("rows.jsonl");
    let Some(corpus) = &check.corpus else {
        let (text, source) = if model.join("tokenizer.json").exists() {
            (sentences(check.rows), "sentences of wherefrom's own (--corpus FILE takes yours)")
        } else {
            let vocabulary = wherefrom_model::Config::load(model)?.vocab_size;
            (
                random_ids(check.rows, tokens, vocabulary),
                "random ids, as the model has no tokenizer.json (--corpus FILE)",
            )
        };
        std::fs::write(&rows, text)?;
        return Ok((rows, source.into()));
    };
    let source = format!("the first of {}", corpus.display());
    let first = match beginning(corpus, check.rows)? {
        Some((text, ending)) => {
            let path = folder.join(format!("beginning.{ending}"));
            std::fs::write(&path, text)?;
            path
        }
        None if corpus.starts_with("hf:datasets") => corpus.clone(),
        None => std::path::absolute(corpus)?,
    };
    let quote = |text: &str| toml::Value::String(text.into()).to_string();
    let pipeline = folder.join("sample.toml");
    let text = format!(
        "[model]\npath = {}\n[steps.rows]\nstage = \"tokenize\"\ncorpus = {}\nmax-tokens = {tokens}\n",
        quote(&model.display().to_string()),
        quote(&first.display().to_string())
    );
    std::fs::write(&pipeline, text)?;
    let plan = Plan::read(&pipeline, &[], Store::new(folder.join("sample")))?;
    let done = plan.run_unrecorded(None, exec, |_| Ok(()))?;
    for done in &done {
        first_rows(&done.folder, check.rows, &rows)?;
    }
    Ok((rows, source))
}

/// The first rows of a JSON lines or text file, so that a long corpus is not read through; none for other forms.
fn beginning(corpus: &Path, rows: usize) -> Result<Option<(String, String)>> {
    use std::io::BufRead as _;
    let ending = corpus.extension().unwrap_or_default().to_string_lossy().into_owned();
    let lines = ["jsonl", "ndjson"].contains(&ending.as_str());
    if !lines && !["txt", "md"].contains(&ending.as_str()) {
        return Ok(None);
    }
    let file = wherefrom_artifact::open(corpus)
        .map_err(|error| bad_input(format!("cannot read the corpus {} ({error})", corpus.display())))?;
    let (mut text, mut found, mut blank) = (String::new(), 0, true);
    for line in std::io::BufReader::new(file).lines() {
        let line = line.map_err(|error| bad_input(format!("{}: not text ({error})", corpus.display())))?;
        let begins = !line.trim().is_empty() && (lines || blank);
        blank = line.trim().is_empty();
        found += usize::from(begins);
        if found > rows {
            break;
        }
        writeln!(text, "{line}")?;
    }
    Ok(Some((text, ending)))
}

fn sentences(rows: usize) -> String {
    SENTENCES.iter().cycle().take(rows).map(|text| format!("{}\n", serde_json::json!({ "text": text }))).collect()
}

/// Rows of a quarter to all of `tokens`, ids by Weyl's sequence.
fn random_ids(rows: usize, tokens: usize, vocabulary: usize) -> String {
    let row = |i: usize| {
        let length = tokens / 4 + i * 37 % (tokens - tokens / 4) + 1;
        let id = |t: usize| ((i * tokens + t) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
        let ids: Vec<u64> = (0..length).map(|t| id(t) % vocabulary as u64).collect();
        format!("{}\n", serde_json::json!({ "input_ids": ids }))
    };
    (0..rows).map(row).collect()
}
