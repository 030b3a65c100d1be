//! Digests of input files, remembered so that a checkpoint is not read again for every plan.
//!
//! ```text
//! <store>/digests/<digest of its path>     what a file looked like when it was digested, and its digest
//! ```
//!
//! A file each, so that processes do not wait for each other and thousands of files cost no more than each on its own.
//! What a file looks like only hints: where anything of it moved, the content is digested again, and the digest decides.

use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::error::bad_input;
use crate::store::disk;

/// A file that was written so shortly before it was digested may be written again without its times moving: clocks of file
/// systems tick every two seconds at the slowest.
const TICK_NS: u128 = 2_000_000_000;

/// Of the store.
const FOLDER: &str = "digests";

/// What the system says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    bytes: u64,
    modified_ns: u128,
    /// Of its inode, which nobody can set: 0 where there is none.
    changed_ns: u128,
    inode: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let modified_ns = modified.map_or(0, |time| time.as_nanos());
        #[cfg(unix)]
        let (changed_ns, inode) = {
            use std::os::unix::fs::MetadataExt as _;
            let [seconds, nanoseconds] = [metadata.ctime(), metadata.ctime_nsec()].map(|time| time.max(0) as u128);
            (1_000_000_000 * seconds + nanoseconds, metadata.ino())
        };
        #[cfg(not(unix))]
        let (changed_ns, inode) = (0, 0);
        Self { bytes: metadata.len(), modified_ns, changed_ns, inode }
    }

    /// When it was last written, as far as the system knows.
    fn written_ns(self) -> u128 {
        if self.changed_ns > 0 { self.changed_ns } else { self.modified_ns }
    }
}

/// An entry of the memo.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    path: PathBuf,
    stamp: Stamp,
    /// When its reading began.
    digested_ns: u128,
    blake3: String,
}

/// BLAKE3 of a file's content, from the memo below `root` where the file looks as it did then.
///
/// # Errors
/// [`crate::Error::Input`] for what is no file, cannot be read, or changes while it is read.
pub(crate) fn digest(root: &Path, path: &Path) -> Result<String> {
    let unread = |error: std::io::Error| bad_input(format!("cannot read {} ({error})", path.display()));
    let stamp = |path: &Path| -> Result<Stamp> {
        let metadata = fs::metadata(path).map_err(unread)?;
        if !metadata.is_file() {
            return Err(bad_input(format!("{} is no file; give the path of one", path.display())));
        }
        Ok(Stamp::of(&metadata))
    };
    let before = stamp(path)?;
    let path = fs::canonicalize(path).map_err(unread)?;
    let entry = entry(root, &path);
    let known = fs::read(&entry).ok().and_then(|text| serde_json::from_slice::<Entry>(&text).ok());
    if let Some(known) = known
        && known.path == path
        && known.stamp == before
        && before.written_ns() + TICK_NS < known.digested_ns
    {
        return Ok(known.blake3);
    }
    let digested_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    let blake3 = disk::digest(&path).map_err(|error| bad_input(format!("{error:#}")))?;
    if stamp(&path)? != before {
        return Err(bad_input(format!("{} changes while it is read; wait until it is whole", path.display())));
    }
    // A lost memo costs another reading, never a wrong key.
    let _unsaved = save(root, &entry, &Entry { path, stamp: before, digested_ns, blake3: blake3.clone() });
    Ok(blake3)
}

/// What moves when a file is written: its size and times. It hints that a file is another; equal stamps are no proof.
///
/// # Errors
/// [`crate::Error::Input`] where there is none.
pub fn written(path: &Path) -> Result<String> {
    let metadata =
        fs::metadata(path).map_err(|error| bad_input(format!("cannot read {} ({error})", path.display())))?;
    let Stamp { bytes, modified_ns, changed_ns, .. } = Stamp::of(&metadata);
    Ok(format!("{bytes} {modified_ns} {changed_ns}"))
}

fn entry(root: &Path, path: &Path) -> PathBuf {
    let name = blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex();
    root.join(FOLDER).join(&name[..32])
}

