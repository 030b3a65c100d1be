//! What comes from outside reaches the terminal as text: whatever command prints it, and whether it is a result or an error.

use wherefrom_artifact::visible;

use crate::bench::{Bench, Said, fixture};

/// A title, a colour, a turned direction, a tag, and a line of its own.
const HOSTILE: &str = "a\u{1b}]0;T\u{7}\u{1b}[31m\u{9b}1m\u{202e}\u{e0041}\u{200b}\r";

fn check(what: &str, said: &Said) {
    for text in [&said.out, &said.err] {
        assert_eq!(visible(text), **text, "{what}");
    }
}

#[test]
fn nothing_from_outside_is_a_command_to_the_terminal() {
    let bench = Bench::new();
    let row = serde_json::json!({ "id": format!("{HOSTILE}\nforged"), "text": format!("red {HOSTILE} text, and more of it") });
    bench.file("c.jsonl", row.to_string());
    let model = fixture("model");
    let pipeline = |corpus: &str, more: &str| {
        let model = model.display();
        format!(
            "[model]\npath = \"{model}\"\n[steps.train]\nstage = \"tokenize\"\ncorpus = {corpus:?}\nmax-tokens = 16\n{more}"
        )
    };
    bench.file("p.toml", pipeline("c.jsonl", ""));
    let run = bench.wherefrom(&["run", "p.toml"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    check("run", &run);
    let folder = bench.ok(&["path", "p.toml", "train"]);
    let show = bench.wherefrom(&["show", folder.trim()]);
    check("show", &show);
    assert!(show.out.contains("red a␛]0;T␇␛[31m‹U+009B›1m‹U+202E›‹U+E0041›‹U+200B›"), "{}", show.out);
    assert!(!show.out.lines().any(|line| line.starts_with("forged")), "{}", show.out);

    // Refusals that quote rows, columns, files, knobs and steps.
    bench.file("rows.jsonl", serde_json::json!({ HOSTILE: "x", "text": HOSTILE, "prompt": 3 }).to_string());
    bench.file("broken.jsonl", format!("{{\"text\": \"{HOSTILE}"));
    for (what, corpus, more) in [
        ("rows", "rows.jsonl", ""),
        ("broken", "broken.jsonl", ""),
        ("file", &*format!("no{HOSTILE}.jsonl"), ""),
        ("knob", "c.jsonl", &*format!("{:?} = 3\n", format!("k{HOSTILE}"))),
    ] {
        bench.file("q.toml", pipeline(corpus, more));
        for command in ["plan", "run"] {
            let said = bench.wherefrom(&[command, "q.toml"]);
            check(what, &said);
        }
        assert_eq!(bench.wherefrom(&["run", "q.toml"]).code, Some(2), "{what}");
    }
    for words in [&["run", HOSTILE][..], &["show", HOSTILE], &[&format!("--{HOSTILE}")], &["rm", HOSTILE]] {
        let said = bench.wherefrom(words);
        assert!(said.code != Some(0) && said.err.contains("‹U+202E›"), "{said:?}");
        check("words", &said);
    }
}
