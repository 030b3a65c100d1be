//! The stage `metagradient`: what one more copy of an example, all through a training run, does to each query behind it.
//!
//! reads   tokens, queries, the model that the run starts from
//! writes  scores, a part a query
//!
//! ```text
//! influence(q, n)  =  d log p_q / d w_n  at the last weights of the run          nats per added copy
//! ```
//!
//! The run is the one that `fine-tune` and `retrain` make with the same knobs, differentiated exactly through each of its steps,
//! last to first (Engstrom et al. 2025, arXiv 2503.13751): [`wherefrom_train::reverse`] has the equations. The states of the run
//! before each step are kept where they have room; else one in root of the steps, and those between two of them are made again
//! when a query comes back to them.

mod way;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use wherefrom_artifact::{Artifact, Draft, Example, Kind, Score, Scores, Tokens, bad_input};
use wherefrom_model::{Batch, Footprint, Measurement, Model, Parameters, Sizes, available_bytes, open_device};
use wherefrom_stage::{About, Checkpoint, Cost, Exec, Machine, ModelFiles, Planned, Role, Stage, Writes};
use wherefrom_train::course::{Course, Learner, Training};
use wherefrom_train::metasmoothness::{LEAST, STEP, direction, metasmoothness};
use wherefrom_train::reverse::{Adjoint, State, Values};

use crate::retrain::sequence;
use crate::threads::side_by_side;
use way::Way;

/// Raised when results change.
pub const VERSION: u32 = 1;

/// Between two checkpoints of a query, and their share of the time at most a twentieth.
const INTERVAL: Duration = Duration::from_secs(20);

/// The stage `metagradient`.
pub static STAGE: Stage<Training> = Stage {
    about: About { model: Checkpoint::Runs, ..About::new("metagradient", VERSION) },
    roles: &[Role::required("tokens", &[Kind::Tokens]), Role::required("queries", &[Kind::Tokens])],
    parse: serde_json::from_value,
    check,
    writes: Writes::One(Kind::Scores),
    makes_model: |_| None,
    cost,
    run: |config, given, exec, draft| {
        let inputs = Inputs { tokens: given.open("tokens")?, queries: given.open("queries")?, model: given.model()? };
        run(config, &inputs, exec, draft)
    },
};

/// What is trained, on what, and who is asked.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The token windows.
    pub tokens: Artifact<Tokens>,
    /// The queries.
    pub queries: Artifact<Tokens>,
    /// The folder of the model that the run starts from.
    pub model: ModelFiles,
}

/// Refuses a run that has no derivative.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`], by name.
pub fn check(config: &Training) -> Result<()> {
    config.check()?;
    if config.clip.is_some() {
        return Err(bad_input("clip: the way back does not go through clipping; leave it out, here and in the bank"));
    }
    if config.eps_root == 0.0 {
        return Err(bad_input(
            "eps-root = 0: AdamW's root has no finite derivative where a gradient vanishes; set it to 1e-8 or more, here and in \
             the bank",
        ));
    }
    Ok(())
}

/// The states of a run from which all others are made again.
struct Kept {
    /// Before each so many steps.
    every: u64,
    states: Vec<State>,
}

