//! Arrow IPC files, read block by block. Every offset, length and count that a file states is held against the file before
//! the library that reads it sees it: it takes slices of whatever it is told.

use crate::at::read_exact_at;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef, UnionMode};
use arrow::error::ArrowError;
use arrow::ipc::convert::try_fb_to_schema;
use arrow::ipc::reader::{FileDecoder, read_footer_length};
use arrow::ipc::{Block, Message, MessageHeader, root_as_footer, root_as_message};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use memmap2::Mmap;

/// Bytes of a footer at most. One with 100,000 record batches has 2.4 MB.
const FOOTER: usize = 1 << 28;
/// The largest part of a file that is no record batch: schema, metadata, and lists of buffers.
const HEADER: usize = 1 << 24;
/// What an encapsulated message of today's format begins with.
const CONTINUATION: [u8; 4] = [0xff; 4];

/// Whose a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Sealed, of so many bytes: mapped, so that what is not looked at is not read.
    Sealed(u64),
    /// Another program may still have it open: read, for a mapped file that is cut short ends the process.
    Open,
}

enum Content {
    Mapped(Buffer),
    File(File, usize),
}

/// An opened file.
pub(crate) struct Ipc {
    content: Content,
    pub(crate) schema: SchemaRef,
    /// Of the footer.
    pub(crate) metadata: Vec<(String, String)>,
    blocks: Vec<Block>,
    decoder: FileDecoder,
}

fn wrong(what: impl Into<String>) -> ArrowError {
    ArrowError::IpcError(what.into())
}

fn cut() -> ArrowError {
    wrong("the file is cut short")
}

impl Content {
    fn open(path: &Path, access: Access) -> Result<Self, ArrowError> {
        let file = crate::open(path)?;
        let length = file.metadata()?.len();
        match access {
            Access::Open => Ok(Self::File(file, usize::try_from(length).map_err(|_| cut())?)),
            Access::Sealed(bytes) if bytes != length => Err(wrong(format!("it has {length} bytes, not {bytes}"))),
            // An empty file cannot be mapped.
            Access::Sealed(0) => Err(cut()),
            Access::Sealed(_) => {
                // SAFETY: the map is read-only, and a sealed part is never written again; whoever changes it while it is
                // read gets wrong values, as with any reader, and whoever cuts it short ends this process.
                #[allow(unsafe_code)]
                let map = unsafe { Mmap::map(&file)? };
                Ok(Self::Mapped(Buffer::from(Bytes::from_owner(map))))
            }
        }
    }

    fn length(&self) -> usize {
        match self {
            Self::Mapped(buffer) => buffer.len(),
            Self::File(_, length) => *length,
        }
    }

    /// Bytes `start..start + length`, which lie inside the file.
    fn piece(&self, start: usize, length: usize) -> Result<Buffer, ArrowError> {
        if start.checked_add(length).is_none_or(|end| end > self.length()) {
            return Err(cut());
        }
        match self {
            Self::Mapped(buffer) => Ok(buffer.slice_with_length(start, length)),
            Self::File(file, _) => {
                let mut bytes = vec![0; length];
                read_exact_at(file, &mut bytes, start as u64)?;
                Ok(Buffer::from_vec(bytes))
            }
        }
    }
}

impl Ipc {
    /// Opens the file and reads its footer.
    pub(crate) fn open(path: &Path, access: Access) -> Result<Self, ArrowError> {
        Self::new(Content::open(path, access)?)
    }

    fn new(content: Content) -> Result<Self, ArrowError> {
        // At the end: the footer, its length (4 bytes), and the magic word (6 bytes).
        let end = content.length().checked_sub(10).ok_or_else(cut)?;
        let tail = content.piece(end, 10)?;
        let length = read_footer_length(tail.as_slice().try_into().map_err(|_| cut())?)?;
        if length > FOOTER {
            return Err(wrong(format!("its footer of {length} bytes is too large")));
        }
        let bytes = content.piece(end.checked_sub(length).ok_or_else(cut)?, length)?;
        let footer = root_as_footer(&bytes).map_err(|error| wrong(error.to_string()))?;
        let schema = footer.schema().ok_or_else(|| wrong("it has no schema"))?;
        if !schema.endianness().equals_to_target_endianness() {
            return Err(wrong("its numbers are not little-endian"));
        }
        let schema = Arc::new(try_fb_to_schema(schema)?);
        let pairs = footer.custom_metadata().into_iter().flatten();
        let metadata = pairs.filter_map(|pair| Some((pair.key()?.into(), pair.value()?.into()))).collect();
        let blocks = footer.recordBatches().into_iter().flatten().copied().collect();
        let decoder = FileDecoder::new(schema.clone(), footer.version());
        Ok(Self { content, schema, metadata, blocks, decoder })
    }

    /// The record batches in order, of these columns alone.
    pub(crate) fn batches(mut self, columns: Vec<usize>) -> impl Iterator<Item = Result<RecordBatch, ArrowError>> {
        let read = nodes(&self.schema, &columns);
        self.decoder = self.decoder.with_projection(columns);
        let blocks = std::mem::take(&mut self.blocks);
        blocks.into_iter().filter_map(move |block| self.batch(&block, &read).transpose())
    }

    fn batch(&self, block: &Block, read: &[Option<usize>]) -> Result<Option<RecordBatch>, ArrowError> {
        let number = |stated: i64| usize::try_from(stated).map_err(|_| cut());
        let (start, header, body) =
            (number(block.offset())?, number(block.metaDataLength().into())?, number(block.bodyLength())?);
        if !(8..=HEADER).contains(&header) {
            return Err(wrong(format!("a record batch has a header of {header} bytes")));
        }
        let piece = self.content.piece(start, header.checked_add(body).ok_or_else(cut)?)?;
        let flat = if piece[..4] == CONTINUATION { &piece[8..header] } else { &piece[4..header] };
        let message = root_as_message(flat).map_err(|error| wrong(error.to_string()))?;
        self.check(&message, body, read)?;
        self.decoder.read_record_batch(block, &piece)
    }

