//! A file on its way into the cache: `<digest>.incomplete`, which gets its name when it is what the hub lists.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use sha1::{Digest, Sha1};
use sha2::Sha256;

use crate::listing;

/// Between looks whether another process is done.
const PAUSE: Duration = Duration::from_millis(250);

/// The digest that the hub lists: SHA-256 of the content, or git's SHA-1 of a header and the content.
#[derive(Clone)]
enum Hasher {
    Large(Sha256),
    Git(Sha1),
}

impl Hasher {
    fn new(file: &listing::File) -> Self {
        match file.blob.len() {
            64 => Self::Large(Sha256::new()),
            _ => Self::Git(Sha1::new_with_prefix(format!("blob {}\0", file.bytes))),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Large(hasher) => hasher.update(bytes),
            Self::Git(hasher) => hasher.update(bytes),
        }
    }

    fn hex(self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Large(hasher) => hex(&hasher.finalize()),
            Self::Git(hasher) => hex(&hasher.finalize()),
        }
    }
}

/// The beginning of a blob. Holds its lock.
pub(crate) struct Partial<'a> {
    listed: &'a listing::File,
    path: PathBuf,
    blob: PathBuf,
    file: File,
    hasher: Hasher,
    /// Bytes that are here.
    pub(crate) at: u64,
    _lock: Option<File>,
}

impl<'a> Partial<'a> {
    /// Goes on with what an interrupted download left; none if the blob is here, perhaps because another process has just
    /// brought it. `waits` is called once if one is at it.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn open(repository: &Path, listed: &'a listing::File, waits: impl FnOnce()) -> io::Result<Option<Self>> {
        let blobs = repository.join("blobs");
        fs::create_dir_all(&blobs)?;
        let lock = lock(repository, &listed.blob, waits)?;
        let blob = blobs.join(&listed.blob);
        match fs::symlink_metadata(&blob) {
            Ok(found) if found.is_file() && found.len() == listed.bytes => return Ok(None),
            // Of another length: no content of that digest.
            Ok(_) => fs::remove_file(&blob)?,
            Err(_) => {}
        }
        // Without a lock, a name that no other process has.
        let mine = if lock.is_some() { String::new() } else { format!(".{}", wherefrom_artifact::unique()) };
        let path = blobs.join(format!("{}{mine}.incomplete", listed.blob));
        // A link there would be followed.
        if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
            fs::remove_file(&path)?;
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let mut partial = Self { listed, path, blob, file, hasher: Hasher::new(listed), at: 0, _lock: lock };
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = partial.file.read(&mut buffer)?;
            if read == 0 {
                return Ok(Some(partial));
            }
            if partial.at + read as u64 > listed.bytes {
                partial.restart()?;
                return Ok(Some(partial));
            }
            partial.hasher.update(&buffer[..read]);
            partial.at += read as u64;
        }
    }

    /// Bytes that are not here yet.
    pub(crate) fn missing(&self) -> u64 {
        self.listed.bytes - self.at
    }

    /// Forgets what is here.
    pub(crate) fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.hasher, self.at) = (Hasher::new(self.listed), 0);
        Ok(())
    }

    /// Adds what came; no more than [`Partial::missing`].
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Whether all of it is here and is what the hub lists; else what came.
    ///
    /// # Errors
    /// The two digests.
    pub(crate) fn check(&self) -> Result<(), String> {
        let (found, listed) = (self.hasher.clone().hex(), &self.listed.blob);
        let message = || format!("its content is not what the hub lists: digest {found}, listed {listed}");
        if found == *listed { Ok(()) } else { Err(message()) }
    }

    /// Gives the whole file its name.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn publish(self) -> anyhow::Result<()> {
        self.file.sync_all()?;
        wherefrom_artifact::rename(&self.path, &self.blob)
    }

    /// Removes it.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn discard(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

/// The lock that Python's `huggingface_hub` takes; none where the file system has no locks.
fn lock(repository: &Path, blob: &str, waits: impl FnOnce()) -> io::Result<Option<File>> {
    let (Some(cache), Some(name)) = (repository.parent(), repository.file_name()) else { return Ok(None) };
    let locks = cache.join(".locks").join(name);
    fs::create_dir_all(&locks)?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(locks.join(format!("{blob}.lock")))?;
    let mut waits = Some(waits);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::Error(_)) => return Ok(None),
            Err(TryLockError::WouldBlock) => {
                if let Some(waits) = waits.take() {
                    waits();
                }
                sleep(PAUSE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(listed: &listing::File, content: &[u8]) -> String {
        let mut hasher = Hasher::new(listed);
        hasher.update(content);
        hasher.hex()
    }

    /// `git hash-object` and `sha256sum` of the same bytes.
    #[test]
    fn digests_are_those_of_git_and_of_large_file_storage() {
        let listed = |bytes: u64, digits: usize| listing::File { bytes, blob: "0".repeat(digits) };
        assert_eq!(digest(&listed(0, 40), b""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(digest(&listed(6, 40), b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(
            digest(&listed(6, 64), b"hello\n"),
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
        );
    }
}
