//! What is known of traits, side by side: directions and their controls, projections of two sides, judgements of steered answers,
//! and where known sources rank.
//!
//! ```text
//! area under the curve  =  share of pairs (a text of a, a text of b) in which that of a lies further along, ties counted half
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;
use wherefrom_artifact::origin::Fact;
use wherefrom_artifact::text::steered;
use wherefrom_artifact::{
    Artifact, Example, Judgement, Judgements, Kind, Projection, Projections, Retrieval, Retrieved, Store, Tokens,
    TraitVector, Vectors, bad_input, open_any,
};
use wherefrom_linalg::ranks;

use crate::spearman::spearman;

/// The metric that every judge has beside the trait's.
const COHERENCE: &str = "coherence";

/// Two artifacts of one of these kinds side by side.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Traits {
    /// Vectors, and those that they are held against.
    Vectors(Vec<Held>),
    /// Projections of the texts of two sides.
    Projections(Vec<Apart>),
    /// Scores of steered answers by coefficient: of a, and of b.
    Judgements([Vec<Curve>; 2]),
    /// Where known sources rank by queries of a, against all queries of b.
    Retrieval(Vec<Found>),
}

/// A vector against others at its site.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Held {
    /// `TRAIT.OVER.SITE`.
    pub direction: String,
    /// ‖v‖.
    pub norm: f32,
    /// ‖v‖ over the median norm of the stream; NaN where that is not known.
    pub share: f32,
    /// How many others there are at this site.
    pub others: usize,
    /// The largest of their norms.
    pub largest: f32,
    /// How many of them are not as long.
    pub shorter: usize,
    /// The cosine with another that is furthest from 0.
    pub cosine: f64,
}

/// A query whose sources are known, against others.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    /// Its number.
    pub query: u32,
    /// Mean over its sources, the k-th of them at rank r, of k / r.
    pub average_precision: f64,
    /// How many others have sources.
    pub others: usize,
    /// How many of them have a lower average precision.
    pub lower: usize,
    /// Their mean.
    pub mean: f64,
    /// The highest of them.
    pub highest: f64,
}

/// Texts of two sides along a direction.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Apart {
    /// `TRAIT.OVER.SITE`.
    pub direction: String,
    /// Area under the curve, of a over b.
    pub auroc: f64,
    /// Mean projections.
    pub means: [f64; 2],
    /// Mean of a less mean of b.
    pub difference: f64,
    /// Its standard error, texts taken as independent.
    pub deviation: f64,
}

/// Mean scores of steered answers by coefficient.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curve {
    /// Whose vector steers, where the names of the rows say it.
    pub of: String,
    /// Layer, as the names of the rows have it.
    pub layer: String,
    /// What was judged.
    pub metric: String,
    /// Coefficients, from the lowest on.
    pub coefficients: Vec<f64>,
    /// The mean score at each.
    pub scores: Vec<f64>,
    /// The mean coherence at each; NaN where it was not judged.
    pub coherence: Vec<f64>,
    /// Least-squares slope of the mean scores: points per unit of the coefficient.
    pub slope: f64,
    /// Spearman's correlation of coefficient and mean score.
    pub spearman: f64,
}

/// Compares two artifacts, where both are vectors, projections or judgements; none where they are of other kinds.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] where the two have nothing in common, and for judgements of answers that were not steered or
/// are not in the store.
pub fn traits(store: &Store, a: &Path, b: &Path) -> Result<Option<Traits>> {
    Ok(Some(match (open_any(a)?.kind, open_any(b)?.kind) {
        (Kind::Vectors, Kind::Vectors) => Traits::Vectors(held(&rows_of(a)?, &rows_of(b)?)?),
        (Kind::Projections, Kind::Projections) => Traits::Projections(apart(a, b)?),
        (Kind::Judgements, Kind::Judgements) => Traits::Judgements([curves(store, a)?, curves(store, b)?]),
        (Kind::Retrieval, Kind::Retrieval) => Traits::Retrieval(found(&precisions(a)?, &precisions(b)?)),
        _ => return Ok(None),
    }))
}

/// Number and average precision of each query that has sources.
fn precisions(folder: &Path) -> Result<Vec<(u32, f64)>> {
    let rows: Vec<Retrieved> = Artifact::<Retrieval>::open(folder)?.rows()?.collect::<Result<_>>()?;
    Ok(rows.iter().filter(|row| row.sources > 0).map(|row| (row.query, row.average_precision())).collect())
}

