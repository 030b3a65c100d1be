//! Conversations by the chat template, against `transformers` (tests/fixtures/chat/make_fixtures.py).

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use wherefrom_artifact::{Artifact, Example, Kind, Tokens};
use wherefrom_tokenize::tokenize::{self, Config, Untargeted};

use crate::{Bench, config, recipe, tokenizer, tokenizer_file};

fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/chat").join(name)
}

fn fixture() -> Value {
    serde_json::from_slice(&fs::read(fixtures("templates.json")).unwrap()).unwrap()
}

/// The first row of a corpus of one, by the template in `chat`.
pub(crate) fn first(
    bench: &Bench,
    config: &Config,
    row: &impl std::fmt::Display,
    chat: &Path,
) -> anyhow::Result<Example> {
    first_with(bench, config, row, chat, tokenizer_file())
}

fn first_with(
    bench: &Bench,
    config: &Config,
    row: &impl std::fmt::Display,
    chat: &Path,
    tokenizer: &Path,
) -> anyhow::Result<Example> {
    first_line(bench, config, &row.to_string(), chat, tokenizer)
}

fn first_line(bench: &Bench, config: &Config, row: &str, chat: &Path, tokenizer: &Path) -> anyhow::Result<Example> {
    read_first(bench, config, &bench.file("chat.jsonl", format!("{row}\n")), chat, tokenizer)
}

/// The first row of a corpus.
pub(crate) fn first_of(bench: &Bench, config: &Config, corpus: &Path, chat: &Path) -> anyhow::Result<Example> {
    read_first(bench, config, corpus, chat, tokenizer_file())
}

fn read_first(bench: &Bench, config: &Config, corpus: &Path, chat: &Path, tokenizer: &Path) -> anyhow::Result<Example> {
    let inputs =
        tokenize::Inputs { corpus: corpus.into(), tokenizer: Some(tokenizer.into()), chat_template: Some(chat.into()) };
    let config_value = json!({"config": serde_json::to_value(config)?, "chat": fs::read_to_string(chat)?});
    let recipe = recipe("tokenize", config_value, corpus)?;
    let (folder, _) = bench.store().produce(Kind::Tokens, recipe, &*bench.exec.reporter, |draft| {
        tokenize::run(config, &inputs, &bench.exec, draft)
    })?;
    Ok(Artifact::<Tokens>::open(&folder)?.read::<Example>(0)?.remove(0))
}

pub(crate) fn template(bench: &Bench, config: &Value) -> PathBuf {
    bench.file("tokenizer_config.json", config.to_string())
}

