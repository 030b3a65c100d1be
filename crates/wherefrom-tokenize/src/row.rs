//! What a corpus row may be: `{text}`, `{messages}`, `{prompt, completion[, contrast]}`, `{prompt[, samples]}`, `{mean}`,
//! `{instruction[, input], output}`, `{[prompt, ]chosen, rejected}` or `{input_ids[, target_mask]}`.
//!
//! Every refusal is a text that says what is wrong and what to do; the caller adds file and line.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use wherefrom_artifact::bad_input;
use wherefrom_vocabulary::Conversation;
use wherefrom_vocabulary::json::{self, utf8};
use wherefrom_vocabulary::ordered::{Json, Object};

use crate::corpus::Raw;
use crate::ids::{self, list};
use crate::instructions::Instruction;
use crate::pairs::Pair;
use crate::turns;
use crate::words::{self, Shape};

/// Columns that say something, by their default names.
pub(crate) const ROLES: [&str; 15] = [
    "text",
    "messages",
    "prompt",
    "completion",
    "contrast",
    "samples",
    "mean",
    "instruction",
    "input",
    "output",
    "chosen",
    "rejected",
    "input_ids",
    "target_mask",
    "id",
];
/// Most samples of a prompt.
const SAMPLES: u64 = 1000;

/// Which column holds what.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    roles: BTreeMap<&'static str, String>,
    /// Roles whose column the user has named.
    named: BTreeSet<&'static str>,
    /// Columns that are kept as they are; where there are any, nothing else is read.
    kept: Vec<String>,
}

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
        let named = names.keys().copied().collect();
        // A column that is named for another role has no role of its own any more.
        for role in ROLES {
            if !given.iter().any(|name| name == role) {
                names.entry(role).or_insert_with(|| role.into());
            }
        }
        Ok(Self { roles: names, named, kept: Vec::new() })
    }

    /// These columns and no roles.
    pub(crate) fn kept(columns: Vec<String>) -> Self {
        Self { roles: BTreeMap::new(), named: BTreeSet::new(), kept: columns }
    }

    /// Whether columns are read for what they are, not for a role.
    pub(crate) fn keeps(&self) -> bool {
        !self.kept.is_empty()
    }

    /// The column of every role.
    pub(crate) fn all(&self) -> Vec<&str> {
        self.of_all(&ROLES)
    }

    /// The columns of these roles.
    fn of_all(&self, roles: &[&'static str]) -> Vec<&str> {
        roles.iter().filter_map(|role| self.roles.get(role)).map(String::as_str).collect()
    }

    /// Roles whose column the user has named, with the columns.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.named.iter().map(|role| (*role, self.of(role)))
    }

    /// Whether the user has named the column of one of these roles.
    fn names(&self, roles: &[&str]) -> bool {
        roles.iter().any(|role| self.named.contains(role))
    }

    /// Whether the column `key` is looked at.
    pub(crate) fn reads(&self, key: &str) -> bool {
        if self.keeps() {
            return self.kept.iter().any(|name| name == key);
        }
        self.roles.values().any(|name| name == key) || words::known(key)
    }

    /// The column of a role; nothing has that of a role without one.
    pub(crate) fn of(&self, role: &str) -> &str {
        self.roles.get(role).map_or("", String::as_str)
    }
}

/// A row that is understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    /// Its `id`, if it has one.
    pub(crate) id: Option<String>,
    /// What is to become tokens.
    pub(crate) content: Content,
    /// Known words beside it that are passed over.
    pub(crate) unread: Vec<String>,
    /// Roles whose column the user has named, and that it has.
    pub(crate) named: Vec<&'static str>,
}

/// The shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// A document.
    Text(String),
    /// A conversation.
    Messages(Conversation),
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
        /// A column that other programs have for a completion, where there is none.
        instead: Option<&'static str>,
    },
    /// The mean of measurements.
    Mean(Vec<Content>),
    /// An instruction and its answer.
    Instruction(Instruction),
    /// Two answers, of which one was preferred.
    Pair(Pair),
    /// Tokens made elsewhere.
    Ids {
        /// The tokens.
        ids: Vec<u32>,
        /// Which of them are targets.
        mask: Option<Vec<bool>>,
    },
    /// Nothing: what would hold it is null. What is said of it.
    Null(String),
}

