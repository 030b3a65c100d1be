//! What each token says, in whole characters.

use serde::Serialize;
use tokenizers::Tokenizer;
use wherefrom_artifact::visible_after;

/// A text as the tokens have it, made safe to show.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Pieces {
    /// All of it.
    pub(crate) text: String,
    /// UTF-16 code units of `text` by token. 0: the token's bytes are the beginning of a character that a later token ends,
    /// and count there.
    pub(crate) lengths: Vec<usize>,
    /// The last character, as the tokens have it.
    #[serde(skip)]
    last: Option<char>,
}

impl Pieces {
    /// The text of `ids`. A character whose bytes are spread over tokens belongs to the last of them; bytes that make no
    /// character show as U+FFFD. Without a tokenizer each token is its number.
    pub(crate) fn new(tokenizer: Option<&Tokenizer>, ids: &[u32]) -> Self {
        let mut pieces = Self::default();
        let Some(tokenizer) = tokenizer else {
            ids.iter().for_each(|id| pieces.push(&format!("{id} ")));
            return pieces;
        };
        let mut stream = tokenizer.decode_stream(false);
        for &id in ids {
            match stream.step(id) {
                Ok(Some(text)) => pieces.push(&text),
                Ok(None) => pieces.push(""),
                // The decoder changed what it had said before: begin anew with the token itself.
                Err(_) => {
                    stream = tokenizer.decode_stream(false);
                    let alone = tokenizer.decode(&[id], false).unwrap_or_default();
                    pieces.push(if alone.is_empty() { "\u{fffd}" } else { &alone });
                }
            }
        }
        // A character that was begun and never ended.
        if pieces.lengths.last() == Some(&0) {
            pieces.lengths.pop();
            pieces.push("\u{fffd}");
        }
        pieces
    }

    fn push(&mut self, text: &str) {
        let shown = visible_after(self.last, text);
        self.last = text.chars().next_back().or(self.last);
        self.lengths.push(shown.encode_utf16().count());
        self.text += &shown;
    }
}
