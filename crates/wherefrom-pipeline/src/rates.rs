//! How long a step takes: its work over a rate, which an earlier run of such a step had, or which was measured on this machine.
//!
//! The work of a step is its operations, or the bytes that it writes where it has none. Of every step that was made from
//! nothing the manifest says work and seconds; what was measured is kept in `wherefrom/rates.json` of the user's cache, for every
//! store, or in the store where there is no such place.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wherefrom_artifact::{Manifest, Store, write_atomically};
use wherefrom_model::Config;
use wherefrom_stage::{Cost, Device, Planned};

use crate::stage::Stage;

/// An earlier run of fewer seconds says little: it read and wrote as long as it computed.
const SECONDS: f64 = 1.0;
/// Bytes a second of steps that compute nothing.
const BYTES: f64 = 4e6;
/// Stages that compute much as another does, and are not measured.
const ALIKE: [(&str, &str); 4] =
    [("activations", "losses"), ("train", "covariance"), ("generate", "losses"), ("score-index", "score")];

/// What there is to do, and where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Work {
    /// The rate that says how long it takes: stage, what makes it another computation, widths of the model.
    pub(crate) rate: String,
    /// Operations, or bytes.
    pub(crate) amount: f64,
    /// As [`machine`] has it.
    pub(crate) machine: String,
    /// Bytes that go to the disk, or come from it because memory does not hold them, beside what is computed.
    #[serde(skip)]
    pub(crate) moved: f64,
}

/// Seconds that a step will take, and how they are known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Time {
    /// Seconds.
    pub seconds: f64,
    /// How they are known.
    pub basis: Basis,
}

/// How a time is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// By an earlier run of such a step on this machine.
    EarlierRun,
    /// By a measurement of this machine.
    Measured,
    /// By neither.
    Assumed,
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::EarlierRun => "earlier run",
            Self::Measured => "measured",
            Self::Assumed => "assumed",
        })
    }
}

/// What computes: the processor and its threads, or the GPU.
pub(crate) fn machine(device: &Device) -> String {
    match device {
        Device::Cpu { .. } => {
            wherefrom_model::processor().map_or_else(|| device.to_string(), |name| format!("{name}, {device}"))
        }
        Device::Gpu { name, .. } => name.clone(),
    }
}

/// Width of the residual stream and of the MLP, as rates have them.
pub(crate) fn widths(config: &Config) -> String {
    format!("{}x{}", config.hidden_size, config.intermediate_size)
}

impl Work {
    /// Of a step; none where nobody knows what it does.
    pub(crate) fn new(stage: Stage, planned: &Planned, cost: &Cost, machine: &str) -> Option<Self> {
        let machine = machine.into();
        if cost.flops == 0.0 {
            return (cost.disk > 0.0).then(|| Self {
                rate: stage.name().into(),
                amount: cost.disk,
                machine,
                moved: 0.0,
            });
        }
        let is = |name: &str, value: &Value| planned.knob(name).as_ref() == Some(value);
        let mut words = vec![stage.name().to_string()];
        words.extend(is("rank", &"full".into()).then(|| FULL.into()));
        words.extend((planned.config["detail"] == true).then(|| DETAIL.into()));
        let precision = planned.knob("precision").and_then(|name| name.as_str().map(String::from));
        words.extend(precision.filter(|name| name != "f32"));
        words.push(widths(&Config::from_json(&planned.nearest(|step| step.model.clone())?).ok()?));
        let moved = cost.disk + if cost.read > CACHED * cost.memory { cost.read } else { 0.0 };
        Some(Self { rate: words.join(" "), amount: cost.flops, machine, moved })
    }

    /// Whether it is computed: operations, not bytes.
    pub(crate) fn computes(&self) -> bool {
        self.rate.contains(' ')
    }
}

/// The rate at which the disk of the store is written.
pub(crate) const DISK: &str = "disk";
/// What a step reads and has not this many times the memory for comes from the disk.
const CACHED: f64 = 4.0;
/// Queries are whole matrices.
const FULL: &str = "full";
/// Pairs are taken apart.
const DETAIL: &str = "detail";

/// Work a second, by the name of the rate.
pub(crate) type Rates = BTreeMap<String, f64>;

/// What is known of this machine.
pub(crate) struct Known {
    store: Store,
    machine: String,
    earlier: Rates,
    measured: Rates,
}

impl Known {
    /// By the artifacts of the store, and what was measured before.
    pub(crate) fn new(store: &Store, machine: String) -> Self {
        let earlier = earlier(store, &machine, SECONDS);
        let mut known = Self { store: store.clone(), machine, earlier, measured: Rates::new() };
        let mut kept = known.kept();
        let mut of = |machine: &str| kept.remove(machine);
        let measured = of(&known.machine).or_else(|| busy().and_then(|_| of(&while_busy(&known.machine))));
        known.measured = measured.unwrap_or_default();
        known
    }

