//! What is shown of a trait, read from the artifacts.

use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use serde_json::Value;
use tokenizers::Tokenizer;
use wherefrom_artifact::origin::Fact;
use wherefrom_artifact::text::steered;
use wherefrom_artifact::{
    Artifact, Example, Judgement, Judgements, Over, Persona, Projection, Projections, Status, Tokens, TraitVector,
    Vectors, bad_input,
};

use super::figures::number;
use super::{Config, Inputs};
use crate::pieces::Pieces;

/// What every judge judges beside the trait.
pub(super) const COHERENCE: &str = "coherence";
/// Bins of the scores: 0 to 10, …, 90 to 100.
pub(super) const BINS: usize = 10;

/// All that the page shows.
pub(super) struct Portrait {
    pub(super) persona: Persona,
    pub(super) judge: Option<String>,
    /// Asked for the trait, and against it.
    pub(super) sides: [Option<Side>; 2],
    pub(super) direction: Option<Direction>,
    pub(super) apart: Vec<Apart>,
    pub(super) steering: Vec<Steering>,
    pub(super) examples: Vec<Steered>,
    pub(super) coloured: Option<Coloured>,
    /// Cosines of the traits' directions at one site.
    pub(super) cosines: Option<Cosines>,
}

/// Answers to one side's orders, and what a judge makes of them.
pub(super) struct Side {
    pub(super) answers: usize,
    /// The mean score of those that have one, and of their coherence; NaN without.
    pub(super) mean: f64,
    pub(super) coherence: f64,
    /// Answers that have a score, and why others have none.
    pub(super) scored: usize,
    pub(super) refused: usize,
    pub(super) empty: usize,
    pub(super) histogram: [usize; BINS],
    /// What was kept for the vector, and why the rest was not, in order.
    pub(super) kept: Vec<(String, u64)>,
    /// Some of them, with their scores.
    pub(super) texts: Vec<(Text, Option<f32>)>,
}

/// A text in its two halves.
#[derive(Clone)]
pub(super) struct Text {
    pub(super) name: String,
    pub(super) prompt: String,
    pub(super) answer: String,
}

/// The trait's directions, site by site.
pub(super) struct Direction {
    pub(super) over: Over,
    pub(super) pairs: u32,
    pub(super) sites: Vec<AtSite>,
}

/// A direction, and those that it is held against.
pub(super) struct AtSite {
    pub(super) site: String,
    pub(super) norm: f64,
    /// Over the median norm of the stream.
    pub(super) share: f64,
    pub(super) deviation: f64,
    /// Norms of the shuffled directions over the median norm of the stream.
    pub(super) shuffled: Vec<f64>,
    /// Cosines with the random directions.
    pub(super) random: Vec<f64>,
}

/// How well the two sides' held-out answers are told apart.
pub(super) struct Apart {
    pub(super) site: String,
    pub(super) answers: [usize; 2],
    pub(super) means: [f64; 2],
    pub(super) auroc: f64,
    /// The same along directions that stand for nothing.
    pub(super) controls: Vec<f64>,
}

/// Mean scores of steered answers at one layer.
pub(super) struct Steering {
    pub(super) layer: String,
    /// Coefficient, mean score, mean coherence, and answers with a score.
    pub(super) points: Vec<(f64, f64, f64, usize)>,
    /// Mean scores of each control by coefficient.
    pub(super) controls: Vec<Vec<(f64, f64)>>,
}

/// A prompt's answers, steered one way, not, the other way, and as a control steers them.
pub(super) struct Steered {
    pub(super) prompt: String,
    /// What steered it, the answer, and its score.
    pub(super) answers: Vec<(String, String, Option<f32>)>,
}

/// Texts with the projection of each token.
pub(super) struct Coloured {
    pub(super) site: String,
    /// The mean over all tokens that are shown, and the largest distance from it.
    pub(super) centre: f64,
    pub(super) reach: f64,
    /// Name, side, and the pieces of each text with their projections.
    pub(super) texts: Vec<(String, bool, Projected)>,
}

/// Pieces of a text, and the projection of each.
pub(super) type Projected = Vec<(String, f64)>;

