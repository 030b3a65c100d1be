//! Prompt and completion are one text: its tokens are those of the training row, whatever the tokenizer does at a boundary.

use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizers::Tokenizer;
use wherefrom_artifact::Example;
use wherefrom_tokenize::tokenize::{Config, Untargeted};

use crate::{Bench, config};

/// Pieces of every tokenizer here, as words are written in it: without a sign for the space that `space` puts there.
const WORDS: [&str; 12] = ["Paris", "the", "cap", "Kab", "ul", "king", "dom", "ab", "ou", "zer", "né", "is"];
const ACCENTED: [&str; 5] = ["é", "ẹ", "ö", "中", "文"];

/// How a tokenizer is built: its fields, and what a space is in its vocabulary.
fn tokenizer(space: &str, normalizer: Value, pre_tokenizer: Value, post_processor: Value, decoder: Value) -> Value {
    let bytes_of = |text: &str| if space == "Ġ" { byte_level(text) } else { text.to_string() };
    let mut vocabulary: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    vocabulary.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    if space == "Ġ" {
        vocabulary.extend((0..=255_u8).map(|byte| byte_char(byte).to_string()));
    }
    let mut merges = Vec::new();
    // Each word is merged from the left, then with a space before it.
    for word in WORDS.iter().chain(&ACCENTED).map(|word| bytes_of(word)) {
        let characters: Vec<String> = word.chars().map(String::from).collect();
        vocabulary.extend(characters.iter().cloned());
        let mut merged = characters[0].clone();
        for next in &characters[1..] {
            merges.push(json!([merged, next]));
            merged += next;
            vocabulary.push(merged.clone());
        }
    }
    for word in WORDS.map(bytes_of) {
        vocabulary.push(format!("{space}{word}"));
        merges.push(json!([space, word]));
    }
    vocabulary.extend(('a'..='z').chain('A'..='Z').chain("'.,!?0123456789".chars()).map(String::from));
    vocabulary.push(space.into());
    let mut ids = serde_json::Map::new();
    for piece in vocabulary {
        let next = ids.len();
        ids.entry(piece).or_insert(json!(next));
    }
    let added: Vec<_> = ["<unk>", "<s>", "</s>"].iter().enumerate().map(|(id, content)| special(id, content)).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "decoder": decoder,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": space != "Ġ", "ignore_merges": false, "vocab": ids, "merges": merges,
        },
    })
}

fn special(id: usize, content: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true,
    })
}

/// The character that stands for a byte in GPT-2's vocabulary.
fn byte_char(byte: u8) -> char {
    let kept = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if kept(&byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|byte| !kept(byte)).count() as u32;
    char::from_u32(256 + before).unwrap()
}

fn byte_level(text: &str) -> String {
    text.bytes().map(byte_char).collect()
}

fn begins_with_bos() -> Value {
    json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    })
}

fn replace_space() -> Value {
    json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
}

fn sequence(key: &str, of: &[Value]) -> Value {
    json!({"type": "Sequence", key: of})
}

fn sentencepiece_decoder() -> Value {
    let space = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    sequence("decoders", &[space, json!({"type": "ByteFallback"}), json!({"type": "Fuse"}), strip])
}

/// Llama 1 and 2, TinyLlama, Mistral 0.1 as their tokenizer.json was first converted.
fn llama() -> Value {
    let normalizer = sequence("normalizers", &[json!({"type": "Prepend", "prepend": "▁"}), replace_space()]);
    tokenizer("▁", normalizer, Value::Null, begins_with_bos(), sentencepiece_decoder())
}

fn metaspace(scheme: &str, split: bool) -> Value {
    let pre_tokenizer = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
    tokenizer("▁", Value::Null, pre_tokenizer, begins_with_bos(), sentencepiece_decoder())
}

/// GPT-2; its post-processor takes the space off the bytes of a token with `trim`.
fn gpt2(add_prefix_space: bool, trim: bool, normalizer: Value) -> Value {
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": trim, "use_regex": true});
    tokenizer("Ġ", normalizer, byte_level.clone(), byte_level.clone(), byte_level)
}

/// T5 and its like: white space at both ends is lost, and runs of it are one.
fn stripped() -> Value {
    let normalizer = sequence(
        "normalizers",
        &[
            json!({"type": "NFKC"}),
            json!({"type": "Strip", "strip_left": true, "strip_right": true}),
            json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}),
        ],
    );
    let pre_tokenizer = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    tokenizer("▁", normalizer, pre_tokenizer, Value::Null, sentencepiece_decoder())
}