fn found(queries: &[(u32, f64)], others: &[(u32, f64)]) -> Vec<Found> {
    let others: Vec<f64> = others.iter().map(|(_, precision)| *precision).collect();
    let each = |&(query, average_precision): &(u32, f64)| {
        let lower = others.iter().filter(|other| **other < average_precision).count();
        Found { query, average_precision, others: others.len(), lower, mean: mean(&others), highest: ends(&others)[1] }
    };
    queries.iter().map(each).collect()
}

fn rows_of(folder: &Path) -> Result<Vec<TraitVector>> {
    Artifact::<Vectors>::open(folder)?.rows()?.collect()
}

fn held(vectors: &[TraitVector], others: &[TraitVector]) -> Result<Vec<Held>> {
    let mut found = Vec::new();
    for row in vectors {
        let here = |other: &&TraitVector| {
            (&other.site, other.over, other.vector.len()) == (&row.site, row.over, row.vector.len())
        };
        let others: Vec<_> = others.iter().filter(here).collect();
        if others.is_empty() {
            continue;
        }
        let cosine = |other: &&TraitVector| {
            let dot: f64 = row.vector.iter().zip(&other.vector).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            dot / (f64::from(row.norm) * f64::from(other.norm))
        };
        found.push(Held {
            direction: row.name(),
            norm: row.norm,
            share: row.norm / row.median_norm,
            others: others.len(),
            largest: others.iter().map(|other| other.norm).fold(0.0, f32::max),
            shorter: others.iter().filter(|other| other.norm < row.norm).count(),
            cosine: others.iter().map(cosine).fold(0.0, |far, one| if one.abs() > f64::abs(far) { one } else { far }),
        });
    }
    if found.is_empty() {
        return Err(bad_input("the two have no site and no `over` in common at which vectors are equally wide"));
    }
    Ok(found)
}

/// The projections on each direction, by its name.
fn projections(folder: &Path) -> Result<Vec<(String, Vec<f64>)>> {
    let artifact = Artifact::<Projections>::open(folder)?;
    let names: Vec<String> = serde_json::from_value(artifact.manifest().summary["directions"].clone())
        .with_context(|| format!("{} does not say on which directions it projects", folder.display()))?;
    let mut found: Vec<_> = names.into_iter().map(|name| (name, Vec::new())).collect();
    for row in artifact.rows::<Projection>()? {
        let row = row?;
        let (_, of) = found.get_mut(row.query as usize).context("a direction that the artifact does not name")?;
        of.push(f64::from(row.projection));
    }
    Ok(found)
}

fn apart(a: &Path, b: &Path) -> Result<Vec<Apart>> {
    let (ones, others) = (projections(a)?, projections(b)?);
    let mut found = Vec::new();
    for (direction, one) in ones {
        let Some((_, other)) = others.iter().find(|(name, _)| *name == direction) else { continue };
        let means = [&one, other].map(|values| mean(values));
        let squares = |values: &[f64], mean: f64| {
            let sum: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
            sum / (values.len() as f64 - 1.0).max(1.0) / values.len() as f64
        };
        let deviation = (squares(&one, means[0]) + squares(other, means[1])).sqrt();
        let difference = means[0] - means[1];
        found.push(Apart { direction, auroc: auroc(&one, other), means, difference, deviation });
    }
    if found.is_empty() {
        return Err(bad_input("the two have no direction in common: they are projections on other vectors"));
    }
    Ok(found)
}