/// Goes through the run once, and back with as many queries side by side as there are threads.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a knob out of its range, rows that do not fit the model, a loss that is no number,
/// and an influence that is none.
pub fn run(config: &Training, inputs: &Inputs, exec: &Exec, draft: &mut Draft) -> Result<()> {
    check(config)?;
    let device = open_device(exec.device.gpu())?;
    let start = Learner::begin(&inputs.model, config, &device)?;
    let queries: Vec<Example> = inputs.queries.rows()?.collect::<Result<_>>()?;
    let course = Course::new(config, &inputs.tokens, &start.model)?;
    let (steps, examples) = (course.steps(), inputs.tokens.examples());
    let measurement = Measurement::LogProbability;
    draft.metadata("unit", format!("{} per added copy in the training run", measurement.unit()));
    draft.metadata("sign", format!("positive = one more copy raises {}", measurement.sign()));
    draft.metadata("method", "metagradient");
    draft.plan(|| Ok(queries.len()))?;
    draft.parts(queries.len());

    let footprint = start.model.footprint(exec.batch_tokens);
    let threads = exec.device.side_by_side() as f64;
    let room = Room { weights: footprint.weights as f64, activations: footprint.activations as f64, threads };
    let every = room.every(steps, exec.device.limit(exec.memory, available_bytes));
    exec.reporter.begin("metagradient, there", "steps", 3 * steps, 0);
    let mut learner = start.clone();
    let mut kept = Kept { every, states: Vec::new() };
    for step in 0..steps {
        let before = course.advance(&mut learner, step)?;
        if step % every == 0 {
            kept.states.push(before);
        }
        exec.reporter.advance(1);
    }
    let direction = direction(config.seed);
    let end = |distance: f32| -> Result<Parameters> {
        let mut learner = start.clone();
        for step in 0..steps {
            course.step(&mut learner, step, &|example| 1.0 + distance * STEP * direction(example))?;
            exec.reporter.advance(1);
        }
        Ok(learner.model.parameters)
    };
    let smoothness = metasmoothness([&learner.model.parameters, &end(1.0)?, &end(2.0)?])?;
    exec.reporter.end();
    draft.summary("metasmoothness", smoothness)?;
    if let Some(smoothness) = smoothness.filter(|smoothness| *smoothness < LEAST) {
        exec.reporter.warn(&format!(
            "the run's metasmoothness is {smoothness:.2}, less than {LEAST}: its weights do not answer evenly to those of its \
             examples, and a retraining may do otherwise than any influence says; raise eps-root or batch-rows, or lower \
             learning-rate, here and in the bank"
        ));
    }

    let missing: Vec<usize> = (0..queries.len()).filter(|&query| !draft.has(query)).collect();
    let done = (queries.len() - missing.len()) as u64;
    let begun = |&query: &usize| Ok((query, Way::restore(draft, query)?));
    let missing: Vec<(usize, Option<Way>)> = missing.iter().map(begun).collect::<Result<_>>()?;
    let back_through: u64 = missing.iter().filter_map(|(_, way)| Some(steps - way.as_ref()?.left)).sum();
    exec.reporter.begin("metagradient, back", "steps", steps * queries.len() as u64, steps * done + back_through);
    let next = AtomicUsize::new(0);
    let draft_now: &Draft = draft;
    side_by_side(exec, &|| {
        while let Some((query, begun)) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (query, mut saved, mut cost) = (*query, Instant::now(), Duration::ZERO);
            let way = match begun {
                Some(way) => way.clone(),
                None => Way {
                    left: steps,
                    adjoint: behind(&learner.model, &queries[query])?,
                    influences: vec![0.0; examples as usize],
                },
            };
            let influences = back(&course, &kept, way, &mut |way| {
                exec.reporter.advance(1);
                if saved.elapsed() > INTERVAL.max(20 * cost) {
                    let start = Instant::now();
                    way.save(draft_now, query)?;
                    (saved, cost) = (Instant::now(), start.elapsed());
                }
                Ok(())
            })
            .with_context(|| format!("query {query}"))?;
            draft_now.write_rows::<Scores, _>(query, &scores(query, influences)?)?;
            Way::forget(draft_now, query)?;
        }
        Ok(())
    })?;
    exec.reporter.end();
    draft.summary("steps", steps)?;
    draft.summary("queries", queries.len())
}

/// The gradient of a query's log p at the last weights.
fn behind(model: &Model, query: &Example) -> Result<Adjoint> {
    let (gradients, ..) = model.parameter_gradients(&Batch::new(&[sequence(query)], &model.device))?;
    let mut weights = Values::new();
    for (name, of_loss) in gradients {
        let of_loss: Vec<f32> = of_loss.into_data().try_into_vec().map_err(|error| anyhow!("{error:?}"))?;
        weights.insert(name, of_loss.into_iter().map(|value| -f64::from(value)).collect());
    }
    Ok(Adjoint::new(weights))
}

/// From where a query is to the first weights: the influence of every example. `passed` hears of every step.
fn back(course: &Course, kept: &Kept, mut way: Way, passed: &mut dyn FnMut(&Way) -> Result<()>) -> Result<Vec<f64>> {
    let left = way.left;
    for first in kept.states.iter().rev().filter(|state| state.step() < left) {
        let between;
        let states = match kept.every {
            1 => std::slice::from_ref(first),
            every => {
                between = course.states(first, every)?;
                &between
            }
        };
        for state in states.iter().rev().filter(|state| state.step() < left) {
            for (example, influence) in course.back(state, &mut way.adjoint)? {
                way.influences[example as usize] += influence;
            }
            way.left = state.step();
            passed(&way)?;
        }
    }
    Ok(way.influences)
}

fn scores(query: usize, influences: Vec<f64>) -> Result<Vec<Score>> {
    let score = |(example, influence): (usize, f64)| {
        if !(influence as f32).is_finite() {
            return Err(bad_input(format!(
                "the influence of example {example} on query {query} is {influence}: the run is not smooth; raise eps-root, or \
                 lower learning-rate"
            )));
        }
        Ok(Score { query: query as u32, example: example as u64, influence: influence as f32 })
    };
    influences.into_iter().enumerate().map(score).collect()
}

