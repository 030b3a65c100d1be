//! What the command prints, all of it: results on stdout, everything else on stderr. Whatever a corpus, a file's name or a hub
//! brought into a line is made visible here, so that none of it reaches the terminal as a command.

use std::fmt;
use std::io::{self, IsTerminal as _, Write};
use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use wherefrom_artifact::visible;

/// Version of what `--json` prints: raised when a field goes or means something else.
const JSON_FORMAT: u32 = 1;

/// stdout could not be written.
#[derive(Debug)]
pub(crate) struct Unheard(pub(crate) io::Error);

impl fmt::Display for Unheard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "write to stdout: {}", self.0)
    }
}

impl std::error::Error for Unheard {}

/// One line, or several, to stdout.
pub(crate) fn say(text: &str) -> Result<()> {
    write(visible(text).as_bytes(), text.ends_with('\n'))
}

/// The JSON that `--json` prints: one object, the version of its fields first.
pub(crate) fn say_json(fields: &Value) -> Result<()> {
    let mut document = serde_json::Map::from_iter([("format".to_string(), JSON_FORMAT.into())]);
    document.extend(fields.as_object().cloned().unwrap_or_default());
    let text = serde_json::to_string_pretty(&document)?;
    write(escaped(&text).as_bytes(), false)
}

/// JSON that a terminal shows as it is, too: what would be no plain character there is written by its number.
fn escaped(json: &str) -> String {
    let mut text = String::new();
    let mut units = [0; 2];
    for c in json.chars() {
        if c == '\n' || visible(c.encode_utf8(&mut [0; 4])).chars().eq([c]) {
            text.push(c);
        } else {
            c.encode_utf16(&mut units).iter().for_each(|unit| text += &format!("\\u{unit:04x}"));
        }
    }
    text
}

/// The path that was asked for, to stdout: a program that reads it gets it byte for byte.
#[allow(clippy::disallowed_methods, reason = "the one place")]
pub(crate) fn say_path(path: &Path) -> Result<()> {
    if io::stdout().is_terminal() {
        say(&path.display().to_string())
    } else {
        write(path.as_os_str().as_encoded_bytes(), false)
    }
}

#[allow(clippy::disallowed_methods, reason = "the one place")]
fn write(text: &[u8], ended: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    let end: &[u8] = if ended { b"" } else { b"\n" };
    let written = out.write_all(text).and_then(|()| out.write_all(end)).and_then(|()| out.flush());
    written.map_err(|error| Unheard(error).into())
}

/// A line to stderr. Nobody may be listening.
#[allow(clippy::disallowed_methods, reason = "the one place")]
pub(crate) fn note(line: impl fmt::Display) {
    let _unheard = writeln!(io::stderr(), "{}", visible(&without_numbers(&line.to_string())));
}

/// What the system says of a file without its number: `(No such file or directory (os error 2))`.
fn without_numbers(line: &str) -> String {
    let mut rest = line;
    let mut text = String::new();
    while let Some((before, after)) = rest.split_once(" (os error ") {
        text += before;
        match after.split_once(')') {
            Some((number, after)) if number.parse::<u32>().is_ok() => rest = after,
            _ => {
                text += " (os error ";
                rest = after;
            }
        }
    }
    text + rest
}

/// Whether stderr is a terminal.
#[allow(clippy::disallowed_methods, reason = "the one place")]
pub(crate) fn notes_are_seen() -> bool {
    io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_says_what_it_says_and_moves_no_terminal() {
        let value = serde_json::json!({ "a": "\u{1b}[31m\u{9b}\u{202e}\u{e0041} 한국어 é \n" });
        let text = escaped(&serde_json::to_string_pretty(&value).unwrap());
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        assert_eq!(visible(&text), text);
        assert!(text.contains("한국어 é"), "{text}");
    }

    #[test]
    fn the_systems_numbers_are_left_out() {
        for (said, shown) in [
            ("cannot read x (Is a directory (os error 21)); check", "cannot read x (Is a directory); check"),
            ("No such file or directory (os error 2)", "No such file or directory"),
            ("a (os error x) b (os error 3)", "a (os error x) b"),
            ("(os error", "(os error"),
        ] {
            assert_eq!(without_numbers(said), shown);
        }
    }
}
