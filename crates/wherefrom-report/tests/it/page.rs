//! The page: what it shows, what it withstands, how large it gets.

use std::fs;

use serde_json::Value;
use wherefrom_artifact::Example;
use wherefrom_report::Config;

use crate::synthetic::{Page, Study};

/// The JSON of a `<script type="application/json">`.
fn data(page: &Page, id: &str) -> Value {
    let begin = format!("<script type=\"application/json\" id=\"{id}\">");
    let from = page.html.find(&begin).unwrap_or_else(|| panic!("no {id}")) + begin.len();
    let length = page.html[from..].find("</script>").unwrap();
    serde_json::from_str(&page.html[from..from + length]).unwrap()
}

fn config() -> Config {
    Config { samples: 20, ..Config::default() }
}

/// value / 1000 · largest.
fn values(scaled: &Value) -> Vec<f64> {
    let largest = scaled["largest"].as_f64().unwrap();
    scaled["thousandths"].as_array().unwrap().iter().map(|part| part.as_f64().unwrap() * largest / 1000.0).collect()
}

#[test]
fn every_number_is_the_artifacts() {
    let texts: Vec<(String, String)> = (0..40)
        .map(|row| (format!("doc/{row}"), format!("The capital of country {row} is a town by the sea.")))
        .collect();
    let texts: Vec<(&str, &str)> = texts.iter().map(|(doc, text)| (&doc[..], &text[..])).collect();
    let study = Study::new(&[("first", "The capital is Nairobi."), ("second", "체포, 구금 또는 추방")], &texts, 3);
    let page = study.page(&config(), true);
    let mut shown = 0;
    for query in 0..2 {
        let view = data(&page, &format!("data-query-{query}"));
        let losses = &study.losses[query];
        let log_p: Vec<f64> = serde_json::from_value(view["asked"][0]["log_p"].clone()).unwrap();
        for (target, log_p) in losses.by_token[1..].iter().zip(&log_p) {
            assert!((f64::from(*target) + log_p).abs() < 1e-4 * f64::from(target.abs()), "{target} {log_p}");
        }
        assert_eq!(log_p.len(), losses.by_token.len() - 1);
        let ranking: Vec<_> = study.ranking().into_iter().filter(|row| row.query as usize == query).collect();
        let rows = view["rows"].as_array().unwrap();
        assert_eq!(rows.len(), ranking.len());
        for (row, ranked) in rows.iter().zip(&ranking) {
            assert_eq!(row["influence"].as_f64().unwrap() as f32, ranked.influence);
            assert_eq!(
                (row["rank"].as_u64(), row["example"].as_u64()),
                (Some(ranked.rank.into()), Some(ranked.example))
            );
            assert_eq!(row["positive"], ranked.positive);
            assert_eq!(row["doc"], ranked.doc);
            let same = |sign: bool| ranking.iter().filter(move |row| row.positive == sign);
            let sum: f64 = same(ranked.positive).map(|row| f64::from(row.influence.abs())).sum();
            let share = f64::from(ranked.influence.abs()) / sum;
            assert!((row["share"].as_f64().unwrap() - share).abs() < 1e-4 * share);
            let detail = study
                .details
                .iter()
                .find(|detail| (detail.score.query as usize, detail.score.example) == (query, ranked.example));
            let detail = detail.unwrap();
            for (name, exact) in [("by_token", &detail.by_token), ("by_module", &detail.by_module)] {
                let found = values(&row[name]);
                assert_eq!(found.len(), exact.len());
                let largest = exact.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
                for (found, exact) in found.iter().zip(exact) {
                    assert!((found - f64::from(*exact)).abs() <= 0.000_51 * f64::from(largest), "{found} {exact}");
                }
            }
            // The words are the tokens', whole.
            let text = row["text"].as_str().unwrap();
            assert_eq!(text, format!("<|bos|>{}<|eos|>", ranked.text));
            let lengths: Vec<usize> = serde_json::from_value(row["lengths"].clone()).unwrap();
            assert_eq!(lengths.iter().sum::<usize>(), text.encode_utf16().count());
            assert_eq!(lengths.len(), detail.by_token.len());
            shown += 1;
        }
        let found = &view["distribution"];
        assert_eq!(found["counts"][0].as_u64(), Some(ranking.iter().filter(|row| row.positive).count() as u64));
    }
    assert_eq!(shown, 80);
    // Korean: a character's tokens have one text.
    let asked = data(&page, "data-query-1")["asked"][0].clone();
    assert_eq!(asked["text"], "<|bos|>체포, 구금 또는 추방<|eos|>");
    assert!(asked["lengths"].as_array().unwrap().contains(&0.into()), "a character is spread over tokens");
}

