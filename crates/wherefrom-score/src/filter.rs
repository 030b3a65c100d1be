//! Pairs worth scoring where a full scan costs too much: the token-overlap filter of Grosse et al. 2023, section 3.2.1.
//!
//! By BM25, which favours shared words, or by how far the sequences lie along a direction: what is left out is never scored.
//!
//! reads   tokens of the queries, tokens of the corpus; projections of the corpus
//! writes  candidates

use std::cmp::Ordering;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{
    Artifact, Candidate, Candidates, Draft, Example, Kind, Projection, Projections, Reading, Row, Tokens, bad_input,
};
use wherefrom_stage::{About, Cost, Exec, Role, Stage, Writes, at_least};

use crate::bm25::Bm25;

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `filter`.
pub static STAGE: Stage<Config> = Stage {
    about: About::new("filter", VERSION),
    roles: &[
        Role::required("queries", &[Kind::Tokens]),
        Role::required("tokens", &[Kind::Tokens]),
        Role::optional("projections", &[Kind::Projections]),
    ],
    parse: |knobs| at_least("top", 1, knobs),
    check: Config::check,
    writes: Writes::One(Kind::Candidates),
    makes_model: |_| None,
    cost: |_, planned, _| Cost::new(Cost::ROWS + 16.0 * planned.size_of("tokens").tokens, 1e6, 0.0),
    run: |config, given, exec, draft| {
        let projections = given.maybe("projections")?;
        run(
            config,
            &Inputs { queries: given.open("queries")?, tokens: given.open("tokens")?, projections },
            exec,
            draft,
        )
    },
};

/// How many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Candidates per query.
    pub top: usize,
    /// Of projections, the direction that counts, by its name (`evil.response-avg.16`); needed where they are on several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self { top: 10_000, direction: None }
    }
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        if self.top == 0 { Err(bad_input("top = 0 keeps no pair; set it to 1 or more")) } else { Ok(()) }
    }
}

/// What is compared.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Queries: prompt and completion together.
    pub queries: Artifact<Tokens>,
    /// Training sequences.
    pub tokens: Artifact<Tokens>,
    /// How far they lie along directions: in place of shared words.
    pub projections: Option<Artifact<Projections>>,
}

/// The best candidates of each query; equal scores by example number. Pairs without a common token are none.
///
/// Of projections every query has the same candidates: those that lie furthest along the direction, by their difference where there is
/// one.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    if draft.has(0) {
        return Ok(());
    }
    if let Some(projections) = &inputs.projections {
        let mut best = along(config, projections)?;
        cut(&mut best, config.top);
        let queries = inputs.queries.examples();
        let rows = (0..u32::try_from(queries)?).flat_map(|query| {
            let row = move |&(score, example): &(f64, u64)| Candidate {
                query,
                example,
                score: score as f32,
                source: "projection".into(),
            };
            best.iter().map(row)
        });
        return draft.write_rows::<Candidates, _>(0, &rows.collect::<Vec<_>>());
    }
    if config.direction.is_some() {
        return Err(bad_input(
            "`direction` is of the input `projections`, which is not there: wire it, or leave the knob out",
        ));
    }
    exec.reporter.begin("filter", "examples", 2 * inputs.tokens.examples(), 0);
    let bm25 = Bm25::new(&inputs.queries, &inputs.tokens, exec)?;
    let mut best: Vec<Vec<(f64, u64)>> = vec![Vec::new(); bm25.queries()];
    for example in inputs.tokens.rows::<Example>()? {
        let example = example?;
        for (score, kept) in bm25.scores(&example).into_iter().zip(&mut best) {
            if score > 0.0 {
                kept.push((score, example.example));
                if kept.len() >= 2 * config.top + 1024 {
                    cut(kept, config.top);
                }
            }
        }
        exec.reporter.advance(1);
    }
    let mut rows = Vec::new();
    for (query, kept) in best.iter_mut().enumerate() {
        cut(kept, config.top);
        let query = u32::try_from(query)?;
        rows.extend(kept.iter().map(|&(score, example)| Candidate {
            query,
            example,
            score: score as f32,
            source: "bm25".into(),
        }));
    }
    draft.write(0, &[<Candidate as Row<Candidates>>::to_batch(&rows)?])?;
    exec.reporter.end();
    Ok(())
}

/// What counts of each example on the direction, with its number.
fn along(config: &Config, projections: &Artifact<Projections>) -> Result<Vec<(f64, u64)>> {
    let names = projections.directions()?;
    let query = match &config.direction {
        None if names.len() < 2 => Some(0),
        None => None,
        Some(direction) => names.iter().position(|name| name == direction),
    };
    let query = query.ok_or_else(|| {
        let first = names.first().map_or("", |name| name);
        bad_input(format!("the projections are on {}: name one of them, direction = \"{first}\"", names.join(", ")))
    })? as u32;
    let reading = Reading::of(projections)?;
    let own = projections.rows::<Projection>()?.filter(|row| row.as_ref().map_or(true, |row| row.query == query));
    own.map(|row| reading.score(&row?).map(|score| (f64::from(score.influence), score.example))).collect()
}

fn cut(kept: &mut Vec<(f64, u64)>, top: usize) {
    kept.sort_by(|left, right| match right.0.total_cmp(&left.0) {
        Ordering::Equal => left.1.cmp(&right.1),
        other => other,
    });
    kept.truncate(top);
}