/// By the ranks of all values together (Mann and Whitney).
fn auroc(ones: &[f64], others: &[f64]) -> f64 {
    let (count, rest) = (ones.len() as f64, others.len() as f64);
    let all: Vec<f64> = ones.iter().chain(others).copied().collect();
    let sum: f64 = ranks(&all)[..ones.len()].iter().sum();
    (sum - count * (count - 1.0) / 2.0) / (count * rest)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Mean scores by whose vector steered, layer and coefficient, which the names of the answers end in: `…/NAME/l12/c1.5`.
fn curves(store: &Store, folder: &Path) -> Result<Vec<Curve>> {
    let judgements = Artifact::<Judgements>::open(folder)?;
    let key = judgements.manifest().origin().get(&Fact::Tokens).cloned().unwrap_or_default();
    let answers = Artifact::<Tokens>::open(&store.folder(Kind::Tokens, &key))
        .with_context(|| format!("the answers that {} judges are not in the store", folder.display()))?;
    let mut courses: BTreeMap<u64, (String, String, f64)> = BTreeMap::new();
    for row in answers.rows::<Example>()? {
        let row = row?;
        let name = row.docs.first().map_or("", String::as_str);
        courses.insert(row.example, steered(name).ok_or_else(|| not_steered(name, folder))?);
    }
    type Scores = Vec<(f64, Vec<f64>)>;
    let mut found: Vec<(String, String, BTreeMap<String, Scores>)> = Vec::new();
    for row in judgements.rows::<Judgement>()? {
        let Judgement { example, metric, score, .. } = row?;
        let (of, layer, coefficient) = courses.get(&example).context("a judgement of an answer that is not there")?;
        let place = found.iter().position(|(name, at, _)| (name, at) == (of, layer)).unwrap_or_else(|| {
            found.push((of.clone(), layer.clone(), BTreeMap::new()));
            found.len() - 1
        });
        let scores = found[place].2.entry(metric).or_default();
        let values = match scores.iter_mut().find(|(known, _)| known == coefficient) {
            Some((_, values)) => values,
            None => {
                scores.push((*coefficient, Vec::new()));
                &mut scores.last_mut().expect("pushed above").1
            }
        };
        // What has no score, such as an empty answer, counts for nothing.
        values.extend(Some(f64::from(score)).filter(|score| score.is_finite()));
    }
    let mut curves = Vec::new();
    for (of, layer, metrics) in found {
        let coherent = metrics.get(COHERENCE).cloned().unwrap_or_default();
        for (metric, mut scores) in metrics.into_iter().filter(|(metric, _)| metric != COHERENCE) {
            scores.sort_by(|x, y| x.0.total_cmp(&y.0));
            let coherence = scores.iter().map(|(coefficient, _)| {
                coherent.iter().find(|(known, _)| known == coefficient).map_or(f64::NAN, |(_, values)| mean(values))
            });
            let coherence = coherence.collect();
            let (coefficients, scores): (Vec<_>, Vec<_>) =
                scores.iter().map(|(coefficient, values)| (*coefficient, mean(values))).unzip();
            let (slope, spearman) = (slope(&coefficients, &scores), spearman(&coefficients, &scores));
            let (of, layer) = (of.clone(), layer.clone());
            curves.push(Curve { of, layer, metric, coefficients, scores, coherence, slope, spearman });
        }
    }
    Ok(curves)
}

fn not_steered(name: &str, folder: &Path) -> anyhow::Error {
    bad_input(format!(
        "judgements are compared by what steered the answers, and {name:?} was not steered: its name does not end as in `/l12/c1.5`: {}",
        folder.display()
    ))
}

/// Least squares; 0 of one coefficient.
fn slope(x: &[f64], y: &[f64]) -> f64 {
    let (across, up) = (mean(x), mean(y));
    let xx: f64 = x.iter().map(|x| (x - across).powi(2)).sum();
    let xy: f64 = x.iter().zip(y).map(|(x, y)| (x - across) * (y - up)).sum();
    if xx == 0.0 { 0.0 } else { xy / xx }
}

impl fmt::Display for Traits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vectors(rows) => {
                writeln!(
                    f,
                    "norm of a, over the median norm of the stream; of b, how many are shorter; the cosine furthest from 0"
                )?;
                let width = width(rows.iter().map(|row| &row.direction));
                for Held { direction, norm, share, others, largest, shorter, cosine } in rows {
                    writeln!(
                        f,
                        "{direction:<width$}  {norm:9.3}  {share:6.3}  longer than {shorter} of {others}, the longest {largest:.3}  {cosine:+.3}"
                    )?;
                }
                Ok(())
            }
            Self::Projections(rows) => {
                let width = width(rows.iter().map(|row| &row.direction));
                writeln!(f, "{:<width$}  area under the curve     mean of a     mean of b  difference", "direction")?;
                for Apart { direction, auroc, means: [a, b], difference, deviation } in rows {
                    writeln!(
                        f,
                        "{direction:<width$}  {auroc:20.4}  {a:12.4}  {b:12.4}  {difference:+.4} ± {deviation:.4}"
                    )?;
                }
                Ok(())
            }
            Self::Retrieval(queries) => {
                for Found { query, average_precision, others, lower, mean, highest } in queries {
                    writeln!(
                        f,
                        "query {query}: average precision {average_precision:.3}, above {lower} of {others} of b, whose mean is {mean:.3} and \
                         the highest {highest:.3}"
                    )?;
                }
                Ok(())
            }
            Self::Judgements([a, b]) => {
                for curve in a {
                    let of = if curve.of.is_empty() { "a" } else { &curve.of };
                    writeln!(f, "{} steered by {of} at {}", curve.metric, curve.layer)?;
                    writeln!(f, "coefficient  score  coherence  scores of b")?;
                    let band: Vec<&Curve> = b
                        .iter()
                        .filter(|other| (&other.layer, &other.metric) == (&curve.layer, &curve.metric))
                        .collect();
                    for (place, coefficient) in curve.coefficients.iter().enumerate() {
                        let at = |other: &&&Curve| other.coefficients.iter().position(|known| known == coefficient);
                        let scores: Vec<f64> =
                            band.iter().filter_map(|other| Some(other.scores[at(&other)?])).collect();
                        let [low, high] = ends(&scores);
                        let band = if scores.is_empty() { "-".into() } else { format!("{low:.1} to {high:.1}") };
                        let [score, coherence] = [curve.scores[place], curve.coherence[place]];
                        writeln!(f, "{coefficient:>11}  {score:>5.1}  {coherence:>9.1}  {band}")?;
                    }
                    let slopes: Vec<f64> = band.iter().map(|other| other.slope).collect();
                    let below = slopes.iter().filter(|slope| **slope < curve.slope).count();
                    let [low, high] = ends(&slopes);
                    let [slope, rank] = [curve.slope, curve.spearman];
                    writeln!(f, "slope {slope:+.2}, rank correlation {rank:.2}")?;
                    if !slopes.is_empty() {
                        writeln!(f, "above {below} of the {} slopes of b, {low:+.2} to {high:+.2}", slopes.len())?;
                    }
                }
                Ok(())
            }
        }
    }
}

