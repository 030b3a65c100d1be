//! Filters, tests and globals of Jinja2 that minijinja lacks or has otherwise.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{Kwargs, Object, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, Output, State, Value};

use super::characters::is_space;
use super::limits::{DEPTH, is_iterable, pay};
use super::numbers::printed;
use super::strings::{justified, refused};
use super::views;

/// Prints a value.
pub(super) fn print(out: &mut Output<'_>, value: &Value) -> Result<(), Error> {
    if value.is_undefined() {
        return Ok(());
    }
    match value.as_str() {
        Some(text) => out.write_str(text),
        None => {
            printable(value, 0)?;
            out.write_str(&printed(value))
        }
    }
    .map_err(Error::from)
}

/// Refuses what Python prints by a name of its own: what is undefined, inside of lists.
fn printable(value: &Value, depth: usize) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Undefined if depth > 0 => {
            Err(refused("a list or dictionary with an undefined value cannot be printed"))
        }
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable if depth < DEPTH => {
            let map = value.kind() == ValueKind::Map;
            let each = |item: Value| printable(&if map { value.get_item(&item)? } else { item }, depth + 1);
            value.try_iter()?.try_for_each(each)
        }
        _ => Ok(()),
    }
}

/// Adds them.
pub(super) fn add(environment: &mut Environment<'static>) {
    views::add(environment);
    // minijinja's prints otherwise than Python's.
    environment.remove_filter("pprint");
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    for name in ["escape", "e", "forceescape"] {
        environment.add_filter(name, |value: Value| escape(&printed(&value)));
    }
    environment
        .add_filter("string", |value: Value| if value.as_str().is_some() { value } else { printed(&value).into() });
    environment.add_filter("attr", |_: Value, _: Value| Value::UNDEFINED);
    environment.add_filter("indent", indent);
    environment.add_filter("center", |state: &State<'_, '_>, text: String, width: Option<i64>| {
        centered(state, &text, width.unwrap_or(80))
    });
    environment.add_filter("truncate", truncate);
    environment.add_filter("wordcount", |text: String| words(&text));
    environment.add_filter("wordwrap", wordwrap);
    environment.add_filter("striptags", |text: String| striptags(&text));
    environment.add_filter("filesizeformat", filesizeformat);
    environment.add_filter("urlencode", urlencode);
    environment.add_test("sequence", |value: Value| views::is_sequence(&value));
    environment.add_test("iterable", |value: Value| is_iterable(&value));
    environment.add_test("callable", |value: Value| value.kind() == ValueKind::Plain && !value.is_undefined());
    environment.add_function("dict", dict);
    environment
        .add_function("cycler", |items: Rest<Value>| Value::from_object(Cycler(items.to_vec(), AtomicUsize::new(0))));
    environment.add_function("joiner", |separator: Option<String>| {
        Value::from_object(Joiner(separator.unwrap_or_else(|| ", ".into()), AtomicUsize::new(0)))
    });
}

/// `dict(pairs or a dictionary, name=value)`.
fn dict(args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let (first, kwargs): (Option<Value>, Kwargs) = from_args(&args)?;
    let mut pairs = Vec::new();
    if let Some(first) = first {
        pairs.extend(self::pairs(&first)?);
    }
    for name in kwargs.args() {
        pairs.push((name.into(), kwargs.get(name)?));
    }
    Ok(Value::from_pairs(pairs))
}

/// The pairs of a dictionary, or of a list of them.
fn pairs(value: &Value) -> Result<Vec<(Value, Value)>, Error> {
    let pair = |item: Result<Value, Error>| {
        let item = item?;
        Ok(match value.kind() {
            ValueKind::Map => (item.clone(), value.get_item(&item)?),
            _ => (item.get_item_by_index(0)?, item.get_item_by_index(1)?),
        })
    };
    value.try_iter()?.checked().map(pair).collect()
}

