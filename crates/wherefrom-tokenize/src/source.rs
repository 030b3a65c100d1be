//! Which files a corpus is: one file, all of a folder, or those that a glob names.
//!
//! Nothing is opened that is no regular file, and nothing is read twice: links that lead in circles end.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, FileType};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result};
use globset::{GlobBuilder, GlobMatcher};
use wherefrom_artifact::bad_input;

/// What a glob has and a path has not, as a rule; a file that is there is never taken for a glob.
const GLOB: [char; 4] = ['*', '?', '[', '{'];
/// Most entries of the folders that are looked through.
const ENTRIES: usize = 1_000_000;
/// Where the machine tells of itself: no corpus lies there, and folders have no end.
const MACHINE: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Files of a data set that tell of it, by the beginnings of their names in lower case; they are read where they are named.
const CARDS: [&str; 13] = [
    "readme",
    "license",
    "licence",
    "copying",
    "notice",
    "changelog",
    "citation",
    "contributing",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
];
/// Endings of data that is not read here.
const OTHER_DATA: [&str; 22] = [
    "csv", "tsv", "arrow", "feather", "orc", "avro", "xlsx", "xls", "pickle", "pkl", "h5", "hdf5", "npy", "npz",
    "tfrecord", "tar", "tgz", "zip", "7z", "bz2", "xz", "lz4",
];

/// What to do with a file of another kind: the line that makes it one that is read, with pandas where nothing else is said.
pub(crate) fn conversion(ending: &str, path: &Path) -> Option<String> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let line = |program: &str, from: &Path, to: &Path| {
        format!("convert it, and give {}: python3 -c \"{program}\" {} {}", to.display(), quoted(from), quoted(to))
    };
    let text = |read: &str| {
        let lines = "orient='records', lines=True, force_ascii=False";
        let program = format!("import sys, pandas; pandas.{read}.to_json(sys.argv[2], {lines})");
        line(&program, path, &beside(path, "jsonl"))
    };
    let table = |read: &str| {
        let program = format!("import sys, pandas; {read}.to_parquet(sys.argv[2], index=False)");
        line(&program, path, &beside(path, "parquet"))
    };
    // As it stands there: 007 is no number, and NA no null.
    let all = "dtype=str, keep_default_na=False";
    Some(match ending {
        "csv" => text(&format!("read_csv(sys.argv[1], {all})")),
        "tsv" => text(&format!("read_csv(sys.argv[1], sep='\\t', {all})")),
        "xlsx" | "xls" => text(&format!("read_excel(sys.argv[1], {all})")),
        "pickle" | "pkl" => table("pandas.DataFrame(pandas.read_pickle(sys.argv[1]))"),
        "orc" => table("pandas.read_orc(sys.argv[1])"),
        // What the library datasets has saved has its state beside it.
        "arrow" if folder.join("state.json").exists() || folder.join("dataset_info.json").exists() => format!(
            "it is of a data set that was saved to disk: {}",
            line(
                "import sys, datasets; datasets.load_from_disk(sys.argv[1]).to_parquet(sys.argv[2])",
                folder,
                &beside(folder, "parquet")
            )
        ),
        "arrow" | "feather" => table("pandas.read_feather(sys.argv[1])"),
        "tar" | "tgz" | "zip" | "7z" | "bz2" | "xz" | "lz4" => "unpack it".into(),
        "npy" | "npz" | "bin" => "write its tokens as JSON lines, {\"input_ids\": [1, 2, 3]} a line".into(),
        _ => return None,
    })
}

/// The same name with another ending, or where that is taken with one more.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let plain = path.with_extension("").with_extension(ending);
    if !plain.exists() { plain } else { path.with_added_extension(ending) }
}

/// A path as a word of a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

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
    Gzip,
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
            let kind = match packed(&path) {
                Packing::None => self::ending(&path),
                // pandas unpacks it itself.
                _ => Some(self::ending(&path.with_extension("")))
                    .filter(|kind| ["csv", "tsv"].contains(&&kind[..]))
                    .unwrap_or_default(),
            };
            if let Some(conversion) = conversion(&kind, &path) {
                return Err(bad_input(format!("{shown}: .{kind} is not read; {conversion}")));
            }
            return Err(bad_input(format!(
                "{shown}: the ending `{ending}` is not known; give JSON lines (.jsonl, .json, .ndjson), Parquet (.parquet) or plain \
                 text, a row per paragraph (.txt, .text, .md); JSON lines and text may be packed by gzip (.gz) or zstd (.zst)"
            )));
        };
        let metadata = fs::metadata(&path).map_err(|error| bad_input(format!("{shown}: cannot be read ({error})")))?;
        if !metadata.is_file() {
            return Err(bad_input(format!("{shown}: is {}, not a file; give a file", kind(metadata.file_type()))));
        }
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
    Ok(find(corpus)?.files)
}

/// What a corpus is, and what of its folder it is not.
pub(crate) struct Found {
    pub(crate) files: Vec<CorpusFile>,
    /// Names of files that are passed over, and why.
    pub(crate) skipped: Vec<String>,
}

