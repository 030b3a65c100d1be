//! Numbers that are not finite are refused where they arise, by row and module, and nothing is sealed.

use crate::bench::{Bench, files, fixture, results, stamp};
use crate::check::{scaled, scaled_each};

/// Every stage that runs the model, on rows of the golden corpus.
fn study(bench: &Bench, damping: &str) {
    let rows = fixture("train.jsonl").display().to_string();
    let text = std::fs::read_to_string(rows).unwrap();
    bench.file("train.jsonl", text.lines().take(4).map(|line| format!("{line}\n")).collect::<String>());
    bench.file(
        "study.toml",
        format!(
            r#"
[model]
path = "model"
modules = ["model.layers.0.mlp.*"]
[steps.train]
stage = "tokenize"
corpus = "train.jsonl"
max-tokens = 32
[steps.losses]
stage = "losses"
inputs = {{ tokens = "train" }}
[steps.covariances]
stage = "covariance"
inputs = {{ tokens = "train" }}
[steps.basis]
stage = "eigenbasis"
inputs = {{ covariances = "covariances" }}
[steps.lambda]
stage = "lambda"
inputs = {{ tokens = "train", eigenbasis = "basis" }}
[steps.gradients]
stage = "gradients"
inputs = {{ tokens = "train" }}
[steps.ihvp]
stage = "precondition"
inputs = {{ gradients = "gradients", eigenbasis = "basis", lambda = "lambda" }}
damping = {damping}
[steps.scores]
stage = "score"
inputs = {{ queries = "ihvp", tokens = "train" }}
[steps.plain]
stage = "precondition"
inputs = {{ gradients = "gradients" }}
method = "identity"
[steps.plain-scores]
stage = "score"
inputs = {{ queries = "plain", tokens = "train" }}
[steps.plain-details]
stage = "score"
inputs = {{ queries = "plain", tokens = "train" }}
detail = true
[steps.own]
stage = "self-influence"
method = "identity"
inputs = {{ tokens = "train" }}
"#
        ),
    );
}

fn refused(bench: &Bench, step: &str, fragments: &[&str]) {
    let error = bench.refused(&["run", "study.toml", "--to", step]);
    for fragment in fragments {
        assert!(error.contains(fragment), "{step}: no `{fragment}` in {error}");
    }
}

#[test]
fn a_loss_that_overflows_is_refused_by_row_and_module() {
    let bench = Bench::new();
    study(&bench, "0.1");
    scaled(&bench, "layers.0.mlp.up_proj.weight", 1e38);
    for step in ["losses", "covariances", "gradients", "own"] {
        let module = "and first the input of model.layers.0.mlp.down_proj";
        refused(&bench, step, &["example ", "the model's loss is not a finite number", module, "leave the row out"]);
    }
    let sealed = results(&bench.store());
    let sealed = sealed.iter().filter(|path| !path.parent().unwrap().to_string_lossy().ends_with(".draft"));
    assert!(sealed.clone().all(|path| path.to_string_lossy().contains("tokens-v")), "{:?}", sealed.collect::<Vec<_>>());
}

#[test]
fn products_that_overflow_are_refused_where_the_loss_does_not() {
    // The input of down_proj is beyond 1e20, its output as ever: squares are infinite in float32.
    let bench = Bench::new();
    study(&bench, "0.1");
    scaled_each(&bench, &[("layers.0.mlp.up_proj.weight", 1e25), ("layers.0.mlp.down_proj.weight", 1e-25)]);
    bench.ok(&["run", "study.toml", "--to", "losses"]);
    refused(&bench, "covariances", &["step `covariances`"]);
    refused(&bench, "own", &["example ", "its self-influence by model.layers.0.mlp.", "not a finite number"]);
    refused(&bench, "plain-scores", &["example ", "its influence on query ", "not a finite number"]);
    refused(&bench, "plain-details", &["example ", "its influence on query ", "not a finite number"]);
}

/// A norm of numbers whose squares overflow is no norm of zeros, after which every loss would be finite and mean nothing.
#[test]
fn a_stream_whose_squares_overflow_is_refused() {
    for (block, place) in [("layers.0", "the input of model.layers.1."), ("layers.3", "the final norm or the head")] {
        let bench = Bench::new();
        study(&bench, "0.1");
        scaled(&bench, &format!("{block}.mlp.up_proj.weight"), 1e25);
        for step in ["losses", "covariances", "gradients", "own", "plain-scores"] {
            refused(&bench, step, &["example ", "the model's loss is not a finite number", place, "leave the row out"]);
        }
    }
}

