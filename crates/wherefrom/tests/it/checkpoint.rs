//! Sums over a corpus survive a kill: what was summed is not summed again.
//!
//! A checkpoint falls due after twenty seconds of work. The process is stopped for as long instead: clocks go on, and
//! nothing has to be large.

use std::fs;
use std::thread::{scope, sleep};
use std::time::Duration;

use wherefrom_artifact::{Artifact, Covariance, Covariances, Lambda, LambdaSum};

use crate::bench::{Bench, copy, fixture};
use crate::study::{Made, made};

/// A little more than between two checkpoints.
const DUE: Duration = Duration::from_millis(20_500);

/// 1536 rows, 112,477 tokens: two spans.
fn study() -> Bench {
    let bench = Bench::new();
    let text = format!(
        r#"
[model]
path = {:?}
modules = ["model.layers.3.mlp.down_proj"]
[steps.train]
stage = "tokenize"
corpus = {:?}
max-tokens = 96
[steps.covariances]
stage = "covariance"
inputs = {{ tokens = "train" }}
[steps.lambda]
stage = "lambda"
inputs = {{ tokens = "train" }}
"#,
        fixture("model"),
        fixture("train.jsonl")
    );
    bench.file("study.toml", text);
    bench
}

struct Sums {
    counts: Vec<u64>,
    values: Vec<f32>,
}

impl Sums {
    fn read(bench: &Bench, step: &Made) -> Self {
        let folder = step.sealed(bench);
        let (mut counts, mut values) = (Vec::new(), Vec::new());
        if step.name == "covariances" {
            for row in Artifact::<Covariances>::open(&folder).unwrap().rows::<Covariance>().unwrap() {
                let row = row.unwrap();
                counts.push(row.count);
                values.extend(row.matrix);
            }
        } else {
            for row in Artifact::<Lambda>::open(&folder).unwrap().rows::<LambdaSum>().unwrap() {
                let row = row.unwrap();
                counts.push(row.count);
                values.extend(row.lambda);
            }
        }
        Self { counts, values }
    }
}

/// A run that was stopped `lead` after its work was planned, went on when its checkpoint was due, and was killed when
/// that was there; none if it was not.
fn killed(command: &[&str], step: &Made, lead: Duration) -> Option<Bench> {
    let bench = study();
    let draft = step.draft(&bench);
    let mut run = bench.start(command, "killed");
    assert!(run.until(|| draft.join("plan.json").exists()), "{}", bench.text("killed.err"));
    sleep(lead);
    run.signal("STOP");
    sleep(DUE);
    run.signal("CONT");
    (run.until(|| draft.join("scratch-done").exists()) && run.kill()).then_some(bench)
}

/// Kills the run right after its first checkpoint, resumes it, and compares with one run.
fn survives(name: &str) {
    let whole = study();
    let command = ["run", "study.toml", "--to", name];
    let step = made(&whole.ok(&command)).pop().unwrap();
    let expected = Sums::read(&whole, &step);

    // Stopped too early, before the clock is first read, or too late, in the last span, it saves nothing.
    let leads = [100, 400, 1600].map(Duration::from_millis);
    let Some(bench) = leads.into_iter().find_map(|lead| killed(&command, &step, lead)) else {
        panic!("{name}: no checkpoint");
    };
    let plan = bench.ok(&["plan", "study.toml"]);
    let line = plan.lines().find(|line| line.starts_with(name)).unwrap();
    assert!(line.contains("partial 1/2") && line.contains("begun, not finished"), "{line}");

    // A checkpoint that claims a thousand tokens and examples more must end in a sum over as many more.
    let other = study();
    copy(&bench.path("data"), &other.path("data"));
    let path = step.draft(&other).join("scratch-sums-by-module");
    let saved = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(saved[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&saved[8..8 + length]).unwrap();
    let add = |count: &mut serde_json::Value| *count = (count.as_u64().unwrap() + 1000).into();
    add(&mut header["counts"]["tokens"]);
    add(&mut header["counts"]["examples"]);
    header["modules"].as_array_mut().unwrap().iter_mut().for_each(|module| add(&mut module[1]));
    let header = serde_json::to_vec(&header).unwrap();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(&header);
    bytes.extend(&saved[8 + length..saved.len() - blake3::OUT_LEN]);
    bytes.extend(blake3::hash(&bytes).as_bytes());
    fs::write(&path, bytes).unwrap();
    other.ok(&command);
    let more: Vec<_> = expected.counts.iter().map(|count| count + 1000).collect();
    assert_eq!(Sums::read(&other, &step).counts, more, "the resumed run went on from its checkpoint");

    let resumed = made(&bench.ok(&command)).pop().unwrap();
    assert_eq!((&resumed.folder, resumed.cached), (&step.folder, false));
    let found = Sums::read(&bench, &step);
    assert_eq!(found.counts, expected.counts);
    let largest = expected.values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    assert_eq!(found.values.len(), expected.values.len());
    for (found, expected) in found.values.iter().zip(&expected.values) {
        assert!((found - expected).abs() <= 1e-6 * largest, "{found} is not {expected}");
    }
    let left: Vec<_> = fs::read_dir(step.sealed(&bench)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "no working state is left: {left:?}");
}

#[test]
fn sums_go_on_from_their_checkpoint() {
    // Side by side: both wait most of the time.
    scope(|scope| {
        for name in ["covariances", "lambda"] {
            scope.spawn(move || survives(name));
        }
    });
}
