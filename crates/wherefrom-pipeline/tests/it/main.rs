//! A key means what it says: of every file that a stage opens, every byte that can change a result.

mod study;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use wherefrom_artifact::{Error, Reporter};
use wherefrom_stage::Exec;
use wherefrom_tests::hold;

use crate::study::Study;

/// One change of one file.
#[derive(Debug, Clone)]
enum Change {
    /// A bit of the byte there is another.
    Flip(u8),
    /// The byte there is another letter or digit, so that JSON stays JSON.
    Write(char),
    Remove,
    Insert(u8),
}

fn changes() -> impl Strategy<Value = Change> {
    let letters = prop::sample::select("0123456789abcxyzA_| \"".chars().collect::<Vec<_>>());
    prop_oneof![
        (0..8_u8).prop_map(Change::Flip),
        letters.prop_map(Change::Write),
        Just(Change::Remove),
        any::<u8>().prop_map(Change::Insert),
    ]
}

fn changed(bytes: &[u8], place: f64, change: &Change) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = (place * bytes.len() as f64) as usize;
    match change {
        Change::Flip(bit) => bytes[at] ^= 1 << bit,
        Change::Write(letter) => bytes[at] = *letter as u8,
        Change::Remove => drop(bytes.remove(at)),
        Change::Insert(byte) => bytes.insert(at, *byte),
    }
    bytes
}

/// Either a step's key is another, or its result is the same: whatever is done to whatever file.
#[test]
fn fuzz_equal_keys_give_equal_results_while_files_are_changed() {
    let study = Study::new();
    let keys = study.keys("base").unwrap();
    let results = study.results("base", &keys, &Exec::default()).unwrap();
    assert_eq!(results.len(), study::STEPS);
    let files = study.files();
    let tried = Mutex::new(BTreeMap::<String, [u32; 3]>::new());
    let strategy = (0..files.len(), 0.0..1.0, changes());
    let run = |(file, place, change): (usize, f64, Change)| {
        let before = study.read(&files[file]);
        let after = changed(&before, place, &change);
        study.write(&files[file], &after);
        let outcome = (|| {
            let Ok(found) = study.keys("changed") else { return Ok([1, 0, 0]) };
            let same: Vec<_> = found.iter().filter(|(step, key)| keys.get(*step) == Some(key)).collect();
            let mut count = [0, 0, u32::from(same.len() < keys.len())];
            for (step, key) in same {
                let only = BTreeMap::from([(step.clone(), key.clone())]);
                let made = study.results("changed", &only, &Exec::default());
                let made = made.map_err(|error| TestCaseError::fail(format!("{step} is refused: {error:#}")))?;
                prop_assert_eq!(&made[step], &results[step], "{} after a change of {}", step, &files[file]);
                count[1] += 1;
            }
            Ok(count)
        })();
        study.write(&files[file], &before);
        study.forget("changed");
        let outcome = outcome?;
        let mut tried = tried.lock().unwrap();
        let counts = tried.entry(files[file].clone()).or_default();
        (0..3).for_each(|i| counts[i] += outcome[i]);
        Ok(())
    };
    hold(64, strategy, run);
    // Of each file some change made another key.
    let tried = tried.into_inner().unwrap();
    assert!(tried.values().filter(|counts| counts[2] > 0).count() > files.len() / 2, "{tried:?}");
}

/// Changes a file while the step reads it.
struct Meddler<'a> {
    study: &'a Study,
    file: &'a str,
    bytes: Vec<u8>,
    /// Whether the bytes come back.
    restore: bool,
}

struct Meddling(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Reporter for Meddling {
    fn begin(&self, task: &str, _unit: &str, _total: u64, _done: u64) {
        if task != "check corpus"
            && let Some(meddle) = self.0.lock().unwrap().take()
        {
            meddle();
        }
    }
    fn advance(&self, _units: u64) {}
    fn end(&self) {}
    fn warn(&self, _message: &str) {}
}

impl Meddler<'_> {
    fn run(self, step: &str) -> Result<(), anyhow::Error> {
        let keys = self.study.keys("meddled").unwrap();
        // What comes before it is there, and is read in peace.
        let mut before = keys.clone();
        before.retain(|name, _| ["rows", "prompts"].contains(&name.as_str()) && name != step);
        self.study.results("meddled", &before, &Exec::default()).unwrap();
        let (path, before) = (self.study.path(self.file), self.study.read(self.file));
        let (bytes, restore, original) = (self.bytes, self.restore, before.clone());
        let meddle = move || {
            std::fs::write(&path, &bytes).unwrap();
            if restore {
                std::fs::write(&path, &original).unwrap();
            }
        };
        let exec = Exec { reporter: Arc::new(Meddling(Mutex::new(Some(Box::new(meddle))))), ..Exec::default() };
        let only = BTreeMap::from([(step.to_string(), keys[step].clone())]);
        let made = self.study.results("meddled", &only, &exec).map(drop);
        self.study.write(self.file, &before);
        made
    }
}

/// A corpus or checkpoint that is replaced while a step runs is not sealed under the key of what was there before.
#[test]
fn what_changes_while_it_is_read_is_not_sealed() {
    let study = Study::new();
    study.results("base", &study.keys("base").unwrap(), &Exec::default()).unwrap();
    for (step, file) in [
        ("rows", "corpus/a.jsonl"),
        ("losses", "model/sub/two.safetensors"),
        ("losses", "model/config.json"),
        ("generated", "model/generation_config.json"),
        ("chat", "model/chat_template.jinja"),
        ("trained", "model/added_tokens.json"),
    ] {
        let mut bytes = study.read(file);
        // The same size.
        let at = bytes.iter().rposition(u8::is_ascii_digit).unwrap_or(bytes.len() - 1);
        bytes[at] ^= 1;
        let error = Meddler { study: &study, file, bytes: bytes.clone(), restore: false }.run(step).unwrap_err();
        let name = file.rsplit('/').next().unwrap();
        assert!(
            error.chain().any(|cause| matches!(cause.downcast_ref(), Some(Error::Input(text)) if text.contains(name))),
            "{step} {file}: {error:#}"
        );
        assert!(!study.sealed("meddled", step), "{step} {file}");
        // Written again with the same content, it is the same file.
        Meddler { study: &study, file, bytes, restore: true }.run(step).unwrap();
        assert!(study.sealed("meddled", step), "{step} {file}");
        study.forget("meddled");
    }
}
