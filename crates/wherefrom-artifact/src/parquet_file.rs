//! A Parquet file whose sizes, counts and depths are checked before its reader allocates for them.
//!
//! `parquet` believes what a file says of itself: a page of 2 GiB, a struct of two thousand million fields, a schema nested
//! as deep as the footer is long. Here each is bounded by what the file can hold, or by a limit that is said.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read, Result, copy, sink};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, RowGroups, RowSelector,
};
use parquet::arrow::{ProjectionMask, parquet_to_arrow_field_levels};
use parquet::basic::Compression;
use parquet::column::page::PageIterator;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, Length};

use crate::at::{At, read_exact_at};
use crate::caught;
use crate::pages::{CheckedPages, OneColumn};
use crate::thrift::{STRUCT, Thrift, invalid};

const MAGIC: &[u8] = b"PAR1";
/// The length of the footer, and the magic.
const TAIL: u64 = 8;
/// Largest footer: those of a thousand row groups of a hundred columns have some ten.
const FOOTER: u64 = 64 << 20;
/// Largest page, unpacked: DuckDB's have up to 100 MB, others' 1 MiB.
const PAGE: u64 = 128 << 20;
/// Largest header of a page; it holds the least and the largest value.
const HEADER: u64 = 32 << 20;
/// Deepest schema; a list is two levels.
const DEPTH: usize = 48;
/// Fewest bytes that tell of a row group.
const ROW_GROUP: u64 = 8;

/// An open file; to `parquet`, its bytes.
#[derive(Clone)]
pub struct ParquetFile {
    file: Arc<File>,
    bytes: u64,
    /// Where the columns' pages lie, in order, and how they are packed.
    chunks: Arc<[(u64, u64, Compression)]>,
    /// Where the bodies of pages begin whose headers were checked: a reader that has looked ahead goes on from there.
    bodies: Arc<Mutex<HashSet<u64>>>,
}

impl ParquetFile {
    /// The file and what its footer says of it, checked.
    ///
    /// # Errors
    /// What is wrong with it, without its name.
    pub fn open(path: &Path, options: ArrowReaderOptions) -> std::result::Result<(Self, ArrowReaderMetadata), String> {
        let open = || -> Result<Self> {
            let file = crate::open(path)?;
            let bytes = file.metadata()?.len();
            Ok(Self { file: file.into(), bytes, chunks: [].into(), bodies: Arc::default() })
        };
        let mut opened = open().map_err(|error| error.to_string())?;
        opened.check_footer().map_err(|error| error.to_string())?;
        let read = || {
            let metadata = ParquetMetaDataReader::new().parse_and_finish(&opened)?;
            ArrowReaderMetadata::try_new(Arc::new(metadata), options)
        };
        let metadata = caught(read)?.map_err(|error| error.to_string())?;
        opened.chunks = opened.columns(&metadata)?.into();
        Ok((opened, metadata))
    }

    /// Rows of the row group `group`, the columns of `mask` alone, from row `skip` of it on.
    ///
    /// # Errors
    /// What is wrong with the file, without its name; so are the errors of the reader.
    pub fn read(
        &self,
        metadata: &ArrowReaderMetadata,
        mask: ProjectionMask,
        (group, skip): (usize, usize),
        batch: usize,
    ) -> std::result::Result<ParquetRecordBatchReader, String> {
        let read = || {
            let fields = metadata.schema().fields();
            let fields = parquet_to_arrow_field_levels(metadata.parquet_schema(), mask, Some(fields))?;
            let group = Group { file: self.clone(), metadata: metadata.metadata().clone(), group };
            let left = group.num_rows().saturating_sub(skip);
            let selection = (skip > 0).then(|| vec![RowSelector::skip(skip), RowSelector::select(left)].into());
            ParquetRecordBatchReader::try_new_with_row_groups(&fields, &group, batch, selection)
        };
        caught(read)?.map_err(|error| error.to_string())
    }

    /// Items of the longest row of a column of lists in a row group, told without decoding them.
    ///
    /// # Errors
    /// What is wrong with the file, without its name.
    pub fn longest_row(
        &self,
        metadata: &ArrowReaderMetadata,
        group: usize,
        column: usize,
    ) -> std::result::Result<u64, String> {
        let group = metadata.metadata().row_group(group);
        let pages = || CheckedPages::open(self, group.column(column), group.num_rows() as usize)?.longest_row();
        caught(pages)?.map_err(|error| error.to_string())
    }

