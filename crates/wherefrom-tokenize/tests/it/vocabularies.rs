//! The tokenizer that the second stage trains.

use std::fs;

use serde_json::{Value, json};
use wherefrom_artifact::{Artifact, Error, Tokenizer};
use wherefrom_tokenize::tokenize::{Config, Untargeted};
use wherefrom_tokenize::vocabulary_size;

use crate::{Bench, SENTENCES, tokenizer, tokenizer_file};

#[test]
fn special_tokens_have_their_ids_and_surround_a_text() {
    let tokenizer = tokenizer();
    let encoding = tokenizer.encode("And", true).unwrap();
    assert_eq!((encoding.get_ids()[0], *encoding.get_ids().last().unwrap()), (1, 2));
    assert_eq!(tokenizer.token_to_id("<|pad|>"), Some(0));
    assert_eq!(tokenizer.encode("", false).unwrap().len(), 0);
    // No prefix space: the text begins as it is.
    assert_eq!(tokenizer.decode(encoding.get_ids(), true).unwrap(), "And");
    assert_eq!(vocabulary_size(tokenizer_file()).unwrap(), 300);
}

#[test]
fn training_is_deterministic() {
    let corpus: String = (0..400)
        .map(|row| {
            format!(
                "{{\"text\": \"{}\"}}\n",
                format!("row {row} {:x} of the {} earth ", row * 7919, row % 17).repeat(3)
            )
        })
        .collect();
    let train = || {
        let bench = Bench::new();
        let folder = bench.train(900, &bench.file("corpus.jsonl", &corpus)).unwrap();
        fs::read(folder.join("tokenizer.json")).unwrap()
    };
    let first = train();
    assert!((0..4).all(|_| train() == first));
}

#[test]
fn the_artifact_is_what_transformers_loads() {
    let bench = Bench::new();
    let folder = bench.train(300, &bench.file("sentences.jsonl", SENTENCES)).unwrap();
    let artifact = Artifact::<Tokenizer>::open(&folder).unwrap();
    assert_eq!(artifact.manifest().count("vocabulary"), Some(300));
    let beside: Value =
        serde_json::from_slice(&fs::read(artifact.file("tokenizer_config.json").unwrap()).unwrap()).unwrap();
    assert_eq!(beside["tokenizer_class"], "PreTrainedTokenizerFast");
    assert_eq!((&beside["bos_token"], &beside["pad_token"]), (&"<|bos|>".into(), &"<|pad|>".into()));
    let json: Value = serde_json::from_slice(&fs::read(artifact.file("tokenizer.json").unwrap()).unwrap()).unwrap();
    assert_eq!(json["pre_tokenizer"]["type"], "ByteLevel");
    assert_eq!(json["pre_tokenizer"]["add_prefix_space"], false);
}

#[test]
fn a_small_corpus_gives_fewer_tokens_and_a_warning() {
    let bench = Bench::new();
    let folder = bench.train(5000, &bench.file("corpus.txt", "abab")).unwrap();
    let size = vocabulary_size(&folder.join("tokenizer.json")).unwrap();
    assert_eq!(bench.warnings(), [format!("the corpus gives {size} tokens, fewer than vocabulary = 5000")]);
}

#[test]
fn one_endless_word_is_trained_on_in_no_time() {
    let bench = Bench::new();
    let text = format!("a{}{}", " ".repeat(300_000), "acgt".repeat(100_000));
    let folder = bench.train(300, &bench.file("corpus.txt", text)).unwrap();
    assert!(vocabulary_size(&folder.join("tokenizer.json")).unwrap() > 260);
}

#[test]
fn rows_with_nothing_to_predict_are_left_out_as_tokenize_leaves_them_out() {
    let bench = Bench::new();
    let rows = "{\"text\": null}\n{\"text\": \"\"}\n{\"prompt\": \"zzz zzz zzz\", \"completion\": null}\n";
    let corpus = bench.file("rows.jsonl", format!("{SENTENCES}{rows}"));
    let refused = bench.train(300, &corpus).unwrap_err().to_string();
    assert!(refused.contains("rows.jsonl:6: `text` is null") && refused.contains("untargeted = \"skip\""), "{refused}");
    let config = |knob: &str| serde_json::from_value(json!({ "vocabulary": 300, "untargeted": knob })).unwrap();
    let folder = bench.train_of(&config("skip"), &corpus).unwrap();
    let manifest = Artifact::<Tokenizer>::open(&folder).unwrap().manifest().clone();
    let skip = Config { untargeted: Untargeted::Skip, ..Config::new(64) };
    let tokens = bench.tokenize(&skip, &corpus, Some(&folder.join("tokenizer.json"))).unwrap();
    for name in ["skipped", "rows"] {
        assert_eq!(manifest.count(name), tokens.manifest().count(name), "{name}");
    }
    assert_eq!(manifest.count("skipped"), Some(3));
    assert!(bench.warnings()[0].starts_with("3 of 8 rows have nothing to predict"), "{:?}", bench.warnings());
    // What is left out has taught the vocabulary nothing.
    let plain = Bench::new();
    let other = plain.train(300, &plain.file("sentences.jsonl", SENTENCES)).unwrap();
    assert_eq!(fs::read(folder.join("tokenizer.json")).unwrap(), fs::read(other.join("tokenizer.json")).unwrap());

    let nothing = bench.train_of(&config("skip"), &bench.file("none.jsonl", rows)).unwrap_err().to_string();
    assert!(nothing.contains("none of its 3 rows has anything to predict"), "{nothing}");
    let keep = bench.train_of(&config("keep"), &corpus).unwrap_err().to_string();
    assert!(keep.contains("write \"skip\""), "{keep}");
}

#[test]
fn bad_input_is_refused() {
    let bench = Bench::new();
    let corpus = bench.file("corpus.jsonl", "{\"text\": \"And\"}\n{\"input_ids\": [1, 2]}\n{\"text\": \"\"}\n");
    let message = |size| match bench.train(size, &corpus).unwrap_err().downcast::<Error>() {
        Ok(Error::Input(message)) => message,
        other => panic!("not a refusal: {other:?}"),
    };
    assert!(message(258).starts_with("vocabulary = 258 is out of range; set it between 259"));
    assert!(message(usize::MAX).contains("out of range"));
    let rows = message(300);
    assert!(
        rows.contains("corpus.jsonl:2: the row is `input_ids`") && rows.contains("corpus.jsonl:3: the text is empty")
    );
}
