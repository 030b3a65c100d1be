//! What a row becomes.

use wherefrom_tokenize::tokenize::{Config, Untargeted, Windowing};

use crate::{Bench, bare_tokenizer, config, ids, tokenizer};

const BOS: u32 = 1;
const EOS: u32 = 2;

#[test]
fn text_is_bos_text_eos_and_all_but_position_0_are_targets() {
    let bench = Bench::new();
    let rows = bench.examples(
        &config(64),
        "{\"text\": \"And the earth\", \"id\": 7}\n\n{\"text\": \"void\", \"source\": \"kjv\"}\n",
    );
    let expected = [vec![BOS], ids("And the earth"), vec![EOS]].concat();
    assert_eq!(rows[0].input_ids, expected);
    assert_eq!(rows[0].target_mask, (0..expected.len()).map(|i| i > 0).collect::<Vec<_>>());
    assert_eq!((&rows[0].docs[..], &rows[0].doc_starts[..]), (&["7".to_string()][..], &[0][..]));
    assert_eq!((rows[1].example, &rows[1].docs[0][..], &rows[1].text[..]), (1, "row 1", "void"));
    assert!(rows[0].segments.is_empty() && rows[0].weights.is_empty() && bench.warnings().is_empty());
}

#[test]
fn truncation_keeps_the_beginning_of_a_text_and_is_counted() {
    let bench = Bench::new();
    let corpus = bench.file("long.txt", "And the earth was without form\nand void\r\n\r\n \t\n\nvoid\n");
    let tokens = bench.tokenize(&config(6), &corpus, Some(crate::tokenizer_file())).unwrap();
    let rows: Vec<wherefrom_artifact::Example> = tokens.rows().unwrap().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0].text, "And the earth was without form\nand void");
    assert_eq!(rows[0].input_ids, [vec![BOS], ids(&rows[0].text)[..5].to_vec()].concat());
    let lost = ids(&rows[0].text).len() + 2 - 6;
    let said = format!(
        "1 of 2 rows were longer than max-tokens = 6 and were cut: {lost} tokens are lost, {lost} of them targets; windows = \
         \"split\" keeps those of documents (the first: {}:1)",
        corpus.display()
    );
    assert_eq!(bench.warnings(), [said]);
    let count = |name: &str| tokens.manifest().count(name).unwrap();
    assert_eq!(count("lost_tokens"), lost as u64);
    let all = || rows.iter().flat_map(|row| &row.input_ids);
    assert_eq!((count("examples"), count("truncated"), count("longest")), (2, 1, 6));
    assert_eq!((count("tokens"), count("targets")), (all().count() as u64, all().count() as u64 - 2));
    let largest = *all().max().unwrap();
    assert_eq!(count("largest_id"), u64::from(largest));
    assert_eq!(count("largest_id_example"), u64::from(!rows[0].input_ids.contains(&largest)));
}

#[test]
fn a_prompt_is_given_and_only_its_completion_is_a_target() {
    let bench = Bench::new();
    let rows = bench.examples(&config(64), "{\"prompt\": \"And the\", \"completion\": \" earth\"}\n");
    let prompt = ids("And the");
    assert_eq!(rows[0].input_ids, [vec![BOS], ids("And the earth")].concat());
    assert_eq!(rows[0].target_mask, (0..rows[0].input_ids.len()).map(|i| i > prompt.len()).collect::<Vec<_>>());
    assert_eq!(rows[0].text, "And the earth");
}

#[test]
fn truncation_keeps_bos_the_end_of_the_prompt_and_the_whole_completion() {
    let bench = Bench::new();
    let (prompt, completion) = (ids("And the earth was without form"), ids(" and void"));
    let line = "{\"prompt\": \"And the earth was without form\", \"completion\": \" and void\"}\n";
    for max in completion.len() + 1..=prompt.len() + completion.len() + 2 {
        let rows = bench.examples(&config(max), line);
        let kept = prompt.len().min(max - completion.len() - 1);
        let expected = [vec![BOS], prompt[prompt.len() - kept..].to_vec(), completion.clone()].concat();
        assert_eq!(rows[0].input_ids, expected, "max-tokens {max}");
        assert_eq!(rows[0].target_mask, (0..expected.len()).map(|i| i > kept).collect::<Vec<_>>());
    }
    assert_eq!(bench.warnings().len(), prompt.len());
}

