//! The tokenizer itself.

use std::panic::catch_unwind;
use std::path::Path;

use anyhow::Result;
use tokenizers::Tokenizer;
use wherefrom_artifact::bad_input;

use crate::beside::{Beside, Token, bytes};

/// Bytes of the largest tokenizer.json: those in use have some 40 megabytes.
const LARGEST: u64 = 1 << 30;

/// Reads a `tokenizer.json`, and adds the tokens that the files beside it name and it lacks.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a file that cannot be read, is no tokenizer, or disagrees with another about the
/// id of a token.
pub fn open(path: &Path) -> Result<Tokenizer> {
    let bytes =
        bytes(path, LARGEST).map_err(|error| bad_input(format!("{error:#}; give the path of a tokenizer.json")))?;
    let refuse = |error: &dyn std::fmt::Display| {
        bad_input(format!(
            "{}: is not a tokenizer that can be read ({error}); give a tokenizer.json as `tokenizers` writes it",
            path.display()
        ))
    };
    // Some malformed files make the parser panic.
    let read = catch_unwind(|| Tokenizer::from_bytes(bytes));
    let mut tokenizer = match read {
        Ok(read) => read.map_err(|error| refuse(&error))?,
        Err(_) => return Err(refuse(&"the parser gave up")),
    };
    for token in Beside::of(path)?.tokens {
        add(&mut tokenizer, &token, path)?;
    }
    Ok(tokenizer)
}

/// Largest token id of a `tokenizer.json` and what stands beside it, plus 1: the smallest embedding it needs.
///
/// # Errors
/// As [`open`], and for an empty vocabulary.
pub fn size(path: &Path) -> Result<usize> {
    let largest = open(path)?.get_vocab(true).into_values().max();
    let largest = largest.ok_or_else(|| bad_input(format!("{}: its vocabulary is empty", path.display())))?;
    Ok(largest as usize + 1)
}

fn add(tokenizer: &mut Tokenizer, token: &Token, path: &Path) -> Result<()> {
    tokenizer.add_tokens(&[token.added()]);
    match (token.id, tokenizer.token_to_id(&token.content)) {
        (Some(given), Some(id)) if given != id => Err(bad_input(format!(
            "{}: the token `{}` is {id} by it, and {given} by the file beside it that lists added tokens; mend one of them",
            path.display(),
            token.content
        ))),
        _ => Ok(()),
    }
}
