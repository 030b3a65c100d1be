//! How many windows and tokens a corpus will have, told from pieces of it: what a plan knows of a step that has not run.

use anyhow::Result;
use serde_json::Value;
use wherefrom_vocabulary::{Chat, Encoder};

use crate::corpus::{Corpus, Place};
use crate::refusals::Refusals;
use crate::row::Names;
use crate::tokenize::{Config, Inputs, Maker, tokenised};
use crate::window::Windows;

/// Bytes that are encoded: some tenths of a second.
const BYTES: f64 = (1 << 20) as f64;
/// Pieces of a larger corpus, from its beginning to its end.
const PIECES: u32 = 16;
/// Rows read at once.
const CHUNK: usize = 64;
/// Bytes of a token where nothing can encode them.
const BYTES_A_TOKEN: f64 = 4.0;

/// What a corpus will have.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Estimate {
    /// Windows.
    pub windows: f64,
    /// Their tokens.
    pub tokens: f64,
    /// Whether the tokenizer was there; otherwise a token is taken to have four bytes.
    pub encoded: bool,
}

/// Rows that a plan looks at.
const LOOKED: usize = 64;

/// Whether a step that tokenises `inputs` with these knobs will refuse the first rows.
///
/// # Errors
/// As that step has them.
pub fn check_first_rows(knobs: &Value, inputs: &Inputs) -> Result<()> {
    let config: Config = serde_json::from_value(knobs.clone())?;
    let corpus = Corpus::open(&inputs.corpus, Names::new(&config.column, &config.columns)?)?.every(config.every);
    let encoder = inputs.tokenizer.as_deref().map(Encoder::open).transpose()?;
    let day = config.day()?;
    let chat = inputs.chat_template.as_deref().map(|path| Chat::open(path, day)).transpose()?;
    let windows = Windows::new(&config, encoder.as_ref(), chat.as_ref());
    let mut rows = corpus.rows(Place::default());
    let chunk = rows.chunk(LOOKED)?;
    let mut refusals = Refusals::default();
    for (raw, made) in chunk.iter().zip(tokenised(&corpus, &windows, &chunk)) {
        if let Err(what) = made {
            refusals.add(&corpus.shown(raw.place), &what);
        }
    }
    refusals.check()?;
    // A column may be in later rows alone.
    if rows.chunk(1)?.is_empty() { corpus.check_named() } else { Ok(()) }
}

/// What a step that tokenises `inputs` with these knobs will make. A corpus of up to a mebibyte is counted; of a larger one
/// pieces are.
///
/// # Errors
/// A corpus that cannot be read.
pub fn estimate(knobs: &Value, inputs: &Inputs) -> Result<Estimate> {
    let config: Config = serde_json::from_value(knobs.clone())?;
    let corpus = Corpus::open(&inputs.corpus, Names::new(&config.column, &config.columns)?)?.every(config.every);
    let encoder = inputs.tokenizer.as_deref().and_then(|path| Encoder::open(path).ok());
    let day = config.day()?;
    let chat = inputs.chat_template.as_deref().and_then(|path| Chat::open(path, day).ok());
    let windows = Windows::new(&config, encoder.as_ref(), chat.as_ref());

    let all = corpus.unpacked_bytes()?;
    let whole = all <= BYTES;
    let places = if whole { vec![Place::default()] } else { corpus.places(PIECES)? };
    let piece = if whole { f64::INFINITY } else { BYTES / places.len() as f64 };
    let mut found = Estimate { encoded: encoder.is_some(), ..Estimate::default() };
    let (mut read, mut maker) = (0.0, Maker::new(&windows));
    for place in places {
        let (mut rows, mut held) = (corpus.rows(place), 0.0);
        while held < piece {
            let chunk = rows.chunk(CHUNK)?;
            if chunk.is_empty() {
                break;
            }
            for (raw, made) in chunk.iter().zip(tokenised(&corpus, &windows, &chunk)) {
                let bytes = raw.raw.bytes() as f64;
                held += bytes;
                // A bad row is the step's to refuse.
                if made.and_then(|made| maker.add(made)).is_err() && encoder.is_none() {
                    found.windows += 1.0;
                    found.tokens += (bytes / BYTES_A_TOKEN).min(config.max_tokens as f64);
                }
            }
        }
        read += held;
    }
    maker.finish();
    found.windows += maker.ready.len() as f64;
    found.tokens += maker.ready.iter().map(|example| example.input_ids.len() as f64).sum::<f64>();
    let share = if whole || read == 0.0 { 1.0 } else { all / config.every as f64 / read };
    Ok(Estimate { windows: (share * found.windows).round(), tokens: (share * found.tokens).round(), ..found })
}
