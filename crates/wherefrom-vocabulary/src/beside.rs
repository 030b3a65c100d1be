//! What stands beside a tokenizer.json.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;
use serde_json::{Map, Value};
use tokenizers::AddedToken;
use wherefrom_artifact::bad_input;

use crate::{ADDED_TOKENS, SPECIAL_TOKENS, TEMPLATE, TEMPLATES, TOKENIZER, TOKENIZER_CONFIG};

/// Special tokens that every tokenizer has a name for, in the order in which they are added.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Bytes of the largest of these files: the largest in use have some megabytes.
const LARGEST: u64 = 1 << 26;

/// What the files beside a tokenizer.json say: the same value, the same tokens and the same texts of conversations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Beside {
    /// Tokens that the tokenizer is to have, in the order in which they are added to what it has.
    pub(crate) tokens: Vec<Token>,
    /// Texts of special tokens by their names: `bos_token`.
    pub specials: BTreeMap<String, String>,
    /// Chat templates by their names; the one that is meant if none is asked for is `default`.
    pub templates: BTreeMap<String, String>,
}

/// A token that may not be in the tokenizer.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Token {
    pub(crate) content: String,
    /// The id that a file gives it.
    pub(crate) id: Option<u32>,
    pub(crate) special: bool,
    pub(crate) normalized: bool,
    pub(crate) single_word: bool,
    pub(crate) lstrip: bool,
    pub(crate) rstrip: bool,
}

impl Token {
    fn special(content: &str) -> Self {
        let (content, special) = (content.to_string(), true);
        Self { content, id: None, special, normalized: false, single_word: false, lstrip: false, rstrip: false }
    }

    /// A text, or an object with a `content`; none otherwise.
    fn read(value: &Value) -> Option<Self> {
        if let Some(content) = value.as_str() {
            return Some(Self::special(content));
        }
        let flag = |name: &str, default: bool| value[name].as_bool().unwrap_or(default);
        let special = flag("special", false);
        Some(Self {
            content: value["content"].as_str()?.into(),
            id: None,
            special,
            normalized: flag("normalized", !special),
            single_word: flag("single_word", false),
            lstrip: flag("lstrip", false),
            rstrip: flag("rstrip", false),
        })
    }

    pub(crate) fn added(&self) -> AddedToken {
        AddedToken::from(self.content.clone(), self.special)
            .normalized(self.normalized)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
    }
}

impl Beside {
    /// What belongs to a file: a `tokenizer.json` or a `tokenizer_config.json` with its folder, another `.jinja` file as the
    /// template of its folder's tokenizer. A tokenizer of another name stands alone.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] for a file that cannot be read or is malformed, by name.
    pub fn of(path: &Path) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if [TOKENIZER, TOKENIZER_CONFIG, TEMPLATE].contains(&&*name) {
            return Self::read(folder);
        }
        if name.ends_with(".jinja") {
            let templates = BTreeMap::from([("default".to_string(), text(path)?)]);
            return Ok(Self { templates, ..Self::read(folder)? });
        }
        // A config of another name, given as the one of a template.
        if name.ends_with(".json")
            && let Ok(config) = object(path)
            && config.contains_key("chat_template")
        {
            let mut beside = Self::default();
            beside.config(&config, path)?;
            return Ok(beside);
        }
        Ok(Self::default())
    }

    /// What the files of a folder say.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn read(folder: &Path) -> Result<Self> {
        let mut beside = Self::default();
        let path = folder.join(TOKENIZER_CONFIG);
        let mut config = if path.exists() { object(&path)? } else { Map::new() };
        // What is nowhere but in older folders: a config that lists its tokens needs none of it.
        let older = !config.contains_key("added_tokens_decoder");
        let map = folder.join(SPECIAL_TOKENS);
        if older && map.exists() {
            let mut named = object(&map)?;
            for (name, value) in &mut named {
                if let (Some(token), true) = (value.as_object_mut(), name != "extra_special_tokens") {
                    token.insert("special".into(), true.into());
                }
            }
            config.extend(named);
        }
        beside.config(&config, &path)?;
        let added = folder.join(ADDED_TOKENS);
        if older && added.exists() {
            beside.added(&object(&added)?, &added)?;
        }
        let mut templates = BTreeMap::new();
        for (name, path) in template_files(folder)? {
            templates.insert(name, text(&path)?);
        }
        if !templates.is_empty() {
            beside.templates = templates;
        }
        Ok(beside)
    }

    /// The `tokenizer_config.json`.
    fn config(&mut self, config: &Map<String, Value>, path: &Path) -> Result<()> {
        let refuse = |what: &str| bad_input(format!("{}: {what}", path.display()));
        match config.get("added_tokens_decoder") {
            None | Some(Value::Null) => {}
            Some(Value::Object(decoder)) => {
                let mut tokens = Vec::new();
                for (id, token) in decoder {
                    let known = id.parse::<u32>().ok().zip(Token::read(token).filter(|_| token.is_object()));
                    let (id, token) = known.ok_or_else(|| {
                        refuse(&format!("`added_tokens_decoder` has an entry `{id}` that is no token; mend it"))
                    })?;
                    tokens.push(Token { id: Some(id), ..token });
                }
                tokens.sort_by_key(|token| token.id);
                self.tokens = tokens;
            }
            Some(_) => return Err(refuse("`added_tokens_decoder` is no object; mend it")),
        }
        // Names of the tokenizer's own, such as `image_token`, come after those that all have.
        let own = config.keys().map(String::as_str).filter(|name| name.ends_with("_token") && !NAMED.contains(name));
        for name in NAMED.into_iter().chain(own) {
            let Some(token) = config.get(name).and_then(Token::read) else { continue };
            self.specials.insert(name.into(), token.content.clone());
            match self.tokens.iter_mut().find(|known| known.content == token.content) {
                Some(known) => known.special = true,
                None => self.tokens.push(Token { special: true, ..token }),
            }
        }
        let extra = ["extra_special_tokens", "additional_special_tokens"].map(|name| config.get(name));
        match extra
            .into_iter()
            .flatten()
            .find(|value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()))
        {
            Some(Value::Array(tokens)) => tokens.iter().filter_map(Token::read).for_each(|token| self.add(token)),
            Some(Value::Object(tokens)) => {
                for (name, token) in tokens.iter().filter_map(|(name, token)| Some((name, Token::read(token)?))) {
                    self.specials.insert(name.clone(), token.content.clone());
                    self.add(token);
                }
            }
            _ => {}
        }
        self.templates = match config.get("chat_template") {
            None | Some(Value::Null) => BTreeMap::new(),
            Some(Value::String(text)) => BTreeMap::from([("default".into(), text.clone())]),
            Some(Value::Object(named)) => {
                let text = |(name, text): (&String, &Value)| Some((name.clone(), text.as_str()?.to_string()));
                named.iter().filter_map(text).collect()
            }
            Some(Value::Array(list)) => {
                let text = |value: &Value| Some((value["name"].as_str()?.into(), value["template"].as_str()?.into()));
                list.iter().filter_map(text).collect()
            }
            Some(_) => return Err(refuse("`chat_template` is neither a text nor a list of named ones; mend it")),
        };
        Ok(())
    }

    /// The `added_tokens.json`: special are those that have a name.
    fn added(&mut self, ids: &Map<String, Value>, path: &Path) -> Result<()> {
        let mut tokens = Vec::new();
        for (content, id) in ids {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or_else(|| {
                bad_input(format!("{}: the id of `{content}` is no whole number; mend it", path.display()))
            })?;
            let special = self.tokens.iter().any(|token| token.content == *content);
            let token = Token { id: Some(id), special, normalized: !special, ..Token::special(content) };
            tokens.push(token);
        }
        tokens.sort_by_key(|token| token.id);
        self.tokens.retain(|token| !ids.contains_key(&token.content));
        tokens.append(&mut self.tokens);
        self.tokens = tokens;
        Ok(())
    }

    fn add(&mut self, token: Token) {
        if !self.tokens.iter().any(|known| known.content == token.content) {
            self.tokens.push(token);
        }
    }

    /// The special token that a text begins after where there is nothing else: its beginning of text or else its end of text.
    pub fn start(&self) -> Option<&str> {
        let named = |name: &&str| self.specials.get(*name).filter(|content| !content.is_empty());
        ["bos_token", "eos_token"].iter().find_map(named).map(String::as_str)
    }

    /// What the tokens of a text depend on, for a key; none where the tokenizer.json alone says all.
    pub fn tokens(&self) -> Option<Value> {
        let start = self.start();
        (!self.tokens.is_empty() || start.is_some()).then(|| serde_json::json!({"tokens": self.tokens, "start": start}))
    }
}

