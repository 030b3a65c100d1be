//! Artifacts as text: the manifest in short, and the first rows.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use wherefrom_artifact::text::{EXCERPT, clipped};
use wherefrom_artifact::{Format, Lineage, Manifest, Store, bytes, open_any};
use wherefrom_model::Coverage;

/// Manifest in short, and the rows as [`rows`] shows them.
pub fn show(store: &Store, folder: &Path) -> Result<String> {
    let manifest = open_any(folder)?;
    let mut text = String::new();
    writeln!(text, "{} {}", manifest.kind.name(), manifest.key)?;
    writeln!(text, "folder    {}", folder.display())?;
    writeln!(text, "stage     {} (version {})", manifest.recipe.stage, manifest.recipe.version)?;
    writeln!(text, "config    {}", manifest.recipe.config)?;
    for (role, key) in &manifest.recipe.inputs {
        writeln!(text, "input     {role} = {key}")?;
    }
    if let Some(model) = &manifest.recipe.model {
        writeln!(text, "model     {model}")?;
    }
    let (parts, rows) = (manifest.parts.len(), manifest.rows());
    writeln!(text, "parts     {parts}, {rows} rows, {}", bytes(manifest.bytes() as f64))?;
    if let Some(coverage) = coverage(&manifest) {
        writeln!(text, "coverage  {coverage}")?;
    }
    for (title, facts) in [("summary", &manifest.summary), ("run", &manifest.provenance)] {
        for (name, value) in facts.iter().filter(|(name, _)| *name != "coverage") {
            writeln!(text, "{title:<9} {name} = {}", clipped(&value.to_string(), EXCERPT))?;
        }
    }
    if manifest.kind.format() == Format::Folder {
        for part in &manifest.parts {
            writeln!(text, "file      {} ({})", part.name, bytes(part.bytes as f64))?;
        }
        return Ok(text);
    }
    text += "\n";
    text += &self::rows(store, folder, &BTreeMap::new())?;
    Ok(text)
}

/// What there is to see in an artifact: its first rows, or its strongest ones with their texts.
///
/// `outside` are artifacts that are not in the store, by key.
pub fn rows(store: &Store, folder: &Path, outside: &BTreeMap<String, PathBuf>) -> Result<String> {
    open_any(folder)?.kind.show(folder, &Lineage::new(store, outside))
}

/// Which parameters the stage of an artifact attributed and which not, by name and share, where its manifest says so:
/// `540672 of 1000576 parameters (54.0 %) are attributed; not model.embed_tokens (26.2 %), ...`
pub fn coverage(manifest: &Manifest) -> Option<String> {
    let coverage: Coverage = serde_json::from_value(manifest.summary.get("coverage")?.clone()).ok()?;
    let share = |size: u64| format!("{:.1} %", 100.0 * size as f64 / coverage.total as f64);
    // Layers together: model.layers.*.self_attn.q_proj.
    let mut rest: Vec<(String, u64)> = Vec::new();
    for (name, size) in &coverage.unattributed {
        let words = name.trim_end_matches(".weight").split('.');
        let words = words.map(|word| if word.parse::<usize>().is_ok() { "*" } else { word });
        let name = words.collect::<Vec<_>>().join(".");
        match rest.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += size,
            None => rest.push((name, *size)),
        }
    }
    rest.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let rest: Vec<_> = rest.iter().map(|(name, size)| format!("{name} ({})", share(*size))).collect();
    let rest = if rest.is_empty() { String::new() } else { format!("; not {}", rest.join(", ")) };
    let (attributed, total) = (coverage.attributed, coverage.total);
    Some(format!("{attributed} of {total} parameters ({}) are attributed{rest}", share(attributed)))
}