pub(crate) fn find(corpus: &Path) -> Result<Found> {
    let shown = corpus.display();
    match fs::metadata(corpus) {
        Ok(metadata) if metadata.is_dir() => return folder(corpus),
        Ok(_) => return Ok(Found { files: vec![CorpusFile::new(String::new(), corpus.into())?], skipped: Vec::new() }),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(bad_input(format!("{shown}: cannot be read ({error}); check the path of `corpus`")));
        }
        Err(_) => {}
    }
    let text = corpus.to_string_lossy();
    if !text.contains(GLOB) {
        let near = near(corpus)
            .map_or_else(|| "check the path of `corpus`".into(), |near| format!("did you mean {}?", near.display()));
        return Err(bad_input(format!("{shown}: there is no such file; {near}")));
    }
    let walk = Walk::of_glob(&text).map_err(|error| bad_input(format!("{shown}: the glob is malformed ({error})")))?;
    let entries = walk.entries()?;
    let named = |path: &Path| corpus.file_name() == path.file_name();
    let matching =
        entries.into_iter().filter(|entry| walk.whole.as_ref().is_some_and(|glob| glob.is_match(&entry.name)));
    let (mut files, mut skipped) = (Vec::new(), Vec::new());
    for Entry { name, path, again } in matching {
        match again {
            Some(first) => skipped.push(format!("{name} (the same file as {first})")),
            None if is_card(&path) && !named(&path) => skipped.push(name),
            None => files.push(CorpusFile::new(name, path)?),
        }
    }
    if files.is_empty() {
        return Err(bad_input(format!(
            "{shown}: the glob matches no file{}; check the path of `corpus`",
            cards(&skipped)
        )));
    }
    Ok(Found { files, skipped })
}

/// The file in the same folder whose name is a slip of the finger away.
fn near(corpus: &Path) -> Option<PathBuf> {
    let name = corpus.file_name()?.to_str()?;
    let folder = corpus.parent().filter(|folder| !folder.as_os_str().is_empty());
    let names = fs::read_dir(folder.unwrap_or(Path::new("."))).ok()?.flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let stem = |name: &str| name.split('.').next().unwrap_or_default().to_string();
    // Two letters that changed places count once; or the same name with another ending.
    let slips = |other: &str| {
        if stem(other) == stem(name) { 1 } else { strsim::osa_distance(other, name) }
    };
    let (slips, near) = names.take(10_000).map(|other| (slips(&other), other)).min()?;
    (slips <= 2 && name.len() > 4 && known(Path::new(&near)).is_some()).then(|| corpus.with_file_name(near))
}

