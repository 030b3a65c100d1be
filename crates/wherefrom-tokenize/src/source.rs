//! Which files a corpus is: one file, all of a folder, or those that a glob names.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use globset::GlobBuilder;
use wherefrom_artifact::bad_input;

/// What a glob has and a path has not, as a rule; a file that is there is never taken for a glob.
const GLOB: [char; 4] = ['*', '?', '[', '{'];

/// How rows lie in a file; told by its ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// One JSON object a line; blank lines are skipped.
    JsonLines,
    /// Paragraphs between blank lines.
    Text,
    /// Rows of a table.
    Parquet,
}

/// What lies around the text of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    None,
    Zstd,
}

/// One file of a corpus.
#[derive(Debug, Clone)]
pub struct CorpusFile {
    /// Its path below the folder or the fixed part of the glob, with `/`; empty where the corpus is this one file. It is in
    /// the names of documents, and so in the key.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    pub(crate) format: Format,
    pub(crate) packing: Packing,
    pub(crate) bytes: u64,
}

impl CorpusFile {
    fn new(name: String, path: PathBuf) -> Result<Self> {
        let shown = path.display();
        let Some((format, packing)) = known(&path) else {
            let ending = path.extension().unwrap_or_default().to_string_lossy();
            return Err(bad_input(format!(
                "{shown}: the ending `{ending}` is not known; give JSON lines (.jsonl, .json, .ndjson), Parquet (.parquet) or plain \
                 text, a row per paragraph (.txt, .text, .md); JSON lines and text may be packed by zstd (.zst)"
            )));
        };
        let metadata = fs::metadata(&path).map_err(|error| bad_input(format!("{shown}: cannot be read ({error})")))?;
        Ok(Self { name, format, packing, bytes: metadata.len(), path })
    }

    /// The default name of its row `row`, counted from 0.
    pub(crate) fn document(&self, row: u64) -> String {
        if self.name.is_empty() {
            return format!("row {row}");
        }
        let mut stem = Path::new(&self.name).to_path_buf();
        if self.packing != Packing::None {
            stem.set_extension("");
        }
        stem.set_extension("");
        format!("{}/{row}", stem.display())
    }
}

/// The files of the corpus `corpus`, by name. Hidden ones are left out.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] where there is no file, one has an ending that says nothing about its rows, or a
/// folder has several formats.
pub fn corpus_files(corpus: &Path) -> Result<Vec<CorpusFile>> {
    let shown = corpus.display();
    if corpus.is_file() {
        return Ok(vec![CorpusFile::new(String::new(), corpus.into())?]);
    }
    if corpus.is_dir() {
        let paths = walk(corpus)?.into_iter().filter(|(_, path)| known(path).is_some());
        let files = paths.map(|(name, path)| CorpusFile::new(name, path)).collect::<Result<Vec<_>>>()?;
        let Some(first) = files.first() else {
            return Err(bad_input(format!(
                "{shown}: the folder has no corpus file; give one with .jsonl, .parquet or .txt files"
            )));
        };
        if let Some(other) = files.iter().find(|file| file.format != first.format) {
            return Err(bad_input(format!(
                "{shown}: the folder has files of several formats ({}, {}); name those that are meant by a glob, such as {}",
                first.name,
                other.name,
                corpus.join("*.parquet").display()
            )));
        }
        return Ok(files);
    }
    let text = corpus.to_string_lossy();
    if !text.contains(GLOB) {
        return Err(bad_input(format!("{shown}: there is no such file; check the path of `corpus`")));
    }
    let glob = GlobBuilder::new(&text).literal_separator(true).build();
    let glob = glob.map_err(|error| bad_input(format!("{shown}: the glob is malformed ({error})")))?.compile_matcher();
    let fixed = |part: &&OsStr| !part.to_string_lossy().contains(GLOB);
    let base: PathBuf = corpus.iter().take_while(fixed).collect();
    let from = if base.as_os_str().is_empty() { Path::new(".") } else { base.as_path() };
    let found = if from.is_dir() { walk(from)? } else { Vec::new() };
    let matching = found.into_iter().filter(|(name, _)| glob.is_match(base.join(name)));
    let files = matching.map(|(name, path)| CorpusFile::new(name, path)).collect::<Result<Vec<_>>>()?;
    if files.is_empty() {
        return Err(bad_input(format!("{shown}: the glob matches no file; check the path of `corpus`")));
    }
    Ok(files)
}

/// Every file below `folder` that is not hidden: its name relative to it, and its path; by name.
fn walk(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    let mut pending = vec![(String::new(), folder.to_path_buf())];
    while let Some((name, folder)) = pending.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let path = entry?.path();
            let own = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if own.starts_with('.') {
                continue;
            }
            let name = if name.is_empty() { own } else { format!("{name}/{own}") };
            if path.is_dir() { pending.push((name, path)) } else { files.push((name, path)) }
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn known(path: &Path) -> Option<(Format, Packing)> {
    let ending = |path: &Path| path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let packing = match &ending(path)[..] {
        "zst" => Packing::Zstd,
        _ => Packing::None,
    };
    let inner = if packing == Packing::None { path.to_path_buf() } else { path.with_extension("") };
    let format = match &ending(&inner)[..] {
        "jsonl" | "json" | "ndjson" => Format::JsonLines,
        "txt" | "text" | "md" => Format::Text,
        "parquet" if packing == Packing::None => Format::Parquet,
        _ => return None,
    };
    Some((format, packing))
}
