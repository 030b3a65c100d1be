//! When a stage's loops begin, advance and end.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use wherefrom_artifact::Reporter;

/// One loop of a stage, between `begin` and `end`.
#[derive(Debug, Clone)]
pub(crate) struct Loop {
    /// `tokens`, `examples`, …
    pub(crate) unit: String,
    /// Units of all the work.
    pub(crate) total: u64,
    pub(crate) begin: Instant,
    /// Moment, and units done since the one before.
    pub(crate) advances: Vec<(Instant, u64)>,
    pub(crate) end: Instant,
}

impl Loop {
    pub(crate) fn seconds(&self) -> f64 {
        (self.end - self.begin).as_secs_f64()
    }

    /// Units and seconds of each advance.
    pub(crate) fn steps(&self) -> impl Iterator<Item = (u64, f64)> {
        let before = std::iter::once(self.begin).chain(self.advances.iter().map(|(moment, _)| *moment));
        self.advances.iter().zip(before).map(|((moment, units), before)| (*units, (*moment - before).as_secs_f64()))
    }
}

/// A reporter that notes moments.
#[derive(Debug, Default)]
pub(crate) struct Clock(Mutex<Vec<Loop>>);

impl Clock {
    fn loops(&self) -> MutexGuard<'_, Vec<Loop>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was noted since the last call.
    pub(crate) fn take(&self) -> Vec<Loop> {
        std::mem::take(&mut *self.loops())
    }
}

impl Reporter for Clock {
    fn begin(&self, _task: &str, unit: &str, total: u64, _done: u64) {
        let now = Instant::now();
        self.loops().push(Loop { unit: unit.into(), total, begin: now, advances: Vec::new(), end: now });
    }

    fn advance(&self, units: u64) {
        if let (Some(last), true) = (self.loops().last_mut(), units > 0) {
            last.advances.push((Instant::now(), units));
        }
    }

    fn end(&self) {
        if let Some(last) = self.loops().last_mut() {
            last.end = Instant::now();
        }
    }

    fn warn(&self, message: &str) {
        eprintln!("warning: {message}");
    }
}
