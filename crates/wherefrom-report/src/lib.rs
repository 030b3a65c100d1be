//! From artifacts to a page that a person looks at.
//!
//! reads   ranking, tokens; details, queries, losses, scores, columns and a tokenizer where they are wired
//! writes  report
//!
//! `gather` reads what is shown of each query, `statistics` describes its influences, `header` says what the study was,
//! and `page` puts it into one HTML file. Nothing is fetched from anywhere when it is opened.

mod duplicates;
mod gather;
mod groups;
mod header;
mod layers;
mod page;
mod pieces;
mod statistics;
pub mod traits;

use std::path::PathBuf;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{
    Artifact, Columns, Details, Draft, Kind, Losses, Ranking, Scores, Tokens, bad_input, write_atomically,
};
use wherefrom_stage::{About, Cost, Exec, File, Role, Stage, Writes, at_least};

use crate::gather::Gathered;
use crate::header::Header;

/// Raised when results change.
pub const VERSION: u32 = 3;

/// The stage `report`.
pub static STAGE: Stage<Config> = Stage {
    about: About { files: &[File::Tokenizer], ..About::new("report", VERSION) },
    roles: &[
        Role::required("ranking", &[Kind::Ranking]),
        Role::required("tokens", &[Kind::Tokens]),
        Role::optional("details", &[Kind::Details]),
        Role::optional("queries", &[Kind::Tokens]),
        Role::optional("losses", &[Kind::Losses]),
        Role::optional("scores", &[Kind::Scores]),
        Role::optional("columns", &[Kind::Columns]),
    ],
    parse: |knobs| at_least("top", 1, knobs),
    check: Config::check,
    writes: Writes::One(Kind::Report),
    makes_model: |_| None,
    cost: |_, planned, _| Cost::new(Cost::ROWS + 24.0 * planned.pairs("scores"), 1e6, 0.0),
    run: |config, given, exec, draft| {
        let inputs = Inputs {
            ranking: given.open("ranking")?,
            tokens: given.open("tokens")?,
            details: given.maybe("details")?,
            queries: given.maybe("queries")?,
            losses: given.maybe("losses")?,
            scores: given.maybe("scores")?,
            columns: given.maybe("columns")?,
            tokenizer: given.file(File::Tokenizer),
        };
        run(config, &inputs, exec, draft)
    },
};

/// Bytes of query data that lie in the page itself; what is beyond goes to side files, one a query.
const INLINE: usize = 7 << 20;

/// What is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Heading of the page.
    pub title: String,
    /// Sequences per query and sign, at most.
    pub top: usize,
    /// Synthetic sets that test each power law: the p-value is a multiple of one in so many.
    pub samples: usize,
    /// Seed of the synthetic sets.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { title: "Influence report".into(), top: 50, samples: 200, seed: 0 }
    }
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        if self.top == 0 {
            return Err(bad_input("top = 0 shows nothing; set it to 1 or more"));
        }
        if !(20..=10_000).contains(&self.samples) {
            return Err(bad_input(format!("samples = {} is out of range; set it to 20 to 10000", self.samples)));
        }
        Ok(())
    }
}

/// What is shown, and what it is explained by. The page says what to wire where an optional input is missing.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Which sequences are shown.
    pub ranking: Artifact<Ranking>,
    /// The training sequences that were scored.
    pub tokens: Artifact<Tokens>,
    /// Shares by token and by module.
    pub details: Option<Artifact<Details>>,
    /// The queries' own tokens.
    pub queries: Option<Artifact<Tokens>>,
    /// What the queries' tokens cost the model.
    pub losses: Option<Artifact<Losses>>,
    /// Influence of the whole corpus.
    pub scores: Option<Artifact<Scores>>,
    /// What comes with the sequences.
    pub columns: Option<Artifact<Columns>>,
    /// The `tokenizer.json` of the tokens; without it tokens show as numbers.
    pub tokenizer: Option<PathBuf>,
}

/// Writes `index.html`, and `query-NNNNN.js` for the queries that the page has no room for.
///
/// # Errors
/// [`wherefrom_artifact::Error`] for a knob out of its range and for inputs that do not belong together.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    draft.clear()?;
    let gathered = Gathered::read(config, inputs)?;
    let header = Header::new(inputs, draft.folder())?;
    exec.reporter.begin("report", "queries", gathered.queries.len() as u64, 0);
    let mut summaries = Vec::new();
    let (mut inline, mut room, mut beside) = (Vec::new(), INLINE, 0);
    for &query in &gathered.queries {
        let view = gathered.query(query, config)?;
        let json = page::embedded(&view)?;
        let file = if json.len() <= room {
            room -= json.len();
            inline.push((query, json));
            None
        } else {
            let name = format!("query-{query:05}.js");
            write_atomically(&draft.folder().join(&name), format!("wherefromQuery({query}, {json});\n").as_bytes())?;
            beside += 1;
            Some(name)
        };
        summaries.push(view.summary(file));
        exec.reporter.advance(1);
    }
    let html = page::page(config, &header, &gathered, &summaries, &inline)?;
    write_atomically(&draft.folder().join("index.html"), html.as_bytes())?;
    draft.summary("queries", summaries.len())?;
    draft.summary("queries_beside", beside)?;
    draft.summary("sequences", summaries.iter().map(|summary| summary.shown).sum::<usize>())?;
    exec.reporter.end();
    Ok(())
}
