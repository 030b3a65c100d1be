//! What a corpus seems to be, by its first rows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;
use wherefrom_artifact::bad_input;
use wherefrom_vocabulary::json;
use wherefrom_vocabulary::ordered::{Json, Object};

use crate::columns::OWN;
use crate::corpus::{Corpus, Place, Raw, RawRow};
use crate::row::{Content, Names, ROLES, Row};
use crate::source::{Format, corpus_files};
use crate::table::text_columns;
use crate::words;

/// Rows that are looked at.
const ROWS: usize = 64;
/// Columns that are worth keeping are no more than so many.
const KEPT: usize = 12;
/// What others call a row's `id`.
const IDENTIFIERS: [&str; 7] = ["doc_id", "document_id", "docid", "uuid", "_id", "url", "uri"];
/// Characters of the longest value that is no text of its own.
const SHORT: usize = 100;

/// What the rows of a corpus are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Documents.
    Text,
    /// Conversations.
    Turns,
    /// Prompts with completions, instructions with outputs.
    Prompts,
    /// Answers of which one was preferred.
    Pairs,
    /// Tokens made elsewhere.
    Ids,
}

/// What the first rows are, and the knob `columns` that says so; `columns` are those that are known beforehand.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] with the choices, where they could be several things or are none.
pub fn peek(corpus: &Path, columns: &BTreeMap<String, String>) -> Result<(Form, BTreeMap<String, String>)> {
    let error = match form(corpus, columns) {
        Ok(form) => return Ok((form, columns.clone())),
        Err(error) if !columns.is_empty() => return Err(named(corpus, columns).unwrap_or(error)),
        Err(error) => error,
    };
    let found = texts(corpus).unwrap_or_default();
    let has = |name: &str| found.iter().any(|found| found == name);
    let names = Names::new("text", columns)?;
    let mut choices = Vec::new();
    if let (Some(prompt), Some(completion)) = (words::called("prompt", has), words::called("completion", has)) {
        choices.push(format!("--column prompt={prompt} --column completion={completion}"));
    } else if found.iter().any(|name| names.all().contains(&&name[..])) {
        // Its rows have a meaning, and something is wrong with it.
        return Err(error);
    }
    choices.extend(found.iter().map(|name| format!("--column {name}")));
    match (&choices[..], &found[..]) {
        ([], _) => Err(error),
        ([_], [only]) => {
            let columns = BTreeMap::from([("text".to_string(), only.clone())]);
            Ok((form(corpus, &columns)?, columns))
        }
        _ => Err(bad_input(format!(
            "{}: its rows have no column of a known name; say which holds the text: {}",
            corpus.display(),
            choices.join(", or ")
        ))),
    }
}

/// What is wrong with columns that were named, in the words of the command line; none if it is not their names.
fn named(corpus: &Path, columns: &BTreeMap<String, String>) -> Option<anyhow::Error> {
    if let Some(role) = columns.keys().find(|role| !ROLES.contains(&&role[..])) {
        return Some(bad_input(format!(
            "--column {role}={}: `{role}` is no role; roles are {}",
            columns[role],
            ROLES.join(", ")
        )));
    }
    let found = texts(corpus).unwrap_or_default();
    let texts_only =
        |role: &str| ["text", "prompt", "completion", "contrast", "instruction", "input", "output"].contains(&role);
    let (role, name) = columns.iter().find(|(role, name)| texts_only(role) && !found.contains(name))?;
    let given = if role == "text" { name.clone() } else { format!("{role}={name}") };
    let (shown, known) = (corpus.display(), found.join(", "));
    Some(bad_input(format!(
        "--column {given}: no row of {shown} has text in a column `{name}`; those with text are {known}"
    )))
}

fn form(corpus: &Path, columns: &BTreeMap<String, String>) -> Result<Form> {
    let opened = Corpus::open(corpus, Names::new("text", columns)?)?;
    let rows = opened.rows(Place::default()).chunk(ROWS)?;
    let refused = |place: Place, what: &str| bad_input(format!("{}: {what}", opened.shown(place)));
    let mut found: Option<Form> = None;
    for raw in &rows {
        let row = Row::parse(&raw.raw, opened.names()).map_err(|what| refused(raw.place, &what))?;
        let form = match row.content {
            Content::Null(_) => continue,
            Content::Text(_) => Form::Text,
            Content::Messages(_) => Form::Turns,
            Content::Prompt { completion: Some(_), .. } | Content::Instruction(_) => Form::Prompts,
            Content::Pair(_) => Form::Pairs,
            Content::Prompt { .. } => return Err(refused(raw.place, "a prompt without a completion trains nothing")),
            Content::Mean(_) => {
                return Err(refused(raw.place, "`mean` is a query; a corpus has rows that were trained on"));
            }
            Content::Ids { .. } => Form::Ids,
        };
        if found.is_some_and(|found| found != form) {
            return Err(refused(raw.place, "it has another form than the rows before it; give one form a corpus"));
        }
        found = Some(form);
    }
    found.ok_or_else(|| bad_input(format!("{}: has no rows that say anything", corpus.display())))
}

