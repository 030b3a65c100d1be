//! How a stage runs: never part of a key.

use std::sync::Arc;

/// Where progress and remarks go. Libraries never print.
pub trait Reporter: Send + Sync {
    /// A task of `total` units (`"tokens"`, `"modules"`) begins; `done` of them were finished by an earlier run.
    fn begin(&self, task: &str, unit: &str, total: u64, done: u64);
    /// `units` more are done.
    fn advance(&self, units: u64);
    /// The task has ended.
    fn end(&self);
    /// Something the user should know.
    fn warn(&self, message: &str);
}

/// A reporter that says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Reporter for Silent {
    fn begin(&self, _task: &str, _unit: &str, _total: u64, _done: u64) {}
    fn advance(&self, _units: u64) {}
    fn end(&self) {}
    fn warn(&self, _message: &str) {}
}

/// Device, memory, batch size and reporter of a run.
#[derive(Clone)]
pub struct Exec {
    /// `auto`, `cpu`, `gpu` or `gpu:N`, resolved by the model crate.
    pub device: String,
    /// Tokens in one batch, where all its sequences are as long as the longest.
    pub batch_tokens: usize,
    /// Bytes that may be held at once; none = what the machine has to spare.
    pub memory: Option<u64>,
    /// Modules that `covariance` and `lambda` sum in one pass over the tokens; none = as many as fit the memory.
    pub modules_per_pass: Option<usize>,
    /// Where progress goes.
    pub reporter: Arc<dyn Reporter>,
}

impl Default for Exec {
    fn default() -> Self {
        Self {
            device: "cpu".into(),
            batch_tokens: 4096,
            memory: None,
            modules_per_pass: None,
            reporter: Arc::new(Silent),
        }
    }
}
