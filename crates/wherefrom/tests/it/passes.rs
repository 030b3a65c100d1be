//! Covariances and lambda in several passes over the tokens: the same bytes, whatever the memory.

use std::fs;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use wherefrom_artifact::{Artifact, Factors, Gradients, Manifest};

use crate::bench::{Bench, files};
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
    assert!(line.ends_with("weights read block by block; 6 passes over the tokens"), "{line}");
    assert!(plan.err.contains("`proximal` (") && plan.err.contains("1.0 MB may be held here"), "{}", plan.err);
}

#[test]
fn gradients_are_the_same_in_little_memory() {
    let bench = Bench::new();
    write(&bench, 300, 40);
    let parts = |store: &str, more: &[&str]| -> Vec<String> {
        let said = bench.ok(&[&["run", "study.toml", "--to", "query-gradients", "--store", store], more].concat());
        let folder = bench.path(&made(&said).pop().unwrap().folder);
        assert!(Artifact::<Gradients>::open(&folder).unwrap().rows::<Factors>().unwrap().count() > 6);
        Manifest::read(&folder).unwrap().parts.into_iter().map(|part| part.blake3).collect()
    };
    // In little memory they wait in a file to be written.
    assert_eq!(parts("much", &[]), parts("little", &["--memory", "1MB"]));
}

/// A study of one of the families, its checkpoint in the folder `model`; of a float32 the upper half is a bfloat16.
fn families_study(family: &str, halve: bool) -> Bench {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/families");
    let bench = Bench::new();
    let content = |name: &str| fs::read(fixture.join(family).join(name)).unwrap();
    bench.file("model/config.json", content("config.json"));
    let bytes = content("model.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(name, view): (String, TensorView<'_>)| {
        let halved = halve && view.dtype() == Dtype::F32;
        let upper = || view.data().chunks_exact(4).flat_map(|b| [b[2], b[3]]).collect();
        let (dtype, bytes) = if halved { (Dtype::BF16, upper()) } else { (view.dtype(), view.data().to_vec()) };
        (name, dtype, view.shape().to_vec(), bytes)
    };
    let tensors: Vec<_> = tensors.tensors().into_iter().map(tensor).collect();
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    bench.file("model/model.safetensors", safetensors::serialize(views, None).unwrap());
    bench.file(
        "study.toml",
        format!(
            r#"
[model]
path = "model"
modules = "all"
[steps.train]
stage = "tokenize"
corpus = {:?}
max-tokens = 16
[steps.losses]
stage = "losses"
inputs = {{ tokens = "train" }}
[steps.covariances]
stage = "covariance"
inputs = {{ tokens = "train" }}
[steps.gradients]
stage = "gradients"
inputs = {{ tokens = "train" }}
[steps.basis]
stage = "eigenbasis"
inputs = {{ covariances = "covariances" }}
[steps.lambda]
stage = "lambda"
inputs = {{ tokens = "train", eigenbasis = "basis" }}
[steps.self]
stage = "self-influence"
inputs = {{ tokens = "train", eigenbasis = "basis", lambda = "lambda" }}
"#,
            fixture.join("train.jsonl")
        ),
    );
    bench
}

/// Tied and untied heads, one map or three for q, k and v, transposed or not.
#[test]
fn weights_that_stay_in_their_files_give_the_same_bytes() {
    for (family, halve) in [
        ("gpt_neox", false),
        ("gpt_neox", true),
        ("llama3", true),
        ("gpt2", false),
        ("gpt2_untied", false),
        ("gemma", false),
    ] {
        let bench = families_study(family, halve);
        let parts = |store: &str, more: &[&str]| -> Vec<(String, String, String)> {
            let steps = made(&bench.ok(&[&["run", "study.toml", "--store", store], more].concat()));
            let parts = |step: &Made| {
                let manifest = Manifest::read(&step.sealed(&bench)).unwrap();
                manifest.parts.into_iter().map(|part| (step.name.clone(), part.name, part.blake3)).collect::<Vec<_>>()
            };
            steps.iter().flat_map(parts).collect()
        };
        let little = ["--memory", "100kB"];
        bench.ok(&["run", "study.toml", "--store", "stored", "--to", "train"]);
        let plan = bench.ok(&[&["plan", "study.toml", "--store", "stored"], &little[..]].concat());
        assert_eq!(plan.matches("weights read block by block").count(), 5, "{plan}");
        assert!(!bench.ok(&["plan", "study.toml"]).contains("block by block"));
        let held = parts("held", &[]);
        assert!(held.len() > 10, "{held:?}");
        assert_eq!(parts("stored", &little), held, "{family}, halved {halve}");
    }
}

/// The process is stopped between two modules, and the checkpoint cut short or overwritten: no later part is written, nothing
/// is sealed, and no signal ends the process.
#[test]
fn a_checkpoint_that_changes_under_way_ends_the_step() {
    let bench = families_study("llama3", true);
    let words = [
        "run",
        "study.toml",
        "--to",
        "covariances",
        "--memory",
        "1MB",
        "--set",
        "steps.covariances.modules-per-pass=1",
    ];
    let file = bench.path("model/model.safetensors");
    let whole = fs::read(&file).unwrap();
    for (name, other) in [("cut", whole[..whole.len() / 2].to_vec()), ("overwritten", vec![0x3c; whole.len()])] {
        let (mut began, mut stopped) = (false, false);
        for _ in 0..20 {
            fs::write(&file, &whole).unwrap();
            if bench.store().exists() {
                fs::remove_dir_all(bench.store()).unwrap();
            }
            bench.ok(&["run", "study.toml", "--to", "train"]);
            let mut running = bench.start(&words, name);
            let part = |number: usize| {
                files(&bench.store()).into_iter().any(|path| {
                    path.ends_with(format!("part-{number:05}.arrow")) && path.to_string_lossy().contains("covariances")
                })
            };
            began |= running.until(|| part(0));
            running.signal("STOP");
            let parts = (0..20).filter(|&number| part(number)).count();
            fs::write(&file, &other).unwrap();
            running.signal("CONT");
            let (code, said) = (running.code(), bench.text(&format!("{name}.err")));
            if code == Some(0) {
                // It had read all that it would: another try.
                continue;
            }
            assert_eq!(code, Some(2), "{said}");
            assert!(said.contains("model.safetensors changed while it was read"), "{said}");
            let sealed = files(&bench.store());
            assert!(!sealed.iter().any(|path| {
                let path = path.to_string_lossy();
                path.contains("covariances") && !path.contains(".draft") && path.ends_with("manifest.json")
            }));
            assert!((0..20).filter(|&number| part(number)).count() <= parts + 1);
            stopped = true;
            break;
        }
        assert!(began && stopped, "{name}: never stopped in time");
    }
    // The draft of before is not gone on with.
    fs::write(&file, &whole).unwrap();
    let fresh = Manifest::read(&made(&bench.ok(&words)).pop().unwrap().sealed(&bench)).unwrap();
    let again = [&words[..], &["--store", "other"]].concat();
    assert_eq!(Manifest::read(&made(&bench.ok(&again)).pop().unwrap().sealed(&bench)).unwrap().parts, fresh.parts);
}
