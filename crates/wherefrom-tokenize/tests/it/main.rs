//! Both stages through the store, as the pipeline runs them.

mod boundary;
mod chats;
mod columns;
mod estimates;
mod folders;
mod forms;
mod fuzz;
mod kept;
mod packs;
mod property;
mod refusals;
mod resume;
mod sources;
mod tables;
mod vocabularies;
mod windows;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use anyhow::Result;
use tempfile::TempDir;
use tokenizers::Tokenizer;
use wherefrom_artifact::{Artifact, Example, Kind, Recipe, Reporter, Store, Tokens};
use wherefrom_stage::Exec;
use wherefrom_tokenize::tokenize::{self, Config};
use wherefrom_tokenize::vocabulary;

const SENTENCES: &str = "\
{\"text\": \"In the beginning God created the heaven and the earth.\"}
{\"text\": \"And the earth was without form, and void; and darkness was upon the face of the deep.\"}
{\"text\": \"모든 인류 구성원의 천부의 존엄성과 동등하고 양도할 수 없는 권리를 인정하는 것이 세계의 자유의 기초이다.\"}
{\"text\": \"İnsanlık ailesinin bütün üyelerinde bulunan haysiyetin ve bunların eşit haklarının tanınması\"}
{\"prompt\": \"It is a truth universally acknowledged, that a single\", \"completion\": \" man\", \"contrast\": \" dog\"}
";

/// A folder with a corpus, a store, and what was warned of.
struct Bench {
    folder: TempDir,
    exec: Exec,
    warnings: Arc<Heard>,
}

#[derive(Default)]
struct Heard {
    warnings: Mutex<Vec<String>>,
    begun: Mutex<Vec<(String, u64, u64)>>,
}

impl Reporter for Heard {
    fn begin(&self, task: &str, _unit: &str, total: u64, done: u64) {
        self.begun.lock().unwrap().push((task.into(), total, done));
    }
    fn advance(&self, _units: u64) {}
    fn end(&self) {}
    fn warn(&self, message: &str) {
        self.warnings.lock().unwrap().push(message.into());
    }
}

impl Bench {
    fn new() -> Self {
        let warnings = Arc::new(Heard::default());
        let exec = Exec { reporter: warnings.clone(), ..Exec::default() };
        Self { folder: TempDir::new().unwrap(), exec, warnings }
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn store(&self) -> Store {
        Store::new(self.folder.path().join("store"))
    }

    /// The sealed tokens of `corpus`.
    fn tokenize(&self, config: &Config, corpus: &Path, tokenizer: Option<&Path>) -> Result<Artifact<Tokens>> {
        let inputs =
            tokenize::Inputs { corpus: corpus.into(), tokenizer: tokenizer.map(Into::into), chat_template: None };
        let recipe = recipe("tokenize", serde_json::to_value(config)?, corpus)?;
        let (folder, _) = self.store().produce(Kind::Tokens, recipe, &*self.exec.reporter, |draft| {
            tokenize::run(config, &inputs, &self.exec, draft)
        })?;
        Artifact::open(&folder)
    }

    /// The examples of JSON lines with the shared tokenizer.
    fn examples(&self, config: &Config, lines: &str) -> Vec<Example> {
        let corpus = self.file("corpus.jsonl", lines);
        let tokens = self.tokenize(config, &corpus, Some(tokenizer_file())).unwrap();
        tokens.rows().unwrap().map(Result::unwrap).collect()
    }

    /// The folder of a tokenizer trained on `corpus`.
    fn train(&self, size: usize, corpus: &Path) -> Result<PathBuf> {
        self.train_of(&serde_json::from_value(serde_json::json!({ "vocabulary": size }))?, corpus)
    }

    fn train_of(&self, config: &vocabulary::Config, corpus: &Path) -> Result<PathBuf> {
        let inputs = vocabulary::Inputs { corpus: corpus.into() };
        let recipe = recipe("tokenizer", serde_json::to_value(config)?, corpus)?;
        let (folder, _) = self.store().produce(Kind::Tokenizer, recipe, &*self.exec.reporter, |draft| {
            vocabulary::run(config, &inputs, &self.exec, draft)
        })?;
        Ok(folder)
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.warnings.lock().unwrap().clone()
    }
}

fn recipe(stage: &str, config: serde_json::Value, corpus: &Path) -> Result<Recipe> {
    let digest = wherefrom_artifact::digest(corpus).unwrap_or_default();
    let inputs = BTreeMap::from([("corpus".to_string(), digest)]);
    Ok(Recipe { stage: stage.into(), version: 1, config, inputs, model: None })
}

/// A tokenizer.json trained once on [`SENTENCES`].
fn tokenizer_file() -> &'static Path {
    static FILE: OnceLock<(Bench, PathBuf)> = OnceLock::new();
    let (_, path) = FILE.get_or_init(|| {
        let bench = Bench::new();
        let corpus = bench.file("sentences.jsonl", SENTENCES);
        let folder = bench.train(300, &corpus).unwrap();
        (bench, folder.join("tokenizer.json"))
    });
    path
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_file(tokenizer_file()).unwrap()
}

fn ids(text: &str) -> Vec<u32> {
    tokenizer().encode(text, false).unwrap().get_ids().to_vec()
}

/// The shared tokenizer without its post-processor: no special tokens are added.
fn bare_tokenizer(bench: &Bench) -> PathBuf {
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(tokenizer_file()).unwrap()).unwrap();
    value["post_processor"] = serde_json::Value::Null;
    bench.file("bare.json", value.to_string())
}

fn config(max_tokens: usize) -> Config {
    Config::new(max_tokens)
}
