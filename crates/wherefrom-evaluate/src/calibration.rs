//! The stage `calibration`: influences in the nats that retrainings have been seen to give, with an interval.
//!
//! reads   a ranking, the agreement of its scores with a bank
//! writes  calibration
//!
//! ```text
//! measured  =  slope * predicted + residual       the line through 0 with the least squares, over subsets of odd number
//! nats      =  slope * influence
//! interval  =  where 95 in 100 of  slope' * influence + residual'  lie: slope' from drawing again, residual' one of those found
//! ```
//!
//! No influence is no change: hence through 0. The interval is of what one retraining would measure, its noise included. How often
//! it holds what was measured is counted on the subsets of even number, which the line has not seen.

use std::collections::BTreeMap;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{
    Agreed, Agreement, Artifact, Calibrated, Calibration, Draft, Error, Kind, Ranked, Ranking, bad_input,
};
use wherefrom_linalg::random::uniform;
use wherefrom_stage::{About, Cost, Role, Stage, Writes, at_least};

use crate::statistics::{between, interval};

/// Raised when results change.
pub const VERSION: u32 = 1;

/// Subsets of odd number that a line of a query's own needs.
const FEWEST: usize = 5;

/// The stage `calibration`.
pub static STAGE: Stage<Config> = Stage {
    about: About::new("calibration", VERSION),
    roles: &[Role::required("ranking", &[Kind::Ranking]), Role::required("agreement", &[Kind::Agreement])],
    parse: |knobs| at_least("draws", 1, knobs),
    check: |_| Ok(()),
    writes: Writes::One(Kind::Calibration),
    makes_model: |_| None,
    cost: |_, _, _| Cost::new(Cost::ROWS, 1e5, 0.0),
    run: |config, given, _, draft| run(config, &given.open("ranking")?, &given.open("agreement")?, draft),
};

/// Whose pairs of predicted and measured changes a line is fitted on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// The query's own.
    #[default]
    Query,
    /// Those of all queries, one line for the study: for a handful of retrainings.
    Study,
}

/// What is fitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// A line for each query, or one for the study.
    pub by: By,
    /// Draws of the intervals.
    pub draws: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { by: By::default(), draws: 1000 }
    }
}

/// A predicted and a measured change of log p.
#[derive(Debug, Clone, Copy)]
struct Pair {
    predicted: f64,
    measured: f64,
}

/// The pairs of a query whose subset has an odd number, or an even one.
fn pairs(row: &Agreed, odd: bool) -> Vec<Pair> {
    let all = row.subset.iter().zip(row.predicted.iter().zip(&row.measured));
    all.filter(|(subset, _)| (**subset % 2 == 1) == odd)
        .map(|(_, (&predicted, &measured))| Pair { predicted: predicted.into(), measured: measured.into() })
        .collect()
}

/// A line through 0, and how far off it is.
struct Line {
    /// With the ends of its interval.
    slope: [f64; 3],
    /// The largest change that was foretold where it was fitted.
    reach: f64,
    /// Slopes from drawing again, each with a residual.
    drawn: Vec<[f64; 2]>,
}

impl Line {
    /// Of pairs in groups that are drawn as one: a pair each, or all those of a query. None where nothing was foretold.
    fn fitted(groups: &[Vec<Pair>], draws: u64, stream: u64) -> Option<Self> {
        let sums = groups.iter().map(|group| {
            let products = group.iter().map(|pair| [pair.predicted * pair.measured, pair.predicted.powi(2)]);
            products.fold([0.0; 2], |sum, one| [sum[0] + one[0], sum[1] + one[1]])
        });
        let sums: Vec<[f64; 2]> = sums.collect();
        let of = |places: &[usize]| {
            let sum = |part: usize| places.iter().map(|&place| sums[place][part]).sum::<f64>();
            (sum(1) > 0.0).then(|| sum(0) / sum(1))
        };
        let slope = of(&(0..groups.len()).collect::<Vec<_>>())?;
        let residuals: Vec<f64> = groups.iter().flatten().map(|pair| pair.measured - slope * pair.predicted).collect();
        let mut drawn = Vec::new();
        let ends = interval(groups.len(), draws, stream, |places| {
            let again = of(places)?;
            let place = uniform(!stream, drawn.len() as u64, 0) * residuals.len() as f64;
            drawn.push([again, residuals[place as usize]]);
            Some(again)
        })?;
        let reach = groups.iter().flatten().fold(0.0_f64, |most, pair| most.max(pair.predicted.abs()));
        Some(Self { slope: [slope, ends[0], ends[1]], reach, drawn })
    }

