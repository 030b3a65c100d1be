//! An artifact in the making: `<key>.draft/`. A part that exists is complete; rerunning is resuming.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Seek as _, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result, bail};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::writer::FileWriter;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::batches::{BATCH_BYTES, in_batches};
use crate::cells::CellColumn;
use crate::error::{Error, bad_input};
use crate::ipc::Access;
use crate::kinds::{Format, Kind, Row};
use crate::manifest::{Manifest, Part, part_name};
use crate::origin::{Origin, kept};
use crate::part;
use crate::recipe::{Recipe, canonical_json};
use crate::sound::Sound;
use crate::store::disk;
use crate::store::share::Share;
use crate::stored::{self, Losses, Stored};

/// The frozen split of a draft.
const PLAN: &str = "plan.json";
/// Files of a draft that are not parts start so.
const SCRATCH: &str = "scratch-";
/// Folders that another program fills start so.
const ATTEMPT: &str = "attempt-";
/// Bytes of the digest that ends a checkpoint.
const DIGEST: usize = blake3::OUT_LEN;

/// A folder that becomes an artifact by one rename. Held by one process at a time, or by several that do a share each (the store
/// locks it).
pub struct Draft {
    kind: Kind,
    key: String,
    folder: PathBuf,
    share: Share,
    metadata: BTreeMap<String, String>,
    summary: BTreeMap<String, Value>,
    provenance: BTreeMap<String, Value>,
    stored: Stored,
    origin: Origin,
    /// Columns beside those of the kind.
    kept: Vec<CellColumn>,
    /// Parts that there will be.
    parts: OnceLock<usize>,
}

/// What `plan.json` holds.
#[derive(Serialize, Deserialize)]
struct Plan {
    /// BLAKE3 of the plan's canonical JSON.
    blake3: String,
    plan: Value,
}

impl Plan {
    fn new(plan: Value) -> Self {
        Self { blake3: blake3::hash(canonical_json(&plan).as_bytes()).to_hex().to_string(), plan }
    }

    /// The plan in the file, if it is as it was written.
    fn parse(text: &[u8]) -> Option<Value> {
        let found: Self = serde_json::from_slice(text).ok()?;
        let fresh = Self::new(found.plan);
        (fresh.blake3 == found.blake3).then_some(fresh.plan)
    }
}

