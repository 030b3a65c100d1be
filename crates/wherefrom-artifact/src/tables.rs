//! Pairs of query and example in a file of the user's, CSV, JSON lines or Parquet: with the names that their numbers stand for
//! and what comes with the examples, or summed by group.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use arrow::array::{
    Array, ArrayRef, DictionaryArray, Float64Array, RecordBatch, StringArray, UInt32Array, UInt64Array, new_null_array,
};
use arrow::buffer::NullBuffer;
use arrow::compute::{concat, take};
use arrow::datatypes::{DataType, SchemaRef, UInt32Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use crate::artifact::{Artifact, open_any};
use crate::cells::{CellColumn, Cells, arrays};
use crate::error::bad_input;
use crate::groups::{Groups, Sum};
use crate::kinds::{ArtifactKind, Columns, Details, Example, Found, Kind, Row, Score, Scores, Tokens};
use crate::manifest::Manifest;
use crate::origin::Fact;
use crate::store::{Store, disk};
use crate::text::beginning;

/// Rows that are turned into arrays at once.
const CHUNK: usize = 1 << 16;
/// What stands before the first `/` of a document's name.
const DOCUMENT: &str = "document";

/// The form of a table in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableFormat {
    /// Comma-separated, with a line of names.
    Csv,
    /// An object a line.
    JsonLines,
    /// Parquet with dictionaries, zstd.
    Parquet,
}

impl TableFormat {
    /// As the ending of the file says.
    pub fn of(path: &Path) -> Option<Self> {
        match &path.extension()?.to_str()?.to_lowercase()[..] {
            "csv" => Some(Self::Csv),
            "jsonl" | "json" | "ndjson" => Some(Self::JsonLines),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }
}

/// Writes the pairs of scores or details, with the names of query and document and what comes with the example.
///
/// # Errors
/// [`crate::Error::Missing`] where the tokens that name the examples are not in the store.
pub fn export_pairs(store: &Store, folder: &Path, format: TableFormat, output: &Path) -> Result<()> {
    match open_any(folder)?.kind {
        Kind::Scores => pairs(store, &Artifact::<Scores>::open(folder)?, format, output),
        Kind::Details => pairs(store, &Artifact::<Details>::open(folder)?, format, output),
        kind => Err(bad_input(format!("{} has no pairs", kind.name()))),
    }
}

/// Writes influence summed by a kept column, or by `document`, what stands before the first `/` of the documents' names.
///
/// # Errors
/// [`crate::Error::Input`] for a column that is not kept, with those that are.
pub fn export_groups(store: &Store, folder: &Path, by: &str, format: TableFormat, output: &Path) -> Result<()> {
    match open_any(folder)?.kind {
        Kind::Scores => groups(store, &Artifact::<Scores>::open(folder)?, by, format, output),
        Kind::Details => groups(store, &Artifact::<Details>::open(folder)?, by, format, output),
        kind => Err(bad_input(format!(
            "--group-by sums the influence of every row, and {} has not all of them; name the scores",
            kind.name()
        ))),
    }
}

/// Pairs with the names of query and document, and what comes with the example.
fn pairs<K: ArtifactKind>(store: &Store, scores: &Artifact<K>, format: TableFormat, output: &Path) -> Result<()> {
    let names = Names::read(store, scores.manifest())?;
    let kept = names.kept(store)?;
    let batches = (0..scores.parts()).flat_map(|part| match scores.batches(part, &["query", "example", "influence"]) {
        Ok(batches) => Box::new(batches) as Box<dyn Iterator<Item = Result<RecordBatch>>>,
        Err(error) => Box::new(std::iter::once(Err(error))),
    });
    write(output, format, batches.map(|batch| names.named(&batch?, &kept)))
}

/// What the numbers of queries and examples stand for.
struct Names {
    tokens: String,
    queries: Arc<StringArray>,
    docs: Arc<StringArray>,
}

impl Names {
    fn read(store: &Store, manifest: &Manifest) -> Result<Self> {
        let origin = manifest.origin();
        let open = |fact| -> Result<Artifact<Tokens>> {
            let key: &String = origin.get(&fact).context("the scores do not say what they were made of")?;
            Artifact::open(&store.folder(Kind::Tokens, key)).with_context(|| {
                format!("the {} that the scores name", if fact == Fact::Tokens { "tokens" } else { "queries" })
            })
        };
        let names = |tokens: &Artifact<Tokens>| -> Result<Arc<StringArray>> {
            let mut chunks: Vec<ArrayRef> = vec![Arc::new(StringArray::from(Vec::<String>::new()))];
            let mut rows = tokens.rows::<Example>()?.peekable();
            while rows.peek().is_some() {
                let chunk: Vec<String> =
                    rows.by_ref().take(CHUNK).map(|row| Ok(row?.docs.join(" + "))).collect::<Result<_>>()?;
                chunks.push(Arc::new(StringArray::from(chunk)));
            }
            joined(&chunks)?.as_any().downcast_ref::<StringArray>().cloned().map(Arc::new).context("texts are texts")
        };
        let tokens = open(Fact::Tokens)?;
        let queries = names(&open(Fact::Queries)?)?;
        Ok(Self { tokens: tokens.key().into(), queries, docs: names(&tokens)? })
    }

