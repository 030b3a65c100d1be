//! The methods of Python's `str`.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Tuple, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::characters::{
    capitalize, is_cased, is_decimal, is_digit, is_format, is_letter_number, is_space, is_title, swap_case, title,
};
use super::limits::pay;

/// Longest width or count that a format may ask for.
const WIDEST: usize = 1 << 20;

/// `text.name(args)`.
pub(super) fn method(state: &State<'_, '_>, text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let none = || from_args::<()>(args);
    let each = |test: fn(char) -> bool| -> Result<Value, Error> {
        none()?;
        Ok(Value::from(!text.is_empty() && text.chars().all(test)))
    };
    Ok(match name {
        "upper" | "lower" | "casefold" | "swapcase" | "title" | "capitalize" => {
            none()?;
            Value::from(match name {
                "upper" => text.to_uppercase(),
                "lower" => text.to_lowercase(),
                "casefold" => text.to_lowercase().replace('ß', "ss").replace('ς', "σ"),
                "swapcase" => swap_case(text),
                "title" => title(text),
                _ => capitalize(text),
            })
        }
        "isalnum" => each(char::is_alphanumeric)?,
        "isalpha" => each(|c| c.is_alphabetic() && !is_letter_number(c))?,
        "isdecimal" => each(is_decimal)?,
        "isdigit" => each(is_digit)?,
        "isnumeric" => each(char::is_numeric)?,
        "isspace" => each(is_space)?,
        "isascii" => {
            none()?;
            Value::from(text.is_ascii())
        }
        "isprintable" => {
            none()?;
            Value::from(text.chars().all(|c| c == ' ' || !(c.is_control() || c.is_whitespace() || is_format(c))))
        }
        "isidentifier" => {
            none()?;
            let starts = text.starts_with(|c: char| c.is_alphabetic() || c == '_');
            Value::from(starts && text.chars().all(|c| c.is_alphanumeric() || c == '_'))
        }
        "islower" => {
            none()?;
            Value::from(text.chars().any(char::is_lowercase) && !text.chars().any(|c| c.is_uppercase() || is_title(c)))
        }
        "isupper" => {
            none()?;
            Value::from(text.chars().any(char::is_uppercase) && !text.chars().any(|c| c.is_lowercase() || is_title(c)))
        }
        "istitle" => {
            none()?;
            Value::from(text.chars().any(is_cased) && title(text) == text)
        }
        "strip" | "lstrip" | "rstrip" => {
            let (characters,): (Option<&str>,) = from_args(args)?;
            let strips = |c: char| characters.map_or_else(|| is_space(c), |set| set.contains(c));
            Value::from(match name {
                "strip" => text.trim_matches(strips),
                "lstrip" => text.trim_start_matches(strips),
                _ => text.trim_end_matches(strips),
            })
        }
        "removeprefix" => Value::from(text.strip_prefix(from_args::<(&str,)>(args)?.0).unwrap_or(text)),
        "removesuffix" => Value::from(text.strip_suffix(from_args::<(&str,)>(args)?.0).unwrap_or(text)),
        "split" | "rsplit" => split(text, args, name == "rsplit")?,
        "splitlines" => {
            let (keep, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(kwargs.get("keepends")?).unwrap_or(false);
            kwargs.assert_all_used()?;
            Value::from(lines(text, keep))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            filled(separator)?;
            let parts = if name == "partition" { text.split_once(separator) } else { text.rsplit_once(separator) };
            Value::from(Tuple::from(match (parts, name) {
                (Some((before, after)), _) => [before, separator, after].map(Value::from),
                (None, "partition") => [text, "", ""].map(Value::from),
                (None, _) => ["", "", text].map(Value::from),
            }))
        }
        "replace" => {
            let (old, new, count, kwargs): (&str, &str, Option<i64>, Kwargs) = from_args(args)?;
            let count = count.or(kwargs.get("count")?).unwrap_or(-1);
            kwargs.assert_all_used()?;
            let matches = text.len() / old.len().max(1) + 1;
            let count = usize::try_from(count).unwrap_or(usize::MAX).min(matches);
            pay(state, matches.min(count).saturating_mul(new.len()).saturating_add(text.len()))?;
            Value::from(text.replacen(old, new, count))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => find(text, name, args)?,
        "startswith" | "endswith" => affixed(text, name, args)?,
        "center" | "ljust" | "rjust" => {
            let (width, fill): (i64, Option<&str>) = from_args(args)?;
            let mut fill = fill.unwrap_or(" ").chars();
            let (Some(fill), None) = (fill.next(), fill.next()) else {
                return Err(refused("the fill is one character"));
            };
            Value::from(justified(state, text, name, width, fill)?)
        }
        "zfill" => {
            let (width,): (i64,) = from_args(args)?;
            let sign = usize::from(text.starts_with(['+', '-']));
            let filled = justified(state, &text[sign..], "rjust", width - sign as i64, '0')?;
            Value::from(format!("{}{filled}", &text[..sign]))
        }
        "expandtabs" => {
            let (size, kwargs): (Option<i64>, Kwargs) = from_args(args)?;
            let size = usize::try_from(size.or(kwargs.get("tabsize")?).unwrap_or(8)).unwrap_or(0);
            kwargs.assert_all_used()?;
            pay(state, text.matches('\t').count().saturating_mul(size).saturating_add(text.len()))?;
            Value::from(expand_tabs(text, size))
        }
        "join" => join(state, text, args)?,
        "format" | "format_map" => {
            narrow(text)?;
            pay(state, text.len())?;
            let mapped = if name == "format_map" { mapping(args)? } else { args.to_vec() };
            Value::from(format(FormatStyle::StrFormat, text, &mapped)?)
        }
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

/// The one argument of `format_map` as named ones.
fn mapping(args: &[Value]) -> Result<Vec<Value>, Error> {
    let (map,): (&Value,) = from_args(args)?;
    let mut named = Vec::new();
    for key in map.try_iter()?.checked() {
        let key = key?;
        named.push((key.to_string(), map.get_item(&key)?));
    }
    Ok(vec![Value::from(named.into_iter().collect::<Kwargs>())])
}

/// Refuses formats that ask for more characters than any text needs.
pub(super) fn narrow(format: &str) -> Result<(), Error> {
    let wide = |digits: &str| digits.parse::<usize>().map_or(!digits.is_empty(), |width| width > WIDEST);
    if format.split(|c: char| !c.is_ascii_digit()).any(wide) {
        return Err(refused("the format asks for too many characters"));
    }
    if let Some(conversion) = ["!r", "!s", "!a"]
        .into_iter()
        .find(|conversion| [":", "}"].iter().any(|end| format.contains(&format!("{conversion}{end}"))))
    {
        return Err(refused(&format!("the conversion `{conversion}` in a format is not supported")));
    }
    Ok(())
}

pub(super) fn refused(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.to_string())
}

fn filled(separator: &str) -> Result<(), Error> {
    if separator.is_empty() { Err(refused("empty separator")) } else { Ok(()) }
}

/// At most `maxsplit` cuts, from the left or from the right; without a separator at runs of white space.
fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (separator, most, kwargs): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = separator.or(kwargs.get("sep")?);
    let most = usize::try_from(most.or(kwargs.get("maxsplit")?).unwrap_or(-1)).unwrap_or(usize::MAX);
    kwargs.assert_all_used()?;
    let mut parts: Vec<&str> = Vec::new();
    match separator {
        Some(separator) => {
            filled(separator)?;
            if from_right {
                parts.extend(text.rsplitn(most.saturating_add(1), separator));
            } else {
                parts.extend(text.splitn(most.saturating_add(1), separator));
            }
        }
        None => {
            let trim = |rest: &'_ str| {
                let kept = if from_right { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
                if from_right { 0..kept.len() } else { rest.len() - kept.len()..rest.len() }
            };
            let mut rest = &text[trim(text)];
            while !rest.is_empty() {
                let cut = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
                let Some(cut) = cut.filter(|_| parts.len() < most) else {
                    parts.push(rest);
                    break;
                };
                let space = rest[cut..].chars().next().map_or(1, char::len_utf8);
                let (before, after) = (&rest[..cut], &rest[cut + space..]);
                let (part, left) = if from_right { (after, before) } else { (before, after) };
                parts.push(part);
                rest = &left[trim(left)];
            }
        }
    }
    if from_right {
        parts.reverse();
    }
    Ok(Value::from(parts.into_iter().map(Value::from).collect::<Vec<_>>()))
}

fn lines(text: &str, keep: bool) -> Vec<Value> {
    let ends =
        |c: char| matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(ends) {
        let end = if rest[at..].starts_with("\r\n") { 2 } else { rest[at..].chars().next().map_or(1, char::len_utf8) };
        found.push(Value::from(&rest[..if keep { at + end } else { at }]));
        rest = &rest[at + end..];
    }
    if !rest.is_empty() {
        found.push(Value::from(rest));
    }
    found
}

/// The bytes of the characters from `start` to `end`, counted as in a slice; none where that is beyond the end.
fn range(text: &str, start: Option<i64>, end: Option<i64>) -> Option<std::ops::Range<usize>> {
    let length = text.chars().count() as i64;
    let place = |place: i64| if place < 0 { (length + place).max(0) } else { place };
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(length)).min(length));
    let byte = |place: i64| text.char_indices().nth(place as usize).map_or(text.len(), |(byte, _)| byte);
    (start <= length && start <= end).then(|| byte(start)..byte(end))
}

fn find(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let range = range(text, start, end);
    let part = range.clone().map_or("", |range| &text[range]);
    if name == "count" {
        let count = match (&range, what.is_empty()) {
            (None, _) => 0,
            (_, true) => part.chars().count() + 1,
            _ => part.matches(what).count(),
        };
        return Ok(Value::from(count));
    }
    let found = if name.starts_with('r') { part.rfind(what) } else { part.find(what) };
    match found.zip(range) {
        Some((at, range)) => Ok(Value::from(text[..range.start + at].chars().count())),
        None if name.ends_with("find") => Ok(Value::from(-1)),
        None => Err(refused("substring not found")),
    }
}

fn affixed(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (affix, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
    let Some(range) = range(text, start, end) else { return Ok(Value::from(false)) };
    let part = &text[range];
    let has = |affix: &Value| {
        let affix = affix.as_str().ok_or_else(|| refused(&format!("{name} takes text or a tuple of texts")))?;
        Ok::<_, Error>(if name == "startswith" { part.starts_with(affix) } else { part.ends_with(affix) })
    };
    if !affix.is_tuple() {
        return has(affix).map(Value::from);
    }
    for item in affix.try_iter()?.checked() {
        if has(&item?)? {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

/// `text` with `fill` around it, to a width in characters.
pub(super) fn justified(
    state: &State<'_, '_>,
    text: &str,
    side: &str,
    width: i64,
    fill: char,
) -> Result<String, Error> {
    let width = usize::try_from(width).unwrap_or(0);
    let missing = width.saturating_sub(text.chars().count());
    pay(state, missing.saturating_mul(fill.len_utf8()).saturating_add(text.len()))?;
    let left = match side {
        "ljust" => 0,
        "rjust" => missing,
        // Where one is left over, Python looks at the width.
        _ => missing / 2 + (missing & width & 1),
    };
    let filled = |count: usize| std::iter::repeat_n(fill, count).collect::<String>();
    Ok(filled(left) + text + &filled(missing - left))
}

fn expand_tabs(text: &str, size: usize) -> String {
    let (mut expanded, mut column) = (String::with_capacity(text.len()), 0);
    for character in text.chars() {
        match character {
            '\t' if size == 0 => {}
            '\t' => {
                let spaces = size - column % size;
                expanded.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            '\n' | '\r' => {
                expanded.push(character);
                column = 0;
            }
            _ => {
                expanded.push(character);
                column += 1;
            }
        }
    }
    expanded
}

fn join(state: &State<'_, '_>, separator: &str, args: &[Value]) -> Result<Value, Error> {
    let (items,): (&Value,) = from_args(args)?;
    let mut joined = String::new();
    for (index, item) in items.try_iter()?.checked().enumerate() {
        let item = item?;
        let text =
            item.as_str().ok_or_else(|| refused(&format!("item {index} of join is {}, not text", item.kind())))?;
        pay(state, separator.len() + text.len())?;
        if index > 0 {
            joined.push_str(separator);
        }
        joined.push_str(text);
    }
    Ok(Value::from(joined))
}
