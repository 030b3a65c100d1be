//! Results as the tables of `docs/performance.md`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::flops::Shapes;
use crate::goals;
use crate::place::Place;
use crate::results::{Phase, Results};
use crate::work::{Subject, Work};

const BEGIN: &str = "<!-- bench: begin -->\n";
const END: &str = "<!-- bench: end -->";

/// Replaces what stands between the page's markers.
pub(crate) fn put(page: &Path, table: &str) -> Result<()> {
    let text = fs::read_to_string(page)?;
    let missing = || format!("{} lacks its markers", page.display());
    let (before, rest) = text.split_once(BEGIN).with_context(missing)?;
    let (_, after) = rest.split_once(END).with_context(missing)?;
    fs::write(page, format!("{before}{BEGIN}\n{table}\n{END}{after}"))?;
    Ok(())
}

/// Everything, as Markdown.
pub(crate) fn markdown(results: &Results) -> Result<String> {
    let mut text = machine(results)?;
    for subject in Subject::ALL {
        let phases: Vec<_> = results.phases.iter().filter(|phase| phase.subject == subject.name()).collect();
        if phases.is_empty() {
            continue;
        }
        let title = match subject {
            Subject::Quickstart => "The quickstart's model",
            Subject::Smollm2 => "SmolLM2-135M's shape",
            Subject::Shape(shape) => shape.name,
        };
        write!(text, "\n### {title}\n\n")?;
        stages(&mut text, &phases)?;
        against(&mut text, results, subject, &phases)?;
        paths(&mut text, subject, &phases)?;
    }
    goals::write(&mut text, results)?;
    Ok(text)
}

fn machine(results: &Results) -> Result<String> {
    let machine = results.machine.as_ref().context("results without a machine")?;
    let mut text = format!(
        "{}. {}, {} cores, {:.0} GiB, {}. wherefrom {} at commit {}.",
        machine.date,
        machine.processor,
        machine.cores,
        machine.memory_bytes as f64 / 1_073_741_824.0,
        machine.system,
        machine.version,
        machine.commit
    );
    let versions = results.phases.iter().find_map(|phase| Some(&phase.peer.as_ref()?.versions));
    match (versions, &results.without_peers) {
        (Some(versions), _) => {
            let each: Vec<_> = versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
            write!(text, " {}.\n\n", each.join(", "))?;
        }
        (None, Some(why)) => write!(text, " Other tools were left out: {why}.\n\n")?,
        (None, None) => text += "\n\n",
    }
    let (one, all) = (results.one_thread, results.all_threads);
    text += "| ceiling, best of the run | one thread | all threads |\n|---|---|---|\n";
    writeln!(text, "| float32 product 2048×576×1536, GFLOP/s | {:.0} | {:.0} |", one.flops / 1e9, all.flops / 1e9)?;
    let [one_bf16, all_bf16] = [one, all].map(|ceilings| ceilings.bf16_flops / 1e9);
    writeln!(text, "| bfloat16 product of that shape, GFLOP/s | {one_bf16:.0} | {all_bf16:.0} |")?;
    writeln!(text, "| copy, GB/s read and written | {:.1} | {:.1} |", one.copy / 1e9, all.copy / 1e9)?;
    for (size, seconds) in &results.eigen_seconds {
        writeln!(text, "| float64 eigendecomposition of size {size}, ms | | {:.1} |", 1e3 * seconds)?;
    }
    Ok(text)
}

fn stages(text: &mut String, phases: &[&Phase]) -> Result<()> {
    *text += "| phase | tokens/s | GFLOP a token | of the product's rate | of forward + backward | each | \
              before + in + after the loop, s | peak MB | disk MB |\n|---|---|---|---|---|---|---|---|---|\n";
    for phase in phases {
        let measured = &phase.measured;
        let each = measured.each_seconds.map(|seconds| format!("{} a {}", time(seconds), measured.per));
        writeln!(
            text,
            "| `{}` | {} | {} | {} | {} | {} | {:.2} + {:.2} + {:.2} | {:.0} | {} |",
            phase.phase,
            or_nothing(measured.tokens_per_second, |rate| format!("{rate:.0}")),
            or_nothing(phase.gflop_per_token, |gflop| format!("{gflop:.3}")),
            or_nothing(phase.share_of_product, percent),
            or_nothing(phase.share_of_forward_backward, percent),
            each.unwrap_or_default(),
            measured.before_seconds,
            measured.loop_seconds,
            measured.after_seconds,
            measured.peak_bytes as f64 / 1e6,
            or_nothing(Some(measured.disk_bytes).filter(|&bytes| bytes > 0), |bytes| format!(
                "{:.1}",
                bytes as f64 / 1e6
            )),
        )?;
    }
    Ok(())
}

