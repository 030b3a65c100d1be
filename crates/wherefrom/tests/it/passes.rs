//! Covariances and lambda in several passes over the tokens: the same bytes, whatever the memory.

use wherefrom_artifact::{Artifact, Factors, Gradients, Manifest};

use crate::bench::Bench;
use crate::study::{Made, made, write};

/// The parts of the fit, by step: names and digests.
fn parts(bench: &Bench, steps: &[Made]) -> Vec<(String, String, String)> {
    let fitted = steps.iter().filter(|step| ["covariances", "basis", "lambda"].contains(&&step.name[..]));
    let parts = |step: &Made| {
        let manifest = Manifest::read(&step.sealed(bench)).unwrap();
        manifest.parts.into_iter().map(|part| (step.name.clone(), part.name, part.blake3)).collect::<Vec<_>>()
    };
    fitted.flat_map(parts).collect()
}

#[test]
fn any_number_of_passes_gives_the_same_bytes() {
    let bench = Bench::new();
    write(&bench, 300, 40);
    let fit = ["run", "study.toml", "--to", "lambda", "--store"];
    let run = |store: &str, more: &[&str]| {
        let said = bench.wherefrom(&[&fit[..], &[store], more].concat());
        assert_eq!(said.code, Some(0), "{said:?}");
        (parts(&bench, &made(&said.out)), said.err)
    };
    let (expected, _) = run("pairs", &[]);
    assert_eq!(expected.len(), 18, "a part for each of six modules");
    for (store, passes) in [("one", "1"), ("five", "5"), ("all", "6")] {
        let set = |step: &str| format!("steps.{step}.modules-per-pass={passes}");
        let (found, _) = run(store, &["--set", &set("covariances"), "--set", &set("lambda")]);
        assert_eq!(found, expected, "{passes} modules a pass");
    }
    // Without the knob as many as fit: here hardly anything does, and that is said.
    let text = bench.text("study.toml").replace("modules-per-pass = 2\n", "").replace("modules-per-pass = 4\n", "");
    bench.file("study.toml", text);
    let (found, warned) = run("little", &["--memory", "1MB"]);
    assert_eq!(found, expected, "as many as fit");
    assert!(warned.contains("alone needs") && warned.contains("--memory"), "{warned}");
    let plan = bench.wherefrom(&["plan", "study.toml", "--store", "planned", "--memory", "1MB"]);
    assert_eq!(plan.code, Some(0), "{plan:?}");
    let line = plan.out.lines().rev().find(|line| line.starts_with("covariances")).unwrap();
    assert!(line.ends_with("6 passes over the tokens"), "{line}");
    assert!(plan.err.contains("`covariances` (") && plan.err.contains("1.0 MB may be held here"), "{}", plan.err);
}

#[test]
fn gradients_are_the_same_in_little_memory() {
    let bench = Bench::new();
    write(&bench, 300, 40);
    let rows = |store: &str, more: &[&str]| -> Vec<Factors> {
        let said = bench.ok(&[&["run", "study.toml", "--to", "query-gradients", "--store", store], more].concat());
        let step = made(&said).pop().unwrap();
        let artifact = Artifact::<Gradients>::open(&bench.path(&step.folder)).unwrap();
        artifact.rows::<Factors>().unwrap().map(Result::unwrap).collect()
    };
    let (at_once, one_by_one) = (rows("much", &[]), rows("little", &["--memory", "1MB"]));
    assert_eq!(at_once.len(), one_by_one.len());
    for (left, right) in at_once.iter().zip(&one_by_one) {
        assert_eq!((left.row, &left.module, left.left_shape), (right.row, &right.module, right.left_shape));
        let largest = left.left.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * largest;
        assert!(left.left.iter().zip(&right.left).all(near), "row {} of {}", left.row, left.module);
    }
}