#[test]
fn whatever_the_corpus_has_is_text() {
    let long = "x".repeat(20_000);
    let hostile = [
        (
            "</script><script>alert('doc')</script>",
            "</script><script>alert('text')</script><!-- <img src=x onerror=alert(1)>",
        ),
        ("\u{202e}turned", "before \u{202e}turned\u{202c} after \u{200b}\u{feff} \0 \u{7} \u{1b}[31m"),
        ("&lt;b&gt; \" ' `", "\u{2028}line\u{2029} separators 👩‍👩‍👧 e\u{301} שלום العربية 한국어 \u{fffd}"),
        ("long", &long),
        ("empty", " "),
    ];
    let study = Study::new(&hostile, &hostile, 2);
    let page = study.page(&Config { title: "<script>alert('title')</script>".into(), ..config() }, true);
    for part in ["default-src 'none'", "script-src 'strict-dynamic' 'sha256-", "style-src 'sha256-"] {
        let policy = page.html.split("Content-Security-Policy\" content=\"").nth(1).unwrap().split('"').next().unwrap();
        assert!(policy.contains(part) && !policy.contains("unsafe"), "{policy}");
    }
    assert!(page.html.find("Content-Security-Policy") < page.html.find("<style"), "a policy is of what follows it");
    // Two scripts of data for each query and the study, and the page's own.
    assert_eq!(page.html.matches("<script").count(), hostile.len() + 2);
    assert_eq!(page.html.matches("</script").count(), hostile.len() + 2);
    for forbidden in
        ["alert('text')</script", "<img", "\u{202e}", "\u{2028}", "\0", "\u{7}", "\u{1b}", "\u{200b}", "<b>"]
    {
        assert!(!page.html.contains(forbidden), "{forbidden:?}");
    }
    assert!(
        !page.html.contains("http:")
            || page.html.matches("http:").count() == page.html.matches("http://www.w3.org/2000/svg").count()
    );
    assert!(!page.html.contains("https:"), "nothing is fetched");
    for query in 0..hostile.len() {
        let view = data(&page, &format!("data-query-{query}"));
        for row in view["rows"].as_array().unwrap() {
            let (at, text) = (row["example"].as_u64().unwrap() as usize, row["text"].as_str().unwrap());
            match at {
                0 => assert!(text.contains("</script><script>alert('text')</script><!-- <img"), "{text}"),
                1 => assert!(text.contains("before ‹U+202E›turned‹U+202C› after ‹U+200B›‹U+FEFF› ␀ ␇ ␛[31m"), "{text}"),
                2 => assert!(text.contains("👩‍👩‍👧 e\u{301} שלום العربية 한국어"), "{text}"),
                3 => assert!(text.contains(&long)),
                _ => {}
            }
        }
    }
}

#[test]
fn bytes_that_make_no_character_are_shown() {
    // The first byte of a Korean character, alone: at the end, and before a letter.
    let study = Study::new(&[("q", "체포")], &[("t", "체포")], 1);
    let mut train = study.train.clone();
    let first = train[0].input_ids[1];
    train[0].input_ids = vec![1, first];
    train[0].target_mask = vec![false, true];
    let study = Study::of(study.queries.clone(), train, study.modules);
    let page = study.page(&config(), true);
    let view = data(&page, "data-query-0");
    assert_eq!(view["rows"][0]["text"], "<|bos|>\u{fffd}");
}

#[test]
fn near_duplicates_name_the_stronger_one_and_quotes_are_counted() {
    let texts = [
        ("a", "The quick brown fox jumps over the lazy dog by the river."),
        ("b", "The quick brown fox jumps over the lazy dog by the sea."),
        ("c", "Entirely different words about the weather in Norway."),
    ];
    let study = Study::new(&[("q", "The quick brown fox jumps over the lazy dog")], &texts, 1);
    let view = data(&study.page(&config(), true), "data-query-0");
    let rows = view["rows"].as_array().unwrap();
    let near: Vec<_> = rows.iter().filter(|row| !row["near"].is_null()).collect();
    assert_eq!(near.len(), 1, "{view}");
    let other = &rows[near[0]["near"]["place"].as_u64().unwrap() as usize];
    let mut pair = [near[0]["doc"].as_str().unwrap(), other["doc"].as_str().unwrap()];
    pair.sort_unstable();
    assert_eq!(pair, ["a", "b"]);
    for row in rows {
        let quotes = row["quotes"].as_f64().unwrap();
        assert!(if row["doc"] == "c" { quotes < 0.1 } else { quotes > 0.7 }, "{row}");
    }
}

