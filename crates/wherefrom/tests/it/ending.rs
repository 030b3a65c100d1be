//! How commands end: the last lines of a run, Ctrl-C, exit codes, and the same for programs.

use std::fs;

use serde_json::{Value, json};

use crate::bench::{Bench, results};
use crate::study;

fn parsed(out: &str) -> Value {
    let value: Value = serde_json::from_str(out).unwrap();
    assert_eq!(value["format"], 1);
    value
}

#[test]
fn a_run_ends_with_the_page_to_open_and_json_says_the_same() {
    let bench = Bench::new();
    study::write(&bench, 300, 40);
    let out = bench.ok(&["run", "study.toml"]);
    let steps = study::made(&out);
    let last = out.lines().last().unwrap();
    let page = last.strip_prefix("open ").unwrap();
    assert!(page.starts_with('/') && page.ends_with("/index.html") && fs::metadata(page).is_ok(), "{last}");
    let place = |fragment: &str| out.find(fragment).unwrap_or_else(|| panic!("no {fragment}: {out}"));
    let coverage = out.lines().find(|line| line.starts_with("coverage: ")).unwrap();
    assert!(coverage.contains(" %), those that modules = \"mlp\" names, as intended"), "{coverage}");
    let one = "model.modules=[\"model.layers.1.mlp.down_proj\"]";
    let thin = bench.ok(&["run", "study.toml", "--to", "covariances", "--set", one]);
    assert!(thin.contains("down_proj\"] names; less than half of those outside the embeddings"), "{thin}");
    assert!(place("coverage: ") < place("query 0 "), "{out}");

    let run = parsed(&bench.ok(&["run", "study.toml", "--json"]));
    let of = |name: &str| run["steps"].as_array().unwrap().iter().find(|step| step["name"] == name).unwrap();
    assert_eq!(run["steps"].as_array().unwrap().len(), steps.len());
    for step in &steps {
        let found = of(&step.name);
        assert_eq!((&found["key"], &found["cached"]), (&json!(step.key()), &json!(true)));
        assert_eq!(found["kind"], step.kind.name());
        assert_eq!(found["folder"], step.folder.display().to_string());
    }
    assert_eq!(run["report"], page);
    assert_eq!(run["ranking"], of("final")["folder"]);
    let [attributed, total] =
        ["attributed", "total"].map(|name| wherefrom_artifact::grouped(run["coverage"][name].as_u64().unwrap()));
    let share = format!("{attributed} of {total} parameters");
    assert!(coverage.contains(&share), "{coverage}");

    let plan = parsed(&bench.ok(&["plan", "study.toml", "--json", "--set", "steps.final.top=3"]));
    let states: Vec<_> = plan["steps"].as_array().unwrap().iter().map(|step| &step["state"]).collect();
    assert_eq!(states.iter().filter(|state| **state == "missing").count(), 2, "{states:?}");
    let step = plan["steps"].as_array().unwrap().iter().find(|step| step["name"] == "final").unwrap();
    assert_eq!(
        step["inputs"],
        json!({
            "columns": { "step": "columns" }, "queries": { "step": "queries" }, "scores": { "step": "details" }, "tokens": { "step": "train" }
        })
    );
    assert!(step["cost"]["memory_bytes"].as_f64().unwrap() > 0.0 && step["why"] == "top changed", "{step}");
    assert_eq!(plan["store"]["path"], "data/store");

    let why = parsed(&bench.ok(&["plan", "study.toml", "--json", "--why", "ihvp"]));
    assert_eq!((&why["key"], &why["recipe"]["config"]["rank"]), (&of("ihvp")["key"], &json!(8)));
    let show = parsed(&bench.ok(&["show", of("ihvp")["key"].as_str().unwrap(), "--json"]));
    assert_eq!((&show["manifest"]["recipe"], &show["folder"]), (&why["recipe"], &of("ihvp")["folder"]));
}

#[test]
fn of_many_queries_the_first_are_shown_and_where_the_rest_is() {
    let bench = Bench::new();
    study::write(&bench, 300, 40);
    let row =
        |n: u64| format!("{}\n", json!({ "prompt": "the sea", "completion": format!(" {n} bread"), "source": "logs" }));
    bench.file("queries.jsonl", (0..25).map(row).collect::<String>());
    let out = bench.ok(&["run", "study.toml", "--to", "top"]);
    let top = study::made(&out).pop().unwrap();
    assert!(out.contains("\nquery 4 ") && !out.contains("\nquery 5 "), "{out}");
    let rest = format!("and 20 more queries, in {}/*.parquet\n", bench.path(&top.folder).display());
    assert!(out.ends_with(&rest), "{out}");
}

#[test]
#[cfg(target_os = "linux")]
fn an_interrupted_run_says_how_it_goes_on_and_does() {
    use std::process::{Command, Stdio};

    let bench = Bench::new();
    study::write(&bench, 2000, 40);
    bench.file("my study.toml", bench.text("study.toml"));
    // Whoever runs the tests may ignore interrupts, which would be inherited.
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", env!("CARGO_BIN_EXE_wherefrom"), "run", "my study.toml"]);
    command.current_dir(bench.path("")).env_remove("WHEREFROM_STORE").stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    while results(&bench.store()).is_empty() {
        std::thread::sleep(crate::bench::LOOK);
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("the same command goes on from there:\n  wherefrom run 'my study.toml'\n"), "{said}");
    bench.ok(&["run", "my study.toml", "--to", "train"]);
}

#[test]
fn exit_codes_are_told_where_help_is() {
    let bench = Bench::new();
    let help = bench.ok(&["--help"]);
    for code in ["  0    done", "  1    failed", "  2    refused", "  130  interrupted"] {
        assert!(help.contains(code), "{help}");
    }
    assert_eq!(bench.wherefrom(&["run"]).code, Some(2));
}
