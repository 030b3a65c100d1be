//! The split of a tokens artifact: runs of examples that are worked on, written and resumed as one.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::artifact::Artifact;
use crate::kinds::{Example, Row, Tokens};
use crate::store::share::Share;

/// Tokens in a span at least: some seconds of a small model, some minutes of a large one.
const SPAN_TOKENS: u64 = 1 << 16;
/// Spans in a study at most, so that a large corpus does not end in a million files.
const SPANS: u64 = 1024;
/// Spans that a share has at least, where there are rows for them: what one process has more than another is little.
const SPANS_OF_A_SHARE: u64 = 4;

/// Examples `start..end` of part `part`, counted inside the part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Part of the tokens artifact.
    pub part: usize,
    /// First row in the part.
    pub start: usize,
    /// One past the last row.
    pub end: usize,
    /// Example number of the first row.
    pub first_example: u64,
}

impl Span {
    /// Number of examples.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether the span has no examples (it never has none).
    pub fn is_empty(&self) -> bool {
        self.end == self.start
    }
}

impl Artifact<Tokens> {
    /// Number of examples.
    pub fn examples(&self) -> u64 {
        self.manifest().rows()
    }

    /// Number of tokens, from the manifest (0 where another program wrote none).
    pub fn tokens(&self) -> u64 {
        self.manifest().count("tokens").unwrap_or(0)
    }

    /// Splits the artifact into spans of about equally many tokens. They depend on the artifact alone, but where shares would have
    /// less than a few each: there they are smaller.
    pub fn spans(&self, share: Share) -> Result<Vec<Span>> {
        let (examples, tokens) = (self.examples().max(1), self.tokens().max(self.examples()).max(1));
        let span_tokens = SPAN_TOKENS.max(tokens / SPANS);
        let span_tokens = match share.of {
            1 => span_tokens,
            of => span_tokens.min(tokens / (SPANS_OF_A_SHARE * of as u64)),
        };
        let rows = usize::try_from((span_tokens * examples / tokens).max(1)).context("span length")?;
        let mut spans = Vec::new();
        let mut first_example = 0;
        for (part, entry) in self.manifest().parts.iter().enumerate() {
            let total = usize::try_from(entry.rows).context("rows of a part")?;
            for start in (0..total).step_by(rows) {
                let end = (start + rows).min(total);
                spans.push(Span { part, start, end, first_example: first_example + start as u64 });
            }
            first_example += entry.rows;
        }
        Ok(spans)
    }

    /// The examples of a span, in order.
    pub fn read_span(&self, span: &Span) -> Result<Vec<Example>> {
        let mut rows = Vec::with_capacity(span.len());
        for batch in self.batches_from(span.part, span.start, span.len())? {
            let batch = <Example as Row<Tokens>>::from_batch(&batch?);
            rows.extend(batch.with_context(|| self.folder().display().to_string())?);
        }
        Ok(rows)
    }
}