    /// Seconds for that much work.
    pub(crate) fn time(&self, work: &Work) -> Option<Time> {
        if !work.computes() {
            let (rate, basis) =
                self.earlier.get(&work.rate).map_or((BYTES, Basis::Assumed), |&rate| (rate, Basis::EarlierRun));
            return Some(Time { seconds: work.amount / rate, basis });
        }
        let of = |name: &String| {
            let earlier = self.earlier.get(name).map(|&rate| (rate, Basis::EarlierRun));
            earlier.or_else(|| Some((*self.measured.get(name)?, Basis::Measured)))
        };
        let (rate, basis) = names(&work.rate).iter().find_map(of)?;
        // What was measured was too small for the disk to matter; the seconds of an earlier run have it in them.
        let disk = self.measured.get(DISK).filter(|_| basis == Basis::Measured);
        Some(Time { seconds: work.amount / rate + disk.map_or(0.0, |rate| work.moved / rate), basis })
    }

    /// Takes what was measured, and keeps it; what a busy machine gave, for as long as it is busy.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn keep(&mut self, measured: Rates, busy: bool) -> anyhow::Result<()> {
        self.measured.extend(measured);
        let mut all = self.kept();
        let machine = if busy { while_busy(&self.machine) } else { self.machine.clone() };
        all.insert(machine, self.measured.clone());
        write_atomically(&self.file(), serde_json::to_string_pretty(&all)?.as_bytes())
    }

    fn kept(&self) -> BTreeMap<String, Rates> {
        let text = fs::read(self.file()).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn file(&self) -> PathBuf {
        let own = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache =
            own("XDG_CACHE_HOME").or_else(|| Some(own("HOME")?.join(".cache"))).filter(|cache| cache.is_absolute());
        let mine = cache.map(|cache| cache.join("wherefrom"));
        // A home that cannot be written to is none.
        let mine = mine.filter(|folder| fs::create_dir_all(folder).is_ok());
        mine.unwrap_or_else(|| self.store.root().into()).join("rates.json")
    }
}

/// The machine, where rates are kept of it that other programs have slowed down.
fn while_busy(machine: &str) -> String {
    format!("{machine}, busy")
}

/// Programs that wanted a processor in the last minute, of which there are so many, where those were four times as many or more.
pub(crate) fn busy() -> Option<(f64, usize)> {
    let processors = std::thread::available_parallelism().ok()?.get();
    let load = fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse::<f64>().ok()?;
    (load >= 4.0 * processors as f64).then_some((load, processors))
}

/// Names of rates that will do, the best first: without what makes the step another computation, then of a stage alike, or else
/// of one that runs the model and multiplies.
fn names(rate: &str) -> Vec<String> {
    let mut words: Vec<&str> = rate.split(' ').collect();
    let mut names = vec![rate.to_string()];
    for word in [DETAIL, FULL] {
        words.retain(|own| *own != word);
        names.push(words.join(" "));
    }
    let alike = ALIKE.iter().find(|(stage, _)| *stage == words[0]).map(|(_, alike)| *alike);
    for stage in alike.into_iter().chain(["lambda"]) {
        words[0] = stage;
        names.push(words.join(" "));
    }
    names
}

/// Rates of the artifacts that were made on that machine in so many seconds or more, the fastest of each: what else ran on the
/// machine has made a step slower, and never faster.
pub(crate) fn earlier(store: &Store, machine: &str, seconds: f64) -> Rates {
    let mut found = Rates::new();
    for entry in store.list().unwrap_or_default() {
        let Ok(Manifest { provenance, .. }) = entry.manifest else { continue };
        let work = provenance.get("work").and_then(|work| serde_json::from_value::<Work>(work.clone()).ok());
        let took = provenance.get("wall_seconds").and_then(Value::as_f64);
        if let (Some(work), Some(took)) = (work, took)
            && work.machine == machine
            && work.amount > 0.0
            && took >= seconds
        {
            let rate = work.amount / took;
            let fastest = found.entry(work.rate).or_insert(rate);
            *fastest = fastest.max(rate);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rate_has_one_that_was_measured() {
        let measured =
            ["covariance", "lambda", "losses", "score", "precondition", "precondition full", "score full detail"];
        let found = |rate: &str| {
            let names = names(&format!("{rate} 576x1536"));
            names.into_iter().find(|name| measured.iter().any(|own| *name == format!("{own} 576x1536"))).unwrap()
        };
        for (rate, expected) in [
            ("score full detail", "score full detail"),
            ("score full", "score"),
            ("score detail", "score"),
            ("precondition full", "precondition full"),
            ("generate", "losses"),
            ("train", "covariance"),
            ("self-influence", "lambda"),
            ("a-stage-to-come", "lambda"),
        ] {
            assert_eq!(found(rate), format!("{expected} 576x1536"), "{rate}");
        }
    }
}