/// XLM-R and its like without their table of characters: the likeliest pieces rather than merges.
fn unigram() -> Value {
    let words = WORDS.iter().flat_map(|word| [format!("▁{word}"), (*word).to_string()]);
    let letters = ('a'..='z').chain('A'..='Z').chain("'.,!?0123456789é中▁".chars()).map(String::from);
    let scored = |(rank, piece): (usize, String)| json!([piece, -1.0 - rank as f64 / 10.0]);
    let known = ["<unk>", "<s>", "</s>"].map(|piece| json!([piece, 0.0]));
    let pieces: Vec<Value> = known.into_iter().chain(words.chain(letters).enumerate().map(scored)).collect();
    let added: Vec<_> = ["<unk>", "<s>", "</s>"].iter().enumerate().map(|(id, content)| special(id, content)).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}},
        },
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": false},
    })
}

/// BERT: no piece has a space, accents are lost.
fn bert() -> Value {
    let mut pieces: Vec<String> = ["[UNK]", "[CLS]", "[SEP]"].map(String::from).to_vec();
    pieces.extend(["the", "king", "##dom", "is", "kab", "##ul", "cafe"].map(String::from));
    for letter in ('a'..='z').chain("'.,!?0123456789中文".chars()) {
        pieces.extend([letter.to_string(), format!("##{letter}")]);
    }
    let ids: serde_json::Map<_, _> = pieces.iter().enumerate().map(|(id, piece)| (piece.clone(), json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "[UNK]"), special(1, "[CLS]"), special(2, "[SEP]")],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": false},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": ids},
    })
}

fn kinds() -> Vec<(&'static str, Value)> {
    let nfc = || json!({"type": "NFC"});
    vec![
        ("llama", llama()),
        ("metaspace always", metaspace("always", true)),
        ("metaspace first", metaspace("first", false)),
        ("metaspace never", metaspace("never", true)),
        ("gpt2", gpt2(false, true, Value::Null)),
        ("gpt2 with a prefix space", gpt2(true, true, Value::Null)),
        ("gpt2 with its spaces", gpt2(true, false, nfc())),
        ("gpt2, composed", gpt2(false, true, nfc())),
        ("stripped", stripped()),
        ("unigram", unigram()),
        ("bert", bert()),
    ]
}

/// A bench and the rows of `lines` by a tokenizer.
fn rows(tokenizer: &Value, config: &Config, lines: &[Value]) -> (Bench, Vec<Example>) {
    let bench = Bench::new();
    let file = bench.file("tokenizer.json", tokenizer.to_string());
    let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let corpus = bench.file("corpus.jsonl", lines);
    let tokens = bench.tokenize(config, &corpus, Some(&file)).unwrap();
    let rows = tokens.rows().unwrap().map(Result::unwrap).collect();
    (bench, rows)
}

/// The pieces of a row, measured ones with a star.
fn shown(tokenizer: &Value, row: &Example) -> String {
    let tokenizer = Tokenizer::from_bytes(tokenizer.to_string()).unwrap();
    let piece = |(&id, &target): (&u32, &bool)| tokenizer.id_to_token(id).unwrap() + if target { "*" } else { "" };
    row.input_ids.iter().zip(&row.target_mask).map(piece).collect::<Vec<_>>().join(" ")
}

fn measured(tokenizer: &Value, prompt: &str, completion: &str) -> String {
    let (_, rows) = rows(tokenizer, &config(64), &[json!({"prompt": prompt, "completion": completion})]);
    shown(tokenizer, &rows[0])
}

