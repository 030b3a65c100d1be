//! A Hugging Face tokenizer, as far as training and generation need it.

use std::path::Path;

use anyhow::Result;
use tokenizers::Tokenizer;
use wherefrom_artifact::bad_input;

/// Names of the token that ends a text, the first that is known wins.
pub(crate) const END: &[&str] = &["<|eos|>", "</s>", "<|endoftext|>"];
/// Names of the token that begins a text.
pub(crate) const BEGIN: &[&str] = &["<|bos|>", "<s>", "<|endoftext|>"];
/// Names of the token that fills a batch up.
pub(crate) const PAD: &[&str] = &["<|pad|>", "<pad>"];

/// Reads a `tokenizer.json`.
pub(crate) fn load(path: &Path) -> Result<Tokenizer> {
    let shown = path.display();
    let bytes = std::fs::read(path)
        .map_err(|error| bad_input(format!("{shown}: cannot be read ({error}); give the path of a tokenizer.json")))?;
    Tokenizer::from_bytes(bytes).map_err(|error| {
        bad_input(format!(
            "{shown}: is not a tokenizer that can be read ({error}); give a tokenizer.json as `tokenizers` writes it"
        ))
    })
}

/// The id of the first name that the tokenizer knows.
pub(crate) fn special(tokenizer: &Tokenizer, names: &[&str]) -> Option<u32> {
    names.iter().find_map(|name| tokenizer.token_to_id(name))
}
