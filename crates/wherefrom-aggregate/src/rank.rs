//! The strongest examples of every query, by sign.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{
    Artifact, Asked, Cells, Columns, Details, Draft, Error, Example, Kind, Projection, Projections, Ranked, Ranking,
    Reading, Score, Scores, Tokens, bad_input,
};
use wherefrom_stage::{About, Cost, Exec, Role, Stage, Writes, at_least};

/// Raised when results change.
pub const VERSION: u32 = 2;

/// The stage `rank`.
pub static STAGE: Stage<Config> = Stage {
    about: About::new("rank", VERSION),
    roles: &[
        Role::required("scores", &[Kind::Scores, Kind::Details, Kind::Projections]),
        Role::required("tokens", &[Kind::Tokens]),
        Role::optional("queries", &[Kind::Tokens]),
        Role::optional("columns", &[Kind::Columns]),
    ],
    parse: |knobs| at_least("top", 1, knobs),
    check: Config::check,
    writes: Writes::One(Kind::Ranking),
    makes_model: |_| None,
    cost: |_, planned, _| Cost::new(Cost::ROWS + 24.0 * planned.pairs("scores"), 1e6, 0.0),
    run: |config, given, exec, draft| {
        let scores = match given.kind("scores")? {
            Some(Kind::Details) => Scored::Details(given.open("scores")?),
            Some(Kind::Projections) => Scored::Projections(given.open("scores")?),
            _ => Scored::Scores(given.open("scores")?),
        };
        let (queries, columns) = (given.maybe("queries")?, given.maybe("columns")?);
        run(config, &Inputs { scores, tokens: given.open("tokens")?, queries, columns }, exec, draft)
    },
};

/// How many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Rows per query and sign.
    pub top: usize,
    /// Of projections, which number counts: the difference where there is one, unless it is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<Reading>,
}

impl Default for Config {
    fn default() -> Self {
        Self { top: 100, by: None }
    }
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        if self.top == 0 { Err(bad_input("top = 0 ranks nothing; set it to 1 or more")) } else { Ok(()) }
    }
}

/// What is ranked.
#[derive(Debug, Clone)]
pub enum Scored {
    /// A scan's.
    Scores(Artifact<Scores>),
    /// A second pass'.
    Details(Artifact<Details>),
    /// How far examples lie along directions, each of which is a query.
    Projections(Artifact<Projections>),
}

/// What is ranked, and where its text is.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Influences.
    pub scores: Scored,
    /// Where text and document names come from.
    pub tokens: Artifact<Tokens>,
    /// The queries in words.
    pub queries: Option<Artifact<Tokens>>,
    /// What comes with the examples.
    pub columns: Option<Artifact<Columns>>,
}

