//! Progress on stderr: a bar on a terminal, a plain line every few seconds elsewhere.

use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use wherefrom_artifact::{Reporter, bytes, visible};

use crate::output::{note, notes_are_seen};

/// Time before the first plain line, so that short tasks say nothing.
const QUIET: Duration = Duration::from_secs(2);
/// Time between plain lines.
const PAUSE: Duration = Duration::from_secs(5);

/// The reporter of the command line.
pub(crate) struct Progress {
    terminal: bool,
    /// `step 4 of 15, `, or nothing.
    step: Mutex<String>,
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
        Self { terminal: notes_are_seen(), step: Mutex::default(), task: Mutex::default() }
    }

    fn task(&self) -> MutexGuard<'_, Option<Task>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self) -> MutexGuard<'_, String> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Task {
    /// `step 4 of 15, covariance: 1200 of 5000 tokens, 310 a second, 12 s left`.
    fn line(&self) -> String {
        let rate = (self.done - self.before) as f64 / self.start.elapsed().as_secs_f64().max(1e-9);
        let left = if rate > 0.0 && self.total > self.done {
            format!(", {} left", time((self.total - self.done) as f64 / rate))
        } else {
            String::new()
        };
        let rate = speed(rate, &self.unit);
        if self.unit == "bytes" {
            let [done, total] = [self.done as f64, self.total as f64].map(bytes);
            return format!("{}: {done} of {total}, {rate} a second{left}", self.name);
        }
        format!(
            "{}: {} of {} {}, {rate} a second{left}",
            self.name,
            self.done,
            self.total,
            noun(self.total, &self.unit)
        )
    }
}

/// The unit of so many: 1 study, 2 studies.
fn noun(count: u64, unit: &str) -> String {
    let of_one = [("ies", "y"), ("matrices", "matrix"), ("s", "")];
    let one = of_one.iter().find_map(|(many, one)| Some(format!("{}{one}", unit.strip_suffix(many)?)));
    one.filter(|_| count == 1).unwrap_or_else(|| unit.into())
}

/// Units a second, in two or three figures.
fn speed(rate: f64, unit: &str) -> String {
    match rate {
        _ if unit == "bytes" => bytes(rate),
        100.0.. => {
            let last = 10f64.powf(rate.log10().floor() - 2.0);
            format!("{:.0}", (rate / last).round() * last)
        }
        10.0.. => format!("{rate:.0}"),
        _ => format!("{rate:.2}"),
    }
}

/// `12 s`, `5 min`, `2 h 10 min`.
fn time(seconds: f64) -> String {
    let minutes = (seconds / 60.0).round() as u64;
    match minutes {
        _ if seconds < 100.0 => format!("{seconds:.0} s"),
        ..100 => format!("{minutes} min"),
        _ => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}

impl Reporter for Progress {
    fn step(&self, _name: &str, number: usize, steps: usize) {
        *self.place() = format!("step {number} of {steps}, ");
    }

    fn begin(&self, task: &str, unit: &str, total: u64, done: u64) {
        let name = format!("{}{task}", self.place());
        let bar = self.terminal.then(|| {
            let template = if unit == "bytes" {
                "{msg:<28} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {speed}/s ETA {eta}"
            } else {
                "{msg:<28} [{bar:30}] {human_pos}/{human_len} {prefix} {speed}/s ETA {eta}"
            };
            let bar = ProgressBar::new(total).with_message(visible(&name)).with_prefix(visible(unit));
            if let Ok(style) = ProgressStyle::with_template(template) {
                let unit = unit.to_string();
                let figures = move |state: &ProgressState, out: &mut dyn Write| {
                    let _unheard = out.write_str(&speed(state.per_sec(), &unit));
                };
                bar.set_style(style.with_key("speed", figures));
            }
            bar.set_position(done);
            bar.reset_eta();
            bar
        });
        let unit = unit.into();
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
                let seconds = time(task.start.elapsed().as_secs_f64());
                note(format_args!("{}: {} {} in {seconds}", task.name, task.done, noun(task.done, &task.unit)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_says_of_which_step_it_is() {
        let progress = Progress { terminal: false, step: Mutex::default(), task: Mutex::default() };
        progress.step("covariances", 4, 15);
        progress.begin("covariance", "tokens", 5000, 200);
        progress.advance(1000);
        let line = progress.task().as_ref().unwrap().line();
        assert!(line.starts_with("step 4 of 15, covariance: 1200 of 5000 tokens, "), "{line}");
        assert!(line.contains(" a second, ") && line.ends_with(" left"), "{line}");
    }

    #[test]
    fn one_is_no_plural() {
        let one = ["small studies", "matrices", "queries", "tokens", "bytes"].map(|unit| noun(1, unit));
        assert_eq!(one, ["small study", "matrix", "query", "token", "byte"]);
        assert_eq!(noun(2, "small studies"), "small studies");
        assert_eq!(noun(0, "rows"), "rows");
    }

    #[test]
    fn rates_have_two_or_three_figures_and_times_a_unit() {
        let rates = [0.123, 9.876, 12.34, 480.4, 12_345.0, 999_999.0];
        assert_eq!(rates.map(|rate| speed(rate, "tokens")), ["0.12", "9.88", "12", "480", "12300", "1000000"]);
        assert_eq!(speed(12_345.0, "bytes"), "12.3 kB");
        let times = [0.4, 99.0, 100.0, 5940.0, 7800.0];
        assert_eq!(times.map(time), ["0 s", "99 s", "2 min", "99 min", "2 h 10 min"]);
    }
}
