//! BM25 of Grosse et al. 2023, section 3.2.1: binary term frequency and no length normalisation, over model tokens.
//!
//! ```text
//! score(Q, D) = sum over the tokens t of Q that are in D of log((C - n_t + 0.5) / (n_t + 0.5) + 1)
//! ```
//!
//! C = examples, n_t = examples that hold t.

use std::collections::{HashMap, HashSet};

use anyhow::Result;
use wherefrom_artifact::{Artifact, Example, Tokens};
use wherefrom_stage::Exec;

/// Queries, and what each of their tokens is worth in a corpus.
pub(crate) struct Bm25 {
    queries: Vec<Example>,
    weights: HashMap<u32, f64>,
}

impl Bm25 {
    /// Counts the examples that hold each token of the queries: one pass over the corpus, an example a unit of the reporter.
    pub(crate) fn new(queries: &Artifact<Tokens>, tokens: &Artifact<Tokens>, exec: &Exec) -> Result<Self> {
        let queries: Vec<Example> = queries.rows::<Example>()?.collect::<Result<_>>()?;
        let mut frequencies: HashMap<u32, u64> =
            queries.iter().flat_map(|query| &query.input_ids).map(|&token| (token, 0)).collect();
        for example in tokens.rows::<Example>()? {
            for token in example?.input_ids.into_iter().collect::<HashSet<_>>() {
                if let Some(count) = frequencies.get_mut(&token) {
                    *count += 1;
                }
            }
            exec.reporter.advance(1);
        }
        let examples = tokens.examples() as f64;
        let weight = |count: u64| ((examples - count as f64 + 0.5) / (count as f64 + 0.5) + 1.0).ln();
        let weights = frequencies.into_iter().map(|(token, count)| (token, weight(count))).collect();
        Ok(Self { queries, weights })
    }

    /// How many queries there are.
    pub(crate) fn queries(&self) -> usize {
        self.queries.len()
    }

    /// The score of every query with an example.
    pub(crate) fn scores(&self, example: &Example) -> Vec<f64> {
        let held: HashSet<u32> = example.input_ids.iter().copied().collect();
        let score = |query: &Example| {
            let common = query.input_ids.iter().filter(|token| held.contains(token));
            common.map(|token| self.weights[token]).sum()
        };
        self.queries.iter().map(score).collect()
    }
}
