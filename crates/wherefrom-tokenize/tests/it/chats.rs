//! Conversations by the chat template, against `transformers` (tests/fixtures/chat/make_fixtures.py).

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use wherefrom_artifact::{Artifact, Example, Kind, Tokens};
use wherefrom_tokenize::tokenize::{self, Config, Untargeted};

use crate::{Bench, config, recipe, tokenizer, tokenizer_file};

fn fixture() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/chat/templates.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The first row of a corpus of one, by the template in `chat`.
fn first(bench: &Bench, config: &Config, row: &Value, chat: &Path) -> anyhow::Result<Example> {
    let corpus = bench.file("chat.jsonl", format!("{row}\n"));
    let inputs = tokenize::Inputs {
        corpus: corpus.clone(),
        tokenizer: Some(tokenizer_file().into()),
        chat_template: Some(chat.into()),
    };
    let config_value = json!({"config": serde_json::to_value(config)?, "chat": fs::read_to_string(chat)?});
    let recipe = recipe("tokenize", config_value, &corpus)?;
    let (folder, _) = bench.store().produce(Kind::Tokens, recipe, &*bench.exec.reporter, |draft| {
        tokenize::run(config, &inputs, &bench.exec, draft)
    })?;
    Ok(Artifact::<Tokens>::open(&folder)?.read::<Example>(0)?.remove(0))
}

fn template(bench: &Bench, config: &Value) -> PathBuf {
    bench.file("tokenizer_config.json", config.to_string())
}

/// The texts of runs of targets.
fn answers(row: &Example) -> Vec<String> {
    let mut runs: Vec<Vec<u32>> = Vec::new();
    for (place, &id) in row.input_ids.iter().enumerate().filter(|(place, _)| row.target_mask[*place]) {
        match runs.last_mut().filter(|_| row.target_mask[place - 1]) {
            Some(run) => run.push(id),
            None => runs.push(vec![id]),
        }
    }
    runs.iter().map(|run| tokenizer().decode(run, false).unwrap()).collect()
}

#[test]
fn conversations_render_as_transformers_renders_them_and_answers_are_the_targets() {
    let fixture = fixture();
    for rendered in fixture["rendered"].as_array().unwrap() {
        let bench = Bench::new();
        let name = rendered["template"].as_str().unwrap();
        let chat = template(&bench, &fixture["configs"][name]);
        let row = first(&bench, &config(4096), &json!({"messages": rendered["messages"]}), &chat).unwrap();
        assert_eq!(row.text, rendered["text"].as_str().unwrap(), "{name}");
        let said = rendered["messages"].as_array().unwrap().iter().filter(|turn| turn["role"] == "assistant");
        let end = [("smollm2", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("loops", "</s>"), ("marked", "<|im_end|>\n")];
        let end = end.iter().find(|(known, _)| *known == name).unwrap().1;
        let expected: Vec<_> = said.map(|turn| format!("{}{end}", turn["content"].as_str().unwrap())).collect();
        let found: Vec<_> = answers(&row).iter().map(|answer| answer.trim_start_matches(' ').to_string()).collect();
        assert_eq!(found, expected, "{name}");
        if let Some(marked) = rendered["answers"].as_array() {
            assert_eq!(found, marked.iter().map(|text| text.as_str().unwrap()).collect::<Vec<_>>());
        }
        // Without the last answer: what the model is to go on from.
        let turns = rendered["messages"].as_array().unwrap();
        let asked = json!({"messages": turns[..turns.len() - 1]});
        let keep = Config { untargeted: Untargeted::Keep, ..config(4096) };
        let row = first(&bench, &keep, &asked, &chat).unwrap();
        assert_eq!(row.text, rendered["prompt"].as_str().unwrap(), "{name}");
        assert!(!row.target_mask.contains(&true));
    }
}

#[test]
fn a_prompt_may_be_what_a_user_asks() {
    let fixture = fixture();
    let bench = Bench::new();
    let chat = template(&bench, &fixture["configs"]["smollm2"]);
    let asks = Config { chat: true, ..config(4096) };
    let row = json!({"prompt": "Who?", "completion": "God.", "contrast": "Man."});
    let row = first(&bench, &asks, &row, &chat).unwrap();
    let start = row.completion_start as usize;
    assert!(row.text[..start].ends_with("<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"), "{}", row.text);
    assert_eq!(&row.text[start..], "God.<|im_end|>");
    assert_eq!(row.segment_texts[1][start..], *"Man.<|im_end|>");
    assert_eq!(
        (row.weights.clone(), answers(&row)),
        (vec![1.0, -1.0], vec!["God.<|im_end|>".into(), "Man.<|im_end|>".into()])
    );
}

#[test]
fn what_a_template_cannot_do_is_refused() {
    let bench = Bench::new();
    let turns = json!({"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "God."}]});
    let refused = |config: Value| {
        first(&bench, &crate::config(4096), &turns, &template(&bench, &config)).unwrap_err().to_string()
    };
    assert!(refused(json!({})).contains("has no `chat_template`"));
    assert!(refused(json!({"chat_template": "{% for %}"})).contains("the chat template: "));
    assert!(refused(json!({"chat_template": "{{ raise_exception('not so') }}"})).contains("not so"));
    // The number of turns at the beginning: no rendering continues another.
    let message =
        refused(json!({"chat_template": "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"}));
    assert!(message.contains("turn 1") && message.contains("generation"), "{message}");
    let asked = json!({"messages": [{"role": "user", "content": "Who?"}]});
    let plain = json!({"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"});
    let message = first(&bench, &config(64), &asked, &template(&bench, &plain)).unwrap_err().to_string();
    assert!(message.contains("no turn of `messages` is the assistant's"), "{message}");
}

#[test]
fn a_conversation_that_is_too_long_keeps_targets() {
    let bench = Bench::new();
    let plain = json!({"chat_template": "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"});
    let chat = template(&bench, &plain);
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let long = "And the earth was without form, and void. ".repeat(4);
    let two = json!({"messages": [
        turn("user", &long), turn("assistant", "God"), turn("user", &long), turn("assistant", "void")
    ]});
    let row = first(&bench, &config(16), &two, &chat).unwrap();
    assert_eq!((row.input_ids.len(), answers(&row)), (16, vec!["void".to_string()]));
    let one = json!({"messages": [turn("user", &long), turn("assistant", &long)]});
    let row = first(&bench, &config(16), &one, &chat).unwrap();
    let said = answers(&row);
    assert_eq!(row.target_mask, (0..16).map(|place| place >= 8).collect::<Vec<_>>());
    assert!(said.len() == 1 && long.starts_with(&said[0]), "{said:?}");
    let warnings = bench.warnings();
    assert_eq!(warnings.iter().filter(|warning| warning.contains("longer than max-tokens = 16")).count(), 2);
}