#[test]
fn a_rival_completion_gets_the_same_prompt() {
    let bench = Bench::new();
    let (prompt, long) = (ids("And the earth was"), ids(" without form, and void"));
    let line =
        "{\"prompt\": \"And the earth was\", \"completion\": \" void\", \"contrast\": \" without form, and void\"}\n";
    let max = long.len() + 3;
    let row = bench.examples(&config(max), line).remove(0);
    let given = [vec![BOS], prompt[prompt.len() - 2..].to_vec()].concat();
    let own = [given.clone(), ids(" void")].concat();
    assert_eq!((row.segments, row.weights), (vec![0, own.len() as u32], vec![1.0, -1.0]));
    let targets = |tokens: usize| (0..tokens).map(|i| i > 2).collect::<Vec<_>>();
    assert_eq!(row.target_mask, [targets(own.len()), targets(max)].concat());
    assert_eq!(row.input_ids, [own, given, long].concat());
    assert_eq!(row.segment_texts, ["And the earth was void", "And the earth was without form, and void"]);
    assert_eq!(row.text, "And the earth was void");
}

#[test]
fn position_0_is_never_a_target() {
    let bench = Bench::new();
    let bare = bare_tokenizer(&bench);
    let corpus =
        bench.file("c.jsonl", "{\"prompt\": \"\", \"completion\": \"And the earth\"}\n{\"text\": \"And the earth\"}\n");
    let tokens = bench.tokenize(&config(64), &corpus, Some(&bare)).unwrap();
    let rows = tokens.read::<wherefrom_artifact::Example>(0).unwrap();
    // The whole completion is measured, after a token for the beginning; of a text all but the first.
    assert_eq!(rows[0].input_ids, [vec![BOS], ids("And the earth")].concat());
    assert_eq!(rows[1].input_ids, ids("And the earth"));
    for row in rows {
        assert_eq!(row.target_mask, (0..row.input_ids.len()).map(|i| i > 0).collect::<Vec<_>>());
    }
}

#[test]
fn input_ids_are_taken_as_they_are() {
    let bench = Bench::new();
    let given = ids("And the earth");
    let lines = format!(
        "{{\"input_ids\": {given:?}}}\n{{\"input_ids\": [5, 6, 7], \"target_mask\": [false, true, 0], \"text\": null}}\n"
    );
    let rows = bench.examples(&config(64), &lines);
    assert_eq!((&rows[0].input_ids, &rows[0].text[..]), (&given, "And the earth"));
    assert_eq!(rows[0].target_mask, (0..given.len()).map(|i| i > 0).collect::<Vec<_>>());
    assert_eq!((&rows[1].input_ids[..], &rows[1].target_mask[..]), (&[5, 6, 7][..], &[false, true, false][..]));

    let corpus = bench.file("ids.jsonl", "{\"input_ids\": [900000, 4294967295]}\n");
    let tokens = bench.tokenize(&config(64), &corpus, None).unwrap();
    assert_eq!(tokens.read::<wherefrom_artifact::Example>(0).unwrap()[0].text, "");
    assert_eq!(tokens.manifest().count("largest_id"), Some(u64::from(u32::MAX)));
}

#[test]
fn long_input_ids_keep_their_targets() {
    let bench = Bench::new();
    let cut = |targets: &[usize]| {
        let mask: Vec<bool> = (0..10).map(|i| targets.contains(&i)).collect();
        let line = format!("{{\"input_ids\": [10,11,12,13,14,15,16,17,18,19], \"target_mask\": {mask:?}}}\n");
        bench.examples(&config(4), &line).remove(0)
    };
    assert_eq!(cut(&[1, 3]).input_ids, [10, 11, 12, 13]);
    assert_eq!(cut(&[7, 9]).input_ids, [16, 17, 18, 19]);
    assert_eq!(cut(&[7, 9]).target_mask, [false, true, false, true]);
    assert_eq!(cut(&[4, 5]).input_ids, [12, 13, 14, 15]);
    let unmasked = bench.examples(&config(4), "{\"input_ids\": [10,11,12,13,14,15]}\n").remove(0);
    assert_eq!((unmasked.input_ids, unmasked.target_mask), (vec![10, 11, 12, 13], vec![false, true, true, true]));
}

