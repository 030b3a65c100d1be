//! The registry of stages: names, roles, kinds, configurations, versions, and how to run each.
//!
//! A new stage is a variant of [`Stage`] and an arm in each `match` below; nothing else knows stages by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde::de::{DeserializeOwned, Error as _};
use serde_json::{Map, Value};
use wherefrom_aggregate::rank;
use wherefrom_artifact::{Artifact, ArtifactKind, Draft, Exec, Kind, open_any};
use wherefrom_curvature::{
    coordinates, covariance, eigenbasis, index, lambda, precondition, score_index, self_influence,
};
use wherefrom_gradients::losses;
use wherefrom_score::{Pairs, filter};
use wherefrom_tokenize::{tokenize, vocabulary};
use wherefrom_train::{generate, train};

/// How many modules are summed in one pass over the tokens.
const MODULES_PER_PASS: &str = "modules-per-pass";

/// What a step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Corpus to vocabulary.
    Tokenizer,
    /// Corpus to token windows.
    Tokenize,
    /// Token windows to checkpoint.
    Train,
    /// Continuations of prompts.
    Generate,
    /// Activation and gradient covariances.
    Covariance,
    /// Their eigenvectors.
    Eigenbasis,
    /// Corrected eigenvalues.
    Lambda,
    /// Gradients of each example or query.
    Gradients,
    /// Inverse curvature times query gradients.
    Precondition,
    /// Influence of examples on themselves.
    SelfInfluence,
    /// Which coordinates an index keeps.
    Coordinates,
    /// Signs of every example's gradient.
    Index,
    /// Influence of indexed examples on queries.
    ScoreIndex,
    /// Log-probability per token.
    Losses,
    /// Pairs worth scoring.
    Filter,
    /// Influence of examples on queries.
    Score,
    /// The most influential examples.
    Rank,
    /// The page.
    Report,
    /// A program of the user's.
    External,
}

/// Whether a role has to be wired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// It must be.
    Required,
    /// It may be.
    Optional,
    /// It may be, and with this configuration changes nothing: it stays out of the key.
    Unused,
}

/// One input of a stage.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Role {
    /// As in `inputs`.
    pub(crate) name: &'static str,
    /// What it takes.
    pub(crate) kinds: &'static [Kind],
    /// Whether it has to be there.
    pub(crate) need: Need,
}

/// What a stage is given to run with: role to folder (or file, for leaves), and the model's folder.
#[derive(Debug, Clone, Default)]
pub(crate) struct Given {
    /// Role to path.
    pub(crate) inputs: BTreeMap<String, PathBuf>,
    /// The checkpoint.
    pub(crate) model: Option<PathBuf>,
}

impl Given {
    fn path(&self, role: &str) -> Result<&Path> {
        self.inputs.get(role).map(PathBuf::as_path).with_context(|| format!("the role `{role}` is not wired"))
    }

    fn open<K: ArtifactKind>(&self, role: &str) -> Result<Artifact<K>> {
        Artifact::open(self.path(role)?)
    }

    fn maybe<K: ArtifactKind>(&self, role: &str) -> Result<Option<Artifact<K>>> {
        self.inputs.get(role).map(|path| Artifact::open(path)).transpose()
    }

    fn kind(&self, role: &str) -> Result<Kind> {
        Ok(open_any(self.path(role)?)?.kind)
    }

    fn model(&self) -> Result<PathBuf> {
        self.model.clone().context("the stage runs a model and has none")
    }
}

impl Stage {
    /// Every stage.
    pub const ALL: [Self; 19] = [
        Self::Tokenizer,
        Self::Tokenize,
        Self::Train,
        Self::Generate,
        Self::Covariance,
        Self::Eigenbasis,
        Self::Lambda,
        Self::Gradients,
        Self::Precondition,
        Self::SelfInfluence,
        Self::Coordinates,
        Self::Index,
        Self::ScoreIndex,
        Self::Losses,
        Self::Filter,
        Self::Score,
        Self::Rank,
        Self::Report,
        Self::External,
    ];