    /// The artifacts of columns that were kept of these tokens.
    fn columns(&self, store: &Store) -> Result<Vec<Artifact<Columns>>> {
        let of_these = |manifest: &Manifest| manifest.origin().get(&Fact::Tokens) == Some(&self.tokens);
        let entries = store.list()?.into_iter().filter(|entry| entry.kind == Kind::Columns);
        let found = entries.filter_map(|entry| entry.manifest.ok().filter(of_these));
        found.map(|manifest| Artifact::open(&store.folder(Kind::Columns, &manifest.key))).collect()
    }

    /// Columns by example: where several artifacts have one, it is the same in all.
    fn kept(&self, store: &Store) -> Result<Vec<(String, ArrayRef)>> {
        let mut kept: Vec<(String, ArrayRef)> = Vec::new();
        for columns in self.columns(store)? {
            for (name, array) in by_example(&columns, self.docs.len())? {
                if !kept.iter().any(|(known, _)| *known == name) {
                    kept.push((name, array));
                }
            }
        }
        Ok(kept)
    }

    /// A batch of pairs with names in place of numbers alone. Texts are dictionaries over all examples.
    fn named(&self, batch: &RecordBatch, kept: &[(String, ArrayRef)]) -> Result<RecordBatch> {
        let found = Found(batch);
        let (query, example) = (found.u32("query")?, found.u64("example")?);
        let place = |example: u64| {
            let place = usize::try_from(example).ok().filter(|&place| place < self.docs.len());
            place
                .and_then(|place| u32::try_from(place).ok())
                .with_context(|| format!("the tokens have no example {example}"))
        };
        let places = UInt32Array::from(example.values().iter().map(|&row| place(row)).collect::<Result<Vec<_>>>()?);
        let words = |keys: &UInt32Array, values: ArrayRef| -> Result<ArrayRef> {
            Ok(Arc::new(DictionaryArray::<UInt32Type>::try_new(keys.clone(), values)?))
        };
        let mut columns: Vec<(&str, ArrayRef)> = vec![
            ("query", Arc::new(query.clone())),
            ("query_id", words(query, self.queries.clone())?),
            ("example", Arc::new(example.clone())),
            ("doc", words(&places, self.docs.clone())?),
            ("influence", Arc::new(found.f32("influence")?.clone())),
        ];
        for (name, values) in kept {
            let column = match values.data_type() {
                DataType::Utf8 => words(&places, values.clone())?,
                _ => take(values, &places, None)?,
            };
            columns.push((name, column));
        }
        Ok(RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))?)
    }
}

