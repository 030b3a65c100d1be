//! Bad rows of a corpus, gathered so that one error names many.

use anyhow::Result;
use wherefrom_artifact::bad_input;

/// Rows named in one error.
const NAMED: usize = 10;

/// The first bad rows and the number of all of them.
#[derive(Default)]
pub(crate) struct Refusals {
    named: Vec<String>,
    count: usize,
}

impl Refusals {
    /// One more, at `place`: `what` says what is wrong and what to do.
    pub(crate) fn add(&mut self, place: &str, what: &str) {
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push(format!("{place}: {what}"));
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
