//! How large a step's tokens are: measured where they are there, else told from the corpus.

use std::sync::Arc;

use wherefrom_artifact::{Kind, Manifest, State, grouped};
use wherefrom_model::{Coverage, Modules, Outline, Selection};
use wherefrom_stage::{Planned, Size};
use wherefrom_tokenize::tokenize::Inputs;
use wherefrom_tokenize::{Estimate, check_first_rows, estimate};

use crate::plan::Plan;
use crate::step::{Source, Step};

/// Rows of a corpus that is not there.
const ROWS: f64 = 10_000.0;
/// Rows of queries that are not there.
const QUERIES: f64 = 10.0;

/// Tokens of a question under an order, about.
const ASKED: f64 = 80.0;

/// Tokens and rows of a step, and what was assumed.
type Guess = (Size, Option<String>);

impl Plan {
    /// Tokens and rows of the tokens that `step` holds or came from: measured, or, where `guess`, told from its corpus; of a
    /// corpus that is not there, 10,000 rows of `max-tokens`, or 10 of queries. What was assumed comes with it.
    pub(crate) fn size(&self, step: &Step, inputs: &[(String, Arc<Planned>)], guess: bool) -> Guess {
        let input = |role: &str| inputs.iter().find(|(name, _)| name == role).map(|(_, step)| step);
        let of = |role: &str| input(role).map(|step| step.size);
        if step.kind == Kind::Trait {
            return (asked(step), None);
        }
        if step.kind != Kind::Tokens {
            return (of("gradients").or_else(|| of("tokens")).unwrap_or_default(), None);
        }
        if let Some(manifest) = step.folder(&self.store).and_then(|folder| Manifest::read(&folder).ok()) {
            return (measured(&manifest), None);
        }
        if let Some(Size { tokens, rows }) = of("tokens") {
            let new = step.config()["max-new-tokens"].as_f64().unwrap_or(0.0);
            // A sweep of steering gives each row several texts, and vectors of several traits give it those of each.
            let steer = &step.config()["steer"];
            let count = |knob: &str| steer[knob].as_array().map_or(1, Vec::len) as f64;
            let traits =
                input("vectors").filter(|_| steer["trait"].is_null()).map_or(1.0, |vectors| traits(&vectors.config));
            let times = count("layers") * count("coefficients") * traits;
            return (Size { tokens: times * (tokens + new * rows), rows: times * rows }, None);
        }
        if let (Some(about), Some(samples)) = (input("trait"), step.config()["samples"].as_f64()) {
            // Without an order each question is asked once.
            let orders =
                if step.config()["side"] == "none" { about.config["pairs"].as_f64().unwrap_or(1.0) } else { 1.0 };
            let Size { tokens, rows } = about.size;
            return (Size { tokens: tokens * samples / orders, rows: rows * samples / orders }, None);
        }
        if guess { self.guess(step) } else { Guess::default() }
    }

    /// What a step that tokenises reads, if its corpus is there.
    fn rows_of(&self, step: &Step) -> Option<Inputs> {
        let place = |role: &str| {
            let wire = step.wires.iter().find(|wire| wire.role == role)?;
            let path = self.place(&wire.source)?;
            // What a step makes is a folder.
            let path = if role == "tokenizer" && path.is_dir() { path.join("tokenizer.json") } else { path };
            path.exists().then_some(path)
        };
        let corpus = step.wires.iter().find(|wire| wire.role == "corpus").and_then(|wire| self.place(&wire.source));
        corpus.map(|corpus| Inputs { corpus, tokenizer: place("tokenizer"), chat_template: place("chat-template") })
    }

