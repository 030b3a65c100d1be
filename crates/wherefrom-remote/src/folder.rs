//! A folder, perhaps of a file system that many machines see.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use wherefrom_artifact::{Remote, create_once, replace};

/// Bytes that are copied at once.
const PIECE: usize = 1 << 22;

#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    address: String,
}

impl Folder {
    pub(crate) fn open(address: &str) -> Self {
        Self { root: address.into(), address: address.into() }
    }

    /// Where a file lies, in a folder that is there.
    fn made(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        let folder = path.parent().context("a file has a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(path)
    }
}

/// `from` to `to`; how many bytes there were.
fn copy(mut from: File, to: &mut File, piece: &dyn Fn(u64)) -> Result<u64> {
    let (mut bytes, mut all) = (vec![0; PIECE], 0);
    loop {
        let length = from.read(&mut bytes)?;
        if length == 0 {
            return Ok(all);
        }
        to.write_all(&bytes[..length])?;
        all += length as u64;
        piece(length as u64);
    }
}

/// What was found; none where there is nothing of that name.
fn found<T>(answer: io::Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(there) => Ok(Some(there)),
        Err(error) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Remote for Folder {
    fn address(&self) -> &str {
        &self.address
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        found(wherefrom_artifact::read(&self.root.join(name)))
    }

    fn length(&self, name: &str) -> Result<Option<u64>> {
        Ok(found(fs::metadata(self.root.join(name)))?.map(|file| file.len()))
    }

    fn fetch(&self, name: &str, bytes: u64, to: &mut File, piece: &dyn Fn(u64)) -> Result<()> {
        let file = wherefrom_artifact::open(&self.root.join(name)).with_context(|| format!("open {name} there"))?;
        match copy(file, to, piece)? {
            all if all == bytes => Ok(()),
            all => bail!("it has {all} bytes and not {bytes}"),
        }
    }

    fn send(&self, name: &str, from: &Path, piece: &dyn Fn(u64)) -> Result<()> {
        replace(&self.made(name)?, |file| copy(wherefrom_artifact::open(from)?, file, piece).map(drop))
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<bool> {
        create_once(&self.made(name)?, |file| Ok(file.write_all(bytes)?))
    }

    fn remove(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(self.root.join(name))?)
    }
}
