//! Where the assistant speaks in a rendering, for templates that do not mark it.
//!
//! Where rendering up to an answer, with it, and of the whole conversation continue one another, an answer is what they
//! add. Other templates write a turn otherwise when another follows it, or write what was not asked for. There the words of
//! a turn are changed and the conversation is rendered again: what changes is the answer's. It begins after what a prompt
//! for it ends with, and ends after what follows its words wherever the conversation goes on.

use std::ops::Range;

use minijinja::Value;

use super::values::dict;
use crate::ordered::{Json, Object};

/// Who writes what is measured.
const ASSISTANT: &str = "assistant";
/// What words are changed to, each in turn, so that one at least differs from what is there.
const OTHERS: [&str; 2] = ["Q", "Z"];

/// Bytes before an answer's words among which its header is looked for.
const NEAR: usize = 4096;

/// Renders the first turns; with `true` the beginning of an answer stands at the end.
pub(super) type Render<'a> = dyn Fn(&[Value], bool) -> Result<String, String> + 'a;

/// The bytes of each answer in `text`, which is the whole conversation.
pub(super) fn answers(messages: &[Object], text: &str, render: &Render<'_>) -> Result<Vec<Range<usize>>, String> {
    let turns: Vec<_> = messages.iter().map(dict).collect();
    let mut found: Vec<Range<usize>> = Vec::new();
    for (turn, message) in messages.iter().enumerate() {
        if message.get("role").and_then(Json::as_str) != Some(ASSISTANT) {
            continue;
        }
        // A template may refuse a conversation that begins with an answer.
        let asked = render(&turns[..turn], true).ok();
        let unasked = render(&turns[..turn], false).ok();
        // With the last turn it is the whole conversation.
        let last = turn + 1 == messages.len();
        let answered = if last { Some(text.to_string()) } else { render(&turns[..=turn], false).ok() };
        let heeds = asked != unasked;
        let answer = match (&asked, &answered) {
            (Some(asked), Some(answered)) if heeds && answered.starts_with(asked) && text.starts_with(answered) => {
                // What follows the token that ends the turn is not the assistant's.
                Some(asked.len()..answered.trim_end().len().max(asked.len()))
            }
            _ => {
                let Some(words) = words(messages, &turns, turn, text, render)? else { continue };
                let before = match turn {
                    0 => None,
                    _ => self::words(messages, &turns, turn - 1, text, render).ok().flatten().map(|words| words.end),
                };
                let from = before.or(found.last().map(|answer| answer.end)).unwrap_or(0).min(words.start);
                // What the prompt has is given, though an answer of another form begins before.
                let given = asked.as_deref().filter(|asked| text.starts_with(*asked)).map(str::len);
                let start = given
                    .filter(|given| (words.start + 1..=words.end).contains(given))
                    .unwrap_or_else(|| start(&text[..words.start], from, asked.as_deref(), unasked.as_deref()));
                let own = match &answered {
                    Some(answered) if last => Some(&answered[words.end.min(answered.len())..]),
                    Some(answered) => self::words(messages, &turns[..=turn], turn, answered, render)
                        .ok()
                        .flatten()
                        .map(|words| &answered[words.end..]),
                    None => None,
                };
                let prompt = |own: &str| asked.as_deref().map_or(0, |asked| prompt(asked, own, render));
                Some(start..words.end + end(&text[..start], &text[words.end..], own, heeds, prompt))
            }
        };
        found.extend(answer.map(|answer| {
            let start = answer.start.max(found.last().map_or(0, |last| last.end));
            start..answer.end.max(start)
        }));
    }
    Ok(found)
}

/// The bytes of `text`, which `turns` render to, that the words of a turn decide on; none where the template leaves them
/// out.
fn words(
    messages: &[Object],
    turns: &[Value],
    turn: usize,
    text: &str,
    render: &Render<'_>,
) -> Result<Option<Range<usize>>, String> {
    let (mut all, mut error): (Option<Range<usize>>, Option<String>) = (None, None);
    for field in ["content", "reasoning_content", "tool_calls"] {
        let Some(value) = messages[turn].get(field) else { continue };
        let (mut before, mut after, mut changes) = (text.len(), text.len(), false);
        for other in OTHERS {
            let mut message = messages[turn].clone();
            message.insert(field.into(), self::changed(value, field, other));
            let mut changed = turns.to_vec();
            changed[turn] = dict(&message);
            match render(&changed, false) {
                Ok(changed) => {
                    changes |= changed != text;
                    before = before.min(common_prefix(text, &changed));
                    after = after.min(common_suffix(text, &changed));
                }
                Err(what) => error = Some(what),
            }
        }
        if changes {
            let range = before..(text.len() - after).max(before);
            all = Some(all.map_or(range.clone(), |all| all.start.min(range.start)..all.end.max(range.end)));
        }
    }
    if let Some(range) = calls(messages, turns, turn, text, render) {
        all = Some(all.map_or(range.clone(), |all| all.start.min(range.start)..all.end.max(range.end)));
    }
    match (all, error) {
        (None, Some(error)) => Err(format!(
            "what the assistant wrote in turn {turn} cannot be told, as the chat template does not render other words there \
             ({error}); give the template {{% generation %}} marks, or rows of `prompt` and `completion`"
        )),
        (all, _) => Ok(all),
    }
}

