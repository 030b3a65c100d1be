//! A `tokenizer.json` of strangers: what its parser would believe without asking is checked before, and what it panics on
//! is refused by the file's name.

use std::io::{ErrorKind, Read as _};
use std::path::Path;

use anyhow::Result;
use fancy_regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::Tokenizer;
use tokenizers::normalizers::Precompiled;
use wherefrom_artifact::{bad_input, foreign};

/// Largest file; those of vocabularies of 260,000 tokens have some 35 MB.
const FILE: u64 = 512 << 20;
/// Longest pattern; those in use have some 300 characters.
const PATTERN: usize = 1 << 13;
/// How often a text may grow by all replacements of a normalizer.
const GROWTH: usize = 1 << 10;
/// Longest text that a character is normalized to; the longest in use has 33 bytes.
const NORMALIZED: usize = 1 << 8;

/// The parts whose numbers and patterns are looked at; what is left is vocabulary.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
}

/// Reads a `tokenizer.json`.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] with the file's name.
pub(crate) fn read(path: &Path) -> Result<Tokenizer> {
    let unread = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => {
            bad_input(format!("{}: there is no such file; give the path of a tokenizer.json", path.display()))
        }
        _ => bad_input(format!("{}: cannot be read ({error}); give the path of a tokenizer.json", path.display())),
    };
    if !std::fs::metadata(path).map_err(unread)?.is_file() {
        return Err(bad_input(format!("{}: is no file; give the path of a tokenizer.json", path.display())));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(FILE + 1).read_to_end(&mut bytes)).map_err(unread)?;
    if bytes.len() as u64 > FILE {
        return Err(refuse(path, &format!("it has more than {} MB", FILE >> 20)));
    }
    parse(path, &bytes)
}

/// The tokenizer of `bytes`, which `path` holds.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Tokenizer> {
    let parts: Parts = serde_json::from_slice(bytes).map_err(|error| refuse(path, &error))?;
    let Parts { normalizer, pre_tokenizer, decoder } = &parts;
    let mut growth = 1;
    for part in [normalizer, pre_tokenizer, decoder] {
        check(part, &mut growth).map_err(|what| refuse(path, &what))?;
    }
    let tokenizer = foreign(path, || Tokenizer::from_bytes(bytes).map_err(|error| refuse(path, &error)))?;
    // The same thing is written in several ways, and written again in one.
    let processor = serde_json::to_value(tokenizer.get_post_processor()).map_err(|error| refuse(path, &error))?;
    check_templates(&processor).map_err(|what| refuse(path, &what))?;
    Ok(tokenizer)
}

/// Why a file is refused.
pub fn refuse(path: &Path, error: &dyn std::fmt::Display) -> anyhow::Error {
    bad_input(format!(
        "{}: is not a tokenizer that can be read ({error}); give a tokenizer.json as `tokenizers` writes it",
        path.display()
    ))
}

/// Refuses patterns and tables that take no end of time or memory.
fn check(part: &Value, growth: &mut usize) -> Result<(), String> {
    match part {
        Value::Array(items) => items.iter().try_for_each(|item| check(item, growth)),
        Value::Object(fields) => {
            let text = |field: &str| fields.get(field).and_then(Value::as_str);
            if let Some(pattern) = text("Regex")
                && pattern.len() > PATTERN
            {
                return Err(format!("a pattern has {} bytes, more than {PATTERN}", pattern.len()));
            }
            if let Some(table) = text("precompiled_charsmap") {
                check_table(&decoded(table).ok_or("its precompiled_charsmap is not base64")?)?;
            }
            if text("type") == Some("Replace")
                && let Some(content) = text("content")
            {
                // `tokenizers` reads behind the end of a text where a match there is empty.
                let pattern = fields.get("pattern").and_then(|pattern| pattern["Regex"].as_str());
                if let Some(pattern) = pattern.filter(|pattern| matches_nothing(pattern)) {
                    return Err(format!("it replaces `{pattern}`, which matches a text without a character"));
                }
                let replaced = fields.get("pattern").and_then(|pattern| pattern["String"].as_str());
                let replaced = replaced.map_or(1, str::len).max(1);
                *growth = growth.saturating_mul(content.len().div_ceil(replaced).max(1));
                if *growth > GROWTH {
                    return Err(format!("its replacements make a text more than {GROWTH} times as long"));
                }
            }
            if text("type") == Some("Precompiled") {
                let part = serde_json::to_string(fields).map_err(|error| error.to_string())?;
                serde_json::from_str::<Precompiled>(&part).map_err(|error| error.to_string())?;
            }
            if text("type") == Some("FixedLength") && fields.get("length").and_then(Value::as_u64) == Some(0) {
                return Err("it cuts texts into pieces of length 0".into());
            }
            fields.values().try_for_each(|field| check(field, growth))
        }
        _ => Ok(()),
    }
}

