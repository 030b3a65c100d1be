//! The store: whose artifacts are, records of runs, what may go and what never does, and rankings side by side.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;
use wherefrom_artifact::{Artifact, Manifest, Ranked, Ranking};

use crate::bench::{Bench, files, results};
use crate::study::{self, Made};

const DAMPED: &str = "steps.ihvp-full.damping=10";

fn step<'a>(steps: &'a [Made], name: &str) -> &'a Made {
    steps.iter().find(|step| step.name == name).unwrap()
}

fn keys(steps: &[Made]) -> BTreeSet<String> {
    steps.iter().map(|step| step.key().to_string()).collect()
}

fn sealed(bench: &Bench) -> BTreeSet<String> {
    let list: Value = serde_json::from_str(&bench.ok(&["ls", "--json"])).unwrap();
    list["artifacts"].as_array().unwrap().iter().map(|entry| entry["key"].as_str().unwrap().to_string()).collect()
}

fn records(bench: &Bench) -> Vec<Value> {
    let json: Value = serde_json::from_str(&bench.ok(&["ls", "--runs", "--json"])).unwrap();
    json["runs"].as_array().unwrap().clone()
}

#[test]
fn ls_says_whose_an_artifact_is_since_when_and_how_large_and_adds_up() {
    let (bench, steps) = study::finished();
    let list = bench.ok(&["ls"]);
    let json: Value = serde_json::from_str(&bench.ok(&["ls", "--json"])).unwrap();
    let entries = json["artifacts"].as_array().unwrap();
    assert_eq!(entries.len(), steps.len());
    let mut total = 0;
    for entry in entries {
        let made = steps.iter().find(|step| Some(step.key()) == entry["key"].as_str()).unwrap();
        assert_eq!(entry["used_by"][0]["step"], made.name);
        assert_eq!(entry["used_by"][0]["pipeline"], "study.toml");
        let bytes: u64 = files(&made.sealed(&bench)).iter().map(|file| fs::metadata(file).unwrap().len()).sum();
        assert_eq!(entry["bytes"], bytes);
        assert_eq!(entry["rows"], Manifest::read(&made.sealed(&bench)).unwrap().rows());
        let line = list.lines().find(|line| line.contains(&made.key()[..12])).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!((words[2], Some(words[3])), (&made.name[..], entry["date"].as_str()), "{line}");
        assert!(words[3].starts_with("20") && line.ends_with("  study.toml"), "{line}");
        total += bytes;
    }
    assert_eq!(json["bytes"], total);
    assert!(list.lines().last().unwrap().starts_with(&format!("total: {} artifacts, ", steps.len())), "{list}");

    let count = |by: &str, name: &str| {
        let sums = bench.ok(&["ls", "--by", by]);
        let line = sums.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {sums}"));
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
    };
    assert_eq!(count("kind", "ranking "), steps.iter().filter(|step| step.kind.name() == "ranking").count());
    assert_eq!((count("kind", "total"), count("pipeline", "study.toml")), (steps.len(), steps.len()));
    // A second pipeline that asks for some of them: they are both's, and count for each.
    let text = bench.text("study.toml");
    let text = text.split("[steps.losses]").next().unwrap();
    let some = text.matches("[steps.").count();
    bench.file("other.toml", text);
    bench.ok(&["run", "other.toml"]);
    assert_eq!((count("pipeline", "other.toml"), count("pipeline", "total")), (some, steps.len()));
    let mine = bench.ok(&["ls", "--pipeline", "other.toml"]);
    assert_eq!(mine.lines().count(), some + 1, "{mine}");
    assert!(mine.contains("other.toml and 1 more"), "{mine}");
    assert_eq!(Bench::new().ok(&["ls"]), "total: 0 artifacts, 0 B in data/store\n");
}

#[test]
fn a_run_that_did_not_come_to_a_step_says_so() {
    let bench = Bench::new();
    study::write(&bench, 300, 40);
    let rows = bench.text("queries.jsonl");
    bench.file("queries.jsonl", format!("{rows}{{\"prompt\": 7}}\n"));
    bench.refused(&["run", "study.toml"]);
    let error = bench.refused(&["show", "final@1", "--pipeline", "study.toml"]);
    assert!(error.contains("`final@1`: that run of study.toml (20"), "{error}");
    assert!(error.contains(", failed) has not made step `final`; `wherefrom run study.toml` makes it"), "{error}");
}

