//! A Hugging Face tokenizer, as far as training and generation need it.

use tokenizers::Tokenizer;

/// Names of the token that ends a text, the first that is known wins.
pub(crate) const END: &[&str] = &["<|eos|>", "</s>", "<|endoftext|>"];
/// Names of the token that begins a text.
pub(crate) const BEGIN: &[&str] = &["<|bos|>", "<s>", "<|endoftext|>"];
/// Names of the token that fills a batch up.
pub(crate) const PAD: &[&str] = &["<|pad|>", "<pad>"];

/// The id of the first name that the tokenizer knows.
pub(crate) fn special(tokenizer: &Tokenizer, names: &[&str]) -> Option<u32> {
    names.iter().find_map(|name| tokenizer.token_to_id(name))
}
