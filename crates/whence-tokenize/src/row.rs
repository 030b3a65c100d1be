//! What a corpus row may be: `{text}`, `{prompt, completion[, contrast]}` or `{input_ids[, target_mask]}`.
//!
//! Every refusal is a text that says what is wrong and what to do; the caller adds file and line.

use serde_json::{Map, Value};

use crate::corpus::{Format, RawRow};

/// A row that is understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// Its `id`, if it has one.
    pub(crate) id: Option<String>,
    /// What is to become tokens.
    pub(crate) content: Content,
}

/// The three shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// A document.
    Text(String),
    /// A measurement, or without a completion something to be completed.
    Prompt {
        /// What is given.
        prompt: String,
        /// What is measured.
        completion: Option<String>,
        /// What it is measured against.
        contrast: Option<String>,
    },
    /// Tokens made elsewhere.
    Ids {
        /// The tokens.
        ids: Vec<u32>,
        /// Which of them are targets.
        mask: Option<Vec<bool>>,
    },
}

const SHAPES: &str = "a row is {text}, {prompt, completion} or {input_ids}";

impl Row {
    /// Understands a raw row; `column` is the key of the text.
    pub(crate) fn parse(raw: &RawRow, format: Format, column: &str) -> Result<Self, String> {
        let text = std::str::from_utf8(&raw.bytes).map_err(|error| {
            format!("byte {} of the row is not UTF-8; save the file as UTF-8", error.valid_up_to() + 1)
        })?;
        match format {
            Format::Text => Ok(Self { id: None, content: Content::Text(text.into()) }),
            Format::JsonLines => parse_json(text, column),
        }
    }
}

fn parse_json(text: &str, column: &str) -> Result<Row, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| {
        let place = format!(" at line {} column {}", error.line(), error.column());
        let what = error.to_string().replace(&place, "");
        format!("malformed JSON at column {} ({what}); write one JSON object a line", error.column())
    })?;
    let Value::Object(mut map) = value else {
        let remedy = if value.is_array() { " (`jq -c '.[]'` takes an array apart)" } else { "" };
        return Err(format!("the row is {}, not an object; write one JSON object a line{remedy}", name(&value)));
    };
    // Programs that write tables write null where a row lacks a column.
    let keys: Vec<_> = map.iter().map(|(key, value)| shown_key(key, value)).collect();
    map.retain(|_, value| !value.is_null());
    let id = match map.get("id") {
        None => None,
        Some(Value::String(id)) => Some(id.clone()),
        Some(Value::Number(id)) => Some(id.to_string()),
        Some(other) => return Err(format!("`id` is {}; make it a string or a number", name(other))),
    };
    Ok(Row { id, content: content(&map, &keys, column)? })
}

fn content(map: &Map<String, Value>, keys: &[String], column: &str) -> Result<Content, String> {
    let has = |key: &str| map.contains_key(key);
    // Whoever names `prompt` as the text column means it.
    if ["prompt", "completion", "contrast"].contains(&column) && has(column) {
        return Ok(Content::Text(string(map, column)?));
    }
    let prompt = ["prompt", "completion"].into_iter().find(|key| has(key));
    let shapes: Vec<&str> = [Some(column).filter(|key| has(key)), prompt, Some("input_ids").filter(|key| has(key))]
        .into_iter()
        .flatten()
        .collect();
    match shapes[..] {
        [] => {
            let found = if keys.is_empty() { "no keys at all".into() } else { keys.join(", ") };
            return Err(format!(
                "the row has no `{column}` (it has {found}); {SHAPES}: set `column` to the key that holds the text"
            ));
        }
        [first, second, ..] => {
            return Err(format!("the row has `{first}` and `{second}`, which is meant is unclear; {SHAPES}: keep one"));
        }
        [_] => {}
    }
    for (key, needs) in [("target_mask", "input_ids"), ("contrast", "completion")] {
        if has(key) && !has(needs) {
            return Err(format!("`{key}` goes with `{needs}`, which the row lacks; add it or remove `{key}`"));
        }
    }
    if has("input_ids") {
        let ids = ids(map)?;
        return Ok(Content::Ids { mask: mask(map, ids.len())?, ids });
    }
    if prompt.is_none() {
        return Ok(Content::Text(string(map, column)?));
    }
    if !has("prompt") {
        return Err("the row has a `completion` and no `prompt`; add it (\"\" is allowed)".into());
    }
    let optional = |key: &str| if has(key) { string(map, key).map(Some) } else { Ok(None) };
    Ok(Content::Prompt {
        prompt: string(map, "prompt")?,
        completion: optional("completion")?,
        contrast: optional("contrast")?,
    })
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

fn ids(map: &Map<String, Value>) -> Result<Vec<u32>, String> {
    let items = list(map, "input_ids")?;
    if items.is_empty() {
        return Err("`input_ids` is empty; give the row tokens or remove it".into());
    }
    let id = |(index, item): (usize, &Value)| {
        item.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            format!("`input_ids[{index}]` is {}; make it a token number from 0 to {}", shown(item), u32::MAX)
        })
    };
    items.iter().enumerate().map(id).collect()
}

fn mask(map: &Map<String, Value>, tokens: usize) -> Result<Option<Vec<bool>>, String> {
    if !map.contains_key("target_mask") {
        return Ok(None);
    }
    let items = list(map, "target_mask")?;
    if items.len() != tokens {
        return Err(format!(
            "`target_mask` has {} entries for {tokens} `input_ids`; give one for each token",
            items.len()
        ));
    }
    let target = |(index, item): (usize, &Value)| match (item.as_bool(), item.as_u64()) {
        (Some(target), _) => Ok(target),
        (_, Some(0)) => Ok(false),
        (_, Some(1)) => Ok(true),
        _ => Err(format!("`target_mask[{index}]` is {}; make it true or false", shown(item))),
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
