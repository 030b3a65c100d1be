//! Parquet of other programs: every packing, columns that say nothing, and files that say too much.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array as _, ArrayRef, Int8Array, ListArray, NullArray, RecordBatch, StringArray, StructArray,
    TimestampMillisecondArray, new_null_array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use wherefrom_artifact::{Error, Example};

use crate::chats::{answers, first_of, template};
use crate::{Bench, config, tokenizer_file};

pub(crate) fn write(path: &Path, columns: Vec<(&str, ArrayRef)>, packing: Compression) {
    let batch =
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)));
    let batch = batch.unwrap();
    let properties = WriterProperties::builder().set_compression(packing).build();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn texts(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn list(items: ArrayRef, lengths: &[usize]) -> ArrayRef {
    let item = Arc::new(Field::new("item", items.data_type().clone(), true));
    Arc::new(ListArray::new(item, OffsetBuffer::from_lengths(lengths.iter().copied()), items, None))
}

fn refusal(bench: &Bench, corpus: &Path) -> String {
    let error = bench.tokenize(&config(64), corpus, Some(tokenizer_file())).unwrap_err();
    match error.downcast::<Error>() {
        Ok(Error::Input(message)) => {
            assert!(message.starts_with(&corpus.display().to_string()), "{message}");
            message
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_packing_of_pages_is_read() {
    let packings = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::BROTLI(Default::default()),
        Compression::ZSTD(Default::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
    ];
    for packing in packings {
        let bench = Bench::new();
        let path = bench.folder.path().join("rows.parquet");
        write(&path, vec![("text", texts(&["And the earth", "was without form"]))], packing);
        let tokens = bench.tokenize(&config(64), &path, Some(tokenizer_file())).unwrap();
        let found: Vec<_> = tokens.rows::<Example>().unwrap().map(|row| row.unwrap().text).collect();
        assert_eq!(found, ["And the earth", "was without form"], "{packing:?}");
    }
}

#[test]
fn a_column_that_is_null_everywhere_and_an_unused_field_change_nothing() {
    let bench = Bench::new();
    let path = bench.folder.path().join("id.parquet");
    let columns = vec![("text", texts(&["And", "the earth"])), ("id", Arc::new(NullArray::new(2)) as ArrayRef)];
    write(&path, columns, Compression::SNAPPY);
    let tokens = bench.tokenize(&config(64), &path, Some(tokenizer_file())).unwrap();
    let docs: Vec<_> = tokens.rows::<Example>().unwrap().flat_map(|row| row.unwrap().docs).collect();
    assert_eq!(docs, ["row 0", "row 1"]);

    let turns = |more: Vec<(&str, ArrayRef)>| {
        let fields = [("role", texts(&["user", "assistant"])), ("content", texts(&["Oslo?", "Seven."]))];
        let fields = fields.into_iter().chain(more);
        let field =
            |(name, column): (&str, ArrayRef)| (Arc::new(Field::new(name, column.data_type().clone(), true)), column);
        list(Arc::new(StructArray::from(fields.map(field).collect::<Vec<_>>())), &[2])
    };
    let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ m.tool_calls is defined }}{{ m.time is defined }}|{% endfor %}";
    for more in [
        vec![],
        vec![
            ("name", Arc::new(NullArray::new(2)) as ArrayRef),
            ("tool_calls", Arc::new(NullArray::new(2)) as ArrayRef),
        ],
        vec![
            ("tool_calls", new_null_array(&DataType::Utf8, 2)),
            ("time", Arc::new(TimestampMillisecondArray::from(vec![1, 2])) as ArrayRef),
        ],
    ] {
        let bench = Bench::new();
        let path = bench.folder.path().join("messages.parquet");
        write(&path, vec![("messages", turns(more))], Compression::SNAPPY);
        let chat = template(&bench, &serde_json::json!({"chat_template": source}));
        let example = first_of(&bench, &config(4096), &path, &chat).unwrap();
        assert_eq!(example.text, "user: Oslo?FalseFalse|assistant: Seven.FalseFalse|");
        assert!(answers(&example)[0].contains("Seven."));
    }

    let path = bench.folder.path().join("time.parquet");
    write(&path, vec![("text", Arc::new(TimestampMillisecondArray::from(vec![1])))], Compression::SNAPPY);
    assert!(refusal(&bench, &path).contains("the column `text` is Timestamp"));
}

#[test]
fn what_a_footer_says_is_bounded_by_the_file() {
    // The struct FileMetaData: version, schema, rows, row groups.
    let footer = |elements: &[(&str, &[u8])], groups: &[u8]| {
        let mut bytes = vec![0x15, 0x02, 0x19, 0xfc];
        bytes.extend(varint(elements.len()));
        for (name, children) in elements {
            bytes.extend([0x48, name.len() as u8]);
            bytes.extend(name.bytes());
            bytes.extend([0x15]);
            bytes.extend(*children);
            bytes.push(0);
        }
        bytes.extend([0x16, 0x00, 0x19]);
        bytes.extend(groups);
        bytes.push(0);
        [b"PAR1", &bytes[..], &(bytes.len() as u32).to_le_bytes(), b"PAR1"].concat()
    };
    let deep = vec![("a", &[0x02][..]); 100_000];
    for (what, bytes, fragment) in [
        ("children", footer(&[("root", &[0xfe, 0xff, 0xff, 0xff, 0x0f])], &[0x0c]), "more children than elements"),
        ("depth", footer(&deep, &[0x0c]), "nested more than"),
        ("groups", footer(&[("root", &[0x00])], &[0xfc, 0xff, 0xff, 0xff, 0x07]), "in 1 bytes"),
        ("length", b"PAR1\0\0\0\0\xff\xff\xff\x7fPAR1".to_vec(), "longer than the file"),
        ("magic", b"PAR1 and no more".to_vec(), "does not end in PAR1"),
        ("short", b"PAR1".to_vec(), "too short"),
    ] {
        let bench = Bench::new();
        let message = refusal(&bench, &bench.file(&format!("{what}.parquet"), bytes));
        assert!(message.contains(fragment), "{what}: no `{fragment}` in: {message}");
    }
}

fn varint(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

#[test]
fn a_row_that_a_few_bytes_make_long_is_refused() {
    let bench = Bench::new();
    let zeros: ArrayRef = Arc::new(Int8Array::from(vec![0; 5_000_010]));
    let path = bench.folder.path().join("list.parquet");
    write(&path, vec![("input_ids", list(zeros, &[3, 5_000_000, 7]))], Compression::UNCOMPRESSED);
    assert!(fs::metadata(&path).unwrap().len() < 1 << 16);
    assert!(refusal(&bench, &path).contains("a list of 5000000 items, more than 4194304"));
    // Short rows of as many items are read.
    let zeros: ArrayRef = Arc::new(Int8Array::from(vec![0; 5_000_000]));
    write(&path, vec![("input_ids", list(zeros, &[50_000; 100]))], Compression::UNCOMPRESSED);
    assert_eq!(bench.tokenize(&config(64), &path, None).unwrap().rows::<Example>().unwrap().count(), 100);
    // A text of a dictionary may occur often.
    let path = bench.folder.path().join("text.parquet");
    let long = "x ".repeat(9 << 20);
    write(&path, vec![("text", texts(&["And", &long]))], Compression::ZSTD(Default::default()));
    assert!(fs::metadata(&path).unwrap().len() < 1 << 16);
    assert!(refusal(&bench, &path).contains("text.parquet: row 1: the row is longer than 16 MiB"));
}
