//! A study made by many processes: each step by shares, in any order, repeated and killed, as an engine runs them from the plan.

use std::fs::File;

use serde_json::Value;

use crate::bench::Bench;
use crate::study::{self, Numbers, Results};

fn words(command: &Value, share: usize) -> Vec<String> {
    let words = command.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_string());
    words.skip(1).map(|word| word.replace("{K}", &share.to_string())).collect()
}

fn run(bench: &Bench, command: &Value, share: usize) -> String {
    let words = words(command, share);
    bench.ok(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Where a step lies or will lie.
fn folder(bench: &Bench, step: &str) -> String {
    let plan: Value = serde_json::from_str(&bench.ok(&["plan", "study.toml", "--json"])).unwrap();
    let step = plan["steps"].as_array().unwrap().iter().find(|found| found["name"] == step).unwrap();
    step["folder"].as_str().unwrap().into()
}

/// Does what the plan says for `count` processes. How many steps were split.
fn drive(bench: &Bench, pipeline: &str, count: usize, numbers: &mut Numbers) -> usize {
    let plan = bench.ok(&["plan", pipeline, "--shards", &count.to_string(), "--json"]);
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["shards"], count);
    let (mut split, mut made) = (0, Vec::new());
    for step in plan["steps"].as_array().unwrap() {
        let shards = &step["shards"];
        for before in shards["waits_for"].as_array().unwrap() {
            assert!(made.contains(before), "{before} is made before {}", step["name"]);
        }
        if shards["share"].is_array() {
            assert_eq!(shards["count"], count);
            split += 1;
            let mut order: Vec<usize> = (0..count).chain([0, count - 1]).collect();
            (1..order.len()).rev().for_each(|last| order.swap(last, numbers.below(last as u64 + 1) as usize));
            for share in order {
                let said = run(bench, &shards["share"], share);
                let name = step["name"].as_str().unwrap();
                assert_eq!(said.trim_end(), format!("share {share}/{count} of {name} is done"));
            }
        }
        run(bench, &shards["seal"], 0);
        made.push(step["name"].clone());
    }
    split
}

#[test]
fn a_study_made_by_shares_is_the_study_of_one_process() {
    let (one, steps) = study::finished();
    let expected = Results::read(&one, &steps);
    let many = Bench::new();
    study::write(&many, 300, 40);
    assert!(drive(&many, "study.toml", 3, &mut Numbers(5)) > 20);
    let steps = study::made(&many.ok(&["run", "study.toml"]));
    assert!(steps.iter().all(|step| step.cached), "all of it is sealed");
    expected.agrees_by_row(&Results::read(&many, &steps));
}

#[test]
fn a_share_that_is_killed_is_done_by_whoever_comes_next() {
    let bench = Bench::new();
    study::write(&bench, 3000, 40);
    bench.ok(&["run", "study.toml", "--to", "basis"]);
    let begun = bench.path(format!("{}.draft/plan.json", folder(&bench, "lambda")));
    let mut killed = bench.start(&["run", "study.toml", "--to", "lambda", "--shard", "1/2"], "killed");
    assert!(killed.until(|| begun.exists()));
    assert!(killed.kill(), "it was not done yet");
    for share in ["0/2", "1/2"] {
        bench.ok(&["run", "study.toml", "--to", "lambda", "--shard", share]);
    }
    bench.ok(&["run", "study.toml", "--to", "lambda"]);
    let one = Bench::new();
    study::write(&one, 3000, 40);
    let [many, one] = [&bench, &one].map(|bench| {
        let folder = bench.made("study.toml", "lambda");
        let artifact = wherefrom_artifact::Artifact::<wherefrom_artifact::Lambda>::open(&folder).unwrap();
        let rows = artifact.rows::<wherefrom_artifact::LambdaSum>().unwrap();
        rows.map(|row| row.unwrap().lambda).collect::<Vec<_>>().concat()
    });
    let largest = one.iter().fold(0.0_f32, |largest, value| largest.max(*value));
    assert!(!one.is_empty() && many.iter().zip(&one).all(|(many, one)| (many - one).abs() <= 1e-6 * largest));
}

#[test]
fn what_a_share_cannot_do_is_refused_or_may_be_tried_again() {
    let bench = Bench::new();
    study::write(&bench, 300, 40);
    for (words, fragments) in [
        (&["--to", "covariances", "--shard", "0/2"][..], &["its input `tokens` is not there", "--to train"][..]),
        (&["--to", "train", "--shard", "0/2"], &["`tokenize` is not split", "without --shard"]),
        (&["--to", "nothing", "--shard", "0/2"], &["no step `nothing`"]),
        (&["--to", "train", "--shard", "2/2"], &["write K/N"]),
        (&["--shard", "0/2"], &["--to <STEP>"]),
    ] {
        let said = bench.wherefrom(&[&["run", "study.toml"], words].concat());
        assert_eq!(said.code, Some(2), "{words:?}: {said:?}");
        fragments.iter().for_each(|fragment| assert!(said.err.contains(fragment), "{words:?}: {}", said.err));
    }

    bench.ok(&["run", "study.toml", "--to", "model"]);
    bench.ok(&["run", "study.toml", "--to", "covariances", "--shard", "0/2"]);
    let other = bench.refused(&["run", "study.toml", "--to", "covariances", "--shard", "0/3"]);
    assert!(other.contains("begun with 2 shares and not 3"), "{other}");
    // Whoever makes the whole is not disturbed.
    let held = File::create(bench.path(format!("{}.lock", folder(&bench, "covariances")))).unwrap();
    held.lock().unwrap();
    for (again, code) in [(&[][..], 75), (&["--again", "99"], 99)] {
        let words = [&["run", "study.toml", "--to", "covariances", "--shard", "1/2"], again].concat();
        let said = bench.wherefrom(&words);
        assert_eq!(said.code, Some(code), "{said:?}");
        assert!(said.err.contains("another process is making the whole"), "{said:?}");
    }
    drop(held);
    // One share of two is missing: the whole is made all the same.
    bench.ok(&["run", "study.toml", "--to", "covariances"]);
    let said = bench.ok(&["run", "study.toml", "--to", "covariances", "--shard", "1/2"]);
    assert_eq!(said.trim_end(), "share 1/2 of covariances is sealed: nothing to do");
}

#[test]
#[cfg(unix)]
fn a_scheduler_ends_a_share_with_the_number_that_means_again() {
    for signal in ["TERM", "USR1"] {
        let bench = Bench::new();
        study::write(&bench, 8000, 40);
        bench.ok(&["run", "study.toml", "--to", "model"]);
        let begun = bench.path(format!("{}.draft/plan.json", folder(&bench, "covariances")));
        let mut running = bench.start(&["run", "study.toml", "--to", "covariances", "--shard", "0/2"], "ended");
        assert!(running.until(|| begun.exists()), "{}", bench.text("ended.err"));
        running.signal(signal);
        assert_eq!(running.code(), Some(75), "{}", bench.text("ended.err"));
        assert!(bench.text("ended.err").contains(&format!("ended by SIG{signal}")), "{}", bench.text("ended.err"));
    }
}
