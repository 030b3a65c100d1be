//! A model's chat template (Jinja, as `transformers` renders it) and the assistant's part of what it renders.

mod answers;
mod characters;
mod containers;
mod date;
mod environment;
mod filters;
#[cfg(test)]
mod fuzz;
mod limits;
mod numbers;
mod rewrite;
mod source;
mod strings;
mod tojson;
mod tokens;
mod values;
mod views;

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::path::Path;

use crate::beside::Beside;
use anyhow::Result;
use minijinja::{Environment, Error, ErrorKind, Value};
use wherefrom_artifact::{bad_input, caught};

pub use self::date::Date;
use self::environment::{Raised, Tracker};
use self::source::Source;
use self::values::THOUGHTS;
use crate::conversation::{Conversation, role};
use crate::ordered::{Json, Object};

/// What to do where a template takes no parts.
const IN_PARTS: &str =
    "A turn's `content` is a list of parts; where the template takes texts alone, join the `text` of its parts";

/// The template of a conversation without tools, and of one with.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// Fields of turns that some templates do not know.
const FIELDS: [&str; 3] = ["tool_calls", "function_call", "name"];

/// A template, ready to render.
pub struct Chat {
    environment: Environment<'static>,
    templates: Vec<Template>,
    /// Special tokens by their names in the template: `bos_token`.
    specials: Vec<(String, String)>,
    /// The file.
    shown: String,
    dated: bool,
}

/// One of the templates of a model.
struct Template {
    name: String,
    source: String,
    /// It says itself what the assistant writes.
    marks: bool,
    takes_text_arguments: bool,
}

/// A conversation as text.
#[derive(Debug, PartialEq, Eq)]
pub struct Rendered {
    /// With special tokens.
    pub text: String,
    /// Bytes that the assistant wrote, each turn with the token that ends it.
    pub answers: Vec<Range<usize>>,
}

impl Chat {
    /// The templates of a `tokenizer_config.json`, or of `chat_template.jinja` beside it; `date` is what they are told of
    /// the day.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] where there is none, or it is no Jinja.
    pub fn open(path: &Path, date: Option<Date>) -> Result<Self> {
        let found = Beside::of(path)?;
        let beside = path.with_file_name(crate::TEMPLATE);
        if !found.templates.contains_key(DEFAULT) {
            return Err(bad_input(format!(
                "{}: has no `chat_template`, and there is no {}; give the tokenizer of a model that chats",
                path.display(),
                beside.display()
            )));
        }
        let shown = if beside.exists() { beside.display() } else { path.display() };
        let (templates, specials) = (found.templates.into_iter().collect(), found.specials.into_iter().collect());
        let shown = shown.to_string();
        Self::new(templates, specials, shown.clone(), date).map_err(|what| {
            bad_input(format!(
                "{shown}: the chat template: {what}; give one that can be rendered: chat-template = \"…\""
            ))
        })
    }

    fn new(
        templates: Vec<(String, String)>,
        specials: Vec<(String, String)>,
        shown: String,
        date: Option<Date>,
    ) -> Result<Self, String> {
        let mut environment = environment::environment(date).map_err(|error| error.to_string())?;
        let mut known = Vec::new();
        for (name, template) in templates {
            let source = Source::new(&template)?;
            caught(|| environment.add_template_owned(name.clone(), source.text))?
                .map_err(|error| format!("{error:#}"))?;
            known.push(Template {
                name,
                marks: source.marks,
                takes_text_arguments: source.takes_text_arguments,
                source: template,
            });
        }
        Ok(Self { environment, templates: known, specials, shown, dated: date.is_some() })
    }

    /// What of a conversation its template never names, and so leaves out.
    pub fn unread(&self, conversation: &Conversation) -> Vec<String> {
        let Ok(template) = self.template(conversation) else { return Vec::new() };
        let said = |field: &&str| {
            conversation.messages.iter().any(|message| message.get(*field).is_some_and(|value| !value.is_empty()))
        };
        let names =
            |field: &str| ["'", "\"", "."].iter().any(|mark| template.source.contains(&format!("{mark}{field}")));
        let fields = FIELDS.into_iter().filter(said).filter(|field| !names(field));
        let thoughts = THOUGHTS.into_iter().filter(said).filter(|_| !THOUGHTS.into_iter().any(names));
        let given = conversation.given.keys().map(String::as_str).filter(|key| !template.source.contains(*key));
        fields.chain(thoughts).chain(given).map(str::to_string).collect()
    }

