//! Instructions, preferences and content in parts: forms of rows that data sets have.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use wherefrom_artifact::Example;
use wherefrom_tokenize::tokenize::Config;

use crate::chats::{answers, first, template};
use crate::{Bench, config, ids, tokenizer_file};

/// Turns as ChatML has them, whatever their content is.
const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
/// The same for content in parts.
const PARTS: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}\
                     {{ message.content }}{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}\
                     <|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn with(columns: &[(&str, &str)]) -> Config {
    let columns: BTreeMap<_, _> = columns.iter().map(|(role, name)| (role.to_string(), name.to_string())).collect();
    Config { columns, ..config(4096) }
}

fn example(config: &Config, row: &Value) -> Example {
    Bench::new().examples(config, &row.to_string()).remove(0)
}

fn refused(config: &Config, row: &Value) -> String {
    let bench = Bench::new();
    let corpus = bench.file("rows.jsonl", row.to_string());
    bench.tokenize(config, &corpus, Some(tokenizer_file())).unwrap_err().to_string()
}

fn completion(row: &Example) -> &str {
    &row.text[row.completion_start as usize..]
}

#[test]
fn an_instruction_is_written_out_in_alpacas_words() {
    let with_input = json!({"instruction": "Add.", "input": "1 2", "output": "3"});
    let row = example(&config(4096), &with_input);
    let words = "Below is an instruction that describes a task, paired with an input that provides further context. Write a \
                 response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### \
                 Response:\n3";
    // White space at the end of a prompt belongs to the completion.
    assert_eq!((&row.text[..], completion(&row)), (words, "\n3"));
    for row in [
        json!({"instruction": "Add.", "input": "", "output": "3"}),
        json!({"instruction": "Add.", "input": null, "output": "3"}),
        json!({"instruction": "Add.", "output": "3"}),
    ] {
        let words = "Below is an instruction that describes a task. Write a response that appropriately completes the \
                     request.\n\n### Instruction:\nAdd.\n\n### Response:\n3";
        assert_eq!(example(&config(4096), &row).text, words);
    }
    // By a chat template the user asks it.
    let bench = Bench::new();
    let chat = template(&bench, &json!({"chat_template": CHATML}));
    let row = first(&bench, &Config { chat: true, ..config(4096) }, &with_input, &chat).unwrap();
    assert_eq!(row.text, "<|im_start|>user\nAdd.\n\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>");
    // Others call its columns otherwise.
    let dolly = json!({"instruction": "Add.", "context": "1 2", "response": "3"});
    let columns = with(&[("input", "context"), ("output", "response")]);
    assert_eq!(example(&columns, &dolly).text, words);
    let beside = refused(&config(64), &json!({"instruction": "Add.", "output": "3", "history": [["a", "b"]]}));
    assert!(beside.contains("`history` belongs to `instruction`"), "{beside}");
}

#[test]
fn of_two_answers_the_chosen_is_contrasted_with_the_rejected() {
    let contrast = json!({"prompt": "And the", "completion": " earth", "contrast": " void"});
    let expected = example(&config(64), &contrast);
    for row in [
        json!({"prompt": "And the", "chosen": " earth", "rejected": " void"}),
        json!({"chosen": "And the earth", "rejected": "And the void"}),
    ] {
        let row = example(&config(64), &row);
        assert_eq!((row.weights.clone(), &row.segments), (vec![1.0, -1.0], &expected.segments));
        assert_eq!((&row.input_ids, &row.target_mask), (&expected.input_ids, &expected.target_mask));
    }
    let named = with(&[("chosen", "better"), ("rejected", "worse")]);
    let row = json!({"better": "And the earth", "worse": "And the void"});
    assert_eq!(example(&named, &row).input_ids, expected.input_ids);

    for (row, fragment) in [
        (json!({"prompt": "And", "chosen": "x", "rejected": "x"}), "are the same"),
        (json!({"prompt": "And", "chosen": "x", "rejected": []}), "make both texts, or both lists"),
        (json!({"prompt": [{"role": "user", "content": "x"}], "chosen": "x", "rejected": "y"}), "`prompt` is a list"),
        (json!({"prompt": "And", "chosen": "x"}), "no completion"),
        (json!({"text": "And", "chosen": "x", "rejected": "y"}), "`text` and `chosen` with `rejected`"),
        (json!({"text": "And", "instruction": "x", "output": "y"}), "columns = { text = \"text\" }"),
    ] {
        let message = refused(&config(64), &row);
        assert!(message.contains(fragment), "{row}: no `{fragment}` in {message}");
    }
    let packed = Config { windows: wherefrom_tokenize::tokenize::Windowing::Pack, ..config(64) };
    let pair = json!({"prompt": "And the", "chosen": " earth", "rejected": " void"});
    assert!(refused(&packed, &pair).contains("a pair of a preference, and pairs are not packed"));
}