#[test]
fn steps_are_named_with_their_pipeline() {
    let (bench, steps) = study::finished();
    let last = step(&steps, "final");
    let by_key = bench.ok(&["show", last.key()]);
    assert_eq!(bench.ok(&["show", "final", "--pipeline", "study.toml"]), by_key);
    assert_eq!(bench.ok(&["show", "final@1", "--pipeline", "study.toml"]), by_key);
    assert_eq!(bench.ok(&["show", "@1", "--pipeline", "./study.toml"]), by_key, "the last ranking of the last run");
    let set = ["--pipeline", "study.toml", "--set", DAMPED];
    let error = bench.refused(&[&["show", "final"][..], &set].concat());
    assert!(error.contains("step `final` is not made yet"), "{error}");
    let damped = study::made(&bench.ok(&["run", "study.toml", "--set", DAMPED]));
    let other = bench.ok(&["show", step(&damped, "final").key()]);
    assert_eq!(bench.ok(&[&["show", "final"][..], &set].concat()), other);
    assert_eq!(bench.ok(&["show", "final@1", "--pipeline", "study.toml"]), other);
    assert_eq!(bench.ok(&["show", "final@2", "--pipeline", "study.toml"]), by_key);
    assert_eq!(bench.ok(&["path", "study.toml", "final@2"]).trim(), last.folder.to_str().unwrap());
    // Whoever looks again has not run again: nothing was made that the run before had not.
    bench.ok(&["run", "study.toml", "--set", DAMPED]);
    assert_eq!(records(&bench).len(), 2);
    assert_eq!(bench.ok(&["show", "final@2", "--pipeline", "study.toml"]), by_key);
    let error = bench.refused(&["path", "study.toml", "final", "--set", "steps.ihvp.damping.relative=0.3"]);
    assert!(error.contains("run study.toml --to final --set steps.ihvp.damping.relative=0.3`"), "{error}");
    let error = bench.ok(&["compare", "final@1", "final", "--pipeline", "study.toml", "--set", DAMPED]);
    assert!(error.contains("both are the same artifact"), "{error}");
    bench.ok(&["export", "final@2", "--pipeline", "study.toml", "-o", "top.csv"]);
    bench.ok(&["export", last.key(), "-o", "same.csv"]);
    assert_eq!(bench.text("top.csv"), bench.text("same.csv"));

    for (words, fragments) in [
        (
            &["show", "final"][..],
            &["no artifact `final`", "`final` is a step of study.toml: add --pipeline study.toml"][..],
        ),
        (&["show", "finale", "--pipeline", "study.toml"], &["no step `finale`", "did you mean `final`?"]),
        (&["show", "final@3", "--pipeline", "study.toml"], &["the records of 2 runs of study.toml", "ls --runs"]),
        (&["path", "study.toml", "final@3"], &["the records of 2 runs of study.toml, final@1 to final@2"]),
        (&["ls", "--store", "nowhere"], &["there is no store nowhere, as --store says"]),
        (&["show", "final@1"], &["`final@1` is of a run: give its pipeline"]),
        (&["ls", "--pipeline", "none.toml"], &["no run of none.toml is recorded"]),
        (&["show", "final@0", "--pipeline", "study.toml"], &["STEP@1 for the last run"]),
        (&["show", "finale@1", "--pipeline", "study.toml"], &["has no step `finale`"]),
        (&["compare", "@1", "train@1", "--pipeline", "study.toml"], &["is tokens", "rankings or scores are compared"]),
    ] {
        let error = bench.refused(words);
        fragments
            .iter()
            .for_each(|fragment| assert!(error.contains(fragment), "{words:?}: no `{fragment}` in {error}"));
    }
    bench.ok(&["rm", "final", "--pipeline", "study.toml"]);
    assert!(!last.sealed(&bench).exists() && step(&damped, "final").sealed(&bench).exists());
    let error = bench.refused(&["show", "final@2", "--pipeline", "study.toml"]);
    assert!(error.contains("is not in the store any more"), "{error}");
}

