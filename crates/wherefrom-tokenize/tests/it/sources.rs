//! Corpora in several files and formats: the same rows, whatever they lie in.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array as _, ArrayRef, BooleanArray, DictionaryArray, Int64Array, LargeStringArray, ListArray, RecordBatch,
    StringArray, StringViewArray, StructArray, UInt32Array,
};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type};
use parquet::arrow::ArrowWriter;
use wherefrom_artifact::Example;
use wherefrom_tokenize::tokenize::Config;

use crate::{Bench, config, ids, tokenizer_file};

fn rows(bench: &Bench, config: &Config, corpus: &Path) -> Vec<Example> {
    let tokens = bench.tokenize(config, corpus, Some(tokenizer_file())).unwrap();
    tokens.rows().unwrap().map(Result::unwrap).collect()
}

fn docs(rows: &[Example]) -> Vec<&str> {
    rows.iter().flat_map(|row| &row.docs).map(String::as_str).collect()
}

fn refusal(bench: &Bench, config: &Config, corpus: &Path) -> String {
    let error = bench.tokenize(config, corpus, Some(tokenizer_file())).unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(wherefrom_artifact::Error::Input(_))), "{error:?}");
    error.to_string()
}

fn parquet(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

const LINES: [&str; 3] = ["In the beginning", "God created the heaven", "and the earth."];

#[test]
fn a_folder_a_glob_and_packed_files_are_read_in_order_of_their_names() {
    let bench = Bench::new();
    let folder = bench.folder.path().join("corpus");
    fs::create_dir_all(folder.join("b")).unwrap();
    let line = |text: &str| format!("{{\"text\": \"{text}\"}}\n");
    fs::write(folder.join("b/z.ndjson"), line(LINES[2])).unwrap();
    fs::write(folder.join(".hidden.jsonl"), "not read").unwrap();
    let zstd = zstd::encode_all(line(LINES[1]).as_bytes(), 0).unwrap();
    fs::write(folder.join("a.jsonl.zst"), zstd).unwrap();
    fs::write(folder.join("a.jsonl"), line(LINES[0])).unwrap();

    let found = rows(&bench, &config(64), &folder);
    assert_eq!(found.iter().map(|row| &row.text[..]).collect::<Vec<_>>(), LINES);
    assert_eq!(docs(&found), ["a/0", "a/0", "b/z/0"]);
    assert_eq!(found.iter().map(|row| row.example).collect::<Vec<_>>(), [0, 1, 2]);
    let found = rows(&bench, &config(65), &folder.join("*.jsonl*"));
    assert_eq!(found.len(), 2);
    assert_eq!(rows(&bench, &config(66), &folder.join("**/*.ndjson"))[0].text, LINES[2]);

    // A sample begins anew in each file, and rows keep their names.
    let several = bench.folder.path().join("several");
    fs::create_dir(&several).unwrap();
    for (name, lines) in [("a", 1), ("b", 4)] {
        fs::write(several.join(format!("{name}.jsonl")), line(LINES[0]).repeat(lines)).unwrap();
    }
    let found = rows(&bench, &Config { every: 3, ..config(67) }, &several);
    assert_eq!(docs(&found), ["a/0", "b/0", "b/3"]);
    let found = rows(&bench, &Config { every: 3, ..config(68) }, &several.join("b.jsonl"));
    assert_eq!(docs(&found), ["row 0", "row 3"]);

    assert!(refusal(&bench, &config(71), &folder.join("*.parquet")).contains("matches no file"));
    fs::write(folder.join("c.txt"), "x").unwrap();
    assert!(refusal(&bench, &config(72), &folder).contains("several formats"));
    fs::write(folder.join("b/bad.ndjson"), "\n{\"text\": 5}\n").unwrap();
    let message = refusal(&bench, &config(69), &folder.join("b/*"));
    assert!(message.contains("b/bad.ndjson:2: `text` is a number"), "{message}");
}

#[test]
fn two_columns_of_one_name_are_refused_where_they_are_read() {
    let bench = Bench::new();
    let path = bench.folder.path().join("twice.parquet");
    let column = |texts: [&str; 3]| Arc::new(StringArray::from_iter_values(texts)) as ArrayRef;
    let other = ["x", "y", "z"];
    parquet(&path, vec![("text", column(LINES)), ("note", column(other)), ("note", column(other))]);
    assert_eq!(rows(&bench, &config(64), &path).len(), 3);
    parquet(&path, vec![("text", column(LINES)), ("text", column(other))]);
    assert!(refusal(&bench, &config(64), &path).contains("twice.parquet: has two columns `text`"));
}

#[test]
fn parquet_gives_the_rows_of_json_lines() {
    let bench = Bench::new();
    let texts = || LINES.iter().map(|text| Some(*text));
    let kinds: [ArrayRef; 4] = [
        Arc::new(StringArray::from_iter(texts())),
        Arc::new(LargeStringArray::from_iter(texts())),
        Arc::new(StringViewArray::from_iter(texts())),
        Arc::new(texts().collect::<DictionaryArray<Int32Type>>()),
    ];
    let named = Config {
        columns: [("text", "content"), ("id", "url")].map(|(role, name)| (role.into(), name.into())).into(),
        ..config(64)
    };
    for (index, kind) in kinds.into_iter().enumerate() {
        let path = bench.folder.path().join(format!("{index}.parquet"));
        let urls: ArrayRef = Arc::new(StringArray::from(vec![Some("u/0"), None, Some("u/2")]));
        let other: ArrayRef = Arc::new(StringArray::from(vec!["not", "the", "text"]));
        parquet(&path, vec![("text", other), ("content", kind), ("url", urls)]);
        let found = rows(&bench, &named, &path);
        assert_eq!(found.iter().map(|row| &row.text[..]).collect::<Vec<_>>(), LINES);
        assert_eq!(docs(&found), ["u/0", "row 1", "u/2"]);
    }

    let path = bench.folder.path().join("ids.parquet");
    let lists = [vec![1_i64, 5, 6], vec![1, 7]].map(|ids| Some(ids.into_iter().map(Some).collect::<Vec<_>>()));
    let input_ids: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists));
    let masks = BooleanArray::from(vec![false, false, true, false, true]);
    let offsets = arrow::buffer::OffsetBuffer::from_lengths([3, 2]);
    let item = Arc::new(Field::new("item", DataType::Boolean, true));
    let masks: ArrayRef = Arc::new(ListArray::new(item, offsets, Arc::new(masks), None));
    parquet(
        &path,
        vec![("input_ids", input_ids), ("target_mask", masks), ("id", Arc::new(UInt32Array::from(vec![7, 8])))],
    );
    let found = rows(&bench, &config(64), &path);
    assert_eq!((&found[0].input_ids[..], &found[0].target_mask[..]), (&[1, 5, 6][..], &[false, false, true][..]));
    assert_eq!((&found[1].input_ids[..], docs(&found)), (&[1, 7][..], vec!["7", "8"]));

    let other = bench.folder.path().join("other.parquet");
    parquet(&other, vec![("body", Arc::new(Int64Array::from(vec![1])))]);
    let message = refusal(&bench, &named, &other);
    assert!(message.contains("none of the columns content") && message.contains("(it has body)"), "{message}");
    let bad = bench.folder.path().join("bad.parquet");
    parquet(&bad, vec![("text", Arc::new(Int64Array::from(vec![1, 2])))]);
    let message = refusal(&bench, &config(64), &bad);
    assert!(message.contains("bad.parquet: row 0: `text` is a number") && message.contains("another row"), "{message}");
    assert!(refusal(&bench, &config(64), &bench.file("none.parquet", "PAR1")).contains("is no Parquet"));
}

