//! The stage `retrain`: a bank of training runs on data in which some examples weigh otherwise, and what each makes of the
//! queries.
//!
//! reads   tokens, queries, a model to start from; scores, where the subsets are their strongest examples; columns, where they
//!         are the queries' known sources; vectors, where a projection is measured
//! writes  retrainings, a part a run
//!
//! A run is told from (subset, seed) alone: a bank grows by a second step with another `first` or other `seeds`, which takes
//! the first one's runs along (`retrainings`).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::sources::Known;
use anyhow::{Context as _, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{
    Artifact, Draft, Example, Kind, Retraining, Retrainings, Score, Scores, Tokens, Vectors, bad_input,
};
use wherefrom_gradients::measure::{Measure, Measures};
use wherefrom_linalg::random::uniform;
use wherefrom_model::{Batch, Measurement, Model, Sequence, Sizes, open_device};
use wherefrom_stage::{About, Checkpoint, Cost, Device, Exec, Machine, ModelFiles, Planned, Role, Stage, Writes};
use wherefrom_train::course::{Course, Learner, Training, with_training};

use crate::threads::side_by_side;

/// Raised when the retrainings of the same configuration and inputs change.
pub const VERSION: u32 = 1;

/// The stage `retrain`.
pub static STAGE: Stage<Config> = Stage {
    about: About { model: Checkpoint::Runs, ..About::new("retrain", VERSION).split() },
    roles: &[
        Role::required("tokens", &[Kind::Tokens]),
        Role::required("queries", &[Kind::Tokens]),
        Role::when("strongest", &[Kind::Scores], |config| config.choose == Choose::Top),
        Role::when("columns", &[Kind::Columns], |config| config.choose == Choose::Sources),
        Role::when("query-columns", &[Kind::Columns], |config| config.choose == Choose::Sources),
        Role::when("vectors", &[Kind::Vectors], |config| config.measure.is_some()),
        Role::optional("retrainings", &[Kind::Retrainings]),
    ],
    parse: |knobs| {
        with_training(knobs, &["choose", "column", "share", "weight", "subsets", "first", "draw", "seeds", "measure"])
    },
    check: Config::check,
    writes: Writes::One(Kind::Retrainings),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| {
        let inputs = Inputs {
            tokens: given.open("tokens")?,
            queries: given.open("queries")?,
            model: given.model()?,
            strongest: given.maybe("strongest")?,
            known: match (given.maybe("columns")?, given.maybe("query-columns")?) {
                (Some(columns), Some(query_columns)) => Some(Known { columns, query_columns }),
                _ => None,
            },
            vectors: given.maybe("vectors")?,
            before: given.maybe("retrainings")?,
        };
        run(config, &inputs, exec, draft)
    },
};

/// Which examples a subset has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Choose {
    /// Drawn from all.
    #[default]
    Random,
    /// Subset q + 1: those with the most influence on query q.
    Top,
    /// Subset q + 1: the known sources of query q, the examples with its value in the column `column`.
    Sources,
}

/// Which runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct Config {
    /// How each run trains; its seed is that of the runs of seed 0, and one more of those of seed 1.
    #[serde(flatten)]
    pub training: Training,
    /// Which examples a subset has.
    pub choose: Choose,
    /// The column that sources are known by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// How many: a share of all, or so many. Sources are all taken.
    pub share: f64,
    /// The weight of the examples of a subset: 0 takes them out, 2 is one more copy.
    pub weight: f32,
    /// Random subsets.
    pub subsets: u32,
    /// Number of the first of them, from 1: 0 is the whole data, which every bank has.
    pub first: u32,
    /// Seed of the draw of random subsets.
    pub draw: u64,
    /// A run of each subset with each of these.
    pub seeds: Vec<u64>,
    /// What is measured of the queries in place of the log-probability of their targets: as the stage `gradients` has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measure: Option<Measure>,
}

impl Default for Config {
    fn default() -> Self {
        let training = Training::default();
        let (choose, seeds) = (Choose::Random, vec![0]);
        Self {
            training,
            choose,
            column: None,
            share: 0.01,
            weight: 0.0,
            subsets: 64,
            first: 1,
            draw: 0,
            seeds,
            measure: None,
        }
    }
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        if !(self.share > 0.0 && self.share.is_finite() && (self.share < 1.0 || self.share.fract() == 0.0)) {
            return Err(bad_input(format!(
                "share = {} is out of range; set it to a share between 0 and 1, or to a number of examples",
                self.share
            )));
        }
        if !(self.weight >= 0.0 && self.weight.is_finite()) || self.weight == 1.0 {
            return Err(bad_input(format!(
                "weight = {} changes nothing or cannot be; set it to 0 (taken out), 2 (one more copy) or another number",
                self.weight
            )));
        }
        if self.first == 0 {
            return Err(bad_input("first = 0 is the whole data, which every bank has; set it to 1 or more"));
        }
        if (self.choose == Choose::Sources) != self.column.is_some() {
            return Err(bad_input("column and choose = \"sources\" belong together: write both, or neither"));
        }
        if self.seeds.is_empty() || self.seeds.iter().collect::<BTreeSet<_>>().len() < self.seeds.len() {
            return Err(bad_input("seeds is empty or names one twice; write seeds = [0] or more of them"));
        }
        self.training.check()
    }

    /// Examples of a subset, of so many.
    fn size(&self, examples: usize) -> usize {
        let size = if self.share < 1.0 { (self.share * examples as f64).round() } else { self.share };
        (size as usize).clamp(1, examples)
    }
}

