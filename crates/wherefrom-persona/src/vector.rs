//! The stage `vector`: at every site the mean of the residual stream over answers that show a trait, less the mean over answers that
//! do not: v_l = mean_i h_l(positive_i) - mean_i h_l(negative_i), not normalised (Chen et al. 2025, section 2.2).
//!
//! reads   tokens of both sides, their judgements, prompts without an order, a model
//! writes  vectors

use std::collections::HashMap;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::origin::Fact;
use wherefrom_artifact::{
    Artifact, Draft, Example, Judgement, Judgements, Kind, Over, Tokens, TraitVector, Vectors, bad_input,
};
use wherefrom_linalg::random::{normal, uniform};
use wherefrom_model::{Labels, Precision, Sites};
use wherefrom_pass::{Corpus, open, place, sequence, sizes_of};
use wherefrom_stage::{About, Checkpoint, Cost, Exec, Machine, ModelFiles, Planned, Role, Size, Stage, Writes};

use crate::description::COHERENCE;
use crate::streams::{Means, means};

/// Raised when results change.
pub const VERSION: u32 = 2;

/// The stage `vector`.
pub static STAGE: Stage<Config> = Stage {
    about: About { model: Checkpoint::Runs, inherits: &["precision"], ..About::new("vector", VERSION) },
    roles: &[
        Role::required("positive", &[Kind::Tokens]),
        Role::required("negative", &[Kind::Tokens]),
        Role::optional("positive-judgements", &[Kind::Judgements]),
        Role::optional("negative-judgements", &[Kind::Judgements]),
        Role::optional("prompts", &[Kind::Tokens]),
    ],
    parse: |knobs| {
        let mut config: Config = serde_json::from_value(knobs)?;
        config.over.sort();
        config.over.dedup();
        Ok(config)
    },
    check: Config::check,
    writes: Writes::One(Kind::Vectors),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| {
        let judged = |role: &str| given.inputs.contains_key(role).then(|| given.open(role)).transpose();
        let inputs = Inputs {
            tokens: [given.open("positive")?, given.open("negative")?],
            judgements: [judged("positive-judgements")?, judged("negative-judgements")?],
            prompts: given.inputs.contains_key("prompts").then(|| given.open("prompts")).transpose()?,
            model: given.model()?,
        };
        run(config, &inputs, exec, draft)
    },
};

/// Which answers count, and where the stream is read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// The trait's name; needed where the judgements are of several, or there are none.
    #[serde(rename = "trait", skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// t of 0 to 100: a positive answer counts if its score is t or more, a negative one if it is below 100 - t.
    pub threshold: f64,
    /// Least coherence of an answer that counts.
    pub coherence: f64,
    /// Whether an answer counts only beside the one to the same question, order and sample of the other side.
    pub pairing: Pairing,
    /// Fewest pairs that make a vector (without pairing, answers of a side).
    pub minimum_pairs: usize,
    /// Over which tokens of an answer.
    pub over: Vec<Over>,
    /// Where the stream is read.
    pub sites: Sites,
    /// In place of the vector, directions that stand for nothing, to hold it against: `[{ kind = "random", count = 20, seed = 0 }]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub controls: Vec<Control>,
    /// Precision of the model's forward pass.
    pub precision: Precision,
}

/// Directions that stand for nothing: traits of their own, called `NAME.random0`, `NAME.random1`, …
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Control {
    /// How they are drawn.
    pub kind: ControlKind,
    /// How many of each site.
    #[serde(default = "twenty")]
    pub count: u64,
    /// Seed of the draw.
    #[serde(default)]
    pub seed: u64,
}

fn twenty() -> u64 {
    20
}

/// How directions are drawn that stand for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ControlKind {
    /// A random direction, as long as the vector.
    Random,
    /// The vector of answers of which exactly half of the pairs have their sides swapped. Swapping freely would leave some of it.
    Shuffled,
}