    /// Walks the footer, whose length stands at the end of the file.
    fn check_footer(&self) -> Result<()> {
        let tail = self.bytes.checked_sub(TAIL).ok_or_else(|| invalid("the file is too short"))?;
        let mut end = [0; TAIL as usize];
        read_exact_at(&self.file, &mut end, tail)?;
        let [a, b, c, d, magic @ ..] = end;
        if magic != MAGIC {
            return Err(invalid("it does not end in PAR1: cut off, or none"));
        }
        let length = u64::from(u32::from_le_bytes([a, b, c, d]));
        let start = tail.checked_sub(length).ok_or_else(|| invalid("its footer is longer than the file"))?;
        if length > FOOTER {
            return Err(invalid(format!("its footer has {length} bytes, more than {FOOTER}")));
        }
        let mut footer = Thrift::new(BufReader::new(At::new(&self.file, start)), length);
        let mut last = 0;
        while let Some((field, kind)) = footer.field(&mut last)? {
            match field {
                2 => check_schema(&mut footer)?,
                4 => {
                    let (count, kind) = footer.list()?;
                    if count > footer.left / ROW_GROUP {
                        return Err(invalid(format!("{count} row groups cannot be in {} bytes", footer.left)));
                    }
                    (0..count).try_for_each(|_| footer.skip(kind))?;
                }
                _ => footer.skip(kind)?,
            }
        }
        Ok(())
    }

    /// Where the pages of every column lie.
    fn columns(&self, metadata: &ArrowReaderMetadata) -> std::result::Result<Vec<(u64, u64, Compression)>, String> {
        let mut chunks = Vec::new();
        for (index, group) in metadata.metadata().row_groups().iter().enumerate() {
            if group.num_rows() < 0 {
                return Err(format!("row group {index} has {} rows", group.num_rows()));
            }
            for column in group.columns() {
                let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
                let offsets = [start, column.data_page_offset(), column.compressed_size(), column.num_values()];
                let end = start.checked_add(column.compressed_size());
                let within = end.and_then(|end| u64::try_from(end).ok()).is_some_and(|end| end <= self.bytes);
                if offsets.iter().any(|number| *number < 0) || !within {
                    return Err(format!(
                        "the column {} of row group {index} lies outside of the file",
                        column.column_path()
                    ));
                }
                chunks.push((start as u64, column.compressed_size() as u64, column.compression()));
            }
        }
        chunks.sort_unstable_by_key(|chunk| (chunk.0, chunk.1));
        Ok(chunks)
    }

    /// Checks the page whose header begins at `start`.
    fn check_page(&self, start: u64) -> Result<()> {
        let after = self.chunks.partition_point(|chunk| chunk.0 <= start);
        let Some(&(begin, bytes, mut packing)) = self.chunks[..after].last() else { return Ok(()) };
        let Some(left) = (begin + bytes).checked_sub(start) else { return Ok(()) };
        let mut header = Thrift::new(BufReader::new(At::new(&self.file, start)), left.min(HEADER));
        let whole = header.left;
        let (mut packed, mut unpacked, mut values, mut levels, mut dictionary) = (0, 0, 0, 0, false);
        let mut last = 0;
        while let Some((field, kind)) = header.field(&mut last)? {
            match (field, kind) {
                (2, 4..=6) => unpacked = header.number()?,
                (3, 4..=6) => packed = header.number()?,
                (5 | 7 | 8, STRUCT) => {
                    dictionary = field == 7;
                    let mut before = 0;
                    while let Some((inner, kind)) = header.field(&mut before)? {
                        match (inner, kind) {
                            (1, 4..=6) => values = header.number()?,
                            // Of a page of the second version: levels are not packed, and it may be not at all.
                            (5 | 6, 4..=6) if field == 8 => levels = header.number()?.saturating_add(levels),
                            (7, 2) if field == 8 => packing = Compression::UNCOMPRESSED,
                            _ => header.skip(kind)?,
                        }
                    }
                }
                (_, kind) => header.skip(kind)?,
            }
        }
        let head = whole - header.left;
        let size = |number: i64| u64::try_from(number).map_err(|_| invalid("a page has a negative size"));
        let (packed, unpacked, values, levels) = (size(packed)?, size(unpacked)?, size(values)?, size(levels)?);
        if packed > 0 {
            self.bodies.lock().unwrap_or_else(PoisonError::into_inner).insert(start + head);
        }
        if packed > left - head || levels > packed {
            return Err(invalid(format!("a page of {packed} bytes does not fit in its column")));
        }
        if unpacked > PAGE {
            return Err(invalid(format!(
                "a page has {unpacked} bytes; those up to {PAGE} are read: write smaller pages"
            )));
        }
        if dictionary && values > unpacked {
            return Err(invalid(format!("a dictionary of {values} values cannot be in {unpacked} bytes")));
        }
        self.check_packing(start + head + levels, packed - levels, unpacked.saturating_sub(levels), packing)
    }

