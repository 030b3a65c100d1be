//! The registry of stages, and what a step runs: one of them, or a program of the user's.

use std::sync::Arc;

use serde_json::{Map, Value};
use wherefrom_artifact::Kind;
use wherefrom_stage::{AnyStage, Checkpoint, Configured, File, Input};

use crate::external::Program;

/// Every stage that is no program of the user's. Nothing else knows one by name.
static STAGES: &[&dyn AnyStage] = &[
    &wherefrom_tokenize::vocabulary::STAGE,
    &wherefrom_tokenize::tokenize::STAGE,
    &wherefrom_tokenize::columns::STAGE,
    &wherefrom_train::train::STAGE,
    &wherefrom_train::fine_tune::STAGE,
    &wherefrom_train::generate::STAGE,
    &wherefrom_train::moments::STAGE,
    &wherefrom_curvature::covariance::STAGE,
    &wherefrom_curvature::eigenbasis::STAGE,
    &wherefrom_curvature::lambda::STAGE,
    &wherefrom_gradients::STAGE,
    &wherefrom_curvature::precondition::STAGE,
    &wherefrom_curvature::solve::STAGE,
    &wherefrom_curvature::self_influence::STAGE,
    &wherefrom_curvature::coordinates::STAGE,
    &wherefrom_curvature::index::STAGE,
    &wherefrom_curvature::score_index::STAGE,
    &wherefrom_gradients::losses::STAGE,
    &wherefrom_gradients::preferences::STAGE,
    &wherefrom_gradients::activations::STAGE,
    &wherefrom_gradients::project_gradients::STAGE,
    &wherefrom_curvature::score_projected_gradients::STAGE,
    &wherefrom_score::filter::STAGE,
    &wherefrom_score::similarity::STAGE,
    &wherefrom_score::gradient_products::STAGE,
    &wherefrom_score::STAGE,
    &wherefrom_aggregate::rank::STAGE,
    &wherefrom_report::STAGE,
    &wherefrom_report::traits::STAGE,
    &wherefrom_curvature::proximal::STAGE,
    &wherefrom_evaluate::retrain::STAGE,
    &wherefrom_evaluate::agreement::STAGE,
    &wherefrom_evaluate::calibration::STAGE,
    &wherefrom_evaluate::retrieval::STAGE,
    &wherefrom_evaluate::metagradient::STAGE,
    &wherefrom_persona::description::STAGE,
    &wherefrom_persona::ask::STAGE,
    &wherefrom_persona::judge::STAGE,
    &wherefrom_persona::vector::STAGE,
    &wherefrom_persona::project::STAGE,
];

/// As in a pipeline's `stage`, for a program of the user's.
const EXTERNAL: &str = "external";

/// What a step runs.
#[derive(Debug, Clone, Copy)]
pub enum Stage {
    /// A stage of the registry.
    Own(&'static dyn AnyStage),
    /// A program of the user's: it states its version and what it writes, and takes whatever it is given.
    External,
}

impl Stage {
    /// The stage of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        let own = STAGES.iter().copied().find(|stage| stage.about().name == name).map(Self::Own);
        own.or_else(|| (name == EXTERNAL).then_some(Self::External))
    }