/// Ranks by influence; equal influences by example number.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let total = match &inputs.scores {
        Scored::Scores(scores) => scores.manifest().rows(),
        Scored::Details(details) => details.manifest().rows(),
        Scored::Projections(projections) => projections.manifest().rows(),
    };
    let mut asked: HashMap<u64, Asked> = HashMap::new();
    let reading = match (&inputs.scores, config.by) {
        (Scored::Projections(projections), by) => {
            if inputs.queries.is_some() {
                return Err(bad_input("the queries of projections are directions: leave the input `queries` out"));
            }
            let reading = by.map_or_else(|| Reading::of(projections), Ok)?;
            draft.metadata("unit", reading.unit());
            draft.metadata("sign", reading.sign());
            asked.extend(
                (0..).zip(projections.directions()?).map(|(query, id)| (query, Asked { id, ..Asked::default() })),
            );
            reading
        }
        (_, Some(_)) => return Err(bad_input("`by` says which number of projections counts; leave it out for scores")),
        (_, None) => Reading::Projection,
    };
    for name in ["unit", "sign", "method"] {
        let value = match &inputs.scores {
            Scored::Scores(scores) => scores.metadata(name)?,
            Scored::Details(details) => details.metadata(name)?,
            Scored::Projections(_) => None,
        };
        value.into_iter().for_each(|value| draft.metadata(name, value));
    }
    draft.summary("pairs", total)?;
    if draft.has(0) {
        return Ok(());
    }
    exec.reporter.begin("rank", "pairs", total, 0);
    // The best so far of each query and sign, cut back whenever it doubles.
    let mut best: BTreeMap<(u32, bool), Vec<Score>> = BTreeMap::new();
    let examples = inputs.tokens.examples();
    let mut push = |row: Result<Score>| -> Result<()> {
        let row = row?;
        if !row.influence.is_finite() {
            return Err(Error::Mismatch(format!(
                "the influence of example {} on query {} is {}; score again, without what is not finite",
                row.example, row.query, row.influence
            ))
            .into());
        }
        if row.example >= examples {
            return Err(Error::Mismatch(format!(
                "the scores name example {}, and the tokens have {examples}; wire the tokens that were scored",
                row.example
            ))
            .into());
        }
        if row.influence != 0.0 {
            let kept = best.entry((row.query, row.influence > 0.0)).or_default();
            kept.push(row);
            if kept.len() >= 2 * config.top + 1024 {
                cut(kept, config.top);
            }
        }
        exec.reporter.advance(1);
        Ok(())
    };
    match &inputs.scores {
        Scored::Scores(scores) => scores.rows::<Score>()?.try_for_each(&mut push)?,
        Scored::Details(details) => details.rows::<Score>()?.try_for_each(&mut push)?,
        Scored::Projections(projections) => {
            projections.rows::<Projection>()?.try_for_each(|row| push(row.and_then(|row| reading.score(&row))))?
        }
    }
    let mut texts: HashMap<u64, (String, String, Cells)> = HashMap::new();
    for ((query, _), kept) in &mut best {
        cut(kept, config.top);
        let mut seen = HashSet::new();
        if let Some(twice) = kept.iter().find(|row| !seen.insert(row.example)) {
            let what = format!("query {query} and example {} are scored twice", twice.example);
            return Err(Error::Mismatch(what).into());
        }
        texts.extend(kept.iter().map(|row| (row.example, Default::default())));
    }
    for part in 0..inputs.tokens.parts() {
        for example in inputs.tokens.rows_in::<Example>(part)? {
            let example = example?;
            if let Some(entry) = texts.get_mut(&example.example) {
                (entry.0, entry.1) = (example.docs.join(" + "), example.text);
            }
        }
    }
    if let Some(columns) = &inputs.columns {
        let mut kept = Cells::default().columns;
        for row in columns.by_example()? {
            let (example, cells) = row?;
            kept = cells.columns.clone();
            if let Some(entry) = texts.get_mut(&example) {
                entry.2 = cells;
            }
        }
        draft.keep(&kept);
    }
    if let Some(queries) = &inputs.queries {
        for query in queries.rows::<Example>()? {
            let query = query?;
            asked.insert(query.example, query.asked());
        }
    }
    let mut rows = Vec::new();
    // Positive before negative.
    let mut order: Vec<_> = best.iter().collect();
    order.sort_by_key(|((query, positive), _)| (*query, !*positive));
    for ((query, positive), kept) in order {
        for (index, row) in kept.iter().enumerate() {
            let (doc, text, cells) = texts.get(&row.example).cloned().unwrap_or_default();
            rows.push(Ranked {
                query: *query,
                positive: *positive,
                rank: u32::try_from(index + 1)?,
                example: row.example,
                doc,
                influence: row.influence,
                text,
                asked: asked.get(&u64::from(row.query)).cloned().unwrap_or_default(),
                cells,
            });
        }
    }
    draft.write_rows::<Ranking, _>(0, &rows)?;
    exec.reporter.end();
    Ok(())
}