fn against(text: &mut String, results: &Results, subject: Subject, phases: &[&Phase]) -> Result<()> {
    if phases.iter().all(|phase| phase.peer.is_none()) {
        return Ok(());
    }
    *text += "\n| phase | tool | theirs | ours | times as fast | their peak MB | our peak over theirs |\n\
              |---|---|---|---|---|---|---|\n";
    for phase in phases {
        let Some(peer) = &phase.peer else { continue };
        let (theirs, ours) = match (peer.tokens_per_second, peer.seconds) {
            (Some(rate), _) => {
                let ours = or_nothing(phase.measured.tokens_per_second, |rate| format!("{rate:.0} tokens/s"));
                (format!("{rate:.0} tokens/s"), ours)
            }
            (None, Some(seconds)) => (time(seconds), time(phase.measured.loop_seconds)),
            (None, None) => (String::new(), String::new()),
        };
        let [faster, memory] = [phase.times_as_fast, phase.memory_ratio].map(|ratio| or_nothing(ratio, two_digits));
        let (name, tool, peak) = (&phase.phase, &peer.tool, peer.peak_bytes as f64 / 1e6);
        writeln!(text, "| `{name}` | {tool} | {theirs} | {ours} | {faster} | {peak:.0} | {memory} |")?;
    }
    for (full, name) in [(false, "query, rank 32"), (true, "query, full rank")] {
        if let Some((ours, theirs)) = results.query(subject, full) {
            let faster = two_digits(theirs / ours);
            writeln!(text, "| {name} | kronfluence | {} | {} | {faster} | | |", time(theirs), time(ours))?;
        }
    }
    Ok(())
}

/// The ways to scan, by FLOPs and by what the queries take.
fn paths(text: &mut String, subject: Subject, phases: &[&Phase]) -> Result<()> {
    let shapes = Shapes::new(&Place::new(subject).config()?, &subject.modules())?;
    let scans = |count: usize| phases.iter().find(move |phase| phase.phase == Work::Scan(count).name());
    let counts: Vec<_> = [1, 8, 64, 256].into_iter().filter_map(|count| Some((count, scans(count)?))).collect();
    if counts.is_empty() {
        return Ok(());
    }
    *text += "\n| queries | by factors: GFLOP a token, MB | by gradients, multiplied out each batch: GFLOP a token, MB | \
              by whole queries: GFLOP a token, MB |\n|---|---|---|---|\n";
    for (count, phase) in counts {
        let length = phase.measured.tokens as f64 / phase.measured.sequences.max(1) as f64;
        let batch = subject.batch_tokens(Work::Scan(count));
        let ways =
            [shapes.by_factors(count), shapes.multiplied_out(count, length, batch), shapes.by_gradients(count, length)];
        let [factors, multiplied, gradients] = ways.map(|flops| flops / 1e9);
        let (held, whole) = (shapes.factors(count) / 1e6, shapes.whole(count) / 1e6);
        writeln!(
            text,
            "| {count} | {factors:.3}, {held:.0} | {multiplied:.3}, {held:.0} | {gradients:.3}, {whole:.0} |"
        )?;
    }
    Ok(())
}

fn or_nothing<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map(show).unwrap_or_default()
}

/// `71 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// `2.31`.
pub(crate) fn two_digits(ratio: f64) -> String {
    format!("{ratio:.2}")
}

/// In the unit that suits it.
pub(crate) fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} µs", 1e6 * s),
        s if s < 1.0 => format!("{:.1} ms", 1e3 * s),
        s => format!("{s:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_outside_the_markers_stays() {
        let page = std::env::temp_dir().join(format!("wherefrom-bench-{}.md", std::process::id()));
        fs::write(&page, format!("before\n{BEGIN}old\n{END}after\n")).unwrap();
        put(&page, "new\n").unwrap();
        assert_eq!(fs::read_to_string(&page).unwrap(), format!("before\n{BEGIN}\nnew\n\n{END}after\n"));
        fs::remove_file(&page).unwrap();
    }
}