/// The column of another name that calls each of the first rows otherwise; none where rows have an `id`, or nothing does.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a corpus that cannot be read.
pub fn identifier(corpus: &Path, columns: &BTreeMap<String, String>) -> Result<Option<String>> {
    let names = Names::new("text", columns)?;
    let wanted: Vec<String> = [names.of("id")].into_iter().chain(IDENTIFIERS).map(String::from).collect();
    let rows = Corpus::open(corpus, Names::kept(wanted.clone()))?.rows(Place::default()).chunk(ROWS)?;
    let rows: Vec<Object> = rows.iter().filter_map(object).collect();
    let value = |row: &Object, name: &str| match row.get(name) {
        Some(Json::String(text)) => Some(text.clone()),
        Some(Json::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    let (id, others) = wanted.split_first().expect("a row's name is one");
    if rows.is_empty() || rows.iter().any(|row| value(row, id).is_some()) {
        return Ok(None);
    }
    let tells = |name: &&String| {
        let values: Option<BTreeSet<_>> = rows.iter().map(|row| value(row, name)).collect();
        values.is_some_and(|values| values.len() == rows.len())
    };
    Ok(others.iter().find(tells).cloned())
}

fn object(raw: &RawRow) -> Option<Object> {
    match &raw.raw {
        Raw::Json(line) => json::object(line, &|_| true).ok(),
        Raw::Object(object) => object.clone().ok(),
        Raw::Text(_) => None,
    }
}

/// Columns beside those of a meaning whose values in the first rows are plain and short: what the stage `columns` may keep.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a corpus that cannot be read.
pub fn keepable(corpus: &Path, columns: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let opened = Corpus::open(corpus, Names::new("text", columns)?)?;
    let mut names: Vec<String> = Vec::new();
    for raw in opened.rows(Place::default()).chunk(ROWS)? {
        let Raw::Json(line) = &raw.raw else { continue };
        let keys = json::object(line, &|_| false).map_err(bad_input)?.into_keys();
        keys.for_each(|key| {
            if !names.contains(&key) {
                names.push(key)
            }
        });
    }
    names.extend(opened.columns()?);
    names.retain(|name| !opened.names().reads(name) && !OWN.contains(&&name[..]));
    if names.is_empty() {
        return Ok(names);
    }
    let rows = Corpus::open(corpus, Names::kept(names.clone()))?.rows(Place::default()).chunk(ROWS)?;
    let rows: Vec<Object> = rows.iter().filter_map(object).collect();
    let plain = |value: &&Json| match value {
        Json::Array(_) | Json::Object(_) => false,
        Json::String(text) => text.chars().count() <= SHORT,
        _ => true,
    };
    names.retain(|name| {
        let mut values = rows.iter().filter_map(|row| row.get(name)).filter(|value| !value.is_null()).peekable();
        values.peek().is_some() && values.all(|value| plain(&value))
    });
    names.truncate(KEPT);
    Ok(names)
}

/// Columns that hold text in the first file, but for a row's name.
fn texts(corpus: &Path) -> Result<Vec<String>> {
    let files = corpus_files(corpus)?;
    let Some(file) = files.first() else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    if file.format == Format::Parquet {
        names = text_columns(file)?;
    } else {
        let opened = Corpus::open(&file.path, Names::new("text", &BTreeMap::new())?)?;
        if let Some(Raw::Json(line)) = opened.rows(Place::default()).chunk(1)?.first().map(|row| &row.raw) {
            let row = json::object(line, &|_| true).map_err(bad_input)?;
            let texts = row.iter().filter(|(_, value)| matches!(value, Json::String(_)));
            names.extend(texts.map(|(name, _)| name.clone()));
        }
    }
    names.retain(|name| name != "id");
    Ok(names)
}
