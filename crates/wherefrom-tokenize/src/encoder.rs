//! A Hugging Face tokenizer, and the special tokens that its post-processor puts around a text.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::Result;
use tokenizers::Tokenizer;
use wherefrom_artifact::bad_input;

/// Short texts of which at least one gives a token with any tokenizer in use.
const PROBES: [&str; 4] = ["a", "0", ".", "的"];

/// Text to tokens without special tokens, which `prefix` and `suffix` hold.
pub(crate) struct Encoder {
    tokenizer: Tokenizer,
    /// Special tokens before a text.
    pub(crate) prefix: Vec<u32>,
    /// Special tokens after a text.
    pub(crate) suffix: Vec<u32>,
}

impl Encoder {
    /// Reads a `tokenizer.json`; its own truncation and padding are left out.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut tokenizer = load(path)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| refuse(path, &error))?;
        let Some((prefix, suffix)) = specials(&tokenizer) else {
            return Err(bad_input(format!(
                "{}: cannot tell which special tokens its post-processor puts around a text; give rows of `input_ids`",
                path.display()
            )));
        };
        Ok(Self { tokenizer, prefix, suffix })
    }

    /// The tokens of `text` alone.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        encode(&self.tokenizer, text, false).map_err(|error| {
            format!("the tokenizer cannot encode this text ({error}); mend the text or remove the row")
        })
    }

    /// The tokens of `text` alone, each with the byte of `text` where it begins.
    pub(crate) fn encode_with_starts(&self, text: &str) -> Result<Vec<(u32, usize)>, String> {
        let encoding = self.tokenizer.encode(text, false).map_err(|error| {
            format!("the tokenizer cannot encode this text ({error}); mend the text or remove the row")
        })?;
        Ok(encoding.get_ids().iter().copied().zip(encoding.get_offsets().iter().map(|offset| offset.0)).collect())
    }

    /// The text of `ids`, special tokens left out.
    pub(crate) fn decode(&self, ids: &[u32]) -> Result<String, String> {
        self.tokenizer
            .decode(ids, true)
            .map_err(|error| format!("the tokenizer cannot decode `input_ids` ({error}); check whose tokens these are"))
    }
}

/// Largest token id of a `tokenizer.json`, plus 1: the smallest embedding it needs.
pub fn vocabulary_size(tokenizer: &Path) -> Result<usize> {
    let largest = load(tokenizer)?.get_vocab(true).into_values().max();
    let largest = largest.ok_or_else(|| bad_input(format!("{}: its vocabulary is empty", tokenizer.display())))?;
    Ok(largest as usize + 1)
}

fn load(path: &Path) -> Result<Tokenizer> {
    let bytes = std::fs::read(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            bad_input(format!("{}: there is no such file; give the path of a tokenizer.json", path.display()))
        }
        _ => bad_input(format!("{}: cannot be read ({error}); give the path of a tokenizer.json", path.display())),
    })?;
    Tokenizer::from_bytes(bytes).map_err(|error| refuse(path, &error))
}

fn refuse(path: &Path, error: &dyn std::fmt::Display) -> anyhow::Error {
    bad_input(format!(
        "{}: is not a tokenizer that can be read ({error}); give a tokenizer.json as `tokenizers` writes it",
        path.display()
    ))
}

fn encode(tokenizer: &Tokenizer, text: &str, add_special_tokens: bool) -> tokenizers::Result<Vec<u32>> {
    Ok(tokenizer.encode_fast(text, add_special_tokens)?.get_ids().to_vec())
}

/// What encoding with special tokens adds on both sides of what encoding without them gives.
fn specials(tokenizer: &Tokenizer) -> Option<(Vec<u32>, Vec<u32>)> {
    for probe in PROBES {
        let (Ok(plain), Ok(full)) = (encode(tokenizer, probe, false), encode(tokenizer, probe, true)) else { continue };
        if !plain.is_empty()
            && let Some(start) = full.windows(plain.len()).position(|window| window == plain)
        {
            return Some((full[..start].to_vec(), full[start + plain.len()..].to_vec()));
        }
    }
    // No probe is in the vocabulary: sure only if nothing is added to nothing.
    encode(tokenizer, "", true).is_ok_and(|full| full.is_empty()).then(Default::default)
}
