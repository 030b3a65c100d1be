//! How large a step's tokens are: measured where they are there, else guessed.

use std::io::Read as _;
use std::path::Path;

use wherefrom_artifact::{Kind, Manifest};
use wherefrom_model::{Coverage, Modules, Outline, Selection};
use wherefrom_stage::Size;

use crate::plan::Plan;
use crate::step::{Source, Step};

/// Bytes of a corpus whose lines are counted.
const BEGINNING: u64 = 1 << 16;
/// Rows of a corpus that is not there.
const ROWS: f64 = 10_000.0;

impl Plan {
    fn wire(&self, step: &Step, role: &str) -> Option<&Step> {
        step.wires.iter().find(|wire| wire.role == role).and_then(|wire| match wire.source {
            Source::Step(before) => Some(&self.steps[before]),
            _ => None,
        })
    }

    /// Tokens and rows of the tokens that `step` holds or came from: measured, or guessed from its corpus; of a corpus
    /// that is not there, 10,000 rows of `max-tokens`.
    pub(crate) fn size(&self, step: Option<&Step>) -> Size {
        let Some(step) = step else { return Size::default() };
        if step.kind != Kind::Tokens {
            return self.size(["gradients", "tokens"].into_iter().find_map(|role| self.wire(step, role)));
        }
        if let Some(manifest) = step.folder(&self.store).and_then(|folder| Manifest::read(&folder).ok()) {
            return Size { tokens: manifest.count("tokens").unwrap_or(0) as f64, rows: manifest.rows() as f64 };
        }
        if let Some(before) = self.wire(step, "tokens") {
            return self.size(Some(before));
        }
        let most = step.config()["max-tokens"].as_f64().unwrap_or(f64::INFINITY);
        let corpus = step.wires.iter().find(|wire| wire.role == "corpus").and_then(|wire| self.place(&wire.source));
        match corpus.and_then(|path| guess(&path).ok()) {
            Some(Size { tokens, rows }) => Size { tokens: tokens.min(rows * most), rows },
            None if most.is_finite() => Size { tokens: ROWS * most, rows: ROWS },
            None => Size::default(),
        }
    }

    /// Where a step attributes less than half of a model's parameters, embeddings left aside: which are the largest that
    /// it files out. Once for each model and choice.
    pub fn thin_coverage(&self) -> Vec<String> {
        let mut said = Vec::new();
        for step in self.steps.iter().filter(|step| step.stage.inherits().contains(&"modules")) {
            let line = self.model(step).and_then(|config| thin(&config, &step.config()["modules"]));
            said.extend(line.filter(|line| !said.contains(line)));
        }
        said
    }
}

fn thin(config: &wherefrom_model::Config, modules: &serde_json::Value) -> Option<String> {
    let modules: Modules = serde_json::from_value(modules.clone()).ok()?;
    let outline = Outline::new(config);
    let coverage = Coverage::new(&outline, &Selection::new(&modules, outline.modules()).ok()?);
    // Tables with a row for each token or position: embeddings, and the head.
    let tables = [config.vocab_size, config.max_position_embeddings];
    let embedding = |name: &str| {
        outline
            .tensors()
            .iter()
            .any(|shape| shape.name == name && shape.sizes.len() == 2 && tables.contains(&shape.sizes[0]))
    };
    let (embeddings, mut rest): (Vec<_>, Vec<_>) = coverage.unattributed.iter().partition(|(name, _)| embedding(name));
    let blocks = coverage.total - embeddings.iter().map(|(_, size)| size).sum::<u64>();
    if 2 * coverage.attributed >= blocks {
        return None;
    }
    rest.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let largest: Vec<_> = rest.iter().take(3).map(|(name, size)| format!("{name} ({size})")).collect();
    Some(format!(
        "only {} of {blocks} parameters outside the embeddings are attributed ({:.1} %); influence that runs through the \
         others is not seen, the largest of them {}: modules = \"all\" takes every linear map",
        coverage.attributed,
        100.0 * coverage.attributed as f64 / blocks as f64,
        largest.join(", ")
    ))
}

/// Tokens of four bytes, and rows as long as the first ones.
fn guess(corpus: &Path) -> anyhow::Result<Size> {
    let files = wherefrom_tokenize::corpus_files(corpus)?;
    let sizes: Vec<_> = files.iter().map(|file| std::fs::metadata(&file.path)).collect::<Result<_, _>>()?;
    let bytes = sizes.iter().map(std::fs::Metadata::len).sum::<u64>() as f64;
    let mut beginning = Vec::new();
    std::fs::File::open(&files[0].path)?.take(BEGINNING).read_to_end(&mut beginning)?;
    let lines = beginning.iter().filter(|&&byte| byte == b'\n').count().max(1);
    let rows = (bytes * lines as f64 / beginning.len().max(1) as f64).ceil();
    Ok(Size { tokens: bytes / 4.0, rows })
}