impl Draft {
    pub(crate) fn open(kind: Kind, key: &str, folder: PathBuf, share: Share) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        // What a killed process was writing has a name that nobody will write to again; others may be writing theirs.
        if share == Share::WHOLE {
            disk::remove_temporary(&folder)?;
        }
        let metadata = BTreeMap::from([
            ("wherefrom.kind".to_string(), kind.name().to_string()),
            ("wherefrom.version".to_string(), kind.version().to_string()),
            ("wherefrom.key".to_string(), key.to_string()),
        ]);
        let (summary, provenance) = (BTreeMap::new(), BTreeMap::new());
        let (stored, parts) = (Stored::F32, OnceLock::new());
        let (origin, kept) = (Origin::new(), Vec::new());
        Ok(Self { kind, key: key.into(), folder, share, metadata, summary, provenance, stored, origin, kept, parts })
    }

    /// What is being made.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The key it will have.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The folder; writers of [`Format::Folder`] kinds put their files here.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Forgets all that was made before: for work that cannot be resumed.
    pub fn clear(&self) -> Result<()> {
        fs::remove_dir_all(&self.folder).with_context(|| format!("empty {}", self.folder.display()))?;
        fs::create_dir(&self.folder).with_context(|| format!("create {}", self.folder.display()))
    }

    /// An empty folder for another program to fill. All that was there before is forgotten: a program that has outlived
    /// its attempt writes into a folder of its own, where nobody looks any more.
    pub fn attempt(&self) -> Result<PathBuf> {
        self.clear()?;
        let folder = self.folder.join(format!("{ATTEMPT}{}", disk::unique()));
        fs::create_dir(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(folder)
    }

    /// Takes over the files of a folder that [`Draft::attempt`] has made, temporary ones left out.
    pub fn take(&self, attempt: &Path) -> Result<()> {
        for name in disk::files(attempt)? {
            let to = self.folder.join(&name);
            fs::create_dir_all(to.parent().context("a file has a folder")?)?;
            disk::rename(&attempt.join(&name), &to)?;
        }
        fs::remove_dir_all(attempt).with_context(|| format!("remove {}", attempt.display()))
    }

    /// The split of the work: made once, read back by every later run of the same draft. A list has an item for each part;
    /// where it has not, [`Draft::parts`] says how many there will be.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the plan is not as it was written.
    pub fn plan<T: Serialize + DeserializeOwned>(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let path = self.folder.join(PLAN);
        let value = if path.exists() {
            let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            Plan::parse(&text).ok_or_else(|| self.corrupt(PLAN))?
        } else {
            let plan = Plan::new(serde_json::to_value(make()?)?);
            match self.publish(&path, &serde_json::to_vec(&plan)?)? {
                true => plan.plan,
                // Another process was first.
                false => Plan::parse(&fs::read(&path)?).ok_or_else(|| self.corrupt(PLAN))?,
            }
        };
        let parts = value.as_array().map(Vec::len);
        let plan = serde_json::from_value(value).map_err(|_| self.corrupt(PLAN))?;
        if let Some(parts) = parts {
            self.parts(parts);
        }
        Ok(plan)
    }

    /// How many parts there will be: fewer are not sealed. The first to say so is right.
    pub fn parts(&self, parts: usize) {
        let _known = self.parts.set(parts);
    }

    fn corrupt(&self, name: &str) -> Error {
        Error::Corrupt { path: self.folder.clone(), what: format!("{name} of a draft is not as it was written") }
    }

    /// A line of schema metadata for every part. Set it before the first part is written.
    pub fn metadata(&mut self, key: &str, value: impl Into<String>) {
        self.metadata.insert(format!("wherefrom.{key}"), value.into());
    }

    /// A fact about the content, for the manifest: equal whenever the key is equal.
    pub fn summary(&mut self, name: &str, value: impl Serialize) -> Result<()> {
        self.summary.insert(name.into(), serde_json::to_value(value)?);
        Ok(())
    }

    /// A number of the summary so far.
    pub fn count(&self, name: &str) -> Option<u64> {
        self.summary.get(name)?.as_u64()
    }

    /// A fact about this run, for the manifest.
    pub fn provenance(&mut self, name: &str, value: impl Serialize) -> Result<()> {
        self.provenance.insert(name.into(), serde_json::to_value(value)?);
        Ok(())
    }

    /// What it goes back to: what its inputs agree on.
    pub fn origin(&mut self, agreed: Origin) {
        self.origin = kept(self.kind, agreed);
    }

    /// How the matrices of all parts are stored. The manifest's summary will say what float16 has changed.
    pub fn store(&mut self, stored: Stored) {
        self.stored = stored;
    }

    /// Columns of the user's that every part has beside those of the kind. Set them before the first part is written.
    pub fn keep(&mut self, columns: &[CellColumn]) {
        self.kept = columns.to_vec();
    }

    /// Whether nothing is to be done for the part: it is there, and hence complete, or it is another share's.
    pub fn has(&self, part: usize) -> bool {
        !self.share.owns(part) || self.made(part)
    }

    /// Whether the part is there.
    pub fn made(&self, part: usize) -> bool {
        self.part_path(part).exists()
    }

    /// The share of it that this process does.
    pub fn share(&self) -> Share {
        self.share
    }

    /// Writes a file whose content is the same whoever writes it. Where several processes may, what is there is never replaced;
    /// false if it was there.
    fn publish(&self, path: &Path, bytes: &[u8]) -> Result<bool> {
        self.place(path, |file| Ok(file.write_all(bytes)?))
    }

    fn place(&self, path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<bool> {
        match self.share {
            Share::WHOLE => disk::replace(path, fill).map(|()| true),
            _ => disk::create_once(path, fill),
        }
    }

    /// The file of a part.
    pub fn part_path(&self, part: usize) -> PathBuf {
        self.folder.join(part_name(self.kind, part))
    }

    /// Writes one part: temporary name, sync, rename. Columns are matched to the kind's schema by name.
    pub fn write(&self, part: usize, batches: &[RecordBatch]) -> Result<()> {
        self.write_each(part, batches.iter().cloned().map(Ok))
    }

    /// Writes one part of these rows, in batches of bounded size.
    pub fn write_rows<K, R: Row<K>>(&self, part: usize, rows: &[R]) -> Result<()> {
        self.write_each(part, in_batches(rows, BATCH_BYTES))
    }

    /// Like [`Draft::write`], taking batches as they come, so that a part never has to lie in memory whole.
    pub fn write_each(&self, part: usize, batches: impl Iterator<Item = Result<RecordBatch>>) -> Result<()> {
        let schema = self.schema();
        let path = self.part_path(part);
        self.place(&path, |file| {
            match self.kind.format() {
                Format::Parquet => {
                    let mut writer = ArrowWriter::try_new(file, schema.clone(), Some(self.properties()?))?;
                    for batch in batches {
                        writer.write(&by_name(&schema, &batch?)?)?;
                    }
                    writer.close()?;
                }
                Format::Arrow => {
                    let mut writer = FileWriter::try_new(file, &schema)?;
                    let mut losses = Losses::default();
                    for batch in batches {
                        let batch = match self.stored {
                            Stored::F32 => batch?,
                            Stored::F16 => stored::halve(self.kind, &batch?, &mut losses)?,
                        };
                        writer.write(&by_name(&schema, &batch)?)?;
                    }
                    if self.stored == Stored::F16 {
                        writer.write_metadata(part::LOSSES, serde_json::to_string(&losses)?);
                    }
                    writer.finish()?;
                }
                Format::Folder => anyhow::bail!("{} has files, not parts", self.kind.name()),
            }
            Ok(())
        })
        .map(drop)
        .with_context(|| format!("write part {part} of {}", self.kind.name()))
    }

    /// Saves working state (a partial sum) beside the parts; gone once the draft is sealed.
    pub fn checkpoint(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.checkpoint_each(name, |into| Ok(into.write_all(bytes)?))
    }

    /// Like [`Draft::checkpoint`], for state that should not lie in memory twice. A digest ends the file.
    pub fn checkpoint_each(&self, name: &str, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        disk::replace(&self.scratch(name), |file| hashed(file, fill))
    }

    /// Working state that another process will want, written once: what is there is right and stays.
    ///
    /// # Errors
    /// Those of writing.
    pub fn hand_over(&self, name: &str, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        self.place(&self.scratch(name), |file| hashed(file, fill)).map(drop)
    }

    /// Whether such state is there.
    pub fn has_state(&self, name: &str) -> bool {
        Self::has_state_in(&self.folder, name)
    }

    pub(crate) fn has_state_in(folder: &Path, name: &str) -> bool {
        folder.join(format!("{SCRATCH}{name}")).exists()
    }

    /// An empty file to put aside what has no room in memory, and to read it from again; gone once the draft is sealed.
    pub fn aside(&self) -> Result<File> {
        let name = match self.share {
            Share::WHOLE => "aside".into(),
            share => format!("aside-{}-of-{}-{}", share.index, share.of, disk::unique()),
        };
        let path = self.scratch(&name);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        file.with_context(|| format!("create {}", path.display()))
    }

    /// Working state that grows by lines: those that are there, and the file that more are written to. A last line that a
    /// killed process has left without its end is taken away.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn lines(&self, name: &str) -> Result<(Vec<String>, File)> {
        let path = self.scratch(name);
        let open = || -> std::io::Result<_> {
            let mut file = File::options().read(true).append(true).create(true).open(&path)?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            file.set_len(whole as u64)?;
            let text = String::from_utf8_lossy(&bytes[..whole]);
            Ok((text.lines().map(str::to_string).collect(), file))
        };
        open().with_context(|| format!("open {}", path.display()))
    }

    /// Working state of an earlier run.
    ///
    /// # Errors
    /// As [`Draft::restore_each`].
    pub fn restore(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(mut reader) = self.restore_each(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).with_context(|| format!("read {}", self.scratch(name).display()))?;
        Ok(Some(bytes))
    }

    /// Like [`Draft::restore`], to be read piece by piece.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where it is not as it was written.
    pub fn restore_each(&self, name: &str) -> Result<Option<impl Read + use<>>> {
        let path = self.scratch(name);
        if !path.exists() {
            return Ok(None);
        }
        let read = || -> Result<_> {
            let mut file = File::open(&path)?;
            let Some(length) = file.metadata()?.len().checked_sub(DIGEST as u64) else { return Ok(None) };
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader((&mut file).take(length))?;
            let mut digest = [0; DIGEST];
            file.read_exact(&mut digest)?;
            file.rewind()?;
            Ok((hasher.finalize() == digest).then(|| BufReader::with_capacity(1 << 20, file.take(length))))
        };
        let found = read().with_context(|| format!("read {}", path.display()))?;
        found.map(Some).ok_or_else(|| self.corrupt(&format!("{SCRATCH}{name}")).into())
    }

    /// Working state that has served its purpose.
    pub fn forget(&self, name: &str) -> Result<()> {
        let path = self.scratch(name);
        if !path.exists() {
            return Ok(());
        }
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    fn scratch(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{SCRATCH}{name}"))
    }

    /// Parts present and parts planned, where the plan is a list; of sums, what their checkpoint `done` says (`3/12`).
    pub(crate) fn progress(folder: &Path) -> Option<(usize, usize)> {
        let plan = Plan::parse(&fs::read(folder.join(PLAN)).ok()?)?;
        let total = plan.as_array()?.len();
        let done = disk::files(folder).ok()?.iter().filter(|name| name.starts_with("part-")).count();
        let summed = fs::read(folder.join(format!("{SCRATCH}done"))).ok().and_then(|bytes| {
            let text = str::from_utf8(bytes.get(..bytes.len().checked_sub(DIGEST)?)?).ok()?;
            let (done, total) = text.split_once('/')?;
            Some((done.parse().ok()?, total.parse().ok()?))
        });
        Some(summed.unwrap_or((done, total)))
    }

    fn schema(&self) -> SchemaRef {
        let metadata: HashMap<_, _> = self.metadata.clone().into_iter().collect();
        let own = stored::schema(self.kind, self.stored).fields;
        let kept = self.kept.iter().map(|column| Arc::new(column.field()));
        Arc::new(Schema::new_with_metadata(own.iter().cloned().chain(kept).collect::<Vec<_>>(), metadata))
    }

    fn properties(&self) -> Result<WriterProperties> {
        let pairs = self.metadata.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
        Ok(WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
            .set_key_value_metadata(Some(pairs))
            .build())
    }

    /// The files that are its parts, in order.
    fn names(&self) -> Result<Vec<String>> {
        let mut names = disk::files(&self.folder)?;
        names.retain(|name| !working(name));
        let (kind, folder) = (self.kind, self.folder.display());
        if names.is_empty() {
            let first = if kind.format() == Format::Folder { "files".into() } else { part_name(kind, 0) };
            return Err(bad_input(format!("nothing was written: {} needs {first} in {folder}", kind.name())));
        }
        if kind.format() == Format::Folder {
            return Ok(names);
        }
        // By number: `part-100000` comes after `part-99999`.
        let parts: Vec<String> = (0..names.len()).map(|part| part_name(kind, part)).collect();
        let known: BTreeSet<&String> = parts.iter().collect();
        if let Some(other) = names.iter().find(|name| !known.contains(name)) {
            return Err(bad_input(format!(
                "{other} is not one of {} to {}: the parts of {} are numbered from 0 without gaps, and nothing else lies \
                 in {folder}",
                parts[0],
                parts[parts.len() - 1],
                kind.name()
            )));
        }
        match self.parts.get() {
            Some(&planned) if planned != parts.len() => {
                bail!("{} of {planned} parts of {} were written in {folder}", parts.len(), kind.name())
            }
            _ => Ok(parts),
        }
    }

    /// Checks every part, writes the manifest, takes working files away, and renames the folder to `target`.
    pub(crate) fn seal(mut self, recipe: Recipe, target: &Path) -> Result<()> {
        let names = self.names()?;
        let (mut parts, mut losses, mut sound) = (Vec::new(), Losses::default(), Sound::new(self.kind, 0));
        for name in names {
            let path = self.folder.join(&name);
            let rows = part::check_rows(&path, Access::Open, &mut sound)?;
            let bytes = fs::metadata(&path)?.len();
            if self.stored == Stored::F16 {
                losses = losses.and(part::losses(&path)?.unwrap_or_default());
            }
            parts.push(Part { name, rows, bytes, blake3: disk::digest(&path)? });
        }
        if self.stored == Stored::F16 {
            self.summary.insert("stored".into(), losses.summary());
        }
        self.provenance.insert("wherefrom".into(), env!("CARGO_PKG_VERSION").into());
        Manifest {
            kind: self.kind,
            version: self.kind.version(),
            key: self.key,
            recipe,
            origin: self.origin,
            parts,
            summary: self.summary,
            provenance: self.provenance,
            seal: String::new(),
        }
        .write(&self.folder)?;
        finish(&self.folder, target)
    }
}

/// A writer that knows the digest of what it has written.
struct Hashed<W> {
    inner: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// What `fill` writes, and its digest.
fn hashed(file: &mut File, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut writer = Hashed { inner: BufWriter::with_capacity(1 << 20, file), hasher: blake3::Hasher::new() };
    fill(&mut writer)?;
    let digest = writer.hasher.finalize();
    writer.inner.write_all(digest.as_bytes())?;
    Ok(writer.inner.flush()?)
}

/// Whether a file of a draft is no part of the artifact.
fn working(name: &str) -> bool {
    name == PLAN || name.starts_with(SCRATCH) || name.starts_with(ATTEMPT)
}

/// What is left of a sealing once the manifest is there; a killed process leaves it to the next.
pub(crate) fn finish(folder: &Path, target: &Path) -> Result<()> {
    disk::remove_temporary(folder)?;
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let (name, path) = (entry.as_ref().map(|entry| entry.file_name()), entry.as_ref().map(|entry| entry.path()));
        let (Ok(name), Ok(path)) = (name, path) else { continue };
        if name.to_str().is_some_and(working) {
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }?;
        }
    }
    // Without a manifest it is no artifact: a killed `rm` left it.
    if target.exists() {
        fs::remove_dir_all(target).with_context(|| format!("remove {}", target.display()))?;
    }
    disk::rename(folder, target)
}

/// The batch with its columns in the schema's order, found by name.
fn by_name(schema: &SchemaRef, batch: &RecordBatch) -> Result<RecordBatch> {
    let columns = schema
        .fields()
        .iter()
        .map(|field| {
            batch.column_by_name(field.name()).cloned().with_context(|| format!("column `{}` is missing", field.name()))
        })
        .collect::<Result<_>>()?;
    Ok(RecordBatch::try_new(schema.clone(), columns)?)
}
