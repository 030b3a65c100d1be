//! `kill -9` at many moments in every stage, then the same command; and two processes on one store.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use wherefrom_artifact::{Kind, MANIFEST, Manifest};

use crate::bench::{Bench, Stamp, files, stamp, stamps};
use crate::study::{self, Made, Numbers, Results};

const RUN: &[&str] = &["run", "study.toml"];

/// Three parts of tokens and one row; prompts in two parts.
const ROWS: usize = 2 * 8192 + 1;
const PROMPTS: usize = 8192 + 40;

/// What an uninterrupted run makes: steps in order, parts of each, and the numbers.
struct Whole {
    steps: Vec<(Made, Vec<String>)>,
    results: Results,
}

fn whole() -> &'static Whole {
    static WHOLE: OnceLock<Whole> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let bench = Bench::new();
        study::write(&bench, ROWS, PROMPTS);
        let steps = study::made(&bench.ok(RUN));
        assert!(steps.iter().all(|step| !step.cached));
        let results = Results::read(&bench, &steps);
        let parts = |step: &Made| {
            let manifest = Manifest::read(&step.sealed(&bench)).unwrap();
            manifest.parts.into_iter().map(|part| part.name).collect()
        };
        let steps: Vec<(Made, Vec<String>)> = steps.iter().map(|step| (step.clone(), parts(step))).collect();
        let sums = ["covariances", "basis", "lambda", "ihvp", "ihvp-solve", "self", "index"];
        for name in [
            "train",
            "continuations",
            "losses",
            "activations",
            "many-gradients",
            "many-ihvp",
            "scores",
            "chosen",
            "details",
            "metagradient",
        ]
        .into_iter()
        .chain(sums)
        {
            let (_, parts) = steps.iter().find(|(step, _)| step.name == name).unwrap();
            assert!(parts.len() >= 2, "one part of {name} shows nothing about parts that are not made again");
        }
        Whole { steps, results }
    })
}

/// When a process is killed, seen from the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// The draft's folder is there.
    Begun,
    /// So is the frozen split.
    Planned,
    /// A file is being written.
    Writing,
    /// Working state lies beside the parts.
    Checkpoint,
    /// This part is there.
    Part(usize),
    /// The manifest is in the draft.
    Sealing,
    /// The artifact is there, the next step not yet begun or just so.
    Sealed,
}

impl Moment {
    fn is_now(self, bench: &Bench, step: &Made, parts: &[String]) -> bool {
        let (draft, sealed) = (step.draft(bench), step.sealed(bench));
        let any = |found: &dyn Fn(&str) -> bool| {
            let entries = fs::read_dir(&draft).into_iter().flatten().flatten();
            entries.into_iter().any(|entry| entry.file_name().to_str().is_some_and(found))
        };
        match self {
            Self::Begun => draft.exists(),
            Self::Planned => draft.join("plan.json").exists(),
            Self::Writing => any(&|name| name.ends_with(".tmp")),
            Self::Checkpoint => any(&|name| name.starts_with("scratch-") && !name.ends_with(".tmp")),
            Self::Part(part) => draft.join(&parts[part]).exists(),
            Self::Sealing => draft.join(MANIFEST).exists(),
            Self::Sealed => sealed.join(MANIFEST).exists(),
        }
    }
}

/// The moments of a step, first to last.
fn moments(step: &Made, parts: &[String]) -> Vec<Moment> {
    let mut moments = vec![Moment::Begun, Moment::Planned, Moment::Writing, Moment::Checkpoint];
    moments.extend((0..parts.len()).map(Moment::Part));
    moments.extend([Moment::Sealing, Moment::Sealed]);
    let planned = !matches!(
        step.kind,
        Kind::Tokenizer
            | Kind::Trait
            | Kind::Model
            | Kind::Vectors
            | Kind::Ranking
            | Kind::Coordinates
            | Kind::Candidates
            | Kind::Report
    );
    let checkpoints = matches!(step.kind, Kind::Model | Kind::Covariances | Kind::Lambda)
        || ["continuations", "ihvp-solve"].contains(&&step.name[..]);
    moments.retain(|moment| match moment {
        Moment::Planned => planned,
        Moment::Checkpoint => checkpoints,
        _ => true,
    });
    moments
}

