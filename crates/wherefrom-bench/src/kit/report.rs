//! What was found on a card, as JSON and as Markdown.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use wherefrom_model::Precision;

use super::look::{Parts, Seen, memory};
use crate::card::{Card, Product};
use crate::flops::Shapes;
use crate::golden::Golden;
use crate::machine::Machine;
use crate::measure::Measured;
use crate::place::Place;
use crate::table::{percent, time, two_digits};
use crate::work::Work;

/// All of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) machine: Option<Machine>,
    /// `gpu:N` of `adapters`, or `cpu`; none where there is nothing to measure.
    pub(super) device: Option<String>,
    /// Whether sizes are those for a software adapter.
    pub(super) small: bool,
    pub(super) plan: String,
    pub(super) adapters: Vec<Seen>,
    /// What keeps a card from being reached.
    pub(super) missing: Vec<String>,
    /// The ICD file of the kit's own that a card was reached by.
    pub(super) icd_file: Option<PathBuf>,
    pub(super) parts: Parts,
    /// Until all that was known.
    pub(super) looked_seconds: f64,
    pub(super) nvidia_smi: Option<Vec<BTreeMap<String, String>>>,
    pub(super) torch: Option<Torch>,
    pub(super) golden: Vec<Golden>,
    pub(super) ceilings: Option<Card>,
    pub(super) phases: Vec<Phase>,
    /// What ended in an error, was stopped, or is not done by the adapter.
    pub(super) failed: BTreeMap<String, String>,
    /// For which no time was left.
    pub(super) left_out: Vec<String>,
    pub(super) seconds: f64,
}

/// One phase on one shape.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Phase {
    pub(super) shape: String,
    pub(super) phase: String,
    #[serde(flatten)]
    pub(super) measured: Measured,
    pub(super) gflop_per_token: Option<f64>,
    /// Operations a second over those of the best product in that precision.
    pub(super) share_of_product: Option<f64>,
}

/// torch: what it is, and what it measured by name.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Torch {
    pub(super) about: Value,
    pub(super) measured: BTreeMap<String, Value>,
}

impl Report {
    pub(super) fn failed(&mut self, what: &str, why: &str) {
        self.failed.insert(what.into(), why.into());
    }

    /// Bytes of the card: what is given, or what nvidia-smi says.
    pub(super) fn memory(&self, given: Option<u64>) -> Option<u64> {
        let card = || memory(self.nvidia_smi.as_ref()?.first()?);
        given.or_else(|| if self.small { None } else { card() })
    }

    pub(super) fn add(&mut self, place: &Place, work: Work, measured: Measured) -> Result<()> {
        let length = measured.tokens as f64 / measured.sequences.max(1) as f64;
        let shapes = Shapes::new(&place.config()?, &place.subject.modules())?;
        let flops = shapes.of(place.subject, work, length);
        let half = work.precision().1 == Precision::F16;
        let product = self.ceilings.as_ref().and_then(|card| card.flops(half));
        let rate = measured.tokens_per_second.zip(flops).map(|(rate, flops)| rate * flops);
        self.phases.push(Phase {
            shape: place.subject.name().into(),
            phase: work.name(),
            gflop_per_token: flops.map(|flops| flops / 1e9),
            share_of_product: rate.zip(product).map(|(rate, product)| rate / product),
            measured,
        });
        Ok(())
    }

    /// Why the exit code is not 0: no adapter, or numbers that are wrong.
    pub(super) fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        if self.device.is_none() {
            failures.push("no adapter was found; what is missing stands in report.md".into());
        }
        let wrong = self.golden.iter().filter(|golden| !golden.met());
        failures.extend(wrong.map(|golden| {
            format!(
                "golden study in {}: off by {:.1e} and {:.1e} of the largest score, where {:.1e} is allowed",
                golden.precision, golden.full, golden.rank_32, golden.bound
            )
        }));
        failures.extend(self.failed.iter().map(|(what, why)| format!("{what}: {why}")));
        failures
    }
}

