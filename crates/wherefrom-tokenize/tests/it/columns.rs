//! Columns that other programs leave beside the text: read with their meaning, refused or warned of, never dropped.

use wherefrom_artifact::{Error, Example};

use crate::chats::{answers, first, template};
use crate::{Bench, config, ids, tokenizer_file};

fn example(line: &str) -> (Example, Vec<String>) {
    let bench = Bench::new();
    let found = bench.examples(&config(64), line).remove(0);
    (found, bench.warnings())
}

fn refusal(line: &str) -> String {
    let bench = Bench::new();
    let corpus = bench.file("c.jsonl", line);
    let error = bench.tokenize(&config(64), &corpus, Some(tokenizer_file())).expect_err(line);
    match error.downcast::<Error>() {
        Ok(Error::Input(message)) => message,
        other => panic!("{line}: {other:?}"),
    }
}

fn read(line: &str) -> (Vec<u32>, Vec<usize>) {
    let (example, warnings) = example(line);
    assert_eq!(warnings, Vec::<String>::new(), "{line}");
    let targets = (0..example.input_ids.len()).filter(|&place| example.target_mask[place]);
    (example.input_ids.clone(), targets.collect())
}

#[test]
fn a_padded_row_of_a_training_pipeline_is_its_tokens_and_its_labels() {
    let right = r#"{"input_ids": [1, 5, 6, 7, 0, 0], "attention_mask": [1, 1, 1, 1, 0, 0], "labels": [-100, -100, 6, 7, -100, -100]}"#;
    assert_eq!(read(right), (vec![1, 5, 6, 7], vec![2, 3]));
    let left = r#"{"input_ids": [0, 0, 1, 5, 6], "attention_mask": [0, 0, 1, 1, 1], "position_ids": [1, 1, 0, 1, 2],
        "token_type_ids": [0, 0, 0, 0, 0], "special_tokens_mask": [1, 1, 1, 0, 0], "labels": [-100, -100, 1, 5, 6]}"#;
    assert_eq!(read(&left.replace('\n', " ")), (vec![1, 5, 6], vec![1, 2]));
    // Without labels every real token but the first is one.
    assert_eq!(read(r#"{"input_ids": [1, 5, 0], "attention_mask": [true, true, false]}"#), (vec![1, 5], vec![1]));
    // The label of the first token is of nothing before it.
    assert_eq!(read(r#"{"input_ids": [1, 5], "labels": [1, 5]}"#), (vec![1, 5], vec![1]));
    // TRL's masks say of a token that it is predicted, and all of them must.
    assert_eq!(read(r#"{"input_ids": [1, 5, 6], "completion_mask": [0, 0, 1]}"#), (vec![1, 5, 6], vec![2]));
    assert_eq!(
        read(r#"{"input_ids": [1, 5, 6], "completion_mask": [1, 1, 1], "assistant_masks": [0, 1, 0]}"#),
        (vec![1, 5, 6], vec![1])
    );
    assert_eq!(
        read(r#"{"input_ids": [1, 5, 6], "target_mask": [0, 0, 1], "labels": [-100, -100, 6]}"#),
        (vec![1, 5, 6], vec![2])
    );
    // Documents of a packed row, of which there is one.
    assert_eq!(read(r#"{"input_ids": [1, 5], "seq_lengths": [2], "cu_seqlens": [0, 2]}"#), (vec![1, 5], vec![1]));
}

#[test]
fn columns_beside_tokens_that_contradict_them_are_refused() {
    for (line, fragments) in [
        (r#"{"input_ids": [1, 5, 6], "labels": [1, 5, 9]}"#, &["`labels[2]` is 9 and its token 6", "-100"][..]),
        (r#"{"input_ids": [1, 5, 6], "labels": [5, 6, -100]}"#, &["`labels[0]` is 5", "shifted by one"]),
        (r#"{"input_ids": [1, 5, 6], "labels": [1, 5]}"#, &["`labels` has 2 entries for 3"]),
        (r#"{"input_ids": [1, 5], "labels": [1, "5"]}"#, &["`labels[1]` is a string"]),
        (r#"{"input_ids": [1, 5, 6], "attention_mask": [1, 0, 1]}"#, &["`attention_mask[1]` is 0 between"]),
        (
            r#"{"input_ids": [1, 5, 6], "attention_mask": [1, 1, 2]}"#,
            &["`attention_mask[2]` is 2", "several documents"],
        ),
        (r#"{"input_ids": [1, 5], "attention_mask": [0, 0]}"#, &["0 everywhere", "remove it"]),
        (r#"{"input_ids": [1, 5, 6], "attention_mask": [1, 1]}"#, &["`attention_mask` has 2 entries for 3"]),
        (
            r#"{"input_ids": [1, 5, 0], "attention_mask": [1, 1, 0], "labels": [-100, 5, 0]}"#,
            &["token 2 is padding", "target"],
        ),
        (r#"{"input_ids": [1, 5, 6], "target_mask": [0, 1, 0], "labels": [-100, -100, 6]}"#, &["differ at position 1"]),
        (r#"{"input_ids": [1, 5], "loss_mask": [0, 1]}"#, &["`loss_mask` means one thing", "`target_mask`"]),
        (r#"{"input_ids": [1, 5, 6], "position_ids": [0, 1, 0]}"#, &["do not count on at position 2", "each document"]),
        (r#"{"input_ids": [1, 5, 6], "position_ids": [4, 5, 6]}"#, &["begin at 4"]),
        (r#"{"input_ids": [1, 5, 6], "token_type_ids": [0, 0, 1]}"#, &["`token_type_ids[2]` is 1"]),
        (r#"{"input_ids": [1, 5, 6], "seq_lengths": [1, 2]}"#, &["`seq_lengths` tells of several documents"]),
        (r#"{"input_ids": [1, 5, 6], "segment_ids": [0, 0, 1]}"#, &["`segment_ids` tells of several documents"]),
    ] {
        let message = refusal(line);
        for fragment in fragments {
            assert!(message.contains(fragment), "{line}: no `{fragment}` in: {message}");
        }
    }
}

#[test]
fn a_known_word_that_is_not_read_is_warned_of_by_name() {
    for (line, word) in [
        (r#"{"text": "And the earth", "weight": 0.5}"#, "weight"),
        (r#"{"text": "And the earth", "loss_mask": [0, 1]}"#, "loss_mask"),
        (r#"{"prompt": "And", "completion": " the earth", "tools": [{"name": "x"}]}"#, "tools"),
        (r#"{"prompt": "And", "completion": " the earth", "chosen": "x"}"#, "chosen"),
        (r#"{"prompt": "And", "completion": " the earth", "label": false}"#, "label"),
        (r#"{"prompt": "And", "completion": " the earth", "input": "x"}"#, "input"),
        (r#"{"input_ids": [1, 5], "weight": 2}"#, "weight"),
    ] {
        let (_, warnings) = example(&format!("{line}\n{line}"));
        let said = format!("`{word}` of 2 rows is not read and changes nothing (the first: ");
        assert!(
            warnings.len() == 1 && warnings[0].starts_with(&said) && warnings[0].contains(".jsonl:1"),
            "{warnings:?}"
        );
    }
    // What says nothing, and words that are nobody's, are passed over.
    for line in [
        r#"{"text": "And the earth", "weight": 1, "images": [], "url": "u", "score": 5, "label": "x"}"#,
        r#"{"prompt": "And", "completion": " the earth", "tools": [], "system": "", "input": null, "label": true}"#,
    ] {
        assert_eq!(example(line).1, Vec::<String>::new(), "{line}");
    }
}

#[test]
fn what_would_be_lost_of_a_prompt_is_refused() {
    let prompted = |line: &str| {
        let bench = Bench::new();
        let corpus = bench.file("c.jsonl", line);
        let columns = [("prompt", "instruction"), ("completion", "output")];
        let columns = columns.map(|(role, name)| (role.to_string(), name.to_string())).into();
        let config = wherefrom_tokenize::tokenize::Config { columns, ..config(64) };
        bench
            .tokenize(&config, &corpus, Some(tokenizer_file()))
            .map(|tokens| tokens.read::<Example>(0).unwrap().remove(0))
    };
    let message = prompted(r#"{"instruction": "Add", "input": "1 2", "output": "3"}"#).unwrap_err().to_string();
    assert!(message.contains("`input` belongs to `instruction` and would be lost; leave `columns` out"), "{message}");
    let empty = prompted(r#"{"instruction": "Add", "input": "", "output": "3"}"#).unwrap();
    assert_eq!(empty.input_ids[1..3], ids("Add")[..2]);

    for (line, fragment) in [
        (
            r#"{"instruction": "Add", "context": "1 2", "response": "3"}"#,
            r#"columns = { input = "context", output = "response" }"#,
        ),
        (r#"{"prompt": "And", "completion": "x", "system": "Be"}"#, "`system` belongs to `prompt`"),
        (r#"{"prompt": "And", "completion": "x", "history": [["a", "b"]]}"#, "`history` belongs to `prompt`"),
        (
            r#"{"prompt": "And", "completions": "x"}"#,
            r#"did you mean `completion`? rename the key, or set columns = { completion = "completions" }"#,
        ),
        (
            r#"{"prompts": "And", "completion": "x"}"#,
            r#"did you mean `prompt`? rename the key, or set columns = { prompt = "prompts" }"#,
        ),
        (
            r#"{"message": [{"role": "user", "content": "x"}]}"#,
            r#"did you mean `messages`? rename the key, or set columns = { messages = "message" }"#,
        ),
        (r#"{"Text": "And"}"#, r#"did you mean `text`? rename the key, or set columns = { text = "Text" }"#),
        (
            r#"{"inputIds": [1, 2]}"#,
            r#"did you mean `input_ids`? rename the key, or set columns = { input_ids = "inputIds" }"#,
        ),
    ] {
        let message = refusal(line);
        assert!(message.contains(fragment), "{line}: no `{fragment}` in: {message}");
    }
}

#[test]
fn json_that_is_not_one_object_with_each_key_once_is_refused_with_its_row() {
    for (line, fragment) in [
        (r#"{"text": "And", "text": "the"}"#, "the key `text` is there twice); keep one"),
        (r#"{"input_ids": [1, 2], "x": NaN}"#, "`NaN` at column 28 is Python's and no JSON; write null"),
        (r#"{"text": "And", "x": [-Infinity]}"#, "`-Infinity` at column"),
        (r#"{"text": "And \ud800 the"}"#, "half of a character"),
        (r#"{"text": "And"} {"text": "the"}"#, "trailing characters"),
        (r#"{"text": "And", "messages": "#, "malformed JSON"),
    ] {
        let message = refusal(&format!("{{\"text\": \"And\"}}\n\n{line}\n"));
        assert!(message.contains(".jsonl:3: ") && message.contains(fragment), "{line}: no `{fragment}` in: {message}");
    }
    let deep = format!("{{\"messages\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(refusal(&deep).contains("nested too deeply"));
    // Depth and keys of what is not read are nobody's.
    let other = format!(
        "{{\"x\": {}1{}, \"text\": \"And the\", \"y\": {{\"a\": 1, \"a\": 2}}}}",
        "[".repeat(9000),
        "]".repeat(9000)
    );
    assert_eq!(example(&other).0.text, "And the");
}

#[test]
fn lines_of_other_layouts_are_named_once_with_the_remedy() {
    let message = |name: &str, content: &[u8]| {
        let bench = Bench::new();
        let corpus = bench.file(name, content);
        let error = bench.tokenize(&config(64), &corpus, Some(tokenizer_file())).expect_err(name);
        assert!(matches!(error.downcast_ref(), Some(Error::Input(_))), "{error:?}");
        let message = error.to_string();
        assert!(message.starts_with(&corpus.display().to_string()) && message.lines().count() == 1, "{message}");
        message
    };
    let utf16: Vec<u8> = "\u{feff}{\"text\": \"And\"}\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let bare: Vec<u8> = "And the earth\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (name, content, fragment) in [
        ("pretty.json", &b"[\n  {\n    \"text\": \"And\"\n  }\n]\n"[..], "`jq -c '.[]'`"),
        ("array.json", b"\n[{\"text\": \"And\"},\n{\"text\": \"the\"}]\n", "`jq -c '.[]'`"),
        ("object.json", b"{\n  \"text\": \"And\"\n}\n", "`jq -c .`"),
        ("mac.jsonl", b"{\"text\": \"And\"}\r{\"text\": \"the\"}\r", "carriage returns"),
        ("mac.txt", b"And\r\rthe earth\r", "carriage returns"),
        ("wide.jsonl", &utf16, "is UTF-16"),
        ("wide.txt", &utf16, "is UTF-16"),
        ("bare.txt", &bare, "is zero"),
        ("packed.jsonl", b"\x1f\x8b\x08\x00", "is packed by gzip"),
        ("packed.txt", b"\x28\xb5\x2f\xfd\x00", "is packed by zstd"),
        ("table.jsonl", b"PAR1\x00", "is Parquet"),
    ] {
        let message = message(name, content);
        assert!(message.contains(fragment), "no `{fragment}` in: {message}");
    }
}

#[test]
fn marks_of_byte_order_and_ends_of_lines_of_windows_are_no_text() {
    let bench = Bench::new();
    let text = |name: &str, content: &str| {
        let corpus = bench.file(name, content);
        let tokens = bench.tokenize(&config(64), &corpus, Some(tokenizer_file())).unwrap();
        tokens.rows::<Example>().unwrap().map(|row| row.unwrap().text).collect::<Vec<_>>()
    };
    assert_eq!(text("a.jsonl", "\u{feff}{\"text\": \"And\"}\r\n\r\n{\"text\": \"the\"}"), ["And", "the"]);
    assert_eq!(text("a.txt", "\u{feff}And\r\nthe\r\n\r\n\r\nearth\r\n"), ["And\nthe", "earth"]);
}

const TEMPLATE: &str = "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}\
    {% for m in messages %}<|im_start|>{{ m.role }}\n\
    {% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}\
    {% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}{% endfor %}\
    {{ m.content or '' }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const PLAIN: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// What a template makes of a row, what of it is a target, and what was said.
fn rendered(source: &str, row: &str) -> anyhow::Result<(String, Vec<String>, Vec<String>)> {
    let bench = Bench::new();
    let chat = template(&bench, &serde_json::json!({"chat_template": source}));
    let example = first(&bench, &config(4096), &row, &chat)?;
    Ok((example.text.clone(), answers(&example), bench.warnings()))
}

fn read_by(source: &str, row: &str) -> (String, Vec<String>) {
    let (text, answers, warnings) = rendered(source, row).unwrap();
    assert_eq!(warnings, Vec::<String>::new(), "{row}");
    (text, answers)
}

const CALLED: &str = "<|im_start|>user\nOslo?<|im_end|>\n<|im_start|>assistant\n<call>{\"name\": \"weather\", \"arguments\": \
    {\"unit\": \"C\", \"place\": \"Oslo\"}}<|im_end|>\n<|im_start|>tool\n7<|im_end|>\n<|im_start|>assistant\nSeven.<|im_end|>\n";

#[test]
fn every_field_of_a_turn_reaches_the_template_in_its_order() {
    let called = |call: &str| {
        format!(
            r#"{{"messages": [{{"role": "user", "content": "Oslo?"}}, {call}, {{"role": "tool", "content": "7", "tool_calls": null}},
                {{"role": "assistant", "content": "Seven."}}]}}"#
        )
        .replace('\n', " ")
    };
    let arguments = r#"{"unit": "C", "place": "Oslo"}"#;
    for call in [
        format!(
            r#"{{"role": "assistant", "content": "", "tool_calls": [{{"function": {{"name": "weather", "arguments": {arguments}}}}}]}}"#
        ),
        // As OpenAI writes calls.
        format!(
            r#"{{"role": "assistant", "content": null, "tool_calls": [{{"function": {{"name": "weather", "arguments": {}}}}}]}}"#,
            serde_json::Value::from(arguments)
        ),
        format!(
            r#"{{"role": "assistant", "tool_calls": [{{"function": {{"name": "weather", "arguments": {arguments}}}}}]}}"#
        ),
    ] {
        let (text, answers) = read_by(TEMPLATE, &called(&call));
        assert_eq!(text, CALLED, "{call}");
        assert_eq!(answers.len(), 2);
        assert!(answers[0].starts_with("<call>") && answers[1] == "Seven.<|im_end|>", "{answers:?}");
    }
    let thought = r#"{"messages": [{"role": "user", "content": "Oslo?"}, {"role": "assistant", "reasoning_content": "North.", "content": "Seven."}]}"#;
    assert_eq!(read_by(TEMPLATE, thought).1, ["<think>North.</think>Seven.<|im_end|>"]);
}

#[test]
fn what_stands_beside_the_turns_reaches_the_template() {
    let turns = r#""messages": [{"role": "user", "content": "Oslo?"}, {"role": "assistant", "content": "Seven."}]"#;
    let tools = r#"[{"type": "function", "function": {"name": "weather", "description": "Now"}}]"#;
    let text = format!(
        "<|im_start|>system\nTools: {tools}<|im_end|>\n<|im_start|>user\nOslo?<|im_end|>\n<|im_start|>assistant\nSeven.<|im_end|>\n"
    );
    for tools in [tools.to_string(), serde_json::Value::from(tools).to_string()] {
        assert_eq!(read_by(TEMPLATE, &format!(r#"{{"tools": {tools}, {turns}}}"#)).0, text);
    }
    let without = read_by(TEMPLATE, &format!("{{{turns}}}"));
    for beside in [r#""tools": []"#, r#""tools": "[]""#, r#""tools": null"#, r#""system": """#] {
        assert_eq!(read_by(TEMPLATE, &format!("{{{beside}, {turns}}}")), without, "{beside}");
    }
    // A system's text begins the turns, once.
    let system = format!(r#"{{"system": "Be brief.", {turns}}}"#);
    assert!(read_by(TEMPLATE, &system).0.starts_with("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user"));
    let twice = r#"{"system": "Be.", "messages": [{"role": "system", "content": "Do."}, {"role": "assistant", "content": "x"}]}"#;
    assert!(
        rendered(TEMPLATE, twice).unwrap_err().to_string().contains("`system` and a turn of the role system; keep one")
    );
    // Of the template's own variables.
    let own = "{{ style }}: ".to_string() + TEMPLATE;
    let kwargs = format!(r#"{{"chat_template_kwargs": {{"style": "short"}}, {turns}}}"#);
    assert!(read_by(&own, &kwargs).0.starts_with("short: <|im_start|>"));
}

#[test]
fn other_layouts_of_turns_are_the_same_turns() {
    let right = read_by(
        PLAIN,
        r#"{"messages": [{"role": "user", "content": "Oslo?"}, {"role": "assistant", "content": "Seven."}]}"#,
    );
    for row in [
        r#"{"conversations": [{"from": "human", "value": "Oslo?"}, {"from": "gpt", "value": "Seven."}]}"#,
        r#"{"conversations": [{"role": "user", "content": "Oslo?"}, {"role": "assistant", "content": "Seven."}]}"#,
        r#"{"prompt": [{"role": "user", "content": "Oslo?"}], "completion": [{"role": "assistant", "content": "Seven."}]}"#,
    ] {
        assert_eq!(read_by(PLAIN, row), right, "{row}");
    }
    let refused = |row: &str| rendered(PLAIN, row).unwrap_err().to_string();
    let message = refused(r#"{"conversations": [{"from": "human", "value": "x"}, {"from": "bot", "value": "y"}]}"#);
    assert!(message.contains("`conversations[1].from` is `bot`, which is none of human, user, gpt"), "{message}");
    for (turn, fragment) in [
        (r#"{"role": "assistant", "content": null}"#, "`messages[0].content` is null"),
        (r#"{"role": "assistant", "content": [{"type": "text", "text": "x"}]}"#, "join the `text` of its parts"),
        (r#"{"role": 1, "content": "x"}"#, "`messages[0].role` is a number"),
        (r#"{"role": "assistant", "content": "x", "weight": 0.5}"#, "`messages[0].weight` is 0.5; make it 0"),
        (r#""x""#, "`messages[0]` is a string"),
    ] {
        let message = refused(&format!(r#"{{"messages": [{turn}]}}"#));
        assert!(message.contains(fragment), "no `{fragment}` in: {message}");
    }
}

#[test]
fn a_turn_of_weight_0_is_given() {
    let turns = |weights: [&str; 2]| {
        let answer = |text: &str, weight: &str| format!(r#"{{"role": "assistant", "content": "{text}"{weight}}}"#);
        let user = r#"{"role": "user", "content": "And?"}"#;
        format!(r#"{{"messages": [{user}, {}, {user}, {}]}}"#, answer("One.", weights[0]), answer("Two.", weights[1]))
    };
    let found = |weights| read_by(PLAIN, &turns(weights)).1;
    assert_eq!(found(["", ""]), ["One.<|im_end|>", "Two.<|im_end|>"]);
    assert_eq!(found([r#", "weight": 0"#, r#", "weight": 1"#]), ["Two.<|im_end|>"]);
    assert_eq!(found([r#", "train": true"#, r#", "train": false"#]), ["One.<|im_end|>"]);
    // The answers of a prompt are given, too.
    let row = r#"{"prompt": [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "One."}, {"role": "user", "content": "And?"}],
        "completion": [{"role": "assistant", "content": "Two."}]}"#;
    assert_eq!(read_by(PLAIN, &row.replace('\n', " ")).1, ["Two.<|im_end|>"]);
    assert!(rendered(PLAIN, &turns([r#", "weight": 0"#, r#", "weight": 0"#])).is_err());
}

#[test]
fn what_a_template_does_not_name_is_warned_of() {
    let row = r#"{"tools": [{"name": "x"}], "messages": [{"role": "user", "content": "Oslo?", "name": "Ann"},
        {"role": "assistant", "content": "Seven.", "reasoning_content": "North.", "tool_calls": [{"function": {"name": "x"}}]}]}"#;
    let (_, answers, warnings) = rendered(PLAIN, &row.replace('\n', " ")).unwrap();
    assert_eq!(answers, ["Seven.<|im_end|>"]);
    let words = ["name", "reasoning_content", "tool_calls", "tools"];
    assert_eq!(warnings.len(), words.len(), "{warnings:?}");
    for (warning, word) in warnings.iter().zip(words) {
        assert!(warning.starts_with(&format!("`{word}` of one row is not read")), "{warning}");
    }
}

#[test]
fn a_column_that_is_named_and_that_no_row_has_is_refused() {
    let bench = Bench::new();
    let corpus = bench.file("c.jsonl", "{\"url\": \"u\", \"content\": \"And the earth\"}\n");
    let named = |id: &str| {
        let columns = [("text", "content"), ("id", id)];
        let columns = columns.map(|(role, name)| (role.to_string(), name.to_string())).into();
        wherefrom_tokenize::tokenize::Config { columns, ..config(64) }
    };
    let message = bench.tokenize(&named("urll"), &corpus, Some(tokenizer_file())).unwrap_err().to_string();
    assert!(
        message.contains("no row of") && message.contains("`urll`") && message.contains("did you mean `url`?"),
        "{message}"
    );
    let tokens = bench.tokenize(&named("url"), &corpus, Some(tokenizer_file())).unwrap();
    assert_eq!(tokens.read::<Example>(0).unwrap()[0].docs, ["u"]);
}
