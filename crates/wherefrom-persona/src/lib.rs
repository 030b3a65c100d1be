//! Persona vectors (Chen et al. 2025, arXiv 2507.21509): directions in the residual stream that stand for a trait of character,
//! found from the trait's description, and how far a text lies along them.

pub mod ask;
mod author;
pub mod description;
pub mod import;
pub mod judge;
pub mod project;
mod provider;
pub mod rollouts;
mod rows;
mod rubric;
mod streams;
pub mod vector;
mod written;

use anyhow::Result;
use wherefrom_artifact::{Persona, Trait};
use wherefrom_stage::Given;

pub use description::trait_files;

/// The trait that a stage is given.
fn opened(given: &Given) -> Result<Persona> {
    Persona::read(given.open::<Trait>("trait")?.folder())
}
