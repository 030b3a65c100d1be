//! What a pipeline has made to the remote, for others to fetch.

use std::fmt;

use anyhow::{Context as _, Result};
use wherefrom_artifact::{Reporter, State, bad_input};

use crate::plan::Plan;
use crate::step::Step;

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was sent.
    Sent,
    /// The remote had it.
    There,
    /// It is not made yet.
    NotMade,
}

impl fmt::Display for Pushed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sent => "sent",
            Self::There => "there",
            Self::NotMade => "not made",
        })
    }
}

impl Plan {
    /// Sends what is sealed of the steps that `to` needs (of all without it) to the remote; `each` hears of every step.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] without a remote, and for one that cannot be written or replaces what is there.
    pub fn push(
        &self,
        to: Option<&str>,
        reporter: &dyn Reporter,
        mut each: impl FnMut(&Step, Pushed) -> Result<()>,
    ) -> Result<()> {
        let wanted = self.wanted(to)?;
        if self.store.remote().is_none() {
            return Err(bad_input("no remote: give --remote ADDRESS, or set WHEREFROM_REMOTE"));
        }
        self.store.check_remote()?;
        for (place, &index) in wanted.iter().enumerate() {
            let step = &self.steps[index];
            reporter.step(&step.name, place + 1, wanted.len());
            let pushed = match (step.state, step.key()) {
                (State::Cached, Some(key)) => {
                    let sent = self.store.send(step.kind, &key, reporter);
                    if sent.with_context(|| format!("step `{}`", step.name))? { Pushed::Sent } else { Pushed::There }
                }
                (State::Remote, _) => Pushed::There,
                _ => Pushed::NotMade,
            };
            each(step, pushed)?;
        }
        Ok(())
    }
}
