//! Rows of turns: `messages`, ShareGPT's `conversations`, a `prompt` and `completion` that are turns, and preferences among
//! conversations.
//!
//! A turn keeps every field in its order: what they mean is the template's.

use wherefrom_vocabulary::ordered::{Json, Object};
use wherefrom_vocabulary::{Conversation, role, turn};

use crate::ids::list;

/// What a template is given beside the turns, by the names that templates have for it.
pub(crate) const GIVEN: [&str; 3] = ["tools", "documents", "chat_template_kwargs"];
/// Fields of a turn that say whether it is learnt from: `weight` (0 or 1) and true or false.
const LEARNT: [&str; 4] = ["weight", "train", "training", "loss"];
/// Fields of a turn that stand in for what is said.
const INSTEAD: [&str; 5] = ["tool_calls", "function_call", "reasoning_content", "reasoning", "thinking"];
/// What the system says, beside the turns.
const SYSTEM: [&str; 2] = ["system", "system_prompt"];
/// The roles of ShareGPT.
const SHARE_GPT: [(&str, &str); 5] =
    [("human", "user"), ("user", "user"), ("gpt", "assistant"), ("assistant", "assistant"), ("system", "system")];

/// The conversation under `key`, `messages` or `conversations`.
///
/// # Errors
/// What is wrong and what to do.
pub(crate) fn conversation(map: &Object, key: &str) -> Result<Conversation, String> {
    let mut conversation = begun(map)?;
    messages(map, key, false, &mut conversation)?;
    Ok(conversation)
}

/// The turns of a prompt, all given, and those of a completion.
pub(crate) fn continued(map: &Object, prompt: &str, completion: &str) -> Result<Conversation, String> {
    let mut conversation = begun(map)?;
    messages(map, prompt, true, &mut conversation)?;
    if map.contains_key(completion) {
        messages(map, completion, false, &mut conversation)?;
    }
    Ok(conversation)
}

/// The conversations of a preference, the chosen one first. The turns of the prompt and those that both begin with are given. A
/// prompt that is a text is what a user asks; the conversations may begin with it.
///
/// # Errors
/// What is wrong and what to do.
pub(crate) fn pair(map: &Object, [prompt, chosen, rejected]: [&str; 3]) -> Result<[Conversation; 2], String> {
    let side = |key: &str| {
        let mut conversation = begun(map)?;
        let before = conversation.messages.len();
        match map.get(prompt) {
            None => {}
            Some(Json::String(asked)) => {
                messages(map, key, false, &mut conversation)?;
                let first = conversation.messages[before..].iter().find(|message| role(message) != "system");
                match first.filter(|first| role(first) == "user") {
                    None => {
                        conversation.messages.insert(before, turn("user", asked.clone()));
                        conversation.unlearnt.insert(before, true);
                    }
                    Some(first) if first.get("content").and_then(Json::as_str) == Some(asked) => {}
                    Some(_) => {
                        return Err(format!(
                            "`{key}` begins with a turn of the user that is not the `{prompt}`; which is meant is unclear: keep one"
                        ));
                    }
                }
                return Ok(conversation);
            }
            Some(_) => messages(map, prompt, true, &mut conversation)?,
        }
        messages(map, key, false, &mut conversation)?;
        Ok(conversation)
    };
    let mut sides = [side(chosen)?, side(rejected)?];
    let [own, other] = &sides;
    let shared = own.messages.iter().zip(&other.messages).take_while(|(own, other)| own == other).count();
    for (key, side) in [chosen, rejected].into_iter().zip(&mut sides) {
        side.unlearnt[..shared].fill(true);
        let answers = side.messages.iter().zip(&side.unlearnt).any(|(turn, given)| role(turn) == "assistant" && !given);
        if !answers {
            return Err(format!(
                "`{key}` has no turn of the assistant after what the two share, so there is nothing to prefer; give it an answer"
            ));
        }
    }
    Ok(sides)
}

fn messages(map: &Object, key: &str, given: bool, conversation: &mut Conversation) -> Result<(), String> {
    let items = list(map, key)?;
    if items.is_empty() {
        return Err(format!("`{key}` is empty; give it turns: {{role, content}}"));
    }
    for (index, item) in items.iter().enumerate() {
        let (message, unlearnt) = message(item, &format!("{key}[{index}]"))?;
        conversation.push((message, unlearnt || given));
    }
    let systems = conversation.messages.iter().filter(|message| role(message) == "system").count();
    match SYSTEM.into_iter().find(|system| map.get(*system).is_some_and(|value| !value.is_empty())) {
        Some(system) if systems > 1 => Err(format!("the row has a `{system}` and a turn of the role system; keep one")),
        _ => Ok(()),
    }
}

