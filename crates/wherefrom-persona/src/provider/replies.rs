//! What was answered, kept in the draft as it comes: whoever runs again pays for nothing twice.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Draft, Reporter};

use crate::provider::{Endpoint, Question, Reply};

/// The file in the draft: a JSON object a line.
const FILE: &str = "replies";

/// Answers by their questions' keys.
pub(crate) struct Replies<'a> {
    endpoint: &'a Endpoint,
    state: Mutex<State>,
    /// An answer has come, or will not.
    came: Condvar,
    file: Mutex<File>,
    usage: Mutex<Usage>,
}

#[derive(Default)]
struct State {
    known: HashMap<String, Reply>,
    /// Questions that are being asked: nobody else asks them.
    asked: HashSet<String>,
}

/// What an endpoint was asked for in this run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Usage {
    /// Questions that were answered.
    pub(crate) calls: u64,
    /// Tokens that it read, by its own word.
    pub(crate) prompt_tokens: u64,
    /// Tokens that it wrote.
    pub(crate) completion_tokens: u64,
    /// Answers of each model, by the name that it gives itself.
    pub(crate) answered_by: BTreeMap<String, u64>,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    question: String,
    reply: Reply,
}

impl<'a> Replies<'a> {
    /// What earlier runs were answered.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn open(endpoint: &'a Endpoint, draft: &Draft) -> Result<Self> {
        let (lines, file) = draft.lines(FILE)?;
        let parsed = lines.iter().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        let known = parsed.map(|line| (line.question, line.reply)).collect();
        let state = Mutex::new(State { known, asked: HashSet::new() });
        Ok(Self { endpoint, state, came: Condvar::new(), file: Mutex::new(file), usage: Mutex::default() })
    }

    /// The answer to a question: the one that is kept, or else one that is asked for and kept.
    ///
    /// # Errors
    /// As [`Endpoint::ask`].
    pub(crate) fn get(&self, question: &Question) -> Result<Reply> {
        let key = question.key(self.endpoint.model());
        let mut state = locked(&self.state);
        loop {
            if let Some(reply) = state.known.get(&key) {
                return Ok(reply.clone());
            }
            if state.asked.insert(key.clone()) {
                break;
            }
            state = self.came.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        let reply = self.endpoint.ask(question).and_then(|reply| self.keep(&key, &reply).map(|()| reply));
        let mut state = locked(&self.state);
        state.asked.remove(&key);
        if let Ok(reply) = &reply {
            state.known.insert(key, reply.clone());
        }
        self.came.notify_all();
        reply
    }

    fn keep(&self, key: &str, reply: &Reply) -> Result<()> {
        let line = serde_json::to_string(&Line { question: key.into(), reply: reply.clone() })? + "\n";
        let mut file = locked(&self.file);
        file.write_all(line.as_bytes()).and_then(|()| file.sync_data()).context("keep an answer")?;
        drop(file);
        let mut usage = locked(&self.usage);
        usage.calls += 1;
        usage.prompt_tokens += reply.tokens.0;
        usage.completion_tokens += reply.tokens.1;
        *usage.answered_by.entry(reply.model.clone()).or_default() += 1;
        Ok(())
    }

    /// What `each` makes of the numbers below `count`, so many at once. The first error ends it.
    ///
    /// # Errors
    /// Those of `each`, that of the lowest number.
    pub(crate) fn side_by_side<T: Send>(
        &self,
        count: usize,
        concurrency: usize,
        reporter: &dyn Reporter,
        each: impl Fn(usize) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let done: Mutex<Vec<(usize, Result<T>)>> = Mutex::default();
        std::thread::scope(|scope| {
            for _ in 0..concurrency.min(count) {
                scope.spawn(|| {
                    while !failed.load(Ordering::Relaxed) {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= count {
                            break;
                        }
                        let made = each(index);
                        failed.fetch_or(made.is_err(), Ordering::Relaxed);
                        locked(&done).push((index, made));
                        reporter.advance(1);
                    }
                });
            }
        });
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, made)| made).collect()
    }

    /// What was asked for in this run.
    pub(crate) fn usage(&self) -> Usage {
        locked(&self.usage).clone()
    }
}

/// What a panic elsewhere has left is as whole as before.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
