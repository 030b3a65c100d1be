//! The import law of ARCHITECTURE.md, read off `cargo metadata`.

use std::collections::BTreeSet;

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Crate, and the workspace crates it may depend on.
const LAW: [(&str, &[&str]); 11] = [
    ("whence", &["whence-artifact", "whence-model", "whence-pipeline"]),
    (
        "whence-pipeline",
        &[
            "whence-aggregate",
            "whence-artifact",
            "whence-curvature",
            "whence-gradients",
            "whence-model",
            "whence-score",
            "whence-tokenize",
            "whence-train",
        ],
    ),
    ("whence-tokenize", &["whence-artifact"]),
    ("whence-gradients", &["whence-artifact", "whence-linalg", "whence-model"]),
    ("whence-curvature", &["whence-artifact", "whence-linalg", "whence-model"]),
    ("whence-score", &["whence-artifact", "whence-linalg", "whence-model"]),
    ("whence-train", &["whence-artifact", "whence-linalg", "whence-model"]),
    ("whence-aggregate", &["whence-artifact"]),
    ("whence-model", &["whence-linalg"]),
    ("whence-linalg", &[]),
    ("whence-artifact", &[]),
];

#[test]
fn crates_import_only_what_the_law_allows() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().unwrap();
    let crates: Vec<_> = metadata.packages.iter().filter(|package| *package.name != "whence-tests").collect();
    assert_eq!(crates.len(), LAW.len(), "a crate is missing from the law");
    for package in crates {
        let (_, allowed) = LAW.iter().find(|(name, _)| *name == *package.name).expect("a crate of the law");
        let allowed: BTreeSet<_> = allowed.iter().copied().collect();
        let normal = package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal);
        for dependency in normal {
            let name = dependency.name.as_str();
            let fine = match name {
                "clap" | "indicatif" => *package.name == "whence",
                "arrow" | "parquet" => !["whence-model", "whence-linalg", "whence"].contains(&package.name.as_str()),
                "burn" => !["whence-artifact", "whence-tokenize", "whence-aggregate", "whence-pipeline", "whence"]
                    .contains(&package.name.as_str()),
                name if name.starts_with("whence") => allowed.contains(name),
                _ => true,
            };
            assert!(fine, "{} must not depend on {name}", package.name);
        }
    }
}
