//! What a template is given, as Python would hold it.

use std::sync::Arc;

use minijinja::value::{Enumerator, Object as Dynamic, ObjectRepr};
use minijinja::{Error, State, Value};

use super::containers;
use crate::ordered::{Json, Number, Object};

/// A value of the row.
pub(super) fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => self::number(number),
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(value).collect::<Vec<_>>()),
        Json::Object(object) => dict(object),
    }
}

fn number(number: &Number) -> Value {
    let whole = number.as_i64().map(Value::from).or_else(|| number.as_u64().map(Value::from));
    whole.unwrap_or_else(|| Value::from(number.as_f64().unwrap_or(f64::NAN)))
}

/// A dictionary of the row.
pub(super) fn dict(object: &Object) -> Value {
    Value::from_object(Dict(object.iter().map(|(key, json)| (Value::from(key.as_str()), value(json))).collect()))
}

/// A dictionary whose methods are those of Python's, whatever its keys are: `properties.items()` where a property is called
/// `items`.
#[derive(Debug)]
pub(super) struct Dict(indexmap::IndexMap<Value, Value>);

impl Dynamic for Dict {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.keys().cloned().collect())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.0.len())
    }

    fn call_method(self: &Arc<Self>, state: &mut State<'_, '_>, name: &str, args: &[Value]) -> Result<Value, Error> {
        containers::dict(state, &Value::from_dyn_object(self.clone()), name, args)
    }
}

/// Names of what was thought; the first that a turn has counts.
pub(super) const THOUGHTS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A turn as templates find it: nothing that is null, and what was thought under each name that they ask for, as
/// `transformers` has it.
pub(super) fn message(message: &Object) -> Object {
    let mut message = message.clone();
    message.retain(|_, value| !value.is_null());
    let thought = THOUGHTS.iter().find_map(|name| message.get(*name));
    let Some(thought) = thought.cloned() else { return message };
    let mut named = Object::new();
    named.insert("thinking".into(), thought.clone());
    named.extend(message);
    named.insert("reasoning_content".into(), thought);
    named
}

/// A turn whose calls have their arguments as values, not as text in JSON, which a template would encode once more.
pub(super) fn with_parsed_arguments(message: &Object) -> Object {
    let mut parsed = message.clone();
    let Some(Json::Array(calls)) = parsed.get_mut("tool_calls") else { return parsed };
    for call in calls {
        let Json::Object(call) = call else { continue };
        let holder = match call.get_mut("function") {
            Some(Json::Object(function)) => function,
            _ => call,
        };
        let arguments = holder.get_mut("arguments");
        if let Some(Json::String(text)) = &arguments
            && let Ok(value @ Json::Object(_)) = serde_json::from_str(text)
        {
            holder.insert("arguments".into(), value);
        }
    }
    parsed
}