    /// What the steps that are still to be made will refuse of the first rows of their corpora, with the names of the steps. A
    /// tokenizer that a step makes, or that a model's bare `config.json` lacks, is not there to look with.
    pub(crate) fn refused_rows(&self) -> Vec<(String, String)> {
        let tokenises = |step: &&Step| step.state == State::Missing && step.config()["max-tokens"].is_u64();
        let bare = !self.bare_models().is_empty();
        let refused = self.steps.iter().filter(tokenises).filter_map(|step| {
            let made = step.wires.iter().any(|wire| matches!(wire.source, Source::Step(_)));
            // Of a model that is not there it is told once.
            let lacks = self.lacking().any(|(name, _)| name == step.name);
            let waits = |inputs: &Inputs| made || lacks || bare && inputs.tokenizer.is_none();
            let inputs = self.rows_of(step).filter(|inputs| inputs.corpus.exists() && !waits(inputs))?;
            let error = check_first_rows(step.config(), &inputs).err()?;
            Some((step.name.clone(), format!("{error:#}")))
        });
        refused.collect()
    }

    /// Whether the tokens of a step are queries: gradients of each are taken.
    fn asks(&self, step: &Step) -> bool {
        let of = |source: &Source| matches!(source, Source::Step(index) if self.steps[*index].name == step.name);
        let gradients = self.steps.iter().filter(|other| other.kind == Kind::Gradients);
        gradients.flat_map(|other| &other.wires).any(|wire| of(&wire.source))
    }

    fn guess(&self, step: &Step) -> Guess {
        let inputs = self.rows_of(step);
        let found = inputs.and_then(|inputs| estimate(step.config(), &inputs).ok());
        let most = step.config()["max-tokens"].as_f64();
        match (found, most) {
            (Some(Estimate { windows, tokens, encoded }), _) => {
                let guessed = "tokens guessed at 4 bytes each: the tokenizer is not there";
                (Size { tokens, rows: windows }, (!encoded).then(|| guessed.into()))
            }
            (None, Some(most)) => {
                let rows = if self.asks(step) { QUERIES } else { ROWS };
                let shown = if rows == ROWS { "10,000" } else { "10" };
                let assumed = format!("{shown} rows of {most} tokens assumed: the corpus is not there");
                (Size { tokens: rows * most, rows }, Some(assumed))
            }
            (None, None) => Guess::default(),
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
    if let Some(trained) = coverage.trained {
        return coverage.is_thin().then(|| {
            format!(
                "only {} of {} parameters that adapters trained are attributed ({:.1} %); influence that runs through the others is \
                 not seen: modules = \"all\" takes every linear map, attribute = \"adapter\" those of the adapters",
                grouped(trained.attributed),
                grouped(trained.total),
                100.0 * trained.attributed as f64 / trained.total as f64
            )
        });
    }
    if !coverage.is_thin() {
        return None;
    }
    let blocks = coverage.without_embeddings();
    let mut rest: Vec<_> = coverage.unattributed.iter().filter(|(name, _)| !Coverage::is_embedding(name)).collect();
    rest.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let largest: Vec<_> = rest.iter().take(3).map(|(name, size)| format!("{name} ({})", grouped(*size))).collect();
    Some(format!(
        "only {} of {} parameters outside the embeddings are attributed ({:.1} %); influence that runs through the \
         others is not seen, the largest of them {}: modules = \"all\" takes every linear map",
        grouped(coverage.attributed),
        grouped(blocks),
        100.0 * coverage.attributed as f64 / blocks as f64,
        largest.join(", ")
    ))
}

/// Of the prompts of one half of a trait's questions, under every order of one side.
fn asked(step: &Step) -> Size {
    let knob = |name: &str| step.config()[name].as_f64().unwrap_or(0.0);
    let rows = knob("pairs") * knob("questions") / 2.0;
    Size { tokens: rows * ASKED, rows }
}

/// How many traits the vectors of a step are of: its controls, or its own.
fn traits(vectors: &serde_json::Value) -> f64 {
    let counts = vectors["controls"]
        .as_array()
        .map(|controls| controls.iter().filter_map(|control| control["count"].as_f64()).sum());
    counts.unwrap_or(1.0)
}

/// Of tokens that are there.
pub(crate) fn measured(tokens: &Manifest) -> Size {
    Size { tokens: tokens.count("tokens").unwrap_or(0) as f64, rows: tokens.rows() as f64 }
}
