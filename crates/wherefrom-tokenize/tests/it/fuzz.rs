//! Foreign bytes: whatever is given, it is read or refused by name, and nothing stops or panics. A panic of a library that is
//! caught counts as one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Int32Array, ListArray, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Int32Type};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::{WriterProperties, WriterVersion};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use tempfile::TempDir;
use wherefrom_artifact::{Error, PANICKED};
use wherefrom_tests::{damage, damaged, hold, memory};
use wherefrom_tokenize::{check_rows, encode_with};

use crate::tokenizer_file;

thread_local! {
    /// Where the bytes of this thread lie.
    static FOLDER: TempDir = memory();
}

fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = FOLDER.with(|folder| folder.path().join(name));
    fs::write(&path, bytes).unwrap();
    path
}

/// Reads `bytes` as a corpus; a refusal names its file.
fn corpus_is_read_or_refused(name: &str, bytes: &[u8]) -> Result<(), TestCaseError> {
    let corpus = file(name, bytes);
    check_rows(&corpus).map_or_else(|error| refused(&error, &corpus), |_| Ok(()))
}

/// The error is a refusal that names `file`, and no panic stands behind it.
fn refused(error: &anyhow::Error, file: &Path) -> Result<(), TestCaseError> {
    let Some(Error::Input(message)) = error.downcast_ref() else {
        return Err(TestCaseError::fail(format!("not a refusal: {error:?}")));
    };
    prop_assert!(message.contains(&file.display().to_string()), "no name in: {message}");
    prop_assert!(!message.contains(PANICKED), "a panic: {message}");
    Ok(())
}

const ROWS: &str = r#"{"id": "a", "text": "In the beginning"}
{"prompt": "And", "completion": " the earth", "contrast": " the sea"}
{"mean": [{"prompt": "And", "completion": " was"}]}
{"input_ids": [1, 5, 6, 0], "attention_mask": [1, 1, 1, 0], "labels": [-100, 5, 6, -100], "position_ids": [0, 1, 2, 3]}
{"input_ids": [1, 5], "target_mask": [0, 1], "seq_lengths": [2], "weight": 1.0}
{"text": "\u00e9\ud83d\ude00", "x": {"y": [null, true, -1.5e3]}}
"#;

/// A value as rows have them, of any shape.
fn value(depth: u32) -> BoxedStrategy<serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        (-200_i64..400).prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        ".{0,8}".prop_map(Into::into),
        select(vec!["user", "assistant", "human", "gpt"]).prop_map(Into::into),
    ];
    leaf.prop_recursive(depth, 24, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Into::into),
            vec((key(), inner), 0..5).prop_map(|entries| serde_json::Value::Object(entries.into_iter().collect())),
        ]
    })
    .boxed()
}

fn key() -> impl Strategy<Value = String> {
    let known = [
        "text",
        "prompt",
        "completion",
        "contrast",
        "samples",
        "mean",
        "input_ids",
        "target_mask",
        "id",
        "messages",
        "role",
        "content",
        "from",
        "value",
        "conversations",
        "attention_mask",
        "labels",
        "position_ids",
        "loss_mask",
        "weight",
        "tools",
        "tool_calls",
        "function",
        "arguments",
        "instruction",
        "output",
        "input",
        "chosen",
        "rejected",
        "system",
        "documents",
        "chat_template_kwargs",
        "seq_lengths",
        "token_type_ids",
        "completion_mask",
        "completions",
    ];
    prop_oneof![9 => select(known.to_vec()).prop_map(str::to_string), 1 => ".{0,6}"]
}

fn table(properties: WriterProperties) -> Vec<u8> {
    let texts: ArrayRef =
        Arc::new(StringArray::from_iter((0..40).map(|row| (row % 7 > 0).then(|| format!("And the {}", row % 5)))));
    let lists = (0..40).map(|row| (row % 7 == 0).then(|| (1..4 + row % 3).map(Some).collect::<Vec<_>>()));
    let ids: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists));
    let numbers: ArrayRef = Arc::new(Int32Array::from_iter_values(0..40));
    let field = |name: &str| Arc::new(Field::new(name, DataType::Utf8, true));
    let pair = StructArray::from(vec![(field("name"), texts.clone()), (field("description"), texts.clone())]);
    let columns = [("text", texts), ("input_ids", ids), ("id", numbers), ("tools", Arc::new(pair) as ArrayRef)];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

/// Whole files: every packing, both versions of pages, with and without dictionaries.
static TABLES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let packings = [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::ZSTD(Default::default()),
        Compression::GZIP(Default::default()),
        Compression::BROTLI(Default::default()),
        Compression::LZ4_RAW,
    ];
    let mut tables = Vec::new();
    for packing in packings {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            for dictionary in [false, true] {
                let properties = WriterProperties::builder()
                    .set_compression(packing)
                    .set_writer_version(version)
                    .set_dictionary_enabled(dictionary)
                    .set_max_row_group_row_count(Some(16));
                tables.push(table(properties.build()));
            }
        }
    }
    tables
});