/// The texts of runs of targets.
pub(crate) fn answers(row: &Example) -> Vec<String> {
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

/// As Mistral, Command R7B, Apriel and Gemma 4 have them, cut down.
#[test]
fn calls_and_prompts_that_are_always_there_are_told_from_answers() {
    let turns = |name: &str, begin: &str, calls: &str, tool: &str, end: &str| {
        json!({ "chat_template": format!(
            "{{% for m in messages %}}{{% if m.role == 'tool' %}}{tool}{{% elif m.role == 'user' %}}<turn><user>{{{{ m.content }}}}<end>\
             {{% elif m.tool_calls %}}{begin}{calls}{end}{{% else %}}{begin}{{{{ m.content }}}}{end}{{% endif %}}{{% endfor %}}{name}"
        ) })
    };
    let call = "{{ m.tool_calls[0].function.name }}{{ m.tool_calls[0].function.arguments | tojson }}";
    let cases = [
        // No prompt: what a plain answer begins with is none of the calls' mark.
        (
            turns("", "", &format!("<calls>{call}"), "<tool>{{ m.content }}</tool>", "<end>"),
            ["<calls>weather{\"place\": \"Oslo\"}<end>", "Seven.<end>"],
        ),
        // A prompt that is always there, and that no answer begins with.
        (
            turns(
                "<turn><bot><think></think>",
                "<turn><bot><say>",
                call,
                "<turn><tool>{{ m.content }}<end>",
                "</say><end>",
            ),
            ["weather{\"place\": \"Oslo\"}</say><end>", "Seven.</say><end>"],
        ),
        // The last turn's calls have no number.
        (
            turns(
                "",
                "<turn><bot>",
                &format!("<calls>[{call}{{% if not loop.last %}}, {{{{ m.tool_calls[0].id }}}}{{% endif %}}]</calls>"),
                "<tool>{{ m.content }}</tool>",
                "{% if not loop.last %}<end>{% endif %}",
            ),
            ["<calls>[weather{\"place\": \"Oslo\"}, c7]</calls><end>", "Seven."],
        ),
        // What the tool says stands within the turn that calls it.
        (
            turns(
                "",
                "<turn><bot>",
                &format!(
                    "<call>{call}</call>{{% if messages[loop.index].role == 'tool' %}}<tool>{{{{ messages[loop.index].content }}}}</tool>{{% endif %}}{{{{ m.content }}}}"
                ),
                "",
                "<end>",
            ),
            ["<call>weather{\"place\": \"Oslo\"}</call>", "Let me see.<end>"],
        ),
    ];
    for (chat, expected) in cases {
        let bench = Bench::new();
        let chat = template(&bench, &chat);
        let calls = json!([{ "type": "function", "id": "c7", "function": { "name": "weather", "arguments": { "place": "Oslo" } } }]);
        let row = json!({ "messages": [
            { "role": "user", "content": "Warm?" },
            { "role": "assistant", "content": "Let me see.", "tool_calls": calls },
            { "role": "tool", "content": "7" },
            { "role": "assistant", "content": "Seven." },
        ] });
        let row = first(&bench, &config(4096), &row, &chat).unwrap();
        assert_eq!(answers(&row)[..2], expected, "{}", row.text);
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
    // No other words can be rendered in the place of the answer's.
    let message =
        refused(json!({"chat_template": "{{ messages | length }}{% for m in messages %}{{ m.content if m.content in \
        ['Who?', 'God.'] else raise_exception('unheard of') }}{% endfor %}"}));
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

/// What is refused of a row of two turns by a template, without the row's place.
fn refusal(bench: &Bench, config: &Config, template: &str) -> String {
    let turns = json!({"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "God."}]});
    let chat = self::template(bench, &json!({"chat_template": template}));
    first(bench, config, &turns, &chat).unwrap_err().to_string()
}

/// The texts of the runs of targets of a row, by their bytes.
fn spoken(bench: &Bench, rendered: &Value, specials: &Value) -> (String, Vec<String>) {
    let mut chat = specials.clone();
    chat["chat_template"] = rendered["template"].clone();
    let chat = template(bench, &chat);
    let row = first(bench, &config(4096), &json!({"messages": rendered["messages"]}), &chat).unwrap();
    (row.text.clone(), answers(&row))
}

#[test]
fn answers_without_marks_are_told_by_what_changes_with_their_words() {
    let fixture = fixture();
    for rendered in fixture["answers"].as_array().unwrap() {
        let (text, found) = spoken(&Bench::new(), rendered, &fixture["specials"]);
        assert_eq!(text, rendered["text"].as_str().unwrap(), "{}", rendered["name"]);
        // Answers side by side are one run.
        let expected: Vec<_> =
            rendered["answers"].as_array().unwrap().iter().map(|said| said.as_str().unwrap()).collect();
        assert_eq!(found, expected, "{} {text:?}", rendered["name"]);
    }
}

#[test]
fn targets_are_the_tokens_that_transformers_masks() {
    let fixture = fixture();
    for rendered in fixture["masks"].as_array().unwrap() {
        let bench = Bench::new();
        let mut chat = fixture["specials"].clone();
        chat["chat_template"] = rendered["template"].clone();
        let chat = template(&bench, &chat);
        let row = json!({"messages": rendered["messages"]});
        let tokenizer = fixtures("tokenizer.json");
        let numbers = |name: &str| rendered[name].as_str().unwrap().split(' ').map(|id| id.parse().unwrap()).collect();
        let (ids, mask): (Vec<u32>, Vec<u32>) = (numbers("input_ids"), numbers("mask"));
        if !mask.contains(&1) {
            continue;
        }
        let row = first_with(&bench, &config(4096), &row, &chat, &tokenizer).unwrap();
        assert_eq!(row.input_ids, ids, "{}", rendered["name"]);
        let found: Vec<_> = row.target_mask.iter().map(|&target| u32::from(target)).collect();
        assert_eq!(found, mask, "{} {:?}", rendered["name"], row.text);
    }
}

#[test]
fn expressions_are_what_jinja_makes_of_them() {
    let fixture: Value = serde_json::from_slice(&fs::read(fixtures("expressions.json")).unwrap()).unwrap();
    let day = Some(fixture["date"].as_str().unwrap().to_string());
    let keep = Config { untargeted: Untargeted::Keep, date: day, ..config(1 << 20) };
    // Fields in the order that Python was given them.
    let turn = |turn: &Value| format!("{{\"role\": {}, \"content\": {}}}", turn["role"], turn["content"]);
    let turns: Vec<_> = fixture["messages"].as_array().unwrap().iter().map(turn).collect();
    let asked = format!("{{\"messages\": [{}]}}", turns.join(", "));
    let bench = Bench::new();
    let text_of = |template: &str| {
        let mut chat = fixture["specials"].clone();
        chat["chat_template"] = template.into();
        first(&bench, &keep, &asked, &self::template(&bench, &chat)).map(|row| row.text)
    };
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_string()).collect()
    };
    let (given, separator) = (fixture["given"].as_str().unwrap(), fixture["separator"].as_str().unwrap());
    let mut wrong = Vec::new();
    for rendered in fixture["rendered"].as_array().unwrap() {
        let templates = texts(&rendered["templates"]);
        let found = text_of(&format!("{given}{}", templates.join(separator)));
        let found: Vec<_> = match found {
            Ok(found) => found.split(separator).map(str::to_string).collect(),
            // One of them is refused.
            Err(_) => {
                let one = |template: &String| {
                    text_of(&format!("{given}{template}")).unwrap_or_else(|error| error.to_string())
                };
                templates.iter().map(one).collect()
            }
        };
        let expected = texts(&rendered["texts"]);
        assert_eq!(found.len(), expected.len());
        let all = templates.into_iter().zip(found).zip(expected);
        wrong.extend(all.filter(|((_, found), expected)| found != expected));
    }
    let taken =
        texts(&fixture["refused"]).into_iter().filter(|template| text_of(&format!("{given}{template}")).is_ok());
    wrong.extend(taken.map(|template| ((template, "taken".into()), "refused".into())));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What Python prints otherwise is refused by name, and is not printed as something else.
#[test]
fn what_is_otherwise_in_python_is_refused_by_name() {
    let bench = Bench::new();
    for (template, name) in [
        ("{{ [nothing] }}", "undefined"),
        ("{{ {'a': [1, nothing.more | default(nothing)]} }}", "undefined"),
        ("{{ '{!r}'.format('a') }}", "!r"),
        ("{{ '{0!s:>4}'.format('a') }}", "!s"),
        ("{{ 'a'.encode() }}", "encode"),
        ("{{ {'a': 1} | xmlattr }}", "xmlattr"),
        ("{{ [1] | pprint }}", "pprint"),
        ("{{ [1] | map('string') }}", "`map`"),
        ("{{ [[1] | select('odd')] }}", "`select`"),
        ("{{ 'a%s' % ([1] | reverse) }}", "`reverse`"),
        ("{{ ([1] | batch(2)) ~ '' }}", "`batch`"),
        ("{{ [1] | unique | string }}", "`unique`"),
        ("{{ '{}'.format([1] | slice(2)) }}", "`slice`"),
        ("{% autoescape true %}{{ '<' }}{% endautoescape %}", "autoescape"),
        ("{% macro f(a) %}{{ varargs }}{% endmacro %}{{ f(1, 2) }}", "varargs"),
        ("{% macro f(a) %}{{ kwargs['b'] }}{% endmacro %}{{ f(1, b=2) }}", "kwargs"),
        ("{% for m in messages %}{% with x = 1 %}{% break %}{% endwith %}{% endfor %}", "`break` inside `with`"),
        (
            "{% for m in messages %}{% generation %}{% continue %}{% endgeneration %}{% endfor %}",
            "`continue` inside `generation`",
        ),
        // A tag is named by its first word, and this one has none.
        ("{% for m in messages %}{%\0generation %}{% break %}{% endgeneration %}{% endfor %}", "chat template"),
        ("{% set x %}{% generation %}abc{% endgeneration %}{% endset %}{{ messages[0].content }}", "{% generation %}"),
    ] {
        let message = refusal(&bench, &config(64), template);
        assert!(message.contains(name), "{template}: {message}");
    }
}

#[test]
fn a_template_that_asks_for_the_date_is_told_the_day_of_the_step_or_refused() {
    let bench = Bench::new();
    let asks = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let message = refusal(&bench, &config(64), asks);
    assert!(message.contains("tokenizer_config.json asks for the date"), "{message}");
    assert!(message.contains("date = \"2024-07-26\""), "{message}");
    // In a macro minijinja calls it by another name.
    let message = refusal(&bench, &config(64), "{% macro day() %}{{ strftime_now('%d') }}{% endmacro %}{{ day() }}");
    assert!(message.contains("asks for the date"), "{message}");
    let dated = Config { date: Some("2024-07-26".into()), ..config(64) };
    let turns = json!({"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "God."}]});
    let chat = template(&bench, &json!({"chat_template": asks}));
    assert_eq!(first(&bench, &dated, &turns, &chat).unwrap().text, "26 Jul 2024Who?God.");
    // One that has a date of its own.
    let own = "{{ strftime_now('%Y') if strftime_now is defined else 'then' }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let chat = template(&bench, &json!({"chat_template": own}));
    assert_eq!(first(&bench, &config(64), &turns, &chat).unwrap().text, "thenWho?God.");
    for wrong in ["2024-7-26", "2024-02-30", "2023-02-29", "26 Jul 2024", "2024-13-01", ""] {
        let message = Config { date: Some(wrong.into()), ..config(64) }.check().unwrap_err().to_string();
        assert!(message.contains("is no day"), "{message}");
    }
}

#[test]
fn errors_of_a_template_name_its_file_and_what_to_do() {
    let bench = Bench::new();
    let message = refusal(&bench, &config(64), "a\n{{ messages | nosuchfilter }}");
    for part in ["tokenizer_config.json", "nosuchfilter", "line 2", "chat-template"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let message = refusal(&bench, &config(64), "a\n{{ messages[0].content.nosuchmethod() }}");
    assert!(message.contains("line 2") && message.contains("chat-template"), "{message}");
    // What the template itself says is about the row.
    let message = refusal(&bench, &config(64), "{{ raise_exception('Roles must alternate') }}");
    assert!(message.contains("(Roles must alternate); mend `messages`"), "{message}");
    // A file beside is what is read, and what is named.
    bench.file("chat_template.jinja", "{{ nothing() }}");
    let message = refusal(&bench, &config(64), "never read");
    assert!(message.contains("chat_template.jinja"), "{message}");
}

/// The text of a row by a template.
fn text_by(row: &Value, config: &Value) -> anyhow::Result<String> {
    let bench = Bench::new();
    let chat = template(&bench, config);
    Ok(first(&bench, &crate::config(4096), row, &chat)?.text)
}

#[test]
fn tools_and_calls_render_as_transformers_renders_them() {
    for rendered in fixture()["calls"].as_array().unwrap() {
        let part = |key: &str| rendered[key].as_str().unwrap();
        let bench = Bench::new();
        let chat = template(&bench, &json!({"chat_template": part("template")}));
        // A row as text: values of serde_json do not keep the order of keys.
        let row = first_line(&bench, &config(4096), part("row"), &chat, tokenizer_file()).unwrap();
        assert_eq!(row.text, part("text"));
    }
}

#[test]
fn the_template_for_tools_is_taken_where_a_row_has_tools() {
    let named = |said: &str| format!("{said}{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}");
    let both = json!({"chat_template": [
        {"name": "tool_use", "template": named("tools:")}, {"name": "default", "template": named("plain:")},
    ]});
    let turns = json!([{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "God."}]);
    let row = |tools: Value| json!({"messages": turns, "tools": tools});
    assert_eq!(text_by(&json!({"messages": turns}), &both).unwrap(), "plain:Who?God.");
    assert_eq!(text_by(&row(json!([])), &both).unwrap(), "plain:Who?God.");
    assert_eq!(text_by(&row(json!([{"name": "x"}])), &both).unwrap(), "tools:Who?God.");
    assert_eq!(text_by(&row(json!("[{\"name\": \"x\"}]")), &both).unwrap(), "tools:Who?God.");
    let plain = json!({"chat_template": named("only:")});
    assert_eq!(text_by(&row(json!([{"name": "x"}])), &plain).unwrap(), "only:Who?God.");
}

#[test]
fn arguments_of_a_call_that_are_text_are_encoded_once() {
    let arguments = r#"{"unit":"C","place":"Oslo"}"#;
    let calls = json!([{"function": {"name": "weather", "arguments": arguments}}]);
    let row = json!({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": calls}]});
    let by = |call: &str| {
        let template = format!(
            "{{% for m in messages %}}{{% for call in m.tool_calls or [] %}}{{% set a = call.function.arguments %}}{call}\
             {{% endfor %}}{{% endfor %}}."
        );
        text_by(&row, &json!({"chat_template": template})).unwrap()
    };
    assert_eq!(by("{{ a | tojson }}"), r#"{"unit": "C", "place": "Oslo"}."#);
    assert_eq!(by("{{ a.place }}"), "Oslo.");
    // Where a template takes text, by asking for it or by joining it, it gets the row's.
    assert_eq!(by("{{ '<' + a + '>' }}"), format!("<{arguments}>."));
    let asks = "{{ a if call.function.arguments is string else a | tojson }}";
    assert_eq!(by(asks), format!("{arguments}."));
    let asks = "{{ a | tojson if call.function['arguments'] is not string else a }}";
    assert_eq!(by(asks), format!("{arguments}."));
}

#[test]
fn templates_that_have_no_end_or_no_bounds_are_refused() {
    let long = "a".repeat(2 << 20);
    let deep = |open: &str, close: &str, times: usize| open.repeat(times) + &close.repeat(times);
    let cases = [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}".into(), "steps"),
        ("{% for i in range(10**9) %}{% endfor %}".into(), ""),
        ("{{ 'a' * 10**9 }}".into(), ""),
        ("{{ [1] * 10**9 }}".into(), ""),
        ("{{ 'a' * 10**18 }}".into(), ""),
        ("{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}".into(), ""),
        ("{{ 'a'.center(10**9) }}{{ 'a'.ljust(10**9) }}".into(), ""),
        ("{{ 'a' | center(10**12) }}".into(), ""),
        ("{{ 'a'.zfill(10**12) }}".into(), ""),
        ("{{ 'a\tb'.expandtabs(10**12) }}".into(), ""),
        ("{{ 'a\nb' | indent(10**10) }}".into(), ""),
        ("{{ ('\n' * 10**6) | indent(10**4, blank=true) }}".into(), ""),
        ("{{ ('x' * 10**6).join(range(10**5) | map('string')) }}".into(), ""),
        ("{{ range(10**5) | join('x' * 10**6) }}".into(), ""),
        ("{{ '%1000000000d' % 5 }}".into(), ""),
        ("{{ '%*d' % (10**9, 5) }}".into(), ""),
        ("{{ '%.1000000000f' % 5.0 }}".into(), ""),
        ("{{ '{:1000000000}'.format(5) }}".into(), ""),
        ("{{ '{:{w}}'.format(5, w=10**9) }}".into(), ""),
        ("{{ '%1000000000s' | format('a') }}".into(), ""),
        ("{{ [1] | tojson(indent=10**10) }}".into(), ""),
        ("{{ [1] | batch(10**9, 'x') | list }}".into(), ""),
        ("{{ [1] | slice(10**9) | list }}".into(), ""),
        ("{{ 10 ** 10 ** 10 }}".into(), ""),
        ("{{ 'a' | wordwrap(0) }}{% for i in range(10**5) %}{% for j in range(10**5) %}x{% endfor %}{% endfor %}".into(), ""),
        ("{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}".into(), ""),
        ("{% set ns = namespace(x=[]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x + [1] %}{% endfor %}{{ ns.x }}".into(), ""),
        ("{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}".into(), "deep"),
        ("{% set ns = namespace(x={}) %}{% for i in range(99999) %}{% set ns.x = {'a': ns.x}.items() %}{% endfor %}".into(), "deep"),
        ("{% set x = [] %}".to_string() + &"{% set x = [x] %}".repeat(20000) + "{{ x == x }}", "deep"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".into(), ""),
        ("{% macro m(x) %}{{ m([x]) }}{% endmacro %}{{ m(1) }}".into(), ""),
        ("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}".into(), ""),
        ("{{ ".to_string() + &"not ".repeat(100_000) + "1 }}", "nested too deeply"),
        ("{{ ".to_string() + &"-".repeat(100_000) + "1 }}", "nested too deeply"),
        (format!("{{{{ {} }}}}", deep("(", ")", 100_000)), "nested too deeply"),
        (format!("{{{{ {} }}}}", deep("[", "]", 100_000)), "nested too deeply"),
        (format!("{{{{ {} }}}}", "[".repeat(100_000)), ""),
        ("{{ 1".to_string() + &" + 1".repeat(100_000) + " }}", "nested too deeply"),
        ("{{ 1".to_string() + &" if 1 else 1".repeat(50_000) + " }}", "nested too deeply"),
        ("{{ a".to_string() + &".a".repeat(100_000) + " }}", "nested too deeply"),
        ("{{ a".to_string() + &"()".repeat(100_000) + " }}", "nested too deeply"),
        ("{{ a".to_string() + &"|e".repeat(100_000) + " }}", "nested too deeply"),
        ("{{ 2".to_string() + &" ** 2".repeat(100_000) + " }}", "nested too deeply"),
        ("{{ 1".to_string() + &" is odd".repeat(100_000) + " }}", "nested too deeply"),
        (deep("{% if 1 %}", "{% endif %}", 40_000), "nested too deeply"),
        (deep("{% for a in b %}", "{% endfor %}", 30_000), "nested too deeply"),
        ("{% if 1 %}".to_string() + &"{% elif 1 %}".repeat(50_000) + "{% endif %}", "nested too deeply"),
        (format!("{{{{ '{long}' }}}}"), "bytes"),
        ("{".repeat(500_000), ""),
        ("{% raw %}".to_string() + &"{%".repeat(400_000), ""),
    ];
    for (template, said) in cases {
        let bench = Bench::new();
        let begun = std::time::Instant::now();
        let shown = &template[..template.len().min(90)];
        let message = refusal(&bench, &config(64), &template);
        assert!(message.contains(said), "{shown}: {message}");
        assert!(message.len() < 4096, "{shown}: {} bytes", message.len());
        assert!(begun.elapsed().as_secs() < 60, "{shown}: {:?}", begun.elapsed());
    }
}

#[test]
fn a_conversation_of_thousands_of_turns_is_told_or_refused_in_seconds() {
    let bench = Bench::new();
    let turn = |role: &str| json!({"role": role, "content": "a"});
    let turns: Vec<_> = (0..4000).flat_map(|_| [turn("user"), turn("assistant")]).collect();
    let row = json!({"messages": turns});
    let marked = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}";
    let chat = template(&bench, &json!({"chat_template": marked}));
    assert_eq!(first(&bench, &config(1 << 20), &row, &chat).unwrap().text.len(), 8000);
    let begun = std::time::Instant::now();
    let plain = "{% for m in messages %}{{ m.content ~ loop.last }}{% endfor %}";
    let chat = template(&bench, &json!({"chat_template": plain}));
    let message = first(&bench, &config(1 << 20), &row, &chat).unwrap_err().to_string();
    assert!(message.contains("too many turns"), "{message}");
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
}
