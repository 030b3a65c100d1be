//! A model's chat template (Jinja, as `transformers` has it) and the assistant's part of what it renders.

use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Value;
use wherefrom_artifact::bad_input;

use crate::row::Message;

/// Name of the template in its environment.
const TEMPLATE: &str = "chat_template";
/// What stands for the bounds of a generation until the text is rendered: characters that no text has.
const BEGIN: char = '\u{10FFFE}';
const END: char = '\u{10FFFF}';
/// Who writes what is measured.
const ASSISTANT: &str = "assistant";

/// A template, ready to render.
pub(crate) struct Chat {
    environment: Environment<'static>,
    /// Special tokens by their names in the template: `bos_token`.
    specials: Vec<(String, String)>,
    /// The template says itself what the assistant writes.
    marks: bool,
}

/// A conversation as text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rendered {
    /// With special tokens.
    pub(crate) text: String,
    /// Bytes that the assistant wrote, each turn with the token that ends it.
    pub(crate) answers: Vec<Range<usize>>,
}

impl Chat {
    /// The template of a `tokenizer_config.json`, or `chat_template.jinja` beside it.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] where there is none, or it is no Jinja.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let unread = |error: &dyn std::fmt::Display| bad_input(format!("{shown}: cannot be read ({error})"));
        let text = std::fs::read_to_string(path).map_err(|error| unread(&error))?;
        let config: Value = serde_json::from_str(&text).map_err(|error| unread(&error))?;
        let beside = path.with_file_name("chat_template.jinja");
        let source = match std::fs::read_to_string(&beside) {
            Ok(source) => source,
            Err(_) => template(&config).ok_or_else(|| {
                bad_input(format!(
                    "{shown}: has no `chat_template`, and there is no {}; give the tokenizer of a model that chats",
                    beside.display()
                ))
            })?,
        };
        let special = |(name, value): (&String, &Value)| {
            let text = value.as_str().or_else(|| value["content"].as_str())?;
            name.ends_with("_token").then(|| (name.clone(), text.to_string()))
        };
        let specials = config.as_object().into_iter().flatten().filter_map(special).collect();
        Self::new(source, specials).map_err(|error| bad_input(format!("{shown}: the chat template: {error:#}")))
    }

    fn new(source: String, specials: Vec<(String, String)>) -> Result<Self, Error> {
        let (source, marks) = marked(&source);
        let mut environment = Environment::new();
        // As `transformers` sets its own.
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", |what: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, what))
        });
        // There is no `strftime_now`: tokens would depend on the day. Templates that ask whether it is there have a date
        // of their own.
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(TEMPLATE, source)?;
        Ok(Self { environment, specials, marks })
    }

    /// The text of `messages`; with `prompt` the beginning of an answer stands at its end.
    fn render(&self, messages: &[Message], prompt: bool) -> Result<String, String> {
        let specials: std::collections::BTreeMap<_, _> = self.specials.iter().cloned().collect();
        let known = context! {
            messages => Serde(messages.to_vec()),
            add_generation_prompt => prompt,
            ..Serde(specials)
        };
        let rendered = self.environment.get_template(TEMPLATE).and_then(|template| template.render(known));
        rendered.map_err(|error| format!("the chat template refuses it ({error:#}); mend `messages`"))
    }

    /// The conversation up to where an answer begins.
    pub(crate) fn prompt(&self, messages: &[Message]) -> Result<String, String> {
        Ok(self.render(messages, true)?.replace([BEGIN, END], ""))
    }

    /// The conversation and what of it the assistant wrote: by the template's `{% generation %}` marks where it has some;
    /// else turn by turn, what rendering with an answer adds to rendering up to it.
    pub(crate) fn conversation(&self, messages: &[Message]) -> Result<Rendered, String> {
        let full = self.render(messages, false)?;
        if self.marks {
            return Ok(unmarked(&full));
        }
        let mut answers = Vec::new();
        for (index, _) in messages.iter().enumerate().filter(|(_, message)| message.role == ASSISTANT) {
            let (before, after) = (self.render(&messages[..index], true)?, self.render(&messages[..=index], false)?);
            let continues = |text: &str, beginning: &str| text.starts_with(beginning);
            // Some templates close an answer only when a turn follows.
            let after = if continues(&full, &after) { &after[..] } else { "" };
            if !continues(after, &before) {
                return Err(format!(
                    "the chat template does not render turn {index} as a continuation of what comes before it, so what the \
                     assistant wrote cannot be told; give the template {{% generation %}} marks, or rows of `prompt` and \
                     `completion`"
                ));
            }
            // What follows the token that ends the turn is not the assistant's.
            answers.push(before.len()..after.trim_end().len().max(before.len()));
        }
        Ok(Rendered { text: full, answers })
    }
}

/// A `chat_template` that is a text, or the one named `default` of several.
fn template(config: &Value) -> Option<String> {
    let of = |value: &Value| value.as_str().map(str::to_string);
    let named = config["chat_template"].as_array().map(Vec::as_slice).unwrap_or_default();
    of(&config["chat_template"])
        .or_else(|| of(&named.iter().find(|template| template["name"] == "default")?["template"]))
}

/// The template with `{% generation %}` blocks as marks in the text, and whether it has any.
fn marked(source: &str) -> (String, bool) {
    let (mut text, mut rest, mut marks) = (String::new(), source, false);
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (tag, end) = (&rest[start + 2..start + length], start + length + 2);
        let (left, right) = (if tag.starts_with('-') { "-" } else { "" }, if tag.ends_with('-') { "-" } else { "" });
        let mark = match tag.trim_matches('-').trim() {
            "generation" => Some(BEGIN),
            "endgeneration" => Some(END),
            _ => None,
        };
        text.push_str(&rest[..start]);
        rest = &rest[end..];
        let Some(mark) = mark else {
            text.push_str(&format!("{{%{tag}%}}"));
            continue;
        };
        marks = true;
        // A block in a block's place, so that the white space around it goes as it would.
        text.push_str(&format!("{{%{left} if true %}}{{{{ \"{mark}\" }}}}{{% endif {right}%}}"));
    }
    (text + rest, marks)
}

/// The text without marks, and what they held.
fn unmarked(marked: &str) -> Rendered {
    let (mut text, mut answers, mut begun) = (String::with_capacity(marked.len()), Vec::new(), 0);
    for character in marked.chars() {
        match character {
            BEGIN => begun = text.len(),
            END => answers.push(begun..text.len()),
            other => text.push(other),
        }
    }
    Rendered { text, answers }
}

/// JSON as Python writes it: a space after `:` and `,`, other scripts as they are.
fn to_json(value: minijinja::Value, options: Kwargs) -> Result<minijinja::Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let failed = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let text = match indent {
        Some(indent) => {
            let spaces = " ".repeat(indent);
            let mut bytes = Vec::new();
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            serde::Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut bytes, formatter))
                .map_err(failed)?;
            String::from_utf8_lossy(&bytes).into_owned()
        }
        None => {
            let mut bytes = Vec::new();
            serde::Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut bytes, Spaced))
                .map_err(failed)?;
            String::from_utf8_lossy(&bytes).into_owned()
        }
    };
    Ok(minijinja::Value::from_safe_string(text))
}

/// `{"a": 1, "b": 2}`.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: std::io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }
    fn begin_object_key<W: std::io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }
    fn begin_object_value<W: std::io::Write + ?Sized>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}