impl ControlKind {
    fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Shuffled => "shuffled",
        }
    }
}

/// What belongs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pairing {
    /// Answers to the same question under the same order and of the same sample, one of each side.
    Rollout,
    /// Nothing: each answer counts for itself.
    None,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: None,
            threshold: 50.0,
            coherence: 50.0,
            pairing: Pairing::Rollout,
            minimum_pairs: 20,
            over: Over::ALL.to_vec(),
            sites: Sites::All,
            controls: Vec::new(),
            precision: Precision::F32,
        }
    }
}

impl Config {
    /// Refuses knobs that leave nothing.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        for (knob, value) in [("threshold", self.threshold), ("coherence", self.coherence)] {
            if !(0.0..=100.0).contains(&value) {
                return Err(bad_input(format!("{knob} = {value} is out of range; set it from 0 to 100")));
            }
        }
        if self.minimum_pairs == 0 {
            return Err(bad_input("minimum-pairs = 0 makes a vector of nothing; set it to 1 or more"));
        }
        if self.over.is_empty() || matches!(&self.sites, Sites::Some(sites) if sites.is_empty()) {
            return Err(bad_input("`over` and `sites` have to name one or more"));
        }
        for (place, control) in self.controls.iter().enumerate() {
            if control.count == 0 {
                return Err(bad_input("controls: count = 0 draws nothing; set it to 1 or more"));
            }
            if control.kind == ControlKind::Shuffled && self.pairing == Pairing::None {
                return Err(bad_input(
                    "controls: shuffling swaps the sides of pairs, and pairing = \"none\" has no pairs; take kind = \"random\", or pair",
                ));
            }
            if self.controls[..place].iter().any(|other| other.kind == control.kind) {
                return Err(bad_input("controls: each kind once; raise its `count` for more"));
            }
        }
        Ok(())
    }
}

/// What is read: positive and negative.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Answers of both sides.
    pub tokens: [Artifact<Tokens>; 2],
    /// What a judge made of them; without, all answers count.
    pub judgements: [Option<Artifact<Judgements>>; 2],
    /// The same questions without an order, behind which the answers are read in place of the prompts that they were given to.
    pub prompts: Option<Artifact<Tokens>>,
    /// Hugging Face folder.
    pub model: ModelFiles,
}

/// An answer, and whether it counts.
struct Answer {
    example: Example,
    /// What it shares with its pair.
    pair: String,
    state: State,
}

/// Whether an answer counts, or why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Kept,
    /// It has no tokens.
    Empty,
    /// No judge has given it a score.
    Unscored,
    /// It does not show what its side was to show.
    Against,
    /// It does not hang together.
    Incoherent,
    /// Its pair is not there or does not count.
    Alone,
}