/// What is trained, on what, and who is asked.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The token windows.
    pub tokens: Artifact<Tokens>,
    /// The queries.
    pub queries: Artifact<Tokens>,
    /// The folder of the model that every run starts from.
    pub model: ModelFiles,
    /// Whose strongest examples the subsets are.
    pub strongest: Option<Artifact<Scores>>,
    /// What the subsets' column is in.
    pub known: Option<Known>,
    /// Directions, where a projection is measured.
    pub vectors: Option<Artifact<Vectors>>,
    /// A bank whose runs are taken along.
    pub before: Option<Artifact<Retrainings>>,
}

/// Trains what is not there yet, as many runs side by side as there are threads, and asks each for the queries.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a knob out of its range, rows that do not fit the model, and a loss that is no
/// number.
pub fn run(config: &Config, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    config.check()?;
    let device = open_device(exec.device.gpu())?;
    let model = Learner::begin(&inputs.model, &config.training, &device)?.model;
    let queries: Vec<Example> = inputs.queries.rows()?.collect::<Result<_>>()?;
    let mut measures = Measures::One(Measurement::LogProbability);
    if let Some(measure) = &config.measure {
        let vectors = inputs.vectors.as_ref().context("a projection is measured and no vectors are wired")?;
        let (projections, measured) = measure.of(vectors, model.outline.hidden())?;
        measures = projections;
        draft.summary("measured", measured)?;
    }
    let shares = measures.shares(&queries)?;
    let courses = config.seeds.iter().map(|seed| {
        let training = Training { seed: config.training.seed.wrapping_add(*seed), ..config.training.clone() };
        Course::new(&training, &inputs.tokens, &model)
    });
    let courses: Vec<Course> = courses.collect::<Result<_>>()?;
    let subsets = subsets(config, inputs, &courses[0], queries.len())?;
    let before: Vec<Retraining> =
        inputs.before.iter().map(|bank| bank.rows()?.collect::<Result<Vec<_>>>()).collect::<Result<Vec<_>>>()?.concat();

    let mut units: Vec<(usize, &(u32, Vec<u64>))> = Vec::new();
    for subset in &subsets {
        for (place, seed) in config.seeds.iter().enumerate() {
            let (weight, examples) = (weight_of(config, subset), &subset.1);
            let same = |row: &&Retraining| (row.subset, row.seed) == (subset.0, *seed);
            match before.iter().find(same) {
                Some(row) if row.examples == *examples && row.weight == weight => {}
                Some(_) => {
                    return Err(bad_input(format!(
                        "subset {} with seed {seed} is in the bank `retrainings` with other examples or another weight; give \
                         the steps the same `draw`, `share` and `weight`",
                        subset.0
                    )));
                }
                None => units.push((place, subset)),
            }
        }
    }
    let carried = usize::from(!before.is_empty());
    draft.plan(|| Ok(units.len() + carried))?;
    draft.parts(units.len() + carried);
    if carried == 1 && !draft.has(0) {
        draft.write_rows::<Retrainings, _>(0, &before)?;
    }
    let missing: Vec<usize> = (0..units.len()).filter(|&unit| !draft.has(unit + carried)).collect();
    exec.reporter.begin("retrain", "runs", units.len() as u64, (units.len() - missing.len()) as u64);
    let next = AtomicUsize::new(0);
    let draft_now: &Draft = draft;
    let work = || -> Result<()> {
        while let Some(&unit) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (place, subset) = units[unit];
            let row = retrained(&model, &courses[place], config, config.seeds[place], subset, &queries, &shares)
                .with_context(|| format!("subset {} with seed {}", subset.0, config.seeds[place]))?;
            draft_now.write_rows::<Retrainings, _>(unit + carried, &[row])?;
            exec.reporter.advance(1);
        }
        Ok(())
    };
    side_by_side(exec, &work)?;
    exec.reporter.end();
    draft.summary("runs", units.len() + before.len())?;
    draft.summary("queries", queries.len())?;
    draft.summary("examples", courses[0].examples().len())
}

