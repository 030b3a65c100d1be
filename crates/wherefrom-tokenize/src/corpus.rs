//! A corpus as raw rows, read from any row on, file after file: JSON lines, paragraphs of plain text, rows of Parquet.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use flate2::bufread::MultiGzDecoder;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::bad_input;
use wherefrom_vocabulary::json;
use wherefrom_vocabulary::ordered::{Json, Object};

use crate::refusals::Refusals;
use crate::row::{Names, Row};
use crate::source::{CorpusFile, Format, Found, Packing, conversion, find};
use crate::table::TableRows;
use crate::words;

/// What some editors put before the first character of a file.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
/// Bytes of text after which a chunk of rows is full: long documents do not pile up.
const CHUNK_BYTES: usize = 8 << 20;
/// Buffer of a file.
const BUFFER: usize = 1 << 18;
/// Bytes of the longest row: some three million words.
pub(crate) const LONGEST_ROW: usize = 16 << 20;
/// Rows of a table by which the others are judged.
const FIRST: usize = 64;
/// Times by which packed text is taken to be longer than the file.
const PACKED: f64 = 3.0;
/// Window of `zstd --long=31`, the largest there is: 2 GiB of memory.
const ZSTD_WINDOW: u32 = 31;
/// What other files begin with, and what to do with them.
const OTHERS: [(&[u8], &str); 6] = [
    (b"\xff\xfe", "is UTF-16; save it as UTF-8 (`iconv -f UTF-16 -t UTF-8`)"),
    (b"\xfe\xff", "is UTF-16; save it as UTF-8 (`iconv -f UTF-16 -t UTF-8`)"),
    (b"\x1f\x8b", "is packed by gzip; name it .gz"),
    (b"\x28\xb5\x2f\xfd", "is packed by zstd; name it .zst"),
    (b"PAR1", "is Parquet; name it .parquet"),
    (b"PK\x03\x04", "is a zip archive; unpack it"),
];
/// Rows checked at once.
const CHECKED: usize = 512;
/// Files named where some are passed over.
const NAMED: usize = 5;

/// Files that are there and whose endings are known.
pub(crate) struct Corpus {
    path: PathBuf,
    files: Vec<CorpusFile>,
    /// Files of the folder that are passed over.
    skipped: Vec<String>,
    names: Names,
    /// Rows of a file whose number is a multiple of this are taken.
    every: u64,
    /// Known words that rows have and that are not read: in how many rows, and the first of them.
    unread: Mutex<BTreeMap<String, (u64, Place)>>,
    /// Roles whose column the user has named, and that some row has.
    found: Mutex<BTreeSet<&'static str>>,
}

/// Where a row begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Number of its file.
    file: usize,
    /// Rows of the file before it.
    row: u64,
    /// Bytes of the unpacked file before it; 0 in Parquet.
    byte: u64,
    /// Lines before it; 0 in Parquet.
    line: u64,
    /// Rows of the whole corpus before it.
    #[serde(default)]
    pub(crate) total: u64,
}

/// A row before it is understood.
pub(crate) struct RawRow {
    /// Where it begins.
    pub(crate) place: Place,
    /// What it says.
    pub(crate) raw: Raw,
}

/// What a row says.
pub(crate) enum Raw {
    /// A line of JSON.
    Json(Vec<u8>),
    /// A paragraph.
    Text(Vec<u8>),
    /// A row of a table, or why it is none.
    Object(Result<Object, String>),
}

impl Corpus {
    /// Refuses what is missing, and files whose ending says nothing about their rows.
    pub(crate) fn open(path: &Path, names: Names) -> Result<Self> {
        let Found { files, skipped } = find(path)?;
        let corpus = Self {
            path: path.into(),
            files,
            skipped,
            names,
            every: 1,
            unread: Mutex::default(),
            found: Mutex::default(),
        };
        // A table without a column of interest is found before the first row is read.
        for file in corpus.files.iter().filter(|file| file.format == Format::Parquet) {
            TableRows::open(file, &corpus.names, 0)?;
        }
        Ok(corpus)
    }

