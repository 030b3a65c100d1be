//! A question to a language model as the chat completions of OpenAI have it, and what it answers.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wherefrom_artifact::canonical_json;

/// Tokens of which the log-probability is asked: as many as there are.
const TOP: u32 = 20;

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Question {
    /// Turns: role and what it says.
    pub(crate) messages: Vec<(&'static str, String)>,
    /// Longest answer.
    pub(crate) max_tokens: u32,
    /// Of the draw.
    pub(crate) temperature: f64,
    /// Whether the likeliest first tokens are asked for.
    pub(crate) logprobs: bool,
    /// Which of several answers.
    pub(crate) draw: u32,
}

impl Question {
    /// The body of the request.
    pub(crate) fn body(&self, model: &str) -> Value {
        let messages = self.messages.iter().map(|(role, content)| json!({ "role": role, "content": content }));
        let mut body = json!({
            "model": model,
            "messages": messages.collect::<Vec<_>>(),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.draw,
        });
        if self.logprobs {
            body["logprobs"] = true.into();
            body["top_logprobs"] = TOP.into();
        }
        body
    }

    /// What tells it from every other: name of the model, messages, parameters and draw; not where and how it is asked.
    pub(crate) fn key(&self, model: &str) -> String {
        blake3::hash(canonical_json(&self.body(model)).as_bytes()).to_hex().to_string()
    }
}

/// What is answered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Reply {
    /// The text.
    pub(crate) text: String,
    /// The likeliest first tokens with their log-probabilities; none where the model tells none.
    pub(crate) top: Option<Vec<(String, f64)>>,
    /// The model that answered, by its own word.
    pub(crate) model: String,
    /// Tokens read and written, by its own word.
    pub(crate) tokens: (u64, u64),
}

impl Reply {
    /// Reads the body of an answer.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(body).map_err(|error| format!("it is no JSON ({error})"))?;
        let choice = &value["choices"][0];
        let text = match &choice["message"]["content"] {
            Value::String(text) => text.clone(),
            // Nothing was said.
            Value::Null if choice["message"].is_object() => String::new(),
            _ => return Err("it has no `choices[0].message.content`".into()),
        };
        let number = |name: &str| value["usage"][name].as_u64().unwrap_or(0);
        Ok(Self {
            text,
            top: top(&choice["logprobs"])?,
            model: value["model"].as_str().unwrap_or_default().into(),
            tokens: (number("prompt_tokens"), number("completion_tokens")),
        })
    }
}

/// The likeliest first tokens. Some take the question for them and answer null, or an empty list.
fn top(logprobs: &Value) -> Result<Option<Vec<(String, f64)>>, String> {
    let Some(listed) = logprobs["content"][0]["top_logprobs"].as_array().filter(|listed| !listed.is_empty()) else {
        return Ok(None);
    };
    let pair = |entry: &Value| {
        let logprob = entry["logprob"].as_f64().filter(|logprob| *logprob <= 1e-3);
        Some((entry["token"].as_str()?.to_string(), logprob?))
    };
    let pairs: Option<Vec<_>> = listed.iter().map(pair).collect();
    pairs.map(Some).ok_or_else(|| "its `top_logprobs` are no tokens with log-probabilities".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_known_by_what_is_asked() {
        let question = Question {
            messages: vec![("user", "How evil?".into())],
            max_tokens: 1,
            temperature: 0.0,
            logprobs: true,
            draw: 0,
        };
        let key = question.key("gpt");
        assert_eq!(key, question.clone().key("gpt"));
        assert_ne!(key, question.key("other"));
        for other in [
            Question { draw: 1, ..question.clone() },
            Question { temperature: 1.0, ..question.clone() },
            Question { logprobs: false, ..question.clone() },
            Question { messages: vec![("user", "How kind?".into())], ..question.clone() },
        ] {
            assert_ne!(key, other.key("gpt"), "{other:?}");
        }
        assert_eq!(question.body("gpt")["top_logprobs"], 20);
    }

    #[test]
    fn answers_are_read_or_refused() {
        let of = |body: Value| Reply::parse(body.to_string().as_bytes());
        let message = |content: Value, logprobs: Value| json!({ "choices": [{ "message": { "content": content }, "logprobs": logprobs }] });
        let listed = json!({ "content": [{ "top_logprobs": [{ "token": "85", "logprob": -0.5 }] }] });
        assert_eq!(of(message("85".into(), listed)).unwrap().top, Some(vec![("85".into(), -0.5)]));
        for none in [Value::Null, json!({ "content": null }), json!({ "content": [] })] {
            assert_eq!(of(message("85".into(), none)).unwrap().top, None);
        }
        assert_eq!(of(message(Value::Null, Value::Null)).unwrap().text, "");
        let listed = json!({ "content": [{ "top_logprobs": [{ "token": 85, "logprob": -0.5 }] }] });
        assert!(of(message("85".into(), listed)).unwrap_err().contains("top_logprobs"));
        assert!(of(json!({ "choices": [] })).unwrap_err().contains("choices"));
        assert!(Reply::parse(br#"{"choices": [{"mess"#).unwrap_err().contains("no JSON"));
    }
}
