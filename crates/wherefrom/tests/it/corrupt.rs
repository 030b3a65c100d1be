//! A flipped byte, a truncated part, a changed manifest: found, named, and nothing is computed from it.

use std::fs;
use std::path::Path;

use wherefrom_artifact::MANIFEST;

use crate::bench::{Bench, copy, results};
use crate::study::{self, Made};

const RUN: &[&str] = &["run", "study.toml"];

/// A finished study, small.
fn step<'a>(steps: &'a [Made], name: &str) -> &'a Made {
    steps.iter().find(|step| step.name == name).unwrap()
}

/// What can happen to a file.
#[derive(Debug, Clone, Copy)]
enum Damage {
    /// One bit at this byte; negative counts from the end.
    Flip(isize),
    /// One bit in the middle.
    FlipMiddle,
    /// So many bytes are lost at the end.
    Cut(usize),
    /// Only half is left.
    CutHalf,
    /// Nothing is left.
    Empty,
    /// Zeros follow.
    Longer,
    /// It is not there.
    Gone,
}

impl Damage {
    const ALL: [Self; 8] = [
        Self::Flip(0),
        Self::FlipMiddle,
        Self::Flip(-1),
        Self::Cut(1),
        Self::CutHalf,
        Self::Empty,
        Self::Longer,
        Self::Gone,
    ];

    fn do_to(self, path: &Path, whole: &[u8]) {
        let mut bytes = whole.to_vec();
        let length = bytes.len();
        match self {
            Self::Flip(place) => bytes[place.rem_euclid(length as isize) as usize] ^= 0x10,
            Self::FlipMiddle => bytes[length / 2] ^= 0x10,
            Self::Cut(lost) => bytes.truncate(length - lost),
            Self::CutHalf => bytes.truncate(length / 2),
            Self::Empty => bytes.clear(),
            Self::Longer => bytes.extend([0; 8]),
            Self::Gone => return fs::remove_file(path).unwrap(),
        }
        fs::write(path, bytes).unwrap();
    }
}

/// `verify` finds the file, of all artifacts and of this one.
fn is_found(bench: &Bench, path: &Path, damage: Damage) {
    let folder = path.parent().unwrap();
    let name = format!("{}/{}", folder.file_name().unwrap().display(), path.file_name().unwrap().display());
    for words in [&["verify"][..], &["verify", folder.file_name().unwrap().to_str().unwrap()]] {
        let said = bench.wherefrom(words);
        assert_eq!(said.code, Some(2), "{damage:?} of {name}: {said:?}");
        assert!(said.err.contains(&name), "{damage:?} of {name}: {}", said.err);
        assert!(said.err.contains("wherefrom rm"), "a remedy: {}", said.err);
        let (corrupt, ok): (Vec<_>, Vec<_>) = said.out.lines().partition(|line| line.starts_with("corrupt"));
        assert_eq!(corrupt.len(), 1, "{}", said.out);
        assert!(corrupt[0].contains(&name) && ok.iter().all(|line| line.starts_with("ok ")), "{}", said.out);
    }
}

#[test]
fn every_damage_to_every_kind_of_file_is_found() {
    let (bench, steps) = study::finished();
    for name in ["vocabulary", "train", "model", "losses", "covariances", "basis", "lambda", "query-gradients", "ihvp"]
        .into_iter()
        .chain(["candidates", "self", "scores", "details", "final"])
    {
        for path in results(&step(&steps, name).sealed(&bench)) {
            let whole = fs::read(&path).unwrap();
            for damage in Damage::ALL {
                if path.ends_with(MANIFEST) && matches!(damage, Damage::Gone | Damage::Longer) {
                    continue;
                }
                damage.do_to(&path, &whole);
                is_found(&bench, &path, damage);
            }
            fs::write(&path, whole).unwrap();
        }
    }
    bench.ok(&["verify"]);
}

