//! Units of work that make parts.

use anyhow::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;
use wherefrom_artifact::Draft;
use wherefrom_stage::Exec;

/// What a share still has to do of a stage that writes a part for each unit: unit i makes part i.
#[derive(Debug)]
pub struct Units<U> {
    left: Vec<(usize, U)>,
    /// Work of the share, and what of it was done by an earlier run.
    total: u64,
    done: u64,
}

impl<U: Serialize + DeserializeOwned> Units<U> {
    /// The units as the first run of the draft planned them; `work` is what one counts for in the progress.
    ///
    /// # Errors
    /// As [`Draft::plan`].
    pub fn plan(draft: &Draft, make: impl FnOnce() -> Result<Vec<U>>, work: impl Fn(&U) -> u64) -> Result<Self> {
        let (mut units, share) = (Self { left: Vec::new(), total: 0, done: 0 }, draft.share());
        for (part, unit) in draft.plan(make)?.into_iter().enumerate().filter(|(part, _)| share.owns(*part)) {
            units.total += work(&unit);
            match draft.has(part) {
                true => units.done += work(&unit),
                false => units.left.push((part, unit)),
            }
        }
        Ok(units)
    }

    /// Whether nothing is left to be done.
    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Makes the parts one after another; `make` tells the reporter of the examples that it is through with.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn each(self, task: &str, exec: &Exec, mut make: impl FnMut(usize, U) -> Result<()>) -> Result<()> {
        exec.reporter.begin(task, "examples", self.total, self.done);
        self.left.into_iter().try_for_each(|(part, unit)| make(part, unit))?;
        exec.reporter.end();
        Ok(())
    }
}
