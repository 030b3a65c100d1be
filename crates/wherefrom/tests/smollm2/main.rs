//! SmolLM2-135M-Instruct, as `just fetch-smollm2` makes it, is the model that it is in `transformers`.
//!
//! Behind the feature `real-model`, since it needs what that recipe fetches: `just test-smollm2`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use wherefrom_artifact::{Artifact, Example, Loss, Losses, Tokens};

/// Our own, 46 tokens.
const PARAGRAPH: &str = "The Earth orbits the Sun once every year. The Moon orbits the Earth about once a month. Plants use \
                         sunlight to make food from water and carbon dioxide, a process called photosynthesis. Animals eat \
                         plants or other animals to get energy.";
/// Of `AutoModelForCausalLM(ids, labels=ids)` in transformers 4.57.3 with torch 2.9.1, float32, on the same folder.
const PERPLEXITY: f64 = 10.015_975;

const STUDY: &str = r#"
[model]
path = "MODEL"
[steps.paragraph]
stage = "tokenize"
corpus = "paragraph.jsonl"
max-tokens = 64
[steps.losses]
stage = "losses"
inputs = { tokens = "paragraph" }
[steps.question]
stage = "tokenize"
corpus = "question.jsonl"
max-tokens = 64
untargeted = "keep"
[steps.answer]
stage = "generate"
inputs = { tokens = "question" }
"#;

struct Study(TempDir);

impl Study {
    fn wherefrom(&self, words: &[&str]) -> String {
        let output =
            Command::new(env!("CARGO_BIN_EXE_wherefrom")).args(words).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn folder(&self, step: &str) -> PathBuf {
        self.0.path().join(self.wherefrom(&["path", "study.toml", step]).trim())
    }
}

#[test]
fn its_perplexity_and_what_it_says_of_france_are_as_they_should_be() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/models/smollm2");
    assert!(model.join("config.json").exists(), "the model is not there: `just fetch-smollm2` fetches it");
    let study = Study(TempDir::new().unwrap());
    let write = |name: &str, text: String| fs::write(study.0.path().join(name), text).unwrap();
    write("study.toml", STUDY.replace("MODEL", model.to_str().unwrap()));
    write("paragraph.jsonl", serde_json::json!({ "text": PARAGRAPH }).to_string());
    let asked = serde_json::json!([{ "role": "user", "content": "What is the capital of France?" }]);
    write("question.jsonl", serde_json::json!({ "messages": asked }).to_string());
    study.wherefrom(&["run", "study.toml"]);

    let losses: Artifact<Losses> = Artifact::open(&study.folder("losses")).unwrap();
    let loss: Loss = losses.rows().unwrap().next().unwrap().unwrap();
    let targets = loss.by_token.len() - 1;
    assert_eq!(targets, 45);
    let perplexity = (f64::from(loss.loss) / targets as f64).exp();
    assert!((perplexity / PERPLEXITY - 1.0).abs() < 1e-4, "perplexity {perplexity}");

    let answers: Artifact<Tokens> = Artifact::open(&study.folder("answer")).unwrap();
    let answer: Example = answers.rows().unwrap().next().unwrap().unwrap();
    assert!(answer.text.ends_with("The capital of France is Paris."), "{}", answer.text);
    assert_eq!(answer.input_ids.last(), Some(&2), "the answer ends its turn");
}
