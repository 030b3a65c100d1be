//! The tokenizer itself.

use std::path::Path;

use anyhow::Result;
use tokenizers::Tokenizer;
use wherefrom_artifact::{bad_input, foreign};

use crate::beside::{Beside, Token};
use crate::file;

/// Reads a `tokenizer.json`, and adds the tokens that the files beside it name and it lacks.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a file that cannot be read, is no tokenizer, or disagrees with another about the
/// id of a token.
pub fn open(path: &Path) -> Result<Tokenizer> {
    Ok(open_beside(path)?.0)
}

/// The tokenizer as [`open`] reads it, and what the files beside it say.
///
/// # Errors
/// As [`open`].
pub fn open_beside(path: &Path) -> Result<(Tokenizer, Beside)> {
    let mut tokenizer = file::read(path)?;
    let beside = Beside::of(path)?;
    // A token is normalized as it is added.
    foreign(path, || beside.tokens.iter().try_for_each(|token| add(&mut tokenizer, token, path)))?;
    Ok((tokenizer, beside))
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
