//! The documents that H is the mean of.

use anyhow::Result;
use wherefrom_artifact::{Artifact, Example, Share, Tokens};
use wherefrom_linalg::random::uniform;
use wherefrom_model::{Batch, Model};
use wherefrom_pass::Corpus;
use wherefrom_stage::Exec;

/// Where documents are drawn from.
pub(crate) struct Sampling<'a> {
    pub(crate) model: &'a Model,
    pub(crate) tokens: &'a Artifact<Tokens>,
    pub(crate) exec: &'a Exec,
    pub(crate) documents: usize,
    pub(crate) seed: u64,
}

/// Documents in batches.
pub(crate) struct Sample {
    /// Places among the documents, with them.
    pub(crate) batches: Vec<(Vec<usize>, Batch)>,
    pub(crate) documents: usize,
    pub(crate) tokens: u64,
}

impl Sampling<'_> {
    /// The documents of a draw: those whose hashes of (seed, document, draw) are the smallest.
    pub(crate) fn draw(&self, draw: u64) -> Result<Sample> {
        let all = self.tokens.examples();
        let mut chosen: Vec<_> = (0..all).map(|example| (uniform(self.seed, example, draw), example)).collect();
        if self.documents < chosen.len() {
            chosen.select_nth_unstable_by(self.documents, |left, right| left.0.total_cmp(&right.0));
            chosen.truncate(self.documents);
        }
        let mut chosen: Vec<u64> = chosen.into_iter().map(|(_, example)| example).collect();
        chosen.sort_unstable();
        let mut examples: Vec<Example> = Vec::with_capacity(chosen.len());
        for span in self.tokens.spans(Share::WHOLE)? {
            let own = span.first_example..span.first_example + span.len() as u64;
            if chosen.iter().any(|example| own.contains(example)) {
                let rows = self.tokens.read_span(&span)?.into_iter();
                examples.extend(rows.filter(|row| chosen.binary_search(&row.example).is_ok()));
            }
        }
        let tokens = examples.iter().map(|example| example.input_ids.len() as u64).sum();
        let corpus = Corpus::new("solve", self.model, self.tokens, self.exec);
        let most = self.model.linearised_tokens(self.exec.batch_tokens);
        Ok(Sample { batches: corpus.batches_of(&examples, most).collect(), documents: examples.len(), tokens })
    }
}