/// Kinds whose parts are finished once they are there. The rest is files of a model, tokenizer or trait, which are written
/// last of all.
fn in_parts(kind: Kind) -> bool {
    !matches!(kind, Kind::Tokenizer | Kind::Trait | Kind::Model)
}

/// What is finished: every file of sealed artifacts, and parts of drafts; by the path that it has or will have.
fn finished(store: &Path) -> BTreeMap<PathBuf, Stamp> {
    let mut found = BTreeMap::new();
    for path in files(store) {
        let inside = path.strip_prefix(store).unwrap();
        let names: Vec<_> = inside.iter().map(|name| name.to_str().unwrap()).collect();
        let [kind, key, name] = names[..] else { continue };
        let kind = Kind::from_name(kind.rsplit_once("-v").unwrap().0).unwrap();
        let sealing = path.with_file_name(MANIFEST).exists();
        let whole = in_parts(kind) && name.starts_with("part-") && !name.ends_with(".tmp");
        match key.strip_suffix(".draft") {
            None => found.insert(path.clone(), stamp(&path)),
            Some(key) if whole || sealing && name != "plan.json" && !name.starts_with("scratch-") => {
                found.insert(path.parent().unwrap().with_file_name(key).join(name), stamp(&path))
            }
            Some(_) => continue,
        };
    }
    found
}

/// A study that is killed again and again.
struct Victim {
    bench: Bench,
    finished: BTreeMap<PathBuf, Stamp>,
}

impl Victim {
    fn new() -> Self {
        let bench = Bench::new();
        study::write(&bench, ROWS, PROMPTS);
        Self { bench, finished: BTreeMap::new() }
    }

    /// Nothing that was finished before has been written again or lost, and all that is sealed is whole.
    fn check(&mut self) {
        let now = finished(&self.bench.store());
        for (path, stamp) in &self.finished {
            assert_eq!(now.get(path), Some(stamp), "finished, and then made again: {}", path.display());
        }
        self.finished = now;
        let said = self.bench.wherefrom(&["verify"]);
        assert_eq!(said.code, Some(0), "{said:?}");
    }

    /// Kills a run at the moment. How many parts the step's draft had then, if it was there.
    fn kill_at(&mut self, moment: Moment, step: &Made, parts: &[String]) -> Option<usize> {
        let mut run = self.bench.start(RUN, "killed");
        let reached =
            run.until(|| moment.is_now(&self.bench, step, parts) || Moment::Sealed.is_now(&self.bench, step, parts));
        assert!(reached, "{}: {}", step.name, self.bench.text("killed.err"));
        run.kill();
        let draft = step.draft(&self.bench);
        let there = parts.iter().filter(|part| draft.join(part).exists()).count();
        let inside = draft.exists().then_some(there);
        self.check();
        inside
    }

    /// Takes a step back, so that it can be killed once more.
    fn remove(&mut self, step: &Made) {
        let sealed = step.sealed(&self.bench);
        if sealed.exists() || step.draft(&self.bench).exists() {
            self.bench.ok(&["rm", step.key()]);
        }
        self.finished.retain(|path, _| !path.starts_with(&sealed));
    }

    /// The last run, to its end: the same command.
    fn finish(mut self, whole: &Whole) {
        let steps = study::made(&self.bench.ok(RUN));
        self.check();
        for (step, (expected, _)) in steps.iter().zip(&whole.steps) {
            assert_eq!((&step.name, &step.folder), (&expected.name, &expected.folder));
        }
        Results::read(&self.bench, &steps).agrees(&whole.results);
        study::whole(&self.bench);
        let again = study::made(&self.bench.ok(RUN));
        assert!(again.iter().all(|step| step.cached), "a finished study has nothing to do");
        self.check();
    }
}