const SHAPES: &str = "a row is {text}, {messages}, {prompt, completion}, {prompt}, {instruction, output}, {chosen, rejected}, \
                      {mean} or {input_ids}";

/// Roles by the shape that they make, each of which begins with one that the shape needs.
const BY_SHAPE: [&[&str]; 7] = [
    &["text"],
    &["messages"],
    &["instruction", "input", "output"],
    &["chosen", "rejected"],
    &["prompt", "completion", "contrast", "samples"],
    &["mean"],
    &["input_ids", "target_mask"],
];

impl Row {
    /// Understands a raw row.
    pub(crate) fn parse(raw: &Raw, names: &Names) -> Result<Self, String> {
        match raw {
            Raw::Text(bytes) => {
                let text = utf8(bytes)?;
                if let Some(place) = text.find('\0') {
                    return Err(format!(
                        "byte {} of the row is zero, which no text has; give a text file, as UTF-8",
                        place + 1
                    ));
                }
                let content = Content::Text(text.replace("\r\n", "\n"));
                Ok(Self { id: None, content, unread: Vec::new(), named: Vec::new() })
            }
            Raw::Json(bytes) => object(json::object(bytes, &|key| names.reads(key))?, names),
            Raw::Object(map) => object(map.clone()?, names),
        }
    }
}