/// Adapters, and what is missing, for the terminal and the page alike.
pub(super) fn seen(report: &Report) -> String {
    let mut text = String::new();
    for (index, seen) in report.adapters.iter().enumerate() {
        let kind = if seen.hardware { "hardware" } else { "software" };
        let mut words = vec![format!("{}, {}, {kind}", seen.name, seen.interface)];
        words.extend(Some(&seen.driver).filter(|driver| !driver.is_empty()).map(|driver| format!("driver {driver}")));
        words.extend(seen.memory_bytes.map(|bytes| format!("{:.1} GB", bytes as f64 / 1e9)));
        words.extend(seen.largest_tensor_bytes.map(|bytes| format!("tensors to {:.2} GB", bytes as f64 / 1e9)));
        words.extend(seen.bus.as_ref().map(|bus| format!("at {bus}")));
        words.push(match &seen.refused {
            Some(why) => format!("does not start: {why}"),
            None => format!("computes in {}", seen.precisions.join(", ")),
        });
        text += &format!("- `gpu:{index}` {}\n", words.join(", "));
    }
    if report.adapters.is_empty() {
        text += "- no adapter was found\n";
    }
    for missing in &report.missing {
        text += &format!("- missing: {missing}\n");
    }
    if let Some(file) = &report.icd_file {
        text += &format!("- the driver has no ICD file that works; reached by VK_DRIVER_FILES={}\n", file.display());
    }
    text
}

/// The page.
pub(super) fn markdown(report: &Report) -> Result<String> {
    let mut text = String::from("# A GPU, measured by wherefrom\n\n");
    if let Some(machine) = &report.machine {
        writeln!(
            text,
            "{}. {}, {} cores, {:.0} GiB. wherefrom {} at commit {}. {:.0} s in all.\n",
            machine.date,
            machine.processor,
            machine.cores,
            machine.memory_bytes as f64 / 1_073_741_824.0,
            machine.version,
            machine.commit,
            report.seconds
        )?;
    }
    write!(text, "## Adapters\n\n{}", seen(report))?;
    for (index, seen) in report.adapters.iter().enumerate() {
        writeln!(text, "- features of `gpu:{index}`: {}", seen.features.join(", "))?;
    }
    for card in report.nvidia_smi.iter().flatten() {
        let fields: Vec<_> = card.iter().map(|(field, value)| format!("{field} {value}")).collect();
        writeln!(text, "- nvidia-smi: {}", fields.join(", "))?;
    }
    match &report.torch {
        Some(torch) => writeln!(text, "- torch: `{}`", torch.about)?,
        None => text += "- torch: not there\n",
    }
    if let Some(device) = &report.device {
        let small = if report.small {
            ", with the small sizes of a software adapter: no figure here says anything of a card"
        } else {
            ""
        };
        writeln!(text, "\nMeasured on `{device}`{small}: {}.", report.plan)?;
    }
    golden(&mut text, report)?;
    ceilings(&mut text, report)?;
    phases(&mut text, report)?;
    if !report.failed.is_empty() || !report.left_out.is_empty() {
        text += "\n## Not measured\n\n";
        for (what, why) in &report.failed {
            writeln!(text, "- `{what}`: {}", why.replace('\n', " "))?;
        }
        if !report.left_out.is_empty() {
            writeln!(text, "- no time was left for {}", report.left_out.join(", "))?;
        }
    }
    Ok(text)
}

fn golden(text: &mut String, report: &Report) -> Result<()> {
    if report.golden.is_empty() {
        return Ok(());
    }
    *text += "\n## The golden study\n\nErrors are of the largest score, against float64.\n\n\
              | precision | whole queries | rank 32 | allowed | least correlation | | s |\n|---|---|---|---|---|---|---|\n";
    for golden in &report.golden {
        let met = if golden.met() { "agrees" } else { "**is wrong**" };
        writeln!(
            text,
            "| {} | {:.1e} | {:.1e} | {:.0e} | {:.6} | {met} | {:.1} |",
            golden.precision, golden.full, golden.rank_32, golden.bound, golden.correlation, golden.seconds
        )?;
    }
    Ok(())
}