/// The bytes of `text` that are there because a turn calls tools: what differs from a plain answer in its place, the marks round
/// the calls included. None where it calls none, or the template takes no other turn there.
fn calls(messages: &[Object], turns: &[Value], turn: usize, text: &str, render: &Render<'_>) -> Option<Range<usize>> {
    messages[turn].get("tool_calls").and_then(Json::as_array).filter(|calls| !calls.is_empty())?;
    // The conversation up to there, unless the template waits for what is called.
    let own = render(&turns[..=turn], false).unwrap_or_default();
    let (mut before, mut own_end, mut end) = (text.len(), 0, 0);
    for other in OTHERS {
        let plain = [&turns[..turn], &[plain(ASSISTANT, other)]].concat();
        let begun = render(&plain, false).ok()?;
        before = before.min(aligned_prefix(text, &begun));
        own_end = own_end.max(own.len() - aligned_suffix(&own, &begun));
        // What follows may answer the calls, and be refused.
        if let Ok(whole) = render(&[&plain[..], &turns[turn + 1..]].concat(), false) {
            end = end.max(text.len() - aligned_suffix(text, &whole));
        }
    }
    let end = if own_end > 0 && text.starts_with(&own[..own_end]) { own_end } else { end };
    Some(before..end.max(before))
}

/// A turn of words alone.
fn plain(role: &str, words: &str) -> Value {
    dict(&Object::from_iter([("role".to_string(), role.into()), ("content".to_string(), words.into())]))
}

/// Takes the turns of tools out of answers that a template writes them into; in what order, whoever calls does not mind.
pub(super) fn without_tools(
    messages: &[Object],
    text: &str,
    answers: Vec<Range<usize>>,
    render: &Render<'_>,
) -> Vec<Range<usize>> {
    let mut left = answers;
    for (turn, message) in messages.iter().enumerate() {
        let is_tool = message.get("role").and_then(Json::as_str) == Some("tool");
        let said = message.get("content").and_then(Json::as_str).map(str::trim).filter(|said| !said.is_empty());
        let Some(said) = said.filter(|said| is_tool && left.iter().any(|answer| text[answer.clone()].contains(said)))
        else {
            continue;
        };
        let others: Vec<_> =
            messages.iter().enumerate().filter(|&(other, _)| other != turn).map(|(_, one)| dict(one)).collect();
        // What it adds, or, where that is not all that changes without it, its words.
        let added = render(&others, false).ok().and_then(|others| {
            let start = common_prefix(text, &others);
            let added = start..start + text.len().checked_sub(others.len())?;
            let fits = text.get(added.end..) == others.get(start..) && text.get(added.clone())?.contains(said);
            fits.then_some(added)
        });
        let turns = || messages.iter().map(dict).collect::<Vec<_>>();
        let added = added.or_else(|| words(messages, &turns(), turn, text, render).ok().flatten());
        let Some(added) = added else { continue };
        let cut = |answer: Range<usize>| {
            let parts = [answer.start..answer.end.min(added.start), answer.start.max(added.end)..answer.end];
            parts.into_iter().filter(|part| part.start < part.end)
        };
        left = left.into_iter().flat_map(cut).collect();
    }
    left
}

/// The words of a field, and nothing else in it, changed.
fn changed(value: &Json, field: &str, other: &str) -> Json {
    match (value, field) {
        (Json::Array(items), _) => Json::Array(items.iter().map(|item| changed(item, "item", other)).collect()),
        (Json::Object(_), "arguments") => Json::Object([(other.to_string(), other.into())].into_iter().collect()),
        (Json::String(_), "arguments") => Json::String(format!("{{\"{other}\": \"{other}\"}}")),
        (Json::Object(fields), _) => {
            let field = |(name, value): (&String, &Json)| match &name[..] {
                "text" | "name" | "arguments" | "function" => (name.clone(), changed(value, name, other)),
                _ => (name.clone(), value.clone()),
            };
            Json::Object(fields.iter().map(field).collect())
        }
        (Json::String(_), _) => other.into(),
        _ => value.clone(),
    }
}

/// Where the answer begins: after what is given, which lies between the words before (`from`) and its own, which follow
/// `text`.
fn start(text: &str, from: usize, asked: Option<&str>, unasked: Option<&str>) -> usize {
    let (Some(asked), words) = (asked, text.len()) else { return text.len() };
    let words_before = from;
    let near = text.ceil_char_boundary(text.len().saturating_sub(NEAR));
    let from = from.max(near);
    let between = &text[from..];
    let header = unasked.map_or(asked, |unasked| &asked[common_prefix(asked, unasked)..]);
    let begins = text.starts_with(asked) && asked.len() >= words_before;
    if header.trim().is_empty() {
        // Not asked for an answer, the template ends with the question; what it writes between is none of the words.
        let ends = |&(at, _): &(usize, char)| !between[..at].trim().is_empty() && asked.ends_with(&between[..at]);
        let longest = between.char_indices().chain([(between.len(), ' ')]).rev().find(ends);
        let asked = if begins { Some(asked.len()) } else { longest.map(|(at, _)| from + at) };
        return asked.filter(|&asked| text[asked..].trim().is_empty()).unwrap_or(words);
    }
    if begins {
        return asked.len();
    }
    if let Some(at) = between.rfind(header) {
        return from + at + header.len();
    }
    // The turn begins as the prompt does and goes on otherwise, as with a thought that is closed at once.
    let shared =
        |(at, _): (usize, char)| (aligned_prefix(&between[at..], &header[..header.floor_char_boundary(NEAR)]), at);
    let Some((length, at)) = between.char_indices().map(shared).max().filter(|&(length, _)| length > 0) else {
        return words;
    };
    if between[at + length..].trim().is_empty() {
        return words;
    }
    let line = between[at..at + length].rfind('\n').map_or(length, |line| line + 1);
    from + at + line
}