#[test]
fn every_run_has_a_record() {
    let bench = Bench::new();
    study::write(&bench, 300, 40);
    bench.ok(&["run", "study.toml", "--to", "train"]);
    let steps = study::made(&bench.ok(&["run", "study.toml", "--set", DAMPED]));
    // A row that is refused once the run is under way.
    let good = bench.text("queries.jsonl");
    bench.file("queries.jsonl", "{\"prompt\": \"the\", \"source\": \"logs\"}\n");
    bench.refused(&["run", "study.toml"]);
    bench.file("queries.jsonl", good);
    // What is refused before anything runs is no run.
    bench.refused(&["run", "study.toml", "--set", "steps.top.top=0"]);
    let mut running = bench.start(&["run", "study.toml", "--set", "steps.model.epochs=500"], "killed");
    assert!(running.until(|| !bench.ok(&["ls", "--runs"]).lines().all(|line| !line.contains(" running "))));
    assert!(running.kill());

    let all = records(&bench);
    let outcomes: Vec<_> = all.iter().map(|run| run["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["interrupted", "failed", "finished", "finished"]);
    let whole = &all[2]["record"];
    assert_eq!((&whole["sets"][0], &whole["to"]), (&DAMPED.into(), &Value::Null));
    assert_eq!(whole["pipeline"], "study.toml", "from the folder that has the store, which may be moved");
    let recorded = whole["steps"].as_array().unwrap();
    assert_eq!(recorded.len(), steps.len());
    for (recorded, made) in recorded.iter().zip(&steps) {
        assert_eq!((&recorded["name"], &recorded["key"]), (&made.name[..].into(), &made.key().into()));
        assert_eq!(recorded["state"], if made.cached { "cached" } else { "made" });
    }
    assert!(whole["seconds"].as_f64().unwrap() > 0.0 && whole["date"].as_str().unwrap().ends_with('Z'));
    assert_eq!(all[3]["record"]["to"], "train");
    let error = all[1]["record"]["error"].as_str().unwrap();
    assert!(error.contains("queries.jsonl:1"), "{error}");
    assert!(all[0]["record"]["steps"].as_array().unwrap().iter().any(|step| step["state"] == "planned"));
    let list = bench.ok(&["ls", "--runs", "--pipeline", "study.toml"]);
    let line = list.lines().nth(2).unwrap();
    assert!(line.starts_with("study.toml@3  20") && line.ends_with(&format!("steps made --set {DAMPED}")), "{list}");
}

#[test]
fn what_a_named_pipeline_or_one_of_the_last_runs_needs_is_kept() {
    let (bench, steps) = study::finished();
    let damped = study::made(&bench.ok(&["run", "study.toml", "--set", DAMPED]));
    let (plain, other) = (keys(&steps), keys(&damped));
    let only_plain: BTreeSet<_> = plain.difference(&other).cloned().collect();
    assert_eq!(only_plain.len(), 4, "preconditioned, details, ranking and report");

    let all = bench.ok(&["gc"]);
    assert!(all.starts_with("0 artifacts, 0 B could go"), "both runs are among the last ten: {all}");
    let listed = bench.ok(&["gc", "--keep-runs", "1"]);
    for key in plain.union(&other) {
        assert_eq!(listed.contains(&key[..12]), only_plain.contains(key), "{key}: {listed}");
    }
    assert!(listed.contains("  final  study.toml"), "by the step that they are of: {listed}");
    assert!(listed.lines().last().unwrap().contains("add --yes"), "{listed}");
    assert_eq!(sealed(&bench), plain.union(&other).cloned().collect(), "a list removes nothing");
    // A pipeline that is named keeps what it leads to, whatever the records say.
    let named = bench.ok(&["gc", "study.toml", "--keep-runs", "1"]);
    assert!(named.starts_with("0 artifacts, "), "{named}");
    let named = bench.ok(&["gc", "study.toml", "--keep-runs", "0"]);
    assert_eq!(named.lines().count(), 5, "what the other damping made: {named}");

    let removed = bench.ok(&["gc", "--keep-runs", "1", "--yes"]);
    assert_eq!(removed.lines().filter(|line| line.starts_with("removed  ")).count(), only_plain.len(), "{removed}");
    assert_eq!(sealed(&bench), other);
    assert_eq!(records(&bench).len(), 1, "records of runs before the last one are gone as well");
    study::whole(&bench);
    assert!(study::made(&bench.ok(&["run", "study.toml", "--set", DAMPED])).iter().all(|step| step.cached));
    // Why something is made again is known from the last run, as before.
    let plan = bench.ok(&["plan", "study.toml"]);
    assert!(plan.lines().any(|line| line.starts_with("ihvp-full ") && line.ends_with("damping changed")), "{plan}");
}

#[test]
fn unfinished_damaged_and_outdated_artifacts_go_unless_they_are_needed() {
    let (bench, steps) = study::finished();
    let key = "0123456789abcdef0123456789abcdef";
    for folder in [format!("tokens-v3/{key}.draft"), format!("tokens-v1/{key}"), format!("scores-v1/{key}")] {
        bench.file(&format!("data/store/{folder}/part-00000.parquet"), "x");
    }
    bench.file(&format!("data/store/scores-v1/{key}/manifest.json"), "{}");
    // Of what a run needs, what is unfinished stays: the next run goes on with it.
    let draft = format!("data/store/tokens-v3/{}.draft", step(&steps, "train").key());
    bench.file(&format!("{draft}/part-00000.parquet"), "x");
    let listed = bench.ok(&["ls"]);
    assert!(
        listed.ends_with("; 1 more in formats of other versions, 1 B, are not listed: see `wherefrom gc`\n"),
        "{listed}"
    );
    let listed = bench.ok(&["gc"]);
    for why in ["unfinished", "old format", "damaged"] {
        assert_eq!(listed.matches(&format!("  {why} ")).count(), 1, "{why}: {listed}");
    }
    // What somebody has put there, or linked to, is not the store's.
    bench.file("data/store/tokens-v3/backup/part-00000.parquet", "x");
    bench.file("elsewhere/part-00000.parquet", "x");
    let link = format!("data/store/losses-v1/{key}");
    std::os::unix::fs::symlink(bench.path("elsewhere"), bench.path(&link)).unwrap();
    let removed = bench.ok(&["gc", "--yes"]);
    assert_eq!(removed.lines().filter(|line| line.starts_with("left  ")).count(), 2, "{removed}");
    assert!(bench.path("data/store/tokens-v3/backup").exists() && bench.path("elsewhere/part-00000.parquet").exists());
    fs::remove_file(bench.path(link)).unwrap();
    fs::remove_dir_all(bench.path("data/store/tokens-v3/backup")).unwrap();
    let left: Vec<_> =
        files(&bench.store()).into_iter().filter(|file| file.display().to_string().contains(key)).collect();
    assert!(left.iter().all(|file| file.extension().is_some_and(|ending| ending == "lock")), "{left:?}");
    assert!(bench.path(draft).exists());
    assert_eq!(sealed(&bench), keys(&steps));
}

#[test]
fn without_a_word_of_what_is_needed_nothing_goes() {
    let (bench, steps) = study::finished();
    fs::remove_dir_all(bench.path("data/store/records")).unwrap();
    let (nothing, empty) = (["gc", "--yes"], Bench::new());
    empty.refused(&nothing);
    assert!(!empty.store().exists(), "no store is made to be cleared");
    let error = bench.refused(&nothing);
    assert!(error.contains("no run is recorded there; name the pipelines to keep"), "{error}");
    // A pipeline whose corpus is away does not say what it needs.
    let corpus = bench.text("corpus.jsonl");
    fs::remove_file(bench.path("corpus.jsonl")).unwrap();
    let error = bench.refused(&["gc", "study.toml", "--yes"]);
    assert!(error.contains("study.toml: what step `vocabulary` needs is not known"), "{error}");
    bench.file("corpus.jsonl", corpus);
    bench.ok(&["gc", "study.toml", "--yes"]);
    assert_eq!(sealed(&bench), keys(&steps));
    bench.file("data/store/records/broken.json", "{");
    let error = bench.refused(&["gc", "study.toml", "--yes"]);
    assert!(error.contains("broken.json: is no record"), "{error}");
}

/// While a run goes on nothing of its is removed, by however many at once; and what it has no need of goes.
#[test]
fn a_run_and_several_collections_do_not_meet() {
    let bench = Bench::new();
    study::write(&bench, 3000, 40);
    bench.ok(&["run", "study.toml", "--to", "model", "--set", "steps.train.max-tokens=10"]);
    let mut run = bench.start(&["run", "study.toml"], "run");
    assert!(run.until(|| bench.ok(&["ls", "--runs"]).contains(" running ")));
    let (mut rounds, mut gone) = (0, String::new());
    while !bench.text("run.out").contains("final ") && rounds < 500 {
        let mut collections: Vec<_> =
            (0..2).map(|number| bench.start(&["gc", "--keep-runs", "0", "--yes"], &format!("gc{number}"))).collect();
        for (number, collection) in collections.iter_mut().enumerate() {
            assert_eq!(collection.code(), Some(0), "{}", bench.text(&format!("gc{number}.err")));
            gone += &bench.text(&format!("gc{number}.out"));
        }
        rounds += 1;
    }
    assert_eq!(run.code(), Some(0), "{}", bench.text("run.err"));
    let steps = study::made(&bench.text("run.out"));
    assert!(rounds > 1 && steps.len() == 59, "it was collected while it ran");
    let removed: BTreeSet<_> = gone.lines().filter_map(|line| line.strip_prefix("removed  ")).collect();
    assert_eq!(removed.len(), 2, "each once, and nothing that the run needs: {removed:?}");
    assert!(!removed.iter().any(|line| keys(&steps).iter().any(|key| line.contains(&key[..12]))), "{removed:?}");
    assert!(sealed(&bench).is_superset(&keys(&steps)));
    study::whole(&bench);
}

#[test]
fn rankings_are_compared_by_overlap_correlation_and_moves() {
    let (bench, steps) = study::finished();
    let pipeline = ["--pipeline", "study.toml"];
    let compare = |a: &str, b: &str| -> Value {
        let words = [&["compare", a, b, "--json", "--top", "5"][..], &pipeline].concat();
        serde_json::from_str(&bench.ok(&words)).unwrap()
    };
    let same = compare("final", "final@1");
    for query in same["queries"].as_array().unwrap() {
        assert_eq!(query["spearman"], 1.0);
        assert!(query["overlap"].as_array().unwrap().iter().all(|pair| pair[0] == pair[1]), "{query}");
        assert!(query["movers"].as_array().unwrap().is_empty() && query["common"].as_u64().unwrap() > 5);
    }
    let damped = study::made(&bench.ok(&["run", "study.toml", "--set", DAMPED]));
    let found = compare("@2", "@1");
    assert_eq!(found["keys"], serde_json::json!([step(&steps, "final").key(), step(&damped, "final").key()]));
    let difference = "precondition: damping {\"relative\":0.1} -> {\"relative\":10.0}";
    assert_eq!(found["differences"], serde_json::json!([difference]));
    let rows = |steps: &[Made]| {
        let artifact = Artifact::<Ranking>::open(&step(steps, "final").sealed(&bench)).unwrap();
        artifact.rows::<Ranked>().unwrap().map(Result::unwrap).collect::<Vec<_>>()
    };
    let (before, after) = (rows(&steps), rows(&damped));
    for query in found["queries"].as_array().unwrap() {
        let number = query["query"].as_u64().unwrap() as u32;
        for (positive, overlap) in [(true, &query["overlap"][0]), (false, &query["overlap"][1])] {
            let top = |rows: &[Ranked]| -> BTreeSet<u64> {
                let mine = rows.iter().filter(|row| row.query == number && row.positive == positive && row.rank <= 5);
                mine.map(|row| row.example).collect()
            };
            let (x, y) = (top(&before), top(&after));
            assert_eq!(overlap, &serde_json::json!([x.intersection(&y).count(), 5]));
        }
        for mover in query["movers"].as_array().unwrap() {
            let at = |rows: &[Ranked]| {
                let row = rows.iter().find(|row| row.query == number && mover["example"] == row.example)?;
                Some(if row.positive { i64::from(row.rank) } else { -i64::from(row.rank) })
            };
            assert_eq!(mover["ranks"], serde_json::json!([at(&before), at(&after)]));
        }
    }
    let text = bench.ok(&[&["compare", "@2", "@1"][..], &pipeline].concat());
    assert!(text.contains(difference) && text.contains("top 10 +") && text.contains("rank correlation"), "{text}");
    // Of scores all examples are compared, and a ranking of them is their top.
    let scored = compare("details@2", "details@1");
    for (scored, ranked) in scored["queries"].as_array().unwrap().iter().zip(found["queries"].as_array().unwrap()) {
        assert_eq!((&scored["overlap"], &scored["name"]), (&ranked["overlap"], &ranked["name"]));
        assert!(scored["common"].as_u64() > ranked["common"].as_u64(), "{scored}");
        let doc = scored["movers"][0]["doc"].as_str();
        assert!(doc.is_some_and(|doc| doc.starts_with("row ")), "{scored}");
    }
    for query in compare("scores", "top")["queries"].as_array().unwrap() {
        assert_eq!((&query["spearman"], &query["movers"]), (&1.0.into(), &serde_json::json!([])));
    }
    // A ranking of another corpus is compared by the names of documents: the same rows in another order.
    let corpus = bench.text("corpus.jsonl");
    let named: Vec<_> =
        corpus.lines().enumerate().map(|(row, line)| line.replacen('{', &format!("{{\"id\":\"d{row}\","), 1)).collect();
    bench.file("corpus.jsonl", named.join("\n"));
    let one = study::made(&bench.ok(&["run", "study.toml", "--to", "top"]));
    bench.file("corpus.jsonl", named.iter().rev().cloned().collect::<Vec<_>>().join("\n"));
    let other = study::made(&bench.ok(&["run", "study.toml", "--to", "top"]));
    let keys = [step(&one, "top").key(), step(&other, "top").key()];
    let found: Value = serde_json::from_str(&bench.ok(&["compare", keys[0], keys[1], "--json"])).unwrap();
    assert!(found["queries"][0]["common"].as_u64().unwrap() > 50, "{found}");
    assert!(results(&bench.store()).len() > 10);
}