    /// Of each file only the rows 0, `every`, 2 `every`, …
    pub(crate) fn every(self, every: u64) -> Self {
        Self { every, ..self }
    }

    /// As the user named it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Which column holds what.
    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// Notes known words of the row at `place` that are not read.
    pub(crate) fn note(&self, place: Place, words: &[String]) {
        if words.is_empty() {
            return;
        }
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        for word in words {
            let (rows, first) = unread.entry(word.clone()).or_insert((0, place));
            (*rows, *first) = (*rows + 1, place.min(*first));
        }
    }

    /// Notes columns that the user has named and that a row has.
    pub(crate) fn note_found(&self, roles: &[&'static str]) {
        if !roles.is_empty() {
            self.found.lock().unwrap_or_else(PoisonError::into_inner).extend(roles);
        }
    }

    /// Refuses columns that the user has named and that none of the rows has which were read.
    pub(crate) fn check_named(&self) -> Result<()> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((role, name)) = self.names.named().find(|(role, _)| !found.contains(role)) else { return Ok(()) };
        let mut known = self.columns()?;
        let kept = Names::kept(vec![name.into()]);
        for raw in self.rows(Place::default()).chunk(1)? {
            if let Raw::Json(line) = &raw.raw {
                known.extend(json::object(line, &|key| kept.reads(key)).map_err(bad_input)?.into_keys());
            }
        }
        let distance = |known: &String| strsim::damerau_levenshtein(known, name);
        let near =
            known.iter().min_by_key(|known| distance(known)).filter(|known| distance(known) <= (name.len() / 3).max(1));
        let remedy = near.map_or_else(|| "name one that is there".into(), |near| format!("did you mean `{near}`?"));
        Err(bad_input(format!(
            "columns: no row of {} has a column `{name}`, which is named for `{role}`; {remedy}",
            self.path.display()
        )))
    }