/// Cosines between directions of traits.
pub(super) struct Cosines {
    pub(super) site: String,
    pub(super) names: Vec<String>,
    pub(super) values: Vec<Vec<f64>>,
    /// The cosine with a random direction that is furthest from 0, and how many there are.
    pub(super) random: Option<(f64, usize)>,
}

/// Scores by example and metric.
type Scores = HashMap<(u64, String), Judgement>;

impl Portrait {
    pub(super) fn read(config: &Config, inputs: &Inputs) -> Result<Self> {
        let persona = Persona::read(inputs.about.folder())?;
        let name = persona.about.name.clone();
        let tokenizer = inputs.tokenizer.as_deref().map(wherefrom_vocabulary::open).transpose()?;
        let mut sides = [None, None];
        let mut scores = [Scores::new(), Scores::new()];
        for (place, word) in ["positive", "negative"].into_iter().enumerate() {
            let (Some(answers), judged) = (&inputs.answers[place], &inputs.judgements[place]) else { continue };
            scores[place] = read_scores(judged.as_ref(), answers, word)?;
            let kept = inputs
                .vectors
                .as_ref()
                .map(|vectors| kept(vectors.manifest().summary.get(word).unwrap_or(&Value::Null)));
            sides[place] = Some(side(config, &name, answers, &scores[place], kept.unwrap_or_default())?);
        }
        let vectors = rows_of(inputs.vectors.as_ref())?;
        let controls = [rows_of(inputs.controls[0].as_ref())?, rows_of(inputs.controls[1].as_ref())?].concat();
        let own: Vec<&TraitVector> = vectors.iter().filter(|row| row.trait_name == name).collect();
        if let (Some(artifact), true) = (&inputs.vectors, own.is_empty()) {
            return Err(bad_input(format!(
                "`vectors` has none of the trait {name}: wire the vectors that were made of it: {}",
                artifact.folder().display()
            )));
        }
        let direction = direction(&own, &controls);
        let over = direction.as_ref().map(|direction| direction.over);
        let apart = apart(&name, [&inputs.projections, &inputs.random_projections], over)?;
        let mut curves: [Vec<Curve>; 2] = [Vec::new(), Vec::new()];
        for (place, word) in ["steered", "random-steered"].into_iter().enumerate() {
            if let Some(answers) = &inputs.steered[place] {
                let scores = read_scores(inputs.steered_judgements[place].as_ref(), answers, word)?;
                curves[place] = read_curves(answers, &scores, &name)?;
            }
        }
        let steering: Vec<Steering> = steering(&curves);
        let examples = examples(config, &curves);
        let layer = steering.first().map(|curve| curve.layer.trim_start_matches('l').to_string());
        let best = apart.iter().max_by(|one, other| one.auroc.total_cmp(&other.auroc)).map(|apart| apart.site.clone());
        let site = layer.filter(|layer| own.iter().any(|row| row.site == *layer)).or(best);
        let others = rows_of(inputs.others.as_ref())?;
        Ok(Self {
            judge: inputs.judgements.iter().flatten().next().map(judge),
            sides,
            apart,
            steering,
            examples,
            coloured: coloured(config, inputs, site.as_deref(), &name, tokenizer.as_ref())?,
            cosines: cosines(site.as_deref(), &own, &others, &controls),
            direction,
            persona,
        })
    }
}

/// Provider and gate of a judge, as its artifact says.
fn judge(judgements: &Artifact<Judgements>) -> String {
    let manifest = judgements.manifest();
    let config = &manifest.recipe.config;
    let mut words = vec![config["provider"].as_str().unwrap_or("a file").to_string()];
    words.extend(config["endpoint-model"].as_str().map(String::from));
    let rule = &config["rule"];
    words.extend(
        rule["pattern"]
            .as_str()
            .map(|pattern| format!("{pattern}, per {}", rule["per"].as_str().unwrap_or("sentence"))),
    );
    words.extend(manifest.summary.get("gate").and_then(|gate| {
        Some(format!(
            "tried on {} labelled answers: area under the curve {:.2}",
            gate["answers"],
            gate["auroc"].as_f64()?
        ))
    }));
    words.join(", ")
}

