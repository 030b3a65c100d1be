//! The stage `agreement`: what scores foretell of retrainings, against what the retrainings did.
//!
//! reads   scores, retrainings
//! writes  agreement
//!
//! ```text
//! predicted(q, subset)  =  (w - 1) * sum over its examples z of influence(q, z)
//! measured(q, subset)   =  log p of q behind training with the weights w  -  log p of q behind training on the whole data
//! ```
//!
//! both of one seed, and the mean over seeds. The mean over queries of Spearman's correlation over subsets is the linear
//! datamodelling score, LDS (Park et al. 2023, arXiv 2303.14186).

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Agreed, Agreement, Artifact, Draft, Kind, Retraining, Retrainings, Score, Scores, bad_input};
use wherefrom_stage::{About, Cost, Exec, Role, Stage, Writes};

use crate::statistics::{interval, line, mean, mean_with_interval, pearson, spearman};

/// Raised when results change.
pub const VERSION: u32 = 1;

/// The stage `agreement`.
pub static STAGE: Stage<Config> = Stage {
    about: About::new("agreement", VERSION),
    roles: &[Role::required("scores", &[Kind::Scores]), Role::required("retrainings", &[Kind::Retrainings])],
    parse: serde_json::from_value,
    check: |_| Ok(()),
    writes: Writes::One(Kind::Agreement),
    makes_model: |_| None,
    cost: |_, planned, _| Cost::new(Cost::ROWS + 12.0 * planned.pairs("scores"), 1e5, 0.0),
    run: |config, given, exec, draft| run(config, &given.open("scores")?, &given.open("retrainings")?, exec, draft),
};

/// Of which subsets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Subsets {
    /// All of them.
    #[default]
    All,
    /// Those of odd number: what a knob is chosen on …
    Odd,
    /// … and those of even number: what is reported of it.
    Even,
    /// Subset q + 1 for query q: the query's own strongest examples.
    Own,
}

/// What is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Of which subsets.
    pub subsets: Subsets,
    /// Draws of the intervals.
    pub draws: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { subsets: Subsets::All, draws: 1000 }
    }
}

/// The runs of one subset, whose examples have one weight.
struct Subset {
    number: u32,
    factor: f64,
    examples: Vec<u64>,
    /// By seed and query: change of log p against the run on the whole data with that seed.
    changes: BTreeMap<u64, Vec<f64>>,
}

impl Subset {
    /// Mean change of a query over the seeds at even or odd places, or over all.
    fn change(&self, query: usize, half: Option<usize>) -> Option<f64> {
        let seeds = self.changes.values().enumerate().filter(|(place, _)| half.is_none_or(|half| place % 2 == half));
        let changes: Vec<f64> = seeds.map(|(_, changes)| changes[query]).collect();
        (!changes.is_empty()).then(|| mean(&changes))
    }
}

/// Compares.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a bank without a run on the whole data of a seed, or with other queries than the
/// scores.
pub fn run(
    config: &Config,
    scores: &Artifact<Scores>,
    retrainings: &Artifact<Retrainings>,
    exec: &Exec,
    draft: &mut Draft,
) -> Result<()> {
    same_measurement(scores, retrainings)?;
    if let Some(measured) = retrainings.manifest().summary.get("measured") {
        draft.summary("measured", measured)?;
    }
    let subsets = changes(retrainings)?;
    let queries = subsets.first().map_or(0, |subset| subset.changes.values().next().map_or(0, Vec::len));
    let mut influences: Vec<HashMap<u64, f32>> = vec![HashMap::new(); queries];
    exec.reporter.begin("agreement", "pairs", scores.manifest().rows(), 0);
    for score in scores.rows::<Score>()? {
        let Score { query, example, influence } = score?;
        let Some(of_query) = influences.get_mut(query as usize) else {
            return Err(bad_input(format!(
                "the scores have a query {query}, and the retrainings asked {queries}: give both the same queries"
            )));
        };
        of_query.insert(example, influence);
        exec.reporter.advance(1);
    }
    exec.reporter.end();
    let wanted = |subset: &&Subset, query: usize| match config.subsets {
        Subsets::All => true,
        Subsets::Odd => subset.number % 2 == 1,
        Subsets::Even => subset.number.is_multiple_of(2),
        Subsets::Own => subset.number as usize == query + 1,
    };
    let mut rows = Vec::new();
    for (query, influences) in influences.iter().enumerate() {
        let chosen: Vec<&Subset> = subsets.iter().filter(|subset| wanted(subset, query)).collect();
        let influence = |example: &u64| influences.get(example).map_or(0.0, |&influence| f64::from(influence));
        let predicted: Vec<f64> =
            (chosen.iter()).map(|subset| subset.factor * subset.examples.iter().map(influence).sum::<f64>()).collect();
        let measured: Vec<f64> = chosen.iter().filter_map(|subset| subset.change(query, None)).collect();
        rows.push(agreed(config, query, &chosen, &predicted, &measured));
    }
    summarise(config, &rows, draft)?;
    draft.write_rows::<Agreement, _>(0, &rows)
}