impl State {
    const DROPPED: [(Self, &'static str); 5] = [
        (Self::Empty, "empty"),
        (Self::Unscored, "without a score"),
        (Self::Against, "on the wrong side of the threshold"),
        (Self::Incoherent, "not coherent"),
        (Self::Alone, "without their pair"),
    ];
}

/// Makes the vectors, in one pass over the answers that count.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] where fewer answers are left than `minimum-pairs`, and for judgements of other answers.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    if inputs.prompts.is_some() && config.over != [Over::ResponseAvg] {
        return Err(bad_input(
            "behind `prompts` both sides have the same prompt, and no direction in it; set over = [\"response-avg\"]",
        ));
    }
    let (name, scores) = scores(config, inputs)?;
    let [of_positive, of_negative] = &scores;
    let mut positive = answers(config, &name, &inputs.tokens[0], of_positive.as_ref(), true)?;
    let mut negative = answers(config, &name, &inputs.tokens[1], of_negative.as_ref(), false)?;
    if config.pairing == Pairing::Rollout {
        keep_pairs(&mut positive, &mut negative);
    }
    let kept = [&positive, &negative].map(|side| side.iter().filter(|answer| answer.state == State::Kept).count());
    for (side, all) in [("positive", &positive), ("negative", &negative)] {
        let mut counts = serde_json::Map::new();
        counts.insert("kept".into(), all.iter().filter(|answer| answer.state == State::Kept).count().into());
        for (state, what) in State::DROPPED {
            counts.insert(what.into(), all.iter().filter(|answer| answer.state == state).count().into());
        }
        draft.summary(side, counts)?;
    }
    let pairs = kept[0].min(kept[1]);
    if pairs < config.minimum_pairs {
        return Err(too_few(config, &name, [&positive, &negative], pairs));
    }

    let (model, _) = place(open(&inputs.model, config.precision, exec)?, &[], &inputs.tokens[0], exec, 0)?;
    let sites = config.sites.of(model.config.num_hidden_layers);
    let names: Vec<_> = sites.iter().map(ToString::to_string).collect();
    let mut examples: Vec<Example> = Vec::new();
    for side in [positive, negative] {
        examples.extend(side.iter().filter(|answer| answer.state == State::Kept).map(|answer| answer.example.clone()));
    }
    if let Some(prompts) = &inputs.prompts {
        read_behind(prompts, &mut examples)?;
    }
    if let Some(row) =
        examples.iter().find(|row| row.input_ids.iter().any(|&id| id as usize >= model.config.vocab_size))
    {
        return Err(bad_input(format!(
            "row {} of the answers has a token that the model does not know; give the model that they were made with",
            row.example
        )));
    }
    let corpus = Corpus::new("vector", &model, &inputs.tokens[0], exec);
    exec.reporter.begin("vector", "answers", examples.len() as u64, 0);
    let Means { rows, norms, width } = means(&corpus, &examples, &sites, &config.over)?;
    exec.reporter.end();
    if let Some(place) = rows.iter().position(|row| row.iter().any(|value| !value.is_finite())) {
        return Err(model.overflow(sequence(&examples[place]), "its residual stream", &Labels::Empirical));
    }
    let (ones, others) = rows.split_at(kept[0]);

    let mut vectors = Vec::new();
    let mut concentrated = Vec::new();
    for (place, over) in config.over.iter().enumerate() {
        for (number, site) in names.iter().enumerate() {
            let range = (place * sites.len() + number) * width..(place * sites.len() + number + 1) * width;
            let here = |side: &'_ [Vec<f32>]| side.iter().map(|row| row[range.clone()].to_vec()).collect::<Vec<_>>();
            let (ones, others) = (here(ones), here(others));
            let (positive, negative) = (mean_of(&ones), mean_of(&others));
            let vector = less(&positive, &negative);
            let norm = norm_of(&vector);
            let row = TraitVector {
                trait_name: name.clone(),
                over: *over,
                site: site.clone(),
                layer: site.parse().unwrap_or(model.config.num_hidden_layers as u32),
                vector: Vec::new(),
                positive: Vec::new(),
                negative: Vec::new(),
                deviation: f32::NAN,
                norm: 0.0,
                median_norm: median(&norms[number]),
                pairs: pairs as u32,
            };
            if config.controls.is_empty() {
                if carried_by_few(&vector) {
                    concentrated.push(format!("{over} at {site}"));
                }
                let deviation = deviation(config.pairing, &ones, &others, &vector) as f32;
                let (positive, negative) = (narrow(&positive), narrow(&negative));
                vectors.push(TraitVector {
                    vector: narrow(&vector),
                    positive,
                    negative,
                    deviation,
                    norm: norm as f32,
                    ..row
                });
                continue;
            }
            for (control, draw) in draws(&config.controls) {
                let vector = match control.kind {
                    ControlKind::Random => {
                        // A draw of its own for each site and each `over`.
                        let stream =
                            (draw * config.over.len() as u64 + place as u64) * names.len() as u64 + number as u64;
                        let drawn: Vec<_> =
                            (0..width as u64).map(|index| normal(control.seed, stream, index)).collect();
                        let times = norm / norm_of(&drawn);
                        drawn.into_iter().map(|value| times * value).collect()
                    }
                    ControlKind::Shuffled => {
                        let (ones, others) = shuffled(control.seed, draw, &ones, &others);
                        less(&mean_of(&ones), &mean_of(&others))
                    }
                };
                let trait_name = format!("{name}.{}{draw}", control.kind.name());
                vectors.push(TraitVector {
                    trait_name,
                    vector: narrow(&vector),
                    norm: norm_of(&vector) as f32,
                    ..row.clone()
                });
            }
        }
    }
    if !concentrated.is_empty() {
        exec.reporter.warn(&format!(
            "three coordinates hold more than half of the squared norm of {} of {} vectors ({} …): such a direction may be one of the \
             model's few very large activations, not of the trait",
            concentrated.len(),
            vectors.len(),
            concentrated[0]
        ));
    }
    draft.summary("trait", &name)?;
    draft.summary("sites", &names)?;
    draft.summary("pairs", pairs)?;
    if inputs.prompts.is_some() {
        draft.summary("context", "without an order")?;
    }
    // A process that was killed before it sealed has left the part whole.
    if draft.has(0) { Ok(()) } else { draft.write_rows::<Vectors, _>(0, &vectors) }
}