fn rows_of(vectors: Option<&Artifact<Vectors>>) -> Result<Vec<TraitVector>> {
    vectors.map_or(Ok(Vec::new()), |vectors| vectors.rows()?.collect())
}

/// Judgements of these answers and no others.
fn read_scores(judgements: Option<&Artifact<Judgements>>, answers: &Artifact<Tokens>, word: &str) -> Result<Scores> {
    let Some(judgements) = judgements else { return Ok(Scores::new()) };
    if judgements.manifest().origin().get(&Fact::Tokens).is_some_and(|of| *of != answers.manifest().key) {
        return Err(bad_input(format!(
            "`{word}-judgements` are of other answers than `{word}`: {}",
            judgements.folder().display()
        )));
    }
    let rows = judgements.rows::<Judgement>()?;
    rows.map(|row| row.map(|row| ((row.example, row.metric.clone()), row))).collect()
}

/// What a vector's summary says of a side: kept first.
fn kept(counts: &Value) -> Vec<(String, u64)> {
    let counts = counts.as_object().into_iter().flatten();
    let mut counts: Vec<_> = counts.filter_map(|(name, count)| Some((name.clone(), count.as_u64()?))).collect();
    counts.sort_by_key(|(name, count)| (name != "kept", std::cmp::Reverse(*count)));
    counts
}

fn side(
    config: &Config,
    name: &str,
    answers: &Artifact<Tokens>,
    scores: &Scores,
    kept: Vec<(String, u64)>,
) -> Result<Side> {
    let mut side = Side {
        answers: 0,
        mean: f64::NAN,
        coherence: f64::NAN,
        scored: 0,
        refused: 0,
        empty: 0,
        histogram: [0; BINS],
        kept,
        texts: Vec::new(),
    };
    let mut values = [Vec::new(), Vec::new()];
    for row in answers.rows::<Example>()? {
        let row = row?;
        side.answers += 1;
        let [own, coherence] = [name, COHERENCE].map(|metric| scores.get(&(row.example, metric.to_string())));
        let score = own.map(|row| row.score).filter(|score| !score.is_nan());
        match own.map(|row| row.status) {
            Some(Status::Refusal) => side.refused += 1,
            Some(Status::Empty) => side.empty += 1,
            _ => {}
        }
        if let Some(score) = score {
            side.histogram[((score / BINS as f32) as usize).min(BINS - 1)] += 1;
        }
        values[0].extend(score);
        values[1].extend(coherence.map(|row| row.score).filter(|score| !score.is_nan()));
        if side.texts.len() < config.texts {
            side.texts.push((text(&row), score));
        }
    }
    side.scored = values[0].len();
    [side.mean, side.coherence] = values.map(|values| mean(values.into_iter().map(f64::from)));
    Ok(side)
}

fn text(row: &Example) -> Text {
    let asked = row.asked();
    Text { name: asked.id, prompt: asked.prompt, answer: asked.completion }
}

/// NaN of nothing.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

/// Of the vectors over the tokens of the answers, or whichever come first.
fn direction(own: &[&TraitVector], controls: &[TraitVector]) -> Option<Direction> {
    let over = own.iter().map(|row| row.over).min()?;
    let sites = own.iter().filter(|row| row.over == over).map(|row| {
        let here: Vec<&TraitVector> = controls
            .iter()
            .filter(|other| (&other.site, other.over, other.vector.len()) == (&row.site, over, row.vector.len()))
            .collect();
        let stream = f64::from(row.median_norm);
        AtSite {
            site: row.site.clone(),
            norm: row.norm.into(),
            share: f64::from(row.norm) / stream,
            deviation: row.deviation.into(),
            shuffled: here.iter().filter(|row| is(row, "shuffled")).map(|row| f64::from(row.norm) / stream).collect(),
            random: here.iter().filter(|row| is(row, "random")).map(|other| cosine(row, other)).collect(),
        }
    });
    Some(Direction { over, pairs: own[0].pairs, sites: sites.collect() })
}

/// Whether a direction is a control of that kind: `NAME.random3`.
fn is(row: &TraitVector, kind: &str) -> bool {
    row.trait_name.rsplit('.').next().is_some_and(|last| last.starts_with(kind))
}

