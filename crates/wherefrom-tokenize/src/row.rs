//! What a corpus row may be: `{text}`, `{messages}`, `{prompt, completion[, contrast]}`, `{prompt[, samples]}`, `{mean}` or
//! `{input_ids[, target_mask]}`.
//!
//! Every refusal is a text that says what is wrong and what to do; the caller adds file and line.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Map, Value};
use wherefrom_artifact::bad_input;

use crate::corpus::Raw;

/// Columns that say something, by their default names.
const ROLES: [&str; 10] =
    ["text", "messages", "prompt", "completion", "contrast", "samples", "mean", "input_ids", "target_mask", "id"];
/// Most samples of a prompt.
const SAMPLES: u64 = 1000;

/// Which column holds what.
#[derive(Debug, Clone)]
pub(crate) struct Names(BTreeMap<&'static str, String>);

impl Names {
    /// The names of the knobs `column` (of the text) and `columns` (role to name).
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] for an unknown role, and for a column with two.
    pub(crate) fn new(column: &str, columns: &BTreeMap<String, String>) -> Result<Self> {
        let mut names = BTreeMap::new();
        for (role, name) in columns {
            let Some(&known) = ROLES.iter().find(|known| *known == role) else {
                return Err(bad_input(format!("columns: `{role}` is no role; roles are {}", ROLES.join(", "))));
            };
            names.insert(known, name.clone());
        }
        if column != "text" && names.insert("text", column.into()).is_some_and(|other| other != column) {
            return Err(bad_input("`column` and `columns.text` name different columns; keep one"));
        }
        let mut given: Vec<_> = names.values().cloned().collect();
        given.sort_unstable();
        if let Some(pair) = given.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(bad_input(format!("columns: `{}` is named for two roles; keep one", pair[0])));
        }
        // A column that is named for another role has no role of its own any more.
        for role in ROLES {
            if !given.iter().any(|name| name == role) {
                names.entry(role).or_insert_with(|| role.into());
            }
        }
        Ok(Self(names))
    }

    /// Every column that says something.
    pub(crate) fn all(&self) -> Vec<&str> {
        ROLES.iter().filter_map(|role| self.0.get(role)).map(String::as_str).collect()
    }

    /// The column of a role; nothing has that of a role without one.
    fn of(&self, role: &str) -> &str {
        self.0.get(role).map_or("", String::as_str)
    }
}

/// A row that is understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// Its `id`, if it has one.
    pub(crate) id: Option<String>,
    /// What is to become tokens.
    pub(crate) content: Content,
}

/// The shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// A document.
    Text(String),
    /// A conversation.
    Messages(Vec<Message>),
    /// A measurement, or without a completion something to be completed.
    Prompt {
        /// What is given.
        prompt: String,
        /// What is measured.
        completion: Option<String>,
        /// What it is measured against.
        contrast: Option<String>,
        /// How many completions the model is to write.
        samples: Option<u64>,
    },
    /// The mean of measurements.
    Mean(Vec<Content>),
    /// Tokens made elsewhere.
    Ids {
        /// The tokens.
        ids: Vec<u32>,
        /// Which of them are targets.
        mask: Option<Vec<bool>>,
    },
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Message {
    /// Who speaks.
    pub(crate) role: String,
    /// What is said.
    pub(crate) content: String,
}

const SHAPES: &str = "a row is {text}, {messages}, {prompt, completion}, {prompt}, {mean} or {input_ids}";

impl Row {
    /// Understands a raw row.
    pub(crate) fn parse(raw: &Raw, names: &Names) -> Result<Self, String> {
        match raw {
            Raw::Text(bytes) => Ok(Self { id: None, content: Content::Text(utf8(bytes)?.into()) }),
            Raw::Json(bytes) => object(parsed(utf8(bytes)?)?, names),
            Raw::Object(map) => object(map.clone()?, names),
        }
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes)
        .map_err(|error| format!("byte {} of the row is not UTF-8; save the file as UTF-8", error.valid_up_to() + 1))
}