/// Bytes of a run and its way back.
struct Room {
    weights: f64,
    activations: f64,
    threads: f64,
}

impl Room {
    /// Weights, two moments and a gradient before each state that is kept, and of each thread before every state between two
    /// of them. Of each thread also the adjoint (float64, at weights and moments), u and what its differences give (float64),
    /// the weights beside, and gradients.
    fn bytes(&self, steps: u64, every: u64) -> f64 {
        let between = if every == 1 { 0.0 } else { self.threads * every as f64 };
        let states = 1.0 + steps.div_ceil(every) as f64 + between;
        4.0 * states * self.weights + self.threads * (self.activations + 14.0 * self.weights)
    }

    /// Every how many steps a state is kept.
    fn every(&self, steps: u64, limit: Option<u64>) -> u64 {
        match limit.is_none_or(|limit| self.bytes(steps, 1) <= limit as f64) {
            true => 1,
            false => (steps as f64 / self.threads).sqrt().ceil().max(2.0) as u64,
        }
    }
}

fn cost(config: &Training, planned: &Planned, machine: &Machine) -> Cost {
    let Some(sizes) = planned.attributed(machine, Sizes::new) else { return Cost::new(0.0, 0.0, 0.0) };
    let (tokens, queries) = (planned.size_of("tokens"), planned.size_of("queries").rows);
    let Footprint { weights, activations, .. } = sizes.footprint;
    let threads = machine.device.side_by_side() as f64;
    let room = Room { weights: weights as f64, activations: activations as f64, threads };
    let steps = config.epochs as u64 * (tokens.rows as u64).div_ceil(config.batch_rows as u64).max(1);
    let every = room.every(steps, machine.memory);
    // The run, two to see whether it is smooth, and four gradients a step and query, or five.
    let runs = 3.0 + queries * if every == 1 { 4.0 } else { 5.0 };
    let flops = runs * 6.0 * config.epochs as f64 * tokens.tokens * sizes.forward;
    let note = if every == 1 { String::new() } else { format!("one in {every} states of the run is kept") };
    Cost::new(room.bytes(steps, every), 12.0 * queries * tokens.rows, flops).note(note)
}

#[cfg(test)]
mod tests {
    use wherefrom_model::Config;

    use super::*;

    /// A run of four steps on six rows, and a query behind it.
    fn run_of_four(every: u64) -> (Course, Kept, Way) {
        let config = Config {
            vocab_size: 12,
            hidden_size: 8,
            intermediate_size: 8,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 2,
            max_position_embeddings: 8,
            tie_word_embeddings: true,
            ..Config::llama(4, 10_000.0, 1e-5)
        };
        let mut learner = Learner::new(Model::random(config, 0, &wherefrom_model::resolve_device("cpu").unwrap()));
        let row = |example: u64| Example {
            example,
            input_ids: (0..6).map(|token| (3 * example as u32 + token * (example as u32 + 1)) % 12).collect(),
            target_mask: (0..6).map(|position| position > 0).collect(),
            ..Example::default()
        };
        let training =
            Training { epochs: 1, batch_rows: 3, learning_rate: 0.01, eps_root: 1e-6, ..Training::default() };
        let course = Course::of(
            (0..6).map(row).collect(),
            vec![vec![0, 1, 2], vec![3, 4, 5], vec![1, 3, 5], vec![0, 2, 4]],
            &training,
        );
        let mut states = Vec::new();
        for step in 0..course.steps() {
            let before = course.advance(&mut learner, step).unwrap();
            if step % every == 0 {
                states.push(before);
            }
        }
        let adjoint = behind(&learner.model, &row(7)).unwrap();
        let way = Way { left: course.steps(), adjoint, influences: vec![0.0; 6] };
        (course, Kept { every, states }, way)
    }

    #[test]
    fn a_query_goes_on_from_any_step() {
        for every in [1, 2] {
            let (course, kept, way) = run_of_four(every);
            let mut seen = Vec::new();
            let whole = back(&course, &kept, way, &mut |way| {
                seen.push(way.clone());
                Ok(())
            });
            let whole = whole.unwrap();
            assert!(whole.iter().all(|influence| *influence != 0.0), "{whole:?}");
            assert_eq!(seen.iter().map(|way| way.left).collect::<Vec<_>>(), [3, 2, 1, 0]);
            for way in seen {
                assert_eq!(back(&course, &kept, way, &mut |_| Ok(())).unwrap(), whole);
            }
        }
    }
}