fn cosine(one: &TraitVector, other: &TraitVector) -> f64 {
    let dot: f64 = one.vector.iter().zip(&other.vector).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
    dot / (f64::from(one.norm) * f64::from(other.norm))
}

/// Projections on each direction, by its trait and site; of vectors over `over`.
fn along(projections: &Artifact<Projections>, over: Option<Over>) -> Result<Vec<(String, String, Vec<f64>)>> {
    let names = projections.directions()?;
    let mut found = BTreeMap::new();
    for row in projections.rows::<Projection>()? {
        let row = row?;
        found.entry(row.query).or_insert_with(Vec::new).push(f64::from(row.projection));
    }
    let mut all = Vec::new();
    for (query, name) in names.iter().enumerate() {
        let mut words = name.rsplitn(3, '.');
        let (Some(site), Some(own), Some(name)) = (words.next(), words.next(), words.next()) else { continue };
        if over.is_none_or(|over| over.name() == own) {
            all.push((name.to_string(), site.to_string(), found.remove(&(query as u32)).unwrap_or_default()));
        }
    }
    Ok(all)
}

/// How well the sides are told apart along the trait's directions, and along all others that are projected on.
fn apart(name: &str, all: [&[Option<Artifact<Projections>>; 2]; 2], over: Option<Over>) -> Result<Vec<Apart>> {
    let mut found: Vec<Apart> = Vec::new();
    let mut controls: Vec<(String, f64)> = Vec::new();
    for sides in all {
        let [Some(positive), Some(negative)] = sides else { continue };
        let others = along(negative, over)?;
        for (own, site, one) in along(positive, over)? {
            let Some((.., other)) = others.iter().find(|(name, at, _)| (name, at) == (&own, &site)) else { continue };
            if one.is_empty() || other.is_empty() {
                continue;
            }
            let auroc = auroc(&one, other);
            if own == name {
                let means = [&one, other].map(|values| mean(values.iter().copied()));
                found.push(Apart { site, answers: [one.len(), other.len()], means, auroc, controls: Vec::new() });
            } else {
                controls.push((site, auroc));
            }
        }
    }
    for (site, auroc) in controls {
        found.iter_mut().filter(|apart| apart.site == site).for_each(|apart| apart.controls.push(auroc));
    }
    Ok(found)
}

/// Area under the curve: the share of pairs in which that of the first lies further along, ties counted half.
fn auroc(ones: &[f64], others: &[f64]) -> f64 {
    let mut sorted = others.to_vec();
    sorted.sort_by(f64::total_cmp);
    let below = |value: f64| {
        let (less, up_to) =
            (sorted.partition_point(|other| *other < value), sorted.partition_point(|other| *other <= value));
        (less + up_to) as f64 / 2.0
    };
    ones.iter().map(|&value| below(value)).sum::<f64>() / (ones.len() * others.len()) as f64
}

/// What one vector does at one layer.
struct Curve {
    /// Whose vector; empty where there is but one.
    of: String,
    layer: String,
    /// By coefficient, ascending: of each answer its prompt, itself, score and coherence.
    points: Vec<(f64, Vec<Answered>)>,
}

struct Answered {
    /// What stands before `…/l12/c1` in its name: the same for all that answer one prompt.
    prompt_name: String,
    text: Text,
    score: Option<f32>,
    coherence: Option<f32>,
}

