//! Where progress and remarks go.

/// Where progress and remarks go. Libraries never print.
pub trait Reporter: Send + Sync {
    /// Step `number` of `steps`, counted from 1, begins; the tasks that follow are its.
    fn step(&self, _name: &str, _number: usize, _steps: usize) {}
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