/// Scores by example and metric.
type Scores = HashMap<(u64, String), f32>;

/// The trait's name, and the scores of each side.
fn scores(config: &Config, inputs: &Inputs) -> Result<(String, [Option<Scores>; 2])> {
    let mut names: Vec<String> = Vec::new();
    let mut read = |side: usize| -> Result<Option<Scores>> {
        let Some(judgements) = &inputs.judgements[side] else { return Ok(None) };
        let word = ["positive", "negative"][side];
        let (of, own) = (judgements.manifest().origin.get(&Fact::Tokens), &inputs.tokens[side].manifest().key);
        if of.is_some_and(|of| of != own) {
            return Err(bad_input(format!(
                "`{word}-judgements` are of other answers than `{word}`: {}",
                judgements.folder().display()
            )));
        }
        let mut scores = Scores::new();
        for row in judgements.rows::<Judgement>()? {
            let Judgement { example, metric, score, .. } = row?;
            if metric != COHERENCE && !names.contains(&metric) {
                names.push(metric.clone());
            }
            scores.insert((example, metric), score);
        }
        Ok(Some(scores))
    };
    let scores = [read(0)?, read(1)?];
    let name = match (&config.name, &names[..]) {
        (Some(name), names) if names.is_empty() || names.contains(name) => name.clone(),
        (None, [name]) => name.clone(),
        (None, []) => {
            return Err(bad_input("without judgements nobody says which trait this is: name it, trait = \"brevity\""));
        }
        (_, names) => {
            return Err(bad_input(format!(
                "the judgements are of {}: choose one of them by `trait`",
                names.join(", ")
            )));
        }
    };
    Ok((name, scores))
}

/// The answers of a side, and which of them count by themselves.
fn answers(
    config: &Config,
    name: &str,
    tokens: &Artifact<Tokens>,
    scores: Option<&Scores>,
    positive: bool,
) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    for row in tokens.rows::<Example>()? {
        let example = row?;
        let id = example.docs.first().cloned().unwrap_or_default();
        let pair = id.replace("/pos/", "/*/").replace("/neg/", "/*/").replace("_pos_", "_*_").replace("_neg_", "_*_");
        let state = match scores {
            _ if !example.target_mask.contains(&true) => State::Empty,
            None => State::Kept,
            Some(scores) => {
                let [own, coherence] =
                    [name, COHERENCE].map(|metric| scores.get(&(example.example, metric.to_string())).copied());
                judged(config, own, coherence, positive)
            }
        };
        answers.push(Answer { example, pair, state });
    }
    Ok(answers)
}

