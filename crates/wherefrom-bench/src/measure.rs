//! One piece of work, timed in a process of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Artifact, Example, Reporter as _, Silent, Tokens};
use wherefrom_linalg::memory::peak_bytes;
use wherefrom_model::{Batch, Labels, Model, Modules, Outline, Selection, Sequence, open_device};
use wherefrom_stage::Exec;

use crate::clock::{Clock, Loop};
use crate::place::Place;
use crate::random::CANDIDATES;
use crate::stages::fill;
use crate::work::{Subject, Work};

/// What a stage may hold on the CPU, for sums and for whole queries.
const MEMORY: u64 = 8 << 30;

/// What came out.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Median of `pieces`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) tokens_per_second: Option<f64>,
    /// Real tokens a second: of SmolLM2 in each batch but the first, of the quickstart in each run but the first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) pieces: Vec<f64>,
    /// Seconds of the loop for each of what `per` says.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) each_seconds: Option<f64>,
    /// `query`, `pair`, `matrix` or `sequence`.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub(crate) per: String,
    /// Sequences, and real tokens of all of them.
    pub(crate) sequences: u64,
    pub(crate) tokens: u64,
    /// Of the first run: before its loop (load, check digests), in it, and after it (write, digest).
    pub(crate) before_seconds: f64,
    pub(crate) loop_seconds: f64,
    pub(crate) after_seconds: f64,
    /// Most memory that the process has held.
    pub(crate) peak_bytes: u64,
    /// What a GPU had reserved for it in the end, which is the most that it took.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) device_bytes: Option<u64>,
    /// Of the artifact.
    pub(crate) disk_bytes: u64,
}

/// Does the work and says how it went.
pub(crate) fn measure(place: &Place, work: Work) -> Result<Measured> {
    let repeats = match (place.subject, work) {
        (Subject::Smollm2 | Subject::Shape(_), _)
        | (_, Work::Flat(_) | Work::CovariancePasses | Work::LambdaPasses) => 1,
        (Subject::Quickstart, _) => 4,
    };
    let mut measured = Measured::default();
    let mut loops: Vec<Vec<Loop>> = Vec::new();
    for _ in 0..repeats {
        let clock = Arc::new(Clock::default());
        let start = Instant::now();
        match work.kind() {
            Some(_) => stage(place, work, &clock)?,
            None => model(place, work, &clock)?,
        }
        let seconds = start.elapsed().as_secs_f64();
        let run = clock.take();
        if let (true, Some(first)) = (loops.is_empty(), run.first()) {
            measured.before_seconds = (first.begin - start).as_secs_f64();
            measured.loop_seconds = run.iter().map(Loop::seconds).sum();
            measured.after_seconds = seconds - measured.before_seconds - measured.loop_seconds;
        }
        loops.push(run);
    }
    if work.kind().is_some() {
        measured.disk_bytes = bytes(&place.artifact(work)?)?;
    }
    let (wide, _) = work.precision();
    let tokens = match wide {
        Work::Gradients => place.open(Work::Queries),
        _ => place.open::<Tokens>(Work::Tokens(work.sequences(place.subject))),
    };
    if let Ok(tokens) = tokens {
        (measured.sequences, measured.tokens) = (tokens.examples(), tokens.tokens());
    }
    rate(&mut measured, place, wide, &loops);
    measured.peak_bytes = peak_bytes().unwrap_or(0);
    if let Some(index) = place.device.gpu() {
        measured.device_bytes = open_device(Some(index))?.memory_pool_usage().map(|usage| usage.bytes_reserved);
    }
    Ok(measured)
}

/// Makes what other work needs.
pub(crate) fn make(place: &Place, work: Work) -> Result<()> {
    stage(place, work, &Arc::new(Clock::default()))
}

/// One run of a stage; what an earlier one left is removed.
fn stage(place: &Place, work: Work, clock: &Arc<Clock>) -> Result<()> {
    let kind = work.kind().context("a stage writes an artifact")?;
    if place.has(work) {
        place.store.remove(&place.artifact(work)?, &Silent)?;
    }
    let passes = matches!(work, Work::CovariancePasses | Work::LambdaPasses);
    let modules = Selection::new(&Modules::default(), Outline::new(&place.config()?).modules())?.modules().len();
    let exec = Exec {
        device: place.device.clone(),
        batch_tokens: place.subject.batch_tokens(work),
        memory: place.device.gpu().is_none().then_some(MEMORY),
        modules_per_pass: passes.then(|| modules.div_ceil(3)),
        reporter: clock.clone(),
    };
    place.store.produce(kind, place.recipe(work), &Silent, |draft| fill(place, work, &exec, draft))?;
    Ok(())
}