#[test]
fn what_is_not_wired_is_said_and_the_rest_is_shown() {
    let study = Study::new(&[("q", "one two three")], &[("a", "four five"), ("b", "six seven eight")], 1);
    let page = study.page(&config(), false);
    let roles = ["details", "queries", "losses", "scores", "tokenizer"].map(|role| format!("<code>{role}</code>"));
    let missing = page.html.split("<details class=\"missing\"").nth(1).unwrap().split("</details>").next().unwrap();
    assert!(page.html.find("class=\"missing\"") < page.html.find("id=\"study\""), "it stands at the top");
    for part in roles.iter().map(|role| &role[..]).chain(["detail = true", "stage = \"losses\""]) {
        assert!(missing.replace("&quot;", "\"").contains(part), "{part}: {missing}");
    }
    assert_eq!(page.html.matches("Not on this page").count(), 1);
    let view = data(&page, "data-query-0");
    assert_eq!(view["rows"].as_array().unwrap().len(), 2);
    assert!(!study.page(&config(), true).html.contains("class=\"missing\""));
}

#[test]
fn queries_without_ids_are_called_by_how_they_begin() {
    let mut study = Study::new(
        &[("row 104", "Question: Who wrote Emma? Jane Austen"), ("row 105", "Question: Where is Nairobi? In Kenya")],
        &[("a", "four five")],
        1,
    );
    for (query, prompt) in study.queries.iter_mut().zip(["Question: Who wrote Emma?", "Question: Where is Nairobi?"]) {
        query.completion_start = prompt.len() as u32;
    }
    let names = |page: &Page| -> Vec<[String; 2]> {
        let queries = data(page, "data-study")["queries"].clone();
        let both = |query: &Value| ["name", "id"].map(|key| query[key].as_str().unwrap().to_string());
        queries.as_array().unwrap().iter().map(both).collect()
    };
    let found = names(&study.page(&config(), true));
    assert_eq!(found, [["Who wrote Emma?", "row 104"], ["Where is Nairobi?", "row 105"]]);
    study.queries[1].docs = vec!["kenya".into()];
    assert_eq!(names(&study.page(&config(), true))[1], ["kenya", "kenya"]);
}

#[test]
fn one_query_is_one_and_its_completion_is_in_the_table() {
    let text = format!("{}is Paris{}", "word ".repeat(60), " and more".repeat(60));
    let mut study = Study::new(&[("q", &text)], &[("a", "four five")], 1);
    study.queries[0].completion_start = 302;
    let page = study.page(&config(), true);
    assert!(page.html.contains("1 query. Influence in"), "one query");
    let excerpt = page.html.split("class=\"excerpt\"").nth(1).unwrap().split("</p>").next().unwrap();
    assert!(excerpt.contains("word is | ␣Paris and more"), "{excerpt}");
}

/// So many examples of so many tokens, without the cost of a tokenizer's encoding.
fn examples(count: usize, tokens: usize) -> Vec<Example> {
    let row = |number: usize| {
        let id = |token: usize| (300 + (number * 7919 + token * 104_729) % 1700) as u32;
        Example {
            example: number as u64,
            docs: vec![format!("corpus/{number}")],
            doc_starts: vec![0],
            input_ids: (0..tokens).map(id).collect(),
            target_mask: (0..tokens).map(|position| position > 0).collect(),
            ..Example::default()
        }
    };
    (0..count).map(row).collect()
}

#[test]
fn fifty_queries_of_a_hundred_sequences_are_one_small_file() {
    let modules = (0..12).map(|module| format!("model.layers.{}.mlp.{}", module / 3, module % 3)).collect();
    let study = Study::of(examples(50, 20), examples(110, 96), modules);
    let page = study.page(&config(), true);
    let entries: Vec<_> = fs::read_dir(&page.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(entries.len(), 2, "the page and its manifest: {entries:?}");
    assert!(page.html.len() < 10_000_000, "{} bytes", page.html.len());
    let rows: usize =
        (0..50).map(|query| data(&page, &format!("data-query-{query}"))["rows"].as_array().unwrap().len()).sum();
    assert!(rows > 50 * 90, "{rows}");
}

#[test]
fn a_larger_study_has_side_files() {
    let modules = (0..90).map(|module| format!("model.layers.{}.mlp.{}", module / 3, module % 3)).collect();
    let study = Study::of(examples(40, 20), examples(110, 512), modules);
    let page = study.page(&config(), true);
    assert!(page.html.len() < 10_000_000, "{} bytes", page.html.len());
    let queries = data(&page, "data-study")["queries"].clone();
    let (mut inside, mut beside) = (0, 0);
    for entry in queries.as_array().unwrap() {
        let query = entry["query"].as_u64().unwrap();
        match entry["file"].as_str() {
            None => {
                data(&page, &format!("data-query-{query}"));
                inside += 1;
            }
            Some(name) => {
                let script = fs::read_to_string(page.folder.join(name)).unwrap();
                let json = script
                    .strip_prefix(&format!("wherefromQuery({query}, "))
                    .unwrap()
                    .trim_end()
                    .strip_suffix(");")
                    .unwrap();
                assert_eq!(serde_json::from_str::<Value>(json).unwrap()["query"], query);
                beside += 1;
            }
        }
    }
    assert!(inside > 0 && beside > 0 && inside + beside == 40, "{inside} {beside}");
}
