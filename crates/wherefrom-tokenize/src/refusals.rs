//! Bad rows of a corpus, gathered so that one error names many, and one fault of many rows once.

use anyhow::Result;
use wherefrom_artifact::bad_input;

/// Faults named in one error.
const NAMED: usize = 10;

/// The first faults, and the number of all bad rows.
#[derive(Default)]
pub(crate) struct Refusals {
    named: Vec<Fault>,
    /// Bad rows whose fault is not named.
    unnamed: usize,
}

struct Fault {
    what: String,
    /// The first row that has it.
    first: String,
    rows: usize,
}

impl Refusals {
    /// One more, at `place`: `what` says what is wrong and what to do.
    pub(crate) fn add(&mut self, place: &str, what: &str) {
        if let Some(known) = self.named.iter_mut().find(|fault| fault.what == what) {
            known.rows += 1;
        } else if self.named.len() < NAMED {
            self.named.push(Fault { what: what.into(), first: place.into(), rows: 1 });
        } else {
            self.unnamed += 1;
        }
    }

    /// The error that names them, if there are any.
    pub(crate) fn check(self) -> Result<()> {
        let line = |Fault { what, first, rows }: &Fault| match rows {
            1 => format!("{first}: {what}"),
            2 => format!("{first}: {what} (and another row like it)"),
            _ => format!("{first}: {what} (and {} more rows like it)", rows - 1),
        };
        let mut lines: Vec<String> = self.named.iter().map(line).collect();
        if lines.is_empty() {
            return Ok(());
        }
        if self.unnamed > 0 {
            lines.push(format!("and {} more", self.unnamed));
        }
        Err(bad_input(lines.join("\n")))
    }
}