#[test]
fn messages_of_parquet_are_a_list_of_structs() {
    let bench = Bench::new();
    let text = |values: [&str; 2]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let field = |name: &str| Arc::new(Field::new(name, DataType::Utf8, false));
    let turns = StructArray::from(vec![
        (field("role"), text(["user", "assistant"])),
        (field("content"), text(["Who?", "God."])),
    ]);
    let item = Arc::new(Field::new("item", turns.data_type().clone(), true));
    let offsets = arrow::buffer::OffsetBuffer::from_lengths([2]);
    let path = bench.folder.path().join("chat.parquet");
    parquet(&path, vec![("messages", Arc::new(ListArray::new(item, offsets, Arc::new(turns), None)))]);
    let message = refusal(&bench, &config(64), &path);
    assert!(message.contains("row 0: the row is a conversation and there is no chat template"), "{message}");
}

#[test]
fn roles_and_columns_are_checked() {
    let bench = Bench::new();
    let corpus = bench.file("c.jsonl", "{\"body\": \"And the earth\"}\n");
    let with = |pairs: &[(&str, &str)], column: &str| Config {
        columns: pairs.iter().map(|(role, name)| (role.to_string(), name.to_string())).collect(),
        column: column.into(),
        ..config(64)
    };
    assert!(refusal(&bench, &with(&[("txt", "body")], "text"), &corpus).contains("`txt` is no role; roles are text"));
    assert!(refusal(&bench, &with(&[("text", "a")], "body"), &corpus).contains("different columns"));
    assert!(refusal(&bench, &with(&[("text", "a"), ("id", "a")], "text"), &corpus).contains("two roles"));
    let row = rows(&bench, &with(&[("text", "body")], "text"), &corpus).remove(0);
    assert_eq!(row.input_ids[1..row.input_ids.len() - 1], ids("And the earth"));
}
