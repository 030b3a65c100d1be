//! An artifact in the making: `<key>.draft/`. A part that exists is complete; rerunning is resuming.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::writer::FileWriter;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::disk;
use crate::error::bad_input;
use crate::kinds::{Format, Kind};
use crate::manifest::{Manifest, Part};
use crate::part;
use crate::recipe::Recipe;
use crate::stored::{self, Losses, Stored};

/// The frozen split of a draft.
const PLAN: &str = "plan.json";
/// Files of a draft that are not parts start so.
const SCRATCH: &str = "scratch-";

/// A folder that becomes an artifact by one rename. Held by one process at a time (the store locks it).
pub struct Draft {
    kind: Kind,
    key: String,
    folder: PathBuf,
    metadata: BTreeMap<String, String>,
    summary: BTreeMap<String, Value>,
    provenance: BTreeMap<String, Value>,
    stored: Stored,
}

impl Draft {
    pub(crate) fn open(kind: Kind, key: &str, folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let metadata = BTreeMap::from([
            ("wherefrom.kind".to_string(), kind.name().to_string()),
            ("wherefrom.version".to_string(), kind.version().to_string()),
            ("wherefrom.key".to_string(), key.to_string()),
        ]);
        let (summary, provenance) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { kind, key: key.into(), folder, metadata, summary, provenance, stored: Stored::F32 })
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

    /// The split of the work: made once, read back by every later run of the same draft.
    pub fn plan<T: Serialize + DeserializeOwned>(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let path = self.folder.join(PLAN);
        if path.exists() {
            let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            return serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()));
        }
        let plan = make()?;
        disk::write_atomically(&path, &serde_json::to_vec(&plan)?)?;
        Ok(plan)
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

    /// A fact about this run, for the manifest.
    pub fn provenance(&mut self, name: &str, value: impl Serialize) -> Result<()> {
        self.provenance.insert(name.into(), serde_json::to_value(value)?);
        Ok(())
    }

    /// How the matrices of all parts are stored. The manifest's summary will say what float16 has changed.
    pub fn store(&mut self, stored: Stored) {
        self.stored = stored;
    }

    /// Whether the part is there, and hence complete.
    pub fn has(&self, part: usize) -> bool {
        self.part_path(part).exists()
    }

    /// The file of a part.
    pub fn part_path(&self, part: usize) -> PathBuf {
        self.folder.join(format!("part-{part:05}.{}", self.kind.format().extension()))
    }

    /// Writes one part: temporary name, sync, rename. Columns are matched to the kind's schema by name.
    pub fn write(&self, part: usize, batches: &[RecordBatch]) -> Result<()> {
        self.write_each(part, batches.iter().cloned().map(Ok))
    }

    /// Like [`Draft::write`], taking batches as they come, so that a part never has to lie in memory whole.
    pub fn write_each(&self, part: usize, batches: impl Iterator<Item = Result<RecordBatch>>) -> Result<()> {
        let schema = self.schema();
        let path = self.part_path(part);
        disk::replace(&path, |file| {
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
        .with_context(|| format!("write part {part} of {}", self.kind.name()))
    }

    /// Saves working state (a partial sum) beside the parts; gone once the draft is sealed.
    pub fn checkpoint(&self, name: &str, bytes: &[u8]) -> Result<()> {
        disk::write_atomically(&self.scratch(name), bytes)
    }

    /// Like [`Draft::checkpoint`], for state that should not lie in memory twice.
    pub fn checkpoint_each(&self, name: &str, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        disk::replace(&self.scratch(name), |file| {
            let mut writer = BufWriter::with_capacity(1 << 20, file);
            fill(&mut writer)?;
            Ok(writer.flush()?)
        })
    }

    /// Working state of an earlier run.
    pub fn restore(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.scratch(name);
        if !path.exists() {
            return Ok(None);
        }
        fs::read(&path).map(Some).with_context(|| format!("read {}", path.display()))
    }

    /// Like [`Draft::restore`], to be read piece by piece.
    pub fn restore_each(&self, name: &str) -> Result<Option<impl Read + use<>>> {
        let path = self.scratch(name);
        if !path.exists() {
            return Ok(None);
        }
        let file = File::open(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(Some(BufReader::with_capacity(1 << 20, file)))
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
        let plan: Value = serde_json::from_slice(&fs::read(folder.join(PLAN)).ok()?).ok()?;
        let total = plan.as_array()?.len();
        let done = disk::files(folder).ok()?.iter().filter(|name| name.starts_with("part-")).count();
        let summed = fs::read_to_string(folder.join(format!("{SCRATCH}done"))).ok().and_then(|text| {
            let (done, total) = text.trim().split_once('/')?;
            Some((done.parse().ok()?, total.parse().ok()?))
        });
        Some(summed.unwrap_or((done, total)))
    }

    fn schema(&self) -> SchemaRef {
        let metadata: HashMap<_, _> = self.metadata.clone().into_iter().collect();
        Arc::new(Schema::new_with_metadata(stored::schema(self.kind, self.stored).fields, metadata))
    }

    fn properties(&self) -> Result<WriterProperties> {
        let pairs = self.metadata.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
        Ok(WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
            .set_key_value_metadata(Some(pairs))
            .build())
    }

    /// Checks every part, writes the manifest, takes working files away, and renames the folder to `target`.
    pub(crate) fn seal(mut self, recipe: Recipe, target: &Path) -> Result<()> {
        let mut parts = Vec::new();
        let mut losses = Losses::default();
        for name in disk::files(&self.folder)?.into_iter().filter(|name| !working(name)) {
            let path = self.folder.join(&name);
            let rows = part::check_rows(self.kind, &path)?;
            let bytes = fs::metadata(&path)?.len();
            if self.stored == Stored::F16 {
                losses = losses.and(part::losses(&path)?.unwrap_or_default());
            }
            parts.push(Part { name, rows, bytes, blake3: disk::digest(&path)? });
        }
        if parts.is_empty() {
            return Err(bad_input(format!(
                "nothing was written: {} needs part-00000.{} in {}",
                self.kind.name(),
                self.kind.format().extension(),
                self.folder.display()
            )));
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
            parts,
            summary: self.summary,
            provenance: self.provenance,
            seal: String::new(),
        }
        .write(&self.folder)?;
        finish(&self.folder, target)
    }
}

/// Whether a file of a draft is no part of the artifact.
fn working(name: &str) -> bool {
    name == PLAN || name.starts_with(SCRATCH)
}

/// What is left of a sealing once the manifest is there; a killed process leaves it to the next.
pub(crate) fn finish(folder: &Path, target: &Path) -> Result<()> {
    disk::remove_temporary(folder)?;
    for name in disk::files(folder)?.iter().filter(|name| working(name)) {
        fs::remove_file(folder.join(name))?;
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
