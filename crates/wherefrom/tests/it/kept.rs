//! What comes with the rows of a corpus: beside the tokens, in the ranking, the report and exports.

use std::collections::{BTreeMap, HashMap};
use std::fs;

use serde_json::{Value, json};
use wherefrom_artifact::{Artifact, Cell, Columns, Example, Kept, Ranked, Ranking, Report, Score, Scores, Tokens};

use crate::bench::Bench;
use crate::study::{self, Made, made};

fn step<'a>(steps: &'a [Made], name: &str) -> &'a Made {
    steps.iter().find(|step| step.name == name).unwrap()
}

fn finished() -> (Bench, Vec<Made>) {
    let bench = Bench::new();
    study::write(&bench, 300, 2);
    let steps = made(&bench.ok(&["run", "study.toml"]));
    (bench, steps)
}

/// Steps of a plan that are to be made.
fn missing(plan: &str) -> Vec<String> {
    let lines =
        plan.lines().take_while(|line| !line.is_empty()).map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.filter(|words| words[3] == "missing").map(|words| words[0].into()).collect()
}

#[test]
fn another_choice_of_columns_computes_no_curvature_and_no_score() {
    let (bench, _) = finished();
    let set = ["--set", "steps.columns.keep=[\"source\"]"];
    let plan = bench.ok(&["plan", "study.toml", set[0], set[1]]);
    assert_eq!(missing(&plan), ["columns", "final", "retrieval", "report"]);
    let again = made(&bench.ok(&["run", "study.toml", set[0], set[1]]));
    let fresh: Vec<_> = again.iter().filter(|step| !step.cached).map(|step| &step.name[..]).collect();
    assert_eq!(fresh, ["columns", "final", "retrieval", "report"]);
}

