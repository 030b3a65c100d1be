//! The files of a checkpoint, and where in them each tensor lies.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Result;
use safetensors::Dtype;
use safetensors::tensor;

use crate::error::bad_input;
use crate::weights::weight_files;

/// Bytes of the longest header, as the format has it.
const LONGEST_HEADER: u64 = 100_000_000;
/// How a file begins that Git LFS left in place of another.
const POINTER: &[u8; 23] = b"version https://git-lfs";

/// A safetensors file that is open.
///
/// It is read at places and never mapped: where somebody truncates it, a read ends in an error and a map in a signal.
#[derive(Debug)]
pub(crate) struct Shard {
    path: PathBuf,
    file: File,
    stamp: Stamp,
}

/// What moves when a file is written.
type Stamp = (u64, Option<SystemTime>);

/// Where a tensor lies.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Number of its file.
    pub(crate) shard: usize,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// First byte in the file.
    pub(crate) at: u64,
    /// Which it is of so many whose columns take turns.
    pub(crate) lane: Option<[usize; 2]>,
    /// Of numbers of 4 bits: the file of their scales, and the first byte there.
    pub(crate) scales: Option<(usize, u64)>,
}

impl Place {
    pub(crate) fn numbers(&self) -> usize {
        self.shape.iter().product()
    }

    /// The numbers from `first` on, in that shape.
    pub(crate) fn part(&self, first: usize, shape: Vec<usize>, lane: Option<[usize; 2]>) -> Self {
        let bytes = if self.dtype == Dtype::F32 { 4 } else { 2 };
        Self { shape, at: self.at + bytes * first as u64, lane, ..self.clone() }
    }

    pub(crate) fn is_float(&self) -> bool {
        matches!(self.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
    }
}

/// Opens the files of a checkpoint and reads their headers.
///
/// # Errors
/// [`crate::BadInput`] for a file that is no safetensors file or not whole, and for a tensor that is there twice.
pub(crate) fn open(folder: &Path) -> Result<(Vec<Shard>, HashMap<String, Place>)> {
    let (mut shards, mut places) = (Vec::new(), HashMap::new());
    for path in weight_files(folder)? {
        open_into(path, &mut shards, &mut places)?;
    }
    Ok((shards, places))
}

/// Opens one more file.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_into(path: PathBuf, shards: &mut Vec<Shard>, places: &mut HashMap<String, Place>) -> Result<()> {
    let shard = Shard::open(path)?;
    let (header, metadata) = shard.header()?;
    for (name, info) in metadata.tensors() {
        let at = header + info.data_offsets.0 as u64;
        let place =
            Place { shard: shards.len(), dtype: info.dtype, shape: info.shape.clone(), at, lane: None, scales: None };
        if places.insert(name.clone(), place).is_some() {
            return Err(bad_input(format!("the tensor `{name}` is there twice, once in {}", shard.path.display())));
        }
    }
    shards.push(shard);
    Ok(())
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self> {
        let unread = |what: &dyn std::fmt::Display| bad_input(format!("cannot read {} ({what})", path.display()));
        // A pipe would be waited for.
        let metadata = std::fs::metadata(&path).map_err(|error| unread(&error))?;
        if !metadata.is_file() {
            return Err(unread(&"it is no file"));
        }
        let file = File::open(&path).map_err(|error| unread(&error))?;
        let stamp = stamp(&file.metadata().map_err(|error| unread(&error))?);
        Ok(Self { path, file, stamp })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the tensors' bytes begin, and what the header says of them.
    fn header(&self) -> Result<(u64, tensor::Metadata)> {
        let broken = |what: &dyn std::fmt::Display| {
            bad_input(format!("not a whole safetensors file ({what}); fetch it again: {}", self.path.display()))
        };
        let bytes = self.stamp.0;
        let mut first = [0; POINTER.len()];
        let known = first.len().min(bytes as usize);
        self.read(&mut first[..known], 0)?;
        if first == *POINTER {
            return Err(bad_input(format!(
                "a pointer of Git LFS in place of the weights; run `git lfs pull` in the folder: {}",
                self.path.display()
            )));
        }
        let Some((length, _)) = first[..known].split_first_chunk() else { return Err(broken(&"it has no header")) };
        let length = u64::from_le_bytes(*length);
        if length > LONGEST_HEADER.min(bytes - 8) {
            return Err(broken(&"its header is longer than it"));
        }
        let mut header = vec![0; length as usize];
        self.read(&mut header, 8)?;
        let metadata: tensor::Metadata = serde_json::from_slice(&header).map_err(|error| broken(&error))?;
        let whole = 8 + length + metadata.data_len() as u64;
        if whole != bytes {
            return Err(broken(&format_args!("it has {bytes} bytes, and its header asks for {whole}")));
        }
        Ok((8 + length, metadata))
    }

    /// Fills `bytes` from the place `at`.
    ///
    /// # Errors
    /// [`crate::BadInput`] where the file is not what it was when it was opened, and where it cannot be read.
    pub(crate) fn read(&self, bytes: &mut [u8], at: u64) -> Result<()> {
        read_exact_at(&self.file, bytes, at).map_err(|error| match self.unchanged() {
            Ok(()) => bad_input(format!("cannot read {} ({error})", self.path.display())),
            Err(changed) => changed,
        })
    }

    /// Refuses a file that was written since it was opened: asked after every read, so that nothing is made of what was
    /// written.
    pub(crate) fn unchanged(&self) -> Result<()> {
        match self.file.metadata() {
            Ok(metadata) if stamp(&metadata) == self.stamp => Ok(()),
            _ => {
                Err(bad_input(format!("{} changed while it was read; run again once it is whole", self.path.display())))
            }
        }
    }
}

fn stamp(metadata: &Metadata) -> Stamp {
    (metadata.len(), metadata.modified().ok())
}

fn read_exact_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match read_at(file, bytes, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                bytes = &mut bytes[read..];
                at += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, bytes, at)
}

#[cfg(windows)]
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, bytes, at)
}
