//! How a gradient is preconditioned: the knobs of the stage `precondition`, and their forms in a pipeline.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Stored, bad_input};

/// Which curvature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// None: plain gradient products, whose unit is not nats.
    Identity,
    /// Lambda = E_z[G_z^2] in the standard basis.
    Diagonal,
    /// sqrt(Lambda) of a Lambda in the standard basis, as Adam divides by the root of its second moments: not in nats.
    Adam,
    /// Lambda = (tokens / examples) l_S l_A^T.
    Kfac,
    /// Lambda fitted in the eigenbasis.
    #[default]
    Ekfac,
}

impl Method {
    /// Whether the method needs an eigenbasis.
    pub fn uses_eigenbasis(self) -> bool {
        matches!(self, Self::Kfac | Self::Ekfac)
    }

    /// Whether the method needs fitted corrected eigenvalues.
    pub fn uses_lambda(self) -> bool {
        matches!(self, Self::Diagonal | Self::Adam | Self::Ekfac)
    }

    /// The damping, where there is something to damp; else the default, for it changes nothing.
    pub(crate) fn damping(self, given: Damping) -> Damping {
        if self == Self::Identity { Damping::default() } else { given }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Diagonal => "diagonal",
            Self::Adam => "adam",
            Self::Kfac => "kfac",
            Self::Ekfac => "ekfac",
        }
    }
}

/// What is added to Lambda: a share of its mean, module by module (a bare number), or one number for all.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "DampingForm", rename_all = "kebab-case")]
pub enum Damping {
    /// This share of the module's mean Lambda.
    Relative(f64),
    /// This number.
    Absolute(f64),
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged, deny_unknown_fields, expecting = "write a number, { relative = 0.1 } or { absolute = 1e-6 }")]
enum DampingForm {
    Bare(f64),
    Relative { relative: f64 },
    Absolute { absolute: f64 },
}

impl TryFrom<DampingForm> for Damping {
    type Error = String;
    fn try_from(form: DampingForm) -> Result<Self, String> {
        let (damping, value) = match form {
            DampingForm::Bare(value) | DampingForm::Relative { relative: value } => (Self::Relative(value), value),
            DampingForm::Absolute { absolute: value } => (Self::Absolute(value), value),
        };
        let fine = value >= 0.0 && value.is_finite();
        fine.then_some(damping).ok_or_else(|| format!("damping {value} is out of range; set it to 0 or more"))
    }
}

/// Of damping beyond it, float32 leaves little of what is divided by it, or nothing.
const LARGEST: f64 = 1e15;

impl Damping {
    /// Refuses what is out of range.
    pub(crate) fn check(self) -> Result<()> {
        let (Self::Relative(value) | Self::Absolute(value)) = self;
        if !(0.0..=LARGEST).contains(&value) {
            return Err(bad_input(format!(
                "damping = {value:?} is out of range; set it to 0 or more, and to {LARGEST:e} or less (0.1 is usual)"
            )));
        }
        Ok(())
    }
}

impl Default for Damping {
    fn default() -> Self {
        Self::Relative(0.1)
    }
}

/// How much of the preconditioned gradient is kept: a number of singular directions, or `"full"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "RankForm", into = "RankForm")]
pub enum Rank {
    /// The best approximation of this rank.
    Low(usize),
    /// The whole matrix.
    Full,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "write a whole number, or \"full\"")]
enum RankForm {
    Number(usize),
    #[schemars(extend("const" = "full"))]
    Word(String),
}

impl Rank {
    /// Directions kept; none where all are.
    pub(crate) fn number(self) -> Option<f64> {
        match self {
            Self::Low(rank) => Some(rank as f64),
            Self::Full => None,
        }
    }
}

impl TryFrom<RankForm> for Rank {
    type Error = String;
    fn try_from(form: RankForm) -> Result<Self, String> {
        match form {
            RankForm::Number(0) => Err("rank must be at least 1, or \"full\"".into()),
            RankForm::Number(rank) => Ok(Self::Low(rank)),
            RankForm::Word(word) if word == "full" => Ok(Self::Full),
            RankForm::Word(word) => Err(format!("rank `{word}` is neither a number nor \"full\"")),
        }
    }
}

impl From<Rank> for RankForm {
    fn from(rank: Rank) -> Self {
        match rank {
            Rank::Low(rank) => Self::Number(rank),
            Rank::Full => Self::Word("full".into()),
        }
    }
}

/// What is computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Which curvature.
    pub method: Method,
    /// What is added to Lambda: a share of its mean in each module (a bare number), or one number for all.
    pub damping: Damping,
    /// How much of the preconditioned gradient is kept: a number of singular directions, or `"full"`.
    pub rank: Rank,
    /// float32, or float16 with a scale for each factor.
    pub store: Stored,
}

impl Default for Config {
    fn default() -> Self {
        Self { method: Method::default(), damping: Damping::default(), rank: Rank::Low(32), store: Stored::default() }
    }
}

impl Config {
    /// Refuses knobs out of their range.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub fn check(&self) -> Result<()> {
        self.damping.check()
    }
}
