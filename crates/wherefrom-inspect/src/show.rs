//! Artifacts as text: the manifest in short, and the first rows.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use wherefrom_artifact::text::{EXCERPT, clipped};
use wherefrom_artifact::{Format, Lineage, Manifest, Store, bytes, grouped, open_any};
use wherefrom_model::{Coverage, Trained};

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
    if let Some(attributed) = Attributed::of(&manifest) {
        writeln!(text, "coverage  {}", attributed.whole())?;
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
    }
    let rows = self::rows(store, folder, &BTreeMap::new())?;
    // Of most folders there is nothing to see but their files.
    Ok(if rows.is_empty() && manifest.kind.format() == Format::Folder { text } else { text + "\n" + &rows })
}

/// What there is to see in an artifact: its first rows, or its strongest ones with their texts.
///
/// `outside` are artifacts that are not in the store, by key.
pub fn rows(store: &Store, folder: &Path, outside: &BTreeMap<String, PathBuf>) -> Result<String> {
    open_any(folder)?.kind.show(folder, &Lineage::new(store, outside))
}

/// Which parameters the stage of an artifact attributed.
#[derive(Debug)]
pub struct Attributed {
    /// Parameters of the modules.
    pub attributed: u64,
    /// Parameters of the model.
    pub total: u64,
    /// Whether they are less than half of those outside the embeddings, or of what adapters trained.
    pub thin: bool,
    /// Of a model with adapters, what those trained.
    pub trained: Option<Trained>,
    /// Every other parameter by its name, layers together, and its size; the largest first.
    rest: Vec<(String, u64)>,
}

impl Attributed {
    /// As the manifest says, if it does.
    pub fn of(manifest: &Manifest) -> Option<Self> {
        let coverage: Coverage = serde_json::from_value(manifest.summary.get("coverage")?.clone()).ok()?;
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
        let (thin, trained) = (coverage.is_thin(), coverage.trained);
        Some(Self { attributed: coverage.attributed, total: coverage.total, thin, trained, rest })
    }

    fn percent(&self, size: u64) -> String {
        format!("{:.1} %", 100.0 * size as f64 / self.total as f64)
    }

    /// `540,672 of 1,000,576 parameters (54.0 %)`; with adapters also `, 1,024 of 2,048 that were trained (50.0 %)`.
    pub fn share(&self) -> String {
        let trained = self.trained.map_or_else(String::new, |Trained { attributed, total }| {
            let percent = 100.0 * attributed as f64 / total as f64;
            format!(", {} of {} that were trained ({percent:.1} %)", grouped(attributed), grouped(total))
        });
        let [attributed, total] = [self.attributed, self.total].map(grouped);
        format!("{attributed} of {total} parameters ({}){trained}", self.percent(self.attributed))
    }

    /// `540,672 of 1,000,576 parameters (54.0 %) are attributed; not model.embed_tokens (26.2 %), ...`
    pub fn whole(&self) -> String {
        let rest: Vec<_> = self.rest.iter().map(|(name, size)| format!("{name} ({})", self.percent(*size))).collect();
        let rest = if rest.is_empty() { String::new() } else { format!("; not {}", rest.join(", ")) };
        format!("{} are attributed{rest}", self.share())
    }
}