fn object(mut map: Object, names: &Names) -> Result<Row, String> {
    // Programs that write tables write null where a row lacks a column.
    let keys: Vec<_> = map.iter().map(|(key, value)| shown_key(key, value)).collect();
    let named = names.named.iter().copied().filter(|role| map.contains_key(names.of(role))).collect();
    map.retain(|_, value| !value.is_null());
    let id = match map.get(names.of("id")) {
        None => None,
        Some(Json::String(id)) => Some(id.clone()),
        Some(Json::Number(id)) => Some(id.to_string()),
        Some(other) => return Err(format!("`{}` is {}; make it a string or a number", names.of("id"), other.name())),
    };
    let content = content(&map, &keys, names)?;
    let (shape, read): (_, &[&'static str]) = match &content {
        Content::Text(_) | Content::Null(_) => (Shape::Text, &["text"]),
        Content::Messages(_) => (Shape::Turns, &["messages"]),
        Content::Prompt { .. } | Content::Mean(_) => {
            (Shape::Prompt, &["text", "prompt", "completion", "contrast", "samples", "mean"])
        }
        Content::Instruction(_) => (Shape::Prompt, &["instruction", "input", "output"]),
        Content::Pair(Pair::Texts { .. }) => (Shape::Prompt, &["prompt", "chosen", "rejected"]),
        Content::Pair(Pair::Turns(_)) => (Shape::Turns, &["prompt", "chosen", "rejected"]),
        Content::Ids { .. } => (Shape::Ids, &["input_ids", "target_mask"]),
    };
    let mut unread = words::unread(&map, shape, &names.of_all(read));
    unread.extend(slips(&map, &content, names));
    Ok(Row { id, content, unread, named })
}

/// Columns that are none, beside which the row has a meaning, and seem to be meant for what the row could have and has not.
fn slips(map: &Object, content: &Content, names: &Names) -> Option<String> {
    let role = match content {
        Content::Prompt { completion: Some(_), contrast: None, .. } => "contrast",
        Content::Prompt { completion: None, samples: None, .. } => "samples",
        Content::Ids { mask: None, .. } => "target_mask",
        _ => return None,
    };
    words::near(names.of(role), map.keys().map(String::as_str)).map(String::from)
}

fn content(map: &Object, keys: &[String], names: &Names) -> Result<Content, String> {
    let has = |role: &str| map.contains_key(names.of(role));
    let text = names.of("text");
    // Whoever names `prompt` as the text column means it.
    if ["prompt", "completion", "contrast"].contains(&text) && has("text") {
        return Ok(Content::Text(string(map, text)?));
    }
    let both = |first: &'static str, other: &str| Some(first).filter(|_| has(first) && has(other));
    let instruction = both("instruction", "output");
    let pair = both("chosen", "rejected");
    // The prompt of a pair is a part of it.
    let prompt = ["prompt", "completion"].into_iter().find(|role| has(role));
    let prompt = prompt.filter(|_| pair.is_none() || has("completion"));
    let shape = |role: &'static str| Some(role).filter(|role| has(role));
    let shapes =
        [shape("text"), shape("messages"), instruction, pair, prompt, shape("mean"), shape("input_ids")].into_iter();
    let mut shapes: Vec<_> = shapes.zip(BY_SHAPE).filter_map(|(shape, roles)| Some((shape?, roles))).collect();
    // Of several it is the one whose columns are named.
    if shapes.iter().filter(|(_, roles)| names.names(roles)).count() == 1 {
        shapes.retain(|(_, roles)| names.names(roles));
    }
    let shown = |role: &str| match role {
        "instruction" => format!("`{}` with `{}`", names.of("instruction"), names.of("output")),
        "chosen" => format!("`{}` with `{}`", names.of("chosen"), names.of("rejected")),
        role => format!("`{}`", names.of(role)),
    };
    match shapes[..] {
        [] if map.contains_key("conversations") => {
            return Ok(Content::Messages(turns::conversation(map, "conversations")?));
        }
        [] => {
            let null = ["text", "messages", "prompt", "completion", "mean", "input_ids"].into_iter().find(|role| {
                let null = format!("`{}` (null)", names.of(role));
                keys.contains(&null)
            });
            let what = shapeless(map, keys, names);
            return null.map_or_else(|| Err(what), |role| Ok(Content::Null(nothing(names.of(role)))));
        }
        [(first, _), (second, _), ..] => {
            return Err(format!(
                "the row has {} and {}, which is meant is unclear; {SHAPES}: keep one, or name the column of the one that \
                 is meant: columns = {{ {first} = \"{}\" }}",
                shown(first),
                shown(second),
                names.of(first)
            ));
        }
        [("instruction", _)] => {
            beside_prompt(map, names, names.of("instruction"))?;
            let columns = ["instruction", "input", "output"].map(|role| names.of(role));
            return Ok(Content::Instruction(Instruction::read(map, columns)?));
        }
        [("chosen", _)] => {
            let columns = ["prompt", "chosen", "rejected"].map(|role| names.of(role));
            if map[columns[1]].as_array().is_none() {
                beside_prompt(map, names, names.of("prompt"))?;
            }
            return Ok(Content::Pair(Pair::read(map, columns)?));
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
        let (ids, mask) = ids::tokens(map, names.of("input_ids"), names.of("target_mask"))?;
        return Ok(Content::Ids { ids, mask });
    }
    if has("messages") {
        return Ok(Content::Messages(turns::conversation(map, names.of("messages"))?));
    }
    if has("mean") {
        return mean(map, names);
    }
    if prompt.is_none() {
        return Ok(Content::Text(string(map, text)?));
    }
    if !has("prompt") {
        let near = words::near(names.of("prompt"), map.keys().map(String::as_str));
        let near = near.map_or(String::new(), |found| {
            format!(", but `{found}`: {}", words::meant("prompt", names.of("prompt"), found))
        });
        let (prompt, completion) = (names.of("prompt"), names.of("completion"));
        return Err(format!("the row has a `{completion}` and no `{prompt}`{near}; add it (\"\" is allowed)"));
    }
    let is_list = |role: &str| map.get(names.of(role)).is_some_and(|value| value.as_array().is_some());
    if is_list("prompt") && (is_list("completion") || !has("completion")) && !has("contrast") && !has("samples") {
        return Ok(Content::Messages(turns::continued(map, names.of("prompt"), names.of("completion"))?));
    }
    beside_prompt(map, names, names.of("prompt"))?;
    not_instead(map, names)?;
    let optional = |role: &str| if has(role) { string(map, names.of(role)).map(Some) } else { Ok(None) };
    let samples = match map.get(names.of("samples")) {
        None => None,
        Some(value) => Some(
            value
                .as_u64()
                .filter(|count| (1..=SAMPLES).contains(count))
                .ok_or_else(|| format!("`samples` is {}; make it a number from 1 to {SAMPLES}", value.shown()))?,
        ),
    };
    Ok(Content::Prompt {
        prompt: string(map, names.of("prompt"))?,
        completion: optional("completion")?,
        contrast: optional("contrast")?,
        samples,
        instead: words::called("completion", |key| map.contains_key(key)).filter(|_| !has("completion")),
    })
}

/// Why a row without a shape has none: what it seems to be, and how to name its columns.
fn shapeless(map: &Object, keys: &[String], names: &Names) -> String {
    let has = |key: &str| map.contains_key(key);
    if has("instruction") && has("response") {
        let input = if has("context") { "input = \"context\", " } else { "" };
        return format!("the row is an instruction; name its columns: columns = {{ {input}output = \"response\" }}");
    }
    let roles = [
        "text",
        "messages",
        "prompt",
        "completion",
        "input_ids",
        "mean",
        "instruction",
        "output",
        "chosen",
        "rejected",
    ];
    let near = roles.into_iter().find_map(|role| {
        let found = words::near(names.of(role), map.keys().map(String::as_str))?;
        Some(words::meant(role, names.of(role), found))
    });
    let called = || {
        let of = |role| words::called(role, has);
        let columns = match (of("prompt"), of("completion"), of("text")) {
            (Some(prompt), Some(completion), _) => format!("prompt = \"{prompt}\", completion = \"{completion}\""),
            (_, _, Some(text)) => format!("text = \"{text}\""),
            _ => return None,
        };
        Some(format!("did you mean columns = {{ {columns} }}?"))
    };
    let remedy =
        near.or_else(called).unwrap_or_else(|| "say which key holds what: columns = { text = \"KEY\" }".into());
    let found = if keys.is_empty() { "no keys at all".into() } else { keys.join(", ") };
    format!("the row has no `{}` (it has {found}); {SHAPES}: {remedy}", names.of("text"))
}

/// What is said of a row of which the column that would say something is null.
fn nothing(column: &str) -> String {
    format!("`{column}` is null; remove the row, or set untargeted = \"skip\" to leave such rows out and count them")
}

/// Refuses what belongs to a `prompt` and would be lost.
fn beside_prompt(map: &Object, names: &Names, prompt: &str) -> Result<(), String> {
    let read = names.all();
    let says = |key: &str| map.get(key).is_some_and(|value| !value.is_empty());
    if prompt == "instruction"
        && names.of("prompt") == prompt
        && let Some(key) = ["input", "context"].into_iter().find(|key| says(key))
    {
        return Err(format!(
            "`{key}` belongs to `instruction` and would be lost; leave `columns` out for rows of instruction, input and \
             output, or name them: columns = {{ instruction = \"instruction\", input = \"{key}\", output = \"{}\" }}",
            names.of("completion")
        ));
    }
    let beside = ["system", "system_prompt", "history"].into_iter().find(|key| says(key) && !read.contains(key));
    if let Some(key) = beside {
        return Err(format!(
            "`{key}` belongs to `{prompt}` and would be lost; give `messages`, or a prompt that holds it"
        ));
    }
    Ok(())
}

/// Refuses a prompt without a completion beside a column that seems to be one.
fn not_instead(map: &Object, names: &Names) -> Result<(), String> {
    let completion = names.of("completion");
    if map.contains_key(completion) {
        return Ok(());
    }
    if let Some(found) = words::near(completion, map.keys().map(String::as_str)) {
        return Err(format!(
            "the row has no `{completion}` but `{found}`: {}",
            words::meant("completion", completion, found)
        ));
    }
    Ok(())
}

fn mean(map: &Object, names: &Names) -> Result<Content, String> {
    let key = names.of("mean");
    let items = list(map, key)?;
    if items.is_empty() {
        return Err(format!("`{key}` is empty; give it measurements: {{prompt, completion}}"));
    }
    let item = |(index, item): (usize, &Json)| {
        let refuse = |what: String| format!("`{key}[{index}]`: {what}");
        let Json::Object(map) = item else {
            return Err(refuse(format!("is {}; make it {{prompt, completion}}", item.name())));
        };
        let keys: Vec<_> = map.iter().map(|(key, value)| shown_key(key, value)).collect();
        match content(map, &keys, names).map_err(refuse)? {
            Content::Null(what) => Err(refuse(what)),
            Content::Prompt { completion: None, .. } | Content::Mean(_) => {
                Err(refuse("is no measurement; make it {prompt, completion}".into()))
            }
            content => Ok(content),
        }
    };
    Ok(Content::Mean(items.iter().enumerate().map(item).collect::<Result<_, _>>()?))
}

fn string(map: &Object, key: &str) -> Result<String, String> {
    match &map[key] {
        Json::String(text) => Ok(text.clone()),
        other => Err(format!("`{key}` is {}; make it a string", other.name())),
    }
}

fn shown_key(key: &str, value: &Json) -> String {
    if value.is_null() { format!("`{key}` (null)") } else { format!("`{key}`") }
}