fn parsed(text: &str) -> Result<Map<String, Value>, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| {
        let place = format!(" at line {} column {}", error.line(), error.column());
        let what = error.to_string().replace(&place, "");
        format!("malformed JSON at column {} ({what}); write one JSON object a line", error.column())
    })?;
    let Value::Object(map) = value else {
        let remedy = if value.is_array() { " (`jq -c '.[]'` takes an array apart)" } else { "" };
        return Err(format!("the row is {}, not an object; write one JSON object a line{remedy}", name(&value)));
    };
    Ok(map)
}

fn object(mut map: Map<String, Value>, names: &Names) -> Result<Row, String> {
    // Programs that write tables write null where a row lacks a column.
    let keys: Vec<_> = map.iter().map(|(key, value)| shown_key(key, value)).collect();
    map.retain(|_, value| !value.is_null());
    let id = match map.get(names.of("id")) {
        None => None,
        Some(Value::String(id)) => Some(id.clone()),
        Some(Value::Number(id)) => Some(id.to_string()),
        Some(other) => return Err(format!("`{}` is {}; make it a string or a number", names.of("id"), name(other))),
    };
    Ok(Row { id, content: content(&map, &keys, names)? })
}

fn content(map: &Map<String, Value>, keys: &[String], names: &Names) -> Result<Content, String> {
    let has = |role: &str| map.contains_key(names.of(role));
    let text = names.of("text");
    // Whoever names `prompt` as the text column means it.
    if ["prompt", "completion", "contrast"].contains(&text) && has("text") {
        return Ok(Content::Text(string(map, text)?));
    }
    let prompt = ["prompt", "completion"].into_iter().find(|role| has(role));
    let shape = |role: &'static str| Some(role).filter(|role| has(role));
    let shapes = [shape("text"), shape("messages"), prompt, shape("mean"), shape("input_ids")];
    let shapes: Vec<&str> = shapes.into_iter().flatten().map(|role| names.of(role)).collect();
    match shapes[..] {
        [] => {
            let found = if keys.is_empty() { "no keys at all".into() } else { keys.join(", ") };
            return Err(format!(
                "the row has no `{text}` (it has {found}); {SHAPES}: set `column` to the key that holds the text"
            ));
        }
        [first, second, ..] => {
            return Err(format!("the row has `{first}` and `{second}`, which is meant is unclear; {SHAPES}: keep one"));
        }
        [_] => {}
    }
    for (role, needs) in [("target_mask", "input_ids"), ("contrast", "completion")] {
        if has(role) && !has(needs) {
            let (role, needs) = (names.of(role), names.of(needs));
            return Err(format!("`{role}` goes with `{needs}`, which the row lacks; add it or remove `{role}`"));
        }
    }
    if has("samples") && (!has("prompt") || has("completion")) {
        return Err("`samples` goes with a `prompt` that has no `completion`: the model writes it; remove one".into());
    }
    if has("input_ids") {
        let ids = ids(map, names.of("input_ids"))?;
        return Ok(Content::Ids { mask: mask(map, names.of("target_mask"), ids.len())?, ids });
    }
    if has("messages") {
        return Ok(Content::Messages(messages(map, names.of("messages"))?));
    }
    if has("mean") {
        return mean(map, names);
    }
    if prompt.is_none() {
        return Ok(Content::Text(string(map, text)?));
    }
    if !has("prompt") {
        return Err("the row has a `completion` and no `prompt`; add it (\"\" is allowed)".into());
    }
    let optional = |role: &str| if has(role) { string(map, names.of(role)).map(Some) } else { Ok(None) };
    let samples = match map.get(names.of("samples")) {
        None => None,
        Some(value) => Some(
            value
                .as_u64()
                .filter(|count| (1..=SAMPLES).contains(count))
                .ok_or_else(|| format!("`samples` is {}; make it a number from 1 to {SAMPLES}", shown(value)))?,
        ),
    };
    Ok(Content::Prompt {
        prompt: string(map, names.of("prompt"))?,
        completion: optional("completion")?,
        contrast: optional("contrast")?,
        samples,
    })
}