fn read_curves(answers: &Artifact<Tokens>, scores: &Scores, name: &str) -> Result<Vec<Curve>> {
    let mut curves: Vec<Curve> = Vec::new();
    for row in answers.rows::<Example>()? {
        let row = row?;
        let text = text(&row);
        let Some((of, layer, coefficient)) = steered(&text.name) else {
            return Err(bad_input(format!(
                "{:?} was not steered: its name does not end as in `/l12/c1.5`: {}",
                text.name,
                answers.folder().display()
            )));
        };
        let of = if of == name { String::new() } else { of };
        let place = curves.iter().position(|curve| (&curve.of, &curve.layer) == (&of, &layer)).unwrap_or_else(|| {
            curves.push(Curve { of: of.clone(), layer: layer.clone(), points: Vec::new() });
            curves.len() - 1
        });
        let points = &mut curves[place].points;
        let at = points.iter().position(|(known, _)| *known == coefficient).unwrap_or_else(|| {
            points.push((coefficient, Vec::new()));
            points.len() - 1
        });
        let [score, coherence] = [name, COHERENCE].map(|metric| {
            scores.get(&(row.example, metric.to_string())).map(|row| row.score).filter(|score| !score.is_nan())
        });
        let steps = if of.is_empty() { 2 } else { 3 };
        let prompt_name = text.name.rsplitn(steps + 1, '/').last().unwrap_or_default().to_string();
        points[at].1.push(Answered { prompt_name, text, score, coherence });
    }
    curves.iter_mut().for_each(|curve| curve.points.sort_by(|one, other| one.0.total_cmp(&other.0)));
    Ok(curves)
}

/// The vector's curves, each with those of the controls at its layer.
fn steering([own, controls]: &[Vec<Curve>; 2]) -> Vec<Steering> {
    let scores = |answers: &[Answered]| mean(answers.iter().filter_map(|answer| answer.score).map(f64::from));
    let each = |curve: &Curve| {
        let point = |(coefficient, answers): &(f64, Vec<Answered>)| {
            let coherence = mean(answers.iter().filter_map(|answer| answer.coherence).map(f64::from));
            let scored = answers.iter().filter(|answer| answer.score.is_some()).count();
            (*coefficient, scores(answers), coherence, scored)
        };
        let of = |control: &Curve| control.points.iter().map(|(at, answers)| (*at, scores(answers))).collect();
        Steering {
            layer: curve.layer.clone(),
            points: curve.points.iter().map(point).collect(),
            controls: controls.iter().filter(|control| control.layer == curve.layer).map(of).collect(),
        }
    };
    own.iter().filter(|curve| curve.of.is_empty()).map(each).collect()
}

/// `+1`, `−1.5`.
fn signed(coefficient: f64) -> String {
    format!("{}{}", if coefficient > 0.0 { "+" } else { "" }, number(coefficient))
}

/// Of some prompts the answers at the lowest coefficient, at 0 and at the highest, and a control's at the highest that it has.
fn examples(config: &Config, [own, controls]: &[Vec<Curve>; 2]) -> Vec<Steered> {
    let Some(curve) = own.iter().find(|curve| curve.of.is_empty()) else { return Vec::new() };
    let control = controls.iter().find(|control| control.layer == curve.layer);
    let mut shown: Vec<(String, &[Answered])> = Vec::new();
    let ends = [curve.points.first(), curve.points.iter().find(|(at, _)| *at == 0.0), curve.points.last()];
    for (coefficient, answers) in ends.into_iter().flatten() {
        let name = if *coefficient == 0.0 { "not steered".into() } else { format!("{} v", signed(*coefficient)) };
        if !shown.iter().any(|(known, _)| *known == name) {
            shown.push((name, answers));
        }
    }
    if let Some((control, (coefficient, answers))) = control.and_then(|control| Some((control, control.points.last()?)))
    {
        shown.push((format!("{} of {}", signed(*coefficient), control.of), answers));
    }
    let Some((_, first)) = shown.first() else { return Vec::new() };
    let prompts = first.iter().take(config.texts);
    let each = |asked: &Answered| Steered {
        prompt: asked.text.prompt.clone(),
        answers: shown
            .iter()
            .filter_map(|(name, answers)| {
                let found = answers.iter().find(|answer| answer.prompt_name == asked.prompt_name)?;
                Some((name.clone(), found.text.answer.clone(), found.score))
            })
            .collect(),
    };
    prompts.map(each).collect()
}