    /// What a change that is foretold is in nats, and the ends of the interval.
    fn nats(&self, predicted: f64) -> [f64; 3] {
        let [low, high] = between(self.drawn.iter().map(|[slope, residual]| slope * predicted + residual).collect())
            .unwrap_or_default();
        [self.slope[0] * predicted, low, high]
    }
}

/// Fits, counts how often the intervals hold, and calibrates what is ranked.
///
/// # Errors
/// [`Error::Mismatch`] for a ranking of other scores; [`Error::Input`] for a bank with too few subsets, or of a projection.
pub fn run(
    config: &Config,
    ranking: &Artifact<Ranking>,
    agreement: &Artifact<Agreement>,
    draft: &mut Draft,
) -> Result<()> {
    if agreement.manifest().summary.contains_key("measured") {
        return Err(bad_input(
            "the bank measured a projection, and calibration is in nats: give it a bank of log-probabilities",
        ));
    }
    let scores = |inputs: &BTreeMap<String, String>| inputs.get("scores").cloned();
    let [ranked, compared] = [&ranking.manifest().recipe.inputs, &agreement.manifest().recipe.inputs].map(scores);
    if let (Some(ranked), Some(compared)) = (ranked, compared)
        && ranked != compared
    {
        return Err(Error::Mismatch(format!(
            "the ranking is of the scores {ranked} and the agreement of the scores {compared}: a calibration holds for \
             the scores that it was measured of; wire both to the same"
        ))
        .into());
    }
    let agreed: Vec<Agreed> = agreement.rows()?.collect::<Result<_>>()?;
    let study = Line::fitted(&agreed.iter().map(|row| pairs(row, true)).collect::<Vec<_>>(), config.draws, u64::MAX)
        .ok_or_else(|| {
            bad_input("no subset of odd number has a change that is foretold: give the bank more subsets")
        })?;
    let mut by_query: BTreeMap<u32, Vec<(u64, f32)>> = BTreeMap::new();
    for row in ranking.rows::<Ranked>()? {
        let row = row?;
        by_query.entry(row.query).or_default().push((row.example, row.influence));
    }
    let (mut rows, mut beyond, mut widths) = (Vec::new(), 0, Vec::new());
    for row in &agreed {
        let own = match config.by {
            By::Study => None,
            By::Query => Some(own(config, row)?),
        };
        let line = own.as_ref().unwrap_or(&study);
        let checked = pairs(row, false);
        let held = checked.iter().filter(|pair| {
            let [_, low, high] = line.nats(pair.predicted);
            widths.push(high - low);
            low <= pair.measured && pair.measured <= high
        });
        let covered = vec![held.count() as u32, checked.len() as u32];
        let ranked = by_query.remove(&row.query).unwrap_or_default();
        let nats: Vec<[f64; 3]> = ranked.iter().map(|&(_, influence)| line.nats(influence.into())).collect();
        beyond += ranked.iter().filter(|&&(_, influence)| f64::from(influence).abs() > line.reach).count();
        let part = |place: usize| nats.iter().map(|nats| nats[place] as f32).collect();
        rows.push(Calibrated {
            query: row.query,
            slope: line.slope.map(|value| value as f32).to_vec(),
            reach: line.reach as f32,
            covered,
            example: ranked.iter().map(|&(example, _)| example).collect(),
            influence: ranked.iter().map(|&(_, influence)| influence).collect(),
            nats: part(0),
            low: part(1),
            high: part(2),
        });
    }
    if let Some(query) = by_query.keys().next() {
        return Err(bad_input(format!(
            "the ranking has a query {query}, and the bank did not ask it: give both the same queries"
        )));
    }
    if widths.is_empty() {
        return Err(bad_input("the bank has no subset of even number to check the interval on: give it more subsets"));
    }
    let held: u32 = rows.iter().map(|row| row.covered[0]).sum();
    draft.summary("slope", study.slope)?;
    draft.summary("held", f64::from(held) / widths.len() as f64)?;
    draft.summary("checked", widths.len())?;
    draft.summary("width", widths.iter().sum::<f64>() / widths.len() as f64)?;
    draft.summary("queries", rows.len())?;
    draft.summary("beyond", beyond)?;
    draft.write_rows::<Calibration, _>(0, &rows)
}

/// The line of a query's own pairs.
fn own(config: &Config, row: &Agreed) -> Result<Line> {
    let fitted: Vec<Vec<Pair>> = pairs(row, true).into_iter().map(|pair| vec![pair]).collect();
    let line = (fitted.len() >= FEWEST).then(|| Line::fitted(&fitted, config.draws, row.query.into()));
    line.flatten().ok_or_else(|| {
        bad_input(format!(
            "query {} has {} subsets of odd number to fit its line on, and needs {FEWEST} with a change that is foretold: \
             give the bank more subsets, or set by = \"study\"",
            row.query,
            fitted.len()
        ))
    })
}
