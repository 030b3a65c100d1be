//! Steering: vectors of a trait times a coefficient, added to the residual stream while text is generated,
//! h_l <- h_l + c v_l (Chen et al. 2025, arXiv 2507.21509, section 3).

use std::collections::BTreeMap;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wherefrom_artifact::{Artifact, Over, TraitVector, Vectors, Wanted, bad_input};
use wherefrom_model::{Addition, At, Model, Site, Sites};

/// What is added, and where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Steer {
    /// Sites, one at a time, from 1 on; "all" is all of them at once, by what each adds to the one before: v_l - v_(l-1).
    pub layers: Sites,
    /// What v is multiplied by, one at a time. 0 is the text that is not steered.
    pub coefficients: Vec<f64>,
    /// At which tokens.
    #[serde(default)]
    pub at: At,
    /// Which vectors, by the tokens that they were averaged over.
    #[serde(default = "response")]
    pub over: Over,
    /// The trait. Where it is left out and the vectors are of several, each prompt gets the texts of each: `…/NAME/l12/c1.5`.
    #[serde(rename = "trait", default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

fn response() -> Over {
    Over::ResponseAvg
}

/// One text of each prompt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Course {
    /// What is put behind the row's name: `l12/c1.5`, or `NAME/l12/c1.5` where the vectors are of several traits.
    pub(crate) name: String,
    pub(crate) additions: Vec<Addition>,
    /// |c| |v| over the median norm of the stream: how strong it is. None where the norm is not known.
    strength: Option<f64>,
}

impl Course {
    /// Nothing is added, and nothing put behind a name.
    pub(crate) fn plain() -> Self {
        Self { name: String::new(), additions: Vec::new(), strength: None }
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({ "name": self.name, "strength": self.strength })
    }
}

impl Steer {
    /// Refuses knobs that steer nowhere.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`], by name.
    pub(crate) fn check(&self) -> Result<()> {
        if matches!(&self.layers, Sites::Some(sites) if sites.is_empty()) || self.coefficients.is_empty() {
            return Err(bad_input("steer: `layers` and `coefficients` have to name one or more"));
        }
        if let Some(wrong) = self.coefficients.iter().find(|coefficient| !coefficient.is_finite()) {
            return Err(bad_input(format!("steer: the coefficient {wrong} is no number")));
        }
        Ok(())
    }

    /// What is added for each text of a prompt: by trait, then by layer, then by coefficient.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] for a site that cannot be steered or has no vector, and for vectors of another model.
    pub(crate) fn courses(&self, vectors: &Artifact<Vectors>, model: &Model) -> Result<Vec<Course>> {
        let traits = self.rows(vectors, model.config.hidden_size)?;
        let several = traits.len() > 1;
        let mut courses = Vec::new();
        for (name, rows) in &traits {
            for course in self.of_trait(rows, vectors, model)? {
                let name = if several { format!("{name}/{}", course.name) } else { course.name.clone() };
                courses.push(Course { name, ..course });
            }
        }
        Ok(courses)
    }

    /// The texts of one trait's vectors, by the number of their site.
    fn of_trait(
        &self,
        rows: &BTreeMap<usize, TraitVector>,
        vectors: &Artifact<Vectors>,
        model: &Model,
    ) -> Result<Vec<Course>> {
        let blocks = model.config.num_hidden_layers;
        let found = |site: usize| {
            rows.get(&site).ok_or_else(|| {
                bad_input(format!(
                    "steer: there is no vector over {} at site {site}: {}",
                    self.over,
                    vectors.folder().display()
                ))
            })
        };
        let add = |site: usize, coefficient: f64, vector: &mut dyn Iterator<Item = f32>| Addition {
            site,
            at: self.at,
            vector: vector.map(|value| (coefficient * f64::from(value)) as f32).collect(),
        };
        let strength = |row: &TraitVector, coefficient: f64| {
            (!row.median_norm.is_nan()).then(|| (coefficient * f64::from(row.norm)).abs() / f64::from(row.median_norm))
        };
        let mut courses = Vec::new();
        match &self.layers {
            Sites::Some(sites) => {
                for &site in sites {
                    let site = Addition::site(site, blocks)?;
                    let row = found(site)?;
                    for &coefficient in &self.coefficients {
                        let additions = vec![add(site, coefficient, &mut row.vector.iter().copied())];
                        let name = format!("l{site}/c{coefficient}");
                        courses.push(Course { name, additions, strength: strength(row, coefficient) });
                    }
                }
            }
            Sites::All => {
                for &coefficient in &self.coefficients {
                    let increments = (1..=blocks).map(|site| {
                        let (own, before) = (found(site)?, found(site - 1)?);
                        let mut increment = own.vector.iter().zip(&before.vector).map(|(own, before)| own - before);
                        Ok(add(site, coefficient, &mut increment))
                    });
                    let additions = increments.collect::<Result<_>>()?;
                    let strength = strength(found(blocks)?, coefficient);
                    courses.push(Course { name: format!("lall/c{coefficient}"), additions, strength });
                }
            }
        }
        Ok(courses)
    }

    /// The vectors of each trait, in their order, by the number of their site.
    fn rows(&self, vectors: &Artifact<Vectors>, width: usize) -> Result<Vec<(String, BTreeMap<usize, TraitVector>)>> {
        let mut traits: Vec<(String, BTreeMap<usize, TraitVector>)> = Vec::new();
        let wanted = Wanted { knob: "steer", over: self.over, trait_name: self.name.as_deref(), width };
        for row in wanted.of_any_trait(vectors, |site| matches!(site.parse(), Ok(Site::Stream(_))))? {
            let Site::Stream(site) = row.site.parse()? else { continue };
            match traits.iter_mut().find(|(name, _)| *name == row.trait_name) {
                Some((_, rows)) => _ = rows.insert(site, row),
                None => traits.push((row.trait_name.clone(), BTreeMap::from([(site, row)]))),
            }
        }
        Ok(traits)
    }
}
