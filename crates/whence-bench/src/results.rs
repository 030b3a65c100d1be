//! All that was measured, as JSON and for people.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::ceilings::Ceilings;
use crate::machine::Machine;
use crate::measure::Measured;

/// One phase of one subject.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Phase {
    pub(crate) subject: String,
    pub(crate) phase: String,
    #[serde(flatten)]
    pub(crate) measured: Measured,
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
}

impl Results {
    /// The machine's ceilings in a line.
    pub(crate) fn ceilings(&self) -> String {
        let (one, all) = (self.one_thread, self.all_threads);
        format!(
            "product {:.0} GFLOP/s, one thread {:.0}; copy {:.1} GB/s, one thread {:.1}",
            all.flops / 1e9,
            one.flops / 1e9,
            all.copy / 1e9,
            one.copy / 1e9
        )
    }

    /// The latest phase in a line.
    pub(crate) fn last_line(&self) -> String {
        let Some(Phase { subject, phase, measured }) = self.phases.last() else { return String::new() };
        let mut line = format!("{:36}", format!("{subject}/{phase}"));
        if let Some(rate) = measured.tokens_per_second {
            line += &format!(" {rate:>8.1} tokens/s");
        }
        if let Some(seconds) = measured.each_seconds {
            line += &format!(" {seconds:>9.5} s a {}", measured.per);
        }
        let [before, during, after] = [measured.before_seconds, measured.loop_seconds, measured.after_seconds];
        line += &format!(" {before:>6.2} + {during:.2} + {after:.2} s {:>6.0} MB", measured.peak_bytes as f64 / 1e6);
        line
    }

    /// Writes `DATE.json`.
    pub(crate) fn save(&self, folder: &Path, _all: bool) -> Result<()> {
        let date = self.machine.as_ref().map_or("undated", |machine| &machine.date);
        fs::create_dir_all(folder)?;
        let path = folder.join(format!("{date}.json"));
        fs::write(&path, serde_json::to_string_pretty(self)?)?;
        println!("{}", path.display());
        Ok(())
    }
}
