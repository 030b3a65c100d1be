//! What a plan takes a corpus to have, against what the stage makes of it.

use std::path::Path;

use wherefrom_tokenize::tokenize::{Config, Inputs, Windowing};
use wherefrom_tokenize::{Estimate, estimate};

use crate::{Bench, tokenizer_file};

/// So many rows, of another length each and longer towards the end.
fn rows(count: usize) -> String {
    let text = |row: usize| "In the beginning was the word. ".repeat(1 + row % 7 + 20 * row / count);
    (0..count).map(|row| format!("{{\"text\": \"{}\"}}\n", text(row))).collect()
}

fn estimated(config: &Config, corpus: &Path, tokenizer: Option<&Path>) -> Estimate {
    let inputs = Inputs { corpus: corpus.into(), tokenizer: tokenizer.map(Path::to_path_buf), chat_template: None };
    estimate(&serde_json::to_value(config).unwrap(), &inputs).unwrap()
}

/// Estimated windows and tokens over those that are made.
fn ratios(bench: &Bench, config: &Config, corpus: &Path) -> [f64; 2] {
    let made = bench.tokenize(config, corpus, Some(tokenizer_file())).unwrap();
    let found = estimated(config, corpus, Some(tokenizer_file()));
    assert!(found.encoded);
    [found.windows / made.manifest().rows() as f64, found.tokens / made.tokens() as f64]
}

#[test]
fn a_small_corpus_is_counted_and_a_large_one_told_from_pieces() {
    let bench = Bench::new();
    for (count, off) in [(1000, 0.0), (6000, 0.1)] {
        let corpus = bench.file(&format!("{count}.jsonl"), rows(count));
        let long = std::fs::metadata(&corpus).unwrap().len() > 1 << 20;
        assert_eq!(long, off > 0.0, "{count}");
        for config in [
            Config::new(64),
            Config { every: 3, ..Config::new(64) },
            Config { windows: Windowing::Pack, ..Config::new(256) },
        ] {
            for ratio in ratios(&bench, &config, &corpus) {
                assert!((ratio - 1.0).abs() <= off, "{count}: {config:?}: {ratio}");
            }
        }
    }
}

#[test]
fn without_a_tokenizer_a_token_has_four_bytes() {
    let bench = Bench::new();
    let corpus = bench.file("rows.jsonl", "{\"text\": \"abcdefgh\"}\n".repeat(100));
    let found = estimated(&Config::new(64), &corpus, None);
    assert_eq!(found, Estimate { windows: 100.0, tokens: 500.0, encoded: false });
    assert_eq!(estimated(&Config::new(2), &corpus, None).tokens, 200.0, "no longer than a window");
}