    /// What of the corpus is not read, though it could seem so.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.skipped.is_empty() {
            let named = self.skipped.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
            let more = self.skipped.len().saturating_sub(NAMED);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            warnings.push(format!("{}: not read: {named}{more}", self.path.display()));
        }
        for (word, (rows, first)) in &*self.unread.lock().unwrap_or_else(PoisonError::into_inner) {
            let rows = if *rows == 1 { "one row".into() } else { format!("{rows} rows") };
            let near = self.names.all().into_iter().find(|name| words::near(name, [&word[..]]).is_some());
            let hint = near.map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
            warnings.push(format!(
                "`{word}` of {rows} is not read and changes nothing{hint} (the first: {})",
                self.shown(*first)
            ));
        }
        warnings
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Bytes of its rows as [`Raw::bytes`] has them, about: of packed files nobody knows.
    pub(crate) fn unpacked_bytes(&self) -> Result<f64> {
        let bytes = |file: &CorpusFile| match (file.format, file.packing) {
            (Format::Parquet, _) => {
                let mut table = TableRows::open(file, &self.names, 0)?;
                let (mut rows, mut bytes) = (0, 0);
                while rows < FIRST
                    && let Some(row) = table.row()?
                {
                    (rows, bytes) = (rows + 1, bytes + Raw::Object(row).bytes());
                }
                Ok(table.count() as f64 * bytes as f64 / rows.max(1) as f64)
            }
            (_, Packing::None) => Ok(file.bytes as f64),
            (_, Packing::Gzip | Packing::Zstd) => Ok(PACKED * file.bytes as f64),
        };
        self.files.iter().map(bytes).sum()
    }

    /// Up to `count` places from the beginning of the corpus to its end, each where a row begins that is taken: at even
    /// distances, or where files begin that are packed, or tables.
    pub(crate) fn places(&self, count: u32) -> Result<Vec<Place>> {
        let step = (self.bytes() / u64::from(count)).max(1);
        let (mut places, mut before, mut next) = (Vec::new(), 0, 0);
        for (number, file) in self.files.iter().enumerate() {
            let plain = file.packing == Packing::None && file.format != Format::Parquet;
            while next < before + file.bytes {
                let byte = if plain { row_after(file, next - before)? } else { 0 };
                let row = if byte > 0 { self.every } else { 0 };
                places.push(Place { file: number, row, byte, ..Place::default() });
                next += step;
            }
            before += file.bytes;
        }
        places.dedup();
        Ok(places)
    }

    /// The columns of all tables.
    pub(crate) fn columns(&self) -> Result<BTreeSet<String>> {
        let tables = self.files.iter().filter(|file| file.format == Format::Parquet);
        let columns = tables.map(|file| Ok(TableRows::open(file, &self.names, 0)?.columns()));
        Ok(columns.collect::<Result<Vec<_>>>()?.concat().into_iter().collect())
    }

    /// `FILE:LINE`, or `FILE: row N` of a table.
    pub(crate) fn shown(&self, place: Place) -> String {
        let file = &self.files[place.file];
        match file.format {
            Format::Parquet => format!("{}: row {}", file.path.display(), place.row),
            _ => format!("{}:{}", file.path.display(), place.line + 1),
        }
    }

    /// The name of a row that has none.
    pub(crate) fn document(&self, place: Place) -> String {
        self.files[place.file].document(place.row)
    }

    /// The number of rows, each of which `check` has passed.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] with the rows that it has not, and where there is none.
    pub(crate) fn check(&self, mut check: impl FnMut(&RawRow) -> Result<(), String>) -> Result<u64> {
        let mut refusals = Refusals::default();
        let mut rows = self.rows(Place::default());
        let mut count = 0;
        loop {
            let chunk = rows.chunk(CHECKED)?;
            if chunk.is_empty() {
                break;
            }
            count += chunk.len() as u64;
            for raw in &chunk {
                if let Err(what) = check(raw) {
                    refusals.add(&self.shown(raw.place), &what);
                }
            }
        }
        refusals.check()?;
        if count == 0 {
            return Err(bad_input(format!("{}: has no rows; give a corpus with one at least", self.path.display())));
        }
        Ok(count)
    }

    /// The rows from `place` on.
    pub(crate) fn rows(&self, place: Place) -> Rows<'_> {
        Rows { corpus: self, place, open: None, read: 0 }
    }
}

enum Open {
    Lines(Box<dyn BufRead + Send>),
    Table(Box<TableRows>),
}

/// Raw rows in order. An error ends them.
pub(crate) struct Rows<'a> {
    corpus: &'a Corpus,
    place: Place,
    open: Option<Open>,
    read: u64,
}