    /// As in a pipeline's `stage`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokenizer => "tokenizer",
            Self::Tokenize => "tokenize",
            Self::Train => "train",
            Self::Generate => "generate",
            Self::Covariance => "covariance",
            Self::Eigenbasis => "eigenbasis",
            Self::Lambda => "lambda",
            Self::Gradients => "gradients",
            Self::Precondition => "precondition",
            Self::SelfInfluence => "self-influence",
            Self::Coordinates => "coordinates",
            Self::Index => "index",
            Self::ScoreIndex => "score-index",
            Self::Losses => "losses",
            Self::Filter => "filter",
            Self::Score => "score",
            Self::Rank => "rank",
            Self::Report => "report",
            Self::External => "external",
        }
    }

    /// The stage of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.name() == name)
    }

    /// The version of its results; an external step states its own.
    pub(crate) fn version(self) -> u32 {
        match self {
            Self::Tokenizer => vocabulary::VERSION,
            Self::Tokenize => tokenize::VERSION,
            Self::Train => train::VERSION,
            Self::Generate => generate::VERSION,
            Self::Covariance => covariance::VERSION,
            Self::Eigenbasis => eigenbasis::VERSION,
            Self::Lambda => lambda::VERSION,
            Self::Gradients => wherefrom_gradients::VERSION,
            Self::Precondition => precondition::VERSION,
            Self::SelfInfluence => self_influence::VERSION,
            Self::Coordinates => coordinates::VERSION,
            Self::Index => index::VERSION,
            Self::ScoreIndex => score_index::VERSION,
            Self::Losses => losses::VERSION,
            Self::Filter => filter::VERSION,
            Self::Score => wherefrom_score::VERSION,
            Self::Rank => rank::VERSION,
            Self::Report => wherefrom_report::VERSION,
            Self::External => 0,
        }
    }

    /// Whether it runs a checkpoint.
    pub(crate) fn runs_model(self) -> bool {
        matches!(
            self,
            Self::Covariance
                | Self::Lambda
                | Self::Gradients
                | Self::SelfInfluence
                | Self::Index
                | Self::Score
                | Self::Generate
                | Self::Losses
        )
    }

    /// Whether it reads a corpus: the first that can be refused.
    pub(crate) fn reads_corpus(self) -> bool {
        self.leaves().contains(&"corpus")
    }

    /// Its knobs to which `[model]` gives a default.
    pub(crate) fn inherits(self) -> &'static [&'static str] {
        match self {
            Self::Covariance | Self::Lambda | Self::Gradients | Self::SelfInfluence => &["modules", "precision"],
            Self::Index | Self::Losses | Self::Score => &["precision"],
            _ => &[],
        }
    }

    /// Knobs that say how and not what: they are in no configuration and no key.
    pub(crate) fn hows(self) -> &'static [&'static str] {
        match self {
            Self::Covariance | Self::Lambda => &[MODULES_PER_PASS],
            _ => &[],
        }
    }

    /// Knobs that are paths of input files: they are no configuration but leaves of the key.
    pub(crate) fn leaves(self) -> &'static [&'static str] {
        match self {
            Self::Tokenizer => &["corpus"],
            Self::Tokenize => &["corpus", "tokenizer", "chat-template"],
            Self::Train | Self::Generate | Self::Report => &["tokenizer"],
            _ => &[],
        }
    }

    /// What it writes, with these knobs.
    pub(crate) fn writes(self, knobs: &Value) -> Option<Kind> {
        Some(match self {
            Self::Tokenizer => Kind::Tokenizer,
            Self::Tokenize => Kind::Tokens,
            Self::Train => Kind::Model,
            Self::Generate => Kind::Tokens,
            Self::Covariance => Kind::Covariances,
            Self::Eigenbasis => Kind::Eigenbasis,
            Self::Lambda => Kind::Lambda,
            Self::Gradients => Kind::Gradients,
            Self::Precondition => Kind::Preconditioned,
            Self::SelfInfluence => Kind::SelfInfluence,
            Self::Coordinates => Kind::Coordinates,
            Self::Index => Kind::Index,
            Self::ScoreIndex => Kind::Scores,
            Self::Losses => Kind::Losses,
            Self::Filter => Kind::Candidates,
            Self::Score if knobs["detail"] == true => Kind::Details,
            Self::Score => Kind::Scores,
            Self::Rank => Kind::Ranking,
            Self::Report => Kind::Report,
            Self::External => Kind::from_name(knobs["writes"].as_str()?)?,
        })
    }

    /// Its inputs, with these knobs. An external stage takes whatever it is given.
    pub(crate) fn roles(self, knobs: &Value) -> Vec<Role> {
        use Need::{Optional, Required, Unused};
        let role = |name, kinds, need| Role { name, kinds, need };
        let tokens = role("tokens", &[Kind::Tokens], Required);
        match self {
            Self::Tokenizer | Self::Tokenize | Self::External => vec![],
            Self::Covariance | Self::Gradients | Self::Losses | Self::Train | Self::Generate => vec![tokens],
            Self::Filter => vec![role("queries", &[Kind::Tokens], Required), tokens],
            Self::Eigenbasis => vec![role("covariances", &[Kind::Covariances], Required)],
            Self::Lambda => vec![tokens, role("eigenbasis", &[Kind::Eigenbasis], Optional)],
            Self::Precondition | Self::SelfInfluence => {
                let need = |used: Option<bool>| match used {
                    Some(true) => Required,
                    Some(false) => Unused,
                    None => Optional,
                };
                let method: Option<precondition::Method> = match knobs.get("method") {
                    Some(method) => serde_json::from_value(method.clone()).ok(),
                    None => Some(Default::default()),
                };
                let gradients = role("gradients", &[Kind::Gradients], Required);
                vec![
                    if self == Self::Precondition { gradients } else { tokens },
                    role(
                        "eigenbasis",
                        &[Kind::Eigenbasis],
                        need(method.as_ref().map(|method| method.uses_eigenbasis())),
                    ),
                    role("lambda", &[Kind::Lambda], need(method.as_ref().map(|method| method.uses_lambda()))),
                ]
            }
            Self::Coordinates => vec![role("lambda", &[Kind::Lambda], Required)],
            Self::Index => vec![
                tokens,
                role("eigenbasis", &[Kind::Eigenbasis], Required),
                role("coordinates", &[Kind::Coordinates], Required),
            ],
            Self::ScoreIndex => vec![
                role("queries", &[Kind::Gradients], Required),
                role("index", &[Kind::Index], Required),
                role("coordinates", &[Kind::Coordinates], Required),
                role("eigenbasis", &[Kind::Eigenbasis], Required),
                role("lambda", &[Kind::Lambda], Required),
            ],
            Self::Score => vec![
                role("queries", &[Kind::Preconditioned], Required),
                tokens,
                role("candidates", &[Kind::Candidates, Kind::Ranking], Optional),
            ],
            Self::Rank => vec![role("scores", &[Kind::Scores, Kind::Details], Required), tokens],
            Self::Report => vec![
                role("ranking", &[Kind::Ranking], Required),
                tokens,
                role("details", &[Kind::Details], Optional),
                role("queries", &[Kind::Tokens], Optional),
                role("losses", &[Kind::Losses], Optional),
                role("scores", &[Kind::Scores], Optional),
            ],
        }
    }

    /// The configuration with every default filled in, and with what changes nothing set to its default.
    pub(crate) fn config(self, knobs: &Value) -> Result<Value, serde_json::Error> {
        let mut config = match self {
            Self::Tokenizer => filled::<vocabulary::Config>(knobs)?,
            Self::Tokenize => filled::<tokenize::Config>(knobs)?,
            Self::Train => filled::<train::Config>(knobs)?,
            Self::Generate => filled::<generate::Config>(knobs)?,
            Self::Covariance => filled::<covariance::Config>(knobs)?,
            Self::Eigenbasis => filled::<eigenbasis::Config>(knobs)?,
            Self::Lambda => filled::<lambda::Config>(knobs)?,
            Self::Gradients => filled::<wherefrom_gradients::Config>(knobs)?,
            Self::Precondition => undamped::<precondition::Config>(knobs)?,
            Self::SelfInfluence => undamped::<self_influence::Config>(knobs)?,
            Self::Coordinates => filled::<coordinates::Config>(knobs)?,
            Self::Index => filled::<index::Config>(knobs)?,
            Self::ScoreIndex => filled::<score_index::Config>(knobs)?,
            Self::Losses => filled::<losses::Config>(knobs)?,
            Self::Filter => filled::<filter::Config>(knobs)?,
            Self::Score => filled::<wherefrom_score::Config>(knobs)?,
            Self::Rank => filled::<rank::Config>(knobs)?,
            Self::Report => filled::<wherefrom_report::Config>(knobs)?,
            Self::External => without(knobs, "version"),
        };
        let least = match self {
            Self::Tokenize => Some(("max-tokens", 2)),
            Self::Generate => Some(("max-new-tokens", 1)),
            Self::Filter | Self::Rank | Self::Report => Some(("top", 1)),
            Self::Score | Self::ScoreIndex | Self::SelfInfluence => Some(("training-examples", 1)),
            Self::Coordinates => Some(("dimensions", 1)),
            Self::Covariance => Some(("blocks", 1)),
            _ => None,
        };
        if let Some((_, least)) = least.filter(|&(name, least)| config[name].as_u64().is_some_and(|n| n < least)) {
            return Err(serde_json::Error::custom(format!("out of range; set it to {least} or more")));
        }
        if self == Self::Train {
            let sizes = serde_json::from_value::<train::Config>(config.clone())?.model();
            sizes.map_err(serde_json::Error::custom)?;
        }
        // True labels are not drawn: the seed does nothing.
        if matches!(self, Self::Covariance | Self::Lambda) && config["labels"] == "empirical" {
            config["seed"] = 0.into();
        }
        Ok(config)
    }

    /// Refuses knobs out of their range, in words for the user.
    pub(crate) fn check(self, config: &Value) -> Result<()> {
        match self {
            Self::Tokenizer => parsed::<vocabulary::Config>(config)?.check(),
            Self::Tokenize => parsed::<tokenize::Config>(config)?.check(),
            Self::Train => parsed::<train::Config>(config)?.model().map(drop),
            Self::Generate => parsed::<generate::Config>(config)?.check(),
            Self::Covariance => parsed::<covariance::Config>(config)?.check(),
            Self::Precondition => parsed::<precondition::Config>(config)?.check(),
            Self::SelfInfluence => parsed::<self_influence::Config>(config)?.check(),
            Self::Coordinates => parsed::<coordinates::Config>(config)?.check(),
            Self::ScoreIndex => parsed::<score_index::Config>(config)?.check(),
            Self::Filter => parsed::<filter::Config>(config)?.check(),
            Self::Score => parsed::<wherefrom_score::Config>(config)?.check(),
            Self::Rank => parsed::<rank::Config>(config)?.check(),
            Self::Report => parsed::<wherefrom_report::Config>(config)?.check(),
            Self::Eigenbasis | Self::Lambda | Self::Gradients | Self::Index | Self::Losses | Self::External => Ok(()),
        }
    }

    /// Runs it into `draft`. External stages are run by [`crate::external`].
    pub(crate) fn run(self, config: &Value, given: &Given, exec: &Exec, draft: &mut Draft) -> Result<()> {
        match self {
            Self::Tokenizer => {
                let inputs = vocabulary::Inputs { corpus: given.path("corpus")?.into() };
                vocabulary::run(&parsed(config)?, &inputs, exec, draft)
            }
            Self::Tokenize => {
                let [tokenizer, chat_template] =
                    ["tokenizer", "chat-template"].map(|role| given.inputs.get(role).cloned());
                let inputs = tokenize::Inputs { corpus: given.path("corpus")?.into(), tokenizer, chat_template };
                tokenize::run(&parsed(config)?, &inputs, exec, draft)
            }
            Self::Train => {
                let tokenizer = given.inputs.get("tokenizer").cloned();
                let inputs = train::Inputs { tokens: given.open("tokens")?, tokenizer };
                train::run(&parsed(config)?, &inputs, exec, draft)
            }
            Self::Generate => {
                let (tokens, tokenizer) = (given.open("tokens")?, given.path("tokenizer")?.into());
                let inputs = generate::Inputs { tokens, model: given.model()?, tokenizer };
                generate::run(&parsed(config)?, &inputs, exec, draft)
            }
            Self::Covariance => {
                let inputs = covariance::Inputs { tokens: given.open("tokens")?, model: given.model()? };
                covariance::run(&parsed(config)?, &inputs, exec, draft)
            }
            Self::Eigenbasis => {
                let inputs = eigenbasis::Inputs { covariances: given.open("covariances")? };
                eigenbasis::run(&parsed(config)?, &inputs, exec, draft)
            }
            Self::Lambda => {
                let (tokens, eigenbasis) = (given.open("tokens")?, given.maybe("eigenbasis")?);
                let inputs = lambda::Inputs { tokens, eigenbasis, model: given.model()? };
                lambda::run(&parsed(config)?, &inputs, exec, draft)
            }
            Self::Gradients => {
                let inputs = wherefrom_gradients::Inputs { tokens: given.open("tokens")?, model: given.model()? };
                wherefrom_gradients::run(&parsed(config)?, &inputs, exec, draft)
            }
            Self::Precondition => {
                let (eigenbasis, lambda) = (given.maybe("eigenbasis")?, given.maybe("lambda")?);
                let inputs = precondition::Inputs { gradients: given.open("gradients")?, eigenbasis, lambda };
                precondition::run(&parsed(config)?, &inputs, exec, draft)
            }
            Self::SelfInfluence => {
                let (eigenbasis, lambda) = (given.maybe("eigenbasis")?, given.maybe("lambda")?);
                let inputs =
                    self_influence::Inputs { tokens: given.open("tokens")?, model: given.model()?, eigenbasis, lambda };
                self_influence::run(&parsed(config)?, &inputs, exec, draft)
            }
            Self::Coordinates => {
                let inputs = coordinates::Inputs { lambda: given.open("lambda")? };
                coordinates::run(&parsed(config)?, &inputs, exec, draft)
            }
            Self::Index => {
                let (eigenbasis, coordinates) = (given.open("eigenbasis")?, given.open("coordinates")?);
                let inputs =
                    index::Inputs { tokens: given.open("tokens")?, model: given.model()?, eigenbasis, coordinates };
                index::run(&parsed(config)?, &inputs, exec, draft)
            }
            Self::ScoreIndex => {
                let inputs = score_index::Inputs {
                    queries: given.open("queries")?,
                    index: given.open("index")?,
                    coordinates: given.open("coordinates")?,
                    eigenbasis: given.open("eigenbasis")?,
                    lambda: given.open("lambda")?,
                };
                score_index::run(&parsed(config)?, &inputs, exec, draft)
            }
            Self::Losses => {
                let inputs = losses::Inputs { tokens: given.open("tokens")?, model: given.model()? };
                losses::run(&parsed(config)?, &inputs, exec, draft)
            }
            Self::Filter => {
                let inputs = filter::Inputs { queries: given.open("queries")?, tokens: given.open("tokens")? };
                filter::run(&parsed(config)?, &inputs, exec, draft)
            }
            Self::Score => {
                let candidates = match given.inputs.contains_key("candidates") {
                    false => None,
                    true if given.kind("candidates")? == Kind::Ranking => {
                        Some(Pairs::Ranking(given.open("candidates")?))
                    }
                    true => Some(Pairs::Candidates(given.open("candidates")?)),
                };
                let (queries, tokens) = (given.open("queries")?, given.open("tokens")?);
                let inputs = wherefrom_score::Inputs { queries, tokens, model: given.model()?, candidates };
                wherefrom_score::run(&parsed(config)?, &inputs, exec, draft)
            }
            Self::Rank => {
                let scores = match given.kind("scores")? {
                    Kind::Details => rank::Scored::Details(given.open("scores")?),
                    _ => rank::Scored::Scores(given.open("scores")?),
                };
                let inputs = rank::Inputs { scores, tokens: given.open("tokens")? };
                rank::run(&parsed(config)?, &inputs, exec, draft)
            }
            Self::Report => {
                let inputs = wherefrom_report::Inputs {
                    ranking: given.open("ranking")?,
                    tokens: given.open("tokens")?,
                    details: given.maybe("details")?,
                    queries: given.maybe("queries")?,
                    losses: given.maybe("losses")?,
                    scores: given.maybe("scores")?,
                    tokenizer: given.inputs.get("tokenizer").cloned(),
                };
                wherefrom_report::run(&parsed(config)?, &inputs, exec, draft)
            }
            Self::External => anyhow::bail!("an external stage is run by its command"),
        }
    }
}

fn filled<C: DeserializeOwned + Serialize>(knobs: &Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(serde_json::from_value::<C>(knobs.clone())?)
}

/// Without curvature there is nothing to damp: the damping does nothing.
fn undamped<C: DeserializeOwned + Serialize>(knobs: &Value) -> Result<Value, serde_json::Error> {
    let config = filled::<C>(knobs)?;
    if config["method"] == "identity" { filled::<C>(&without(knobs, "damping")) } else { Ok(config) }
}

fn parsed<C: DeserializeOwned>(config: &Value) -> Result<C> {
    serde_json::from_value(config.clone()).context("parse a configuration that was checked before")
}

/// The knobs without one.
pub(crate) fn without(knobs: &Value, name: &str) -> Value {
    let map: Map<_, _> = knobs.as_object().cloned().unwrap_or_default();
    Value::Object(map.into_iter().filter(|(key, _)| key != name).collect())
}