/// One run over the sequences, forward or forward and backward, batch by batch.
fn model(place: &Place, work: Work, clock: &Clock) -> Result<()> {
    let tokens: Artifact<Tokens> = place.open(Work::Tokens(work.sequences(place.subject)))?;
    let device = open_device(place.device.gpu())?;
    let (wide, precision) = work.precision();
    let model = Model::open(&place.model()?, &device)?.with_precision(precision)?.held()?;
    let selection = Selection::new(&Modules::default(), model.modules())?;
    let rows: Vec<Example> = tokens.rows()?.collect::<Result<_>>()?;
    let lengths: Vec<_> = rows.iter().map(|row| row.input_ids.len()).collect();
    clock.begin(&work.name(), "tokens", tokens.tokens(), 0);
    for group in model.batches(&lengths, place.subject.batch_tokens(work)) {
        let sequence = |&row: &usize| Sequence::new(row as u64, &rows[row].input_ids, &rows[row].target_mask);
        let batch = Batch::new(&group.iter().map(sequence).collect::<Vec<_>>(), &device);
        if wide == Work::Forward {
            drop(model.logits(&batch)?);
        } else {
            model.taps(&batch, &Labels::Empirical, &selection, &mut |_| Ok(()))?;
        }
        // A GPU works on what it was given while this thread goes on.
        device.sync()?;
        clock.advance(batch.rows() as u64);
    }
    clock.end();
    Ok(())
}

/// Tokens a second, and seconds for each query, pair, matrix or sequence.
fn rate(measured: &mut Measured, place: &Place, work: Work, loops: &[Vec<Loop>]) {
    let seconds: Vec<f64> = loops.iter().map(|run| run.iter().map(Loop::seconds).sum()).collect();
    // The first run warms up, where there are others.
    let warm = usize::from(seconds.len() > 1);
    let each = match work {
        Work::Gradients | Work::Precondition | Work::PreconditionFull => Some(("query", Subject::QUERIES)),
        Work::Details => Some(("pair", Subject::QUERIES * CANDIDATES)),
        Work::Eigenbasis => loops.first().and_then(|run| Some(("matrix", run.first()?.total as usize))),
        Work::Flat(sequences) => Some(("sequence", sequences)),
        _ => None,
    };
    if let Some((per, count)) = each {
        measured.per = per.into();
        measured.each_seconds = median(&seconds[warm..]).map(|seconds| seconds / count as f64);
    }
    if matches!(work, Work::Precondition | Work::PreconditionFull | Work::Eigenbasis | Work::Details) {
        return;
    }
    let all: Vec<&Loop> = loops.iter().flatten().collect();
    measured.pieces = match (place.subject, work) {
        (Subject::Quickstart, _) => seconds[warm..].iter().map(|seconds| measured.tokens as f64 / seconds).collect(),
        // Batches of a scan of few queries run side by side, and have no time of their own.
        (Subject::Smollm2, Work::Scan(1 | 8) | Work::ScanFull) => {
            let threads = rayon::current_num_threads();
            all.iter().filter_map(|run| side_by_side(measured, run, threads)).collect()
        }
        // A GPU is handed the next batch before it is done with the last: only all of them have a time.
        (Subject::Shape(_), _) if work.kind().is_some() => {
            all.iter().filter_map(|run| after_the_first(measured, run)).collect()
        }
        _ => batches(measured, &all),
    };
    measured.tokens_per_second = median(&measured.pieces);
}

/// Tokens a second in each batch, but for the first of every pass over the corpus, before which things are loaded.
///
/// Where the corpus is gone over `times` times, a pass has to be so many times as fast for the same rate.
fn batches(measured: &Measured, loops: &[&Loop]) -> Vec<f64> {
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for run in loops {
        let (units, tokens) = units(measured, run);
        let groups = (run.total / units.max(1)).max(1) as usize;
        let (in_one, times) = ((run.advances.len() / groups).max(1), (loops.len() * groups) as f64);
        for (index, (units, seconds)) in run.steps().enumerate() {
            let rate = units as f64 * tokens / seconds / times;
            if index % in_one == 0 { cold.push(rate) } else { warm.push(rate) }
        }
    }
    if warm.is_empty() { cold } else { warm }
}

