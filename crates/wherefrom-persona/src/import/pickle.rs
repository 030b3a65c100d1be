//! The pickle of one tensor, as `torch.save` writes it: a machine that knows the operations of that one file and nothing else.
//!
//! ```text
//! _rebuild_tensor_v2(storage, offset, shape, stride, requires_grad, OrderedDict())
//! ```
//!
//! A pickle names functions that a reader calls. Here a name stands for itself, and one that is not in the list is refused.

use std::collections::HashMap;
use std::rc::Rc;

/// Bytes at most; one of a tensor has some 160.
const BYTES: usize = 1 << 16;
/// Tuples within tuples at most.
const DEPTH: usize = 8;

/// How a storage's numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Numbers {
    F32,
    F16,
    Bf16,
}

/// A view of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    pub(super) numbers: Numbers,
    /// The storage's name among the entries of the file.
    pub(super) key: String,
    /// Numbers of the storage.
    pub(super) count: usize,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) stride: Vec<usize>,
}

#[derive(Debug)]
enum Value {
    /// `_rebuild_tensor_v2`
    Rebuild,
    /// `OrderedDict`
    Ordered,
    Storage(Numbers),
    Text(String),
    Number(i64),
    /// True, False, None, and an `OrderedDict` without entries: what says nothing.
    Nothing,
    /// With how many tuples are within.
    Tuple(Vec<Rc<Value>>, usize),
    Stored {
        numbers: Numbers,
        key: String,
        count: usize,
    },
    View(View),
}

/// The tensor of a pickle.
///
/// # Errors
/// What it has that such a file does not.
pub(super) fn view(bytes: &[u8]) -> Result<View, String> {
    if bytes.len() > BYTES {
        return Err(format!("its data.pkl has {} bytes; that of one tensor has a few hundred", bytes.len()));
    }
    let mut machine = Machine { rest: bytes, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    while let Some(operation) = machine.byte() {
        if operation == b'.' {
            return match (machine.stack.pop().as_deref(), machine.stack.is_empty()) {
                (Some(Value::View(view)), true) => Ok(view.clone()),
                _ => Err("is not one bare tensor, as `torch.save(tensor, file)` writes it".into()),
            };
        }
        machine.run(operation)?;
    }
    Err("its data.pkl ends before its end".into())
}

struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Rc<Value>>,
    marks: Vec<usize>,
    memo: HashMap<u32, Rc<Value>>,
}

impl<'a> Machine<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or("its data.pkl is cut off")?;
        self.rest = rest;
        Ok(bytes)
    }

    /// A little-endian number of so many bytes.
    fn number(&mut self, bytes: usize) -> Result<u32, String> {
        Ok(self.bytes(bytes)?.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }

    /// The text to the next line break.
    fn line(&mut self) -> Result<&'a str, String> {
        let end = self.rest.iter().position(|&byte| byte == b'\n').ok_or("its data.pkl is cut off")?;
        let line = &self.bytes(end + 1)?[..end];
        std::str::from_utf8(line).map_err(|_| "its data.pkl has a name that is not UTF-8".into())
    }

    fn pop(&mut self) -> Result<Rc<Value>, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack
            .pop()
            .filter(|_| self.stack.len() >= floor)
            .ok_or_else(|| "its data.pkl takes what is not there".into())
    }

    fn push(&mut self, value: Value) {
        self.stack.push(Rc::new(value));
    }

    fn tuple(&mut self, items: Vec<Rc<Value>>) -> Result<(), String> {
        let within = |item: &Rc<Value>| if let Value::Tuple(_, depth) = **item { depth } else { 0 };
        let depth = 1 + items.iter().map(within).max().unwrap_or(0);
        if depth > DEPTH {
            return Err("its data.pkl has tuples within tuples; that of a tensor has two".into());
        }
        self.push(Value::Tuple(items, depth));
        Ok(())
    }

    fn run(&mut self, operation: u8) -> Result<(), String> {
        match operation {
            // PROTO
            0x80 => match self.number(1)? {
                2 => {}
                other => return Err(format!("is of pickle protocol {other}; save it with that of torch's default, 2")),
            },
            // GLOBAL
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(global(module, name)?);
            }
            // BINPUT, LONG_BINPUT
            b'q' | b'r' => {
                let place = self.number(if operation == b'q' { 1 } else { 4 })?;
                let last = self.stack.last().ok_or("its data.pkl keeps what is not there")?;
                self.memo.insert(place, Rc::clone(last));
            }
            // BINGET, LONG_BINGET
            b'h' | b'j' => {
                let place = self.number(if operation == b'h' { 1 } else { 4 })?;
                let kept = self.memo.get(&place).ok_or("its data.pkl takes what it has not kept")?;
                self.stack.push(Rc::clone(kept));
            }
            // MARK
            b'(' => self.marks.push(self.stack.len()),
            // BINUNICODE
            b'X' => {
                let length = self.number(4)? as usize;
                let text = std::str::from_utf8(self.bytes(length)?);
                self.push(Value::Text(text.map_err(|_| "its data.pkl has a text that is not UTF-8")?.into()));
            }
            // BININT, BININT1, BININT2
            b'J' => {
                let number = self.number(4)?.cast_signed();
                self.push(Value::Number(number.into()));
            }
            b'K' | b'M' => {
                let number = self.number(if operation == b'K' { 1 } else { 2 })?;
                self.push(Value::Number(number.into()));
            }
            // LONG1: a storage of 2^31 numbers or more would have no room here.
            0x8a => {
                let length = self.number(1)? as usize;
                let bytes = self.bytes(length)?;
                if length > 7 || bytes.last().is_some_and(|last| last & 0x80 != 0) {
                    return Err("its data.pkl has a number that is negative or too large".into());
                }
                self.push(Value::Number(bytes.iter().rev().fold(0, |number, byte| number << 8 | i64::from(*byte))));
            }
            // NEWTRUE, NEWFALSE, NONE
            0x88 | 0x89 | b'N' => self.push(Value::Nothing),
            // EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3
            b')' => self.tuple(Vec::new())?,
            0x85..=0x87 => {
                let mut items = (0..operation - 0x84).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                items.reverse();
                self.tuple(items)?;
            }
            // TUPLE
            b't' => {
                let mark = self.marks.pop().filter(|&mark| mark <= self.stack.len());
                let items = self.stack.split_off(mark.ok_or("its data.pkl ends a tuple that has not begun")?);
                self.tuple(items)?;
            }
            // BINPERSID
            b'Q' => {
                let storage = stored(&*self.pop()?)?;
                self.push(storage);
            }
            // REDUCE
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.push(called(&function, &arguments)?);
            }
            other => {
                return Err(format!(
                    "its data.pkl has the operation 0x{other:02x}, which that of a bare tensor does not have; save the tensor \
                     alone, by `torch.save(tensor, file)`"
                ));
            }
        }
        Ok(())
    }
}