/// Every wire of the study: step, file, and a step that reads it.
const WIRES: [(&str, &str, &str); 27] = [
    ("vocabulary", "tokenizer.json", "train"),
    ("vocabulary", "tokenizer.json", "model"),
    ("vocabulary", "tokenizer.json", "continuations"),
    ("train", "part-00000.parquet", "model"),
    ("train", "part-00000.parquet", "losses"),
    ("train", "part-00000.parquet", "covariances"),
    ("train", "part-00000.parquet", "lambda"),
    ("train", "part-00000.parquet", "self"),
    ("train", "part-00000.parquet", "scores"),
    ("train", "part-00000.parquet", "top"),
    ("train", "part-00000.parquet", "candidates"),
    ("prompts", "part-00000.parquet", "continuations"),
    ("model", "model.safetensors", "losses"),
    ("model", "config.json", "covariances"),
    ("model", "model.safetensors", "continuations"),
    ("model", "model.safetensors", "scores"),
    ("continuations", "part-00000.parquet", "many-gradients"),
    ("covariances", "part-00000.arrow", "basis"),
    ("basis", "part-00000.arrow", "lambda"),
    ("lambda", "part-00000.arrow", "ihvp"),
    ("basis", "part-00005.arrow", "self"),
    ("lambda", "part-00005.arrow", "self"),
    ("many-gradients", "part-00000.arrow", "many-ihvp"),
    ("ihvp", "part-00000.arrow", "scores"),
    ("scores", "part-00000.parquet", "top"),
    ("candidates", "part-00000.parquet", "chosen"),
    ("details", "part-00000.parquet", "final"),
];

#[test]
fn nothing_is_computed_from_a_damaged_file() {
    let (bench, steps) = study::finished();
    let before = digests(&bench, &steps);
    for (from, file, to) in WIRES {
        let (from, to) = (step(&steps, from), step(&steps, to));
        let path = from.sealed(&bench).join(file);
        let name = format!("{}/{file}", from.key());
        let whole = fs::read(&path).unwrap();
        bench.ok(&["rm", to.key()]);
        for damage in [Damage::FlipMiddle, Damage::Cut(1)] {
            damage.do_to(&path, &whole);
            let error = bench.refused(&["run", "study.toml", "--to", &to.name]);
            assert!(error.contains(&name), "{damage:?} of {name}, read by {}: {error}", to.name);
            assert!(error.contains("wherefrom rm"), "a remedy: {error}");
            assert!(!to.sealed(&bench).exists(), "{} was made from a damaged {name}", to.name);
            let made = results(&to.draft(&bench));
            let made = made.iter().filter(|path| !path.ends_with("plan.json"));
            assert_eq!(made.count(), 0, "{} was begun from a damaged {name}", to.name);
        }
        fs::write(&path, &whole).unwrap();
        bench.ok(&["run", "study.toml", "--to", &to.name]);
    }
    assert_eq!(digests(&bench, &steps), before);
    study::whole(&bench);
}

fn digests(bench: &Bench, steps: &[Made]) -> Vec<Vec<u8>> {
    let read = |step: &Made| {
        let files = results(&step.sealed(bench)).into_iter().filter(|path| !path.ends_with(MANIFEST));
        files.flat_map(|path| fs::read(path).unwrap()).collect()
    };
    steps.iter().map(read).collect()
}

#[test]
fn a_changed_manifest_is_refused() {
    let (bench, steps) = study::finished();
    let scores = step(&steps, "scores");
    let path = scores.sealed(&bench).join(MANIFEST);
    let whole = fs::read_to_string(&path).unwrap();
    let changes = [
        ("\"rows\": 1200", "\"rows\": 1201"),
        ("\"stage\": \"score\"", "\"stage\": \"scope\""),
        ("\"seal\": \"", "\"seal\": \"0"),
        ("\"version\": 1", "\"version\": 2"),
        ("{", "["),
    ];
    for (old, new) in changes {
        assert!(whole.contains(old), "{old} is not in {whole}");
        fs::write(&path, whole.replacen(old, new, 1)).unwrap();
        for words in [&["verify"][..], &["show", scores.key()], RUN, &["run", "study.toml", "--to", "top"]] {
            let error = bench.refused(words);
            assert!(error.contains(scores.key()), "{words:?}, {new}: {error}");
        }
        // The list goes on past it, and it can be removed.
        assert_eq!(bench.ok(&["ls"]).lines().count(), steps.len() + 1, "and the total");
    }
    bench.ok(&["rm", scores.key()]);
    bench.ok(RUN);
    study::whole(&bench);
}

#[test]
fn an_artifact_under_another_key_is_not_taken_for_it() {
    let (bench, steps) = study::finished();
    let (train, queries) = (step(&steps, "train"), step(&steps, "queries"));
    copy(&train.sealed(&bench), &bench.path("aside"));
    fs::remove_dir_all(train.sealed(&bench)).unwrap();
    copy(&queries.sealed(&bench), &train.sealed(&bench));
    for words in [&["verify"][..], RUN, &["run", "study.toml", "--to", "losses"]] {
        let error = bench.refused(words);
        assert!(error.contains(train.key()), "{words:?}: {error}");
    }
}