#[test]
fn a_gradient_that_overflows_on_its_way_back_is_refused_where_the_loss_does_not() {
    // silu(0) = 0, so that nothing comes of the MLP; its derivative is 1/2, and d of the gate as large as up times down.
    let bench = Bench::new();
    study(&bench, "0.1");
    let factors = [("gate_proj.weight", 0.0), ("up_proj.weight", 1e25), ("down_proj.weight", 1e25)];
    scaled_each(&bench, &factors.map(|(name, factor)| (&*format!("layers.0.mlp.{name}").leak(), factor)));
    bench.ok(&["run", "study.toml", "--to", "losses"]);
    for (step, what) in
        [("covariances", "covariance"), ("gradients", "its gradient in "), ("own", "its self-influence by ")]
    {
        refused(
            &bench,
            step,
            &["example ", what, "not a finite number", "the gradient at the output of model.layers.0.mlp.gate_proj"],
        );
    }
}

#[test]
fn a_damping_below_what_float32_leaves_of_a_zero_is_said_with_one_that_would_do() {
    let bench = Bench::new();
    scaled(&bench, "layers.0.mlp.up_proj.weight", 1.0);
    // Four rows fill few directions of either basis.
    study(&bench, "0");
    refused(&bench, "ihvp", &["step `ihvp`", "is below what float32 leaves of a zero of Lambda", "relative = "]);
    study(&bench, "1e-12");
    let said = bench.wherefrom(&["run", "study.toml", "--to", "scores"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.err.contains("warning: ") && said.err.contains("relative = "), "{}", said.err);
    study(&bench, "0.1");
    let said = bench.wherefrom(&["run", "study.toml", "--to", "scores"]);
    assert!(said.code == Some(0) && !said.err.contains("float32 leaves"), "{said:?}");
}

/// What is all there is read, and no artifact is written: not even a name that is gone again. What is remembered of digests
/// and of runs may be written anew, and need not.
#[test]
fn artifacts_that_are_there_are_not_written() {
    let bench = Bench::new();
    scaled(&bench, "layers.0.mlp.up_proj.weight", 1.0);
    study(&bench, "0.1");
    let run: &[&str] = &["run", "study.toml", "--to", "scores"];
    bench.ok(run);
    let digests = bench.store().join("digests");
    std::fs::remove_dir_all(&digests).unwrap();
    std::fs::write(&digests, "in its place").unwrap();
    let stamps = || {
        let mut places = files(&bench.store());
        places.retain(|file| file.parent().unwrap().parent().unwrap().to_string_lossy().contains("-v"));
        let folders: Vec<_> = places
            .iter()
            .flat_map(|file| file.ancestors().skip(1).take(2).map(Into::into).collect::<Vec<_>>())
            .collect();
        places.extend(folders);
        places.into_iter().map(|place| (stamp(&place), place)).collect::<Vec<_>>()
    };
    let before = stamps();
    assert!(before.len() > 20);
    bench.ok(run);
    assert_eq!(stamps(), before);
}

/// What a killed run has summed is taken up as it was written, or refused.
#[test]
fn damaged_sums_of_a_run_that_was_killed_are_refused() {
    let bench = Bench::new();
    scaled(&bench, "layers.0.mlp.up_proj.weight", 1.0);
    study(&bench, "0.1");
    let run: &[&str] = &["run", "study.toml", "--to", "covariances"];
    bench.ok(run);
    // As it was in the middle: a draft with the plan, sums that say how far they are, and no part.
    let manifest =
        results(&bench.store()).into_iter().find(|path| path.to_string_lossy().contains("covariances-v")).unwrap();
    let sealed = manifest.parent().unwrap().to_path_buf();
    let draft = sealed.with_extension("draft");
    std::fs::remove_dir_all(&sealed).unwrap();
    let mut running = bench.start(run, "killed");
    let sums = || {
        files(&draft).into_iter().find(|file| {
            let name = file.file_name().unwrap().to_string_lossy();
            name.starts_with("scratch-") && !name.ends_with(".tmp") && name != "scratch-read"
        })
    };
    let there = running.until(|| sums().is_some());
    running.kill();
    let Some(path) = sums().filter(|_| there) else { panic!("no sums in {:?}", files(&draft)) };
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&path, bytes).unwrap();
    let error = bench.refused(run);
    assert!(error.contains("covariances") && error.contains("scratch-"), "{error}");
}
