//! The stage `tokenizer`: trains a byte-level BPE on the text of a corpus.
//!
//! reads   a corpus
//! writes  tokenizer

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Result, anyhow};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};
use wherefrom_artifact::{Draft, Kind, bad_input, write_atomically};
use wherefrom_stage::{About, Cost, Exec, File, Stage, Writes};
use wherefrom_vocabulary::Conversation;

use crate::corpus::{Corpus, Place, RawRow};
use crate::notes::{Noted, SKIPPED};
use crate::pairs::Pair;
use crate::row::{Content, Names, Row};
use crate::tokenize::{Untargeted, is_default, nothing_left};
use crate::window::{EMPTY, says_nothing};

/// Raised when the vocabulary of the same configuration and corpus changes.
pub const VERSION: u32 = 1;

/// The stage `tokenizer`.
pub static STAGE: Stage<Config> = Stage {
    about: About { files: &[File::Corpus], ..About::new("tokenizer", VERSION) },
    roles: &[],
    parse: serde_json::from_value,
    check: Config::check,
    writes: Writes::One(Kind::Tokenizer),
    makes_model: |_| None,
    cost: |_, _, _| Cost::new(Cost::ROWS, 1e6, 0.0),
    run: |config, given, exec, draft| run(config, &Inputs { corpus: given.required_file(File::Corpus)? }, exec, draft),
};

/// Padding, beginning and end; their ids are their places here.
const SPECIAL: [&str; 3] = ["<|pad|>", "<|bos|>", "<|eos|>"];
/// The special tokens and every byte.
const SMALLEST: usize = SPECIAL.len() + 256;
/// Four times the largest vocabulary in use.
const LARGEST: usize = 1 << 20;
/// Longest word that is trained on: the trainer's time grows with the square of it.
const LONGEST_WORD: usize = 1024;
/// Rows read at once.
const CHUNK: usize = 512;

/// What the vocabulary is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Number of tokens, special ones and the 256 bytes included; fewer where the corpus has too few pairs.
    pub vocabulary: usize,
    /// Column of the text: short for `columns = { text = … }`.
    #[serde(default = "crate::tokenize::text_column")]
    pub column: String,
    /// Columns by what they hold, as in the stage `tokenize`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, String>,
    /// What to do with a row that has nothing to predict: `refuse`, or `skip`, as in the stage `tokenize`.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(!skip_serializing_if)]
    pub untargeted: Untargeted,
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        if !(SMALLEST..=LARGEST).contains(&self.vocabulary) {
            return Err(bad_input(format!(
                "vocabulary = {} is out of range; set it between {SMALLEST} (256 bytes and {} special tokens) and {LARGEST}",
                self.vocabulary,
                SPECIAL.len()
            )));
        }
        if self.untargeted == Untargeted::Keep {
            return Err(bad_input(
                "untargeted = \"keep\" keeps prompts for a model to complete, and no model is here; write \"skip\" or remove it",
            ));
        }
        Names::new(&self.column, &self.columns).map(drop)
    }
}

/// Where the text comes from.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The corpus: a file, a folder or a glob.
    pub corpus: PathBuf,
}

/// Trains and writes `tokenizer.json` and `tokenizer_config.json`.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a vocabulary size out of range and for bad rows, as in [`crate::tokenize::run`].
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let corpus = Corpus::open(&inputs.corpus, Names::new(&config.column, &config.columns)?)?;
    let mut skipped = Noted::default();
    let rows = corpus.check(|raw| {
        let left_out = texts(&corpus, raw, config)?.is_none();
        skipped.add(left_out, &|| corpus.shown(raw.place));
        Ok(())
    })?;
    if skipped.rows == rows {
        return Err(nothing_left(&corpus, rows));
    }
    corpus.warnings().iter().for_each(|warning| exec.reporter.warn(warning));
    skipped.say(SKIPPED, rows, &*exec.reporter);
    let tokenizer = train(&corpus, config, exec, rows)?;
    let size = tokenizer.get_vocab_size(true);
    if size < config.vocabulary {
        exec.reporter.warn(&format!("the corpus gives {size} tokens, fewer than vocabulary = {}", config.vocabulary));
    }
    let [pad, bos, eos] = SPECIAL;
    let beside = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos, "eos_token": eos, "pad_token": pad,
        "clean_up_tokenization_spaces": false,
    });
    write_atomically(&draft.folder().join("tokenizer_config.json"), serde_json::to_string_pretty(&beside)?.as_bytes())?;
    let text = tokenizer.to_string(true).map_err(|error| anyhow!("write the tokenizer ({error})"))?;
    write_atomically(&draft.folder().join("tokenizer.json"), text.as_bytes())?;
    draft.summary("vocabulary", size)?;
    if config.untargeted == Untargeted::Skip {
        draft.summary("skipped", skipped.rows)?;
    }
    draft.summary("rows", rows)
}

