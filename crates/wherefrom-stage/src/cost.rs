//! What a step will take, from shapes and token counts alone.

use std::sync::Arc;

use serde_json::Value;

use crate::exec::Device;

/// Bytes of a process that reads and writes artifacts and does nothing else: measured.
const IDLE: f64 = 2.4e7;

/// Cost of one step, or of all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cost {
    /// Bytes held at once.
    pub memory: f64,
    /// Bytes written.
    pub disk: f64,
    /// Bytes of artifacts read, where they are many.
    pub read: f64,
    /// Floating point operations.
    pub flops: f64,
    /// What shares leave on disk until they are joined, of a step that sums.
    pub sums: Option<Sums>,
    /// What else there is to say: passes over the tokens, bytes a query.
    pub note: String,
}

/// Sums of a step that several processes make: a share sums a group of modules over a group of spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sums {
    /// Modules that are summed.
    pub modules: usize,
    /// Bytes of the sums of all modules over one group of spans.
    pub bytes: u64,
}

impl Sums {
    /// Bytes that the sums of all shares may take on disk. With more, shares take fewer modules and more spans each.
    pub const LIMIT: u64 = 256 << 30;

    /// Groups of modules and groups of spans of so many shares: as few of modules as keep all sums within `limit` bytes, since
    /// each is a pass of its own over the tokens.
    pub fn groups(self, shares: usize, limit: u64) -> (usize, usize) {
        let mut possible =
            (1..=shares).filter(|groups| shares.is_multiple_of(*groups) && *groups <= self.modules.max(1));
        let fits = |groups: &usize| self.bytes.saturating_mul((shares / groups) as u64) <= limit;
        let modules = possible.clone().find(fits).or(possible.next_back()).unwrap_or(1);
        (modules, shares / modules)
    }
}

impl Cost {
    /// Bytes of rows of text that are being read or written.
    pub const ROWS: f64 = 1e7;

    /// Bytes held beside those of any process, bytes written, and operations.
    pub fn new(memory: f64, disk: f64, flops: f64) -> Self {
        Self { memory: IDLE + memory, disk, read: 0.0, flops, sums: None, note: String::new() }
    }

    /// The same of a step that sums.
    pub fn sums(self, sums: Sums) -> Self {
        Self { sums: Some(sums), ..self }
    }

    /// The same of a step that reads so many bytes.
    pub fn reads(self, bytes: f64) -> Self {
        Self { read: bytes, ..self }
    }

    /// The same with a remark, after those that are there.
    pub fn note(mut self, note: impl AsRef<str>) -> Self {
        let note = note.as_ref();
        if !(self.note.is_empty() || note.is_empty()) {
            self.note.push_str("; ");
        }
        self.note.push_str(note);
        self
    }
}

/// What the steps run on.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Bytes that may be held; none where nobody knows.
    pub memory: Option<u64>,
    /// Where the arithmetic runs.
    pub device: Device,
    /// Padded tokens in one batch.
    pub batch_tokens: usize,
}

/// Tokens and rows of a tokens artifact: measured, or guessed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Size {
    /// Tokens.
    pub tokens: f64,
    /// Rows.
    pub rows: f64,
}

/// A step as a plan knows it before it has run.
#[derive(Debug, Clone, Default)]
pub struct Planned {
    /// Its configuration.
    pub config: Value,
    /// Of the tokens that it writes, or that it goes back to.
    pub size: Size,
    /// What was assumed for want of a corpus or a tokenizer.
    pub assumed: Option<String>,
    /// The `config.json` of the checkpoint that it runs or makes.
    pub model: Option<Value>,
    /// Modules summed in one pass over the tokens, where the step says.
    pub modules_per_pass: Option<usize>,
    /// The steps that it takes its inputs from, by role; the model's last.
    pub inputs: Vec<(String, Arc<Planned>)>,
}

impl Planned {
    /// The step that a role is wired to.
    pub fn input(&self, role: &str) -> Option<&Self> {
        self.inputs.iter().find(|(name, _)| name == role).map(|(_, step)| &**step)
    }

    /// Tokens and rows of what has a role; zero where no step makes it.
    pub fn size_of(&self, role: &str) -> Size {
        self.input(role).map(|step| step.size).unwrap_or_default()
    }

    /// What is found at the step, or else at one that it needs.
    pub fn nearest<T>(&self, find: impl Fn(&Self) -> Option<T> + Copy) -> Option<T> {
        find(self).or_else(|| self.inputs.iter().find_map(|(_, step)| step.nearest(find)))
    }

    /// What `read` makes of the model that the step is about, if one is known: of its `config.json`, the knob `modules`, and the
    /// tokens in one batch.
    pub fn attributed<T>(&self, machine: &Machine, read: impl FnOnce(&Value, &Value, usize) -> Option<T>) -> Option<T> {
        let model = self.nearest(|step| step.model.clone())?;
        let modules = self.knob("modules").unwrap_or_else(|| "mlp".into());
        // A batch has no more tokens than there are.
        let batch_tokens = machine.batch_tokens.min((self.size_of("tokens").tokens as usize).max(1));
        read(&model, &modules, batch_tokens)
    }

    /// Pairs of a query and an example that the scores in that role have; 0 where no step makes them.
    pub fn pairs(&self, role: &str) -> f64 {
        self.input(role).map_or(0.0, Self::scored_pairs)
    }

    /// Pairs of a query and an example that the step scores.
    pub fn scored_pairs(&self) -> f64 {
        let first = |roles: &[&str]| roles.iter().find_map(|role| self.input(role)).map(|step| step.size.rows);
        let queries = first(&["queries", "query-activations"]).unwrap_or(1.0);
        queries * first(&["tokens", "index", "activations", "projections"]).unwrap_or(0.0)
    }

    /// A knob of the step, or else of one that it needs.
    pub fn knob(&self, name: &str) -> Option<Value> {
        self.nearest(|step| step.config.get(name).cloned())
    }
}
