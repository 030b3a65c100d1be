//! Templates and conversations at random: each is rendered or refused, and what the assistant says lies in the text.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use wherefrom_artifact::PANICKED;
use wherefrom_tests::{damage, damaged, hold};

use super::{Chat, DEFAULT, Date, Rendered};
use crate::conversation::Conversation;
use crate::ordered::{Json, Object};

/// Longest that one may take, on a busy machine.
const TIME: Duration = Duration::from_secs(20);

/// What tests compare with Jinja2, each inside its tags.
static EXPRESSIONS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let lines = include_str!("../../../../tests/fixtures/chat/expressions.txt").lines();
    lines
        .map(|line| if line.contains("{{") || line.contains("{%") { line.into() } else { format!("{{{{ {line} }}}}") })
        .collect()
});

/// Templates as model families have them.
static TEMPLATES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let fixture: Value = serde_json::from_str(include_str!("../../../../tests/fixtures/chat/templates.json")).unwrap();
    let configs = fixture["configs"].as_object().unwrap().values();
    let others = ["answers", "masks", "calls"].into_iter().flat_map(|name| fixture[name].as_array().unwrap());
    let mut templates: Vec<String> = configs
        .map(|config| &config["chat_template"])
        .chain(others.map(|other| &other["template"]))
        .map(|template| template.as_str().unwrap().to_string())
        .collect();
    templates.sort();
    templates.dedup();
    templates
});

/// Tags that need no other.
const TAGS: [&str; 19] = [
    "{{ m.content }}",
    "{{ m['content'] | trim }}",
    "{% set x = m.content %}",
    "{% set ns = namespace(a=1) %}",
    "{% set ns.a = ns.a + 1 %}",
    "{{ f(x) }}",
    "{# c #}",
    "{{ bos_token }}",
    "{{ eos_token }}",
    "{{ raise_exception('no') }}",
    "{{ strftime_now('%Y') }}",
    "{{ x ~ x }}",
    "{{ loop.index }}",
    "{{ m | tojson(indent=2) }}",
    "{{ x[1:-1:2] }}",
    "{{ x.split('a')[-1] }}",
    "{{ '%s' % x }}",
    "{% break %}",
    "{% include 'x' %}",
];
/// Tags around others.
const BLOCKS: [(&str, &str); 14] = [
    ("{% for m in messages %}", "{% endfor %}"),
    ("{%- for k, v in m.items() if v -%}", "{%- endfor %}"),
    ("{% for x in range(9) %}", "{% else %}a{% endfor %}"),
    ("{% if m.role == 'assistant' %}", "{% endif %}"),
    ("{% if tools %}", "{% elif m is mapping %}b{% else %}c{% endif %}"),
    ("{% generation %}", "{% endgeneration %}"),
    ("{%- generation -%}", "{%- endgeneration -%}"),
    ("{% set x %}", "{% endset %}{{ x }}"),
    ("{% macro f(a, b=a) %}", "{% endmacro %}{{ f('y') }}"),
    ("{% call f(1) %}", "{% endcall %}"),
    ("{% filter upper %}", "{% endfilter %}"),
    ("{% with x = 1 %}", "{% endwith %}"),
    ("{% raw %}", "{% endraw %}"),
    ("{% for m in messages recursive %}", "{{ loop(m.tools) }}{% endfor %}"),
];

