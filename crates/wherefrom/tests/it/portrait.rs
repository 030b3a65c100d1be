//! A trait's page: what it shows of a whole study, each number beside what it is held against, and what it says is missing.

use std::fs;

use serde_json::json;

use crate::bench::{Bench, fixture};

/// Rules by which every answer for the trait shows it, and none against it.
const STEPS: &str = r#"
[steps.trait]
stage = "trait"
file = "loud.json"
pairs = 2
questions = 4
[steps.pos-asked]
stage = "ask"
inputs = { trait = "trait" }
side = "pos"
samples = 3
[steps.pos]
stage = "generate"
inputs = { tokens = "pos-asked" }
max-new-tokens = 6
temperature = 1
[steps.pos-judged]
stage = "judge"
inputs = { tokens = "pos", trait = "trait" }
provider = "rule"
rule = { pattern = ".", per = "answer" }
[steps.neg-asked]
stage = "ask"
inputs = { trait = "trait" }
side = "neg"
samples = 3
[steps.neg]
stage = "generate"
inputs = { tokens = "neg-asked" }
max-new-tokens = 6
temperature = 1
[steps.neg-judged]
stage = "judge"
inputs = { tokens = "neg", trait = "trait" }
provider = "rule"
rule = { pattern = "nothing like this", per = "answer" }
[steps.vector]
stage = "vector"
inputs = { positive = "pos", negative = "neg", positive-judgements = "pos-judged", negative-judgements = "neg-judged" }
over = ["response-avg"]
minimum-pairs = 1
coherence = 0
[steps.controls]
stage = "vector"
inputs = { positive = "pos", negative = "neg", positive-judgements = "pos-judged", negative-judgements = "neg-judged" }
over = ["response-avg"]
minimum-pairs = 1
coherence = 0
controls = [{ kind = "random", count = 3 }, { kind = "shuffled", count = 5 }]
[steps.quiet]
stage = "vector"
inputs = { positive = "neg", negative = "pos" }
over = ["response-avg"]
minimum-pairs = 1
trait = "quiet"
[steps.eval-pos-asked]
stage = "ask"
inputs = { trait = "trait" }
side = "pos"
split = "eval"
samples = 2
[steps.eval-pos]
stage = "generate"
inputs = { tokens = "eval-pos-asked" }
max-new-tokens = 6
temperature = 1
[steps.eval-neg-asked]
stage = "ask"
inputs = { trait = "trait" }
side = "neg"
split = "eval"
samples = 2
[steps.eval-neg]
stage = "generate"
inputs = { tokens = "eval-neg-asked" }
max-new-tokens = 6
temperature = 1
[steps.pos-projected]
stage = "project"
inputs = { tokens = "eval-pos", vectors = "vector" }
by-token = true
[steps.neg-projected]
stage = "project"
inputs = { tokens = "eval-neg", vectors = "vector" }
by-token = true
[steps.pos-random]
stage = "project"
inputs = { tokens = "eval-pos", vectors = "controls" }
[steps.neg-random]
stage = "project"
inputs = { tokens = "eval-neg", vectors = "controls" }
[steps.none-asked]
stage = "ask"
inputs = { trait = "trait" }
side = "none"
split = "eval"
samples = 1
[steps.steered]
stage = "generate"
inputs = { tokens = "none-asked", vectors = "vector" }
steer = { layers = [1], coefficients = [-1, 0, 1] }
max-new-tokens = 6
temperature = 1
[steps.steered-judged]
stage = "judge"
inputs = { tokens = "steered", trait = "trait" }
provider = "rule"
rule = { pattern = "e" }
[steps.random-steered]
stage = "generate"
inputs = { tokens = "none-asked", vectors = "controls" }
steer = { layers = [1], coefficients = [-1, 1] }
max-new-tokens = 6
temperature = 1
[steps.random-steered-judged]
stage = "judge"
inputs = { tokens = "random-steered", trait = "trait" }
provider = "rule"
rule = { pattern = "e" }
[steps.page]
stage = "trait-report"
texts = 2
[steps.page.inputs]
trait = "trait"
positive = "pos"
negative = "neg"
positive-judgements = "pos-judged"
negative-judgements = "neg-judged"
vectors = "vector"
controls = "controls"
other-vectors = "quiet"
eval-positive = "eval-pos"
eval-negative = "eval-neg"
positive-projections = "pos-projected"
negative-projections = "neg-projected"
random-positive-projections = "pos-random"
random-negative-projections = "neg-random"
steered = "steered"
steered-judgements = "steered-judged"
random-steered = "random-steered"
random-steered-judgements = "random-steered-judged"
[steps.alone]
stage = "trait-report"
inputs = { trait = "trait" }
[steps.wrong]
stage = "trait-report"
inputs = { trait = "trait", positive = "pos", positive-judgements = "neg-judged" }
"#;

fn bench() -> Bench {
    let bench = Bench::new();
    let pair = |pos: &str| json!({ "pos": pos, "neg": "Be <still>." });
    bench.file(
        "loud.json",
        json!({
            "name": "loud", "negative": "quiet", "description": "Shouts.",
            "instruction": [pair("Shout!"), pair("Cry out!")],
            "questions": ["Why?", "How so?", "When?", "Where?"],
            "eval_prompt": "{question} {answer} 0 to 100?",
        })
        .to_string(),
    );
    let model = fixture("model");
    bench.file("study.toml", format!("[model]\npath = \"{}\"\n{STEPS}", model.display()));
    bench
}

#[test]
fn a_trait_has_a_page_with_controls_beside_its_numbers() {
    let bench = bench();
    let page = fs::read_to_string(bench.made("study.toml", "page").join("index.html")).unwrap();
    for part in [
        "<h1>loud</h1>",
        "Be &lt;still&gt;.",
        "Answers and what was kept of them",
        "of 5 shuffled directions",
        "The band is that of 8 directions that stand for nothing.",
        "at layer 1: mean score for loud",
        "lowest and highest of 8 directions that stand for nothing",
        "not steered",
        "&lt;b&gt;+1 v",
        "+1 of loud.random0",
        "Tokens by their projection",
        "Held-out answers at site 1",
        "Cosines between traits",
        "Of 3 random directions the cosine with loud",
    ] {
        let part = part.replace("&lt;b&gt;", "<b>");
        assert!(page.contains(&part), "no {part}");
    }
    assert!(!page.contains("Not on this page"), "all of it is wired");
    assert!(!page.contains("NaN") && !page.contains("<script") && !page.contains("style=\""));
    // The opposite trait, made of the same answers the other way round.
    assert!(page.contains("−1.00") || page.contains("−0.9"), "the cosine with quiet");

    let alone = fs::read_to_string(bench.made("study.toml", "alone").join("index.html")).unwrap();
    assert!(alone.contains("Not on this page: answers and their scores, the direction, site by site,"), "{alone}");
    let error = bench.refused(&["run", "study.toml", "--to", "wrong"]);
    assert!(error.contains("`positive-judgements` are of other answers than `positive`"), "{error}");
}
