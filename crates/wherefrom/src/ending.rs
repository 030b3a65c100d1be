//! The end of a run: what was attributed, the strongest examples, and the page to open; or the same as JSON.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};
use wherefrom_artifact::{Kind, Manifest};
use wherefrom_inspect::Attributed;
use wherefrom_pipeline::{Done, Plan};
use wherefrom_stage::Exec;

use crate::output::{say, say_json};

/// Of several steps of one kind the last.
fn last(done: &[Done], kind: Kind) -> Option<&Done> {
    done.iter().rev().find(|done| done.kind == kind)
}

/// The page of a run that made one, absolute.
fn page(done: &[Done]) -> Option<PathBuf> {
    let page = last(done, Kind::Report)?.folder.join("index.html");
    Some(std::path::absolute(&page).unwrap_or(page))
}

/// What was attributed, by the last step that says so.
fn attributed(done: &[Done]) -> Option<(Attributed, Value)> {
    let manifests: Vec<Manifest> = done.iter().rev().filter_map(|done| Manifest::read(&done.folder).ok()).collect();
    let attributed = manifests.iter().find_map(Attributed::of)?;
    let modules = manifests.iter().find_map(|manifest| manifest.recipe.config.get("modules"));
    Some((attributed, modules.cloned().unwrap_or(Value::Null)))
}

/// The coverage, the strongest examples of each query, and in the last line the page to open.
pub(crate) fn text(plan: &Plan, done: &[Done]) -> Result<()> {
    if let Some((attributed, modules)) = attributed(done) {
        let verdict = match (attributed.thin, attributed.trained) {
            (false, _) => ", as intended",
            (true, None) => {
                "; less than half of those outside the embeddings: modules = \"all\" takes every linear map"
            }
            (true, Some(_)) if modules == "all" => {
                "; less than half of what was trained: attribute = \"adapter\" takes its maps"
            }
            (true, Some(_)) => "; less than half of what was trained: modules = \"all\" takes every linear map",
        };
        say(&format!("\ncoverage: {}, those that modules = {modules} names{verdict}", attributed.share()))?;
    }
    if let Some(ranking) = last(done, Kind::Ranking) {
        let text = wherefrom_inspect::rows(&plan.store, &ranking.folder, &plan.outside())?;
        say(&format!("\n{text}"))?;
    }
    page(done).map_or(Ok(()), |page| say(&format!("open {}", page.display())))
}

/// All of it for programs: FORMAT.md has the fields.
pub(crate) fn json(plan: &Plan, done: &[Done], exec: &Exec) -> Result<()> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let step = |done: &Done| {
        json!({
            "name": done.name, "kind": done.kind.name(), "key": name(&done.folder), "folder": done.folder,
            "cached": done.cached, "seconds": done.seconds,
        })
    };
    let coverage = attributed(done).map(|(attributed, modules)| {
        json!({
            "attributed": attributed.attributed, "total": attributed.total, "modules": modules,
            "warnings": plan.thin_coverage(),
        })
    });
    say_json(&json!({
        "pipeline": plan.path,
        "store": plan.store.root(),
        "device": exec.device.to_string(),
        "steps": done.iter().map(step).collect::<Vec<_>>(),
        "coverage": coverage,
        "ranking": last(done, Kind::Ranking).map(|done| &done.folder),
        "report": page(done),
    }))
}
