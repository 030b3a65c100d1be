//! Artifacts that another program wrote, well-formed and wrong: refused by file and row, never a panic.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use wherefrom_artifact::{
    Artifact, ArtifactKind, Basis, Candidate, Candidates, Covariance, Covariances, Draft, Eigenbasis, Example, Factors,
    Gradients, Lambda, LambdaSum, Manifest, Part, Preconditioned, Recipe, Row, Silent, Store, Tokens, digest,
};

use crate::bench::{Bench, results};
use crate::study::{self, Made};

/// A small study, and a pipeline that reads one artifact from elsewhere.
struct Door {
    bench: Bench,
    steps: Vec<Made>,
    /// Of the part that is sealed next.
    rows: Cell<Option<u64>>,
}

impl Door {
    fn new() -> Self {
        let (bench, steps) = study::finished();
        Self { bench, steps, rows: Cell::new(None) }
    }

    fn folder(&self, step: &str) -> PathBuf {
        self.steps.iter().find(|made| made.name == step).unwrap().sealed(&self.bench)
    }

    /// The step's rows after `change`, sealed by another program with the metadata and facts that it ought to have.
    fn changed<K: ArtifactKind, R: Row<K>>(&self, step: &str, change: impl FnOnce(&mut Vec<R>)) -> PathBuf {
        let artifact = Artifact::<K>::open(&self.folder(step)).unwrap();
        let mut rows: Vec<R> = artifact.rows::<R>().unwrap().map(Result::unwrap).collect();
        change(&mut rows);
        self.rows.set(Some(rows.len() as u64));
        self.sealed(step, artifact.manifest(), |draft| draft.write(0, &[R::to_batch(&rows)?]))
    }

    /// What `fill` writes, sealed by a program that checks nothing.
    fn sealed(&self, step: &str, manifest: &Manifest, fill: impl FnOnce(&mut Draft) -> anyhow::Result<()>) -> PathBuf {
        let elsewhere = self.bench.path(format!("elsewhere-{step}"));
        let _earlier = std::fs::remove_dir_all(&elsewhere);
        let recipe = Recipe { stage: "stranger".into(), inputs: BTreeMap::new(), ..manifest.recipe.clone() };
        let (kind, rows, mut folder) = (manifest.kind, manifest.rows(), None);
        let fill = |draft: &mut Draft| {
            draft.metadata("method", "ekfac");
            fill(draft)?;
            let part = draft.part_path(0);
            let to = self.bench.path(format!("elsewhere-{step}/sealed"));
            std::fs::create_dir_all(&to)?;
            let name = part.file_name().unwrap().to_string_lossy().into_owned();
            std::fs::copy(&part, to.join(&name))?;
            let bytes = std::fs::metadata(&part)?.len();
            let part = Part { name, rows: self.rows.get().unwrap_or(rows), bytes, blake3: digest(&part)? };
            let manifest = Manifest {
                key: draft.key().into(),
                recipe: recipe.clone(),
                origin: Default::default(),
                parts: vec![part],
                summary: BTreeMap::from([("tokens".into(), 1000.into()), ("examples".into(), 300.into())]),
                ..manifest.clone()
            };
            manifest.write(&to)?;
            folder = Some(to);
            anyhow::bail!("sealed elsewhere")
        };
        let unsealed = Store::new(elsewhere).produce(kind, recipe.clone(), &Silent, fill).unwrap_err();
        folder.unwrap_or_else(|| panic!("{unsealed:#}"))
    }

    /// A pipeline of one step that reads the changed artifact as `role`. `stage` may name a method.
    fn step(&self, stage: &str, role: &str, artifact: &Path, others: &[(&str, &str)]) {
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
    }

    /// The step is made.
    fn accepts(&self, stage: &str, role: &str, artifact: &Path, others: &[(&str, &str)]) {
        self.step(stage, role, artifact, others);
        self.bench.ok(&["run", "door.toml"]);
    }

    /// The step is refused, and nothing is made.
    fn refuses(&self, stage: &str, role: &str, artifact: &Path, others: &[(&str, &str)], fragments: &[&str]) {
        self.step(stage, role, artifact, others);
        let before = results(&self.bench.store());
        let error = self.bench.refused(&["run", "door.toml"]);
        assert!(error.contains("step `door`"), "{error}");
        for fragment in fragments {
            assert!(error.contains(fragment), "no `{fragment}` in: {error}");
        }
        let made: Vec<_> = results(&self.bench.store());
        // What was finished before the refusal stays in the draft: nothing is sealed.
        let in_draft = |path: &Path| path.parent().unwrap().extension().is_some_and(|ending| ending == "draft");
        let made = made.iter().filter(|path| !before.contains(path) && !in_draft(path));
        assert_eq!(made.collect::<Vec<_>>(), Vec::<&PathBuf>::new(), "{error}");
    }
}