#[test]
fn a_completion_has_the_pieces_of_the_whole_text() {
    let cases = [
        (llama(), "the cap is", " Kabul", "<s> ▁the ▁cap ▁is ▁Kab* ul*"),
        (llama(), "is", "Kabul", "<s> ▁is Kab* ul*"),
        (llama(), "the ", "cap", "<s> ▁the ▁cap*"),
        (llama(), "is", "é", "<s> ▁is é*"),
        // Of a character that is no piece every byte is measured.
        (llama(), "is", "ö文€", "<s> ▁is ö* 文* <0xE2>* <0x82>* <0xAC>*"),
        // A piece that spans the boundary is measured whole.
        (llama(), "the king", "dom", "<s> ▁the ▁king dom*"),
        (llama(), "kab the cap is k", "ing", "<s> ▁ k ab ▁the ▁cap ▁is ▁king*"),
        (metaspace("always", true), "the cap is", " Kabul", "<s> ▁the ▁cap ▁is ▁Kab* ul*"),
        (metaspace("always", true), "2+2=", "4", "<s> ▁ 2 <0x2B> 2 <0x3D> 4*"),
        (metaspace("first", false), "is", "Kabul", "<s> ▁is Kab* ul*"),
        (metaspace("never", true), "is", " Kabul", "<s> is ▁Kab* ul*"),
        (gpt2(false, true, Value::Null), "the cap is", " Kabul", "the Ġcap Ġis ĠKab* ul*"),
        (gpt2(false, true, Value::Null), "the cap is ", "Kabul", "the Ġcap Ġis ĠKab* ul*"),
        (gpt2(true, true, Value::Null), "is", "Kabul", "Ġis Kab* ul*"),
        (gpt2(true, false, Value::Null), "the", " is", "Ġthe Ġis*"),
        (stripped(), "the is", " Kabul", "▁the ▁is ▁Kab* ul*"),
        (stripped(), "the is  ", "  Kabul ", "▁the ▁is ▁Kab* ul*"),
        (unigram(), "the is", " Kabul", "▁the ▁is ▁Kab* ul*"),
        (unigram(), "the cap is k", "ing", "▁the ▁cap ▁is ▁king*"),
        (bert(), "The king", "dom is", "[CLS] the king ##dom* is*"),
        (bert(), "The king ", "Is.", "[CLS] the king is* .*"),
    ];
    for (tokenizer, prompt, completion, expected) in cases {
        assert_eq!(measured(&tokenizer, prompt, completion), expected, "{prompt:?} + {completion:?}");
    }
}

#[test]
fn a_character_that_is_composed_across_the_boundary_is_measured() {
    let composed = gpt2(false, true, json!({"type": "NFC"}));
    let (e, mark) = (byte_level("é"), "\u{301}");
    assert_eq!(measured(&composed, "the cafe", &format!("{mark} is")), format!("the Ġ ca f {e}* Ġis*"));
    // The marks are put in order: both are of the character.
    let dotted = byte_level("ẹ");
    let acute = byte_level(mark).chars().map(|c| format!("{c}*")).collect::<Vec<_>>().join(" ");
    assert_eq!(measured(&composed, "ye\u{301}", "\u{323}"), format!("y {dotted}* {acute}"));
    // Without the normalizer the mark is a character of its own.
    let bytes = byte_level(mark).chars().map(|c| format!("{c}*")).collect::<Vec<_>>().join(" ");
    assert_eq!(measured(&gpt2(false, true, Value::Null), "cafe", mark), format!("ca f e {bytes}"));
    // An accent that is lost is nobody's.
    assert_eq!(measured(&bert(), "cafe", &format!("{mark} is")), "[CLS] cafe is*");
}

#[test]
fn white_space_that_added_tokens_swallow_is_counted_with_them() {
    let mut tokenizer = gpt2(false, true, Value::Null);
    for (id, content, side) in [(9000, "<left>", "lstrip"), (9001, "<right>", "rstrip")] {
        let mut token = special(id, content);
        token[side] = json!(true);
        tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
    }
    assert_eq!(measured(&tokenizer, "the ", "<left>is"), "the <left>* is*");
    assert_eq!(measured(&tokenizer, "the<right>", "is"), "the <right> is*");
    assert_eq!(measured(&tokenizer, "the<right> is", " is"), "the <right> is Ġis*");
}

#[test]
fn white_space_at_the_end_of_a_prompt_moves_and_that_is_said() {
    let lines = [
        json!({"prompt": "the cap", "completion": " is"}),
        json!({"prompt": "the cap \n", "completion": "is"}),
        json!({"prompt": "the ", "completion": "is", "contrast": "ab"}),
        json!({"mean": [{"prompt": "the", "completion": " is"}, {"prompt": "is ", "completion": "ou"}]}),
    ];
    let (bench, found) = rows(&llama(), &config(64), &lines);
    let starts: Vec<_> = found.iter().map(|row| row.completion_start).collect();
    assert_eq!(starts, [7, 7, 3, 3]);
    assert_eq!(found[1].text, "the cap \nis");
    assert_eq!(shown(&llama(), &found[1]), "<s> ▁the ▁cap ▁* <0x0A>* is*");
    assert_eq!(shown(&llama(), &found[2]), "<s> ▁the ▁is* <s> ▁the ▁ab*");
    assert_eq!(shown(&llama(), &found[3]), "<s> ▁the ▁is* <s> ▁is ▁ou*");
    assert_eq!(found[2].segment_texts, ["the is", "the ab"]);
    let corpus = bench.folder.path().join("corpus.jsonl");
    let warnings = bench.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].starts_with("3 of 4 rows have a prompt that ends in white space"), "{warnings:?}");
    assert!(warnings[0].ends_with(&format!("(the first: {}:2)", corpus.display())), "{warnings:?}");
    // What is to be completed keeps its end.
    let keep = Config { untargeted: Untargeted::Keep, ..config(64) };
    let (bench, found) = rows(&llama(), &keep, &[json!({"prompt": "the "}), json!({"prompt": "the ", "samples": 1})]);
    assert_eq!(shown(&llama(), &found[0]), "<s> ▁the ▁");
    assert_eq!((found[0].completion_start, &found[1].input_ids), (4, &found[0].input_ids));
    assert!(bench.warnings().is_empty());
}

