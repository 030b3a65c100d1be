//! What a stage is: a descriptor, and what a plan and a run make of it.
//!
//! The file of a stage holds one `pub static STAGE: Stage<Config>`, and the list of all stages is in `wherefrom-pipeline`,
//! which knows none by name. [`AnyStage`] and [`Configured`] are the same without the type of the configuration.
//!
//! Keep this crate free of tensors and Arrow: every stage depends on it.

mod cost;
mod erased;
mod exec;
mod given;
mod model_files;
mod schema;
mod stage;

pub use cost::{Cost, Machine, Planned, Size, Sums};
pub use erased::{AnyStage, Configured, Input};
pub use exec::{Device, Exec};
pub use given::Given;
pub use model_files::{ATTRIBUTE, ModelFiles};
pub use stage::{About, Checkpoint, File, MODULES_PER_PASS, Need, Role, Stage, Writes, at_least};
