//! A boundary around the parsers of foreign files: where a library panics on their bytes, the file is refused by name.
//!
//! It stops neither aborts nor stack overflows nor absurd allocations: sizes and depths are checked before a parser is called.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, Location, catch_unwind, set_hook, take_hook};
use std::path::Path;
use std::sync::Once;

use anyhow::Result;

use crate::bad_input;

/// What every refusal says that stands for a panic of a library.
pub const PANICKED: &str = "its reader stopped";

thread_local! {
    /// This thread is inside of a boundary, and a panic is not printed.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    /// Where the last panic inside of a boundary was: a file of a library and a line.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// What `parse` makes of the file `path`.
///
/// # Errors
/// Those of `parse`; [`crate::Error::Input`] with the file's name where it panics.
pub fn foreign<T>(path: &Path, parse: impl FnOnce() -> Result<T>) -> Result<T> {
    caught(parse).unwrap_or_else(|what| Err(bad_input(format!("{}: {what}; give an undamaged file", path.display()))))
}

/// The value of `parse`, or what it said as it panicked, after [`PANICKED`]; nothing is printed.
///
/// # Errors
/// The panic's message.
pub fn caught<T>(parse: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let printed = take_hook();
        set_hook(Box::new(move |panic| {
            if GUARDED.get() {
                PLACE.set(panic.location().map(place).unwrap_or_default());
            } else {
                printed(panic);
            }
        }));
    });
    let outside = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(parse));
    GUARDED.set(outside);
    result.map_err(|panic| format!("{PANICKED} ({}{})", message(&*panic), PLACE.take()))
}

/// ` at parquet-60.1.0/src/file.rs:12`: the path of a crate, without where crates lie on this machine.
fn place(location: &Location<'_>) -> String {
    let parts: Vec<_> = location.file().split('/').collect();
    let from = parts.iter().rposition(|part| *part == "src").unwrap_or_default().saturating_sub(1);
    format!(" at {}:{}", parts[from..].join("/"), location.line())
}

/// The first line of what a panic said.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn a_panic_names_the_file_and_others_pass() {
        let path = Path::new("a/b.parquet");
        let refused = foreign(path, || -> Result<()> { panic!("index {}\nmore", 7) }).unwrap_err();
        let Some(Error::Input(said)) = refused.downcast_ref() else { panic!("{refused:?}") };
        let (before, after) = said.split_once(" at wherefrom-artifact/src/foreign.rs:").unwrap();
        assert_eq!(before, "a/b.parquet: its reader stopped (index 7");
        assert!(after.ends_with("); give an undamaged file"), "{said}");
        assert_eq!(foreign(path, || Ok(3)).unwrap(), 3);
        assert_eq!(foreign(path, || -> Result<()> { Err(bad_input("own")) }).unwrap_err().to_string(), "own");
        assert!(caught(|| -> u8 { panic!("plain") }).unwrap_err().starts_with("its reader stopped (plain at "));
        // An inner boundary leaves the outer one as it was.
        let nested = caught(|| -> u8 {
            let inner = caught(|| -> u8 { panic!("inner") });
            assert!(inner.is_err() && GUARDED.get());
            panic!("outer")
        });
        assert!(nested.unwrap_err().starts_with("its reader stopped (outer at "));
        assert!(!GUARDED.get());
    }
}