/// The columns of `count` examples; null where an example has none.
fn by_example(columns: &Artifact<Columns>, count: usize) -> Result<Vec<(String, ArrayRef)>> {
    let mut rows = columns.by_example()?.peekable();
    let Some(Ok((_, first))) = rows.peek() else { return Ok(Vec::new()) };
    let empty = Cells { columns: first.columns.clone(), values: vec![Default::default(); first.columns.len()] };
    let mut chunks: Vec<Vec<ArrayRef>> = vec![Vec::new(); empty.columns.len()];
    for start in (0..count).step_by(CHUNK) {
        let mut chunk = Vec::new();
        for example in start..(start + CHUNK).min(count) {
            let mine = |row: &Result<(u64, Cells)>| row.as_ref().is_ok_and(|(number, _)| *number <= example as u64);
            let cells = match rows.next_if(mine) {
                Some(row) => row?.1,
                None => empty.clone(),
            };
            chunk.push(cells);
        }
        chunks.iter_mut().zip(arrays(chunk.iter())).for_each(|(chunks, (_, array))| chunks.push(array));
    }
    if let Some(Err(error)) = rows.next() {
        return Err(error);
    }
    let names = empty.columns.iter().map(|column: &CellColumn| column.name.clone());
    names.zip(&chunks).map(|(name, chunks)| Ok((name, joined(chunks)?))).collect()
}

fn joined(chunks: &[ArrayRef]) -> Result<ArrayRef> {
    match chunks {
        [] => Ok(new_null_array(&DataType::Utf8, 0)),
        chunks => Ok(concat(&chunks.iter().map(|chunk| &**chunk).collect::<Vec<_>>())?),
    }
}

/// Sums of influence by group, a line for each query and group, the largest first.
fn groups<K: ArtifactKind>(
    store: &Store,
    scores: &Artifact<K>,
    by: &str,
    format: TableFormat,
    output: &Path,
) -> Result<()>
where
    Score: Row<K>,
{
    let names = Names::read(store, scores.manifest())?;
    let groups = grouped(store, &names, by)?;
    let mut sums: std::collections::BTreeMap<u32, Vec<Sum>> = Default::default();
    for row in scores.rows::<Score>()? {
        let row = row?;
        if let Some(group) = groups.of(row.example) {
            sums.entry(row.query).or_insert_with(|| groups.sums())[group].add(row.influence);
        }
    }
    let mut lines: Vec<(u32, usize, Sum, Sum)> = Vec::new();
    for (query, sums) in &sums {
        let mut total = Sum::default();
        sums.iter().for_each(|sum| total.merge(sum));
        let mut order: Vec<usize> = (0..sums.len()).filter(|&group| sums[group].rows > 0).collect();
        order.sort_by(|&left, &right| sums[right].absolute().total_cmp(&sums[left].absolute()).then(left.cmp(&right)));
        lines.extend(order.into_iter().map(|group| (*query, group, sums[group], total)));
    }
    let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
    let numbers = |of: &dyn Fn(&Sum, &Sum) -> f64| -> ArrayRef {
        Arc::new(lines.iter().map(|(.., sum, total)| Some(of(sum, total))).collect::<Float64Array>())
    };
    let query_id = |query: u32| names.queries.value(query as usize);
    let rows_share = |sum: &Sum, total: &Sum| share(sum.rows as f64, total.rows as f64);
    let absolute_share = |sum: &Sum, total: &Sum| share(sum.absolute(), total.absolute());
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("query", Arc::new(lines.iter().map(|(query, ..)| Some(*query)).collect::<UInt32Array>())),
        ("query_id", Arc::new(lines.iter().map(|(query, ..)| Some(query_id(*query))).collect::<StringArray>())),
        (
            "group",
            Arc::new(lines.iter().map(|(_, group, ..)| Some(&groups.labels[*group][..])).collect::<StringArray>()),
        ),
        ("rows", Arc::new(lines.iter().map(|(.., sum, _)| Some(sum.rows)).collect::<UInt64Array>())),
        ("rows_share", numbers(&rows_share)),
        ("influence", numbers(&|sum, _| sum.signed())),
        ("positive", numbers(&|sum, _| sum.positive)),
        ("negative", numbers(&|sum, _| sum.negative)),
        ("absolute", numbers(&|sum, _| sum.absolute())),
        ("absolute_share", numbers(&absolute_share)),
        ("over_rows", numbers(&|sum, total| share(absolute_share(sum, total), rows_share(sum, total)))),
    ];
    write(output, format, std::iter::once(Ok(RecordBatch::try_from_iter(columns)?)))
}