/// The files that say what the text of a conversation is, by name: templates, and the names of special tokens.
///
/// # Errors
/// As [`files`].
pub fn conversation_files(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    let beside = files(&path.with_file_name(TOKENIZER))?
        .into_iter()
        .filter(|(name, _)| name != TOKENIZER && name != ADDED_TOKENS);
    let own = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut found: Vec<_> = beside.collect();
    if !found.iter().any(|(_, other)| other == path) {
        found.push((own, path.into()));
    }
    Ok(found)
}

/// Every file of a tokenizer by its name in a folder: itself as `tokenizer.json`, and what stands beside it.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a folder of templates that cannot be read.
pub fn files(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut files = vec![(TOKENIZER.to_string(), path.to_path_buf())];
    let folder = path.parent().unwrap_or(Path::new(""));
    if path.file_name().is_some_and(|name| name == TOKENIZER) {
        let plain = [TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS].map(|name| (name.to_string(), folder.join(name)));
        files.extend(plain.into_iter().filter(|(_, path)| path.exists()));
        for (_, path) in template_files(folder)? {
            let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
            files.push((name, path));
        }
    }
    Ok(files)
}

/// Templates in files of their own, by name.
fn template_files(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    let own = folder.join(TEMPLATE);
    if own.exists() {
        files.push(("default".to_string(), own));
    }
    let others = folder.join(TEMPLATES);
    if others.is_dir() {
        for entry in fs::read_dir(&others).map_err(|error| unread(&others, &error))? {
            let path = entry.map_err(|error| unread(&others, &error))?.path();
            if let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jinja")) {
                files.push((name.to_string(), path));
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn unread(path: &Path, error: &dyn std::fmt::Display) -> anyhow::Error {
    bad_input(format!("{}: cannot be read ({error})", path.display()))
}

/// The bytes of a file, no more than `most`.
fn bytes(path: &Path, most: u64) -> Result<Vec<u8>> {
    let metadata = fs::metadata(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => bad_input(format!("{}: there is no such file", path.display())),
        _ => unread(path, &error),
    })?;
    if !metadata.is_file() {
        return Err(unread(path, &"it is no file"));
    }
    if metadata.len() > most {
        return Err(unread(path, &format!("it has {} bytes; {most} is the limit", metadata.len())));
    }
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes));
    read.map_err(|error| unread(path, &error))?;
    Ok(bytes)
}

fn text(path: &Path) -> Result<String> {
    String::from_utf8(bytes(path, LARGEST)?).map_err(|error| unread(path, &error))
}

fn object(path: &Path) -> Result<Map<String, Value>> {
    match serde_json::from_slice(&bytes(path, LARGEST)?) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(unread(path, &"it is no JSON object")),
        Err(error) => Err(unread(path, &error)),
    }
}