fn cut(kept: &mut Vec<Score>, top: usize) {
    kept.sort_by(|left, right| {
        right.influence.abs().total_cmp(&left.influence.abs()).then(left.example.cmp(&right.example))
    });
    kept.truncate(top);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;
    use wherefrom_artifact::{ArtifactKind, Recipe, Row, Silent, Store};

    use super::*;

    fn sealed<K: ArtifactKind>(store: &Store, fill: impl FnOnce(&mut Draft) -> Result<()>) -> Artifact<K> {
        let inputs = BTreeMap::new();
        let recipe = Recipe { stage: K::KIND.name().into(), version: 1, config: Value::Null, inputs, model: None };
        let (folder, _) = store.produce(K::KIND, recipe, &Silent, fill).unwrap();
        Artifact::open(&folder).unwrap()
    }

    /// What is kept of these scores, by query, sign, rank and example; twelve examples, each named after its number.
    fn ranked(top: usize, scores: &[(u32, u64, f32)]) -> Vec<(u32, bool, u32, u64)> {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let score = |&(query, example, influence): &(u32, u64, f32)| Score { query, example, influence };
        let scores: Vec<Score> = scores.iter().map(score).collect();
        let scores = sealed::<Scores>(&store, |draft| draft.write(0, &[<Score as Row<Scores>>::to_batch(&scores)?]));
        let example = |number: u64| Example {
            example: number,
            docs: vec![format!("doc {number}")],
            doc_starts: vec![0],
            input_ids: vec![1, 2],
            target_mask: vec![false, true],
            text: format!("text {number}"),
            ..Example::default()
        };
        let tokens: Vec<Example> = (0..12).map(example).collect();
        let tokens = sealed::<Tokens>(&store, |draft| draft.write(0, &[Example::to_batch(&tokens)?]));
        let inputs = Inputs { scores: Scored::Scores(scores), tokens, queries: None, columns: None };
        let ranking =
            sealed::<Ranking>(&store, |draft| run(&Config { top, by: None }, &inputs, &Exec::default(), draft));
        let rows = ranking.read::<Ranked>(0).unwrap();
        for row in &rows {
            assert_eq!((&row.doc, &row.text), (&format!("doc {}", row.example), &format!("text {}", row.example)));
        }
        rows.iter().map(|row| (row.query, row.positive, row.rank, row.example)).collect()
    }

    #[test]
    fn each_sign_has_its_strongest_and_ties_go_by_number() {
        let scores = [(0, 1, 0.5), (0, 2, -3.0), (0, 3, 2.0), (0, 4, 0.5), (0, 5, 0.0), (0, 6, -1.0), (1, 7, 1e-30)];
        let all =
            [(0, true, 1, 3), (0, true, 2, 1), (0, true, 3, 4), (0, false, 1, 2), (0, false, 2, 6), (1, true, 1, 7)];
        assert_eq!(ranked(9, &scores), all);
        assert_eq!(ranked(1, &scores), [all[0], all[3], all[5]]);
    }

    /// Each direction is a query with its name; the difference counts, or the number that is asked for.
    #[test]
    fn projections_are_ranked_by_their_difference() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let example = |number: u64| Example {
            example: number,
            docs: vec![format!("doc {number}")],
            doc_starts: vec![0],
            input_ids: vec![1, 2],
            target_mask: vec![false, true],
            ..Example::default()
        };
        let examples: Vec<Example> = (0..3).map(example).collect();
        let tokens = sealed::<Tokens>(&store, |draft| draft.write(0, &[Example::to_batch(&examples)?]));
        let row = |query, example, projection, difference| Projection {
            query,
            example,
            projection,
            cosine: 0.1,
            difference,
            by_token: vec![],
        };
        let ranked = |differences: [f32; 4], by: Option<Reading>| -> Result<Vec<Ranked>> {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::new(folder.path());
            let [a, b, c, d] = differences;
            let rows = [row(0, 0, 5.0, a), row(0, 1, 4.0, b), row(0, 2, -3.0, c), row(1, 0, 2.0, d)];
            let projections = sealed::<Projections>(&store, |draft| {
                draft.summary("directions", ["evil.response-avg.3", "kind.response-avg.3"])?;
                draft.write_rows::<Projections, _>(0, &rows)
            });
            let inputs = Inputs {
                scores: Scored::Projections(projections),
                tokens: tokens.clone(),
                queries: None,
                columns: None,
            };
            let recipe =
                Recipe { stage: "rank".into(), version: 1, config: Value::Null, inputs: BTreeMap::new(), model: None };
            let config = Config { by, ..Config::default() };
            let (folder, _) = store
                .produce(Kind::Ranking, recipe, &Silent, |draft| run(&config, &inputs, &Exec::default(), draft))?;
            let ranking = Artifact::<Ranking>::open(&folder)?;
            let unit = ranking.metadata("unit")?.unwrap();
            assert_eq!(unit == "projection difference", by.is_none() && !a.is_nan(), "{unit}");
            ranking.read::<Ranked>(0)
        };
        let order =
            |rows: &[Ranked]| rows.iter().map(|row| (row.query, row.example, row.influence)).collect::<Vec<_>>();
        let found = ranked([-1.0, 2.0, 0.5, 0.25], None).unwrap();
        assert_eq!(order(&found), [(0, 1, 2.0), (0, 2, 0.5), (0, 0, -1.0), (1, 0, 0.25)]);
        assert_eq!((&found[0].asked.id[..], &found[3].asked.id[..]), ("evil.response-avg.3", "kind.response-avg.3"));
        let raw = [(0, 0, 5.0), (0, 1, 4.0), (0, 2, -3.0), (1, 0, 2.0)];
        assert_eq!(order(&ranked([f32::NAN; 4], None).unwrap()), raw);
        assert_eq!(order(&ranked([1.0; 4], Some(Reading::Projection)).unwrap()), raw);
        let error = ranked([f32::NAN; 4], Some(Reading::Difference)).unwrap_err().to_string();
        assert!(error.contains("have no difference"), "{error}");
    }
}