#[test]
fn a_token_on_both_sides_of_the_boundary_is_told() {
    let (bench, found) = rows(&llama(), &config(64), &[json!({"prompt": "the k", "completion": "ing is"})]);
    assert_eq!(shown(&llama(), &found[0]), "<s> ▁the ▁king* ▁is*");
    assert_eq!((&found[0].text[..], found[0].completion_start), ("the king is", 5));
    assert!(bench.warnings()[0].starts_with("1 of 1 rows have a token that holds the end of the prompt"));
}

#[test]
fn a_completion_with_nothing_before_it_begins_after_the_end_of_text() {
    let gpt2 = gpt2(false, true, Value::Null);
    let lines = [
        json!({"prompt": "", "completion": "Paris"}),
        json!({"prompt": "", "completion": "Paris", "contrast": "Kabul"}),
        json!({"prompt": " ", "completion": "Paris"}),
        // One token holds prompt and completion.
        json!({"prompt": "Par", "completion": "is"}),
        json!({"prompt": "the", "completion": " is"}),
    ];
    let (bench, found) = rows(&gpt2, &config(64), &lines);
    let shown: Vec<_> = found.iter().map(|row| shown(&gpt2, row)).collect();
    let expected = ["<s> Paris*", "<s> Paris* <s> Kab* ul*", "<s> ĠParis*", "<s> Paris*", "the Ġis*"];
    assert_eq!(shown, expected);
    assert_eq!(found[1].weights, [1.0, -1.0]);
    let warnings = bench.warnings();
    assert!(warnings.iter().any(|warning| warning.starts_with("4 of 5 rows have nothing before their completion")));
    // Nothing is put before a text: its first token is no target.
    let (bench, found) = rows(&gpt2, &config(64), &[json!({"text": "Paris is"})]);
    assert_eq!(self::shown(&gpt2, &found[0]), "Paris Ġis*");
    assert!(bench.warnings().is_empty());
    // With an end of text alone it is that; a suffix ends a text.
    let mut only = gpt2.clone();
    only["added_tokens"] = json!([only["added_tokens"][2]]);
    assert_eq!(measured(&only, "", "Paris"), "</s> Paris*");
    // What the files beside it name goes before what its tokens are called.
    for (named, expected) in [
        (json!({"bos_token": null, "eos_token": {"content": "</s>"}}), "</s> Paris*"),
        (json!({"bos_token": "<unk>", "eos_token": "</s>"}), "<unk> Paris*"),
    ] {
        let bench = Bench::new();
        bench.file("tokenizer_config.json", named.to_string());
        let file = bench.file("tokenizer.json", gpt2.to_string());
        let corpus = bench.file("corpus.jsonl", json!({"prompt": "", "completion": "Paris"}).to_string());
        let tokens = bench.tokenize(&config(64), &corpus, Some(&file)).unwrap();
        assert_eq!(self::shown(&gpt2, &tokens.read::<Example>(0).unwrap()[0]), expected);
    }
}

#[test]
fn nothing_before_a_completion_and_no_end_of_text_is_refused() {
    let mut bare = gpt2(false, true, Value::Null);
    bare["added_tokens"] = json!([]);
    for line in
        [json!({"prompt": "", "completion": "Paris"}), json!({"prompt": "", "completion": "is", "contrast": "the"})]
    {
        let bench = Bench::new();
        let file = bench.file("tokenizer.json", bare.to_string());
        let corpus = bench.file("corpus.jsonl", line.to_string());
        let error = bench.tokenize(&config(64), &corpus, Some(&file)).unwrap_err().to_string();
        assert!(error.contains("corpus.jsonl:1: nothing comes before the completion"), "{error}");
        assert!(error.contains("give the row a `prompt`"), "{error}");
    }
    assert_eq!(measured(&bare, "the", " is"), "the Ġis*");
}

