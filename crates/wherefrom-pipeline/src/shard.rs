//! A share of one step: what one of several processes does of it, on any machine that sees the store.

use anyhow::{Context as _, Result};
use wherefrom_artifact::{MANIFEST, Share, State, bad_input};
use wherefrom_stage::Exec;

use crate::files::Files;
use crate::plan::Plan;
use crate::run::{check_inputs, fill};
use crate::step::{Source, Step};

impl Plan {
    /// Does those units of `share` that are missing of a step, and leaves it to [`Plan::run`] to join and seal them. Whether there
    /// was nothing to be done: the step is sealed.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] for a step that is not split and for an input that is not sealed, and
    /// [`wherefrom_artifact::Error::Busy`] while a process makes the whole.
    pub fn run_share(&self, to: &str, share: Share, exec: &Exec) -> Result<bool> {
        let step = self.find(to)?;
        let named = || format!("step `{to}`");
        if !step.stage.splits() {
            return Err(bad_input(format!(
                "step `{to}`: the stage `{}` is not split; one process makes it: run it without --shard",
                step.stage.name()
            )));
        }
        self.ready(Some(to))?;
        if step.state == State::Cached {
            return Ok(true);
        }
        if step.state == State::Remote {
            return self.receive(step, exec).map(|()| true);
        }
        self.sealed_inputs(step)?;
        if share == Share::WHOLE {
            return self.run_unrecorded(Some(to), exec, |_| Ok(())).map(|_| false);
        }
        let recipe = step.recipe.clone().context("a step without a key cannot run")?;
        let configured = &**step.configured.as_ref().context("a step without a configuration cannot run")?;
        let (given, model) = (self.given(step)?, recipe.model.clone());
        let exec = &Exec { modules_per_pass: step.modules_per_pass, ..exec.clone() };
        let files = Files { store: &self.store, stage: step.stage, files: step.files() };
        let shared = self.store.share(step.kind, &recipe, share, |draft| {
            draft.origin(check_inputs(step.stage, configured, &given, model.as_deref())?);
            files.guard(draft, &*exec.reporter, |draft| fill(configured, &given, exec, draft))
        });
        shared.with_context(named)
    }

    /// A share makes nothing but its own units: whoever runs it has run what it reads before.
    fn sealed_inputs(&self, step: &Step) -> Result<()> {
        let wires = step.wires.iter().filter(|wire| wire.used).map(|wire| (&wire.role[..], &wire.source));
        let model = step.model.iter().map(|model| ("model", model));
        for (role, source) in wires.chain(model) {
            let Source::Step(before) = source else { continue };
            let before = &self.steps[*before];
            if !before.folder(&self.store).is_some_and(|folder| folder.join(MANIFEST).exists()) {
                return Err(bad_input(format!(
                    "step `{}`: its input `{role}` is not there: a share reads what is finished and makes nothing else; first run \
                     `wherefrom run {} --to {}`",
                    step.name,
                    self.path.display(),
                    before.name
                )));
            }
        }
        Ok(())
    }
}
