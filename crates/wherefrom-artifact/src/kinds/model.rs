//! A Hugging Face checkpoint folder.

use crate::kinds::definition::Definition;

pub(super) const DEFINITION: Definition = Definition::folder("model", 1);