#[test]
fn killed_at_every_moment_of_every_stage_it_ends_as_one_run() {
    let whole = whole();
    let mut victim = Victim::new();
    for (step, parts) in &whole.steps {
        // A kill while some parts are there and some are not says most.
        let says = |there: Option<usize>| match parts.len() {
            2.. if in_parts(step.kind) => there.is_some_and(|there| there > 0 && there < parts.len()),
            _ => there.is_some(),
        };
        let mut said = false;
        for moment in moments(step, parts) {
            // A step can be over before anybody looks: it is taken back and killed again.
            for _ in 0..if moment == Moment::Sealed { 50 } else { 0 } {
                if said {
                    break;
                }
                victim.remove(step);
                let moment = if parts.len() > 1 && in_parts(step.kind) { Moment::Part(0) } else { Moment::Begun };
                said = says(victim.kill_at(moment, step, parts));
            }
            let over = Moment::Sealed.is_now(&victim.bench, step, parts);
            if !over && !moment.is_now(&victim.bench, step, parts) {
                said |= says(victim.kill_at(moment, step, parts));
            }
        }
        assert!(said, "{}: never killed inside", step.name);
    }
    victim.finish(whole);
}

#[test]
fn killed_at_any_time_it_ends_as_one_run() {
    let whole = whole();
    let mut victim = Victim::new();
    let mut numbers = Numbers(29);
    for _ in 0..20 {
        let (start, time) = (Instant::now(), Duration::from_millis(numbers.below(700)));
        let mut run = victim.bench.start(RUN, "killed");
        run.until(|| start.elapsed() >= time);
        run.kill();
        victim.check();
    }
    victim.finish(whole);
}

#[test]
fn two_processes_share_the_work_of_one() {
    let whole = whole();
    let bench = Bench::new();
    study::write(&bench, ROWS, PROMPTS);
    let mut runs = [bench.start(RUN, "one"), bench.start(RUN, "two")];
    let codes = runs.each_mut().map(|run| run.code());
    assert_eq!(codes, [Some(0), Some(0)], "{}{}", bench.text("one.err"), bench.text("two.err"));
    let (one, two) = (study::made(&bench.text("one.out")), study::made(&bench.text("two.out")));
    assert_eq!((one.len(), two.len()), (whole.steps.len(), whole.steps.len()));
    for (one, two) in one.iter().zip(&two) {
        assert_eq!((&one.name, &one.folder), (&two.name, &two.folder));
        assert!(one.cached != two.cached, "{} was made by one of them, once", one.name);
    }
    Results::read(&bench, &one).agrees(&whole.results);
    study::whole(&bench);
}

#[test]
fn a_waiting_process_takes_over_from_a_killed_one() {
    let whole = whole();
    let bench = Bench::new();
    study::write(&bench, ROWS, PROMPTS);
    let (model, _) = whole.steps.iter().find(|(step, _)| step.name == "model").unwrap();
    let mut one = bench.start(RUN, "one");
    assert!(one.until(|| model.draft(&bench).exists()));
    one.signal("STOP");
    let mut two = bench.start(RUN, "two");
    let waits = || bench.text("two.err").contains("another process is making model");
    assert!(two.until(waits), "{}", bench.text("two.err"));
    assert!(one.kill(), "one still held the lock");
    assert_eq!(two.code(), Some(0), "{}", bench.text("two.err"));
    Results::read(&bench, &study::made(&bench.text("two.out"))).agrees(&whole.results);
    study::whole(&bench);
}

#[test]
fn what_a_killed_sealing_leaves_is_taken_up() {
    // As `kill -9` leaves it once the manifest is written: working files are still there, or not.
    let (bench, steps) = study::finished();
    for step in &steps {
        let (sealed, draft) = (step.sealed(&bench), step.draft(&bench));
        for left in
            [&[][..], &["plan.json", "scratch-sums-by-module", "scratch-sums-by-module.tmp", "part-00007.arrow.tmp"]]
        {
            let before = stamps(&sealed);
            fs::rename(&sealed, &draft).unwrap();
            left.iter().for_each(|name| fs::write(draft.join(name), "[]").unwrap());
            let again = study::made(&bench.ok(RUN));
            assert!(again.iter().all(|other| other.cached == (other.name != step.name)), "{}", step.name);
            assert_eq!(stamps(&sealed), before, "{}: made again", step.name);
        }
    }
    study::whole(&bench);
}

#[test]
fn what_a_killed_removal_leaves_is_made_again() {
    let (bench, steps) = study::finished();
    for step in &steps {
        // `rm` takes the manifest first.
        fs::remove_file(step.sealed(&bench).join(MANIFEST)).unwrap();
        let again = study::made(&bench.ok(RUN));
        assert!(again.iter().all(|other| other.cached == (other.name != step.name)), "{}", step.name);
    }
    study::whole(&bench);
}
