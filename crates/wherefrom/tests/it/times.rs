//! What a plan says of time and memory: true where it can be checked.

use std::path::Path;

use serde_json::json;
use wherefrom_artifact::Manifest;

use crate::bench::{Bench, Said};
use crate::study;

/// The cells of a step's line among the costs: from its memory on.
fn costs<'a>(plan: &'a str, step: &str) -> &'a str {
    plan.lines().rev().find_map(|line| line.strip_prefix(step)?.strip_prefix(' ')).unwrap()
}

/// Operations of a step, as its line has them.
fn operations(line: &str) -> f64 {
    let words: Vec<_> = line.split_whitespace().collect();
    let unit = words.iter().position(|word| word.ends_with("FLOP")).unwrap();
    let scale = [("FLOP", 1.0), ("kFLOP", 1e3), ("MFLOP", 1e6), ("GFLOP", 1e9)];
    words[unit - 1].parse::<f64>().unwrap() * scale.iter().find(|(name, _)| *name == words[unit]).unwrap().1
}

#[test]
fn time_is_work_over_a_rate_and_an_earlier_run_is_believed_before_a_measurement() {
    let bench = Bench::new().with_cache();
    study::write(&bench, 300, 40);
    let plan = bench.ok(&["plan", "study.toml"]);
    assert!(costs(&plan, "lambda").contains("< 1 s  assumed"), "nothing is measured for so little: {plan}");
    assert!(!bench.path("cache/wherefrom/rates.json").exists());

    let steps = study::made(&bench.ok(&["run", "study.toml", "--to", "covariances"]));
    let folder = steps.last().unwrap().sealed(&bench);
    let mut manifest = Manifest::read(&folder).unwrap();
    let work = manifest.provenance["work"].clone();
    assert_eq!(work["rate"], "covariance 16x24");
    let before = operations(costs(&plan, "covariances"));
    // There was no tokenizer yet.
    assert!((work["amount"].as_f64().unwrap() / before - 1.0).abs() < 0.3, "{work}, {before}");
    // In a run of less than a second, work says nothing of speed.
    let other = ["plan", "study.toml", "--set", "steps.covariances.seed=5"];
    assert!(!costs(&bench.ok(&other), "covariances").contains("earlier run"));

    let rates = json!({ work["machine"].as_str().unwrap(): { "covariance 16x24": 1e9, "lambda 16x24": 5e6 } });
    bench.file("cache/wherefrom/rates.json", rates.to_string());
    let measured = bench.ok(&other);
    let lambda = costs(&measured, "lambda");
    let said = lambda.split_whitespace().skip_while(|word| !word.ends_with("FLOP")).nth(1).unwrap();
    let expected = operations(lambda) / 5e6;
    assert!((said.parse::<f64>().unwrap() - expected).abs() < 0.5 + 0.05 * expected, "{lambda}, {expected}");
    assert!(lambda.contains("measured"), "{lambda}");
    assert!(costs(&measured, "self").contains("measured"), "a stage alike: {measured}");

    manifest.provenance.insert("wall_seconds".into(), 50.0.into());
    manifest.write(&folder).unwrap();
    let earlier = bench.ok(&other);
    assert!(costs(&earlier, "covariances").contains("50 s  earlier run"), "{earlier}");
    // Neither is said of another machine.
    let elsewhere = bench.ok(&[&other[..], &["--machine", "8x80GB"]].concat());
    assert!(!elsewhere.contains("earlier run") && !elsewhere.contains("measured"), "{elsewhere}");
}

/// A study of a Llama of 7 billion parameters, of which there is the `config.json`.
fn seven_billion(bench: &Bench) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 32000,
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": false,
    });
    bench.file("model/config.json", config.to_string());
    let rows = |count: usize| vec![json!({ "input_ids": vec![1; 256] }).to_string(); count].join("\n");
    bench.file("corpus.jsonl", rows(40));
    bench.file("queries.jsonl", rows(13));
    bench.file("study.toml", PIPELINE);
}

