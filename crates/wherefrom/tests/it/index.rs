//! What an index can be asked again, and what it refuses.

use crate::bench::Bench;
use crate::study::{made, write};

#[test]
fn another_query_and_another_damping_reuse_the_index() {
    let bench = Bench::new();
    write(&bench, 300, 40);
    bench.ok(&["run", "study.toml", "--to", "index-top"]);
    let rerun = |set: &str| -> Vec<String> {
        let steps = made(&bench.ok(&["run", "study.toml", "--to", "index-top", "--set", set]));
        steps.into_iter().filter(|step| !step.cached).map(|step| step.name).collect()
    };
    assert_eq!(rerun("steps.index-scores.damping=0.5"), ["index-scores", "index-top"]);
    bench.file("asked.jsonl", "{\"prompt\": \"the sea\", \"completion\": \" bell\", \"source\": \"logs\"}\n");
    assert_eq!(rerun("steps.queries.corpus=asked.jsonl"), ["queries", "query-gradients", "index-scores", "index-top"]);
    assert_eq!(rerun("steps.coordinates.dimensions=64"), ["coordinates", "index", "index-scores", "index-top"]);
    // What is shown names the query and what the numbers are.
    let shown = bench.ok(&["show", bench.ok(&["path", "study.toml", "index-top"]).trim_end()]);
    assert!(shown.contains("influence in nats per added copy, within the index"), "{shown}");
    let shown = bench.ok(&["show", bench.ok(&["path", "study.toml", "index"]).trim_end()]);
    assert!(shown.contains("128 bytes of signs"), "700 bits in whole lines: {shown}");
}

#[test]
fn an_index_is_not_scored_with_coordinates_of_another() {
    let bench = Bench::new();
    write(&bench, 300, 40);
    let other = "[steps.other]\nstage = \"coordinates\"\ninputs = { lambda = \"lambda\" }\ndimensions = 600\n";
    let text = bench
        .text("study.toml")
        .replace("index = \"index\", coordinates = \"coordinates\"", "index = \"index\", coordinates = \"other\"");
    bench.file("study.toml", format!("{text}{other}"));
    let said = bench.refused(&["run", "study.toml", "--to", "index-scores"]);
    assert!(
        ["input `index`", "input `coordinates`", "the same coordinates"].iter().all(|words| said.contains(words)),
        "{said}"
    );
}

#[test]
fn gradients_of_other_modules_are_refused_and_no_dimensions_are() {
    let bench = Bench::new();
    write(&bench, 300, 40);
    let text = bench.text("study.toml").replace(
        "score-index\"\ninputs = { queries = \"query-gradients\"",
        "score-index\"\ninputs = { queries = \"many-gradients\"",
    );
    bench.file("other.toml", text);
    let said = bench.refused(&["run", "other.toml", "--to", "index-scores"]);
    assert!(said.contains("the queries have no gradient of model.layers.0.mlp.gate_proj"), "{said}");
    let said = bench.refused(&["plan", "study.toml", "--set", "steps.coordinates.dimensions=0"]);
    assert!(said.contains("coordinates") && said.contains("set it to 1 or more"), "{said}");
}
