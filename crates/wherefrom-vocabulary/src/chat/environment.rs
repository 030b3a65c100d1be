//! Jinja as `transformers` sets it up: what a template may call.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Object, Rest, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::date::Date;
use super::rewrite::{ASSIGNED, ITERATED, REMAINDER};
use super::source::GENERATION;
use super::strings::refused;
use super::{containers, filters, limits, numbers, tojson};

/// What `raise_exception` says: the template refuses the conversation.
#[derive(Debug)]
pub(super) struct Raised(pub(super) String);

impl std::fmt::Display for Raised {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// Where a rendering stands, and what `{% generation %}` held so far: the byte where each text should be written, and it.
#[derive(Debug, Default)]
pub(super) struct Spans {
    pub(super) written: usize,
    pub(super) found: Vec<(usize, String)>,
}

impl Spans {
    /// The bytes of `text` that were marked, in order and apart.
    ///
    /// # Errors
    /// Where a text was marked that is written elsewhere or nowhere.
    pub(super) fn within(mut self, text: &str) -> Result<Vec<Range<usize>>, String> {
        self.found.sort_by_key(|(start, marked)| (*start, std::cmp::Reverse(marked.len())));
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for (start, marked) in self.found {
            let end = start + marked.len();
            match ranges.last_mut().filter(|last| start < last.end) {
                // Of a mark inside of another it is known that it is written there.
                Some(last) if end <= last.end => {}
                _ if text.get(start..end) != Some(&marked) => {
                    return Err(
                        "marks by {% generation %} what it writes elsewhere: inside of a `set` or a filter".into()
                    );
                }
                Some(last) => last.end = end,
                None => ranges.push(start..end),
            }
        }
        Ok(ranges)
    }
}

/// [`Spans`] as a template can hand it on.
#[derive(Debug, Clone, Default)]
pub(super) struct Tracker(pub(super) Arc<Mutex<Spans>>);

impl Object for Tracker {}

impl Tracker {
    fn generated(&self, text: &str) {
        if let Ok(mut spans) = self.0.lock() {
            let start = spans.written;
            spans.found.push((start, text.into()));
        }
    }
}

/// An environment without templates.
pub(super) fn environment(date: Option<Date>) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(limits::FUEL));
    environment.set_unknown_method_callback(containers::method);
    environment.set_formatter(|out, _, value| filters::print(out, value));
    environment.add_function("raise_exception", |what: Value| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, what.to_string()).with_source(Raised(what.to_string())))
    });
    if let Some(date) = date {
        environment
            .add_function("strftime_now", move |format: String| date.format(&format).map_err(|what| refused(&what)));
    }
    environment.add_filter(REMAINDER, numbers::remainder);
    environment.add_filter(ASSIGNED, |state: &State<'_, '_>, value: Value| limits::assigned(state, value));
    environment.add_filter(ITERATED, limits::iterated);
    environment.add_filter(GENERATION, |text: String, spans: Value| {
        if let Some(tracker) = spans.downcast_object_ref::<Tracker>() {
            tracker.generated(&text);
        }
        text
    });
    environment.add_filter("tojson", |state: &State<'_, '_>, value: Value, args: Rest<ValueOrKwargs>| {
        tojson::tojson(state, &value, &args.into_values())
    });
    filters::add(&mut environment);
    Ok(environment)
}