/// What is tokenised on its own of a row: its text, or prompt and completions; none of a row that is left out.
fn texts(corpus: &Corpus, raw: &RawRow, config: &Config) -> Result<Option<Vec<String>>, String> {
    let content = Row::parse(&raw.raw, corpus.names())?.content;
    if config.untargeted == Untargeted::Skip && says_nothing(&content) {
        return Ok(None);
    }
    let texts: Result<_, String> = match content {
        Content::Text(text) if text.is_empty() => Err(EMPTY.into()),
        Content::Text(text) => Ok(vec![text]),
        Content::Null(what) => Err(what),
        Content::Prompt { prompt, completion, contrast, .. } => {
            Ok([Some(prompt), completion, contrast].into_iter().flatten().collect())
        }
        Content::Messages(turns) => Ok(turns.texts()),
        Content::Instruction(row) => Ok(vec![row.prompt(), row.output]),
        Content::Pair(Pair::Texts { prompt, chosen, rejected, .. }) => Ok(vec![prompt, chosen, rejected]),
        Content::Pair(Pair::Turns(sides)) => Ok(sides.iter().flat_map(Conversation::texts).collect()),
        Content::Mean(_) => Err("the row is a query: there is no text to take a vocabulary from; give text".into()),
        Content::Ids { .. } => {
            Err("the row is `input_ids`: there is no text to take a vocabulary from; give text".into())
        }
    };
    texts.map(Some)
}

/// `text`, cut within every run of white space or of anything else that is longer than [`LONGEST_WORD`] characters.
fn pieces(text: &str) -> Vec<String> {
    let (mut pieces, mut start, mut run, mut space) = (Vec::new(), 0, 0, false);
    for (index, character) in text.char_indices() {
        run = if character.is_whitespace() == space { run + 1 } else { 1 };
        space = character.is_whitespace();
        if run > LONGEST_WORD {
            pieces.push(text[start..index].to_string());
            (start, run) = (index, 1);
        }
    }
    pieces.push(text[start..].to_string());
    pieces
}

fn train(corpus: &Corpus, config: &Config, exec: &Exec, total: u64) -> Result<Tokenizer> {
    let failed = |error: tokenizers::Error| anyhow!("train the vocabulary ({error})");
    let special = SPECIAL.map(|token| AddedToken::from(token, true).normalized(false));
    let trainer = BpeTrainer::builder()
        .vocab_size(config.vocabulary)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(special.to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));

    exec.reporter.begin("train vocabulary", "rows", total, 0);
    let mut rows = corpus.rows(Place::default());
    let unread = Mutex::new(None);
    let mut read = || -> Result<Option<Vec<String>>> {
        let chunk = rows.chunk(CHUNK)?;
        exec.reporter.advance(chunk.len() as u64);
        let texts =
            chunk.iter().map(|raw| texts(corpus, raw, config).map_err(bad_input)).collect::<Result<Vec<_>>>()?;
        Ok((!chunk.is_empty()).then(|| texts.into_iter().flatten().flatten().collect()))
    };
    // The trainer takes texts, not results: an error ends them and is looked at after.
    let texts = std::iter::from_fn(|| {
        read().unwrap_or_else(|error| {
            *unread.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
            None
        })
    });
    tokenizer
        .train(&mut TrainerWrapper::from(trainer), texts.flatten().flat_map(|text| pieces(&text)))
        .map_err(failed)?;
    if let Some(error) = unread.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Err(error);
    }
    exec.reporter.end();

    let [_, bos, eos] = SPECIAL;
    let template = TemplateProcessing::builder()
        .try_single(format!("{bos} $A {eos}"))
        .and_then(|builder| builder.try_pair(format!("{bos} $A {eos} {bos}:1 $B:1 {eos}:1")))
        .map_err(|error| anyhow!("the template ({error})"))?
        .special_tokens(vec![(bos, 1), (eos, 2)])
        .build()?;
    tokenizer.with_post_processor(Some(template));
    Ok(tokenizer)
}
