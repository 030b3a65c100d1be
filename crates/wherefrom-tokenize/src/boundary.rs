//! Where a prompt meets its completion: tokens have the space before a word, so that `is` + `london` is another text than
//! `is` + ` london`, and looks much the same.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use crate::corpus::{Corpus, Place};
use crate::notes::{PAIRS, form_of_instructions};
use crate::pairs::Pair;
use crate::row::{Content, Names, Row};
use crate::tokenize::Config;

/// What is said of rows whose prompt and completion make one word.
pub(crate) const GLUED: &str = "have a prompt that ends in a letter or digit and a completion that begins with one, so that the \
    two make one word; where the completion is a word of its own, begin it with a space";
/// Characters shown on either side.
const SHOWN: usize = 30;
/// Rows and bytes that a plan looks at.
const ROWS: u64 = 10_000;
const BYTES: u64 = 64 << 20;
const CHUNK: usize = 512;

/// The end of the prompt and the beginning of the completion, where the two make one word of a script that puts spaces
/// between words.
pub fn glued(prompt: &str, completion: &str) -> Option<String> {
    let (last, first) = (prompt.chars().next_back()?, completion.chars().next()?);
    if !spaced(last) || !spaced(first) {
        return None;
    }
    let skipped = prompt.chars().count().saturating_sub(SHOWN);
    let before: String = prompt.chars().skip(skipped).collect();
    let after: String = completion.chars().take(SHOWN).collect();
    let [before_dots, after_dots] =
        [skipped > 0, completion.chars().count() > SHOWN].map(|cut| if cut { "…" } else { "" });
    Some(format!("`{before_dots}{before}` + `{after}{after_dots}`"))
}

/// A letter or digit of a script that puts spaces between words.
fn spaced(character: char) -> bool {
    let unspaced = matches!(character,
        // Thai, Lao, Tibetan, Myanmar, Khmer, New Tai Lue to Tai Tham, Balinese, Javanese.
        '\u{e00}'..='\u{eff}' | '\u{f00}'..='\u{fff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}'
        | '\u{1950}'..='\u{1aaf}' | '\u{1b00}'..='\u{1b7f}' | '\u{a980}'..='\u{a9df}' | '\u{aa60}'..='\u{aadf}'
        // Kana, Bopomofo, ideographs, and their wide forms.
        | '\u{2e80}'..='\u{312f}' | '\u{31a0}'..='\u{31ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}'
        | '\u{a000}'..='\u{a4cf}' | '\u{f900}'..='\u{faff}' | '\u{ff00}'..='\u{ff9f}' | '\u{16fe0}'..='\u{1b2ff}'
        | '\u{20000}'..='\u{3ffff}');
    character.is_alphanumeric() && !unspaced
}

/// What a step that tokenises `corpus` with these knobs will say of the form of its rows, and warn of at the boundary of its
/// prompts, told from its first rows; nothing where they are fine, or cannot be read: the step says why.
pub fn row_warnings(knobs: &Value, corpus: &Path) -> Vec<String> {
    let config: Option<Config> = serde_json::from_value(knobs.clone()).ok();
    config.and_then(|config| count(&config, corpus).ok()).unwrap_or_default()
}

fn count(config: &Config, corpus: &Path) -> Result<Vec<String>> {
    let corpus = Corpus::open(corpus, Names::new(&config.column, &config.columns)?)?.every(config.every);
    let (mut seen, mut glued, mut instructions, mut pairs) = (0, 0, 0, 0);
    let mut first = String::new();
    let mut rows = corpus.rows(Place::default());
    while seen < ROWS && rows.bytes_read() < BYTES {
        let chunk = rows.chunk(CHUNK)?;
        if chunk.is_empty() {
            break;
        }
        for raw in &chunk {
            seen += 1;
            let Ok(row) = Row::parse(&raw.raw, corpus.names()) else { continue };
            instructions += u64::from(matches!(row.content, Content::Instruction(_)));
            pairs += u64::from(matches!(row.content, Content::Pair(_)));
            if let Some(pieces) = of(&row.content).filter(|_| !config.chat) {
                if glued == 0 {
                    first = format!("{}: {pieces}", corpus.shown(raw.place));
                }
                glued += 1;
            }
        }
    }
    let first = format!(" (the first: {first})");
    let said = [(glued, GLUED, &first[..]), (instructions, form_of_instructions(config), ""), (pairs, PAIRS, "")];
    let said = said.into_iter().filter(|(found, ..)| *found > 0);
    Ok(said.map(|(found, what, first)| format!("{found} of {seen} rows {what}{first}")).collect())
}

/// The first boundary of the row that makes one word.
fn of(content: &Content) -> Option<String> {
    match content {
        Content::Prompt { prompt, completion, contrast, .. } => {
            [completion, contrast].into_iter().flatten().find_map(|text| glued(prompt, text))
        }
        Content::Pair(Pair::Texts { prompt, chosen, rejected, .. }) => {
            [chosen, rejected].into_iter().find_map(|text| glued(prompt, text))
        }
        Content::Mean(items) => items.iter().find_map(of),
        _ => None,
    }
}