fn weight_of(config: &Config, subset: &(u32, Vec<u64>)) -> f32 {
    if subset.0 == 0 { 1.0 } else { config.weight }
}

/// Number and examples of every subset, the whole data first.
fn subsets(config: &Config, inputs: &Inputs, course: &Course, queries: usize) -> Result<Vec<(u32, Vec<u64>)>> {
    let examples: Vec<u64> = course.examples().iter().map(|example| example.example).collect();
    let size = config.size(examples.len());
    let mut subsets = vec![(0, Vec::new())];
    match config.choose {
        Choose::Random => {
            for subset in config.first..config.first.saturating_add(config.subsets) {
                let place = |example: &u64| uniform(config.draw, u64::from(subset), *example);
                subsets.push((subset, first(&examples, size, place)));
            }
        }
        Choose::Top => {
            let scores = inputs.strongest.as_ref().context("scores are wired where the strongest are chosen")?;
            let mut influences = vec![std::collections::HashMap::new(); queries];
            for score in scores.rows::<Score>()? {
                let Score { query, example, influence } = score?;
                if let Some(of_query) = influences.get_mut(query as usize) {
                    of_query.insert(example, influence);
                }
            }
            for (query, influences) in (1..).zip(influences) {
                let last = f64::NEG_INFINITY;
                let place = |example: &u64| -influences.get(example).map_or(last, |&influence| f64::from(influence));
                subsets.push((query, first(&examples, size, place)));
            }
        }
        Choose::Sources => {
            let known = inputs.known.as_ref().context("columns are wired where sources are chosen")?;
            let sources = known.sources(config.column.as_deref().unwrap_or_default(), queries)?;
            let learnt = |subset: &(u32, Vec<u64>)| !subset.1.is_empty();
            let of_query = |sources: BTreeSet<u64>| {
                examples.iter().copied().filter(|example| sources.contains(example)).collect::<Vec<_>>()
            };
            subsets.extend((1..).zip(sources.into_iter().map(of_query)).filter(learnt));
        }
    }
    Ok(subsets)
}

/// The `size` examples with the least `place`, in order of their numbers.
fn first(examples: &[u64], size: usize, place: impl Fn(&u64) -> f64) -> Vec<u64> {
    let mut order = examples.to_vec();
    order.sort_by(|left, right| place(left).total_cmp(&place(right)).then(left.cmp(right)));
    order.truncate(size);
    order.sort_unstable();
    order
}

fn retrained(
    model: &Model,
    course: &Course,
    config: &Config,
    seed: u64,
    subset: &(u32, Vec<u64>),
    queries: &[Example],
    shares: &[(&Measurement, Vec<usize>)],
) -> Result<Retraining> {
    let (weight, (number, examples)) = (weight_of(config, subset), subset);
    let mut learner = Learner::new(model.clone());
    let of = |example: u64| if examples.binary_search(&example).is_ok() { weight } else { 1.0 };
    for step in 0..course.steps() {
        course.step(&mut learner, step, &of)?;
    }
    let (mut loss, mut by_token) = (vec![0.0; queries.len()], Vec::new());
    for (measurement, places) in shares {
        for &place in places {
            let query = &queries[place];
            let batch = Batch::new(&[sequence(query)], &model.device);
            if **measurement == Measurement::LogProbability {
                let tokens = learner.model.token_losses(&batch)?.concat();
                loss[place] = query.loss(&tokens);
                by_token.extend(tokens);
            } else {
                loss[place] = learner.model.measure(&batch, measurement)?.iter().sum();
            }
        }
    }
    Ok(Retraining { subset: *number, seed, weight, examples: examples.clone(), loss, by_token })
}

/// A query as the model reads it.
pub(crate) fn sequence(query: &Example) -> Sequence<'_> {
    let Example { example, input_ids, target_mask, segments, weights, .. } = query;
    Sequence { example: *example, input_ids, target_mask, segments, weights, preference: None }
}

fn cost(config: &Config, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = planned.attributed(machine, Sizes::new) else { return Cost::new(0.0, 0.0, 0.0) };
    let (tokens, weights) = (planned.size_of("tokens").tokens, sizes.footprint.weights as f64);
    let queries = planned.size_of("queries");
    let subsets = if config.choose == Choose::Random { f64::from(config.subsets) } else { queries.rows };
    let runs = (subsets + 1.0) * config.seeds.len() as f64;
    let threads = match &machine.device {
        Device::Cpu { threads } => *threads as f64,
        Device::Gpu { .. } => 1.0,
    };
    let memory = weights + threads * (sizes.footprint.activations as f64 + 5.0 * weights);
    let flops = runs * (6.0 * config.training.epochs as f64 * tokens + 2.0 * queries.tokens) * sizes.forward;
    Cost::new(memory, runs * (4.0 * (queries.tokens + queries.rows) + 1e3), flops).note(format!("{runs} runs"))
}
