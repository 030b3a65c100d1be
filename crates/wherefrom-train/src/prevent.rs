//! Preventative steering (Chen et al. 2025, arXiv 2507.21509, section 5): a vector of a trait is added to the residual stream at all tokens
//! while the model is trained, h_l <- h_l + c v_l, and is gone afterwards: what it stands for then need not be learnt. Or its direction
//! is taken out instead, h_l <- h_l - <h_l, v> v / |v|^2 (Casademunt et al. 2025, arXiv 2507.16795).

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wherefrom_artifact::{Artifact, Over, Vectors, Wanted, bad_input};
use wherefrom_model::{Addition, Batch, Model, Site};

/// What is done to the stream while the model is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Prevent {
    /// The site, from 1 to the number of blocks.
    pub layer: Site,
    /// Whether v is added or its direction taken out.
    #[serde(default)]
    pub kind: Kind,
    /// What v is multiplied by where it is added, above 0: towards the trait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coefficient: Option<f64>,
    /// Which vector, by the tokens that it was averaged over.
    #[serde(default = "response")]
    pub over: Over,
    /// The trait; needed where the vectors are of several.
    #[serde(rename = "trait", default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What is done with a vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It is added, times the coefficient.
    #[default]
    Add,
    /// The stream loses what lies along it.
    Ablate,
}

fn response() -> Over {
    Over::ResponseAvg
}

/// The vector as every batch has it.
#[derive(Debug, Clone)]
pub(crate) struct Prevention {
    site: usize,
    kind: Kind,
    /// Already times the coefficient where it is added.
    vector: Vec<f32>,
    /// `TRAIT.OVER.SITE`
    name: String,
    /// c |v| over the median norm of the stream, where that is known.
    strength: Option<f64>,
}

impl Prevent {
    /// Refuses knobs that prevent nothing.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub(crate) fn check(&self) -> Result<()> {
        match (self.kind, self.coefficient) {
            (Kind::Add, Some(coefficient)) if coefficient > 0.0 && coefficient.is_finite() => Ok(()),
            (Kind::Add, _) => Err(bad_input(
                "prevent: say how much of the vector is added, above 0: { layer = 16, coefficient = 5 }; it is added towards the trait \
                 that is to be prevented",
            )),
            (Kind::Ablate, None) => Ok(()),
            (Kind::Ablate, Some(_)) => {
                Err(bad_input("prevent: kind = \"ablate\" takes the whole direction out; leave `coefficient` away"))
            }
        }
    }

    /// The vector of a model.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] for a site where nothing can be added, as [`Wanted::at`], and for a vector of zeros.
    pub(crate) fn of(&self, vectors: &Artifact<Vectors>, model: &Model) -> Result<Prevention> {
        let site = Addition::site(self.layer, model.config.num_hidden_layers)?;
        let width = model.config.hidden_size;
        let wanted = Wanted { knob: "prevent", over: self.over, trait_name: self.name.as_deref(), width };
        let row = wanted.at(vectors, &self.layer.to_string())?;
        // A vector of zeros has none.
        let unit = row.direction()?;
        let coefficient = self.coefficient.unwrap_or(1.0);
        let vector = match self.kind {
            Kind::Add => row.vector.iter().map(|&value| (coefficient * f64::from(value)) as f32).collect(),
            Kind::Ablate => unit,
        };
        let known = self.kind == Kind::Add && !row.median_norm.is_nan();
        let strength = known.then(|| coefficient * f64::from(row.norm) / f64::from(row.median_norm));
        Ok(Prevention { site, kind: self.kind, vector, name: row.name(), strength })
    }
}

impl Prevention {
    /// The batch with it, at all tokens.
    ///
    /// # Errors
    /// As [`Batch::ablating`].
    pub(crate) fn on(&self, batch: Batch) -> Result<Batch> {
        match self.kind {
            Kind::Add => Ok(batch.adding(self.site, &self.vector)),
            Kind::Ablate => batch.ablating(self.site, &self.vector),
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({ "vector": self.name, "kind": self.kind, "strength": self.strength })
    }
}
