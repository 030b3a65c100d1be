//! How large a step's tokens and model are: measured where they are there, else guessed.

use std::io::Read as _;
use std::path::Path;

use wherefrom_artifact::{Kind, Manifest};
use wherefrom_model::{Coverage, Modules, Outline, Selection};

use crate::plan::Plan;
use crate::stage::Stage;
use crate::step::{Source, Step};

/// Bytes of a corpus whose lines are counted.
const BEGINNING: u64 = 1 << 16;
/// Rows of a corpus that is not there.
const ROWS: f64 = 10_000.0;

impl Plan {
    pub(crate) fn wire(&self, step: &Step, role: &str) -> Option<&Step> {
        step.wires.iter().find(|wire| wire.role == role).and_then(|wire| match wire.source {
            Source::Step(before) => Some(&self.steps[before]),
            _ => None,
        })
    }

    /// Tokens and rows of the tokens that `step` holds or came from: measured, or guessed from its corpus; of a corpus
    /// that is not there, 10,000 rows of `max-tokens`.
    pub(crate) fn size(&self, step: Option<&Step>) -> (f64, f64) {
        let Some(step) = step else { return (0.0, 0.0) };
        if step.kind != Kind::Tokens {
            return self.size(["gradients", "tokens"].into_iter().find_map(|role| self.wire(step, role)));
        }
        if let Some(manifest) = step.folder(&self.store).and_then(|folder| Manifest::read(&folder).ok()) {
            return (manifest.count("tokens").unwrap_or(0) as f64, manifest.rows() as f64);
        }
        if let Some(before) = self.wire(step, "tokens") {
            return self.size(Some(before));
        }
        let most = step.config["max-tokens"].as_f64().unwrap_or(f64::INFINITY);
        let corpus = step.wires.iter().find(|wire| wire.role == "corpus").and_then(|wire| self.place(&wire.source));
        match corpus.and_then(|path| guess(&path).ok()) {
            Some((tokens, rows)) => (tokens.min(rows * most), rows),
            None if most.is_finite() => (ROWS * most, ROWS),
            None => (0.0, 0.0),
        }
    }

    /// What is found at the step, or else at one that it needs.
    pub(crate) fn before<T>(&self, step: &Step, find: impl Fn(&Step) -> Option<T> + Copy) -> Option<T> {
        find(step).or_else(|| step.needs().find_map(|index| self.before(&self.steps[index], find)))
    }

    /// The model that the step runs or trains: read from its folder, or as it will be.
    pub(crate) fn model(&self, step: &Step) -> Option<wherefrom_model::Config> {
        if step.stage == Stage::Train {
            return serde_json::from_value::<wherefrom_train::train::Config>(step.config.clone()).ok()?.model().ok();
        }
        let source = step.model.as_ref()?;
        wherefrom_model::Config::load(&self.place(source)?).ok().or_else(|| match source {
            Source::Step(index) => self.model(&self.steps[*index]),
            _ => None,
        })
    }

    /// Where a step attributes less than half of a model's parameters, embeddings left aside: which are the largest that
    /// it leaves out. Once for each model and choice.
    pub fn thin_coverage(&self) -> Vec<String> {
        let mut said = Vec::new();
        for step in self.steps.iter().filter(|step| step.stage.inherits().contains(&"modules")) {
            let line = self.model(step).and_then(|config| thin(&config, &step.config["modules"]));
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
fn guess(corpus: &Path) -> anyhow::Result<(f64, f64)> {
    let files = wherefrom_tokenize::corpus_files(corpus)?;
    let sizes: Vec<_> = files.iter().map(|file| std::fs::metadata(&file.path)).collect::<Result<_, _>>()?;
    let bytes = sizes.iter().map(std::fs::Metadata::len).sum::<u64>() as f64;
    let mut beginning = Vec::new();
    std::fs::File::open(&files[0].path)?.take(BEGINNING).read_to_end(&mut beginning)?;
    let lines = beginning.iter().filter(|&&byte| byte == b'\n').count().max(1);
    Ok((bytes / 4.0, (bytes * lines as f64 / beginning.len().max(1) as f64).ceil()))
}
