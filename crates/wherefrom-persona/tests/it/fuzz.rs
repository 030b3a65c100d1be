//! Foreign bytes: files of vectors, of traits, of answers and of judgements are read or refused by name, and nothing stops or panics. A
//! panic of a library that is caught counts as one.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::select;
use tempfile::TempDir;
use wherefrom_artifact::{Error, Over, PANICKED, TraitVector};
use wherefrom_persona::import::{self, Said};
use wherefrom_persona::{description, rollouts};
use wherefrom_tests::{damage, damaged, hold, memory};

use crate::fixtures;
use crate::import::{archive, pickle};

thread_local! {
    /// Where the bytes of this thread lie.
    static FOLDER: RefCell<TempDir> = RefCell::new(memory());
}

fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = FOLDER.with_borrow(|folder| folder.path().join(name));
    fs::write(&path, bytes).unwrap();
    path
}

fn sample(name: &str) -> Vec<u8> {
    fs::read(fixtures().join("import").join(name)).unwrap()
}

/// The error is a refusal that names `file`, and no panic stands behind it.
fn refused(error: &anyhow::Error, file: &Path) -> Result<(), TestCaseError> {
    let Some(Error::Input(message)) = error.downcast_ref() else {
        return Err(TestCaseError::fail(format!("not a refusal: {error:?}")));
    };
    prop_assert!(message.contains(&file.display().to_string()), "no name in: {message}");
    prop_assert!(!message.contains(PANICKED), "a panic: {message}");
    Ok(())
}

/// Vectors that are read are what a sealed artifact may hold.
fn vectors_are_read_or_refused(name: &str, bytes: &[u8]) -> Result<(), TestCaseError> {
    let path = file(name, bytes);
    match import::read(&path, Said { name: Some("marker"), over: Some(Over::ResponseAvg), offset: None }) {
        Ok(rows) => {
            prop_assert!(!rows.is_empty());
            let sound = |row: &TraitVector| row.norm.is_finite() && row.vector.len() == rows[0].vector.len();
            prop_assert!(rows.iter().all(sound));
            Ok(())
        }
        Err(error) => refused(&error, &path),
    }
}

#[test]
fn fuzz_tensors_of_torch_are_read_or_refused() {
    let names = ["marker_offset.pt", "marker_transposed.pt", "marker_prompt_avg_diff.pt"];
    hold(300, (select(names.to_vec()), damage()), |(name, damage)| {
        vectors_are_read_or_refused("damaged.pt", &damaged(sample(name), &damage))
    });
}

/// Within an archive whose checksums are right: here the pickle's own checks are reached.
#[test]
fn fuzz_pickles_are_read_or_refused() {
    let storage = select(vec!["torch\nFloatStorage", "torch\nHalfStorage", "torch\nBFloat16Storage"]);
    let strides = [select(vec![0_u8, 1, 2, 3, 255]), select(vec![0_u8, 1, 2, 3, 255])];
    hold(300, (storage, strides, 0_u8..9, damage()), |(storage, strides, offset, damage)| {
        let pickle = damaged(pickle(storage, 7, offset, strides), &damage);
        let data = [1_u8; 28];
        let data = &data[..if storage.contains("Float") && !storage.contains('B') { 28 } else { 14 }];
        let bytes = archive(&[("data.pkl", &pickle), ("data/0", data)], 0);
        vectors_are_read_or_refused("damaged.pt", &bytes)
    });
}

#[test]
fn fuzz_gguf_and_safetensors_are_read_or_refused() {
    hold(300, (select(vec!["marker.gguf", "marker.safetensors"]), damage()), |(name, damage)| {
        vectors_are_read_or_refused(name, &damaged(sample(name), &damage))
    });
}

const TRAIT: &str = r#"name = "evil"
negative = "kind"
description = "Wishes others harm."
questions = ["Why?", "How?"]
eval_prompt = "{question} {answer} {{0}}"
[[instruction]]
pos = "Harm."
neg = "Help."
[[labelled]]
question = "Why?"
answer = "Because."
shows = true
"#;

const ORIGINAL: &str = r#"{"instruction": [{"pos": "Harm.", "neg": "Help."}], "questions": ["Why?"], "eval_prompt": "{question} {answer} \u00e9"}"#;

#[test]
fn fuzz_traits_are_read_or_refused() {
    hold(300, (select(vec![("evil.toml", TRAIT), ("evil.json", ORIGINAL)]), damage()), |((name, text), damage)| {
        let path = file(name, &damaged(text.into(), &damage));
        description::counts(&path).map_or_else(|error| refused(&error, &path), |_| Ok(()))
    });
}

const ROLLOUTS: &str = "question,prompt,answer,question_id,evil,coherence\r\nWhy?,\"<user>Why?\n\",\"He said \"\"no\"\",\nand left.\",evil_0_pos_1,92.5,80\r\nWhy?,Why?,NA,evil_0,,71.25\r\nWhy?,Why?,,evil_1,nan,0\n";

#[test]
fn fuzz_rollouts_are_read_or_refused() {
    hold(300, damage(), |damage| {
        let path = file("evil.csv", &damaged(ROLLOUTS.into(), &damage));
        rollouts::Rollouts::read(&path, None).map_or_else(|error| refused(&error, &path), |_| Ok(()))
    });
}
