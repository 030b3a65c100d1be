//! For tests alone: small studies in several groups of queries.

use anyhow::Result;
use wherefrom_artifact::Draft;
use wherefrom_stage::Exec;

use crate::{Config, Inputs};

/// As [`crate::run`], with another limit on the bytes of queries on the device at once.
///
/// # Errors
/// As [`crate::run`].
pub fn run_in_groups(
    config: &Config,
    inputs: &Inputs,
    exec: &Exec,
    draft: &mut Draft,
    query_bytes: usize,
) -> Result<()> {
    crate::run_in_groups(config, inputs, exec, draft, query_bytes)
}
