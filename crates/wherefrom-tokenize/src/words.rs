//! Words that other programs write beside a row's text: a word with a meaning is read, refused, or said to be passed over.

use wherefrom_vocabulary::ordered::{Json, Object};

use crate::ids::{BESIDE, MASKS, PACKED};
use crate::turns::GIVEN;

/// Beside any row: how much it counts, and what is no text.
const ANYWHERE: [&str; 8] = ["weight", "sample_weight", "images", "image", "audio", "audios", "videos", "video"];
/// Beside a prompt: more of what is given, and preferences.
const PROMPTS: [&str; 7] = ["input", "context", "functions", "chosen", "rejected", "label", "suffix"];
/// Beside a conversation.
const TURNS: [&str; 4] = ["functions", "chosen", "rejected", "label"];
/// Beside a text that is no list of tokens.
const TOKENS: [&str; 3] = ["attention_mask", "labels", "loss_mask"];

/// Which shape a row has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Text,
    Prompt,
    Turns,
    Ids,
}

/// Whether a column of this name has a meaning here, though it is no role.
pub(crate) fn known(key: &str) -> bool {
    let lists: [&[&str]; 9] = [&ANYWHERE, &PROMPTS, &TURNS, &TOKENS, &GIVEN, &BESIDE, &MASKS, &PACKED, &OTHERS];
    lists.iter().any(|list| list.contains(&key))
}

/// Read, or refused, where they matter.
const OTHERS: [&str; 7] = ["conversations", "instruction", "output", "response", "system", "system_prompt", "history"];

/// The known words of a row of `shape` that say something and are not read; `read` are its roles.
pub(crate) fn unread(map: &Object, shape: Shape, read: &[&str]) -> Vec<String> {
    let own: [&[&str]; 3] = match shape {
        Shape::Text => [&ANYWHERE, &TOKENS, &[]],
        Shape::Prompt => [&ANYWHERE, &TOKENS, &PROMPTS],
        Shape::Turns => [&ANYWHERE, &TOKENS, &TURNS],
        Shape::Ids => [&ANYWHERE, &[], &[]],
    };
    let given: &[&str] = if shape == Shape::Prompt { &GIVEN } else { &[] };
    let words = own.into_iter().flatten().chain(given).filter(|word| !read.contains(*word));
    let says = |word: &&&str| map.get(**word).is_some_and(|value| !value.is_empty() && !says_nothing(word, value));
    words.filter(says).map(|word| word.to_string()).collect()
}

/// A weight of 1, and a label that is not the false of a pair's worse half.
fn says_nothing(word: &str, value: &Json) -> bool {
    match word {
        "weight" | "sample_weight" => value.as_f64() == Some(1.0),
        "label" => value.as_bool() != Some(false),
        "labels" | "attention_mask" | "loss_mask" => value.as_array().is_none(),
        _ => false,
    }
}

/// What programs call a role otherwise.
const CALLED: [(&str, &[&str]); 3] = [
    ("text", &["content", "body", "document", "passage", "article", "sentence", "raw_content"]),
    ("prompt", &["question", "query", "instruction", "input"]),
    ("completion", &["answer", "response", "output", "target", "continuation", "reply", "answers"]),
];

/// The column of `keys` that other programs have for `role`.
pub(crate) fn called(role: &str, mut has: impl FnMut(&str) -> bool) -> Option<&'static str> {
    let (_, names) = CALLED.iter().find(|(known, _)| *known == role)?;
    names.iter().copied().find(|name| has(name))
}

/// Whether a column may have been meant for one of `roles`, or says the same elsewhere: a refusal names it.
pub(crate) fn resembles<'a>(key: &str, roles: impl IntoIterator<Item = &'a str>) -> bool {
    roles.into_iter().any(|role| near(role, [key]).is_some()) || CALLED.iter().any(|(_, names)| names.contains(&key))
}

/// What to do about a column that is called otherwise than `role`, which has the column `name`: whoever named that column has
/// misspelt it.
pub(crate) fn meant(role: &str, name: &str, found: &str) -> String {
    if name != role {
        return format!("did you mean columns = {{ {role} = \"{found}\" }}?");
    }
    format!("did you mean `{name}`? rename the key, or set columns = {{ {role} = \"{found}\" }}")
}

/// The column of `keys` that `role` may have been meant by.
pub(crate) fn near<'a>(role: &str, keys: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |word: &str| word.to_lowercase().replace(['-', '_', ' '], "");
    let meant = plain(role);
    let near = |key: &&str| {
        let key = plain(key);
        let letters = |word: &str| {
            let mut letters: Vec<char> = word.chars().collect();
            letters.sort_unstable();
            letters
        };
        // Of a short word only two letters that changed places: `txet`, and not `test`.
        let close = strsim::damerau_levenshtein(&key, &meant) == 1
            && (meant.len() > 4 || meant.len() == 4 && letters(&key) == letters(&meant));
        key == meant || key.trim_end_matches('s') == meant.trim_end_matches('s') || close
    };
    keys.into_iter().filter(|key| *key != role).find(near)
}
