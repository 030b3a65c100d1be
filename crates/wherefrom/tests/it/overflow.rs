//! Numbers that are not finite are refused where they arise, by row and module, and nothing is sealed.

use crate::bench::{Bench, fixture, results};
use crate::check::scaled;

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
    scaled(&bench, "layers.0.mlp.up_proj.weight", 1e25);
    refused(&bench, "covariances", &["step `covariances`"]);
    refused(&bench, "own", &["example ", "its self-influence by model.layers.0.mlp.", "not a finite number"]);
    refused(&bench, "plain-scores", &["example ", "its influence on query ", "not a finite number"]);
    refused(&bench, "plain-details", &["example ", "its influence on query ", "not a finite number"]);
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