    /// The conversation up to where an answer begins.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn asked(&self, conversation: &Conversation) -> Result<String, String> {
        let template = self.template(conversation)?;
        Ok(self.prepared(template, conversation, true)?.1.text)
    }

    /// The conversation and what of it the assistant wrote, but for turns that are not learnt from: by the template's
    /// `{% generation %}` marks where it has some, else by what changes with the assistant's words.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn answered(&self, conversation: &Conversation) -> Result<Rendered, String> {
        let template = self.template(conversation)?;
        let (messages, rendered) = self.prepared(template, conversation, false)?;
        if template.marks {
            return learnt(rendered, conversation);
        }
        let given = given(conversation);
        let left = Cell::new(limits::FUEL_OF_A_ROW);
        let render = |turns: &[Value], prompt: bool| {
            let rendered = self.render(template, turns.to_vec(), &given, prompt, &left)?;
            Ok(rendered.text)
        };
        let answers = answers::answers(&messages, &rendered.text, &render);
        let answers = if left.get() == 0 { Err(self.too_many_turns()) } else { answers }?;
        let learnt = learnt(Rendered { answers, ..rendered }, conversation)?;
        let answers = answers::without_tools(&messages, &learnt.text, learnt.answers, &render);
        if left.get() == 0 {
            return Err(self.too_many_turns());
        }
        Ok(Rendered { answers, ..learnt })
    }

    /// The template for a conversation.
    fn template(&self, conversation: &Conversation) -> Result<&Template, String> {
        let named = |name: &str| self.templates.iter().find(|template| template.name == name);
        let tools = conversation.given.contains_key("tools");
        let template = Some(TOOL_USE).filter(|_| tools).and_then(named).or_else(|| named(DEFAULT));
        template.ok_or_else(|| format!("{}: has no template named `default`", self.shown))
    }

    /// The turns as the template is given them, and what it makes of them.
    fn prepared(
        &self,
        template: &Template,
        conversation: &Conversation,
        prompt: bool,
    ) -> Result<(Vec<Object>, Rendered), String> {
        let messages: Vec<_> = conversation.messages.iter().map(values::message).collect();
        let (given, left) = (given(conversation), Cell::new(limits::FUEL_OF_A_ROW));
        let render = |messages: &[Object]| {
            self.render(template, messages.iter().map(values::dict).collect(), &given, prompt, &left)
        };
        let render = |messages: &[Object]| match render(messages) {
            Err(what) if in_parts(messages) => Err(format!("{what}. {IN_PARTS}")),
            Ok(rendered) if prints_parts(messages, &rendered.text) => Err(format!(
                "the chat template of {} prints the parts of a turn's `content` as they are written in a program. {IN_PARTS}",
                self.shown
            )),
            rendered => rendered,
        };
        if !template.takes_text_arguments {
            let parsed: Vec<_> = messages.iter().map(values::with_parsed_arguments).collect();
            // Templates that join texts take arguments as text alone.
            match render(&parsed) {
                Ok(rendered) => return Ok((parsed, rendered)),
                Err(error) if parsed == messages => return Err(error),
                Err(_) => {}
            }
        }
        let rendered = render(&messages)?;
        Ok((messages, rendered))
    }

    /// The text of `turns` and what the template marks in it; with `prompt` the beginning of an answer stands at its end.
    /// Fuel is taken from what is `left` for the row.
    fn render(
        &self,
        template: &Template,
        turns: Vec<Value>,
        given: &[(String, Value)],
        prompt: bool,
        left: &Cell<u64>,
    ) -> Result<Rendered, String> {
        if left.get() == 0 {
            return Err(self.too_many_turns());
        }
        let tracker = Tracker::default();
        let specials = self.specials.iter().map(|(name, text)| (name.clone(), Value::from(text.as_str())));
        let none = ["tools", "documents"].map(|name| (name.to_string(), Value::from(())));
        let known = [
            ("messages".to_string(), turns.into()),
            ("add_generation_prompt".to_string(), prompt.into()),
            (source::SPANS.to_string(), Value::from_object(tracker.clone())),
        ];
        let known = Value::from_pairs(specials.chain(none).chain(given.iter().cloned()).chain(known));
        let mut output = Output { bytes: Vec::new(), tracker: &tracker };
        let render = || {
            let template = self.environment.get_template(&template.name)?;
            template.render_captured_to(known, &mut output)
        };
        let _of_another = views::printed();
        let rendered = caught(render).map_err(|what| {
            format!("the chat template of {}: {what}; give another: chat-template = \"…\"", self.shown)
        })?;
        let used = rendered.as_ref().ok().and_then(|captured| captured.state().fuel_levels());
        left.set(left.get().saturating_sub(used.map_or(limits::FUEL, |(used, _)| used)));
        drop(rendered.map_err(|error| self.refusal(template, &error))?);
        if let Some(filter) = views::printed() {
            return Err(format!(
                "the chat template of {} prints what the filter `{filter}` gives, which Python does by its address: write `| list` \
                 or `| join` behind it",
                self.shown
            ));
        }
        let text = String::from_utf8(output.bytes).map_err(|error| error.to_string())?;
        let spans = tracker.0.lock().map(|mut spans| std::mem::take(&mut *spans)).unwrap_or_default();
        let answers = spans.within(&text).map_err(|what| {
            format!(
                "the chat template of {} {what}; give a template that marks what it writes: chat-template = \"…\"",
                self.shown
            )
        })?;
        Ok(Rendered { text, answers })
    }

    fn too_many_turns(&self) -> String {
        format!(
            "the conversation has too many turns to tell what the assistant wrote by rendering it again for each; split it, \
             or give the chat template of {} {{% generation %}} marks",
            self.shown
        )
    }

    /// What is wrong, and with what.
    fn refusal(&self, template: &Template, error: &Error) -> String {
        let shown = &self.shown;
        let mut causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
        if let Some(raised) = causes.find_map(|cause| cause.downcast_ref::<Raised>()) {
            return format!("the chat template of {shown} refuses it ({raised}); mend `messages`");
        }
        let place = error.line().map_or(String::new(), |line| format!(" at line {line}"));
        let said = error.to_string();
        if !self.dated
            && template.source.contains("strftime_now")
            && (said.contains("strftime_now") || said.contains("not callable"))
        {
            return format!(
                "the chat template of {shown} asks for the date{place}, and tokens must not depend on the day; say which it \
                 is told: date = \"2024-07-26\""
            );
        }
        let what = match error.kind() {
            ErrorKind::OutOfFuel => format!("takes more than {} steps or too much memory", limits::FUEL),
            ErrorKind::WriteFailure => format!("writes more than {} bytes", limits::LONGEST_TEXT),
            _ => format!("cannot be rendered ({})", first_line(&format!("{error:#}"))),
        };
        format!(
            "the chat template of {shown} {what}{place}; mend `messages`, or give a template that takes them: chat-template = \
             \"…\""
        )
    }
}