/// How many bytes after the answer's words are still the assistant's. `before` is the text before the answer, `after` that
/// after its words; `own` is what follows them where the conversation ends with the answer, `heeds` whether the template
/// writes a prompt only if asked, `prompt` how much of the end of its own is one.
fn end(before: &str, after: &str, own: Option<&str>, heeds: bool, prompt: impl Fn(&str) -> usize) -> usize {
    let Some(own) = own else { return closing(after) };
    // A template that does not heed may write the next answer's header after each turn.
    let header = match aligned_suffix(own, before) {
        _ if heeds => 0,
        0 => prompt(own),
        header => header,
    };
    if !own[own.len() - header..].trim().is_empty() {
        let closed = own[..own.len() - header].trim_end().len();
        return if closed > 0 && after.starts_with(&own[..closed]) { closed } else { closing(after) };
    }
    match after[..aligned_prefix(own, after)].trim_end().len() {
        // It closes a last turn otherwise than one that another follows.
        0 => closing(after),
        closed => closed,
    }
}

/// How many bytes of the end of what follows an answer are a prompt for the next, as a template writes one that always asks:
/// what the question ends with, too, from the token that begins a turn.
fn prompt(asked: &str, own: &str, render: &Render<'_>) -> usize {
    let alone = |role: &str| render(&[plain(role, OTHERS[0])], false);
    let (Ok(user), Ok(assistant)) = (alone("user"), alone(ASSISTANT)) else { return 0 };
    let shared = &user[..aligned_prefix(&user, &assistant)];
    let begins = shared.rfind(['<', '[']).map(|at| &shared[at..]).filter(|mark| control(mark) == Some(mark.len()));
    let tail = &own[own.len() - aligned_suffix(own, asked)..];
    begins.and_then(|begins| tail.rfind(begins)).map_or(0, |at| tail.len() - at)
}

/// The bytes up to the end of a token that closes a turn: one that another token follows, or nothing.
fn closing(text: &str) -> usize {
    let start = text.len() - text.trim_start().len();
    let Some(length) = control(&text[start..]) else { return 0 };
    let rest = text[start + length..].trim_start();
    if rest.is_empty() || control(rest).is_some() { start + length } else { 0 }
}

/// The length of the control token that `text` begins with, by its looks: `<|im_end|>`, `</s>`, `[/INST]`.
fn control(text: &str) -> Option<usize> {
    let close = match text.as_bytes().first()? {
        b'<' => '>',
        b'[' => ']',
        _ => return None,
    };
    let end = text.find(close)?;
    let inner = &text[1..end];
    let fits = !inner.is_empty() && end < 64 && !inner.contains(|c: char| c.is_whitespace() || c == '<' || c == '[');
    let upper = |c: char| c.is_ascii_uppercase() || c == '_' || c == '/';
    (fits && (close == '>' || inner.chars().all(upper))).then_some(end + 1)
}

/// The bytes that both begin with.
fn common_prefix(left: &str, right: &str) -> usize {
    let same = left.bytes().zip(right.bytes()).take_while(|(left, right)| left == right).count();
    left.floor_char_boundary(same)
}

/// The bytes that both end with.
fn common_suffix(left: &str, right: &str) -> usize {
    let same = left.bytes().rev().zip(right.bytes().rev()).take_while(|(left, right)| left == right).count();
    left.len() - left.ceil_char_boundary(left.len() - same)
}

/// The bytes that both begin with, no control token taken apart.
fn aligned_prefix(left: &str, right: &str) -> usize {
    let same = common_prefix(left, right);
    let cut = |text: &str| {
        text[..same].rfind(['<', '[']).filter(|&at| control(&text[at..]).is_some_and(|length| at + length > same))
    };
    cut(left).into_iter().chain(cut(right)).min().unwrap_or(same)
}

/// The bytes that both end with, no control token taken apart.
fn aligned_suffix(left: &str, right: &str) -> usize {
    let same = common_suffix(left, right);
    let cut = |text: &str| {
        let from = text.len() - same;
        let at = text[..from].rfind(['<', '['])?;
        let end = at + control(&text[at..])?;
        (end > from).then(|| text.len() - end)
    };
    cut(left).into_iter().chain(cut(right)).min().unwrap_or(same)
}