const PIPELINE: &str = r#"
[model]
path = "model"
modules = "all"
[steps.train]
stage = "tokenize"
corpus = "corpus.jsonl"
max-tokens = 256
[steps.queries]
stage = "tokenize"
corpus = "queries.jsonl"
max-tokens = 256
[steps.covariances]
stage = "covariance"
inputs = { tokens = "train" }
modules-per-pass = 100
[steps.basis]
stage = "eigenbasis"
inputs = { covariances = "covariances" }
[steps.lambda]
stage = "lambda"
inputs = { tokens = "train", eigenbasis = "basis" }
[steps.query-gradients]
stage = "gradients"
inputs = { tokens = "queries" }
[steps.ihvp]
stage = "precondition"
inputs = { gradients = "query-gradients", eigenbasis = "basis", lambda = "lambda" }
rank = "full"
[steps.scores]
stage = "score"
inputs = { queries = "ihvp", tokens = "train" }
"#;

/// Warnings of memory: the steps that each is of, and the rest of it.
fn warned(said: &Said) -> Vec<(Vec<String>, String)> {
    let warnings = said.err.lines().filter(|line| line.contains(" may be held here; "));
    let named = |line: &str| {
        let (steps, advice) = line.split_once(" may be held here; ").unwrap();
        (steps.split('`').skip(1).step_by(2).map(String::from).collect(), advice.to_string())
    };
    warnings.map(named).collect()
}

#[test]
fn advice_is_followed_and_the_step_fits() {
    let bench = Bench::new();
    seven_billion(&bench);
    let plan = |file: &str, memory: &str| {
        let said = bench.wherefrom(&["plan", file, "--machine", &format!("1x{memory}")]);
        assert_eq!(said.code, Some(0), "{said:?}");
        said
    };
    let (mut written, mut hopeless) = (0, 0);
    for memory in ["3GB", "21GB", "40GB", "60GB"] {
        for (steps, advice) in warned(&plan("study.toml", memory)) {
            let free = |said: &Said| {
                let still: Vec<_> = warned(said).into_iter().flat_map(|(steps, _)| steps).collect();
                assert!(!steps.iter().any(|step| still.contains(step)), "{memory}: {steps:?}: {advice}: {}", said.err);
            };
            if let Some(line) = advice.strip_prefix("no knob makes that fit; the least that does is --memory ") {
                free(&plan("study.toml", line.strip_suffix(", where it is there").unwrap()));
                hopeless += 1;
                continue;
            }
            let words: Vec<_> = advice.splitn(3, '`').collect();
            let (line, table) = (words[1], words[2].split(['[', ']']).nth(1).unwrap());
            let knob = line.split(' ').next().unwrap();
            let heading = format!("[{table}]\n");
            let (before, after) = PIPELINE.split_once(&heading).unwrap();
            let (own, rest) = after.split_once("\n[").unwrap_or((after, ""));
            let kept: Vec<_> = own.lines().filter(|own| !own.starts_with(&format!("{knob} ="))).collect();
            let with = if words[0] == "with " { line } else { "" };
            bench.file("advised.toml", format!("{before}{heading}{}\n{with}\n[{rest}", kept.join("\n")));
            free(&plan("advised.toml", memory));
            written += 1;
        }
    }
    assert!(written > 0 && hopeless > 0, "{written} lines to write, {hopeless} without");
}

/// Fewer bytes a weight need no more memory: neither where they leave room for the weights but not for a query beside them.
#[test]
fn half_the_bytes_need_no_more_memory() {
    let bench = Bench::new();
    seven_billion(&bench);
    for memory in ["3GB", "21GB", "40GB"] {
        let gigabytes = |precision: &str| {
            let set = format!("model.precision={precision}");
            let said = bench.wherefrom(&["plan", "study.toml", "--machine", &format!("1x{memory}"), "--set", &set]);
            let mut words = costs(&said.out, "scores").split_whitespace();
            let number: f64 = words.next().unwrap().parse().unwrap();
            assert_eq!(words.next(), Some("GB"), "{}", said.out);
            number
        };
        let (half, whole) = (gigabytes("\"bf16\""), gigabytes("\"f32\""));
        assert!(half <= whole, "{memory}: {half} GB in bf16, {whole} in float32");
    }
}