    /// Refuses a record batch that says more than its body of so many bytes can hold, and nulls, which no kind has.
    fn check(&self, message: &Message<'_>, body: usize, read: &[Option<usize>]) -> Result<(), ArrowError> {
        if message.header_type() != MessageHeader::RecordBatch {
            return Ok(());
        }
        let batch = message.header_as_record_batch().ok_or_else(|| wrong("a record batch cannot be read"))?;
        if batch.compression().is_some() {
            return Err(wrong("its record batches are compressed; write them uncompressed"));
        }
        // A bit is the least that a value takes.
        let most = 8 * body as u64;
        let fits = |stated: i64| u64::try_from(stated).is_ok_and(|stated| stated <= most);
        if !fits(batch.length()) {
            return Err(wrong(format!("a record batch of {body} bytes has {} rows", batch.length())));
        }
        for (node, column) in batch.nodes().into_iter().flatten().zip(read) {
            let Some(column) = column.map(|column| self.schema.field(column).name()) else { continue };
            if !fits(node.length()) {
                return Err(wrong(format!("column `{column}` of {body} bytes has {} values", node.length())));
            }
            if node.null_count() != 0 {
                return Err(wrong(format!("column `{column}` has nulls; give every row a value")));
            }
        }
        let mut counts = batch.variadicBufferCounts().into_iter().flatten().map(|count| usize::try_from(count).ok());
        let mut widths = Vec::new();
        let buffers = batch.buffers().map_or(0, |buffers| buffers.len());
        for field in self.schema.fields() {
            buffer_widths(field.data_type(), &mut || counts.next()?.filter(|&count| count <= buffers), &mut widths);
        }
        let widths = widths.into_iter().chain(std::iter::repeat(1));
        for (buffer, width) in batch.buffers().into_iter().flatten().zip(widths) {
            let bound = |stated: i64| usize::try_from(stated).ok();
            let range = bound(buffer.offset()).zip(bound(buffer.length()));
            if range.and_then(|(from, length)| from.checked_add(length)).is_none_or(|end| end > body) {
                return Err(wrong("a buffer lies outside its record batch"));
            }
            if !(buffer.length() as usize).is_multiple_of(width) {
                return Err(wrong(format!("a buffer of {} bytes holds values of {width}", buffer.length())));
            }
        }
        Ok(())
    }
}

/// The column of each node of a record batch, a node for each level of its type; none where the column is not read.
fn nodes(schema: &Schema, columns: &[usize]) -> Vec<Option<usize>> {
    let each = schema.fields().iter().enumerate().flat_map(|(column, field)| {
        let read = columns.contains(&column).then_some(column);
        std::iter::repeat_n(read, levels(field.data_type()))
    });
    each.collect()
}

fn levels(data_type: &DataType) -> usize {
    use DataType::{FixedSizeList, LargeList, LargeListView, List, ListView, Map, RunEndEncoded, Struct, Union};
    let of = |field: &FieldRef| levels(field.data_type());
    1 + match data_type {
        List(item) | LargeList(item) | ListView(item) | LargeListView(item) | FixedSizeList(item, _) | Map(item, _) => {
            of(item)
        }
        Struct(fields) => fields.iter().map(of).sum(),
        Union(fields, _) => fields.iter().map(|(_, field)| of(field)).sum(),
        RunEndEncoded(ends, values) => of(ends) + of(values),
        _ => 0,
    }
}

/// The width of the values in each buffer of a column, as the format lays them out; `count` says how many a column of views
/// has beside the usual two. 1 where nobody looks.
fn buffer_widths(data_type: &DataType, count: &mut dyn FnMut() -> Option<usize>, widths: &mut Vec<usize>) {
    use DataType::{
        Binary, BinaryView, FixedSizeList, LargeBinary, LargeList, LargeListView, LargeUtf8, List, ListView, Map, Null,
        RunEndEncoded, Struct, Union, Utf8, Utf8View,
    };
    match data_type {
        Null => {}
        Utf8 | Binary => widths.extend([1, 4, 1]),
        LargeUtf8 | LargeBinary => widths.extend([1, 8, 1]),
        Utf8View | BinaryView => {
            widths.extend([1, 16]);
            widths.extend(std::iter::repeat_n(1, count().unwrap_or(0)));
        }
        List(item) | Map(item, _) => {
            widths.extend([1, 4]);
            buffer_widths(item.data_type(), count, widths);
        }
        LargeList(item) => {
            widths.extend([1, 8]);
            buffer_widths(item.data_type(), count, widths);
        }
        ListView(item) | LargeListView(item) => {
            widths.extend([1, 1, 1]);
            buffer_widths(item.data_type(), count, widths);
        }
        FixedSizeList(item, _) => {
            widths.push(1);
            buffer_widths(item.data_type(), count, widths);
        }
        Struct(fields) => {
            widths.push(1);
            fields.iter().for_each(|field| buffer_widths(field.data_type(), count, widths));
        }
        Union(fields, mode) => {
            widths.extend(std::iter::repeat_n(1, if *mode == UnionMode::Dense { 2 } else { 1 }));
            fields.iter().for_each(|(_, field)| buffer_widths(field.data_type(), count, widths));
        }
        RunEndEncoded(ends, values) => {
            [ends, values].iter().for_each(|field| buffer_widths(field.data_type(), count, widths));
        }
        other => widths.extend([1, other.primitive_width().unwrap_or(1)]),
    }
}