fn grouped(store: &Store, names: &Names, by: &str) -> Result<Groups> {
    let mut groups = Groups::new(by);
    let mut known = Vec::new();
    for columns in names.columns(store)? {
        for row in columns.by_example()? {
            let (example, cells) = row?;
            let Some(cell) = cells.get(by) else {
                known.extend(cells.columns.iter().map(|column| column.name.clone()));
                break;
            };
            groups.add(example, &cell.to_string());
        }
        if !groups.labels.is_empty() {
            return Ok(groups);
        }
    }
    if by == DOCUMENT {
        for (example, doc) in (0..).zip(names.docs.iter().flatten()) {
            groups.add(example, beginning(doc).unwrap_or_default());
        }
        return Ok(groups);
    }
    known.push(DOCUMENT.into());
    known.dedup();
    Err(bad_input(format!(
        "--group-by {by}: no such column is kept of these tokens; there is {}. Add a step with stage = \"columns\", inputs = \
         {{ tokens = \"…\" }} and keep = [\"{by}\"], and run it",
        known.join(", ")
    )))
}

/// Writes a table to a file, which is replaced whole.
fn write(output: &Path, format: TableFormat, batches: impl Iterator<Item = Result<RecordBatch>>) -> Result<()> {
    disk::replace(output, |file| {
        let mut batches = batches.peekable();
        if format == TableFormat::Parquet {
            let schema: SchemaRef = match batches.peek() {
                Some(Ok(first)) => first.schema(),
                _ => Arc::new(arrow::datatypes::Schema::empty()),
            };
            let properties =
                WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?)).build();
            let mut writer = ArrowWriter::try_new(file, schema, Some(properties))?;
            for batch in batches {
                writer.write(&batch?)?;
            }
            writer.close()?;
            return Ok(());
        }
        let mut into = BufWriter::with_capacity(1 << 20, file);
        let mut first = true;
        for batch in batches {
            let batch = batch?;
            match format {
                TableFormat::Csv => csv(&mut into, &batch, first)?,
                _ => json_lines(&mut into, &batch)?,
            }
            first = false;
        }
        Ok(into.flush()?)
    })
}

fn csv(into: &mut impl Write, batch: &RecordBatch, heading: bool) -> Result<()> {
    let quoted = |text: String| match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text,
    };
    if heading {
        let names: Vec<_> = batch.schema_ref().fields().iter().map(|field| quoted(field.name().clone())).collect();
        write!(into, "{}\r\n", names.join(","))?;
    }
    let options = FormatOptions::default();
    let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options));
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    for row in 0..batch.num_rows() {
        let cells: Vec<_> = columns.iter().map(|column| quoted(column.value(row).to_string())).collect();
        write!(into, "{}\r\n", cells.join(","))?;
    }
    Ok(())
}

fn json_lines(into: &mut impl Write, batch: &RecordBatch) -> Result<()> {
    let options = FormatOptions::default();
    let columns = (batch.schema_ref().fields().iter().zip(batch.columns()))
        .map(|(field, column)| {
            let kind = match column.data_type() {
                DataType::Dictionary(_, values) => values,
                kind => kind,
            };
            let bare = kind.is_numeric() || *kind == DataType::Boolean;
            // A dictionary's key is never null, its value may be.
            let nulls = column.logical_nulls();
            Ok((serde_json::to_string(field.name())?, bare, nulls, ArrayFormatter::try_new(column, &options)?))
        })
        .collect::<Result<Vec<_>>>()?;
    for row in 0..batch.num_rows() {
        let cell =
            |(name, bare, nulls, text): &(String, bool, Option<NullBuffer>, ArrayFormatter<'_>)| -> Result<String> {
                let text = text.value(row).to_string();
                Ok(match (nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)), bare) {
                    (true, _) => format!("{name}:null"),
                    (false, true) => format!("{name}:{text}"),
                    (false, false) => format!("{name}:{}", serde_json::to_string(&text)?),
                })
            };
        let cells = columns.iter().map(cell).collect::<Result<Vec<_>>>()?;
        writeln!(into, "{{{}}}", cells.join(","))?;
    }
    Ok(())
}
