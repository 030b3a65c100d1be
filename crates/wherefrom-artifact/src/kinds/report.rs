//! A page to look at.

use crate::kinds::definition::Definition;

pub(super) const DEFINITION: Definition = Definition::folder("report", 1);