fn global(module: &str, name: &str) -> Result<Value, String> {
    match (module, name) {
        ("torch._utils", "_rebuild_tensor_v2") => Ok(Value::Rebuild),
        ("collections", "OrderedDict") => Ok(Value::Ordered),
        ("torch", "FloatStorage") => Ok(Value::Storage(Numbers::F32)),
        ("torch", "HalfStorage") => Ok(Value::Storage(Numbers::F16)),
        ("torch", "BFloat16Storage") => Ok(Value::Storage(Numbers::Bf16)),
        _ => Err(format!(
            "names `{module}.{name}`, which is not among what a bare tensor of float32, float16 or bfloat16 needs, and nothing \
             of a file is run; save the tensor alone, by `torch.save(tensor.float(), file)`"
        )),
    }
}

/// `('storage', torch.FloatStorage, '0', 'cpu', 424)`
fn stored(id: &Value) -> Result<Value, String> {
    if let Value::Tuple(items, _) = id
        && let [word, numbers, key, place, count] = &items[..]
        && let (Value::Text(word), Value::Storage(numbers), Value::Text(key)) = (&**word, &**numbers, &**key)
        && let (Value::Text(_), Value::Number(count)) = (&**place, &**count)
        && let (Ok(count), "storage") = (usize::try_from(*count), &word[..])
    {
        return Ok(Value::Stored { numbers: *numbers, key: key.clone(), count });
    }
    Err("its data.pkl refers to something that is no storage".into())
}

fn called(function: &Value, arguments: &Value) -> Result<Value, String> {
    match (function, arguments) {
        (Value::Ordered, Value::Tuple(items, _)) if items.is_empty() => Ok(Value::Nothing),
        (Value::Rebuild, Value::Tuple(items, _)) => {
            if let [storage, offset, shape, stride, requires_grad, hooks] = &items[..]
                && let (Value::Stored { numbers, key, count }, Value::Number(offset)) = (&**storage, &**offset)
                && let (Value::Nothing, Value::Nothing) = (&**requires_grad, &**hooks)
                && let (Some(shape), Some(stride), Ok(offset)) = (sizes(shape), sizes(stride), usize::try_from(*offset))
            {
                let (numbers, key, count) = (*numbers, key.clone(), *count);
                return Ok(Value::View(View { numbers, key, count, offset, shape, stride }));
            }
            Err("its data.pkl makes a tensor of something else than a storage, an offset, a shape and strides".into())
        }
        _ => Err("its data.pkl calls something that a bare tensor does not need".into()),
    }
}

fn sizes(value: &Value) -> Option<Vec<usize>> {
    let Value::Tuple(items, _) = value else { return None };
    let size = |item: &Rc<Value>| if let Value::Number(size) = **item { usize::try_from(size).ok() } else { None };
    items.iter().map(size).collect()
}