fn template() -> impl Strategy<Value = String> {
    let known = (0..TEMPLATES.len(), damage()).prop_map(|(which, damage)| {
        String::from_utf8_lossy(&damaged(TEMPLATES[which].clone().into_bytes(), &damage)).into_owned()
    });
    let leaf = prop_oneof![
        4 => select(&TAGS[..]).prop_map(String::from),
        3 => (0..EXPRESSIONS.len()).prop_map(|line| EXPRESSIONS[line].clone()),
        2 => select(vec!["\n", " ", "<|im_end|>", "God."]).prop_map(String::from),
        1 => ".{0,8}",
    ];
    let blocks = leaf.prop_recursive(4, 12, 4, |inner| {
        (select(&BLOCKS[..]), vec(inner, 0..4))
            .prop_map(|((open, close), inside)| format!("{open}{}{close}", inside.concat()))
    });
    let whole =
        vec(blocks, 1..4).prop_map(|pieces| format!("{{% for m in messages %}}{}{{% endfor %}}", pieces.concat()));
    // Now and then a tag is not closed, or none is open.
    let torn = (whole.clone(), damage())
        .prop_map(|(whole, damage)| String::from_utf8_lossy(&damaged(whole.into_bytes(), &damage)).into_owned());
    prop_oneof![2 => known, 3 => whole, 1 => torn]
}

/// A row of turns.
fn row() -> impl Strategy<Value = Value> {
    let text = || prop_oneof![2 => ".{0,12}", 2 => select(vec!["", " ", "God.", "<|im_end|>", "Q", "Z", "a\n", "{{ x }}", "</s>"]).prop_map(String::from)];
    let role = select(vec!["user", "assistant", "assistant", "system", "tool"]);
    let calls = prop_oneof![
        6 => Just(None),
        1 => text().prop_map(|text| Some(json!([{ "function": { "name": text, "arguments": { "a": [1, null, 0.5] } } }]))),
        1 => text().prop_map(|text| Some(json!([{ "function": { "name": "f", "arguments": text } }]))),
    ];
    let turn = (role, text(), calls, any::<bool>()).prop_map(|(role, content, calls, learnt)| {
        let mut turn = json!({ "role": role, "content": content });
        calls.into_iter().for_each(|calls| turn["tool_calls"] = calls);
        if !learnt {
            turn["weight"] = 0.into();
        }
        turn
    });
    (vec(turn, 1..5), any::<bool>()).prop_map(|(turns, tools)| {
        let mut row = json!({ "messages": turns });
        if tools {
            row["tools"] = json!([{ "function": { "name": "f", "parameters": { "items": {} } } }]);
        }
        row
    })
}

fn object(row: &Value) -> Object {
    match serde_json::from_str(&row.to_string()).unwrap() {
        Json::Object(object) => object,
        other => panic!("{other:?}"),
    }
}

fn conversation(row: &Value) -> Conversation {
    let mut conversation = Conversation::default();
    for turn in row["messages"].as_array().unwrap() {
        conversation.push((object(turn), turn["weight"] == 0));
    }
    conversation.given.extend(object(row).into_iter().filter(|(name, _)| name == "tools"));
    conversation
}

/// A refusal, which no panic of a library stands behind.
fn unless_refused<T>(result: Result<T, String>) -> Result<Option<T>, TestCaseError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(what) if what.contains(PANICKED) => Err(TestCaseError::fail(format!("a panic: {what}"))),
        Err(_) => Ok(None),
    }
}

#[test]
fn fuzz_templates_and_messages_are_rendered_or_refused() {
    let date = Date::parse("2024-07-26").unwrap();
    hold(400, (template(), row(), any::<bool>()), |(template, row, dated)| {
        let start = Instant::now();
        let specials = [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, text)| (name.into(), text.into()));
        let templates = vec![(DEFAULT.into(), template)];
        let chat = Chat::new(templates, specials.into(), "x".into(), dated.then_some(date));
        let Some(chat) = unless_refused(chat)? else { return Ok(()) };
        let turns = conversation(&row);
        chat.unread(&turns);
        unless_refused(chat.asked(&turns))?;
        if let Some(Rendered { text, answers }) = unless_refused(chat.answered(&turns))? {
            let mut end = 0;
            for answer in &answers {
                prop_assert!(end <= answer.start && answer.start <= answer.end, "{answers:?} of {text:?}");
                prop_assert!(text.get(answer.clone()).is_some(), "{answers:?} of {text:?}");
                end = answer.end;
            }
        }
        prop_assert!(start.elapsed() < TIME, "it takes {:?}", start.elapsed());
        Ok(())
    });
}
