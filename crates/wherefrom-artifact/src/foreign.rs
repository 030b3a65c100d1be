//! A boundary around the parsers of foreign files: where a library panics on their bytes, the file is refused by name.
//!
//! It stops neither aborts nor stack overflows nor absurd allocations: sizes and depths are checked before a parser is called.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::Path;
use std::sync::Once;

use anyhow::Result;

use crate::bad_input;

/// What every refusal says that stands for a panic of a library.
pub const PANICKED: &str = "its reader stopped";

thread_local! {
    /// This thread is inside of a boundary, and a panic is not printed.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
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
            if !GUARDED.get() {
                printed(panic);
            }
        }));
    });
    let outside = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(parse));
    GUARDED.set(outside);
    result.map_err(|panic| format!("{PANICKED} ({})", message(&*panic)))
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
        let said = "a/b.parquet: its reader stopped (index 7); give an undamaged file";
        assert_eq!(refused.downcast_ref(), Some(&Error::Input(said.into())));
        assert_eq!(foreign(path, || Ok(3)).unwrap(), 3);
        assert_eq!(foreign(path, || -> Result<()> { Err(bad_input("own")) }).unwrap_err().to_string(), "own");
        assert_eq!(caught(|| -> u8 { panic!("plain") }), Err("its reader stopped (plain)".into()));
        // An inner boundary leaves the outer one as it was.
        let nested = caught(|| -> u8 {
            let inner = caught(|| -> u8 { panic!("inner") });
            assert!(inner.is_err() && GUARDED.get());
            panic!("outer")
        });
        assert_eq!(nested, Err("its reader stopped (outer)".into()));
        assert!(!GUARDED.get());
    }
}