    /// What a stage is called now that had another name before.
    pub(crate) fn renamed(name: &str) -> Option<&'static str> {
        match name {
            "projections" => Some("project-gradients"),
            "score-projections" => Some("score-projected-gradients"),
            _ => None,
        }
    }

    /// Every stage.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        STAGES.iter().copied().map(Self::Own).chain([Self::External])
    }

    /// The name of every stage.
    pub fn names() -> Vec<&'static str> {
        Self::all().map(Self::name).collect()
    }

    /// As in a pipeline's `stage`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Own(stage) => stage.about().name,
            Self::External => EXTERNAL,
        }
    }

    pub(crate) fn is_external(self) -> bool {
        matches!(self, Self::External)
    }

    /// The version of its results; an external step states its own.
    pub(crate) fn version(self) -> Option<u32> {
        match self {
            Self::Own(stage) => Some(stage.about().version),
            Self::External => None,
        }
    }

    /// What it makes of a checkpoint. A program may be given one, and need not be.
    pub(crate) fn checkpoint(self) -> Checkpoint {
        match self {
            Self::Own(stage) => stage.about().model,
            Self::External => Checkpoint::None,
        }
    }

    /// Whether several processes can do a share of it each.
    pub fn splits(self) -> bool {
        matches!(self, Self::Own(stage) if stage.about().splits)
    }

    /// Whether it runs a checkpoint, with these knobs.
    pub fn runs_model(self, knobs: &Value) -> bool {
        self.checkpoint().runs(knobs)
    }

    /// Whether it computes on the device, with these knobs.
    pub(crate) fn uses_device(self, knobs: &Value) -> bool {
        self.runs_model(knobs) || matches!(self, Self::Own(stage) if stage.about().on_device)
    }

    /// Whether it reads a corpus: the first that can be refused.
    pub(crate) fn reads_corpus(self) -> bool {
        self.files().contains(&File::Corpus)
    }

    /// Its knobs to which `[model]` gives a default.
    pub(crate) fn inherits(self) -> &'static [&'static str] {
        match self {
            Self::Own(stage) => stage.about().inherits,
            Self::External => &[],
        }
    }

    /// Whether it has the knob [`wherefrom_stage::MODULES_PER_PASS`].
    pub(crate) fn several_passes(self) -> bool {
        matches!(self, Self::Own(stage) if stage.about().several_passes)
    }

    /// Files that it reads and no step makes.
    pub(crate) fn files(self) -> &'static [File] {
        match self {
            Self::Own(stage) => stage.about().files,
            Self::External => &[],
        }
    }

    /// The file of that role.
    pub(crate) fn file(self, role: &str) -> Option<File> {
        self.files().iter().copied().find(|file| file.name() == role && file.is_knob())
    }

    /// Whether it reads how its checkpoint generates.
    pub(crate) fn reads_generation_config(self) -> bool {
        self.files().contains(&File::GenerationConfig)
    }

    /// Knobs that are no part of the configuration.
    pub(crate) fn beside(self) -> Vec<&'static str> {
        match self {
            Self::Own(stage) => stage.about().beside().collect(),
            Self::External => Vec::new(),
        }
    }

    /// What it writes, with these knobs, so far as they say.
    pub(crate) fn writes(self, configured: Option<&dyn Configured>, knobs: &Value) -> Option<Kind> {
        match (self, configured) {
            (_, Some(configured)) => Some(configured.writes()),
            (Self::Own(stage), None) => stage.writes(),
            (Self::External, None) => Kind::from_name(knobs["writes"].as_str()?),
        }
    }

    /// Its inputs; none where it takes whatever it is given.
    pub(crate) fn inputs(self, configured: Option<&dyn Configured>) -> Option<Vec<Input>> {
        match (self, configured) {
            (Self::External, _) => None,
            (_, Some(configured)) => configured.inputs(),
            (Self::Own(stage), None) => Some(stage.inputs()),
        }
    }

    /// The stage with these knobs, every default filled in.
    pub(crate) fn configure(self, knobs: &Value) -> serde_json::Result<Arc<dyn Configured>> {
        match self {
            Self::Own(stage) => stage.configure(knobs),
            Self::External => Ok(Arc::new(Program::new(knobs)?)),
        }
    }
}

