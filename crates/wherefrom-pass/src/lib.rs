//! A model over the sequences of a tokens artifact: spans, batches, parts, sums, resume, progress and memory.
//!
//! reads   tokens, model
//! writes  the parts of a stage, and checkpoints of sums
//!
//! What such a stage does is a list of units, which depends on its inputs alone. A unit has a name: it is a part of the draft
//! ([`Units`]), or what a span adds to a sum ([`Reduction`]). Units that make parts may be done in any order, by whoever: a
//! part has the same bytes. A sum is kept by [`Share`]: share K of N has the units whose number is K modulo N, summed in
//! order, in a checkpoint with its shape and digest. Shares are summed in any order, by whoever, and joined in a fixed tree.

mod corpus;
mod memory;
mod sums;
mod units;

pub use corpus::{Corpus, open, sequence};
pub use memory::{PlannedPasses, limit, number_bytes, place, place_beside_sums, planned_passes, sizes_of};
pub use sums::{Counts, Pass, Reduction, Sums};
pub use units::{Share, Units};
