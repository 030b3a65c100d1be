//! Numbers as Python writes them, and its `%`.

use minijinja::value::ValueKind;
use minijinja::{Error, State, Value};

use super::strings::{narrow, refused};

/// The shortest text that gives the number back: 1.0, 1e+16, 1e-05.
pub(super) fn real(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.into();
    }
    if value == 0.0 || (1e-4..1e16).contains(&value.abs()) {
        let text = value.to_string();
        return if text.contains('.') { text } else { text + ".0" };
    }
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

/// `left % right`: a text is a format, its values one or a tuple or a dictionary.
pub(super) fn remainder(state: &mut State<'_, '_>, left: Value, right: Value) -> Result<Value, Error> {
    match left.as_str() {
        Some(format) => formatted(state, format, &right).map(Value::from),
        None => number_remainder(&left, &right),
    }
}

/// A format as C has it: `%(name)-5.2f`.
fn formatted(state: &mut State<'_, '_>, format: &str, values: &Value) -> Result<String, Error> {
    narrow(format)?;
    let given =
        if values.is_tuple() { values.try_iter()?.checked().collect::<Result<_, _>>()? } else { vec![values.clone()] };
    let mut left = given.into_iter();
    let (mut text, mut rest) = (String::new(), format);
    while let Some(start) = rest.find('%') {
        text.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        let named = rest.strip_prefix('(').and_then(|named| named.split_once(')'));
        let mut value = named.map(|(name, _)| values.get_attr(name));
        rest = named.map_or(rest, |(_, rest)| rest);
        let fields = rest.len() - rest.trim_start_matches(|c: char| "#0- +.*123456789hlL".contains(c)).len();
        let mut spec = format!("%{}", rest[..fields].replace(['h', 'l', 'L'], ""));
        let kind = rest[fields..].chars().next().ok_or_else(|| refused("the format ends inside a field"))?;
        rest = &rest[fields + kind.len_utf8()..];
        if kind == '%' {
            text.push('%');
            continue;
        }
        let mut next = || left.next().ok_or_else(|| refused("not enough values for the format"));
        while spec.contains('*') {
            let width = i64::try_from(next()?)?;
            spec = spec.replacen('*', &width.to_string(), 1);
        }
        narrow(&spec)?;
        let value = match value.take() {
            Some(value) if values.kind() == ValueKind::Map => value?,
            Some(_) => return Err(refused("the format needs a dictionary")),
            None => next()?,
        };
        let whole = |value: &Value| {
            let real = f64::try_from(value.clone()).ok().filter(|real| real.is_finite())?;
            (value.kind() == ValueKind::Number && !value.is_integer()).then(|| Value::from(real.trunc() as i128))
        };
        let (kind, value) = match kind {
            'r' | 'a' => ('s', Value::from(represented(&value))),
            's' => ('s', Value::from(printed(&value))),
            'd' | 'i' | 'u' => ('d', whole(&value).unwrap_or(value)),
            kind => (kind, value),
        };
        spec.push(kind);
        text.push_str(&state.apply_filter("format", &[Value::from(spec), value])?.to_string());
    }
    text.push_str(rest);
    if values.kind() != ValueKind::Map && left.next().is_some() {
        return Err(refused("not all values are used by the format"));
    }
    Ok(text)
}

/// As Python's `str` writes it.
pub(super) fn printed(value: &Value) -> String {
    if value.kind() == ValueKind::Number && !value.is_integer() {
        return f64::try_from(value.clone()).map_or_else(|_| value.to_string(), real);
    }
    value.to_string()
}

/// As Python's `repr` writes it: text in quotes.
fn represented(value: &Value) -> String {
    if value.kind() != ValueKind::String {
        return printed(value);
    }
    let list = Value::from(vec![value.clone()]).to_string();
    list.strip_prefix('[').and_then(|list| list.strip_suffix(']')).unwrap_or(&list).to_string()
}

fn number_remainder(left: &Value, right: &Value) -> Result<Value, Error> {
    let number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if !number(left) || !number(right) {
        return Err(refused(&format!("tried to use % on {} and {}", left.kind(), right.kind())));
    }
    let whole = |value: &Value| {
        i128::try_from(value.clone()).ok().filter(|_| value.is_integer() || value.kind() == ValueKind::Bool)
    };
    if let (Some(left), Some(right)) = (whole(left), whole(right)) {
        let remainder = left.checked_rem(right).ok_or_else(|| refused("modulo by zero"))?;
        let remainder = if remainder != 0 && (remainder < 0) != (right < 0) { remainder + right } else { remainder };
        return Ok(i64::try_from(remainder).map_or_else(|_| Value::from(remainder), Value::from));
    }
    let real = |value: &Value| f64::try_from(value.clone());
    let (left, right) = (real(left)?, real(right)?);
    if right == 0.0 {
        return Err(refused("modulo by zero"));
    }
    let remainder = left % right;
    Ok(Value::from(if remainder != 0.0 && (remainder < 0.0) != (right < 0.0) { remainder + right } else { remainder }))
}