/// The knobs without one.
pub(crate) fn without(knobs: &Value, name: &str) -> Value {
    let map: Map<_, _> = knobs.as_object().cloned().unwrap_or_default();
    Value::Object(map.into_iter().filter(|(key, _)| key != name).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    /// The configuration that is hashed, by stage and knobs: a change changes every key that depends on it.
    #[test]
    fn what_is_hashed_of_a_stage_stays() {
        let damping = json!({ "relative": 0.1 });
        for (name, knobs, config) in [
            ("tokenizer", json!({ "vocabulary": 320 }), json!({ "vocabulary": 320, "column": "text" })),
            (
                "tokenize",
                json!({ "max-tokens": 12 }),
                json!({ "max-tokens": 12, "column": "text", "untargeted": "refuse" }),
            ),
            (
                "train",
                json!({ "vocabulary": 320 }),
                json!({
                    "layers": 4, "hidden": 128, "intermediate": 352, "heads": 8, "key-value-heads": 4,
                    "vocabulary": 320, "context": 128, "epochs": 12, "batch-tokens": 2048, "learning-rate": 2e-3,
                    "warmup-share": 0.05, "minimum-learning-rate-share": 0.1, "weight-decay": 0.01, "clip": 1.0,
                    "seed": 0,
                }),
            ),
            ("generate", json!({}), json!({ "max-new-tokens": 24, "temperature": 0.0, "seed": 0 })),
            (
                "covariance",
                json!({ "seed": 7 }),
                json!({ "labels": "sampled", "seed": 7, "modules": "mlp", "precision": "f32", "blocks": 1 }),
            ),
            // True labels are not drawn: the seed changes nothing.
            (
                "covariance",
                json!({ "seed": 7, "labels": "empirical" }),
                json!({ "labels": "empirical", "seed": 0, "modules": "mlp", "precision": "f32", "blocks": 1 }),
            ),
            ("eigenbasis", json!({}), json!({})),
            (
                "lambda",
                json!({ "seed": 1 }),
                json!({ "labels": "sampled", "seed": 1, "modules": "mlp", "precision": "f32", "store": "f32" }),
            ),
            ("gradients", json!({ "modules": "all" }), json!({ "modules": "all", "precision": "f32" })),
            (
                "precondition",
                json!({ "rank": "full" }),
                json!({ "method": "ekfac", "damping": damping, "rank": "full", "store": "f32" }),
            ),
            // Nothing is damped: the damping changes nothing.
            (
                "precondition",
                json!({ "method": "identity", "damping": 3 }),
                json!({ "method": "identity", "damping": damping, "rank": 32, "store": "f32" }),
            ),
            (
                "solve",
                json!({ "solver": "neumann", "tolerance": 0.5, "sample": 64 }),
                json!({
                    "solver": "neumann", "damping": damping, "steps": 20, "tolerance": 1e-4, "sample": 64, "seed": 0,
                    "rank": 32, "store": "f32",
                }),
            ),
            (
                "self-influence",
                json!({}),
                json!({
                    "method": "ekfac", "damping": damping, "modules": "mlp", "precision": "f32",
                    "training-examples": null,
                }),
            ),
            ("coordinates", json!({}), json!({ "dimensions": 65536 })),
            ("index", json!({}), json!({ "precision": "f32" })),
            ("score-index", json!({}), json!({ "damping": damping, "training-examples": null })),
            ("losses", json!({}), json!({ "precision": "f32" })),
            (
                "activations",
                json!({ "sites": ["post-norm", 3, 3], "positions": ["prompt-last", "all-mean"] }),
                json!({ "sites": [3, "post-norm"], "positions": ["all-mean", "prompt-last"], "precision": "f32" }),
            ),
            ("filter", json!({}), json!({ "top": 10000 })),
            // Nothing is drawn, and nothing is read at a site.
            (
                "similarity",
                json!({ "seed": 1, "site": 2 }),
                json!({ "method": "bm25", "seed": 0, "site": "post-norm", "position": "all-mean" }),
            ),
            (
                "gradient-products",
                json!({ "cosine": true, "training-examples": 9 }),
                json!({
                    "checkpoints": false, "cosine": true, "modules": "mlp", "precision": "f32",
                    "training-examples": null,
                }),
            ),
            ("moments", json!({}), json!({ "modules": "mlp" })),
            ("project-gradients", json!({}), json!({ "side": 32, "seed": 0, "modules": "mlp", "precision": "f32" })),
            (
                "score-projected-gradients",
                json!({}),
                json!({ "damping": damping, "cosine": false, "training-examples": null }),
            ),
            (
                "covariance",
                json!({ "factors": "shampoo" }),
                json!({
                    "labels": "sampled", "seed": 0, "modules": "mlp", "precision": "f32", "blocks": 1,
                    "factors": "shampoo",
                }),
            ),
            (
                "score",
                json!({ "detail": true }),
                json!({ "detail": true, "training-examples": null, "precision": "f32" }),
            ),
            ("rank", json!({}), json!({ "top": 100 })),
            ("columns", json!({ "keep": ["lang", "year"] }), json!({ "keep": ["lang", "year"] })),
            ("report", json!({}), json!({ "title": "Influence report", "top": 50, "samples": 200, "seed": 0 })),
            ("trait-report", json!({}), json!({ "texts": 4 })),
            (
                "external",
                json!({ "command": ["a"], "writes": "scores", "version": 3 }),
                json!({ "command": ["a"], "writes": "scores" }),
            ),
        ] {
            let configured = Stage::from_name(name).unwrap().configure(&knobs).unwrap();
            assert_eq!(configured.config(), &config, "{name}");
            configured.check().unwrap();
        }
    }

    #[test]
    fn stages_and_their_roles_have_names_of_their_own() {
        let names: BTreeSet<_> = Stage::names().into_iter().collect();
        assert_eq!(names.len(), STAGES.len() + 1);
        for stage in STAGES {
            let (about, inputs) = (stage.about(), stage.inputs());
            let own: BTreeSet<_> = inputs.iter().map(|input| input.name).chain(about.beside()).collect();
            assert_eq!(own.len(), inputs.len() + about.beside().count(), "{}", about.name);
            assert!(inputs.iter().all(|input| !input.kinds.is_empty()) && about.version > 0, "{}", about.name);
        }
    }
}