fn ceilings(text: &mut String, report: &Report) -> Result<()> {
    let Some(card) = &report.ceilings else { return Ok(()) };
    let torch = report.torch.as_ref().and_then(|torch| torch.measured.get("ceilings"));
    let theirs = |pointer: &str, unit: f64| {
        let value = torch.and_then(|said| said.pointer(pointer)?.as_f64());
        value.map(|value| format!("{:.1}", value / unit)).unwrap_or_default()
    };
    *text += "\n## Ceilings\n\n| | wherefrom | torch |\n|---|---|---|\n";
    let mut product = |name: &str, product: Product, theirs: String| {
        let (n, rate) = (product.n, product.flops / 1e9);
        writeln!(
            text,
            "| {name} product of {n} rows, GFLOP/s (the first call took {}) | {rate:.1} | {theirs} |",
            time(product.first_seconds)
        )
    };
    product("float32", card.f32, theirs("/f32/flops", 1e9))?;
    if let Some(f16) = card.f16 {
        product("float16", f16, theirs("/f16/flops", 1e9))?;
    }
    writeln!(text, "| x + 1, GB/s read and written | {:.1} | {} |", card.copy / 1e9, theirs("/copy", 1e9))?;
    writeln!(text, "| to the device, GB/s | {:.2} | |", card.upload / 1e9)?;
    writeln!(text, "| to the host, GB/s | {:.2} | |", card.download / 1e9)?;
    writeln!(text, "| one operation of many started together | {} | |", time(card.launch_seconds))?;
    writeln!(text, "| one operation until the host has its result | {} | |", time(card.round_trip_seconds))?;
    Ok(())
}

fn phases(text: &mut String, report: &Report) -> Result<()> {
    let mut shape = "";
    for phase in &report.phases {
        if phase.shape != shape {
            shape = &phase.shape;
            write!(
                text,
                "\n## {shape}\n\n| phase | tokens/s | GFLOP a token | of the product's rate | each | before + in + after \
                 the loop, s | peak MB on the device | on the host | torch, tokens/s | times as fast |\n\
                 |---|---|---|---|---|---|---|---|---|---|\n"
            )?;
        }
        let measured = &phase.measured;
        let theirs = torch(report, phase);
        let faster = measured.tokens_per_second.zip(theirs).map(|(ours, theirs)| ours / theirs);
        let shown = |value: Option<String>| value.unwrap_or_default();
        writeln!(
            text,
            "| `{}` | {} | {} | {} | {} | {:.2} + {:.2} + {:.2} | {} | {:.0} | {} | {} |",
            phase.phase,
            shown(measured.tokens_per_second.map(|rate| format!("{rate:.0}"))),
            shown(phase.gflop_per_token.map(|gflop| format!("{gflop:.3}"))),
            shown(phase.share_of_product.map(percent)),
            shown(measured.each_seconds.map(|seconds| format!("{} a {}", time(seconds), measured.per))),
            measured.before_seconds,
            measured.loop_seconds,
            measured.after_seconds,
            shown(measured.device_bytes.map(|bytes| format!("{:.0}", bytes as f64 / 1e6))),
            measured.peak_bytes as f64 / 1e6,
            shown(theirs.map(|rate| format!("{rate:.0}"))),
            shown(faster.map(two_digits)),
        )?;
    }
    Ok(())
}

/// torch's rate of the same pass in the same precision.
fn torch(report: &Report, phase: &Phase) -> Option<f64> {
    let (name, precision) = phase.phase.strip_suffix("-f16").map_or((&phase.phase[..], "f32"), |name| (name, "f16"));
    report.torch.as_ref()?.measured.get(&format!("{}/{precision}", phase.shape))?.get(name)?.as_f64()
}