/// A positive answer counts if its score is t or more, a negative one if it is below 100 - t, and either if it is coherent.
fn judged(config: &Config, own: Option<f32>, coherence: Option<f32>, positive: bool) -> State {
    let score = |score: Option<f32>| score.filter(|score| !score.is_nan()).map(f64::from);
    let (Some(own), Some(coherence)) = (score(own), score(coherence)) else { return State::Unscored };
    match if positive { own >= config.threshold } else { own < 100.0 - config.threshold } {
        false => State::Against,
        true if coherence < config.coherence => State::Incoherent,
        true => State::Kept,
    }
}

/// Leaves those that have a pair that counts, in one order on both sides. Answers without names of that form go by their order.
fn keep_pairs(positive: &mut [Answer], negative: &mut Vec<Answer>) {
    let by_name: HashMap<String, usize> =
        negative.iter().enumerate().map(|(place, answer)| (answer.pair.clone(), place)).collect();
    let named = by_name.len() == negative.len() && positive.iter().any(|answer| by_name.contains_key(&answer.pair));
    let alone = |answer: &mut Answer| {
        if answer.state == State::Kept {
            answer.state = State::Alone;
        }
    };
    let mut order = vec![None; negative.len()];
    for (place, one) in positive.iter_mut().enumerate() {
        let found =
            if named { by_name.get(&one.pair).copied() } else { Some(place).filter(|&place| place < negative.len()) };
        match found.filter(|&other| negative[other].state == State::Kept && one.state == State::Kept) {
            Some(other) => order[other] = Some(place),
            None => alone(one),
        }
    }
    negative.iter_mut().zip(&order).filter(|(_, order)| order.is_none()).for_each(|(answer, _)| alone(answer));
    // Both sides in the order of the positive one.
    let mut ordered: Vec<_> = order.into_iter().zip(negative.drain(..)).collect();
    ordered.sort_by_key(|(place, _)| place.unwrap_or(usize::MAX));
    negative.extend(ordered.into_iter().map(|(_, answer)| answer));
}

/// Puts the prompt of the same question in the place of each answer's own: of `evil/q3/pos/k2/s7` that of `evil/q3/none/s0`. What is left
/// of a direction then is in the answers, and not in the order.
fn read_behind(prompts: &Artifact<Tokens>, answers: &mut [Example]) -> Result<()> {
    let mut by_question: HashMap<String, Vec<u32>> = HashMap::new();
    for row in prompts.rows::<Example>()? {
        let Example { docs, input_ids, .. } = row?;
        let question = docs.first().and_then(|id| id.split_once("/none/"));
        let Some((question, _)) = question else {
            return Err(bad_input(format!(
                "`prompts` are those of a step `ask` with side = \"none\", whose rows are called TRAIT/q0/none/s0; a row of {} is called {:?}",
                prompts.folder().display(),
                docs.first().map_or("", |id| id)
            )));
        };
        by_question.entry(question.into()).or_insert(input_ids);
    }
    for answer in answers {
        let id = answer.docs.first().map_or("", |id| id);
        let question = ["/pos/", "/neg/"].iter().find_map(|side| Some(id.split_once(side)?.0));
        let Some(prompt) = question.and_then(|question| by_question.get(question)) else {
            return Err(bad_input(format!(
                "`prompts` have no prompt for the answer {id:?}; give them the trait and the `split` of the answers"
            )));
        };
        let begins = answer.target_mask.iter().position(|&target| target).unwrap_or(answer.input_ids.len());
        answer.input_ids.splice(..begins, prompt.iter().copied());
        answer.target_mask.splice(..begins, prompt.iter().map(|_| false));
    }
    Ok(())
}

/// Each draw of each control.
fn draws(controls: &[Control]) -> impl Iterator<Item = (&Control, u64)> {
    controls.iter().flat_map(|control| (0..control.count).map(move |draw| (control, draw)))
}

