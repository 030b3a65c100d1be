//! How alike queries and training examples are, without a gradient: what a method of attribution has to beat.
//!
//! ```text
//! random       uniform numbers from -1 to 1
//! bm25         the words that query and example share
//! activations  x_q . x_z / (|x_q| |x_z|), of their residual streams at one site
//! ```
//!
//! reads   tokens of the queries and of the corpus, or activations of both
//! writes  scores, a part per part of the corpus

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{
    Activations, Artifact, ArtifactKind, Draft, Example, Kind, Position, Row, Score, Scores, Streams, Tokens, bad_input,
};
use wherefrom_linalg::random::uniform;
use wherefrom_model::Site;
use wherefrom_stage::{About, Cost, Exec, Role, Stage, Writes};

use crate::bm25::Bm25;

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `similarity`.
pub static STAGE: Stage<Config> = Stage {
    about: About::new("similarity", VERSION).split(),
    roles: &[
        Role::when("queries", &[Kind::Tokens], |config| config.method != Method::Activations),
        Role::when("tokens", &[Kind::Tokens], |config| config.method != Method::Activations),
        Role::when("query-activations", &[Kind::Activations], |config| config.method == Method::Activations),
        Role::when("activations", &[Kind::Activations], |config| config.method == Method::Activations),
    ],
    parse: |knobs| {
        let config: Config = serde_json::from_value(knobs)?;
        // What the method does not use changes nothing.
        let unused = Config { method: config.method, ..Config::default() };
        Ok(match config.method {
            Method::Random => Config { seed: config.seed, ..unused },
            Method::Bm25 => unused,
            Method::Activations => Config { site: config.site, position: config.position, ..unused },
        })
    },
    check: |_| Ok(()),
    writes: Writes::One(Kind::Scores),
    makes_model: |_| None,
    cost: |_, planned, _| {
        let pairs = planned.scored_pairs();
        Cost::new(Cost::ROWS + 12.0 * pairs.min(1e7), 12.0 * pairs, 0.0)
    },
    run: |config, given, exec, draft| {
        let inputs = match config.method {
            Method::Activations => {
                Inputs::Activations { queries: given.open("query-activations")?, examples: given.open("activations")? }
            }
            _ => Inputs::Tokens { queries: given.open("queries")?, examples: given.open("tokens")? },
        };
        run(config, &inputs, exec, draft)
    },
};

/// What makes two texts alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Nothing: uniform numbers from -1 to 1.
    Random,
    /// Shared words, the rarer the more: as the stage `filter`.
    #[default]
    Bm25,
    /// The cosine of their activations.
    Activations,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Bm25 => "bm25",
            Self::Activations => "activations",
        }
    }
}

/// What is compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// What makes two texts alike.
    pub method: Method,
    /// Seed of `random`.
    pub seed: u64,
    /// Site of `activations`: a number of blocks, or `"post-norm"`.
    pub site: Site,
    /// What is taken of the tokens by `activations`.
    pub position: Position,
}

impl Default for Config {
    fn default() -> Self {
        Self { method: Method::default(), seed: 0, site: Site::PostNorm, position: Position::AllMean }
    }
}

/// Queries and training examples, as the method takes them.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the variants say it")]
pub enum Inputs {
    /// Of `random` and `bm25`.
    Tokens { queries: Artifact<Tokens>, examples: Artifact<Tokens> },
    /// Of `activations`.
    Activations { queries: Artifact<Activations>, examples: Artifact<Activations> },
}

/// Compares every query with every example.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a site or position that activations do not have.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    draft.metadata("unit", "similarity");
    draft.metadata("sign", "positive = more alike");
    draft.metadata("method", config.method.name());
    match inputs {
        Inputs::Tokens { queries, examples } if config.method == Method::Random => {
            let queries = queries.examples();
            let random = |query, example| 2.0 * uniform(config.seed, query, example) - 1.0;
            exec.reporter.begin("similarity", "examples", examples.examples(), 0);
            scores(examples, exec, draft, |row: &Example| {
                Ok((row.example, (0..queries).map(|query| random(query, row.example)).collect()))
            })
        }
        Inputs::Tokens { queries, examples } => {
            exec.reporter.begin("similarity", "examples", 2 * examples.examples(), 0);
            let bm25 = Bm25::new(queries, examples, exec)?;
            scores(examples, exec, draft, |row: &Example| Ok((row.example, bm25.scores(row))))
        }
        Inputs::Activations { queries, examples } => {
            let [of_queries, of_examples] = [site(config, queries)?, site(config, examples)?];
            let rows = queries.rows::<Streams>()?.map(|row| direction(config, of_queries, &row?, queries));
            let directions: Vec<Vec<f64>> = rows.collect::<Result<_>>()?;
            exec.reporter.begin("similarity", "examples", examples.manifest().rows(), 0);
            scores(examples, exec, draft, |row: &Streams| {
                let own = direction(config, of_examples, row, examples)?;
                let cosine = |query: &Vec<f64>| query.iter().zip(&own).map(|(x, y)| x * y).sum();
                Ok((row.example, directions.iter().map(cosine).collect()))
            })
        }
    }
}

/// The scores of each example with all queries, as `of` has them.
fn scores<K: ArtifactKind, R: Row<K>>(
    examples: &Artifact<K>,
    exec: &Exec,
    draft: &mut Draft,
    of: impl Fn(&R) -> Result<(u64, Vec<f64>)>,
) -> Result<()> {
    let parts: usize = draft.plan(|| Ok(examples.parts()))?;
    for part in 0..parts {
        if draft.has(part) {
            exec.reporter.advance(examples.manifest().parts[part].rows);
            continue;
        }
        let mut rows = Vec::new();
        for row in examples.rows_in::<R>(part)? {
            let (example, values) = of(&row?)?;
            let score = |(query, value): (usize, f64)| Score { query: query as u32, example, influence: value as f32 };
            rows.extend(values.into_iter().enumerate().map(score));
            exec.reporter.advance(1);
        }
        rows.sort_by_key(|row| (row.query, row.example));
        draft.write_rows::<Scores, _>(part, &rows)?;
    }
    exec.reporter.end();
    Ok(())
}

/// Where the site stands among those that are kept.
fn site(config: &Config, activations: &Artifact<Activations>) -> Result<usize> {
    let kept: Vec<Site> = match activations.metadata("sites")? {
        Some(sites) => serde_json::from_str(&sites)?,
        None => Vec::new(),
    };
    kept.iter().position(|site| *site == config.site).ok_or_else(|| {
        let kept: Vec<_> = kept.iter().map(Site::to_string).collect();
        bad_input(format!(
            "site {} is not kept by the activations, which have {}: name it in `sites` of their step: {}",
            config.site,
            kept.join(", "),
            activations.folder().display()
        ))
    })
}

/// x / |x| at the site and position, or zeros where x is zero.
fn direction(config: &Config, site: usize, row: &Streams, activations: &Artifact<Activations>) -> Result<Vec<f64>> {
    let Some(x) = row.at(site, config.position) else {
        return Err(bad_input(format!(
            "position {} is not kept by the activations: name it in `positions` of their step: {}",
            serde_json::to_string(&config.position)?,
            activations.folder().display()
        )));
    };
    let norm = x.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    let scale = if norm > 0.0 { norm.recip() } else { 0.0 };
    Ok(x.iter().map(|&value| scale * f64::from(value)).collect())
}
