//! Files that are there are complete: written under a temporary name, synced, renamed.

use std::fs::{self, File};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::error::bad_input;

/// Writes `bytes` to `path` so that a reader sees the whole content or no file.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, |file| Ok(file.write_all(bytes)?))
}

/// Lets `fill` write a temporary file beside `path`, syncs it and renames it over `path`.
pub fn replace(path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    rename(&filled(path, fill)?, path)
}

/// Like [`replace`], for content that `check` has yet to approve.
pub(crate) fn replace_checked(
    path: &Path,
    fill: impl FnOnce(&mut File) -> Result<()>,
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let temporary = filled(path, fill)?;
    let checked = check(&temporary);
    if checked.is_err() {
        let _left = fs::remove_file(&temporary);
    }
    checked.and_then(|()| rename(&temporary, path))
}

/// A temporary file beside `path`, filled and synced.
fn filled(path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<PathBuf> {
    let temporary = temporary(path);
    let mut file = File::create(&temporary).with_context(|| format!("create {}", temporary.display()))?;
    let filled = fill(&mut file).with_context(|| format!("write {}", temporary.display()));
    let synced = filled.and_then(|()| file.sync_all().with_context(|| format!("sync {}", temporary.display())));
    if synced.is_err() {
        let _left = fs::remove_file(&temporary);
    }
    synced.map(|()| temporary)
}

/// Like [`replace`], for a name that several processes, perhaps on several machines, may give to the same content: what has it
/// keeps it. False if it was there.
pub fn create_once(path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<bool> {
    let temporary = filled(path, fill)?;
    let written = match fs::hard_link(&temporary, path) {
        Ok(()) => sync_folder(path).map(|()| true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        // A file system without hard links: a rename replaces, by the same content.
        Err(_) => rename(&temporary, path).map(|()| true),
    };
    let _gone = fs::remove_file(&temporary);
    written
}

fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).with_context(|| format!("sync {}", folder.display()))
}

/// Renames and syncs the folder, so that the new name survives a power cut.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("rename {} to {}", from.display(), to.display()))?;
    sync_folder(to)
}

/// A name beside `path` that nobody else has: two processes, perhaps on two machines, may write one file at once.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", unique()));
    path.with_file_name(name)
}

/// Sixteen digits that no other process, thread or call has. Process numbers would not do: containers share folders.
pub fn unique() -> String {
    format!("{:016x}", RandomState::new().hash_one(std::process::id()))
}

/// Opens a file that somebody named. To open a pipe waits until somebody writes into it, and devices have no end.
///
/// # Errors
/// That of the system, and for what is no regular file.
pub fn open(path: &Path) -> std::io::Result<File> {
    if fs::metadata(path)?.is_file() {
        return File::open(path);
    }
    Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is no regular file"))
}

/// The whole content of a file, as [`open`] opens it.
///
/// # Errors
/// As [`open`].
pub fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The whole text of a file, as [`open`] opens it.
///
/// # Errors
/// As [`open`], and for what is not UTF-8.
pub fn read_text(path: &Path) -> std::io::Result<String> {
    std::io::read_to_string(open(path)?)
}

/// BLAKE3 of a file's content, hexadecimal. The file is read and not mapped: whoever cuts it short in the meantime gets
/// another digest, and no signal ends this process.
pub fn digest(path: &Path) -> Result<String> {
    let read = || -> std::io::Result<String> {
        let mut file = open(path)?;
        let most = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX).clamp(1, 1 << 23);
        let (mut hasher, mut bytes) = (blake3::Hasher::new(), vec![0; most]);
        loop {
            match file.read(&mut bytes)? {
                0 => return Ok(hasher.finalize().to_hex().to_string()),
                length => hasher.update_rayon(&bytes[..length]),
            };
        }
    };
    match read() {
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
            Err(bad_input(format!("{}: {error}; give a file", path.display())))
        }
        digest => digest.with_context(|| format!("read {}", path.display())),
    }
}

/// Bytes of all files below `path`, or of the file that it is.
pub fn used(path: &Path) -> u64 {
    let mut bytes = 0;
    let mut pending = vec![path.to_path_buf()];
    while let Some(next) = pending.pop() {
        match fs::symlink_metadata(&next) {
            Ok(metadata) if metadata.is_dir() => {
                pending.extend(fs::read_dir(&next).into_iter().flatten().flatten().map(|entry| entry.path()));
            }
            Ok(metadata) => bytes += metadata.len(),
            // Gone in the meantime.
            Err(_) => {}
        }
    }
    bytes
}

/// Removes what an interrupted [`replace`] left.
pub(crate) fn remove_temporary(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "tmp") {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Files below `folder` as paths relative to it, sorted; temporary ones and the manifest left out.
pub fn files(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut pending = vec![folder.to_path_buf()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(&next).with_context(|| format!("list {}", next.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else if let Some(name) = path.strip_prefix(folder).ok().and_then(Path::to_str)
                && !name.ends_with(".tmp")
                && name != crate::manifest::MANIFEST
            {
                names.push(name.to_string());
            }
        }
    }
    names.sort_unstable();
    Ok(names)
}
