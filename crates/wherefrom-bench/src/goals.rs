//! What was aimed at, and what came of it.

use std::fmt::Write as _;

use anyhow::Result;

use crate::results::Results;
use crate::table::{percent, two_digits};
use crate::work::{Rounded, Subject, Work};

/// One aim: what, at least or at most how much, and what was measured.
struct Goal {
    what: String,
    aim: String,
    found: String,
    met: bool,
}

/// A table of those for which everything was measured.
pub(crate) fn write(text: &mut String, results: &Results) -> Result<()> {
    let mut goals = Vec::new();
    let mut least = |what: &str, aim: f64, found: Option<f64>, show: fn(f64) -> String| {
        if let Some(value) = found {
            let what = what.into();
            goals.push(Goal { what, met: value >= aim, aim: format!("≥ {}", show(aim)), found: show(value) });
        }
    };
    let subject = Subject::Smollm2;
    let of = |work| results.phase(subject, work);
    let share = |work| of(work)?.share_of_product;
    let scan = Work::Scan(Subject::QUERIES);
    let scanned = of(scan).and_then(|phase| phase.measured.tokens_per_second);
    least("forward + backward, of the product's rate", 0.7, share(Work::Taps), percent);
    let floor = of(scan).and_then(|phase| phase.share_of_forward_backward);
    least("scan of 8 queries, of forward + backward", 0.8, floor, percent);
    least("scan of 64 queries, of the product's rate", 0.9, share(Work::Scan(64)), percent);
    least("scan of 256 queries, of the product's rate", 0.9, share(Work::Scan(256)), percent);
    let theirs = |work| of(work)?.peer.as_ref()?.tokens_per_second;
    let best = theirs(scan).zip(theirs(Work::ScanFull)).map(|(low, full)| low.max(full));
    let times = |theirs: Option<f64>| scanned.zip(theirs).map(|(ours, theirs)| ours / theirs);
    least("scan, times the faster of kronfluence's two", 2.0, times(best), two_digits);
    least("scan, times torch's forward + backward", 1.8, times(theirs(Work::Taps)), two_digits);
    let faster = |work| of(work)?.times_as_fast;
    least("covariance, times kronfluence's", 3.0, faster(Work::Covariance), two_digits);
    least("lambda, times kronfluence's", 3.5, faster(Work::Lambda), two_digits);
    let query = results.query(subject, false).map(|(ours, theirs)| theirs / ours);
    least("query's gradient and preconditioning, times kronfluence's", 5.0, query, two_digits);
    let rate = |work| of(work)?.measured.tokens_per_second;
    let scaling = rate(Work::Taps).zip(rate(Work::TapsAlone)).map(|(all, one)| all / one);
    let products = results.all_threads.flops / results.one_thread.flops;
    least("all threads over one, of the product's own scaling", 0.95, scaling.map(|x| x / products), percent);

    for (what, rounded) in [("forward + backward", Rounded::Taps), ("scan of 8 queries", Rounded::Scan)] {
        let work = Work::Bf16(rounded);
        let (wide, _) = work.precision();
        let times = rate(work).zip(rate(wide)).map(|(rounded, wide)| rounded / wide);
        least(&format!("{what} in bfloat16, times that in float32"), 1.6, times, two_digits);
    }
    let leads = [Rounded::Covariance, Rounded::Lambda, Rounded::Scan].map(Work::Bf16).into_iter();
    for work in leads {
        let (wide, _) = work.precision();
        let kept = faster(work).zip(faster(wide)).map(|(rounded, wide)| rounded / wide);
        least(
            &format!("lead over kronfluence in bfloat16, of that in float32: {}", wide.name()),
            1.0,
            kept,
            two_digits,
        );
    }

    let mut most = |what: String, aim: f64, found: Option<f64>, show: fn(f64) -> String| {
        if let Some(value) = found {
            goals.push(Goal { what, met: value <= aim, aim: format!("≤ {}", show(aim)), found: show(value) });
        }
    };
    for work in [Work::Covariance, Work::Eigenbasis, Work::Lambda, scan, Work::ScanFull] {
        let found = of(work).and_then(|phase| phase.memory_ratio);
        most(format!("peak memory of `{}`, over kronfluence's", work.name()), 0.5, found, two_digits);
    }
    for (passes, whole) in [(Work::CovariancePasses, Work::Covariance), (Work::LambdaPasses, Work::Lambda)] {
        let theirs = of(whole).and_then(|phase| phase.peer.as_ref());
        let found = of(passes).zip(theirs).map(|(ours, peer)| ours.measured.peak_bytes as f64 / peer.peak_bytes as f64);
        most(format!("peak memory of `{}`, over kronfluence's", passes.name()), 1.0 / 3.0, found, two_digits);
    }
    let flat = |sequences| results.phase(Subject::Quickstart, Work::Flat(sequences));
    if let (Some(few), Some(many)) = (flat(1_000), flat(100_000)) {
        let time = many.measured.each_seconds.zip(few.measured.each_seconds).map(|(many, few)| many / few);
        most("time of a sequence, 10⁵ over 10³".into(), 1.05, time, two_digits);
        let memory = many.measured.peak_bytes as f64 / few.measured.peak_bytes as f64;
        most("peak memory, 10⁵ sequences over 10³".into(), 1.1, Some(memory), two_digits);
    }
    if let Some(phase) = flat(10_000) {
        let outside = phase.measured.before_seconds + phase.measured.after_seconds;
        let share = outside / (outside + phase.measured.loop_seconds);
        most("outside the loop, scan of 10⁴ sequences".into(), 0.03, Some(share), percent);
    }
    if goals.is_empty() {
        return Ok(());
    }
    *text += "\n### Aims\n\n| | aim | measured | |\n|---|---|---|---|\n";
    for goal in goals {
        let met = if goal.met { "met" } else { "missed" };
        writeln!(text, "| {} | {} | {} | {met} |", goal.what, goal.aim, goal.found)?;
    }
    Ok(())
}