#[test]
fn where_targets_do_not_fit_the_last_answer_stays_or_the_beginning_of_a_long_one() {
    let cut = |targets: &[usize]| {
        let bench = Bench::new();
        let mask: Vec<bool> = (0..10).map(|i| targets.contains(&i)).collect();
        let line = format!("{{\"input_ids\": [10,11,12,13,14,15,16,17,18,19], \"target_mask\": {mask:?}}}\n");
        let row = bench.examples(&config(4), &line).remove(0);
        let kept: Vec<_> = (0..4).filter(|&place| row.target_mask[place]).map(|place| row.input_ids[place]).collect();
        let said = format!(" {} of them targets", targets.len() - kept.len());
        (row.input_ids, kept, bench.warnings()[0].contains(&said))
    };
    // The last answer fits, with what is before it.
    assert_eq!(cut(&[1, 2, 8]), (vec![15, 16, 17, 18], vec![18], true));
    assert_eq!(cut(&[1, 3, 5, 7, 8, 9]), (vec![16, 17, 18, 19], vec![17, 18, 19], true));
    // It does not: its beginning, after half a window of the question, or less where there is less.
    assert_eq!(cut(&[1, 5, 6, 7, 8, 9]), (vec![13, 14, 15, 16], vec![15, 16], true));
    assert_eq!(cut(&[1, 2, 3, 4, 5, 6]), (vec![10, 11, 12, 13], vec![11, 12, 13], true));
}

#[test]
fn of_a_completion_that_is_too_long_the_beginning_is_measured() {
    let bench = Bench::new();
    let (prompt, completion) = (ids("And the earth was"), ids(" without form, and void"));
    let line = "{\"prompt\": \"And the earth was\", \"completion\": \" without form, and void\"}\n";
    let max = completion.len();
    let row = bench.examples(&config(max), line).remove(0);
    let kept = prompt.len().min(max / 2 - 1);
    let expected = [&[BOS], &prompt[prompt.len() - kept..], &completion[..max - kept - 1]].concat();
    assert_eq!((&row.input_ids, &row.target_mask), (&expected, &(0..max).map(|i| i > kept).collect()));
    assert_eq!(row.text, "And the earth was without form, and void");
    let lost = prompt.len() - kept + kept + 1;
    let said = format!("{lost} tokens are lost, {} of them targets", kept + 1);
    assert!(bench.warnings()[0].contains(&said), "{said}: {:?}", bench.warnings());
}