#[test]
fn of_a_row_that_could_be_several_things_it_is_the_one_that_is_named() {
    let row = json!({"text": "And the earth", "instruction": "Add.", "output": "3"});
    let text = example(&with(&[("text", "text")]), &row);
    assert_eq!(
        text.input_ids[..],
        [&[text.input_ids[0]], &ids("And the earth")[..], &text.input_ids[text.input_ids.len() - 1..]].concat()
    );
    assert!(example(&with(&[("output", "output")]), &row).text.starts_with("Below is an instruction"));
}

#[test]
fn conversations_of_a_preference_share_what_is_given() {
    let bench = Bench::new();
    let chat = template(&bench, &json!({"chat_template": CHATML}));
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let (asked, own, other) = (turn("user", "Who?"), turn("assistant", "God."), turn("assistant", "Man."));
    let before = [turn("user", "Hi"), turn("assistant", "Hello")];
    let expected =
        first(&bench, &config(4096), &json!({"chosen": [asked, own], "rejected": [asked, other]}), &chat).unwrap();
    assert_eq!(
        (answers(&expected), &expected.weights[..]),
        (vec!["God.<|im_end|>".into(), "Man.<|im_end|>".into()], &[1.0, -1.0][..])
    );
    for row in [
        json!({"prompt": [asked], "chosen": [own], "rejected": [other]}),
        json!({"prompt": "Who?", "chosen": [own], "rejected": [other]}),
        json!({"prompt": "Who?", "chosen": [asked, own], "rejected": [asked, other]}),
    ] {
        assert_eq!(first(&bench, &config(4096), &row, &chat).unwrap().input_ids, expected.input_ids, "{row}");
    }
    // An answer that both give is not preferred to itself.
    let long = |last: &Value| json!([before[0], before[1], asked, last]);
    let row = first(&bench, &config(4096), &json!({"chosen": long(&own), "rejected": long(&other)}), &chat).unwrap();
    assert_eq!(answers(&row), ["God.<|im_end|>", "Man.<|im_end|>"]);
    for (row, fragment) in [
        (json!({"prompt": "What?", "chosen": [asked, own], "rejected": [asked, other]}), "is not the `prompt`"),
        (json!({"chosen": [asked, own], "rejected": [asked]}), "no turn of the assistant"),
    ] {
        let message = first(&bench, &config(4096), &row, &chat).unwrap_err().to_string();
        assert!(message.contains(fragment), "{message}");
    }
    let long = first(&bench, &config(8), &json!({"chosen": [asked, own], "rejected": [asked, other]}), &chat);
    assert!(long.unwrap_err().to_string().contains("max-tokens = 8 must hold it"));
}

#[test]
fn content_in_parts_is_what_the_template_makes_of_it() {
    let bench = Bench::new();
    let said = |content: Value| json!({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "God."}]});
    let parts = said(json!([{"type": "text", "text": "Who "}, {"type": "text", "text": "is it?"}]));
    let takes = template(&bench, &json!({"chat_template": PARTS}));
    let row = first(&bench, &config(4096), &parts, &takes).unwrap();
    assert_eq!(row.text, first(&bench, &config(4096), &said("Who is it?".into()), &takes).unwrap().text);
    let answer = json!({"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": [{"type": "text", "text": "God."}]}]});
    assert_eq!(answers(&first(&bench, &config(4096), &answer, &takes).unwrap()), ["God.<|im_end|>"]);
    // Python would print the list.
    let prints = template(&bench, &json!({"chat_template": CHATML}));
    let message = first(&bench, &config(4096), &parts, &prints).unwrap_err().to_string();
    assert!(message.contains("prints the parts") && message.contains("join the `text`"), "{message}");
    let joins = template(
        &bench,
        &json!({"chat_template": CHATML.replace("{{ message.content }}", "{{ '' + message.content }}")}),
    );
    let message = first(&bench, &config(4096), &parts, &joins).unwrap_err().to_string();
    assert!(message.contains("is a list of parts"), "{message}");
    for (part, fragment) in [
        (json!({"type": "image", "image": "x.png"}), "`messages[0].content[0]` is of the type `image`"),
        (json!({"type": "text"}), "has no `text`"),
        (json!("Who?"), "is a string"),
    ] {
        let message = first(&bench, &config(4096), &said(json!([part])), &takes).unwrap_err().to_string();
        assert!(message.contains(fragment), "{message}");
    }
}

#[test]
fn forms_are_said_by_run_and_plan() {
    let rows = "{\"instruction\": \"Add.\", \"output\": \"3\"}\n{\"chosen\": \"a b\", \"rejected\": \"a c\"}\n{\"text\": \"And\"}\n";
    let bench = Bench::new();
    let corpus = bench.file("rows.jsonl", rows);
    bench.tokenize(&config(4096), &corpus, Some(tokenizer_file())).unwrap();
    let warned = bench.warnings.warnings.lock().unwrap().clone();
    let knobs = serde_json::to_value(config(4096)).unwrap();
    let planned = wherefrom_tokenize::row_warnings(&knobs, &corpus);
    for said in [&warned, &planned] {
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].starts_with("1 of 3 rows are instructions with an output: they are written out"), "{said:?}");
        assert!(said[1].starts_with("1 of 3 rows are pairs of a preference"), "{said:?}");
    }
}