fn int(value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let (default, base, kwargs): (Option<Value>, Option<u32>, Kwargs) = from_args(&args)?;
    let default = default.or(kwargs.get("default")?).unwrap_or_else(|| 0.into());
    let base = base.or(kwargs.get("base")?).unwrap_or(10);
    kwargs.assert_all_used()?;
    let whole = |real: f64| (real.abs() < 1e38).then(|| Value::from(real.trunc() as i128));
    let parsed = match value.as_str() {
        Some(text) => {
            let text = text.trim_matches(is_space);
            let (sign, digits) =
                text.strip_prefix('-').map_or((1, text.strip_prefix('+').unwrap_or(text)), |digits| (-1, digits));
            let prefixed = match base {
                16 => digits.strip_prefix("0x").or(digits.strip_prefix("0X")),
                8 => digits.strip_prefix("0o").or(digits.strip_prefix("0O")),
                2 => digits.strip_prefix("0b").or(digits.strip_prefix("0B")),
                _ => None,
            };
            let digits = prefixed.unwrap_or(digits);
            let plain = !digits.starts_with(['_', '+', '-']) && !digits.ends_with('_') && !digits.contains("__");
            let known = plain.then(|| i64::from_str_radix(&digits.replace('_', ""), base.clamp(2, 36)).ok()).flatten();
            known.map(|number| Value::from(sign * number)).or_else(|| real_of(text).and_then(whole))
        }
        None if value.kind() == ValueKind::Bool => Some(i64::from(value.is_true()).into()),
        None if value.is_integer() => Some(value),
        None => f64::try_from(value).ok().and_then(whole),
    };
    Ok(parsed.unwrap_or(default))
}

fn float(value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let (default, kwargs): (Option<Value>, Kwargs) = from_args(&args)?;
    let default = default.or(kwargs.get("default")?).unwrap_or_else(|| 0.0.into());
    kwargs.assert_all_used()?;
    let parsed = match value.as_str() {
        Some(text) => real_of(text.trim_matches(is_space)),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value).ok(),
    };
    Ok(parsed.map_or(default, Value::from))
}

fn real_of(text: &str) -> Option<f64> {
    let plain = !text.starts_with('_') && !text.ends_with('_') && !text.contains("__");
    plain.then(|| text.replace('_', "").parse().ok()).flatten()
}

fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('"', "&#34;").replace('\'', "&#39;")
}

/// A text, or so many spaces.
pub(super) fn indentation(state: &State<'_, '_>, width: &Value) -> Result<String, Error> {
    if let Some(text) = width.as_str() {
        return Ok(text.to_string());
    }
    let width = usize::try_from(i64::try_from(width.clone())?).unwrap_or(0);
    pay(state, width)?;
    Ok(" ".repeat(width))
}

