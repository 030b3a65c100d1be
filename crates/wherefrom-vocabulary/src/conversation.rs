//! A conversation: turns, and what their template is given beside them.

use crate::ordered::{Json, Object};

/// Turns, and what their template is given beside them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conversation {
    /// One at least, each with all its fields: `role` and `content` among them.
    pub messages: Vec<Object>,
    /// Variables of the template: `tools`, `documents`, and the entries of `chat_template_kwargs`.
    pub given: Object,
    /// For each turn whether it is given even where the assistant says it: nothing of it is a target.
    pub unlearnt: Vec<bool>,
}

impl Conversation {
    /// Turns of a role and what it says.
    pub fn of(turns: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        let messages: Vec<_> = turns.into_iter().map(|(role, content)| turn(role, content)).collect();
        Self { unlearnt: vec![false; messages.len()], messages, given: Object::new() }
    }

    /// What is said in its turns.
    pub fn texts(&self) -> Vec<String> {
        let contents = self.messages.iter().filter_map(|message| message.get("content"));
        let said = contents.flat_map(|content| match content {
            Json::Array(parts) => parts.iter().collect(),
            text => vec![text],
        });
        let text = |said: &Json| match said {
            Json::Object(part) => part.get("text").and_then(Json::as_str).map(str::to_string),
            said => said.as_str().map(str::to_string),
        };
        said.filter_map(text).collect()
    }

    /// One turn more, and whether it is given.
    pub fn push(&mut self, (message, unlearnt): (Object, bool)) {
        self.messages.push(message);
        self.unlearnt.push(unlearnt);
    }
}

/// Who speaks.
pub fn role(message: &Object) -> &str {
    message.get("role").and_then(Json::as_str).unwrap_or_default()
}

/// A turn that says `content`.
pub fn turn(role: &str, content: String) -> Object {
    [("role", Json::from(role)), ("content", content.into())].map(|(name, value)| (name.to_string(), value)).into()
}