    /// Unpacks a page into nothing where `parquet` would do so without a limit.
    fn check_packing(&self, start: u64, packed: u64, unpacked: u64, packing: Compression) -> Result<()> {
        if unpacked == 0 {
            return Ok(());
        }
        let page = BufReader::new(At::new(&self.file, start)).take(packed);
        let length = match packing {
            Compression::GZIP(_) => {
                copy(&mut flate2::bufread::MultiGzDecoder::new(page).take(unpacked + 1), &mut sink())?
            }
            Compression::BROTLI(_) => {
                copy(&mut brotli::Decompressor::new(page, 1 << 12).take(unpacked + 1), &mut sink())?
            }
            _ => return Ok(()),
        };
        if length > unpacked {
            return Err(invalid(format!("a page unpacks to more than the {unpacked} bytes that it says it has")));
        }
        Ok(())
    }
}

/// Walks the schema: its elements in preorder, each with the number of its children.
fn check_schema<R: Read>(footer: &mut Thrift<R>) -> Result<()> {
    let (count, kind) = footer.list()?;
    if kind != STRUCT {
        return Err(invalid("its schema is no list of elements"));
    }
    // Children that are still to come, by level.
    let mut open: Vec<u64> = Vec::new();
    for element in 0..count {
        let (mut last, mut children) = (0, 0);
        while let Some((field, kind)) = footer.field(&mut last)? {
            if (field, kind) == (5, 5) { children = footer.number()? } else { footer.skip(kind)? }
        }
        let children = u64::try_from(children).ok().filter(|children| *children < count - element);
        let children = children.ok_or_else(|| invalid("its schema has more children than elements"))?;
        while open.last() == Some(&0) {
            open.pop();
        }
        if let Some(left) = open.last_mut() {
            *left -= 1;
        }
        if children > 0 {
            open.push(children);
        }
        if open.len() > DEPTH {
            return Err(invalid(format!("its schema is nested more than {DEPTH} deep")));
        }
    }
    Ok(())
}

/// One row group, as `parquet` reads several.
struct Group {
    file: ParquetFile,
    metadata: Arc<ParquetMetaData>,
    group: usize,
}

impl RowGroups for Group {
    fn num_rows(&self) -> usize {
        self.metadata.row_group(self.group).num_rows() as usize
    }

    fn column_chunks(&self, column: usize) -> parquet::errors::Result<Box<dyn PageIterator>> {
        let chunk = self.metadata.row_group(self.group).column(column);
        Ok(Box::new(OneColumn(Some(CheckedPages::open(&self.file, chunk, self.num_rows())?))))
    }

    fn row_groups(&self) -> Box<dyn Iterator<Item = &RowGroupMetaData> + '_> {
        Box::new(std::iter::once(self.metadata.row_group(self.group)))
    }

    fn metadata(&self) -> &ParquetMetaData {
        &self.metadata
    }
}

impl Length for ParquetFile {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for ParquetFile {
    type T = BufReader<At>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        if !self.bodies.lock().unwrap_or_else(PoisonError::into_inner).remove(&start) {
            self.check_page(start).map_err(|error| ParquetError::General(error.to_string()))?;
        }
        Ok(BufReader::new(At::new(&self.file, start)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.bytes) {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} are not in the file")));
        }
        let mut bytes = vec![0; length];
        read_exact_at(&self.file, &mut bytes, start)?;
        Ok(bytes.into())
    }
}
