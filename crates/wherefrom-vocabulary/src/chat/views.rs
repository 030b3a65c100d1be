//! What Python prints by a name and not as a list: ranges, views of dictionaries, and what filters hand on piece by piece.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, Rest, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value, filters};

use super::strings::refused;

/// Items of the longest range, as minijinja has it.
const LONGEST: i64 = 100_000;

/// Numbers from `start`, so many, `step` apart.
#[derive(Debug)]
struct Range {
    start: i64,
    end: i64,
    step: i64,
    length: i64,
}

/// `range(end)`, `range(start, end)`, `range(start, end, step)`.
fn range(first: i64, end: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
    let (start, end) = end.map_or((0, first), |end| (first, end));
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(refused("a range with a step of 0"));
    }
    let distance = (i128::from(end) - i128::from(start)) * i128::from(step.signum());
    let length = (distance.max(0) as u128).div_ceil(u128::from(step.unsigned_abs()));
    let length = i64::try_from(length).ok().filter(|length| *length <= LONGEST);
    let length = length.ok_or_else(|| refused(&format!("a range of more than {LONGEST} numbers")))?;
    Ok(Value::from_object(Range { start, end, step, length }))
}

impl Object for Range {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let Self { start, step, length, .. } = **self;
        Enumerator::Iter(Box::new((0..length).map(move |index| Value::from(start + index * step))))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        usize::try_from(self.length).ok()
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, end, step, .. } = **self;
        let step = if step == 1 { String::new() } else { format!(", {step}") };
        write!(f, "range({start}, {end}{step})")
    }
}

/// Keys, values or pairs of a dictionary.
#[derive(Debug)]
struct View {
    /// `dict_keys`.
    name: &'static str,
    items: Vec<Value>,
}

/// What a method of a dictionary gives, which Python calls `name`.
pub(super) fn view(name: &'static str, items: impl Iterator<Item = Value>) -> Value {
    Value::from_object(View { name, items: items.collect() })
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items.clone())
    }

    /// Nothing can be asked for by its place.
    fn get_value(self: &Arc<Self>, _: &Value) -> Option<Value> {
        Some(Value::UNDEFINED)
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name, Value::from(self.items.clone()))
    }
}

/// What a filter hands on piece by piece. Python prints its address, and holds it for true whatever it has.
#[derive(Debug)]
struct Generator {
    filter: &'static str,
    items: Value,
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.items.try_iter().map_or(Enumerator::Empty, |items| Enumerator::Iter(Box::new(items)))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        None
    }

    fn get_value(self: &Arc<Self>, _: &Value) -> Option<Value> {
        Some(Value::UNDEFINED)
    }

    fn render(self: &Arc<Self>, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        PRINTED.set(Some(self.filter));
        Ok(())
    }
}

thread_local! {
    /// The filter whose pieces were last made a text of on this thread, in whatever way: who prints has no means to refuse.
    static PRINTED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// The filter whose pieces were made a text of since the last call.
pub(super) fn printed() -> Option<&'static str> {
    PRINTED.take()
}

/// Whether it is one of these, which JSON has not.
pub(super) fn is_view(value: &Value) -> bool {
    let is =
        |value: &Value| value.downcast_object_ref::<Range>().is_some() || value.downcast_object_ref::<View>().is_some();
    is(value) || value.downcast_object_ref::<Generator>().is_some()
}

/// Whether it has a length and items by number.
pub(super) fn is_sequence(value: &Value) -> bool {
    value.len().is_some() && !value.is_undefined() && value.downcast_object_ref::<View>().is_none()
}

/// Adds `range`, and the filters that hand on piece by piece.
pub(super) fn add(environment: &mut Environment<'static>) {
    type More = Rest<ValueOrKwargs>;
    type Name<'a> = Option<Cow<'a, str>>;
    let piece_by_piece = |filter, items: Value| Value::from_object(Generator { filter, items });
    environment.add_function("range", range);
    environment.add_filter("map", move |state: &mut State<'_, '_>, value: Value, more: More| {
        filters::map(state, value, more).map(|items| piece_by_piece("map", items.into()))
    });
    environment.add_filter("select", move |state: &mut State<'_, '_>, value: Value, test: Name<'_>, more: More| {
        filters::select(state, value, test, more).map(|items| piece_by_piece("select", items.into()))
    });
    environment.add_filter("reject", move |state: &mut State<'_, '_>, value: Value, test: Name<'_>, more: More| {
        filters::reject(state, value, test, more).map(|items| piece_by_piece("reject", items.into()))
    });
    environment.add_filter(
        "selectattr",
        move |state: &mut State<'_, '_>, value: Value, name: Cow<'_, str>, test: Name<'_>, more: More| {
            filters::selectattr(state, value, name, test, more).map(|items| piece_by_piece("selectattr", items.into()))
        },
    );
    environment.add_filter(
        "rejectattr",
        move |state: &mut State<'_, '_>, value: Value, name: Cow<'_, str>, test: Name<'_>, more: More| {
            filters::rejectattr(state, value, name, test, more).map(|items| piece_by_piece("rejectattr", items.into()))
        },
    );
    environment.add_filter("unique", move |state: &State<'_, '_>, value: Value, named: Kwargs| {
        filters::unique(state, value, named).map(|items| piece_by_piece("unique", items))
    });
    for (name, filter) in
        [("slice", filters::slice as fn(&State<'_, '_>, Value, usize, Option<Value>) -> _), ("batch", filters::batch)]
    {
        environment.add_filter(name, move |state: &State<'_, '_>, value: Value, count: usize, fill: Option<Value>| {
            filter(state, value, count, fill).map(|items: Value| piece_by_piece(name, items))
        });
    }
    environment.add_filter("reverse", move |state: &State<'_, '_>, value: Value| {
        state.consume_fuel(value.len().unwrap_or(0) as u64)?;
        let reversed = filters::reverse(&value)?;
        // Of what cannot be read backwards Python makes a list.
        let whole = value.as_str().is_some() || value.downcast_object_ref::<Generator>().is_some();
        Ok::<_, Error>(if whole { reversed } else { piece_by_piece("reverse", reversed) })
    });
    environment
        .add_filter("items", move |value: &Value| filters::items(value).map(|items| piece_by_piece("items", items)));
}