#[test]
fn a_study_of_days_and_terabytes_is_told_what_helps() {
    let bench = Bench::new();
    seven_billion(&bench);
    let rows = vec![json!({ "input_ids": vec![1; 256] }).to_string(); 2000].join("\n");
    bench.file("queries.jsonl", &rows);
    let said = bench.wherefrom(&["plan", "study.toml"]);
    let line = |part: &str| {
        said.err.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("no {part}: {}", said.err))
    };
    // 2,000 queries of 6.5e9 numbers.
    let disk = line("the steps write ");
    assert!(
        disk.contains(" TB, most of it `ihvp` (") && disk.contains(" free for ") && disk.contains("with `rank = "),
        "{disk}"
    );
    let time = line("the steps take ");
    assert!(
        time.contains(" days here, most of it ") && time.contains("with `modules = ") && time.contains("in [model]"),
        "{time}"
    );
    // Four tenths of the maps, and of the embeddings nothing.
    let globs = ["--set", "model.modules=[\"*.down_proj\"]"];
    let thin = bench.wherefrom(&[&["plan", "study.toml", "--machine", "1x1TB"][..], &globs].concat());
    assert!(thin.err.contains("only 1,442,840,576 of 6,476,271,616 parameters outside the embeddings"), "{}", thin.err);
}

#[test]
fn a_model_without_weights_is_planned_and_said_to_be_one() {
    let bench = Bench::new();
    seven_billion(&bench);
    let said = bench.wherefrom(&["plan", "study.toml", "--machine", "1x21GB"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let alone = "planned from config.json alone: the weights of ";
    assert_eq!(said.out.matches(alone).count(), 1, "{}", said.out);
    assert!(bench.refused(&["run", "study.toml"]).contains("model"), "it cannot run");
}

#[test]
fn what_is_not_there_is_said_once_after_the_table() {
    let bench = Bench::new();
    study::write(&bench, 300, 40);
    bench.file("missing.toml", PIPELINE.replace("path = \"model\"", "path = \"nowhere\""));
    let said = bench.wherefrom(&["plan", "missing.toml"]);
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.out.contains("to do, roughly") && said.out.contains("no model: see below"), "{}", said.out);
    assert_eq!(said.err.matches("the model folder nowhere cannot be read").count(), 1, "{}", said.err);
    for step in ["covariances", "lambda", "query-gradients", "scores"] {
        assert!(said.err.contains(&format!("`{step}`")), "{}", said.err);
    }
    // For another machine nothing has to be here.
    let said = bench.wherefrom(&["plan", "missing.toml", "--machine", "8x80GB"]);
    assert_eq!(said.code, Some(0), "{said:?}");
}

#[test]
fn a_corpus_that_is_not_there_has_the_size_that_is_said() {
    let bench = Bench::new();
    study::write(&bench, 300, 40);
    let text = bench.text("study.toml").replace("corpus = \"queries.jsonl\"", "corpus = \"absent.jsonl\"");
    bench.file("study.toml", text);
    let said = bench.wherefrom(&["plan", "study.toml"]);
    assert_eq!(said.code, Some(2), "{said:?}");
    let line = costs(&said.out, "queries");
    assert!(line.ends_with("10 rows of 12 tokens assumed: the corpus is not there"), "{line}");
    let line = costs(&said.out, "train");
    assert!(line.ends_with("tokens guessed at 4 bytes each: the tokenizer is not there"), "{line}");
    assert!(Path::new(&bench.path("corpus.jsonl")).exists());
}