fn folder(corpus: &Path) -> Result<Found> {
    let shown = corpus.display();
    let (mut files, mut skipped): (Vec<CorpusFile>, Vec<_>) = Default::default();
    for Entry { name, path, again } in Walk::of_folder(corpus).entries()? {
        let other = OTHER_DATA.contains(&&ending(&path)[..]);
        match again {
            Some(first) => skipped.push(format!("{name} (the same file as {first})")),
            None if is_card(&path) => skipped.push(name),
            None if known(&path).is_some() => files.push(CorpusFile::new(name, path)?),
            None if other => {
                return Err(bad_input(format!(
                    "{shown}: the folder has {name}, which is not read; {}, or name the files that are meant by a glob, such as {}",
                    conversion(&ending(&path), &path).unwrap_or_else(|| "make it JSON lines or Parquet".into()),
                    corpus.join("*.jsonl").display()
                )));
            }
            None => skipped.push(name),
        }
    }
    let Some(first) = files.first() else {
        return Err(bad_input(format!(
            "{shown}: the folder has no corpus file{}; give one with .jsonl, .parquet or .txt files",
            cards(&skipped)
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
    Ok(Found { files, skipped })
}

/// What was passed over, where nothing else is there.
fn cards(skipped: &[String]) -> String {
    if skipped.is_empty() { String::new() } else { format!(" but {}, passed over unless named", skipped.join(", ")) }
}

fn is_card(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let stem =
        |card: &str| name.strip_prefix(card).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-', '_']));
    CARDS.into_iter().any(|card| if card.ends_with(".json") { name == card } else { stem(card) && !data_of(&name) })
}

/// `readme-train.jsonl` is data, whatever its name begins with.
fn data_of(name: &str) -> bool {
    known(Path::new(name)).is_some_and(|(format, _)| format != Format::Text)
}

/// A file that was found.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// Below the base, with `/`.
    name: String,
    path: PathBuf,
    /// The name that it was found by before.
    again: Option<String>,
}

/// A search through folders: of all that is there, or of what a glob can match.
struct Walk {
    base: PathBuf,
    whole: Option<GlobMatcher>,
    /// What the names of folders match, level by level; nothing where all are looked through.
    levels: Option<Vec<GlobMatcher>>,
}

impl Walk {
    fn of_folder(folder: &Path) -> Self {
        Self { base: folder.into(), whole: None, levels: None }
    }

    fn of_glob(text: &str) -> Result<Self, globset::Error> {
        let glob = |text: &str| Ok(GlobBuilder::new(text).literal_separator(true).build()?.compile_matcher());
        // A folder that is there is never taken for a glob, whatever its name.
        let mut base = PathBuf::new();
        for part in Path::new(text) {
            if part.to_string_lossy().contains(GLOB) && !base.join(part).is_dir() {
                break;
            }
            base.push(part);
        }
        let parts: Vec<_> = Path::new(text).iter().skip(base.iter().count()).map(OsStr::to_string_lossy).collect();
        let whole = glob(&parts.join("/"))?;
        // `**` is any number of levels, and an alternative may hold several.
        let even = |part: &str| part.matches('{').count() == part.matches('}').count() && part != "**";
        let levels = if parts.iter().all(|part| even(part)) {
            Some(parts.iter().map(|part| glob(part)).collect::<Result<_, _>>()?)
        } else {
            None
        };
        Ok(Self { base, whole: Some(whole), levels })
    }

    /// Whether a folder `name` of a level may hold what is looked for.
    fn enters(&self, name: &str, level: usize) -> bool {
        self.levels.as_ref().is_none_or(|levels| level + 1 < levels.len() && levels[level].is_match(name))
    }

    /// Every file that is not hidden, by name.
    fn entries(&self) -> Result<Vec<Entry>> {
        let start = if self.base.as_os_str().is_empty() { Path::new(".") } else { self.base.as_path() };
        if !start.is_dir() {
            return Ok(Vec::new());
        }
        let inside = |folder: &Path| MACHINE.iter().any(|machine| folder.starts_with(machine));
        let begins_inside = real(start).is_ok_and(|base| inside(&base));
        let (mut found, mut seen, mut folders) = (Vec::new(), 0, HashSet::new());
        // Folders before links to folders, so that those keep their names that are no link.
        let mut pending = vec![(String::new(), start.to_path_buf(), 0)];
        let mut links = Vec::new();
        while let Some((name, folder, level)) = pending.pop().or_else(|| links.pop()) {
            let place = real(&folder)?;
            let is_machine = level > 0 && !begins_inside && inside(&place);
            if !folders.insert(place) || is_machine {
                continue;
            }
            let listed = fs::read_dir(&folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
            let mut listed =
                listed.map_err(|error| bad_input(format!("{}: cannot be listed ({error})", folder.display())))?;
            listed.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.file_name()));
            seen += listed.len();
            if seen > ENTRIES {
                return Err(bad_input(format!(
                    "{}: more than {ENTRIES} files and folders lie there; name a folder that holds the corpus and little else",
                    start.display()
                )));
            }
            for entry in listed {
                let own = entry.file_name().to_string_lossy().into_owned();
                if own.starts_with('.') {
                    continue;
                }
                let (path, link) = (entry.path(), entry.file_type()?.is_symlink());
                let below = if name.is_empty() { own.clone() } else { format!("{name}/{own}") };
                // A link to nothing is a file that cannot be read.
                let is_folder = fs::metadata(&path).is_ok_and(|metadata| metadata.is_dir());
                match is_folder {
                    true if !self.enters(&own, level) => {}
                    true if link => links.push((below, path, level + 1)),
                    true => pending.push((below, path, level + 1)),
                    false => found.push((link, below, path)),
                }
            }
        }
        // A link to a file that is listed itself is that file once more. Links to one file elsewhere are files of equal content:
        // the cache of the hub keeps them so.
        found.sort_unstable();
        let mut listed: BTreeMap<PathBuf, String> = BTreeMap::new();
        let mut entries = Vec::new();
        for (link, name, path) in found {
            let file = real(&path).unwrap_or_else(|_| path.clone());
            let again = if link { listed.get(&file).cloned() } else { listed.insert(file, name.clone()) };
            entries.push(Entry { name, path, again });
        }
        entries.sort_unstable();
        Ok(entries)
    }
}

/// The path without links.
fn real(path: &Path) -> Result<PathBuf> {
    let path = if path.components().next().is_none_or(|first| first == Component::CurDir) {
        Path::new(".").join(path)
    } else {
        path.into()
    };
    fs::canonicalize(&path).with_context(|| format!("look up {}", path.display()))
}

/// What is no regular file, in words.
fn kind(kind: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt as _;
        if kind.is_fifo() {
            return "a pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
    }
    if kind.is_dir() { "a folder" } else { "something else" }
}

fn ending(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

fn packed(path: &Path) -> Packing {
    match &ending(path)[..] {
        "zst" => Packing::Zstd,
        "gz" => Packing::Gzip,
        _ => Packing::None,
    }
}

fn known(path: &Path) -> Option<(Format, Packing)> {
    let packing = packed(path);
    let inner = if packing == Packing::None { path.to_path_buf() } else { path.with_extension("") };
    let format = match &ending(&inner)[..] {
        "jsonl" | "json" | "ndjson" => Format::JsonLines,
        "txt" | "text" | "md" => Format::Text,
        "parquet" if packing == Packing::None => Format::Parquet,
        _ => return None,
    };
    Some((format, packing))
}