/// Both sides with exactly half of the pairs swapped; the same pairs at every site.
fn shuffled<'a>(
    seed: u64,
    draw: u64,
    ones: &'a [Vec<f32>],
    others: &'a [Vec<f32>],
) -> (Vec<&'a Vec<f32>>, Vec<&'a Vec<f32>>) {
    let (mut ones, mut others): (Vec<_>, Vec<_>) = (ones.iter().collect(), others.iter().collect());
    let mut pairs: Vec<usize> = (0..ones.len()).collect();
    pairs.sort_by(|&one, &other| {
        let drawn = |pair: usize| uniform(seed, draw, pair as u64);
        drawn(one).total_cmp(&drawn(other))
    });
    for &pair in &pairs[..ones.len() / 2] {
        std::mem::swap(&mut ones[pair], &mut others[pair]);
    }
    (ones, others)
}

/// The mean of rows, summed in float64.
fn mean_of<R: AsRef<[f32]>>(rows: &[R]) -> Vec<f64> {
    let mut sum = vec![0.0; rows.first().map_or(0, |row| row.as_ref().len())];
    for row in rows {
        sum.iter_mut().zip(row.as_ref()).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    sum.iter().map(|sum| sum / rows.len() as f64).collect()
}

fn less(ones: &[f64], others: &[f64]) -> Vec<f64> {
    ones.iter().zip(others).map(|(one, other)| one - other).collect()
}

fn norm_of(vector: &[f64]) -> f64 {
    vector.iter().map(|value| value * value).sum::<f64>().sqrt()
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

/// The standard error of v . v / ||v|| over pairs, or over the answers of both sides.
fn deviation(pairing: Pairing, ones: &[Vec<f32>], others: &[Vec<f32>], vector: &[f64]) -> f64 {
    let norm = norm_of(vector);
    let along = |row: &Vec<f32>| row.iter().zip(vector).map(|(&value, v)| f64::from(value) * v).sum::<f64>() / norm;
    let [ones, others] = [ones, others].map(|side| side.iter().map(along).collect::<Vec<_>>());
    let variance = match pairing {
        Pairing::Rollout => variance(&less(&ones, &others)) / ones.len() as f64,
        Pairing::None => variance(&ones) / ones.len() as f64 + variance(&others) / others.len() as f64,
    };
    variance.sqrt()
}

fn too_few(config: &Config, name: &str, sides: [&[Answer]; 2], pairs: usize) -> anyhow::Error {
    let said = |side: &[Answer]| {
        let dropped = State::DROPPED.iter().filter_map(|(state, what)| {
            let count = side.iter().filter(|answer| answer.state == *state).count();
            (count > 0).then(|| format!("{count} {what}"))
        });
        let dropped: Vec<_> = dropped.collect();
        format!("{} answers{}{}", side.len(), if dropped.is_empty() { "" } else { ", of them " }, dropped.join(", "))
    };
    bad_input(format!(
        "{pairs} pairs of answers are left for {name}, and minimum-pairs = {}: positive: {}; negative: {}. The model may not be one that \
         can be asked into this trait; more samples or a lower threshold leave more",
        config.minimum_pairs,
        said(sides[0]),
        said(sides[1])
    ))
}

/// Unbiased; 0 of one value.
fn variance(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (values.len() as f64 - 1.0).max(1.0)
}

/// Of an even count the mean of the middle two.
fn median(values: &[f32]) -> f32 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { f32::midpoint(sorted[half - 1], sorted[half]) }
}

/// Whether three coordinates hold more than half of the squared norm.
fn carried_by_few(vector: &[f64]) -> bool {
    let mut squares: Vec<_> = vector.iter().map(|value| value * value).collect();
    squares.sort_by(|one, other| other.total_cmp(one));
    squares.iter().take(3).sum::<f64>() > 0.5 * squares.iter().sum::<f64>()
}

fn cost(config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = sizes_of(planned, machine) else { return Cost::new(0.0, 0.0, 0.0) };
    let size = ["positive", "negative"].map(|role| planned.size_of(role));
    let (tokens, rows) =
        size.iter().fold((0.0, 0.0), |(tokens, rows), Size { tokens: t, rows: r }| (tokens + t, rows + r));
    let blocks = sizes.modules.last().map_or(0, |module| module.layer) + 1;
    let sites = config.sites.of(blocks).len();
    let width = sizes.modules.first().map_or(0, |module| module.in_features);
    let row = 4.0 * (sites * width * config.over.len()) as f64;
    let sizes = sizes.fitting(machine.memory, rows * row);
    let flops = 2.0 * sizes.forward * tokens;
    Cost::new(sizes.forward_bytes() + rows * row, 3.0 * row, flops).note(sizes.footprint.note())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_score_drops_and_bounds_are_those_of_the_originals() {
        let config = Config { threshold: 60.0, ..Config::default() };
        for (own, coherence, positive, state) in [
            (60.0, 50.0, true, State::Kept),
            (59.9, 50.0, true, State::Against),
            (39.9, 50.0, false, State::Kept),
            (40.0, 50.0, false, State::Against),
            (90.0, 49.9, true, State::Incoherent),
            (f32::NAN, 90.0, true, State::Unscored),
            (90.0, f32::NAN, true, State::Unscored),
        ] {
            assert_eq!(judged(&config, Some(own), Some(coherence), positive), state, "{own} {coherence} {positive}");
        }
        assert_eq!(judged(&config, None, Some(90.0), true), State::Unscored);
    }

    fn answer(id: &str, state: State) -> Answer {
        let pair = id.replace("/pos/", "/*/").replace("/neg/", "/*/");
        Answer { example: Example { docs: vec![id.into()], ..Example::default() }, pair, state }
    }

    #[test]
    fn an_answer_stays_only_beside_its_pair_and_both_sides_have_one_order() {
        let mut positive = [
            answer("t/q0/pos/k0", State::Kept),
            answer("t/q1/pos/k0", State::Kept),
            answer("t/q2/pos/k0", State::Kept),
        ];
        let mut negative = vec![
            answer("t/q2/neg/k0", State::Kept),
            answer("t/q1/neg/k0", State::Against),
            answer("t/q0/neg/k0", State::Kept),
            answer("t/q9/neg/k0", State::Kept),
        ];
        keep_pairs(&mut positive, &mut negative);
        let kept = |side: &[Answer]| -> Vec<String> {
            side.iter().filter(|answer| answer.state == State::Kept).map(|answer| answer.pair.clone()).collect()
        };
        assert_eq!(kept(&positive), ["t/q0/*/k0", "t/q2/*/k0"]);
        assert_eq!(kept(&negative), kept(&positive));
        assert_eq!(positive[1].state, State::Alone);
        assert_eq!(negative.iter().filter(|answer| answer.state == State::Against).count(), 1);
    }

    #[test]
    fn exactly_half_of_the_pairs_are_swapped() {
        let [ones, others] = [1.0, -1.0].map(|value| vec![vec![value]; 10]);
        let mut seen = Vec::new();
        for draw in 0..3 {
            let (positive, negative) = shuffled(0, draw, &ones, &others);
            let sum = |side: &[&Vec<f32>]| side.iter().map(|row| row[0]).sum::<f32>();
            assert_eq!([sum(&positive), sum(&negative)], [0.0, 0.0]);
            assert!(positive.iter().zip(&negative).all(|(one, other)| one[0] == -other[0]));
            seen.push(positive.iter().map(|row| row[0] as i32).collect::<Vec<_>>());
        }
        assert!(seen[0] != seen[1] || seen[1] != seen[2]);
    }
}
