//! The stage `retrieval`: whether the examples that a query's answer is known to come from score highest for it.
//!
//! reads   scores, columns of the examples and of the queries
//! writes  retrieval
//!
//! ```text
//! reciprocal rank  =  1 / rank of the first source
//! recall at k      =  sources among the k strongest  /  the smaller of k and the number of sources
//! average precision  =  mean over the sources, the k-th of them at rank r, of k / r
//! ```

use std::collections::BTreeSet;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Artifact, Draft, Kind, Retrieval, Retrieved, Score, Scores, bad_input};
use wherefrom_stage::{About, Cost, Exec, Role, Stage, Writes};

use crate::sources::Known;
use crate::statistics::mean_with_interval;

/// Raised when results change.
pub const VERSION: u32 = 2;

/// Draws of the intervals.
const DRAWS: u64 = 1000;

/// The stage `retrieval`.
pub static STAGE: Stage<Config> = Stage {
    about: About::new("retrieval", VERSION),
    roles: &[
        Role::required("scores", &[Kind::Scores]),
        Role::required("columns", &[Kind::Columns]),
        Role::required("query-columns", &[Kind::Columns]),
    ],
    parse: serde_json::from_value,
    check: Config::check,
    writes: Writes::One(Kind::Retrieval),
    makes_model: |_| None,
    cost: |_, planned, _| Cost::new(Cost::ROWS + 12.0 * planned.pairs("scores"), 1e5, 0.0),
    run: |config, given, exec, draft| {
        let known = Known { columns: given.open("columns")?, query_columns: given.open("query-columns")? };
        run(config, &given.open("scores")?, &known, exec, draft)
    },
};

/// What is looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// The column that examples and queries have: examples with the query's value are its sources.
    pub column: String,
    /// Numbers of strongest examples that the recall is taken at.
    #[serde(default = "usual")]
    pub at: Vec<u32>,
}

fn usual() -> Vec<u32> {
    vec![1, 5, 10, 50]
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        if self.at.contains(&0) {
            return Err(bad_input("at: a recall at 0 says nothing; set it to numbers of 1 or more"));
        }
        Ok(())
    }
}

/// Looks where the sources of every query rank.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a column that is not there, and where no query has a source.
pub fn run(config: &Config, scores: &Artifact<Scores>, known: &Known, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    exec.reporter.begin("retrieval", "pairs", scores.manifest().rows(), 0);
    let mut by_query: Vec<Vec<(u64, f32)>> = Vec::new();
    for score in scores.rows::<Score>()? {
        let Score { query, example, influence } = score?;
        let query = query as usize;
        if by_query.len() <= query {
            by_query.resize(query + 1, Vec::new());
        }
        by_query[query].push((example, influence));
        exec.reporter.advance(1);
    }
    exec.reporter.end();
    let sources = known.sources(&config.column, by_query.len())?;
    if sources.iter().all(BTreeSet::is_empty) {
        return Err(bad_input(format!("no example has the `{0}` of a query; name another column", config.column)));
    }
    let mut rows = Vec::new();
    for (query, (mut scored, sources)) in by_query.into_iter().zip(&sources).enumerate() {
        // Equal influences in order of their examples, as the stage `rank` has them.
        scored.sort_by(|left, right| right.1.total_cmp(&left.1).then(left.0.cmp(&right.0)));
        rows.push(retrieved(config, query as u32, &scored, sources));
    }
    let with_sources: Vec<&Retrieved> = rows.iter().filter(|row| row.sources > 0).collect();
    let over = |of: &dyn Fn(&Retrieved) -> f64| {
        mean_with_interval(&with_sources.iter().map(|row| of(row)).collect::<Vec<_>>(), DRAWS)
    };
    draft.summary("mean_reciprocal_rank", over(&|row| f64::from(row.reciprocal_rank)))?;
    draft.summary("mean_average_precision", over(&Retrieved::average_precision))?;
    for (place, at) in config.at.iter().enumerate() {
        draft.summary(&format!("recall_at_{at}"), over(&|row| f64::from(row.recall[place])))?;
    }
    draft.summary("queries", rows.len())?;
    draft.summary("queries_with_sources", with_sources.len())?;
    draft.write_rows::<Retrieval, _>(0, &rows)
}

/// One query; `scored` from the strongest on.
fn retrieved(config: &Config, query: u32, scored: &[(u64, f32)], sources: &BTreeSet<u64>) -> Retrieved {
    let found: Vec<usize> =
        (1..).zip(scored).filter(|(_, (example, _))| sources.contains(example)).map(|(rank, _)| rank).collect();
    let recall = |&at: &u32| {
        let within = found.iter().filter(|&&rank| rank <= at as usize).count();
        within as f32 / sources.len().min(at as usize).max(1) as f32
    };
    let influence =
        |example: &u64| scored.iter().find(|(other, _)| other == example).map_or(0.0, |(_, influence)| *influence);
    Retrieved {
        query,
        sources: sources.len() as u32,
        reciprocal_rank: found.first().map_or(0.0, |&rank| 1.0 / rank as f32),
        ranks: found.iter().map(|&rank| rank as u32).collect(),
        recall: config.at.iter().map(recall).collect(),
        influence: sources.iter().map(influence).sum(),
        strongest: scored.first().map_or(0.0, |(_, influence)| *influence),
    }
}