/// A table of `Precompiled` in base64 that makes `a` of `A`.
fn charsmap() -> String {
    let mut units = [0_u32; 256];
    // The path of `A` leads to unit 1, where its text begins at byte 0.
    units[usize::from(b'A')] = u32::from(b'A' ^ 1) << 10 | 1 << 8 | u32::from(b'A');
    let table = [&1024_u32.to_le_bytes()[..], &units.map(u32::to_le_bytes).concat(), b"a\0b\0"].concat();
    let digits: Vec<_> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+', '/']).collect();
    let digit = |bits: &[u8]| digits[bits.iter().fold(0, |number, bit| number << 1 | usize::from(*bit))];
    let bits: Vec<u8> = table.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    bits.chunks_exact(6).map(digit).collect()
}

/// Tokenizers of every kind of part that `tokenizers` reads.
static TOKENIZERS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let own: serde_json::Value = serde_json::from_slice(&fs::read(tokenizer_file()).unwrap()).unwrap();
    let with = |part: &str, value: serde_json::Value| {
        let mut tokenizer = own.clone();
        tokenizer[part] = value;
        tokenizer.to_string().into_bytes()
    };
    let template = serde_json::json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [1], "tokens": ["<|bos|>"]}}});
    let normalizer = serde_json::json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "_"}, {"type": "Replace", "pattern": {"Regex": " +"}, "content": "_"}, {"type": "NFKC"},
        {"type": "Precompiled", "precompiled_charsmap": charsmap()}, {"type": "Strip", "strip_left": true, "strip_right": true}]});
    let split = serde_json::json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\s+(?!\\S)|\\w+"}, "behavior": "Isolated", "invert": false},
        {"type": "FixedLength", "length": 3},
        {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": true},
        {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": false}]});
    let bert = serde_json::json!({"type": "BertProcessing", "sep": ["<|eos|>", 2], "cls": ["<|bos|>", 1]});
    let model = serde_json::json!({"type": "Unigram", "unk_id": 0, "byte_fallback": true, "vocab": [["<unk>", 0.0], ["a", -1.0], ["And", -2.0]]});
    let pieces = serde_json::json!({"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9,
        "vocab": {"a": 0, "##b": 1, "And": 2}});
    vec![
        with("post_processor", template),
        with("normalizer", normalizer),
        with("pre_tokenizer", split),
        with("post_processor", bert),
        with("model", model),
        with("model", pieces),
        own.to_string().into_bytes(),
    ]
});

#[test]
fn fuzz_rows() {
    hold(256, (damage(), 0..3), |(damage, packing)| {
        let bytes = damaged(ROWS.as_bytes().to_vec(), &damage);
        match packing {
            0 => corpus_is_read_or_refused("rows.jsonl", &bytes),
            1 => corpus_is_read_or_refused("rows.txt", &bytes),
            _ => {
                let packed = zstd::encode_all(ROWS.as_bytes(), 1).unwrap();
                corpus_is_read_or_refused("rows.jsonl.zst", &damaged(packed, &damage))
            }
        }
    });
}

#[test]
fn fuzz_rows_of_any_shape() {
    hold(256, vec(vec((key(), value(3)), 0..6), 1..4), |rows| {
        let object =
            |entries: Vec<(String, serde_json::Value)>| serde_json::Value::Object(entries.into_iter().collect());
        let lines: String = rows.into_iter().map(|entries| format!("{}\n", object(entries))).collect();
        corpus_is_read_or_refused("rows.jsonl", lines.as_bytes())
    });
}

#[test]
fn fuzz_corpus_parquet() {
    hold(256, (any::<Index>(), damage()), |(which, damage)| {
        corpus_is_read_or_refused("rows.parquet", &damaged(which.get(&TABLES).clone(), &damage))
    });
}

#[test]
fn fuzz_tokenizer() {
    hold(256, (any::<Index>(), damage()), |(which, damage)| {
        let bytes = damaged(which.get(&TOKENIZERS).clone(), &damage);
        let tokenizer = file("tokenizer.json", &bytes);
        let text = "And the  earth\n 1234 A\u{e9}\u{301} \u{1f600}a\0b";
        encode_with(&tokenizer, text).map_or_else(|error| refused(&error, &tokenizer), |_| Ok(()))
    });
}

/// What stands beside a tokenizer: `tokenizer_config.json` and its like.
const BESIDE: [(&str, &str); 3] = [
    (
        "tokenizer_config.json",
        r#"{"added_tokens_decoder": {"300": {"content": "<|x|>", "special": true, "lstrip": false}}, "bos_token": {"content": "<s>"},
            "eos_token": "</s>", "chat_template": [{"name": "default", "template": "{{ messages }}"}], "model_max_length": 1e30}"#,
    ),
    (
        "special_tokens_map.json",
        r#"{"bos_token": "<s>", "additional_special_tokens": ["<|y|>", {"content": "<|z|>"}]}"#,
    ),
    ("added_tokens.json", r#"{"<|x|>": 300, "<|y|>": 301}"#),
];

#[test]
fn fuzz_files_beside_a_tokenizer() {
    let folder = memory();
    let tokenizer = folder.path().join("tokenizer.json");
    fs::copy(tokenizer_file(), &tokenizer).unwrap();
    hold(256, (0..BESIDE.len(), damage()), |(which, damage)| {
        for (file, (name, text)) in BESIDE.iter().enumerate() {
            let bytes = text.as_bytes().to_vec();
            fs::write(folder.path().join(name), if file == which { damaged(bytes, &damage) } else { bytes }).unwrap();
        }
        encode_with(&tokenizer, "And <|x|> the </s>").map_or_else(|error| refused(&error, folder.path()), |_| Ok(()))
    });
}