impl Rows<'_> {
    /// Where the next row is looked for.
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// Bytes of the files read so far; of packed files and tables when they are at their end.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.read
    }

    /// Up to `count` rows, or fewer long ones; none at the end of the corpus.
    pub(crate) fn chunk(&mut self, count: usize) -> Result<Vec<RawRow>> {
        let mut rows = Vec::new();
        let mut bytes = 0;
        while rows.len() < count
            && bytes < CHUNK_BYTES
            && let Some(row) = self.row()?
        {
            if row.place.row.is_multiple_of(self.corpus.every) {
                bytes += row.raw.bytes();
                rows.push(row);
            }
        }
        Ok(rows)
    }

    fn row(&mut self) -> Result<Option<RawRow>> {
        while let Some(file) = self.corpus.files.get(self.place.file) {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => self.open(file)?,
            };
            let row = match &mut open {
                Open::Lines(lines) => self.text(file, &mut **lines),
                Open::Table(table) => Ok(table.row()?.map(|row| RawRow { place: self.place, raw: Raw::Object(row) })),
            };
            if let Some(row) = row? {
                self.open = Some(open);
                self.place.row += 1;
                self.place.total += 1;
                return Ok(Some(row));
            }
            if file.packing != Packing::None || file.format == Format::Parquet {
                self.read += file.bytes;
            }
            self.place = Place { file: self.place.file + 1, total: self.place.total, ..Place::default() };
        }
        Ok(None)
    }

    fn open(&self, file: &CorpusFile) -> Result<Open> {
        if file.format == Format::Parquet {
            let table = TableRows::open(file, &self.corpus.names, self.place.row)?;
            return Ok(Open::Table(Box::new(table)));
        }
        let mut opened = File::open(&file.path)
            .map_err(|error| bad_input(format!("{}: cannot be read ({error})", file.path.display())))?;
        let skip = |mut lines: Box<dyn BufRead + Send>| -> std::io::Result<Box<dyn BufRead + Send>> {
            std::io::copy(&mut lines.by_ref().take(self.place.byte), &mut std::io::sink())?;
            Ok(lines)
        };
        let unpacked =
            |error| bad_input(format!("{}: cannot be unpacked ({error}); give the whole file", file.path.display()));
        let mut lines: Box<dyn BufRead + Send> = match file.packing {
            Packing::None => {
                opened
                    .seek(SeekFrom::Start(self.place.byte))
                    .with_context(|| format!("read {}", file.path.display()))?;
                Box::new(BufReader::with_capacity(BUFFER, opened))
            }
            Packing::Gzip => {
                let decoder = MultiGzDecoder::new(BufReader::with_capacity(BUFFER, opened));
                skip(Box::new(BufReader::with_capacity(BUFFER, decoder))).map_err(unpacked)?
            }
            Packing::Zstd => {
                let mut decoder = zstd::Decoder::new(opened).map_err(unpacked)?;
                decoder.window_log_max(ZSTD_WINDOW).map_err(unpacked)?;
                skip(Box::new(BufReader::with_capacity(BUFFER, decoder))).map_err(unpacked)?
            }
        };
        if self.place.byte == 0 {
            let start = lines.fill_buf().map_err(unpacked)?;
            if let Some((_, what)) = OTHERS.iter().find(|(magic, _)| start.starts_with(magic)) {
                return Err(bad_input(format!("{}: {what}", file.path.display())));
            }
        }
        Ok(Open::Lines(lines))
    }

    /// The next line with its end, or nothing at the end of the file.
    fn line(&mut self, file: &CorpusFile, lines: &mut dyn BufRead) -> Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let limited = &mut lines.take(LONGEST_ROW as u64 + 1);
        let read = limited.read_until(b'\n', &mut line).map_err(|error| match file.packing {
            Packing::None => anyhow::Error::from(error).context(format!("read {}", file.path.display())),
            _ => bad_input(format!("{}: cannot be unpacked ({error}); give the whole file", file.path.display())),
        })?;
        self.within(read)?;
        if read == 0 {
            return Ok(None);
        }
        if self.place.byte == 0 && line.starts_with(BYTE_ORDER_MARK) {
            line.drain(..BYTE_ORDER_MARK.len());
        }
        self.place.byte += read as u64;
        self.place.line += 1;
        if file.packing == Packing::None {
            self.read += read as u64;
        }
        Ok(Some(line))
    }

    /// Refuses a row of more bytes than are read.
    fn within(&self, bytes: usize) -> Result<()> {
        if bytes <= LONGEST_ROW {
            return Ok(());
        }
        Err(bad_input(format!("{}: {}", self.corpus.shown(self.place), too_long())))
    }

    fn text(&mut self, file: &CorpusFile, lines: &mut dyn BufRead) -> Result<Option<RawRow>> {
        let mut begun: Option<(Place, Vec<u8>)> = None;
        loop {
            let place = self.place;
            let Some(line) = self.line(file, lines)? else { break };
            let blank = line.trim_ascii().is_empty();
            match (&mut begun, blank) {
                (None, true) => continue,
                (None, false) => begun = Some((place, line)),
                (Some((_, bytes)), false) => {
                    bytes.extend(line);
                    self.within(bytes.len())?;
                }
                (Some(_), true) => break,
            }
            if file.format == Format::JsonLines {
                break;
            }
        }
        let Some((place, mut bytes)) = begun else { return Ok(None) };
        if place.row == 0 {
            check_first(&bytes, file.format)
                .map_err(|what| bad_input(format!("{}: {what}", self.corpus.shown(place).trim_end_matches(":1"))))?;
        }
        let end = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let end = end.strip_suffix(b"\r").unwrap_or(end).len();
        bytes.truncate(end);
        let raw = if file.format == Format::JsonLines { Raw::Json(bytes) } else { Raw::Text(bytes) };
        Ok(Some(RawRow { place, raw }))
    }
}

