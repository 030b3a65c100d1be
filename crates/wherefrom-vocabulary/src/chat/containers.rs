//! The methods of Python's `dict`, `list`, `int` and `float`, those that change nothing.

use std::cmp::Ordering;

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::strings;
use super::views::view;

/// `value.name(args)`, for methods that minijinja itself does not know.
pub(super) fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => strings::method(state, value.as_str().unwrap_or_default(), name, args),
        ValueKind::Map => dict(state, value, name, args),
        ValueKind::Seq | ValueKind::Iterable => list(value, name, args),
        ValueKind::Number => number(value, name, args),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// Methods of dictionaries.
pub(super) fn dict(state: &State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(object) = value.as_object() else { return Err(Error::from(ErrorKind::UnknownMethod)) };
    let pairs = || object.try_iter_pairs().into_iter().flatten();
    state.consume_fuel(object.enumerator_len().unwrap_or(0) as u64 / 2)?;
    Ok(match name {
        "keys" => {
            from_args::<()>(args)?;
            view("dict_keys", pairs().map(|(key, _)| key))
        }
        "values" => {
            from_args::<()>(args)?;
            view("dict_values", pairs().map(|(_, value)| value))
        }
        "items" => {
            from_args::<()>(args)?;
            view("dict_items", pairs().map(|(key, value)| Value::from(Tuple::from([key, value]))))
        }
        "get" => {
            let (key, default): (&Value, Option<Value>) = from_args(args)?;
            object.get_value(key).or(default).unwrap_or_else(|| Value::from(()))
        }
        "copy" => {
            from_args::<()>(args)?;
            value.clone()
        }
        "pop" | "update" | "setdefault" | "clear" | "popitem" => return Err(changes("dictionary", name)),
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

fn list(value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    Ok(match name {
        "count" | "index" => {
            let (what,): (&Value,) = from_args(args)?;
            let items = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
            if name == "count" {
                return Ok(Value::from(items.iter().filter(|item| *item == what).count()));
            }
            let place = items.iter().position(|item| item == what);
            Value::from(place.ok_or_else(|| strings::refused("it is not in the list"))?)
        }
        "copy" => {
            from_args::<()>(args)?;
            value.clone()
        }
        "append" | "extend" | "insert" | "pop" | "remove" | "clear" | "sort" | "reverse" => {
            return Err(changes("list", name));
        }
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

/// As in the sandbox that `transformers` renders in.
fn changes(what: &str, name: &str) -> Error {
    strings::refused(&format!("a template cannot change a {what}: `{name}`"))
}

fn number(value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    from_args::<()>(args)?;
    let real = f64::try_from(value.clone()).unwrap_or(f64::NAN);
    Ok(match (name, value.is_integer()) {
        ("is_integer", _) => Value::from(real.partial_cmp(&real.trunc()) == Some(Ordering::Equal)),
        ("bit_length", true) => {
            let magnitude = i128::try_from(value.clone()).map_or(0, i128::unsigned_abs);
            Value::from(128 - magnitude.leading_zeros())
        }
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}
