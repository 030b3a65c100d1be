//! The stage `columns` on Parquet: what has a plain text, number or date is kept.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, Float64Array, Int8Array, StringArray,
    TimestampMicrosecondArray, UInt64Array,
};
use arrow::datatypes::Int32Type;
use parquet::basic::Compression;
use serde_json::json;
use wherefrom_artifact::{Artifact, Columns, Draft, Kept, Kind};
use wherefrom_tokenize::columns::{self, Config, Inputs, check};

use crate::tables::write;
use crate::{Bench, config, recipe, tokenizer_file};

#[test]
fn every_plain_type_of_parquet_is_kept() {
    let bench = Bench::new();
    let path = bench.file("corpus.parquet", "");
    let text = || -> ArrayRef { Arc::new(StringArray::from(vec!["one two", "three four"])) };
    let zoned = TimestampMicrosecondArray::from(vec![Some(1_500_000), None]).with_timezone("UTC");
    let decimal = Decimal128Array::from(vec![12345, -5]).with_precision_and_scale(10, 2).unwrap();
    let words: DictionaryArray<Int32Type> = vec!["en", "ko"].into_iter().collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("text", text()),
        ("small", Arc::new(Int8Array::from(vec![Some(-3), None]))),
        ("large", Arc::new(UInt64Array::from(vec![u64::MAX, 1]))),
        ("ratio", Arc::new(Float64Array::from(vec![0.25, f64::NAN]))),
        ("good", Arc::new(BooleanArray::from(vec![true, false]))),
        ("day", Arc::new(Date32Array::from(vec![19_930, 0]))),
        ("time", Arc::new(zoned)),
        ("price", Arc::new(decimal)),
        ("lang", Arc::new(words)),
    ];
    let keep: Vec<String> = columns[1..].iter().map(|(name, _)| name.to_string()).collect();
    write(&path, columns, Compression::UNCOMPRESSED);
    let tokens = bench.tokenize(&config(16), &path, Some(tokenizer_file())).unwrap();
    check(&path, &keep).unwrap();
    let inputs = Inputs { corpus: path.clone(), tokens };
    let fill = |draft: &mut Draft| columns::run(&Config { keep: keep.clone() }, &inputs, &bench.exec, draft);
    let (folder, _) = bench
        .store()
        .produce(Kind::Columns, recipe("columns", json!(keep), &path).unwrap(), &*bench.exec.reporter, fill)
        .unwrap();
    let rows = Artifact::<Columns>::open(&folder).unwrap().read::<Kept>(0).unwrap();
    let cells: Vec<_> = rows.iter().map(|row| json!(row.cells.values)).collect();
    assert_eq!(
        cells,
        [
            json!([-3, "18446744073709551615", 0.25, true, "2024-07-26", "1970-01-01T00:00:01.500Z", "123.45", "en"]),
            json!([null, "1", null, false, "1970-01-01", null, "-0.05", "ko"]),
        ]
    );
    let error = check(&path, &["daye".into()]).unwrap_err().to_string();
    assert!(error.contains("no row has a column `daye`") && error.contains("day, good, lang"), "{error}");
}
