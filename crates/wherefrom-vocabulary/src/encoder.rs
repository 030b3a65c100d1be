//! A Hugging Face tokenizer: texts to tokens that know their bytes, and the special tokens around a text.

use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use tokenizers::models::ModelWrapper;
use tokenizers::{NormalizedString, Normalizer as _, PostProcessorWrapper, Tokenizer};
use wherefrom_artifact::{bad_input, caught, foreign};

/// Short texts of which at least one gives a token with any tokenizer in use.
const PROBES: [&str; 4] = ["a", "0", ".", "的"];
/// What a text begins after where nothing else is before it and no file beside the tokenizer names its beginning or end of
/// text: the first special token of these that it has.
const STARTS: [&str; 12] = [
    "<|begin_of_text|>",
    "<|startoftext|>",
    "<s>",
    "<bos>",
    "<|bos|>",
    "[BOS]",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "[EOS]",
];
/// Bytes of the longest text that is encoded. A tokenizer takes 120 to 190 bytes of memory for each, up to 1.6 GB in all.
const LONGEST_TEXT: usize = 8 << 20;
/// Characters on either side of a boundary that a normalizer may make one of; Unicode's limit is 30 marks.
const MERGED: usize = 32;

/// Text to tokens without special tokens, which `prefix` and `suffix` hold.
pub struct Encoder {
    tokenizer: Tokenizer,
    /// Its file.
    shown: String,
    /// Special tokens before a text.
    pub prefix: Vec<u32>,
    /// Special tokens after a text.
    pub suffix: Vec<u32>,
    /// What a completion begins after that has neither a prompt nor a prefix before it.
    pub start: Option<u32>,
    /// The share of merges that the file says to leave out at random; none are.
    pub dropout: Option<f32>,
}

/// The tokens of a text of which parts are measured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Ids.
    pub ids: Vec<u32>,
    /// Byte of the text where each begins.
    pub starts: Vec<usize>,
    /// Which of them stand for something that is measured.
    pub targets: Vec<bool>,
}