/// A turn, and whether it is to be left out of the targets.
fn message(item: &Json, place: &str) -> Result<(Object, bool), String> {
    let Json::Object(fields) = item else {
        return Err(format!("`{place}` is {}; a turn is {{role, content}}", item.name()));
    };
    let mut fields = if fields.contains_key("from") { share_gpt(fields, place)? } else { fields.clone() };
    // Null fields are those that other turns have, but for content, which is null where tools are called.
    fields.retain(|field, value| field == "content" || !value.is_null());
    match fields.get("role") {
        Some(Json::String(_)) => {}
        Some(other) => return Err(format!("`{place}.role` is {}; make it a string", other.name())),
        None => return Err(format!("`{place}` has no `role`; a turn is {{role, content}}")),
    }
    let instead = INSTEAD.iter().any(|field| fields.get(*field).is_some_and(|value| !value.is_empty()));
    match fields.get("content") {
        Some(Json::String(_)) => {}
        Some(Json::Null) if instead => {}
        None if instead => {}
        Some(Json::Array(parts)) => parts
            .iter()
            .enumerate()
            .try_for_each(|(part, item)| text_part(item).map_err(|what| format!("`{place}.content[{part}]` {what}")))?,
        Some(other) => return Err(format!("`{place}.content` is {}; make it a string", other.name())),
        None => return Err(format!("`{place}` has no `content`; a turn is {{role, content}}")),
    }
    let mut unlearnt = false;
    for field in LEARNT {
        unlearnt |= match fields.get(field) {
            None => false,
            Some(value) => match (value.as_bool(), value.as_f64()) {
                (Some(learnt), _) => !learnt,
                (_, Some(0.0)) => true,
                (_, Some(1.0)) => false,
                _ => {
                    return Err(format!(
                        "`{place}.{field}` is {}; make it 0 (the turn is given) or 1 (it is predicted)",
                        value.shown()
                    ));
                }
            },
        };
    }
    Ok((fields, unlearnt))
}

/// Refuses a part of a turn that is no text.
fn text_part(part: &Json) -> Result<(), String> {
    const PARTS: &str = "a part is {\"type\": \"text\", \"text\": …}";
    let Json::Object(fields) = part else { return Err(format!("is {}; {PARTS}", part.name())) };
    match (fields.get("type").and_then(Json::as_str), fields.get("text")) {
        (Some("text"), Some(Json::String(_))) => Ok(()),
        (Some("text"), _) => Err(format!("has no `text` that is a string; {PARTS}")),
        (Some(other), _) => {
            Err(format!("is of the type `{other}`, and only text is attributed; {PARTS}: leave the row out"))
        }
        (None, _) => Err(format!("has no `type`; {PARTS}")),
    }
}

/// `{from, value}` as `{role, content}`, other fields after them.
fn share_gpt(fields: &Object, place: &str) -> Result<Object, String> {
    let from = fields["from"].as_str().unwrap_or_default();
    let Some((_, role)) = SHARE_GPT.iter().find(|(name, _)| *name == from) else {
        let known: Vec<_> = SHARE_GPT.iter().map(|(name, _)| *name).collect();
        return Err(format!(
            "`{place}.from` is `{from}`, which is none of {}; give `messages` with the role that the chat template has for it",
            known.join(", ")
        ));
    };
    let mut turn = turn(role, String::new());
    let value = fields.get("value").ok_or_else(|| format!("`{place}` has no `value`; a turn is {{from, value}}"))?;
    turn.insert("content".into(), value.clone());
    let others = fields.iter().filter(|(field, _)| !["from", "value"].contains(&&field[..]));
    turn.extend(others.map(|(field, value)| (field.clone(), value.clone())));
    Ok(turn)
}

/// What stands beside the turns for the template; `tools` may be JSON in a string, and none where it is empty.
fn given(map: &Object) -> Result<Object, String> {
    let mut given = Object::new();
    for key in ["tools", "documents"] {
        let Some(value) = map.get(key).filter(|value| !value.is_empty()) else { continue };
        let unread =
            |what: &dyn std::fmt::Display| format!("`{key}` is {what}; make it a list, as the chat template takes it");
        let parsed = |value: &Json| match value {
            Json::String(text) => serde_json::from_str(text).map_err(|error| unread(&format!("no JSON ({error})"))),
            other => Ok(other.clone()),
        };
        match parsed(value)? {
            Json::Array(items) if items.is_empty() => {}
            Json::Array(items) => {
                given.insert(key.into(), Json::Array(items.iter().map(parsed).collect::<Result<_, _>>()?));
            }
            other => return Err(unread(&other.name())),
        }
    }
    match map.get("chat_template_kwargs") {
        None => {}
        Some(Json::Object(entries)) => given.extend(entries.clone()),
        Some(other) => return Err(format!("`chat_template_kwargs` is {}; make it an object", other.name())),
    }
    Ok(given)
}

/// The system's text of a row, which begins its turns, and what stands beside them.
fn begun(map: &Object) -> Result<Conversation, String> {
    let mut conversation = Conversation { given: given(map)?, ..Conversation::default() };
    for key in SYSTEM {
        match map.get(key) {
            None => {}
            Some(value) if value.is_empty() => {}
            Some(Json::String(text)) => conversation.push((turn("system", text.clone()), false)),
            Some(other) => return Err(format!("`{key}` is {}; make it a string", other.name())),
        }
    }
    Ok(conversation)
}
