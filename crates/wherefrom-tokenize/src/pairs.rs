//! Rows of preferences: of two answers to one prompt the one that was chosen, and the one that was rejected.

use wherefrom_vocabulary::Conversation;
use wherefrom_vocabulary::ordered::{Json, Object};

use crate::turns;

/// Two answers to one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pair {
    /// Of texts.
    Texts {
        /// The row's `prompt`, or what both begin with.
        prompt: String,
        /// Whether the row has a `prompt`.
        asked: bool,
        chosen: String,
        rejected: String,
    },
    /// Of conversations, the chosen one first; the turns that they share are given.
    Turns([Conversation; 2]),
}

impl Pair {
    /// Reads the columns `prompt`, which may be missing, `chosen` and `rejected`.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub(crate) fn read(map: &Object, [prompt, chosen, rejected]: [&str; 3]) -> Result<Self, String> {
        if map[chosen] == map[rejected] {
            return Err(format!("`{chosen}` and `{rejected}` are the same, so nothing is preferred; remove the row"));
        }
        match (&map[chosen], &map[rejected], map.get(prompt)) {
            (Json::String(own), Json::String(other), Some(Json::String(asked))) => {
                Ok(Self::Texts { prompt: asked.clone(), asked: true, chosen: own.clone(), rejected: other.clone() })
            }
            (Json::String(own), Json::String(other), None) => {
                let (shared, chosen, rejected) = split(own, other);
                Ok(Self::Texts {
                    prompt: shared.into(),
                    asked: false,
                    chosen: chosen.into(),
                    rejected: rejected.into(),
                })
            }
            (Json::Array(_), Json::Array(_), _) => Ok(Self::Turns(turns::pair(map, [prompt, chosen, rejected])?)),
            (Json::String(_), Json::String(_), Some(other)) => {
                Err(format!("`{prompt}` is {}, and `{chosen}` a string; make both texts, or all turns", other.name()))
            }
            (own, other, _) => Err(format!(
                "`{chosen}` is {} and `{rejected}` {}; make both texts, or both lists of turns",
                own.name(),
                other.name()
            )),
        }
    }
}

/// What both texts begin with, up to the white space before the word in which they part, and the rest of each.
fn split<'a>(own: &'a str, other: &'a str) -> (&'a str, &'a str, &'a str) {
    let same = own.bytes().zip(other.bytes()).take_while(|(left, right)| left == right).count();
    let shared = &own[..own.floor_char_boundary(same)];
    let end = shared.rfind(char::is_whitespace).unwrap_or(0);
    (&own[..end], &own[end..], &other[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_part_before_a_word() {
        assert_eq!(split("Q: who? A: yes", "Q: who? A: yellow"), ("Q: who? A:", " yes", " yellow"));
        assert_eq!(split("Q: who? A: yes", "Q: who? A: yes, sir"), ("Q: who? A:", " yes", " yes, sir"));
        assert_eq!(split("yes", "no"), ("", "yes", "no"));
        assert_eq!(split("a é", "a è"), ("a", " é", " è"));
    }
}
