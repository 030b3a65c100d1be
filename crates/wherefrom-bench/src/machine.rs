//! What the machine is.

use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::place::root;

/// Where, when and what was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// As the processor calls itself.
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) system: String,
    /// Year, month, day.
    pub(crate) date: String,
    pub(crate) version: String,
    /// Of the repository; with `+` where files differ from it.
    pub(crate) commit: String,
}

impl Machine {
    /// This one, now.
    pub(crate) fn this() -> Self {
        let says = |program: &str, words: &[&str]| {
            let output = Command::new(program).args(words).current_dir(root()).output().ok();
            let said = output.filter(|output| output.status.success())?;
            Some(String::from_utf8_lossy(&said.stdout).trim().to_string())
        };
        let changed =
            says("git", &["status", "--porcelain", "--untracked-files=no"]).is_some_and(|said| !said.is_empty());
        let commit = says("git", &["rev-parse", "--short=10", "HEAD"]);
        // Where the program was carried elsewhere, whoever starts it says what it was built from.
        let commit = commit.or_else(|| std::env::var("WHEREFROM_COMMIT").ok()).unwrap_or_else(|| "unknown".into());
        Self {
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: wherefrom_linalg::memory::total_bytes().unwrap_or(0),
            system: std::env::consts::OS.into(),
            date: says("date", &["+%F"]).unwrap_or_else(|| "undated".into()),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: commit + if changed { "+" } else { "" },
        }
    }
}

/// The value of a line `name: value`.
fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_string())
}
