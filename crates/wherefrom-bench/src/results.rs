//! All that was measured, and what follows from it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::ceilings::Ceilings;
use crate::flops::Shapes;
use crate::machine::Machine;
use crate::measure::Measured;
use crate::peers::Peer;
use crate::place::Place;
use crate::work::{Subject, Work};

/// One phase of one subject.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Phase {
    pub(crate) subject: String,
    pub(crate) phase: String,
    #[serde(flatten)]
    pub(crate) measured: Measured,
    /// From shapes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) gflop_per_token: Option<f64>,
    /// Operations a second over those of the best product, with as many threads.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) share_of_product: Option<f64>,
    /// Tokens a second over those of forward and backward.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) share_of_forward_backward: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) peer: Option<Peer>,
    /// Ours over theirs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) times_as_fast: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) memory_ratio: Option<f64>,
}

/// A whole run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) machine: Option<Machine>,
    pub(crate) one_thread: Ceilings,
    pub(crate) all_threads: Ceilings,
    /// By size.
    pub(crate) eigen_seconds: BTreeMap<usize, f64>,
    pub(crate) phases: Vec<Phase>,
    /// Why other tools were left out.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) without_peers: Option<String>,
}

impl Results {
    pub(crate) fn add(&mut self, place: &Place, work: Work, measured: Measured, peer: Option<Peer>) -> Result<()> {
        let length = measured.tokens as f64 / measured.sequences.max(1) as f64;
        let flops = Shapes::new(&place.config()?, &place.subject.modules())?.of(place.subject, work, length);
        let ours = [measured.tokens_per_second, (work == Work::Eigenbasis).then(|| 1.0 / measured.loop_seconds)];
        let theirs = peer.as_ref().map(|peer| {
            [peer.tokens_per_second, peer.seconds.filter(|_| work == Work::Eigenbasis).map(|seconds| 1.0 / seconds)]
        });
        let first = |rates: [Option<f64>; 2]| rates.into_iter().flatten().next();
        self.phases.push(Phase {
            subject: place.subject.name().into(),
            phase: work.name(),
            gflop_per_token: flops.map(|flops| flops / 1e9),
            share_of_product: None,
            share_of_forward_backward: None,
            times_as_fast: first(ours).zip(theirs.and_then(first)).map(|(ours, theirs)| ours / theirs),
            memory_ratio: peer.as_ref().map(|peer| measured.peak_bytes as f64 / peer.peak_bytes as f64),
            measured,
            peer,
        });
        self.derive();
        Ok(())
    }

    /// The phase of a subject, if it was measured.
    pub(crate) fn phase(&self, subject: Subject, work: Work) -> Option<&Phase> {
        let name = work.name();
        self.phases.iter().find(|phase| phase.subject == subject.name() && phase.phase == name)
    }

    /// Seconds of a query's gradient and preconditioning, ours and theirs.
    pub(crate) fn query(&self, subject: Subject, full: bool) -> Option<(f64, f64)> {
        let [precondition, scan] = match full {
            false => [Work::Precondition, Work::Scan(Subject::QUERIES)],
            true => [Work::PreconditionFull, Work::ScanFull],
        };
        let each = |work| self.phase(subject, work)?.measured.each_seconds;
        let theirs = self.phase(subject, scan)?.peer.as_ref()?.query_seconds?;
        Some((each(Work::Gradients)? + each(precondition)?, theirs))
    }

    /// Shares, by the ceilings as they are known now.
    pub(crate) fn derive(&mut self) {
        let floors: BTreeMap<_, _> = Subject::ALL
            .into_iter()
            .filter_map(|subject| Some((subject.name(), self.phase(subject, Work::Taps)?.measured.tokens_per_second?)))
            .collect();
        for phase in &mut self.phases {
            let alone = phase.phase == Work::TapsAlone.name();
            let ceilings = if alone { self.one_thread } else { self.all_threads };
            let product = if phase.phase.ends_with("-bf16") { ceilings.bf16_flops } else { ceilings.flops };
            let rate = phase.measured.tokens_per_second;
            phase.share_of_product = rate.zip(phase.gflop_per_token).map(|(rate, gflop)| rate * gflop * 1e9 / product);
            let floor = floors.get(&phase.subject[..]);
            phase.share_of_forward_backward = rate.zip(floor).map(|(rate, floor)| rate / floor);
        }
    }

    /// The machine's ceilings in a line.
    pub(crate) fn ceilings(&self) -> String {
        let (one, all) = (self.one_thread, self.all_threads);
        format!(
            "product {:.0} GFLOP/s, one thread {:.0}; of bfloat16 {:.0}, one thread {:.0}; copy {:.1} GB/s, one thread {:.1}",
            all.flops / 1e9,
            one.flops / 1e9,
            all.bf16_flops / 1e9,
            one.bf16_flops / 1e9,
            all.copy / 1e9,
            one.copy / 1e9
        )
    }

    /// The latest phase in a line.
    pub(crate) fn last_line(&self) -> String {
        let Some(phase) = self.phases.last() else { return String::new() };
        let measured = &phase.measured;
        let mut line = format!("{:36}", format!("{}/{}", phase.subject, phase.phase));
        if let Some(rate) = measured.tokens_per_second {
            line += &format!(" {rate:>8.1} tokens/s");
        }
        if let Some(share) = phase.share_of_product {
            line += &format!(", {:.0} % of product", 100.0 * share);
        }
        if let Some(seconds) = measured.each_seconds {
            line += &format!(" {seconds:>9.5} s a {}", measured.per);
        }
        let [before, during, after] = [measured.before_seconds, measured.loop_seconds, measured.after_seconds];
        line += &format!("; {before:.2} + {during:.2} + {after:.2} s, {:.0} MB", measured.peak_bytes as f64 / 1e6);
        if let Some(peer) = &phase.peer {
            let [faster, memory] = [phase.times_as_fast, phase.memory_ratio].map(|ratio| ratio.unwrap_or(f64::NAN));
            line += &format!("; {}: {faster:.2} times as fast, {memory:.2} of the memory", peer.tool);
        }
        line
    }

    /// Writes `DATE.json`, or of some phases alone `DATE-WORDS.json`.
    pub(crate) fn save(&self, folder: &Path, words: &[String]) -> Result<PathBuf> {
        let date = self.machine.as_ref().map_or("undated", |machine| &machine.date);
        let name: Vec<_> = std::iter::once(date).chain(words.iter().map(|word| &word[..])).collect();
        fs::create_dir_all(folder)?;
        let path = folder.join(format!("{}.json", name.join("-").replace('/', "-")));
        fs::write(&path, serde_json::to_string_pretty(self)?)?;
        Ok(path)
    }
}