/// Nothing is created where there is no store yet.
fn save(root: &Path, entry: &Path, known: &Entry) -> Result<()> {
    let temporary = entry.with_extension(format!("{}.tmp", disk::unique()));
    match fs::create_dir(root.join(FOLDER)) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error.into()),
        _ => {}
    }
    fs::write(&temporary, serde_json::to_vec(known)?)?;
    Ok(fs::rename(&temporary, entry)?)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tempfile::TempDir;

    use super::*;

    fn right(bytes: &[u8]) -> String {
        blake3::hash(bytes).to_hex().to_string()
    }

    fn write(path: &Path, bytes: &[u8], modified: SystemTime) {
        fs::write(path, bytes).unwrap();
        fs::File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
    }

    /// Another file with the size and time of the first, as an archive with normalised times unpacks it.
    #[test]
    fn another_file_of_the_same_size_and_time_is_another() {
        let folder = TempDir::new().unwrap();
        let (root, path) = (folder.path(), folder.path().join("model.safetensors"));
        write(&path, b"the first", UNIX_EPOCH);
        assert_eq!(digest(root, &path).unwrap(), right(b"the first"));
        let other = folder.path().join("other");
        write(&other, b"the other", UNIX_EPOCH);
        fs::rename(&other, &path).unwrap();
        assert_eq!(digest(root, &path).unwrap(), right(b"the other"));
        // In place.
        write(&path, b"the third", UNIX_EPOCH);
        assert_eq!(digest(root, &path).unwrap(), right(b"the third"));
    }

    /// Whether the memo is taken is seen by giving it a digest of its own.
    #[test]
    fn the_memo_counts_while_nothing_moved_and_the_file_was_long_written() {
        let folder = TempDir::new().unwrap();
        let (root, path) = (folder.path(), folder.path().join("corpus"));
        fs::write(&path, b"text").unwrap();
        let (text, path) = (right(b"text"), fs::canonicalize(path).unwrap());
        let stamp = Stamp::of(&fs::metadata(&path).unwrap());
        let remembered = |stamp: Stamp, after: u128, of: &Path| {
            let known =
                Entry { path: of.into(), stamp, digested_ns: stamp.written_ns() + after, blake3: "memo".into() };
            save(root, &entry(root, &path), &known).unwrap();
            digest(root, &path).unwrap()
        };
        assert_eq!(remembered(stamp, TICK_NS + 1, &path), "memo");
        assert_eq!(remembered(stamp, TICK_NS, &path), text);
        assert_eq!(remembered(stamp, TICK_NS + 1, Path::new("/other")), text);
        let long = 10 * TICK_NS;
        assert_eq!(remembered(Stamp { bytes: 5, ..stamp }, long, &path), text);
        assert_eq!(remembered(Stamp { modified_ns: stamp.modified_ns + 1, ..stamp }, long, &path), text);
        assert_eq!(remembered(Stamp { inode: stamp.inode + 1, ..stamp }, long, &path), text);
        let changed = Stamp { changed_ns: stamp.changed_ns + 1, ..stamp };
        assert_eq!(remembered(changed, long, &path), text);
        // A memo that is no JSON is as good as none.
        fs::write(entry(root, &path), b"{\"path\": ").unwrap();
        assert_eq!(digest(root, &path).unwrap(), text);
    }

    #[test]
    fn thousands_of_files_cost_no_more_than_each_on_its_own() {
        let folder = TempDir::new().unwrap();
        let paths: Vec<_> = (0..2000).map(|n| folder.path().join(format!("{n}.jsonl"))).collect();
        for path in &paths {
            write(path, path.as_os_str().as_encoded_bytes(), UNIX_EPOCH);
        }
        let start = Instant::now();
        for _ in 0..2 {
            for path in &paths {
                assert_eq!(digest(folder.path(), path).unwrap(), right(path.as_os_str().as_encoded_bytes()));
            }
        }
        // The quadratic memo took 12 s a plan; this is 0.2 s on an idle machine.
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        assert_eq!(fs::read_dir(folder.path().join(FOLDER)).unwrap().count(), 2000);
    }

    #[test]
    fn without_a_store_nothing_is_written_and_what_is_no_file_is_refused() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("corpus");
        fs::write(&path, b"text").unwrap();
        let absent = folder.path().join("no/store");
        assert_eq!(digest(&absent, &path).unwrap(), right(b"text"));
        assert!(!absent.exists());
        let error = digest(folder.path(), folder.path()).unwrap_err().to_string();
        assert!(error.contains("is no file"), "{error}");
        let error = digest(folder.path(), &folder.path().join("absent")).unwrap_err().to_string();
        assert!(error.contains("absent"), "{error}");
    }

    #[test]
    fn processes_share_the_memo() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("corpus");
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        let text = right(&vec![7; 1 << 20]);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..20).for_each(|_| assert_eq!(digest(folder.path(), &path).unwrap(), text)));
            }
        });
    }
}