fn agreed(config: &Config, query: usize, chosen: &[&Subset], predicted: &[f64], measured: &[f64]) -> Agreed {
    let narrow = |values: &[f64]| values.iter().map(|&value| value as f32).collect::<Vec<f32>>();
    let with_interval = |statistic: fn(&[f64], &[f64]) -> Option<f64>| -> Vec<f32> {
        let Some(value) = statistic(predicted, measured) else { return Vec::new() };
        let pick = |values: &[f64], places: &[usize]| places.iter().map(|&place| values[place]).collect::<Vec<_>>();
        let again = |places: &[usize]| statistic(&pick(predicted, places), &pick(measured, places));
        let drawn = interval(chosen.len(), config.draws, query as u64, again);
        narrow(&[vec![value], drawn.map_or(Vec::new(), Vec::from)].concat())
    };
    let halves: Vec<(f64, f64)> = (chosen.iter())
        .filter_map(|subset| Some((subset.change(query, Some(0))?, subset.change(query, Some(1))?)))
        .collect();
    let (one, other): (Vec<f64>, Vec<f64>) = halves.into_iter().unzip();
    Agreed {
        query: query as u32,
        spearman: with_interval(spearman),
        pearson: with_interval(pearson),
        line: line(predicted, measured).map_or(Vec::new(), |line| narrow(&line)),
        ceiling: spearman(&one, &other).map_or(Vec::new(), |value| narrow(&[value])),
        subset: chosen.iter().map(|subset| subset.number).collect(),
        predicted: narrow(predicted),
        measured: narrow(measured),
    }
}

/// Means over queries, with intervals from drawing queries again.
fn summarise(config: &Config, rows: &[Agreed], draft: &mut Draft) -> Result<()> {
    let over_queries = |of: fn(&Agreed) -> Option<f32>| {
        mean_with_interval(&rows.iter().filter_map(of).map(f64::from).collect::<Vec<_>>(), config.draws)
    };
    let change: fn(&Agreed) -> Option<f32> =
        |row| (!row.measured.is_empty()).then(|| row.measured.iter().sum::<f32>() / row.measured.len() as f32);
    for (name, of) in [
        ("lds", (|row| row.spearman.first().copied()) as fn(&Agreed) -> Option<f32>),
        ("pearson", |row| row.pearson.first().copied()),
        ("slope", |row| row.line.first().copied()),
        ("ceiling", |row| row.ceiling.first().copied()),
        ("change", change),
    ] {
        draft.summary(name, over_queries(of))?;
    }
    let pooled =
        |of: fn(&Agreed) -> &Vec<f32>| rows.iter().flat_map(of).map(|&value| f64::from(value)).collect::<Vec<_>>();
    let (predicted, measured) = (pooled(|row| &row.predicted), pooled(|row| &row.measured));
    draft.summary("pooled_pearson", pearson(&predicted, &measured))?;
    draft.summary("pooled_line", line(&predicted, &measured))?;
    draft.summary("queries", rows.len())?;
    draft.summary("queries_without_correlation", rows.iter().filter(|row| row.spearman.is_empty()).count())
}

/// Scores in a unit that says what they raise are held against a bank that measured the same. Those of other methods, such as
/// BM25, are held against either.
fn same_measurement(scores: &Artifact<Scores>, retrainings: &Artifact<Retrainings>) -> Result<()> {
    let unit = scores.metadata("unit")?.unwrap_or_default();
    let bank = retrainings.manifest().summary.get("measured").map(|measured| measured["vector"].to_string());
    let fine = match &bank {
        None => !unit.starts_with("projection"),
        Some(_) => !unit.starts_with("nats"),
    };
    if fine {
        return Ok(());
    }
    let measured = bank.map_or_else(|| "log-probabilities".into(), |vector| format!("the projection on {vector}"));
    Err(bad_input(format!(
        "the scores are {unit}, and the retrainings measured {measured}: give the step `retrain` the `measure` of the gradients, or none"
    )))
}

/// The subsets of a bank in order, the whole data aside, with what each did to every query.
fn changes(retrainings: &Artifact<Retrainings>) -> Result<Vec<Subset>> {
    let rows: Vec<Retraining> = retrainings.rows()?.collect::<Result<_>>()?;
    let whole: HashMap<u64, &Retraining> =
        rows.iter().filter(|row| row.subset == 0).map(|row| (row.seed, row)).collect();
    let mut subsets: BTreeMap<u32, Subset> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.subset > 0) {
        let Some(whole) = whole.get(&row.seed).filter(|whole| whole.loss.len() == row.loss.len()) else {
            return Err(bad_input(format!(
                "the bank has no run on the whole data with seed {} for the same queries: make it with the stage retrain",
                row.seed
            )));
        };
        // -loss is log p.
        let change =
            row.loss.iter().zip(&whole.loss).map(|(now, before)| f64::from(*before) - f64::from(*now)).collect();
        let subset = subsets.entry(row.subset).or_insert_with(|| Subset {
            number: row.subset,
            factor: f64::from(row.weight) - 1.0,
            examples: row.examples.clone(),
            changes: BTreeMap::new(),
        });
        subset.changes.insert(row.seed, change);
    }
    if subsets.is_empty() {
        return Err(bad_input("the bank has no run but those on the whole data: give it subsets"));
    }
    Ok(subsets.into_values().collect())
}