/// Whether a pattern matches an empty text. One that cannot be read is told by whoever reads it.
fn matches_nothing(pattern: &str) -> bool {
    Regex::new(pattern).is_ok_and(|pattern| pattern.is_match("").unwrap_or(false))
}

/// Looks at the templates of a post-processor, as `tokenizers` writes it.
fn check_templates(part: &Value) -> Result<(), String> {
    match part {
        Value::Array(items) => items.iter().try_for_each(check_templates),
        Value::Object(fields) if fields.contains_key("single") => check_template(fields),
        Value::Object(fields) => fields.values().try_for_each(check_templates),
        _ => Ok(()),
    }
}

/// Templates of special tokens name those that they have, and of one text the one there is.
fn check_template(fields: &Map<String, Value>) -> Result<(), String> {
    for (template, texts) in [("single", &["A"][..]), ("pair", &["A", "B"])] {
        for piece in fields.get(template).and_then(Value::as_array).into_iter().flatten() {
            let named = |kind: &str| piece.get(kind).and_then(|piece| piece["id"].as_str());
            if let Some(special) = named("SpecialToken")
                && fields.get("special_tokens").and_then(|specials| specials.get(special)).is_none()
            {
                return Err(format!(
                    "its template `{template}` names `{special}`, which is none of its special tokens"
                ));
            }
            if let Some(text) = named("Sequence")
                && !texts.contains(&text)
            {
                return Err(format!("its template `{template}` has no text {text}"));
            }
        }
    }
    Ok(())
}

/// A table of `Precompiled`: the length of a trie, the trie, and texts that end in zero bytes.
fn check_table(table: &[u8]) -> Result<(), String> {
    let (length, rest) = table.split_first_chunk().ok_or("its precompiled_charsmap is cut off")?;
    let length = u32::from_le_bytes(*length) as usize / 4 * 4;
    let (units, texts) = rest.split_at_checked(length).ok_or("its precompiled_charsmap is shorter than it says")?;
    let texts = std::str::from_utf8(texts).map_err(|_| "the texts of its precompiled_charsmap are not UTF-8")?;
    let units: Vec<_> =
        units.chunks_exact(4).map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]])).collect();
    check_trie(&units, texts).ok_or("its precompiled_charsmap leads out of itself")?;
    match texts.split('\0').map(str::len).max() {
        Some(longest) if longest > NORMALIZED => {
            Err(format!("its precompiled_charsmap makes {longest} bytes of a character, more than {NORMALIZED}"))
        }
        _ => Ok(()),
    }
}

/// Follows every path of a double array, whose blocks have 256 units, to the text that it ends at; nothing where one leads
/// out of the array or the texts.
fn check_trie(units: &[u32], texts: &str) -> Option<()> {
    let offset = |unit: u32| (unit as usize >> 10) << ((unit & 1 << 9) >> 6);
    if !units.len().is_multiple_of(256) {
        return None;
    }
    let mut seen = vec![false; units.len()];
    let mut pending = vec![offset(*units.first()?)];
    while let Some(node) = pending.pop() {
        if std::mem::replace(seen.get_mut(node)?, true) {
            continue;
        }
        for label in 1..=255_u32 {
            let place = node ^ label as usize;
            let unit = units[place];
            if unit & (1 << 31 | 0xff) != label {
                continue;
            }
            let next = place ^ offset(unit);
            if unit >> 8 & 1 == 1 {
                let text = (units.get(next)? & !(1 << 31)) as usize;
                texts.is_char_boundary(text).then_some(())?;
            }
            pending.push(next);
        }
    }
    Some(())
}

/// The bytes of base64.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut buffer, mut bits) = (Vec::with_capacity(text.len() / 4 * 3), 0_u32, 0);
    for character in text.trim_end_matches('=').bytes() {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (buffer, bits) = (buffer << 6 | u32::from(value), bits + 6);
        if bits >= 8 {
            bits -= 8;
            bytes.push((buffer >> bits) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_replacement_of_nothing_is_refused_by_its_pattern() {
        let replace = |pattern: &str| json!([{"type": "Replace", "pattern": {"Regex": pattern}, "content": "_"}]);
        for pattern in [" *", "a?", "$", "^|b"] {
            let said = check(&replace(pattern), &mut 1).unwrap_err();
            assert!(said.contains(&format!("`{pattern}`")), "{said}");
        }
        for pattern in [" +", " {2,}", "^\\s", "(?<=a)b"] {
            assert_eq!(check(&replace(pattern), &mut 1), Ok(()), "{pattern}");
        }
        // Where nothing is replaced, such a pattern does no harm.
        let split = json!({"type": "Split", "pattern": {"Regex": "\\s*"}, "behavior": "Isolated", "invert": false});
        assert_eq!(check(&split, &mut 1), Ok(()));
    }
}
