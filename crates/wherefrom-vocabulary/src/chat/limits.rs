//! What a template may use: steps, memory, and depth of what it keeps.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

/// Steps of one rendering: an instruction each, or 64 bytes. So that is also the memory: 256 MiB at most.
pub(super) const FUEL: u64 = 4 << 20;
/// Steps of all renderings of a conversation whose answers the template does not mark.
pub(super) const FUEL_OF_A_ROW: u64 = 64 << 20;
/// Bytes of the longest text that is rendered.
pub(super) const LONGEST_TEXT: usize = 16 << 20;
/// Lists and dictionaries inside one another in what is assigned. Those of a row are 128 deep at most.
pub(super) const DEPTH: usize = 256;

/// Pays for a text of `bytes` before it is made.
pub(super) fn pay(state: &State<'_, '_>, bytes: usize) -> Result<(), Error> {
    state.consume_fuel((bytes / 64) as u64)
}

/// What is assigned, if it is not nested too deeply: values are compared, printed and dropped by functions that call
/// themselves.
pub(super) fn assigned(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    shallow(state, &value, 0)?;
    Ok(value)
}

fn shallow(state: &State<'_, '_>, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEPTH {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("a value is nested too deeply: more than {DEPTH} lists inside one another"),
        ));
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        return Ok(());
    }
    let Some(object) = value.as_object() else { return Ok(()) };
    // Of a dictionary the iterator gives the keys alone.
    let pairs = object.try_iter_pairs().filter(|_| value.kind() == ValueKind::Map);
    let items: Box<dyn Iterator<Item = Value>> = match pairs {
        Some(pairs) => Box::new(pairs.map(|(_, item)| item)),
        None => Box::new(object.try_iter().into_iter().flatten()),
    };
    for (index, item) in items.enumerate() {
        state.consume_fuel(u64::from(index % 8 == 7))?;
        shallow(state, &item, depth + 1)?;
    }
    Ok(())
}

/// Whether Python iterates over it: what has items, and what is not there.
pub(super) fn is_iterable(value: &Value) -> bool {
    value.is_undefined() || (!value.is_none() && value.try_iter().is_ok())
}

/// What is iterated over, if Python would.
pub(super) fn iterated(value: Value) -> Result<Value, Error> {
    if is_iterable(&value) {
        return Ok(value);
    }
    Err(Error::new(ErrorKind::InvalidOperation, format!("{} cannot be iterated over", value.kind())))
}
