//! Artifacts that another program wrote, well-formed and wrong: refused by file and row, never a panic.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use whence_artifact::{
    Artifact, ArtifactKind, Basis, Candidate, Candidates, Covariance, Covariances, Draft, Eigenbasis, Example, Factors,
    Gradients, Lambda, LambdaSum, Manifest, Preconditioned, Recipe, Row, Silent, Store, Tokens,
};

use crate::bench::{Bench, results};
use crate::study::{self, Made};

/// A small study, and a pipeline that reads one artifact from elsewhere.
struct Door {
    bench: Bench,
    steps: Vec<Made>,
}

impl Door {
    fn new() -> Self {
        let bench = Bench::new();
        study::write(&bench, 300, 40);
        let steps = study::made(&bench.ok(&["run", "study.toml"]));
        Self { bench, steps }
    }

    fn folder(&self, step: &str) -> PathBuf {
        self.steps.iter().find(|made| made.name == step).unwrap().sealed(&self.bench)
    }

    /// The step's rows after `change`, sealed by another program with the metadata and facts that it ought to have.
    fn changed<K: ArtifactKind, R: Row<K>>(&self, step: &str, change: impl FnOnce(&mut Vec<R>)) -> PathBuf {
        let artifact = Artifact::<K>::open(&self.folder(step)).unwrap();
        let mut rows: Vec<R> = artifact.rows::<R>().unwrap().map(Result::unwrap).collect();
        change(&mut rows);
        self.sealed(step, artifact.manifest(), |draft| draft.write(0, &[R::to_batch(&rows)?]))
    }

    fn sealed(&self, step: &str, manifest: &Manifest, fill: impl FnOnce(&mut Draft) -> anyhow::Result<()>) -> PathBuf {
        let elsewhere = self.bench.path(format!("elsewhere-{step}"));
        let _earlier = std::fs::remove_dir_all(&elsewhere);
        let recipe = Recipe { stage: "stranger".into(), inputs: BTreeMap::new(), ..manifest.recipe.clone() };
        let fill = |draft: &mut Draft| {
            draft.metadata("method", "ekfac");
            draft.summary("tokens", 1000)?;
            draft.summary("examples", 300)?;
            fill(draft)
        };
        Store::new(elsewhere).produce(manifest.kind, recipe, &Silent, fill).unwrap().0
    }

    /// A step that reads the changed artifact as `role` is refused, and nothing is made. `stage` may name a method.
    fn refuses(&self, stage: &str, role: &str, artifact: &Path, others: &[(&str, &str)], fragments: &[&str]) {
        let mut inputs = vec![format!("{role} = {artifact:?}")];
        inputs.extend(others.iter().map(|(role, step)| format!("{role} = {:?}", self.folder(step))));
        let model = self.folder("model");
        let stage = match stage.split_once(' ') {
            Some((stage, method)) => format!("stage = \"{stage}\"\nmethod = \"{method}\""),
            None => format!("stage = \"{stage}\""),
        };
        self.bench.file(
            "door.toml",
            format!("[model]\npath = {model:?}\n[steps.door]\n{stage}\ninputs = {{ {} }}\n", inputs.join(", ")),
        );
        let before = results(&self.bench.store());
        let error = self.bench.refused(&["run", "door.toml"]);
        assert!(error.contains("step `door`"), "{error}");
        for fragment in fragments {
            assert!(error.contains(fragment), "no `{fragment}` in: {error}");
        }
        let made: Vec<_> = results(&self.bench.store());
        let made = made.iter().filter(|path| !before.contains(path) && !path.ends_with("plan.json"));
        assert_eq!(made.collect::<Vec<_>>(), Vec::<&PathBuf>::new(), "{error}");
    }
}