fn mean(map: &Map<String, Value>, names: &Names) -> Result<Content, String> {
    let key = names.of("mean");
    let items = list(map, key)?;
    if items.is_empty() {
        return Err(format!("`{key}` is empty; give it measurements: {{prompt, completion}}"));
    }
    let item = |(index, item): (usize, &Value)| {
        let refuse = |what: String| format!("`{key}[{index}]`: {what}");
        let Value::Object(map) = item else {
            return Err(refuse(format!("is {}; make it {{prompt, completion}}", name(item))));
        };
        let keys: Vec<_> = map.iter().map(|(key, value)| shown_key(key, value)).collect();
        match content(map, &keys, names).map_err(refuse)? {
            Content::Prompt { completion: None, .. } | Content::Mean(_) => {
                Err(refuse("is no measurement; make it {prompt, completion}".into()))
            }
            content => Ok(content),
        }
    };
    Ok(Content::Mean(items.iter().enumerate().map(item).collect::<Result<_, _>>()?))
}

fn messages(map: &Map<String, Value>, key: &str) -> Result<Vec<Message>, String> {
    let items = list(map, key)?;
    if items.is_empty() {
        return Err(format!("`{key}` is empty; give it turns: {{role, content}}"));
    }
    let message = |(index, item): (usize, &Value)| {
        let field = |field: &str| match item.get(field) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(format!("`{key}[{index}].{field}` is {}; make it a string", name(other))),
            None => Err(format!("`{key}[{index}]` has no `{field}`; a turn is {{role, content}}")),
        };
        Ok(Message { role: field("role")?, content: field("content")? })
    };
    items.iter().enumerate().map(message).collect()
}

fn string(map: &Map<String, Value>, key: &str) -> Result<String, String> {
    match &map[key] {
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("`{key}` is {}; make it a string", name(other))),
    }
}

fn list<'a>(map: &'a Map<String, Value>, key: &str) -> Result<&'a [Value], String> {
    match &map[key] {
        Value::Array(items) => Ok(items),
        other => Err(format!("`{key}` is {}; make it a list", name(other))),
    }
}

fn ids(map: &Map<String, Value>, key: &str) -> Result<Vec<u32>, String> {
    let items = list(map, key)?;
    if items.is_empty() {
        return Err(format!("`{key}` is empty; give the row tokens or remove it"));
    }
    let id = |(index, item): (usize, &Value)| {
        item.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            format!("`{key}[{index}]` is {}; make it a token number from 0 to {}", shown(item), u32::MAX)
        })
    };
    items.iter().enumerate().map(id).collect()
}

fn mask(map: &Map<String, Value>, key: &str, tokens: usize) -> Result<Option<Vec<bool>>, String> {
    if !map.contains_key(key) {
        return Ok(None);
    }
    let items = list(map, key)?;
    if items.len() != tokens {
        return Err(format!("`{key}` has {} entries for {tokens} `input_ids`; give one for each token", items.len()));
    }
    let target = |(index, item): (usize, &Value)| match (item.as_bool(), item.as_u64()) {
        (Some(target), _) => Ok(target),
        (_, Some(0)) => Ok(false),
        (_, Some(1)) => Ok(true),
        _ => Err(format!("`{key}[{index}]` is {}; make it true or false", shown(item))),
    };
    let mask: Vec<bool> = items.iter().enumerate().map(target).collect::<Result<_, _>>()?;
    if mask[0] {
        return Err(
            "`target_mask` is true at position 0, which can never be a target: nothing comes before it; make it false"
                .into(),
        );
    }
    Ok(Some(mask))
}

fn shown_key(key: &str, value: &Value) -> String {
    if value.is_null() { format!("`{key}` (null)") } else { format!("`{key}`") }
}

fn shown(value: &Value) -> String {
    if value.is_number() { value.to_string() } else { name(value).into() }
}

fn name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