/// Understands every row of a corpus, and counts them.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] with the files and rows that cannot be read.
pub fn check_rows(corpus: &Path) -> Result<u64> {
    let corpus = Corpus::open(corpus, Names::new("text", &BTreeMap::new())?)?;
    corpus.check(|raw| Row::parse(&raw.raw, corpus.names()).map(drop))
}

/// Where the first line of a plain file begins that does not begin before `byte`.
fn row_after(file: &CorpusFile, byte: u64) -> Result<u64> {
    if byte == 0 {
        return Ok(0);
    }
    let mut opened = File::open(&file.path).with_context(|| format!("read {}", file.path.display()))?;
    opened.seek(SeekFrom::Start(byte - 1))?;
    let mut line = Vec::new();
    let read = BufReader::new(opened).take(LONGEST_ROW as u64).read_until(b'\n', &mut line)?;
    Ok(byte - 1 + read as u64)
}

/// What is said of a row that is longer than [`LONGEST_ROW`].
pub(crate) fn too_long() -> String {
    format!("the row is longer than {} MiB; split it into several", LONGEST_ROW >> 20)
}

/// Refuses a file that is laid out otherwise than its rows are read, by its first row.
fn check_first(row: &[u8], format: Format) -> Result<(), String> {
    let row = row.trim_ascii();
    if row.contains(&b'\r') && !row.contains(&b'\n') && format == Format::Text {
        return Err("its lines end in carriage returns alone; give them line feeds (`tr '\\r' '\\n'`)".into());
    }
    if format != Format::JsonLines {
        return Ok(());
    }
    if !row.starts_with(b"{") && !row.starts_with(b"[") && row.iter().any(|byte| b",\t;".contains(byte)) {
        let shown: String = String::from_utf8_lossy(row).chars().take(40).collect();
        return Err(format!(
            "its first line is no JSON (`{shown}`) but looks like a table; name it .csv and {}",
            conversion("csv", Path::new("FILE.csv")).unwrap_or_default()
        ));
    }
    if row.starts_with(b"[") && !row.ends_with(b"]") {
        return Err("is one JSON array over several lines, not an object a line; `jq -c '.[]'` takes it apart".into());
    }
    if row == b"{" {
        return Err("is JSON over several lines, not an object a line; `jq -c .` puts each object in a line".into());
    }
    if row.contains(&b'\r') {
        return Err("its lines end in carriage returns alone; give them line feeds (`tr '\\r' '\\n'`)".into());
    }
    Ok(())
}

impl Raw {
    /// How much memory it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        fn of(value: &Json) -> usize {
            match value {
                Json::String(text) => text.len(),
                Json::Array(items) => items.iter().map(|item| 32 + of(item)).sum(),
                Json::Object(map) => map.values().map(|value| 32 + of(value)).sum(),
                _ => 0,
            }
        }
        match self {
            Self::Json(bytes) | Self::Text(bytes) => bytes.len(),
            Self::Object(Ok(map)) => map.values().map(of).sum(),
            Self::Object(Err(_)) => 0,
        }
    }
}