/// What is wrong with a row, and what is said of it.
type Case<'a> = (fn(&mut Example), &'a [&'a str]);

#[test]
fn tokens_that_no_model_can_read_are_refused_by_row() {
    let door = Door::new();
    let cases: [Case<'_>; 7] = [
        (|row| row.input_ids[1] = 320, &["token id 320", "example 7", "vocabulary of 320"]),
        (|row| row.input_ids[0] = u32::MAX, &["token id 4294967295", "example 7"]),
        (
            |row| (row.input_ids, row.target_mask) = (vec![5; 40], [vec![false], vec![true; 39]].concat()),
            &["40 tokens", "16 positions", "max-tokens"],
        ),
        (|row| row.target_mask.push(true), &["example 7", "target_mask"]),
        (|row| row.target_mask.truncate(1), &["example 7", "target_mask"]),
        (|row| row.target_mask[0] = true, &["example 7", "position 0"]),
        (|row| (row.input_ids, row.target_mask) = (vec![], vec![]), &["example 7", "no tokens"]),
    ];
    for (change, fragments) in cases {
        let tokens = door.changed::<Tokens, Example>("train", |rows| change(&mut rows[7]));
        for stage in ["losses", "covariance", "lambda", "gradients"] {
            door.refuses(stage, "tokens", &tokens, &[], fragments);
        }
        door.refuses("score", "tokens", &tokens, &[("queries", "ihvp")], fragments);
    }
}

#[test]
fn a_rival_sequence_is_held_to_the_same() {
    let door = Door::new();
    let cases: [Case<'_>; 2] = [
        (
            |row| (row.contrast_ids, row.contrast_mask) = (vec![5, 320], vec![false, true]),
            &["token id 320", "example 1"],
        ),
        (|row| (row.contrast_ids, row.contrast_mask) = (vec![5, 6], vec![false]), &["example 1", "contrast_mask"]),
    ];
    for (change, fragments) in cases {
        let tokens = door.changed::<Tokens, Example>("queries", |rows| change(&mut rows[1]));
        door.refuses("gradients", "tokens", &tokens, &[], fragments);
    }
}

#[test]
fn a_query_without_completion_tokens_is_refused_by_row() {
    // Prompts that were kept to be completed, and were not.
    let door = Door::new();
    let fragments = ["row 0", "no completion", "generate"];
    door.refuses("gradients", "tokens", &door.folder("prompts"), &[], &fragments);
}

#[test]
fn matrices_of_other_shapes_are_refused_by_module() {
    let door = Door::new();
    let basis = [("eigenbasis", "basis"), ("lambda", "lambda")];
    for lost in [1, 5] {
        let covariances = door.changed::<Covariances, Covariance>("covariances", |rows| {
            let left = rows[2].matrix.len() - lost;
            rows[2].matrix.truncate(left);
        });
        door.refuses("eigenbasis", "covariances", &covariances, &[], &["matrix", "values"]);
        let gradients = door.changed::<Gradients, Factors>("query-gradients", |rows| {
            let left = rows[2].left.len() - lost;
            rows[2].left.truncate(left);
        });
        door.refuses("precondition", "gradients", &gradients, &basis, &["left", "values"]);
        let queries = door.changed::<Preconditioned, Factors>("ihvp", |rows| {
            let left = rows[2].right.len() - lost;
            rows[2].right.truncate(left);
        });
        door.refuses("score", "queries", &queries, &[("tokens", "train")], &["right", "values"]);
    }
    let eigenbasis = door.changed::<Eigenbasis, Basis>("basis", |rows| rows[1].vectors.push(0.0));
    let others = [("gradients", "query-gradients")];
    door.refuses("precondition kfac", "eigenbasis", &eigenbasis, &others, &["vectors", "values"]);
    let lambda = door.changed::<Lambda, LambdaSum>("lambda", |rows| rows[1].lambda.push(0.0));
    let others = [("gradients", "query-gradients"), ("eigenbasis", "basis")];
    door.refuses("precondition", "lambda", &lambda, &others, &["lambda", "values"]);
    let transposed = door.changed::<Preconditioned, Factors>("ihvp-full", |rows| rows[0].left_shape.reverse());
    door.refuses("score", "queries", &transposed, &[("tokens", "train")], &["shape", "another model"]);
}

#[test]
fn modules_that_are_not_there_are_refused_by_name() {
    let door = Door::new();
    let lambda = door.changed::<Lambda, LambdaSum>("lambda", |rows| drop(rows.remove(1)));
    let others = [("gradients", "query-gradients"), ("eigenbasis", "basis")];
    door.refuses("precondition", "lambda", &lambda, &others, &["module model.layers.0.mlp.up_proj", "`modules`"]);
    let basis = door.changed::<Eigenbasis, Basis>("basis", |rows| drop(rows.remove(1)));
    let (others, fragments) =
        ([("gradients", "query-gradients")], ["module model.layers.0.mlp.gate_proj", "`modules`"]);
    door.refuses("precondition kfac", "eigenbasis", &basis, &others, &fragments);
    let queries = door.changed::<Preconditioned, Factors>("ihvp", |rows| drop(rows.remove(1)));
    door.refuses("score", "queries", &queries, &[("tokens", "train")], &["module model.layers.0.mlp.up_proj"]);
    let queries = door.changed::<Preconditioned, Factors>("ihvp", |rows| rows[1].module = "model.layers.9.mlp".into());
    door.refuses("score", "queries", &queries, &[("tokens", "train")], &["model.layers.9.mlp"]);
}

#[test]
fn candidates_of_nothing_are_refused() {
    let door = Door::new();
    let others = [("queries", "ihvp"), ("tokens", "train")];
    for (change, fragments) in [
        ((|row| row.query = 4) as fn(&mut Candidate), ["query 4", "4 queries"]),
        (|row| row.example = 300, ["example 300", "300 examples"]),
    ] {
        let candidates = door.changed::<Candidates, Candidate>("candidates", |rows| change(&mut rows[3]));
        door.refuses("score", "candidates", &candidates, &others, &fragments);
    }
    let none = door.changed::<Candidates, Candidate>("candidates", Vec::clear);
    door.refuses("score", "candidates", &none, &others, &["no candidate"]);
}