/// Some held-out answers of both sides, each token with its projection at the site.
fn coloured(
    config: &Config,
    inputs: &Inputs,
    site: Option<&str>,
    name: &str,
    tokenizer: Option<&Tokenizer>,
) -> Result<Option<Coloured>> {
    let Some(site) = site else { return Ok(None) };
    let mut texts = Vec::new();
    for (place, positive) in [(0, true), (1, false)] {
        let (Some(tokens), Some(projections)) = (&inputs.held_out[place], &inputs.projections[place]) else { continue };
        let word = ["positive", "negative"][place];
        if projections.manifest().origin().get(&Fact::Tokens).is_some_and(|of| *of != tokens.manifest().key) {
            return Err(bad_input(format!(
                "`{word}-projections` are of other answers than `eval-{word}`: {}",
                projections.folder().display()
            )));
        }
        let is_own =
            |direction: &String| direction.starts_with(&format!("{name}.")) && direction.ends_with(&format!(".{site}"));
        let Some(query) = projections.directions()?.iter().position(is_own) else { continue };
        let rows: Vec<Example> = tokens.rows::<Example>()?.take(config.texts).collect::<Result<_>>()?;
        for row in projections.rows::<Projection>()? {
            let row = row?;
            let Some(example) = rows.iter().find(|example| example.example == row.example) else { continue };
            if row.query as usize != query || row.by_token.len() != example.input_ids.len() {
                continue;
            }
            let begins = example.target_mask.iter().position(|&target| target).unwrap_or(0);
            let pieces = whole(tokenizer, &example.input_ids, &row.by_token);
            let said = example.docs.join(" + ");
            texts.push((
                said,
                positive,
                pieces
                    .into_iter()
                    .filter(|(at, ..)| *at >= begins)
                    .map(|(_, text, value)| (text, value))
                    .collect::<Vec<_>>(),
            ));
        }
    }
    let values = || texts.iter().flat_map(|(_, _, pieces)| pieces.iter().map(|(_, value)| *value));
    let centre = mean(values());
    let reach = values().map(|value| (value - centre).abs()).fold(0.0, f64::max);
    Ok((!texts.is_empty()).then(|| Coloured { site: site.into(), centre, reach, texts }))
}

/// The last token of each piece of whole characters, the piece, and the mean of its tokens' projections.
fn whole(tokenizer: Option<&Tokenizer>, ids: &[u32], values: &[f32]) -> Vec<(usize, String, f64)> {
    let pieces = Pieces::new(tokenizer, ids);
    let mut units = pieces.text.encode_utf16();
    let mut found = Vec::new();
    let mut waiting: Vec<f64> = Vec::new();
    for (token, &length) in pieces.lengths.iter().enumerate() {
        waiting.push(values[token].into());
        if length > 0 {
            let units: Vec<u16> = units.by_ref().take(length).collect();
            found.push((token, String::from_utf16_lossy(&units), mean(waiting.drain(..))));
        }
    }
    found
}

fn cosines(
    site: Option<&str>,
    own: &[&TraitVector],
    others: &[TraitVector],
    controls: &[TraitVector],
) -> Option<Cosines> {
    let one = *own.iter().find(|row| Some(&row.site[..]) == site)?;
    let here = |row: &&TraitVector| (&row.site, row.over, row.vector.len()) == (&one.site, one.over, one.vector.len());
    let mut rows = vec![one];
    rows.extend(others.iter().filter(here).filter(|row| row.trait_name != one.trait_name));
    let random: Vec<f64> =
        controls.iter().filter(here).filter(|row| is(row, "random")).map(|row| cosine(one, row)).collect();
    let furthest = random.iter().fold(0.0, |far: f64, one| if one.abs() > far.abs() { *one } else { far });
    (rows.len() > 1).then(|| Cosines {
        site: one.site.clone(),
        names: rows.iter().map(|row| row.trait_name.clone()).collect(),
        values: rows.iter().map(|row| rows.iter().map(|other| cosine(row, other)).collect()).collect(),
        random: (!random.is_empty()).then_some((furthest, random.len())),
    })
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
    fn what_was_kept_comes_first() {
        let counts = serde_json::json!({ "empty": 0, "kept": 3, "not coherent": 2 });
        let names: Vec<_> = kept(&counts).into_iter().map(|(name, count)| format!("{count} {name}")).collect();
        assert_eq!(names, ["3 kept", "2 not coherent", "0 empty"]);
        assert!(kept(&Value::Null).is_empty());
    }
}
