//! Reading a file from a place of one's own: several readers of one file share no position.

use std::fs::File;
use std::io::{Read, Result};
use std::sync::Arc;

/// The bytes of a file from `at` on.
pub struct At {
    file: Arc<File>,
    at: u64,
}

impl At {
    pub(crate) fn new(file: &Arc<File>, at: u64) -> Self {
        Self { file: file.clone(), at }
    }
}

impl Read for At {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        let read = read_at(&self.file, bytes, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Fills `bytes` from the place `at`.
pub(crate) fn read_exact_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> Result<()> {
    while !bytes.is_empty() {
        let read = read_at(file, bytes, at)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        bytes = &mut bytes[read..];
        at += read as u64;
    }
    Ok(())
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, bytes, at)
}

#[cfg(windows)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, bytes, at)
}
