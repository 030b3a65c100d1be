//! Alpaca's rows: an instruction, what it is about, and the answer.

use wherefrom_vocabulary::ordered::{Json, Object};

/// An instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instruction {
    instruction: String,
    /// What it is about; empty where it needs nothing.
    input: String,
    /// The answer.
    pub(crate) output: String,
}

impl Instruction {
    /// Reads the columns `instruction`, `input`, which may be missing, and `output`.
    ///
    /// # Errors
    /// What is wrong and what to do.
    pub(crate) fn read(map: &Object, [instruction, input, output]: [&str; 3]) -> Result<Self, String> {
        let text = |key: &str| match map.get(key) {
            None => Ok(String::new()),
            Some(Json::String(text)) => Ok(text.clone()),
            Some(other) => Err(format!("`{key}` is {}; make it a string", other.name())),
        };
        Ok(Self { instruction: text(instruction)?, input: text(input)?, output: text(output)? })
    }

    /// The text before the answer, as Alpaca's models were trained on it: it begins otherwise where there is no input.
    pub(crate) fn prompt(&self) -> String {
        let Self { instruction, input, .. } = self;
        if input.is_empty() {
            return format!(
                "Below is an instruction that describes a task. Write a response that appropriately completes the \
                 request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
            );
        }
        format!(
            "Below is an instruction that describes a task, paired with an input that provides further context. Write a \
             response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### \
             Input:\n{input}\n\n### Response:\n"
        )
    }

    /// What a user asks, for a chat template.
    pub(crate) fn asked(self) -> String {
        if self.input.is_empty() { self.instruction } else { format!("{}\n\n{}", self.instruction, self.input) }
    }
}
