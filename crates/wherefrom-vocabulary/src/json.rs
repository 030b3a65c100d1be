//! One JSON object from bytes, strictly: what two programs would read as two things is refused.

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::ordered::{Json, Object};

/// What Python writes for floats that JSON lacks.
const NOT_JSON: [&str; 3] = ["-Infinity", "NaN", "Infinity"];

/// The object that `bytes` hold. The values of keys that are not `wanted` are passed over; `true` stands for them.
///
/// # Errors
/// What is wrong and what to do.
pub fn object(bytes: &[u8], wanted: &dyn Fn(&str) -> bool) -> Result<Object, String> {
    let text = utf8(bytes)?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Values { wanted, top: true, once: true }
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value));
    match value.map_err(|error| malformed(text, &error))? {
        Json::Object(object) => Ok(object),
        other => {
            let remedy = if other.as_array().is_some() { " (`jq -c '.[]'` takes an array apart)" } else { "" };
            Err(format!("the row is {}, not an object; write one JSON object a line{remedy}", other.name()))
        }
    }
}

/// Text, or which byte is none.
pub fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes)
        .map_err(|error| format!("byte {} of the row is not UTF-8; save the file as UTF-8", error.valid_up_to() + 1))
}

fn malformed(text: &str, error: &serde_json::Error) -> String {
    let column = error.column();
    let what = error.to_string().replace(&format!(" at line {} column {column}", error.line()), "");
    let at = |back: usize| text.get(column.saturating_sub(back)..).unwrap_or_default();
    let python = NOT_JSON.iter().find(|word| at(1).starts_with(**word) || at(2).starts_with(**word));
    if let Some(word) = python {
        return format!("`{word}` at column {column} is Python's and no JSON; write null in its place");
    }
    let remedy = match &what[..] {
        what if what.contains("is there twice") => "keep one",
        what if what.contains("surrogate") || what.contains("hex escape") => "it is half of a character: mend the text",
        what if what.contains("recursion limit") => "it is nested too deeply: make it flat",
        _ if text.trim_start().starts_with("{'") => "texts have double quotes in JSON; Python's json.dumps writes them",
        _ => "write one JSON object a line",
    };
    format!("malformed JSON at column {column} ({what}); {remedy}")
}

/// A value.
#[derive(Clone, Copy)]
struct Values<'a> {
    wanted: &'a dyn Fn(&str) -> bool,
    /// The row itself: its keys are asked for.
    top: bool,
    /// A key that is there twice is refused; else the last counts, as in Python.
    once: bool,
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Values { wanted: &|_| true, top: false, once: false }.deserialize(deserializer)
    }
}

impl<'de> DeserializeSeed<'de> for Values<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Values<'_> {
    type Value = Json;

    fn expecting(&self, text: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        text.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(value.into())
    }
    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(value.into())
    }
    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(value.into())
    }
    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(value.into())
    }
    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(value.into())
    }
    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Values { top: false, ..self })? {
            list.push(item);
        }
        Ok(Json::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut map = Object::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = if !self.top || (self.wanted)(&key) {
                entries.next_value_seed(Values { top: false, ..self })?
            } else {
                entries.next_value::<IgnoredAny>()?;
                Json::Bool(true)
            };
            if self.once && map.contains_key(&key) {
                return Err(A::Error::custom(format!("the key `{key}` is there twice")));
            }
            map.insert(key, value);
        }
        Ok(Json::Object(map))
    }
}
