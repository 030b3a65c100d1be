//! As much of Thrift's compact protocol as it takes to check sizes and depths before a parser allocates for them.

use std::io::{Error, ErrorKind, Read, Result};

/// Kinds of values, as they are on the wire.
pub(crate) const STRUCT: u8 = 12;
const BINARY: u8 = 8;
const LISTS: [u8; 2] = [9, 10];
const MAP: u8 = 11;
/// Deepest nesting of values.
const DEPTH: u32 = 32;

/// Reads values, from `left` bytes at most.
pub(crate) struct Thrift<R> {
    read: R,
    /// Bytes that may still be read.
    pub(crate) left: u64,
}

pub(crate) fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, what.into())
}

impl<R: Read> Thrift<R> {
    pub(crate) fn new(read: R, left: u64) -> Self {
        Self { read, left }
    }

    fn byte(&mut self) -> Result<u8> {
        self.left = self.left.checked_sub(1).ok_or_else(|| invalid("a header has no end"))?;
        let mut byte = [0];
        self.read.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(invalid("a number has no end"))
    }

    /// A number of 16, 32 or 64 bits.
    pub(crate) fn number(&mut self) -> Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// The next field of a struct, its id and kind; nothing at its end. `last` is the id of the one before.
    pub(crate) fn field(&mut self, last: &mut i64) -> Result<Option<(i64, u8)>> {
        let byte = self.byte()?;
        if byte == 0 {
            return Ok(None);
        }
        let step = i64::from(byte >> 4);
        *last = if step == 0 { self.number()? } else { last.wrapping_add(step) };
        Ok(Some((*last, byte & 0x0f)))
    }

    /// The number of items of a list and their kind.
    pub(crate) fn list(&mut self) -> Result<(u64, u8)> {
        let byte = self.byte()?;
        let count = if byte >> 4 == 15 { self.varint()? } else { u64::from(byte >> 4) };
        if count > self.left {
            return Err(invalid(format!("a list has {count} items in {} bytes", self.left)));
        }
        Ok((count, byte & 0x0f))
    }

    /// Passes over a value of `kind`.
    pub(crate) fn skip(&mut self, kind: u8) -> Result<()> {
        self.skip_at(kind, DEPTH)
    }

    fn skip_at(&mut self, kind: u8, depth: u32) -> Result<()> {
        let depth = depth.checked_sub(1).ok_or_else(|| invalid("a header is nested too deeply"))?;
        match kind {
            1 | 2 => Ok(()),
            3 => self.byte().map(drop),
            4..=6 => self.varint().map(drop),
            7 => self.pass(8),
            BINARY => {
                let bytes = self.varint()?;
                self.pass(bytes)
            }
            kind if LISTS.contains(&kind) => {
                let (count, kind) = self.list()?;
                // Truth values have a byte each in a list.
                let kind = if kind <= 2 { 3 } else { kind };
                (0..count).try_for_each(|_| self.skip_at(kind, depth))
            }
            MAP => {
                let count = self.varint()?;
                let kinds = if count > 0 { self.byte()? } else { 0 };
                (0..count).try_for_each(|_| {
                    self.skip_at(kinds >> 4, depth)?;
                    self.skip_at(kinds & 0x0f, depth)
                })
            }
            STRUCT => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip_at(kind, depth)?;
                }
                Ok(())
            }
            13 => self.pass(16),
            other => Err(invalid(format!("a header has a value of the unknown kind {other}"))),
        }
    }

    fn pass(&mut self, bytes: u64) -> Result<()> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| invalid("a text is longer than its header"))?;
        let passed = std::io::copy(&mut self.read.by_ref().take(bytes), &mut std::io::sink())?;
        if passed == bytes { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }
}