#[test]
fn dropout_is_off_and_that_is_said() {
    let mut drawn = llama();
    drawn["model"]["dropout"] = json!(0.5);
    let line = [json!({"text": "the king is the kingdom Paris Kabul the cap is zer"})];
    let (_, whole) = rows(&llama(), &config(64), &line);
    for _ in 0..8 {
        let (bench, found) = rows(&drawn, &config(64), &line);
        assert_eq!(found, whole);
        assert!(bench.warnings()[0].contains("dropout of 0.5"), "{:?}", bench.warnings());
    }
}

#[test]
fn a_text_beyond_the_limit_is_refused_with_its_row() {
    let bench = Bench::new();
    let corpus =
        bench.file("corpus.jsonl", format!("{{\"text\": \"is\"}}\n{{\"text\": \"{}\"}}\n", "is ".repeat(2_800_000)));
    let error = bench.tokenize(&config(64), &corpus, Some(crate::tokenizer_file())).unwrap_err().to_string();
    assert!(
        error.contains("corpus.jsonl:2: the text has 8400000 bytes, and a row may have 8388608 (8 MiB)"),
        "{error}"
    );
    assert!(error.contains("split the document"), "{error}");
}

/// Texts of words, spaces, marks and characters of several bytes.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        prop::sample::select(&WORDS[..]).prop_map(String::from),
        prop::sample::select(
            &[" ", "  ", "\n", "\u{301}", "\u{323}", "é", "中文", "€", "가", "\u{11a8}", "👩‍🔬", "e", "'s", "."][..]
        )
        .prop_map(String::from),
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(part, 1..12).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// For every tokenizer and every cut the tokens are those of the text row; what is measured begins with the first token
    /// that holds a byte of the completion.
    #[test]
    fn a_cut_text_has_the_tokens_of_the_text(text in text()) {
        for (name, tokenizer) in kinds() {
            let own = Tokenizer::from_bytes(tokenizer.to_string()).unwrap();
            let alone = own.encode(&text[..], false).unwrap();
            // Of these some characters leave no token, and what has none is refused.
            let lossy = ["stripped", "bert"].contains(&name);
            let left = |cut: usize| alone.get_offsets().iter().any(|&(_, end)| end > cut);
            let cuts: Vec<usize> = text.char_indices().map(|(cut, _)| cut).filter(|&cut| !lossy || left(cut)).collect();
            if lossy && alone.is_empty() {
                continue;
            }
            let rest = cuts.iter().map(|&cut| json!({"prompt": text[..cut], "completion": text[cut..]}));
            let lines: Vec<Value> = std::iter::once(json!({"text": text})).chain(rest).collect();
            let keep = Config { untargeted: Untargeted::Keep, ..config(4096) };
            let (_, rows) = rows(&tokenizer, &keep, &lines);
            let prefix = usize::from(name == "bert" || name == "llama" || name.starts_with("metaspace"));
            let whole = &rows[0].input_ids[..prefix + alone.len()];
            prop_assert_eq!(&whole[prefix..], alone.get_ids());
            for (&cut, row) in cuts.iter().zip(&rows[1..]) {
                let given = row.target_mask.iter().position(|&target| target).unwrap();
                // Where nothing is before the first token the row begins with the token for that.
                let begun = row.input_ids.len() - whole.len();
                prop_assert_eq!(begun, usize::from(prefix == 0 && row.input_ids[0] == 1 && given == 1), "{}", name);
                prop_assert_eq!(&row.input_ids[begun..], whole, "{} cut at {}", name, cut);
                prop_assert!(row.target_mask[given..].iter().all(|&target| target));
                let start = text[..cut].trim_end().len();
                prop_assert_eq!((row.completion_start as usize, &row.text), (start, &text));
                // Where decoding gives back the text: what is given are the tokens that end before the boundary.
                if name == "gpt2" {
                    let said = |tokens: usize| own.decode(&row.input_ids[begun..tokens], false).unwrap();
                    prop_assert!(text[..start].starts_with(&said(given)), "{:?} of {:?}", said(given), &text[..start]);
                    prop_assert!(said(given + 1).len() > start, "{:?} of {:?}", said(given + 1), &text[..start]);
                }
            }
        }
    }
}
