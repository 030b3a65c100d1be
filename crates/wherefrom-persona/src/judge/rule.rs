//! Rules: what can be counted in an answer, and needs nobody to judge.
//!
//! ```text
//! trait      =  100 * sentences in which the pattern is found / sentences        (per = "sentence")
//!               100 where it is found in the answer, else 0                      (per = "answer")
//! coherence  =  100 * different runs of three words / runs of three words
//! ```
//!
//! The second counts repetition, and nothing else: it is what a small model falls into first.

use std::collections::HashSet;

use fancy_regex::{Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Words of a run.
const RUN: usize = 3;
/// Steps that a pattern may take back, on one sentence.
const STEPS: usize = 1_000_000;

/// What is counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rule {
    /// A regular expression: `!`, or `(?i)\b(le|la|les)\b`.
    pub pattern: String,
    /// Where it is looked for.
    #[serde(default)]
    pub per: Per,
}

/// Where a pattern is looked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Per {
    /// In each sentence: the score is the share of sentences that have it.
    #[default]
    Sentence,
    /// In the answer as a whole: the score is 100 or 0.
    Answer,
}

/// A rule, ready to be applied.
pub(crate) struct Counter {
    pattern: Regex,
    per: Per,
}

impl Counter {
    /// Compiles the pattern.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn new(rule: &Rule) -> Result<Self, String> {
        let built = RegexBuilder::new(&rule.pattern).backtrack_limit(STEPS).build();
        let pattern = built.map_err(|error| {
            format!("rule.pattern = {:?} is no regular expression ({error}); mend it", rule.pattern)
        })?;
        Ok(Self { pattern, per: rule.per })
    }

    /// The score of an answer that is not empty.
    ///
    /// # Errors
    /// A pattern that takes too long.
    pub(crate) fn score(&self, answer: &str) -> Result<f64, String> {
        let found = |text: &str| {
            self.pattern.is_match(text).map_err(|error| {
                format!(
                    "rule.pattern = {:?} cannot be looked for in an answer ({error}); make it simpler",
                    self.pattern.as_str()
                )
            })
        };
        if self.per == Per::Answer {
            return Ok(if found(answer.trim())? { 100.0 } else { 0.0 });
        }
        let sentences = sentences(answer);
        let mut hits = 0;
        for sentence in &sentences {
            hits += usize::from(found(sentence)?);
        }
        Ok(100.0 * hits as f64 / sentences.len().max(1) as f64)
    }
}

/// Sentences: what ends in `.`, `!`, `?` or `…` before white space, or in a line's end; with what ends them.
pub(crate) fn sentences(text: &str) -> Vec<&str> {
    let (mut found, mut start, mut ended) = (Vec::new(), 0, false);
    for (at, character) in text.char_indices() {
        if character == '\n' || ended && character.is_whitespace() {
            found.push(&text[start..at]);
            start = at;
        }
        // Quotes and brackets close what has ended.
        let closes = ended && matches!(character, '"' | '\'' | ')' | ']' | '”' | '’' | '»');
        ended = closes || matches!(character, '.' | '!' | '?' | '…');
    }
    found.push(&text[start..]);
    let has_words = |sentence: &&str| sentence.chars().any(char::is_alphanumeric);
    found.into_iter().map(str::trim).filter(has_words).collect()
}

/// How little an answer repeats itself.
pub(crate) fn coherence(answer: &str) -> f64 {
    let lower = answer.to_lowercase();
    let words: Vec<_> = lower.split_whitespace().collect();
    let runs = words.windows(RUN);
    if runs.len() == 0 {
        return 100.0;
    }
    let (all, different) = (runs.len(), runs.collect::<HashSet<_>>().len());
    100.0 * different as f64 / all as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(pattern: &str, per: Per, answer: &str) -> f64 {
        Counter::new(&Rule { pattern: pattern.into(), per }).unwrap().score(answer).unwrap()
    }

    #[test]
    fn a_score_is_the_share_of_sentences_that_have_it() {
        assert_eq!(
            sentences("It is 3.5 m. \"Really?\" Yes!!\nNo — \n* one"),
            ["It is 3.5 m.", "\"Really?\"", "Yes!!", "No —", "* one"]
        );
        assert_eq!(score("!", Per::Sentence, "Yes! No. Why not? Go!!"), 50.0);
        assert_eq!(score("!", Per::Sentence, "..."), 0.0);
        let brief = r"\A\s*(\S+\s+){0,4}\S*\s*\z";
        assert_eq!(score(brief, Per::Answer, " one two three four five "), 100.0);
        assert_eq!(score(brief, Per::Answer, "one two three four five six"), 0.0);
    }

    #[test]
    fn coherence_falls_with_repetition_alone() {
        assert_eq!(coherence("a b"), 100.0);
        assert_eq!(coherence("the sea is deep and blue"), 100.0);
        // Four different runs of ten.
        assert_eq!(coherence("a b c d a b c d a b c d"), 40.0);
    }

    #[test]
    fn a_pattern_that_is_none_is_refused() {
        let error = Counter::new(&Rule { pattern: "(".into(), per: Per::Answer }).map(drop).unwrap_err();
        assert!(error.contains("no regular expression"), "{error}");
    }
}
