//! Bad rows of a corpus, gathered so that one error names many.

use std::path::{Path, PathBuf};

use anyhow::Result;
use whence_artifact::bad_input;

/// Rows named in one error.
const NAMED: usize = 10;

/// The first bad rows and the number of all of them.
pub(crate) struct Refusals {
    path: PathBuf,
    named: Vec<String>,
    count: usize,
}

impl Refusals {
    /// None so far.
    pub(crate) fn of(path: &Path) -> Self {
        Self { path: path.into(), named: Vec::new(), count: 0 }
    }

    /// One more: `what` says what is wrong and what to do.
    pub(crate) fn add(&mut self, line: u64, what: &str) {
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push(format!("{}:{line}: {what}", self.path.display()));
        }
    }

    /// The error that names them, if there are any.
    pub(crate) fn check(self) -> Result<()> {
        let mut lines = self.named;
        if lines.is_empty() {
            return Ok(());
        }
        if self.count > NAMED {
            lines.push(format!("and {} more", self.count - NAMED));
        }
        Err(bad_input(lines.join("\n")))
    }
}