#[test]
fn values_are_those_of_the_row() {
    let (bench, steps) = finished();
    let corpus: Vec<Value> =
        bench.text("corpus.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let rows = |name: &str| -> Vec<Kept> {
        let columns = Artifact::<Columns>::open(&step(&steps, name).sealed(&bench)).unwrap();
        columns.rows::<Kept>().unwrap().map(Result::unwrap).collect()
    };
    let kept = rows("columns");
    assert_eq!(kept.len(), 300);
    for (row, corpus) in kept.iter().zip(&corpus) {
        assert_eq!(
            json!(row.cells.iter().collect::<BTreeMap<_, _>>()),
            json!({ "source": corpus["source"], "year": corpus["year"] })
        );
    }
    // A packed window has several documents, each with its own.
    let packed = rows("packed-columns");
    let tokens = Artifact::<Tokens>::open(&step(&steps, "packed").sealed(&bench)).unwrap();
    let mut found = packed.iter();
    let mut several = 0;
    for example in tokens.rows::<Example>().unwrap().map(Result::unwrap) {
        several += usize::from(example.docs.len() > 1);
        for (doc, row) in example.docs.iter().zip(&example.rows) {
            let kept = found.next().unwrap();
            assert_eq!((kept.example, &kept.doc), (example.example, doc));
            assert_eq!(json!(kept.cells.get("source")), corpus[*row as usize]["source"]);
        }
    }
    assert!(found.next().is_none() && several > 0);

    // In the ranking, with the words of the query.
    let queries: Vec<Value> =
        bench.text("queries.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ranking = Artifact::<Ranking>::open(&step(&steps, "final").sealed(&bench)).unwrap();
    for row in ranking.rows::<Ranked>().unwrap().map(Result::unwrap) {
        let corpus = &corpus[row.example as usize];
        assert_eq!(
            [json!(row.cells.get("source")), json!(row.cells.get("year"))],
            [&corpus["source"], &corpus["year"]].map(Value::clone)
        );
        let asked = &queries[row.query as usize];
        let asked_for = asked.get("mean").map_or(asked, |mean| &mean[0]);
        assert_eq!(
            (json!(row.asked.prompt), json!(row.asked.completion)),
            (asked_for["prompt"].clone(), asked_for["completion"].clone())
        );
        assert_eq!(row.asked.contrast, asked.get("contrast").and_then(Value::as_str).unwrap_or_default());
        assert_eq!(row.asked.id, format!("row {}", row.query));
    }
}

#[test]
fn exported_scores_have_names_and_groups_add_up() {
    let (bench, steps) = finished();
    let scores = Artifact::<Scores>::open(&step(&steps, "scores").sealed(&bench)).unwrap();
    let scores: Vec<Score> = scores.rows::<Score>().unwrap().map(Result::unwrap).collect();
    let kept = Artifact::<Columns>::open(&step(&steps, "columns").sealed(&bench)).unwrap();
    let sources: HashMap<u64, Cell> = kept
        .rows::<Kept>()
        .unwrap()
        .map(Result::unwrap)
        .map(|row| (row.example, row.cells.values[0].clone()))
        .collect();
    let key = step(&steps, "scores").key();
    bench.ok(&["export", key, "-o", "scores.csv"]);
    let text = bench.text("scores.csv");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("query,query_id,example,doc,influence,source,year"));
    for (line, score) in lines.by_ref().zip(&scores) {
        let cells: Vec<_> = line.split(',').collect();
        let source = sources[&score.example].to_string();
        assert_eq!(
            cells[..4],
            [
                &score.query.to_string(),
                &format!("row {}", score.query),
                &score.example.to_string(),
                &format!("row {}", score.example)
            ]
        );
        assert_eq!((cells[4].parse(), cells[5]), (Ok(score.influence), &source[..]));
    }
    assert_eq!(text.lines().count(), scores.len() + 1);
    bench.ok(&["export", key, "-o", "scores.jsonl"]);
    let first: Value = serde_json::from_str(bench.text("scores.jsonl").lines().next().unwrap()).unwrap();
    assert_eq!((&first["doc"], first["source"].as_str()), (&json!("row 0"), Some(&sources[&0].to_string()[..])));
    bench.ok(&["export", key, "-o", "scores.parquet"]);
    assert!(fs::metadata(bench.path("scores.parquet")).unwrap().len() > 100);

    bench.ok(&["export", key, "--group-by", "source", "-o", "groups.jsonl"]);
    let mut sums: BTreeMap<(u32, String), [f64; 3]> = BTreeMap::new();
    for score in &scores {
        let [rows, positive, negative] = sums.entry((score.query, sources[&score.example].to_string())).or_default();
        *rows += 1.0;
        *(if score.influence > 0.0 { positive } else { negative }) += f64::from(score.influence);
    }
    let text = bench.text("groups.jsonl");
    assert_eq!(text.lines().count(), sums.len());
    let mut shares = BTreeMap::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let number = |name: &str| line[name].as_f64().unwrap();
        let [rows, positive, negative] =
            sums[&(line["query"].as_u64().unwrap() as u32, line["group"].as_str().unwrap().into())];
        let close = |left: f64, right: f64| {
            assert!((left - right).abs() <= 1e-9 * right.abs().max(1e-6), "{left} {right}: {line}")
        };
        close(number("rows"), rows);
        close(number("rows_share"), rows / 300.0);
        close(number("positive"), positive);
        close(number("negative"), negative);
        close(number("influence"), positive + negative);
        close(number("absolute"), positive - negative);
        close(number("over_rows"), number("absolute_share") / number("rows_share"));
        *shares.entry(line["query"].as_u64()).or_insert(0.0) += number("absolute_share");
    }
    assert!(shares.len() == 4 && shares.values().all(|share: &f64| (share - 1.0).abs() < 1e-9), "{shares:?}");
    let error = bench.refused(&["export", key, "--group-by", "sorce", "-o", "groups.csv"]);
    assert!(error.contains("there is source, year, document") && error.contains("keep = [\"sorce\"]"), "{error}");
    let error = bench.refused(&["export", step(&steps, "final").key(), "--group-by", "source", "-o", "groups.csv"]);
    assert!(error.contains("name the scores"), "{error}");
    bench.ok(&["export", step(&steps, "final").key(), "-o", "final.csv"]);
    let heading = bench.text("final.csv").lines().next().unwrap().to_string();
    assert_eq!(heading, "query,query_id,sign,rank,example,doc,influence,text,prompt,completion,contrast,source,year");
}

