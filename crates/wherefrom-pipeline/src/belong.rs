//! Whether what a step is given belongs together: asked of every step as a plan is read, before anything is made, and again of
//! what is there when a step is made, however it is started.

use anyhow::Result;
use wherefrom_artifact::origin::{Origin, Wired, agreed, common, of_step};
use wherefrom_artifact::{MANIFEST, Manifest};

use crate::stage::{Given, Stage};

/// What the inputs of a step agree on.
///
/// # Errors
/// [`wherefrom_artifact::Error::Mismatch`] where they do not. Another program may take whatever it is given.
pub(crate) fn origin(stage: Stage, wired: &[Wired<'_>], model: Option<&str>) -> Result<Origin> {
    let has = |role: &str| wired.iter().any(|input| input.role == role);
    let standard = match stage {
        Stage::Lambda => !has("eigenbasis"),
        Stage::Precondition | Stage::SelfInfluence => has("lambda") && !has("eigenbasis"),
        _ => false,
    };
    let step = of_step(model, standard);
    if stage == Stage::External { Ok(common(wired, step)) } else { Ok(agreed(wired, step)?) }
}

/// The same of artifacts that are there.
pub(crate) fn of_given(stage: Stage, given: &Given, model: Option<&str>) -> Result<Origin> {
    let folders = given.inputs.iter().filter(|(_, path)| path.join(MANIFEST).exists());
    let wired = folders.map(|(role, path)| Ok(Wired::new(role, &Manifest::read(path)?)));
    origin(stage, &wired.collect::<Result<Vec<_>>>()?, model)
}