/// What a loop counts, tokens or sequences: how many there are, and the tokens of one.
fn units(measured: &Measured, run: &Loop) -> (u64, f64) {
    match &run.unit[..] {
        "tokens" => (measured.tokens, 1.0),
        _ => (measured.sequences, measured.tokens as f64 / measured.sequences as f64),
    }
}

/// Tokens a second of all batches but the first together, over all passes.
fn after_the_first(measured: &Measured, run: &Loop) -> Option<f64> {
    let (units, tokens) = units(measured, run);
    let (first, rest) = run.advances.split_first()?;
    let done: u64 = rest.iter().map(|(_, units)| units).sum();
    let seconds = (rest.last()?.0 - first.0).as_secs_f64();
    Some(done as f64 * tokens / seconds / (run.total / units.max(1)).max(1) as f64)
}

/// Tokens a second of all batches but the first on each thread, which load the queries and touch fresh memory.
fn side_by_side(measured: &Measured, run: &Loop, threads: usize) -> Option<f64> {
    let (first, rest) = run.advances.split_at_checked(threads)?;
    let examples: u64 = rest.iter().map(|(_, examples)| examples).sum();
    let (begin, _) = first.last()?;
    let seconds = (rest.last()?.0 - *begin).as_secs_f64();
    Some(examples as f64 * measured.tokens as f64 / measured.sequences as f64 / seconds)
}

/// The middle of the values, or the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    (n > 0).then(|| (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0)
}

/// Bytes of the files of a folder.
fn bytes(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder)? {
        sum += entry?.metadata()?.len();
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// A loop that gives `unit`s at these moments, in milliseconds.
    fn run(unit: &str, total: u64, advances: &[(u64, u64)]) -> Loop {
        let begin = Instant::now();
        let advances = advances.iter().map(|&(moment, units)| (begin + Duration::from_millis(moment), units)).collect();
        Loop { unit: unit.into(), total, begin, advances, end: begin }
    }

    fn rates(loops: &[&Loop]) -> Vec<i64> {
        let measured = Measured { sequences: 8, tokens: 2048, ..Measured::default() };
        batches(&measured, loops).into_iter().map(|rate| rate.round() as i64).collect()
    }

    #[test]
    fn a_first_batch_does_not_count() {
        assert_eq!(rates(&[&run("tokens", 2048, &[(9000, 1024), (10_000, 1024)])]), [1024]);
        assert_eq!(rates(&[&run("examples", 8, &[(9000, 4), (10_000, 4)])]), [1024]);
    }

    #[test]
    fn several_passes_divide_the_rate() {
        let groups = run("examples", 16, &[(9000, 4), (10_000, 4), (19_000, 4), (20_000, 4)]);
        assert_eq!(rates(&[&groups]), [512, 512]);
        let pass = run("tokens", 2048, &[(1000, 2048)]);
        assert_eq!(rates(&[&pass, &pass]), [1024, 1024]);
    }

    #[test]
    fn the_first_batch_of_each_thread_does_not_count() {
        let run = run("examples", 8, &[(8900, 1), (9000, 1), (9900, 2), (10_000, 2), (10_900, 1), (11_000, 1)]);
        let measured = Measured { sequences: 8, tokens: 2048, ..Measured::default() };
        assert_eq!(side_by_side(&measured, &run, 2).map(f64::round), Some(6.0 * 256.0 / 2.0));
        assert_eq!(side_by_side(&measured, &run, 6), None);
        assert_eq!(side_by_side(&measured, &run, 7), None);
    }

    #[test]
    fn a_card_is_timed_over_all_batches_but_the_first() {
        let measured = Measured { sequences: 8, tokens: 2048, ..Measured::default() };
        let rate = |run: &Loop| after_the_first(&measured, run).map(f64::round);
        assert_eq!(rate(&run("tokens", 2048, &[(9000, 1024), (9500, 512), (10_000, 512)])), Some(1024.0));
        assert_eq!(rate(&run("examples", 8, &[(9000, 4), (10_000, 4)])), Some(1024.0));
        // Twice over the corpus: the first batch of the second pass is among the rest.
        let twice = run("examples", 16, &[(9000, 4), (10_000, 4), (11_000, 4), (12_000, 4)]);
        assert_eq!(rate(&twice), Some(512.0));
        assert_eq!(rate(&run("examples", 8, &[(9000, 8)])), None);
    }

    #[test]
    fn a_median_stands_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
