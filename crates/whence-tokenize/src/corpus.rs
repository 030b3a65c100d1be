//! A corpus file as raw rows, read from any row on: JSON lines, or the paragraphs of plain text.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use whence_artifact::bad_input;

/// What some editors put before the first character of a file.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// How rows lie in the file; told by its ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// One JSON object a line; blank lines are skipped.
    JsonLines,
    /// Paragraphs between blank lines.
    Text,
}

/// A corpus file that is there and whose ending is known.
pub(crate) struct Corpus {
    path: PathBuf,
    /// How its rows lie.
    pub(crate) format: Format,
    /// Its length.
    pub(crate) bytes: u64,
}

/// The beginning of a line: its offset, and how many lines come before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    byte: u64,
    line: u64,
}

impl Place {
    /// Bytes from `earlier` to here.
    pub(crate) fn bytes_since(self, earlier: Self) -> u64 {
        self.byte - earlier.byte
    }
}

/// A row before it is understood.
pub(crate) struct RawRow {
    /// The file's line where it begins, from 1.
    pub(crate) line: u64,
    /// Its bytes, without the line end.
    pub(crate) bytes: Vec<u8>,
}

impl Corpus {
    /// Refuses a file that is missing, or whose ending says nothing about its rows.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let metadata = fs::metadata(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => bad_input(format!("{shown}: there is no such file; check the path of `corpus`")),
            _ => bad_input(format!("{shown}: cannot be read ({error}); check the path of `corpus`")),
        })?;
        if metadata.is_dir() {
            return Err(bad_input(format!("{shown}: is a folder; give one corpus file")));
        }
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let format = match &ending[..] {
            "jsonl" | "json" | "ndjson" => Format::JsonLines,
            "txt" | "text" | "md" => Format::Text,
            _ => {
                return Err(bad_input(format!(
                    "{shown}: the ending `{ending}` is not known; give JSON lines (.jsonl, .json, .ndjson) or plain text, \
                     a row per paragraph (.txt, .text, .md), unpacked"
                )));
            }
        };
        Ok(Self { path: path.into(), format, bytes: metadata.len() })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The rows from `place` on.
    pub(crate) fn rows(&self, place: Place) -> Result<Rows<'_>> {
        let mut file = File::open(&self.path)
            .map_err(|error| bad_input(format!("{}: cannot be read ({error})", self.path.display())))?;
        file.seek(SeekFrom::Start(place.byte)).with_context(|| format!("seek in {}", self.path.display()))?;
        Ok(Rows { corpus: self, file: BufReader::with_capacity(1 << 18, file), place })
    }
}

/// Raw rows in order. An error ends them.
pub(crate) struct Rows<'a> {
    corpus: &'a Corpus,
    file: BufReader<File>,
    place: Place,
}

impl Rows<'_> {
    /// Where the next line begins.
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// Up to `count` rows; none at the end of the file.
    pub(crate) fn chunk(&mut self, count: usize) -> Result<Vec<RawRow>> {
        let mut rows = Vec::new();
        while rows.len() < count
            && let Some(row) = self.row().with_context(|| format!("read {}", self.corpus.path.display()))?
        {
            rows.push(row);
        }
        Ok(rows)
    }

    /// The next line with its end, or nothing at the end of the file.
    fn line(&mut self) -> Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let read = self.file.read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(None);
        }
        if self.place.byte == 0 && line.starts_with(BYTE_ORDER_MARK) {
            line.drain(..BYTE_ORDER_MARK.len());
        }
        self.place = Place { byte: self.place.byte + read as u64, line: self.place.line + 1 };
        Ok(Some(line))
    }

    fn row(&mut self) -> Result<Option<RawRow>> {
        let mut row: Option<RawRow> = None;
        while let Some(line) = self.line()? {
            let blank = line.trim_ascii().is_empty();
            match (&mut row, blank) {
                (None, true) => continue,
                (None, false) => row = Some(RawRow { line: self.place.line, bytes: line }),
                (Some(row), false) => row.bytes.extend(line),
                (Some(_), true) => break,
            }
            if self.corpus.format == Format::JsonLines {
                break;
            }
        }
        if let Some(row) = &mut row {
            let end = row.bytes.strip_suffix(b"\n").unwrap_or(&row.bytes);
            let end = end.strip_suffix(b"\r").unwrap_or(end).len();
            row.bytes.truncate(end);
        }
        Ok(row)
    }
}