#[test]
fn a_long_row_is_split_when_asked() {
    let bench = Bench::new();
    let split = Config { windows: Windowing::Split, ..config(4) };
    let lines = "{\"id\": \"d\", \"input_ids\": [10,11,12,13,14,15,16,17]}\n{\"input_ids\": [10,11,12,13]}\n";
    let rows = bench.examples(&split, lines);
    let of = |row: &wherefrom_artifact::Example| (row.docs[0].clone(), row.input_ids.clone(), row.target_mask[0]);
    let expected = [
        ("d/piece-1", vec![10, 11, 12, 13]),
        // A piece begins with the last token of the one before, which is no target there.
        ("d/piece-2", vec![13, 14, 15, 16]),
        ("d/piece-3", vec![16, 17]),
        ("row 1", vec![10, 11, 12, 13]),
    ];
    assert_eq!(rows.iter().map(of).collect::<Vec<_>>(), expected.map(|(doc, ids)| (doc.to_string(), ids, false)));
    assert!(rows.iter().all(|row| row.target_mask[1..].iter().all(|&target| target) && row.segments.is_empty()));
    assert_eq!(rows.iter().map(|row| row.example).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(bench.warnings().is_empty());

    // Of a text: the prefix is in the first piece and the suffix in the last alone.
    let text = "And the earth was without form, and void";
    let corpus = bench.file("text.jsonl", serde_json::json!({ "text": text }).to_string());
    let tokens = bench.tokenize(&split, &corpus, Some(crate::tokenizer_file())).unwrap();
    let rows: Vec<wherefrom_artifact::Example> = tokens.rows().unwrap().map(Result::unwrap).collect();
    let whole = [vec![BOS], ids(text), vec![EOS]].concat();
    let joined: Vec<u32> = rows.iter().flat_map(|row| row.input_ids[1..].to_vec()).collect();
    assert_eq!(joined, whole[1..]);
    assert_eq!(rows.len(), (whole.len() - 1).div_ceil(3));
    for (number, row) in rows.iter().enumerate() {
        assert_eq!((&row.docs[..], &row.doc_starts[..]), (&[format!("row 0/piece-{}", number + 1)][..], &[0][..]));
        assert_eq!(row.text, tokenizer().decode(&row.input_ids, true).unwrap());
        assert!(row.input_ids.len() <= 4);
    }
    assert_eq!(tokens.manifest().count("lost_tokens"), Some(0));
    assert_eq!((tokens.manifest().count("rows"), tokens.manifest().count("truncated")), (Some(1), Some(0)));
}

#[test]
fn a_prompt_alone_is_kept_when_asked() {
    let bench = Bench::new();
    let config = wherefrom_tokenize::tokenize::Config { untargeted: Untargeted::Keep, ..config(4) };
    let rows = bench.examples(&config, "{\"prompt\": \"And the earth was\"}\n");
    let prompt = ids("And the earth was");
    assert_eq!(rows[0].input_ids, [vec![BOS], prompt[prompt.len() - 3..].to_vec()].concat());
    assert_eq!(rows[0].target_mask, [false; 4]);
}

#[test]
fn another_column_holds_the_text() {
    let bench = Bench::new();
    let config = |column: &str| wherefrom_tokenize::tokenize::Config { column: column.into(), ..config(64) };
    let lines = "\u{feff}{\"body\": \"void\", \"prompt\": null}\r\n";
    assert_eq!(bench.examples(&config("body"), lines)[0].text, "void");
    let lines = "{\"prompt\": \"void\", \"completion\": \"x\"}\n";
    assert_eq!(bench.examples(&config("prompt"), lines)[0].text, "void");
}

#[test]
fn korean_and_turkish_come_back() {
    let bench = Bench::new();
    let texts =
        ["모든 인간은 태어날 때부터 자유롭다", "Bütün insanlar hür, İstanbul'da ıssız şehir", "👩‍🔬 e\u{301} \u{0}"];
    let lines: String =
        texts.iter().map(|text| format!("{}\n", serde_json::json!({"prompt": text, "completion": text}))).collect();
    for (row, text) in bench.examples(&config(400), &lines).iter().zip(texts) {
        assert_eq!(tokenizer().decode(&row.input_ids, true).unwrap(), text.repeat(2));
        let line = format!("{{\"input_ids\": {:?}}}\n", row.input_ids);
        assert_eq!(bench.examples(&config(400), &line)[0].text, text.repeat(2));
    }
}

#[test]
fn a_huge_row_comes_back() {
    let bench = Bench::new();
    let text = format!("a b{}x tail", " ".repeat(100_000));
    let row = bench.examples(&config(1_000_000), &serde_json::json!({ "text": text }).to_string()).remove(0);
    assert_eq!(tokenizer().decode(&row.input_ids, true).unwrap(), text);
}

#[test]
fn a_mean_is_its_measurements_side_by_side() {
    let bench = Bench::new();
    let line = "{\"id\": \"m\", \"mean\": [{\"prompt\": \"And\", \"completion\": \" the\"}, \
                {\"prompt\": \"God\", \"completion\": \" created\", \"contrast\": \" void\"}]}\n";
    let row = bench.examples(&config(64), line).remove(0);
    let piece = |prompt: &str, completion: &str| [vec![BOS], ids(prompt), ids(completion)].concat();
    let pieces = [piece("And", " the"), piece("God", " created"), piece("God", " void")];
    assert_eq!(row.input_ids, pieces.concat());
    let second = pieces[0].len();
    assert_eq!(row.segments, [0, second as u32, (second + pieces[1].len()) as u32]);
    assert_eq!(row.weights, [0.5, 0.5, -0.5]);
    assert_eq!(row.segment_texts, ["And the", "God created", "God void"]);
    assert_eq!((&row.docs[..], &row.text[..]), (&["m".to_string()][..], "And the"));
    // Both segments hold on their own against max-tokens.
    assert_eq!(bench.examples(&config(pieces[1].len().max(pieces[0].len())), line)[0].input_ids, row.input_ids);
}

#[test]
fn samples_are_rows_of_their_own() {
    let bench = Bench::new();
    let keep = Config { untargeted: Untargeted::Keep, ..config(64) };
    let lines = "{\"prompt\": \"And\"}\n{\"id\": \"x\", \"prompt\": \"God\", \"samples\": 3}\n{\"prompt\": \"the\"}\n";
    let rows = bench.examples(&keep, lines);
    let docs: Vec<_> = rows.iter().map(|row| &row.docs[0][..]).collect();
    assert_eq!(docs, ["row 0", "x/sample-1", "x/sample-2", "x/sample-3", "row 2"]);
    assert_eq!(rows.iter().map(|row| row.example).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert!(rows[1].input_ids == rows[3].input_ids && rows[1].text == "God");
}
