//! Progress on stderr: a bar on a terminal, a plain line every few seconds elsewhere.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use wherefrom_artifact::{Reporter, bytes, visible};

use crate::output::{note, notes_are_seen};

/// Time before the first plain line, so that short tasks say nothing.
const QUIET: Duration = Duration::from_secs(2);
/// Time between plain lines.
const PAUSE: Duration = Duration::from_secs(5);

/// The reporter of the command line.
pub(crate) struct Progress {
    terminal: bool,
    task: Mutex<Option<Task>>,
}

struct Task {
    name: String,
    unit: String,
    total: u64,
    before: u64,
    done: u64,
    start: Instant,
    said: Option<Instant>,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// To stderr, whatever it is.
    pub(crate) fn new() -> Self {
        Self { terminal: notes_are_seen(), task: Mutex::new(None) }
    }

    fn task(&self) -> MutexGuard<'_, Option<Task>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Task {
    /// `covariance: 1200 of 5000 tokens, 310 a second, 12 s left`.
    fn line(&self) -> String {
        let rate = (self.done - self.before) as f64 / self.start.elapsed().as_secs_f64().max(1e-9);
        let left = if rate > 0.0 && self.total > self.done {
            format!(", {:.0} s left", (self.total - self.done) as f64 / rate)
        } else {
            String::new()
        };
        if self.unit == "bytes" {
            let [done, total, rate] = [self.done as f64, self.total as f64, rate].map(bytes);
            return format!("{}: {done} of {total}, {rate} a second{left}", self.name);
        }
        format!("{}: {} of {} {}, {rate:.0} a second{left}", self.name, self.done, self.total, self.unit)
    }
}

impl Reporter for Progress {
    fn begin(&self, task: &str, unit: &str, total: u64, done: u64) {
        let bar = self.terminal.then(|| {
            let template = if unit == "bytes" {
                "{msg:<16} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} ETA {eta}"
            } else {
                "{msg:<16} [{bar:30}] {human_pos}/{human_len} {prefix} {per_sec} ETA {eta}"
            };
            let bar = ProgressBar::new(total).with_message(visible(task)).with_prefix(visible(unit));
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_position(done);
            bar.reset_eta();
            bar
        });
        let (name, unit) = (task.into(), unit.into());
        let earlier =
            self.task().replace(Task { name, unit, total, before: done, done, start: Instant::now(), said: None, bar });
        if let Some(bar) = earlier.and_then(|task| task.bar) {
            bar.finish_and_clear();
        }
    }

    fn advance(&self, units: u64) {
        let mut task = self.task();
        let Some(task) = task.as_mut() else { return };
        task.done += units;
        if let Some(bar) = &task.bar {
            bar.inc(units);
            return;
        }
        let due = task.said.map_or_else(|| task.start.elapsed() > QUIET, |said| said.elapsed() > PAUSE);
        if due {
            note(task.line());
            task.said = Some(Instant::now());
        }
    }

    fn end(&self) {
        let Some(task) = self.task().take() else { return };
        match &task.bar {
            Some(bar) => bar.finish_and_clear(),
            None if task.said.is_some() => {
                let seconds = task.start.elapsed().as_secs_f64();
                note(format_args!("{}: {} {} in {seconds:.1} s", task.name, task.done, task.unit));
            }
            None => {}
        }
    }

    fn warn(&self, message: &str) {
        let task = self.task();
        let line = format!("warning: {message}");
        match task.as_ref().and_then(|task| task.bar.as_ref()) {
            Some(bar) => bar.suspend(|| note(line)),
            None => note(line),
        }
    }
}
