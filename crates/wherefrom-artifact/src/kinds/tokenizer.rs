//! A Hugging Face `tokenizer.json`.

use crate::kinds::definition::Definition;

pub(super) const DEFINITION: Definition = Definition::folder("tokenizer", 1);
