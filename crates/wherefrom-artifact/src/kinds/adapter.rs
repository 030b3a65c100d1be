//! A folder of PEFT: adapter_config.json and adapter_model.safetensors, on the model that the step ran.

use crate::kinds::definition::Definition;

pub(super) const DEFINITION: Definition = Definition::folder("adapter", 1);
