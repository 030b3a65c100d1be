//! JSON as Python's `json.dumps` writes it.

use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::filters::indentation;
use super::limits::pay;
use super::numbers::real;
use super::views::is_view;

/// How it is written.
struct Style {
    ascii: bool,
    /// What a level is indented by; none for one line.
    indent: Option<String>,
    /// Between items, and between key and value.
    separators: (String, String),
    sorted: bool,
}

/// The filter: `x|tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
pub(super) fn tojson(state: &State<'_, '_>, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let (ascii, indent, separators, sorted, kwargs): (
        Option<Value>,
        Option<Value>,
        Option<Value>,
        Option<Value>,
        Kwargs,
    ) = from_args(args)?;
    let ascii = ascii.or(kwargs.get("ensure_ascii")?).is_some_and(|ascii| ascii.is_true());
    let sorted = sorted.or(kwargs.get("sort_keys")?).is_some_and(|sorted| sorted.is_true());
    let indent = indent.or(kwargs.get("indent")?);
    let indent = indent.filter(|indent| !indent.is_none()).map(|indent| indentation(state, &indent)).transpose()?;
    let separators = separators.or(kwargs.get("separators")?).filter(|pair| !pair.is_none());
    let separators = match separators {
        Some(pair) => {
            let part = |place: usize| Ok::<_, Error>(pair.get_item_by_index(place)?.to_string());
            (part(0)?, part(1)?)
        }
        None => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
    };
    let style = Style { ascii, indent, separators, sorted };
    kwargs.assert_all_used()?;
    let mut text = String::new();
    style.write(state, value, 0, &mut text)?;
    Ok(Value::from(text))
}

impl Style {
    fn write(&self, state: &State<'_, '_>, value: &Value, level: usize, out: &mut String) -> Result<(), Error> {
        let before = out.len();
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable if !is_view(value) => {
                let items = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                self.items(state, &items, ['[', ']'], level, out, |style, item, out| {
                    style.write(state, item, level + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut keys = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                if self.sorted {
                    keys.sort();
                }
                self.items(state, &keys, ['{', '}'], level, out, |style, key, out| {
                    style.text(&self::key(key)?, out);
                    out.push_str(&style.separators.1);
                    style.write(state, &value.get_item(key)?, level + 1, out)
                })?;
            }
            kind => {
                return Err(Error::new(ErrorKind::BadSerialization, format!("{kind} is no value that JSON has")));
            }
        }
        state.consume_fuel(1)?;
        pay(state, out.len() - before)
    }

    fn items(
        &self,
        state: &State<'_, '_>,
        items: &[Value],
        brackets: [char; 2],
        level: usize,
        out: &mut String,
        mut item: impl FnMut(&Self, &Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |level: usize, out: &mut String| {
            let Some(indent) = &self.indent else { return Ok(()) };
            pay(state, indent.len().saturating_mul(level))?;
            out.push('\n');
            out.push_str(&indent.repeat(level));
            Ok::<_, Error>(())
        };
        out.push(brackets[0]);
        for (index, value) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(&self.separators.0);
            }
            line(level + 1, out)?;
            item(self, value, out)?;
        }
        if !items.is_empty() {
            line(level, out)?;
        }
        out.push(brackets[1]);
        Ok(())
    }

    fn text(&self, text: &str, out: &mut String) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                '\0'..='\x1f' => out.push_str(&format!("\\u{:04x}", character as u32)),
                '\x7f'.. if self.ascii && !character.is_ascii() => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                _ => out.push(character),
            }
        }
        out.push('"');
    }
}

fn number(value: &Value) -> String {
    if value.is_integer() { value.to_string() } else { json_real(f64::try_from(value.clone()).unwrap_or(f64::NAN)) }
}

fn json_real(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    real(value)
}

/// Numbers and constants are keys by what they would be as values.
fn key(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().into()),
        ValueKind::Number => Ok(number(key)),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::None => Ok("null".into()),
        kind => Err(Error::new(ErrorKind::BadSerialization, format!("a key cannot be {kind}"))),
    }
}