/// Whether the content of a turn is a list of parts.
fn in_parts(messages: &[Object]) -> bool {
    messages.iter().any(|message| message.get("content").is_some_and(|content| content.as_array().is_some()))
}

/// Whether a text has parts of content as a template prints values, oftener than the conversation's own words have them.
fn prints_parts(messages: &[Object], text: &str) -> bool {
    let marks = ["'type': 'text'", "\"type\": \"text\""];
    let count = |text: &str| marks.iter().map(|mark| text.matches(mark).count()).sum::<usize>();
    fn words(value: &Json, count: &dyn Fn(&str) -> usize) -> usize {
        match value {
            Json::String(text) => count(text),
            Json::Array(items) => items.iter().map(|item| words(item, count)).sum(),
            Json::Object(fields) => fields.values().map(|field| words(field, count)).sum(),
            _ => 0,
        }
    }
    in_parts(messages)
        && count(text) > messages.iter().flat_map(|message| message.values()).map(|value| words(value, &count)).sum()
}

/// The answers without those of turns that are not learnt from.
fn learnt(mut rendered: Rendered, conversation: &Conversation) -> Result<Rendered, String> {
    let turns = conversation.messages.iter().zip(&conversation.unlearnt);
    let unlearnt: Vec<_> =
        turns.filter(|(message, _)| role(message) == "assistant").map(|(_, unlearnt)| *unlearnt).collect();
    if unlearnt.contains(&true) {
        let (turns, answers) = (unlearnt.len(), rendered.answers.len());
        if turns != answers {
            return Err(format!(
                "the chat template makes {answers} answers of {turns} turns of the assistant, and which of them are given cannot \
                 be told; give every turn a weight of 1, or rows of `prompt` and `completion`"
            ));
        }
        let mut unlearnt = unlearnt.into_iter();
        rendered.answers.retain(|_| unlearnt.next() == Some(false));
    }
    Ok(rendered)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// What the template is given beside the turns.
fn given(conversation: &Conversation) -> Vec<(String, Value)> {
    conversation.given.iter().map(|(name, json)| (name.clone(), values::value(json))).collect()
}

/// What a rendering writes, up to a limit.
struct Output<'a> {
    bytes: Vec<u8>,
    tracker: &'a Tracker,
}

impl io::Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > limits::LONGEST_TEXT {
            return Err(io::Error::other("the text is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        if let Ok(mut spans) = self.tracker.0.lock() {
            spans.written = self.bytes.len();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
