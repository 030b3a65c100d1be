//! An interrupted run and one run give the same artifact.

use std::fs;

use anyhow::bail;
use wherefrom_artifact::{Artifact, Example, Kind, Store, Tokens};
use wherefrom_tokenize::tokenize;

use crate::{Bench, config, recipe, tokenizer_file};

/// One more than two parts of 8192 rows.
const ROWS: usize = 2 * 8192 + 1;

#[test]
fn resume_after_interruption_equals_one_run() {
    let bench = Bench::new();
    let lines: String = (0..ROWS).map(|row| format!("{{\"text\": \"And the earth {row}\"}}\n")).collect();
    let corpus = bench.file("corpus.jsonl", lines);
    let (config, inputs) = (
        config(5),
        tokenize::Inputs { corpus: corpus.clone(), tokenizer: Some(tokenizer_file().into()), chat_template: None },
    );
    let recipe = || recipe("tokenize", serde_json::to_value(&config).unwrap(), &corpus).unwrap();
    let reporter = &*bench.exec.reporter;

    let mut before = None;
    let store = Store::new(bench.folder.path().join("interrupted"));
    let interrupted = store.produce(Kind::Tokens, recipe(), reporter, |draft| {
        tokenize::run(&config, &inputs, &bench.exec, draft)?;
        before = Some(fs::metadata(draft.part_path(0))?.modified()?);
        fs::remove_file(draft.part_path(1))?;
        fs::remove_file(draft.part_path(2))?;
        bail!("interrupted")
    });
    interrupted.unwrap_err();
    bench.warnings.begun.lock().unwrap().clear();
    let (folder, _) = store
        .produce(Kind::Tokens, recipe(), reporter, |draft| {
            assert!(draft.has(0) && !draft.has(1));
            tokenize::run(&config, &inputs, &bench.exec, draft)
        })
        .unwrap();
    let resumed = Artifact::<Tokens>::open(&folder).unwrap();
    let begun = bench.warnings.begun.lock().unwrap().clone();
    assert_eq!(begun, [("tokenize".to_string(), ROWS as u64, 8192)], "the corpus is not checked again");
    assert_eq!(fs::metadata(folder.join("part-00000.parquet")).unwrap().modified().unwrap(), before.unwrap());

    let whole = bench.tokenize(&config, &corpus, Some(tokenizer_file())).unwrap();
    assert_eq!(resumed.manifest().parts, whole.manifest().parts);
    assert_eq!(resumed.manifest().summary, whole.manifest().summary);
    assert_eq!(whole.parts(), 3);
    let rows: Vec<Example> = whole.rows().unwrap().map(Result::unwrap).collect();
    assert!(rows.iter().enumerate().all(|(row, example)| {
        example.example == row as u64
            && example.text == format!("And the earth {row}")
            && example.docs == [format!("row {row}")]
    }));
    assert_eq!(whole.manifest().count("tokens"), Some(rows.iter().map(|row| row.input_ids.len() as u64).sum()));
}