fn width<'a>(names: impl Iterator<Item = &'a String>) -> usize {
    names.map(|name| name.chars().count()).max().unwrap_or(0).max("direction".len())
}

fn ends(values: &[f64]) -> [f64; 2] {
    [values.iter().copied().fold(f64::INFINITY, f64::min), values.iter().copied().fold(f64::NEG_INFINITY, f64::max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_the_share_of_pairs_in_order_with_ties_halved() {
        assert_eq!(auroc(&[3.0, 4.0], &[1.0, 2.0]), 1.0);
        assert_eq!(auroc(&[1.0, 2.0], &[3.0, 4.0]), 0.0);
        assert_eq!(auroc(&[2.0, 0.5], &[1.0, 2.0]), (0.5 + 1.0) / 4.0);
        assert_eq!(auroc(&[5.0], &[5.0]), 0.5);
    }

    #[test]
    fn a_query_is_held_against_all_of_the_other() {
        let row = found(&[(7, 0.9)], &[(0, 0.1), (1, 0.95), (2, 0.15)]).remove(0);
        assert_eq!((row.query, row.others, row.lower, row.highest), (7, 3, 2, 0.95));
        assert!((row.mean - 0.4).abs() < 1e-12);
    }

    #[test]
    fn slopes_are_those_of_least_squares() {
        assert_eq!(slope(&[-1.0, 0.0, 1.0], &[10.0, 30.0, 50.0]), 20.0);
        assert_eq!(slope(&[0.0, 1.0, 2.0], &[5.0, 5.0, 5.0]), 0.0);
    }

    #[test]
    fn a_vector_is_held_against_those_at_its_site() {
        let row = |name: &str, site: &str, vector: Vec<f32>| {
            let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
            let over = wherefrom_artifact::Over::ResponseAvg;
            let (trait_name, site, layer, pairs) = (name.into(), site.into(), 1, 0);
            let (positive, negative) = (Vec::new(), Vec::new());
            TraitVector {
                trait_name,
                over,
                site,
                layer,
                vector,
                positive,
                negative,
                deviation: f32::NAN,
                norm,
                median_norm: 10.0,
                pairs,
            }
        };
        let own = [row("t", "1", vec![3.0, 4.0]), row("t", "2", vec![1.0, 0.0])];
        let others = [row("t.random0", "1", vec![-6.0, -8.0]), row("t.random1", "1", vec![0.0, 1.0])];
        let found = held(&own, &others).unwrap();
        assert_eq!(found.len(), 1);
        let Held { norm, share, others, largest, shorter, cosine, .. } = found[0].clone();
        assert_eq!((norm, share, others, largest, shorter), (5.0, 0.5, 2, 10.0, 1));
        assert!((cosine + 1.0).abs() < 1e-6, "{cosine}");
        assert!(held(&own[1..], &[row("t.random0", "1", vec![1.0, 1.0])]).is_err());
    }
}