/// What is wrong with a row, and what is said of it.
type Case<'a> = (fn(&mut Example), &'a [&'a str]);

#[test]
fn tokens_that_no_model_can_read_are_refused_by_row() {
    let door = Door::new();
    let cases: [Case<'_>; 12] = [
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
        (|row| row.segments = vec![1], &["example 7", "segments [1]"]),
        (|row| row.segments = vec![0, 1000], &["example 7", "segments [0, 1000]"]),
        (|row| (row.segments, row.target_mask[2]) = (vec![0, 2], true), &["example 7", "position 2", "segment"]),
        (|row| row.weights = vec![1.0, 1.0], &["example 7", "weights has 2 entries for 1"]),
        (|row| row.weights = vec![f32::NAN], &["example 7", "`weights`", "not finite"]),
    ];
    for (change, fragments) in cases {
        let tokens = door.changed::<Tokens, Example>("train", |rows| change(&mut rows[7]));
        for stage in ["losses", "covariance", "lambda", "gradients"] {
            door.refuses(stage, "tokens", &tokens, &[], fragments);
        }
        door.refuses("score", "tokens", &tokens, &[("queries", "ihvp")], fragments);
        door.refuses("gradient-products", "queries", &tokens, &[("tokens", "train")], fragments);
    }
    // Whatever a manifest says of its rows.
    let tokens = door.changed::<Tokens, Example>("train", |rows| rows[7].input_ids[1] = 320);
    let mut manifest = Manifest::read(&tokens).unwrap();
    ["largest_id", "longest"].into_iter().for_each(|name| drop(manifest.summary.insert(name.into(), 3.into())));
    manifest.write(&tokens).unwrap();
    door.refuses("losses", "tokens", &tokens, &[], &["token id 320", "example 7", "vocabulary of 320"]);
}

#[test]
fn a_context_is_held_against_segments() {
    // 40 tokens in segments of at most 16 are read by a model of 16 positions; of 17 they are not.
    let door = Door::new();
    let tokens = |segments: &[u32]| {
        door.changed::<Tokens, Example>("train", |rows| {
            let row = &mut rows[7];
            (row.input_ids, row.segments) = (vec![5; 40], segments.to_vec());
            row.target_mask = (0..40).map(|t| !segments.contains(&t)).collect();
        })
    };
    door.refuses("losses", "tokens", &tokens(&[0, 16, 33]), &[], &["17 tokens", "16 positions"]);
    door.accepts("losses", "tokens", &tokens(&[0, 16, 32]), &[]);
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
    door.refuses("score", "queries", &queries, &[("tokens", "train")], &["module model.layers.0.mlp.gate_proj"]);
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

/// Whether a process runs: one that has ended and that nobody has asked for yet does not.
fn runs(process: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.trim())).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with('Z'))
}

#[test]
#[cfg(target_os = "linux")]
fn a_program_ends_with_the_process_that_started_it() {
    let bench = Bench::new();
    // The program, and one that it starts. What it does is not in the key.
    bench.file("slow.sh", "sleep 300 & echo $! > child; echo $$ > program; touch $1/part-00000.parquet; wait\n");
    let command = r#"command = ["sh", "-c", "sh slow.sh $3"]"#;
    bench.file(
        "slow.toml",
        format!("[steps.slow]\nstage = \"external\"\n{command}\nwrites = \"candidates\"\nversion = 1\n"),
    );
    let mut running = bench.start(&["run", "slow.toml"], "slow");
    let begun = || bench.path("program").exists() && !bench.text("program").is_empty();
    assert!(running.until(begun), "{}", bench.text("slow.err"));
    let both = [bench.text("program"), bench.text("child")];
    assert!(both.iter().all(|process| runs(process)));
    assert!(running.kill());
    let start = std::time::Instant::now();
    while both.iter().any(|process| runs(process)) {
        assert!(start.elapsed().as_secs() < 20, "{both:?} go on");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // The next attempt has a folder of its own, and what the first left is gone.
    bench.file("slow.sh", "ls $(dirname $1) > seen; ls $1 >> seen\n");
    let error = bench.refused(&["run", "slow.toml"]);
    assert!(error.contains("nothing was written"), "{error}");
    let seen = bench.text("seen");
    assert!(seen.lines().all(|line| line.starts_with("attempt-")) && !seen.contains("part-"), "{seen}");
}
