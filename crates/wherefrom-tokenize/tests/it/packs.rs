//! Packed windows hold every token of every document, and remember which is whose.

use proptest::prelude::*;
use wherefrom_artifact::Example;
use wherefrom_tokenize::tokenize::{Attend, Config, Windowing};

use crate::{Bench, config};

fn packed(max_tokens: usize, attend: Attend) -> Config {
    Config { windows: Windowing::Pack, attend, ..config(max_tokens) }
}

/// Rows of given ids: document d is d * 100, d * 100 + 1, ...
fn lines(lengths: &[usize]) -> String {
    let row = |(document, &length): (usize, &usize)| {
        let ids: Vec<_> = (0..length).map(|i| document * 100 + i).collect();
        format!("{{\"id\": \"d{document}\", \"input_ids\": {ids:?}}}\n")
    };
    lengths.iter().enumerate().map(row).collect()
}

fn targets(row: &Example) -> Vec<u32> {
    row.input_ids.iter().zip(&row.target_mask).filter(|(_, target)| **target).map(|(id, _)| *id).collect()
}

#[test]
fn documents_fill_windows_and_long_ones_are_split() {
    let bench = Bench::new();
    let rows = bench.examples(&packed(8, Attend::Document), &lines(&[3, 4, 2, 18, 3]));
    let of = |row: &Example| (row.docs.join(" "), row.doc_starts.clone(), row.input_ids.len());
    let expected = [
        ("d0 d1", vec![0, 3], 7),
        ("d2", vec![0], 2),
        ("d3", vec![0], 8),
        ("d3", vec![0], 8),
        ("d3 d4", vec![0, 4], 7),
    ];
    assert_eq!(
        rows.iter().map(of).collect::<Vec<_>>(),
        expected.map(|(docs, starts, n)| (docs.to_string(), starts, n))
    );
    assert_eq!(rows[0].segments, [0, 3]);
    assert!(rows[1].segments.is_empty() && rows[0].weights.is_empty());
    // A piece begins with the last token of the one before, as context alone.
    assert_eq!((rows[3].input_ids[0], rows[3].target_mask[0]), (307, false));
    let open = bench.examples(&packed(8, Attend::Window), &lines(&[3, 4, 2, 18, 3]));
    assert!(open.iter().all(|row| row.segments.is_empty()));
    assert_eq!(open[0].doc_starts, [0, 3]);
}

#[test]
fn queries_are_not_packed() {
    let bench = Bench::new();
    let corpus = bench.file("q.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\", \"contrast\": \"c\"}\n");
    let error = bench.tokenize(&packed(8, Attend::Document), &corpus, Some(crate::tokenizer_file())).unwrap_err();
    assert!(error.to_string().contains("queries are not packed"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Every token but the first of a document is a target exactly once, in order, in a window that is not too long.
    #[test]
    fn every_target_is_there_once(lengths in prop::collection::vec(2_usize..40, 1..20), max in 2_usize..24) {
        let bench = Bench::new();
        let rows = bench.examples(&packed(max, Attend::Document), &lines(&lengths));
        let found: Vec<u32> = rows.iter().flat_map(targets).collect();
        let expected: Vec<u32> = lengths
            .iter()
            .enumerate()
            .flat_map(|(document, &length)| (1..length).map(move |i| (document * 100 + i) as u32))
            .collect();
        prop_assert_eq!(found, expected);
        for (number, row) in rows.iter().enumerate() {
            prop_assert!(row.input_ids.len() <= max);
            prop_assert_eq!(row.example, number as u64);
            prop_assert_eq!(row.docs.len(), row.doc_starts.len());
            for &start in &row.doc_starts {
                prop_assert!(!row.target_mask[start as usize]);
            }
        }
    }
}
