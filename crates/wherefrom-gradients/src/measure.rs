//! What gradients are taken of: the log-probability of the targets, or how far their residual stream lies along a vector,
//!
//! f(x)  =  (1/n) sum over the n target tokens t of <h_(l, t), v / ||v||>.

use std::collections::BTreeMap;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Artifact, Example, Over, Vectors, Wanted, bad_input};
use wherefrom_model::{Measurement, Module, Modules, Outline, Part, Selection, Site};

/// A projection on a vector: which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Measure {
    /// The site of the vector, where the stream is read: a number, or `"post-norm"`.
    pub projection: Site,
    /// What the vector was averaged over. The measurement is the mean over an answer's own tokens, whatever that was.
    #[serde(default = "response")]
    pub over: Over,
    /// Its trait. Where it is left out and the vectors are of several, each row is measured on that of its own trait, which its name
    /// begins with: `evil/q3/…`.
    #[serde(rename = "trait", default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
}

fn response() -> Over {
    Over::ResponseAvg
}

/// What queries of a measurement's gradients are, in the summary of the gradients and of what is made of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Measured {
    /// `projection`, as in a score's unit.
    pub unit: &'static str,
    /// What a positive influence raises.
    pub raises: &'static str,
    /// `TRAIT.OVER.SITE`, or `(of each row).OVER.SITE`.
    pub vector: String,
}

/// What is measured of each row.
#[derive(Debug)]
pub enum Measures {
    /// The same of all.
    One(Measurement),
    /// By trait.
    Own(BTreeMap<String, Measurement>),
}

impl Measures {
    /// One of them: all have one site.
    pub fn any(&self) -> &Measurement {
        match self {
            Self::One(one) => one,
            Self::Own(by_trait) => by_trait.values().next().expect("there are several"),
        }
    }

    /// Each measurement with the places of the rows that it is of.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] for a row whose name begins with no trait.
    pub fn shares(&self, examples: &[Example]) -> Result<Vec<(&Measurement, Vec<usize>)>> {
        let by_trait = match self {
            Self::One(one) => return Ok(vec![(one, (0..examples.len()).collect())]),
            Self::Own(by_trait) => by_trait,
        };
        let mut places: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (place, row) in examples.iter().enumerate() {
            let name = row.docs.first().map_or("", String::as_str);
            let own = name.split_once('/').map_or(name, |(own, _)| own);
            if !by_trait.contains_key(own) {
                let known: Vec<_> = by_trait.keys().map(String::as_str).collect();
                return Err(bad_input(format!(
                    "row {} of the tokens is called {name:?}, and the vectors are of several traits ({}): let its name begin with one \
                     of them and a slash, or name one for all rows in `measure`, as trait = \"{}\"",
                    row.example,
                    known.join(", "),
                    known[0]
                )));
            }
            places.entry(own).or_default().push(place);
        }
        Ok(places.into_iter().map(|(own, places)| (&by_trait[own], places)).collect())
    }
}

impl Measure {
    /// The projection on the chosen vectors at length 1: v and 2 v are one measurement.
    ///
    /// # Errors
    /// As [`Wanted::of_any_trait`]; [`wherefrom_artifact::Error::Input`] for a vector of zeros.
    pub fn of(&self, vectors: &Artifact<Vectors>, width: usize) -> Result<(Measures, Measured)> {
        let Self { projection: site, over, of } = self;
        let wanted = Wanted { knob: "measure", over: *over, trait_name: of.as_deref(), width };
        let own = site.to_string();
        let chosen = wanted.of_any_trait(vectors, |site| site == own)?;
        let mut by_trait = BTreeMap::new();
        for row in &chosen {
            let measurement = Measurement::Projection { site: *site, direction: row.direction()? };
            by_trait.insert(row.trait_name.clone(), measurement);
        }
        let vector = match &chosen[..] {
            [row] => row.name(),
            _ => format!("(of each row).{over}.{site}"),
        };
        let measures = match &chosen[..] {
            [row] => Measures::One(by_trait.remove(&row.trait_name).expect("put in above")),
            _ => Measures::Own(by_trait),
        };
        let measured = Measured { unit: measures.any().unit(), raises: measures.any().sign(), vector };
        Ok((measures, measured))
    }
}

/// Those of the chosen modules that the measurement depends on: what stands behind its site has no gradient.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] where none is left, and for a site that the model does not have.
pub(crate) fn reached(selection: Selection, measurement: &Measurement, outline: &Outline) -> Result<Selection> {
    let stream = measurement.stream(outline)?;
    let before = |module: &&Module| match module.part {
        Part::Table | Part::Tied => true,
        _ => module.layer < stream,
    };
    if selection.modules().iter().all(|module| before(&module)) {
        return Ok(selection);
    }
    let last = selection.modules().iter().rfind(|module| module.part == Part::Norm);
    if let (Measurement::Projection { site: Site::PostNorm, .. }, Some(norm)) =
        (measurement, last.filter(|norm| norm.layer == stream))
    {
        return Err(bad_input(format!(
            "the gradient of a projection at post-norm by {} is not made; leave that out of `modules`, or take the site before it",
            norm.name
        )));
    }
    let names: Vec<String> = selection.modules().iter().filter(before).map(|module| module.name.clone()).collect();
    if names.is_empty() {
        return Err(bad_input(format!(
            "no chosen module stands before site {stream}, where the projection is read: choose others by `modules`, or a \
             later site"
        )));
    }
    Selection::new(&Modules::Globs(names), outline.modules())
}
