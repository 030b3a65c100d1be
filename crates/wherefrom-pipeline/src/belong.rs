//! Whether what a step is given belongs together: asked of every step as a plan is read, before anything is made, and again of
//! what is there when a step is made, however it is started.

use anyhow::Result;
use wherefrom_artifact::origin::{Origin, Wired, agreed, common, of_step};
use wherefrom_artifact::{Kind, MANIFEST, Manifest};
use wherefrom_stage::{Configured, Given};

/// What the inputs of a step agree on.
///
/// # Errors
/// [`wherefrom_artifact::Error::Mismatch`] where they do not. Another program may take whatever it is given.
pub(crate) fn origin(configured: &dyn Configured, wired: &[Wired<'_>], model: Option<&str>) -> Result<Origin> {
    let Some(inputs) = configured.inputs() else { return Ok(common(wired, of_step(model, false))) };
    let has = |kind: Kind| wired.iter().any(|input| input.kind == kind);
    // Lambda that could be of an eigenbasis, and is of none.
    let could = inputs.iter().any(|input| input.kinds.contains(&Kind::Eigenbasis));
    let lambda = configured.writes() == Kind::Lambda || could && has(Kind::Lambda);
    Ok(agreed(wired, of_step(model, lambda && !has(Kind::Eigenbasis)))?)
}

/// The same of artifacts that are there.
pub(crate) fn of_given(configured: &dyn Configured, given: &Given, model: Option<&str>) -> Result<Origin> {
    let folders = given.inputs.iter().filter(|(_, path)| path.join(MANIFEST).exists());
    let wired = folders.map(|(role, path)| Ok(Wired::new(role, &Manifest::read(path)?)));
    origin(configured, &wired.collect::<Result<Vec<_>>>()?, model)
}