#[test]
fn the_report_sums_by_group() {
    let (bench, steps) = finished();
    let report = Artifact::<Report>::open(&step(&steps, "report").sealed(&bench)).unwrap();
    let html = fs::read_to_string(report.file("index.html").unwrap()).unwrap();
    let data = |id: &str| -> Value {
        let from = html.split(&format!("id=\"{id}\">")).nth(1).unwrap();
        serde_json::from_str(from.split("</script>").next().unwrap()).unwrap()
    };
    let study = data("data-study");
    let source = &study["groupings"][0];
    assert_eq!((&source["name"], source["sizes"].as_array().unwrap().len()), (&json!("source"), 3));
    assert_eq!(source["sizes"].as_array().unwrap().iter().map(|size| size.as_u64().unwrap()).sum::<u64>(), 300);
    let scores = Artifact::<Scores>::open(&step(&steps, "scores").sealed(&bench)).unwrap();
    let scores: Vec<Score> = scores.rows::<Score>().unwrap().map(Result::unwrap).collect();
    let sum = |query: u32| {
        scores.iter().filter(|score| score.query == query).map(|score| f64::from(score.influence)).sum::<f64>()
    };
    for query in 0..4 {
        let view = data(&format!("data-query-{query}"));
        let total = &view["groups"][0]["total"];
        let found = total[0].as_f64().unwrap() + total[1].as_f64().unwrap();
        assert!((found - sum(query)).abs() < 1e-4 * total[0].as_f64().unwrap(), "{found}");
        assert_eq!(view["rows"][0]["cells"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn columns_that_are_not_there_are_refused_by_the_plan() {
    let bench = Bench::new();
    study::write(&bench, 20, 2);
    let plan = |keep: &str| bench.wherefrom(&["plan", "study.toml", "--set", &format!("steps.columns.keep={keep}")]);
    for (keep, said) in [
        ("[\"sorce\"]", "corpus.jsonl has the columns source, text, year; did you mean `source`?"),
        ("[\"meta.pile\"]", "no row has a column `meta.pile`"),
        ("[]", "keep = [] keeps nothing"),
        ("[\"year\", \"year\"]", "`year` is there twice"),
    ] {
        let refused = plan(keep);
        assert_eq!(refused.code, Some(2), "{keep}: {refused:?}");
        assert!(refused.err.contains(said), "{keep}: {}", refused.err);
    }
}

#[test]
fn files_with_other_columns_have_null_and_types_are_joined() {
    let bench = Bench::new();
    bench.file("a.jsonl", "{\"text\": \"one two\", \"lang\": \"en\", \"n\": 1, \"m\": {\"deep\": true}}\n{\"text\": \"three four\", \"n\": 2.5}\n");
    bench.file("b.jsonl", "{\"text\": \"five six\", \"id\": 7, \"lang\": 12, \"text_of\": null}\n");
    bench.file("c.txt", "no columns at all");
    let model = crate::bench::fixture("model");
    let pipeline = |corpus: &str, keep: &str| {
        format!(
            "[model]\npath = {model:?}\n[steps.train]\nstage = \"tokenize\"\ncorpus = \"{corpus}\"\nmax-tokens = 8\n\
             [steps.columns]\nstage = \"columns\"\ninputs = {{ tokens = \"train\" }}\nkeep = {keep}\n"
        )
    };
    bench.file("p.toml", pipeline("*.jsonl", "[\"lang\", \"n\", \"m.deep\"]"));
    let steps = made(&bench.ok(&["run", "p.toml"]));
    let columns = Artifact::<Columns>::open(&step(&steps, "columns").sealed(&bench)).unwrap();
    let rows: Vec<Kept> = columns.rows::<Kept>().unwrap().map(Result::unwrap).collect();
    let cells: Vec<_> = rows.iter().map(|row| (&row.doc[..], json!(row.cells.values))).collect();
    assert_eq!(
        cells,
        [("a/0", json!(["en", 1.0, true])), ("a/1", json!([null, 2.5, null])), ("7", json!(["12", null, null]))]
    );
    for (corpus, keep, said) in [
        (
            "*.jsonl",
            "[\"m\"]",
            "`m` is an object; keep takes text, numbers, dates, true and false, or name a field of it",
        ),
        ("c.txt", "[\"lang\"]", "c.txt has no columns at all"),
    ] {
        bench.file("p.toml", pipeline(corpus, keep));
        let error = bench.refused(&["run", "p.toml"]);
        assert!(error.contains(said), "{error}");
    }
    // Tokens of another corpus.
    bench.file(
        "p.toml",
        pipeline("a.jsonl", "[\"text\"]").replace("stage = \"columns\"", "stage = \"columns\"\ncorpus = \"b.jsonl\""),
    );
    let error = bench.refused(&["run", "p.toml"]);
    assert!(error.contains("give the corpus that the tokens were made from"), "{error}");
}