impl Encoder {
    /// Reads a `tokenizer.json`; its own truncation, padding and dropout are left out.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] with the file's name.
    pub fn open(path: &Path) -> Result<Self> {
        let (mut tokenizer, beside) = crate::open_beside(path)?;
        let dropout = without_dropout(&mut tokenizer);
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| crate::refuse(path, &error))?;
        let Some((prefix, suffix)) = foreign(path, || Ok(specials(&tokenizer)))? else {
            return Err(bad_input(format!(
                "{}: cannot tell which special tokens its post-processor puts around a text; give rows of `input_ids`",
                path.display()
            )));
        };
        // What is left for it to do is to take white space off the bytes that a token stands for.
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        let named = beside.start().and_then(|name| tokenizer.token_to_id(name));
        let start = named.or_else(|| start(&tokenizer)).or(suffix.last().copied());
        Ok(Self { tokenizer, shown: path.display().to_string(), prefix, suffix, start, dropout })
    }

    /// The tokens of `text` alone.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        bounded(text)?;
        self.guarded(|| encode(&self.tokenizer, text, false))
    }

    /// The tokens of `text`, encoded once, and which of them are targets where only parts of it are measured: those that
    /// stand for a byte of `measured`, be it with others. The ranges ascend and lie at characters.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn encode_measured(&self, text: &str, measured: &[Range<usize>]) -> Result<Tokens, String> {
        if text.is_empty() {
            return Ok(Tokens::default());
        }
        bounded(text)?;
        let (encoding, measured) = self.guarded(|| {
            let measured = measured.iter().filter(|part| !part.is_empty());
            let measured: Vec<_> = measured.map(|part| self.unmerged(text, part.start)..part.end).collect();
            Ok((self.tokenizer.encode(text, false)?, measured))
        })?;
        // A token without bytes of its own counts with the byte where it stands.
        let holds = |&(start, end): &(usize, usize)| {
            measured.iter().any(|part| start < part.end && part.start < end.max(start + 1))
        };
        let spans = encoding.get_offsets();
        Ok(Tokens {
            ids: encoding.get_ids().to_vec(),
            starts: spans.iter().map(|span| span.0).collect(),
            targets: spans.iter().map(holds).collect(),
        })
    }

    /// `at`, or where before it the character begins that the normalizer makes of characters on both sides of `at`. The
    /// tokens of such a character claim the first of its bytes alone.
    fn unmerged(&self, text: &str, at: usize) -> usize {
        let (before, after) = text.split_at(at);
        let Some(normalizer) = self.tokenizer.get_normalizer() else { return at };
        if after.chars().next().is_none_or(|first| first.is_ascii()) {
            return at;
        }
        let near = before.char_indices().rev().take(MERGED).last().map_or(0, |(start, _)| start);
        let end = after.char_indices().nth(MERGED).map_or(text.len(), |(end, _)| at + end);
        let normalized = |part: &str| {
            let mut part = NormalizedString::from(part);
            normalizer.normalize(&mut part).is_ok().then(|| part.get().to_string())
        };
        let Some(whole) = normalized(&text[near..end]) else { return at };
        let apart = |cut: &usize| normalized(&text[near..*cut]).is_some_and(|left| whole.starts_with(&left));
        let cuts = before.char_indices().rev().take(MERGED).map(|(cut, _)| cut).filter(|&cut| cut > near || near == 0);
        // A normalizer that looks far beyond the boundary says nothing about it.
        std::iter::once(at).chain(cuts).find(apart).unwrap_or(at)
    }

    /// The text of `ids`, special tokens left out.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub fn decode(&self, ids: &[u32]) -> Result<String, String> {
        let decoded = caught(|| self.tokenizer.decode(ids, true).map_err(|error| error.to_string())).flatten();
        decoded.map_err(|what| {
            format!("the tokenizer {} cannot decode `input_ids` ({what}); check whose tokens these are", self.shown)
        })
    }

    /// What the tokenizer makes of a text, or why it makes nothing.
    fn guarded<T>(&self, encode: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
        let encoded = caught(|| encode().map_err(|error| error.to_string())).flatten();
        encoded.map_err(|what| {
            let shown = &self.shown;
            format!("the tokenizer {shown} cannot encode this text ({what}); mend the text or remove the row")
        })
    }
}

/// The tokens of a text, without special ones.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] with the file's name.
pub fn encode_with(tokenizer: &Path, text: &str) -> Result<Vec<u32>> {
    Encoder::open(tokenizer)?.encode(text).map_err(bad_input)
}

fn encode(tokenizer: &Tokenizer, text: &str, add_special_tokens: bool) -> tokenizers::Result<Vec<u32>> {
    Ok(tokenizer.encode_fast(text, add_special_tokens)?.get_ids().to_vec())
}

fn bounded(text: &str) -> Result<(), String> {
    if text.len() <= LONGEST_TEXT {
        return Ok(());
    }
    Err(format!(
        "the text has {} bytes, and a row may have {LONGEST_TEXT} ({} MiB); split the document into several rows",
        text.len(),
        LONGEST_TEXT >> 20
    ))
}

/// Turns the dropout of a BPE off, and says what it was: with it the tokens of a text are others each time.
fn without_dropout(tokenizer: &mut Tokenizer) -> Option<f32> {
    let ModelWrapper::BPE(model) = tokenizer.get_model() else { return None };
    let dropout = model.dropout.filter(|&dropout| dropout > 0.0)?;
    let mut model = model.clone();
    model.dropout = None;
    tokenizer.with_model(model);
    Some(dropout)
}

/// The special token that a text begins after where there is nothing else, if the tokenizer has a known one.
fn start(tokenizer: &Tokenizer) -> Option<u32> {
    let added = tokenizer.get_added_tokens_decoder();
    let special = |name: &&str| added.iter().find(|(_, token)| token.special && token.content == **name);
    STARTS.iter().find_map(special).map(|(&id, _)| id)
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