/// Every line but the first, and blank ones only if asked.
fn indent(state: &State<'_, '_>, text: String, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let args = args.into_values();
    let (width, first, blank, kwargs): (Option<Value>, Option<bool>, Option<bool>, Kwargs) = from_args(&args)?;
    let width = width.or(kwargs.get("width")?).unwrap_or_else(|| 4.into());
    let first = first.or(kwargs.get("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let lines = text.matches('\n').count() + 1;
    let indent = indentation(state, &width)?;
    pay(state, lines.saturating_mul(indent.len()).saturating_add(text.len()))?;
    let indented = text.split('\n').enumerate().map(|(index, line)| match (index, line) {
        (0, _) if !first => line.to_string(),
        (_, "") if !blank && index > 0 => String::new(),
        _ => format!("{indent}{line}"),
    });
    Ok(indented.collect::<Vec<_>>().join("\n"))
}

fn centered(state: &State<'_, '_>, text: &str, width: i64) -> Result<String, Error> {
    justified(state, text, "center", width, ' ')
}

fn truncate(text: String, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let args = args.into_values();
    let (length, kill, end, leeway, kwargs): (Option<usize>, Option<bool>, Option<String>, Option<usize>, Kwargs) =
        from_args(&args)?;
    let length = length.or(kwargs.get("length")?).unwrap_or(255);
    let kill = kill.or(kwargs.get("killwords")?).unwrap_or(false);
    let end = end.or(kwargs.get("end")?).unwrap_or_else(|| "...".into());
    let leeway = leeway.or(kwargs.get("leeway")?).unwrap_or(5);
    kwargs.assert_all_used()?;
    let (characters, suffix) = (text.chars().count(), end.chars().count());
    if length < suffix {
        return Err(refused("truncate to less than what it ends with"));
    }
    if characters <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let cut: String = text.chars().take(length - suffix).collect();
    let kept = if kill { &cut[..] } else { cut.rsplit_once(' ').map_or(&cut[..], |(kept, _)| kept) };
    Ok(format!("{kept}{end}"))
}

fn words(text: &str) -> usize {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count()
}

/// Lines of at most so many characters; longer words are cut.
fn wordwrap(text: String, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let args = args.into_values();
    let (width, cut, kwargs): (Option<usize>, Option<bool>, Kwargs) = from_args(&args)?;
    let width = width.or(kwargs.get("width")?).unwrap_or(79).max(1);
    let cut = cut.or(kwargs.get("break_long_words")?).unwrap_or(true);
    let with = kwargs.get::<Option<String>>("wrapstring")?.unwrap_or_else(|| "\n".into());
    kwargs.assert_all_used()?;
    let wrapped = |line: &str| {
        let (mut lines, mut open) = (Vec::new(), String::new());
        for word in line.split(' ').filter(|word| !word.is_empty()) {
            let length = |text: &str| text.chars().count();
            if !open.is_empty() && length(&open) + 1 + length(word) <= width {
                open.push(' ');
                open.push_str(word);
                continue;
            }
            if !open.is_empty() {
                lines.push(std::mem::take(&mut open));
            }
            open = word.to_string();
            while cut && length(&open) > width {
                let rest: String = open.chars().skip(width).collect();
                lines.push(open.chars().take(width).collect());
                open = rest;
            }
        }
        lines.push(open);
        lines.join(&with)
    };
    Ok(text.lines().map(wrapped).collect::<Vec<_>>().join(&with))
}

fn striptags(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let Some(end) = rest[start..].find('>') else { break };
        kept.push_str(&rest[..start]);
        rest = &rest[start + end + 1..];
    }
    kept.push_str(rest);
    kept.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

fn filesizeformat(bytes: f64, binary: Option<bool>) -> String {
    let binary = binary.unwrap_or(false);
    let base = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return "1 Byte".into();
    }
    if bytes < base {
        return format!("{} Bytes", bytes.trunc());
    }
    let units = if binary { ["KiB", "MiB", "GiB", "TiB", "PiB"] } else { ["kB", "MB", "GB", "TB", "PB"] };
    let (mut size, mut unit) = (bytes / base, 0);
    while size >= base && unit + 1 < units.len() {
        size /= base;
        unit += 1;
    }
    format!("{size:.1} {}", units[unit])
}

/// Text, or the pairs of a query.
fn urlencode(value: Value) -> Result<String, Error> {
    let quote = |text: &str, plus: bool| {
        let mut quoted = String::new();
        for byte in text.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => quoted.push(char::from(byte)),
                b'/' if !plus => quoted.push('/'),
                b' ' if plus => quoted.push('+'),
                _ => quoted.push_str(&format!("%{byte:02X}")),
            }
        }
        quoted
    };
    if value.kind() == ValueKind::String || value.try_iter().is_err() {
        return Ok(quote(&printed(&value), false));
    }
    let quoted = |value: &Value| quote(&printed(value), true);
    let pairs = pairs(&value)?.into_iter().map(|(key, value)| format!("{}={}", quoted(&key), quoted(&value)));
    Ok(pairs.collect::<Vec<_>>().join("&"))
}

/// Gives its items in turn.
#[derive(Debug)]
struct Cycler(Vec<Value>, AtomicUsize);

impl Object for Cycler {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.0.get(self.1.load(Ordering::Relaxed)).cloned()).flatten()
    }

    fn call_method(self: &Arc<Self>, _: &mut State<'_, '_>, name: &str, args: &[Value]) -> Result<Value, Error> {
        from_args::<()>(args)?;
        let next = match name {
            "next" => (self.1.load(Ordering::Relaxed) + 1) % self.0.len().max(1),
            "reset" => 0,
            _ => return Err(Error::from(minijinja::ErrorKind::UnknownMethod)),
        };
        let before = self.1.swap(next, Ordering::Relaxed);
        Ok(self.0.get(before).cloned().filter(|_| name == "next").unwrap_or_else(|| ().into()))
    }
}

/// Nothing the first time, its text from then on.
#[derive(Debug)]
struct Joiner(String, AtomicUsize);

impl Object for Joiner {
    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        from_args::<()>(args)?;
        let used = self.1.fetch_add(1, Ordering::Relaxed) > 0;
        Ok(Value::from(if used { &self.0[..] } else { "" }))
    }
}
