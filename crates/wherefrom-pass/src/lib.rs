//! A model over the sequences of a tokens artifact: spans, batches, parts, sums, resume, progress and memory.
//!
//! reads   tokens, model
//! writes  the parts of a stage, and checkpoints of sums
//!
//! What such a stage does is a list of units, which depends on its inputs alone. A unit has a name: it is a part of the draft
//! ([`Units`]), or what some modules have of some spans in a sum ([`Reduction`]). Units that make parts may be done in any order,
//! by whoever: a part has the same bytes. A [`wherefrom_artifact::Share`] K of N has the units whose number is K modulo N; of a
//! sum it has a group of modules over a group of spans, and leaves each module's sum with its shape and digest. Shares are done in
//! any order, by whoever, and joined in a fixed tree.

mod corpus;
mod memory;
mod shares;
mod sums;
mod units;

pub use corpus::{Corpus, mean, open, sequence};
pub use memory::{PlannedPasses, limit, number_bytes, place, place_beside_sums, planned_passes, sizes_of};
pub use sums::{Counts, Pass, Reduction, Sums};
pub use units::Units;
