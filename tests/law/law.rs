//! The import law of ARCHITECTURE.md, read off `cargo metadata`.

#![cfg(test)]

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

/// Crate, and the workspace crates it may depend on.
const LAW: [(&str, &[&str]); 22] = [
    (
        "wherefrom",
        &["wherefrom-artifact", "wherefrom-check", "wherefrom-inspect", "wherefrom-pipeline", "wherefrom-stage"],
    ),
    ("wherefrom-inspect", &["wherefrom-artifact", "wherefrom-linalg", "wherefrom-model"]),
    (
        "wherefrom-check",
        &["wherefrom-artifact", "wherefrom-inspect", "wherefrom-model", "wherefrom-pipeline", "wherefrom-stage"],
    ),
    (
        "wherefrom-pipeline",
        &[
            "wherefrom-aggregate",
            "wherefrom-artifact",
            "wherefrom-curvature",
            "wherefrom-evaluate",
            "wherefrom-gradients",
            "wherefrom-hub",
            "wherefrom-model",
            "wherefrom-persona",
            "wherefrom-remote",
            "wherefrom-report",
            "wherefrom-score",
            "wherefrom-stage",
            "wherefrom-tokenize",
            "wherefrom-train",
            "wherefrom-vocabulary",
        ],
    ),
    ("wherefrom-hub", &["wherefrom-artifact"]),
    ("wherefrom-remote", &["wherefrom-artifact"]),
    ("wherefrom-tokenize", &["wherefrom-artifact", "wherefrom-stage", "wherefrom-vocabulary"]),
    (
        "wherefrom-gradients",
        &["wherefrom-artifact", "wherefrom-linalg", "wherefrom-model", "wherefrom-pass", "wherefrom-stage"],
    ),
    (
        "wherefrom-curvature",
        &["wherefrom-artifact", "wherefrom-linalg", "wherefrom-model", "wherefrom-pass", "wherefrom-stage"],
    ),
    (
        "wherefrom-score",
        &["wherefrom-artifact", "wherefrom-linalg", "wherefrom-model", "wherefrom-pass", "wherefrom-stage"],
    ),
    (
        "wherefrom-train",
        &["wherefrom-artifact", "wherefrom-linalg", "wherefrom-model", "wherefrom-stage", "wherefrom-vocabulary"],
    ),
    (
        "wherefrom-evaluate",
        &[
            "wherefrom-artifact",
            "wherefrom-gradients",
            "wherefrom-linalg",
            "wherefrom-model",
            "wherefrom-stage",
            "wherefrom-train",
        ],
    ),
    (
        "wherefrom-persona",
        &[
            "wherefrom-artifact",
            "wherefrom-linalg",
            "wherefrom-model",
            "wherefrom-pass",
            "wherefrom-stage",
            "wherefrom-vocabulary",
        ],
    ),
    ("wherefrom-aggregate", &["wherefrom-artifact", "wherefrom-stage"]),
    ("wherefrom-report", &["wherefrom-artifact", "wherefrom-stage", "wherefrom-vocabulary"]),
    ("wherefrom-pass", &["wherefrom-artifact", "wherefrom-linalg", "wherefrom-model", "wherefrom-stage"]),
    ("wherefrom-stage", &["wherefrom-artifact"]),
    ("wherefrom-vocabulary", &["wherefrom-artifact"]),
    ("wherefrom-model", &["wherefrom-linalg"]),
    ("wherefrom-linalg", &[]),
    ("wherefrom-artifact", &[]),
    (
        "wherefrom-bench",
        &[
            "wherefrom-artifact",
            "wherefrom-curvature",
            "wherefrom-gradients",
            "wherefrom-linalg",
            "wherefrom-model",
            "wherefrom-score",
            "wherefrom-stage",
            "wherefrom-tokenize",
        ],
    ),
];

/// They test the others, and nothing depends on them.
const TESTS: [&str; 2] = ["wherefrom-law", "wherefrom-tests"];

/// Every crate of the workspace with the crates it depends on outside its tests.
///
/// From the command itself: the `cargo_metadata` crate would turn on features of serde in tests alone, so that `just demo`
/// and `just test` would compile every dependency twice.
fn dependencies() -> Vec<(String, Vec<String>)> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
    let mut command = Command::new(env!("CARGO"));
    let output = command.args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path", manifest]).output();
    let metadata: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_string();
    let packages = metadata["packages"].as_array().unwrap().iter();
    let normal = |package: &Value| {
        let all = package["dependencies"].as_array().unwrap().iter();
        all.filter(|dependency| dependency["kind"].is_null()).map(|dependency| text(&dependency["name"])).collect()
    };
    packages.map(|package| (text(&package["name"]), normal(package))).collect()
}

#[test]
fn crates_import_only_what_the_law_allows() {
    let crates: Vec<_> = dependencies().into_iter().filter(|(package, _)| !TESTS.contains(&&package[..])).collect();
    assert_eq!(crates.len(), LAW.len(), "a crate is missing from the law");
    for (package, dependencies) in &crates {
        let (_, allowed) = LAW.iter().find(|(name, _)| name == package).expect("a crate of the law");
        let allowed: BTreeSet<_> = allowed.iter().copied().collect();
        for name in dependencies {
            let fine = match name.as_str() {
                "clap" => ["wherefrom", "wherefrom-bench"].contains(&package.as_str()),
                "indicatif" => package == "wherefrom",
                "arrow" | "parquet" => ![
                    "wherefrom-hub",
                    "wherefrom-remote",
                    "wherefrom-model",
                    "wherefrom-linalg",
                    "wherefrom-pass",
                    "wherefrom-stage",
                    "wherefrom",
                ]
                .contains(&package.as_str()),
                "burn" => ![
                    "wherefrom-artifact",
                    "wherefrom-hub",
                    "wherefrom-remote",
                    "wherefrom-tokenize",
                    "wherefrom-aggregate",
                    "wherefrom-check",
                    "wherefrom-inspect",
                    "wherefrom-pipeline",
                    "wherefrom-report",
                    "wherefrom-stage",
                    "wherefrom",
                ]
                .contains(&package.as_str()),
                name if name.starts_with("wherefrom") => allowed.contains(name),
                _ => true,
            };
            assert!(fine, "{package} must not depend on {name}");
        }
    }
}
