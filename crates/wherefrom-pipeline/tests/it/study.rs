//! A small study that opens every file that a stage can open: a checkpoint in two shards, one of them in a folder of its
//! own, a tokenizer with everything beside it, a corpus of two files, conversations and prompts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::Result;
use safetensors::SafeTensors;
use serde_json::json;
use tempfile::TempDir;
use wherefrom_artifact::{Manifest, State, Store};
use wherefrom_model::{Config, Model, resolve_device};
use wherefrom_pipeline::Plan;
use wherefrom_stage::Exec;

/// Steps of the pipeline.
pub(crate) const STEPS: usize = 6;

/// The study and its stores, by name.
pub(crate) struct Study(TempDir);

impl Study {
    pub(crate) fn new() -> Self {
        let study = Self(TempDir::new().unwrap());
        // The record of a run goes where the process runs.
        static MOVED: Once = Once::new();
        MOVED.call_once(|| std::env::set_current_dir(TempDir::new().unwrap().keep()).unwrap());
        study.model();
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/vocabularies");
        study.write("model/tokenizer.json", &std::fs::read(fixtures.join("tokenizer.json")).unwrap());
        let json = |name: &str, value: serde_json::Value| study.write(name, value.to_string().as_bytes());
        json(
            "model/tokenizer_config.json",
            json!({ "eos_token": "</s>", "chat_template": "unused", "model_max_length": 64 }),
        );
        json("model/special_tokens_map.json", json!({ "bos_token": "<s>" }));
        json("model/added_tokens.json", json!({ "<|im_start|>": 260, "<|im_end|>": 261 }));
        json("model/generation_config.json", json!({ "eos_token_id": [259, 66], "do_sample": true }));
        let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}\
                        {{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}";
        study.write("model/chat_template.jinja", template.as_bytes());
        study.write("model/additional_chat_templates/tool_use.jinja", b"tools");
        study.write("corpus/a.jsonl", b"{\"id\": \"a\", \"text\": \"abba aab 123\"}\n{\"text\": \"bb</s>aa<s>\"}\n");
        study.write("corpus/b.jsonl", b"{\"prompt\": \"a b\", \"completion\": \"c d\"}\n");
        json(
            "chat.jsonl",
            json!({ "messages": [{ "role": "user", "content": "hi" }, { "role": "assistant", "content": "a 1" }] }),
        );
        json("prompts.jsonl", json!({ "prompt": "aab" }));
        let place = study.0.path().display();
        let pipeline = format!(
            r#"
[model]
path = "{place}/model"
[steps.rows]
stage = "tokenize"
corpus = "{place}/corpus"
max-tokens = 32
[steps.chat]
stage = "tokenize"
corpus = "{place}/chat.jsonl"
max-tokens = 32
[steps.prompts]
stage = "tokenize"
corpus = "{place}/prompts.jsonl"
max-tokens = 32
untargeted = "keep"
[steps.generated]
stage = "generate"
inputs = {{ tokens = "prompts" }}
max-new-tokens = 4
[steps.losses]
stage = "losses"
inputs = {{ tokens = "rows" }}
[steps.trained]
stage = "train"
inputs = {{ tokens = "rows" }}
layers = 1
hidden = 8
intermediate = 8
heads = 1
key-value-heads = 1
vocabulary = 263
context = 32
epochs = 1
batch-tokens = 64
"#
        );
        study.write("study.toml", pipeline.as_bytes());
        study
    }

    fn model(&self) {
        let sizes = json!({
            "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 263, "max_position_embeddings": 64,
            "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "eos_token_id": 259,
        });
        self.write("model/config.json", sizes.to_string().as_bytes());
        let config = Config::load(&self.path("model")).unwrap();
        let whole = Model::random(config, 0, &resolve_device("cpu").unwrap()).to_safetensors().unwrap();
        let whole = SafeTensors::deserialize(&whole).unwrap();
        let (one, two): (Vec<_>, Vec<_>) = whole.tensors().into_iter().partition(|(name, _)| name.contains("mlp"));
        let mut index = BTreeMap::new();
        for (file, tensors) in [("one.safetensors", one), ("sub/two.safetensors", two)] {
            index.extend(tensors.iter().map(|(name, _)| (name.clone(), file)));
            let views = tensors.iter().map(|(name, view)| (name.as_str(), view));
            self.write(&format!("model/{file}"), &safetensors::serialize(views, None).unwrap());
        }
        let index = json!({ "metadata": {}, "weight_map": index });
        self.write("model/model.safetensors.index.json", index.to_string().as_bytes());
    }

    /// Every file that a step opens.
    pub(crate) fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        let mut folders = vec![self.0.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(self.0.path()).unwrap().to_string_lossy().into_owned();
                match path.is_dir() {
                    true if name.starts_with("store-") => {}
                    true => folders.push(path),
                    false if name == "study.toml" => {}
                    false => files.push(name),
                }
            }
        }
        files.sort();
        files
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    pub(crate) fn read(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.path(file)).unwrap()
    }

    pub(crate) fn write(&self, file: &str, bytes: &[u8]) {
        let path = self.path(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn plan(&self, store: &str) -> Result<Plan> {
        Plan::read(&self.path("study.toml"), &[], Store::new(self.path(&format!("store-{store}"))))
    }

    /// Step to key; steps that lack something are left out.
    pub(crate) fn keys(&self, store: &str) -> Result<BTreeMap<String, String>> {
        let steps = self.plan(store)?.steps;
        Ok(steps.iter().filter_map(|step| Some((step.name.clone(), step.key()?))).collect())
    }

    /// Digests of the files that these steps write.
    pub(crate) fn results(
        &self,
        store: &str,
        steps: &BTreeMap<String, String>,
        exec: &Exec,
    ) -> Result<BTreeMap<String, Vec<(String, String)>>> {
        let plan = self.plan(store)?;
        let mut results = BTreeMap::new();
        for step in steps.keys() {
            let done = plan.run(Some(step), exec, |_| Ok(()))?;
            let folder = &done.last().unwrap().folder;
            let parts = Manifest::read(folder)?.parts.into_iter().map(|part| (part.name, part.blake3));
            results.insert(step.clone(), parts.collect());
        }
        Ok(results)
    }

    pub(crate) fn sealed(&self, store: &str, step: &str) -> bool {
        let plan = self.plan(store).unwrap();
        plan.find(step).unwrap().state == State::Cached
    }

    pub(crate) fn forget(&self, store: &str) {
        let folder = self.path(&format!("store-{store}"));
        if folder.exists() {
            std::fs::remove_dir_all(folder).unwrap();
        }
    }
}
