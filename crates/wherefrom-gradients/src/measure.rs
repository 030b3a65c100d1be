//! What gradients are taken of: the log-probability of the targets, or how far their residual stream lies along a vector,
//!
//! f(x)  =  (1/n) sum over the n target tokens t of <h_(l, t), v / ||v||>.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use wherefrom_artifact::{Artifact, Error, Over, TraitVector, Vectors, bad_input};
use wherefrom_model::{Measurement, Modules, Outline, Selection, Site};

/// A projection on a vector: which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Measure {
    /// The site of the vector, where the stream is read: a number, or `"post-norm"`.
    pub projection: Site,
    /// What the vector was averaged over. The measurement is the mean over an answer's own tokens, whatever that was.
    #[serde(default = "response")]
    pub over: Over,
    /// Its trait; needed where the vectors are of several.
    #[serde(rename = "trait", default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
}

fn response() -> Over {
    Over::ResponseAvg
}

/// What queries of a measurement's gradients are, in the summary of the gradients and of what is made of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Measured {
    /// `projection`, as in a score's unit.
    pub(crate) unit: &'static str,
    /// What a positive influence raises.
    pub(crate) raises: &'static str,
    /// `TRAIT.OVER.SITE`
    pub(crate) vector: String,
}

impl Measure {
    /// The projection on the chosen vector at length 1: v and 2 v are one measurement.
    ///
    /// # Errors
    /// [`Error::Input`] where the vectors have none such, several, or one of zeros; [`Error::Mismatch`] for one that is not as
    /// wide as the model's stream.
    pub(crate) fn of(&self, vectors: &Artifact<Vectors>, width: usize) -> Result<(Measurement, Measured)> {
        let rows: Vec<TraitVector> = vectors.rows()?.collect::<Result<_>>()?;
        let Self { projection: site, over, of } = self;
        let fits = |row: &&TraitVector| {
            row.over == *over && row.site == site.to_string() && of.as_ref().is_none_or(|of| *of == row.trait_name)
        };
        let name = |row: &TraitVector| format!("{}.{}.{}", row.trait_name, row.over, row.site);
        let row = match rows.iter().filter(fits).collect::<Vec<_>>()[..] {
            [row] => row,
            [] => {
                let known: Vec<_> = rows.iter().map(name).collect();
                let of = of.as_ref().map_or_else(String::new, |of| format!(" of {of}"));
                return Err(bad_input(format!(
                    "there is no vector{of} over {over} at site {site} (`measure`); the vectors are {}: {}",
                    known.join(", "),
                    vectors.folder().display()
                )));
            }
            [first, second, ..] => {
                return Err(bad_input(format!(
                    "the vectors are of several traits; name one in `measure`: trait = \"{}\" or \"{}\"",
                    first.trait_name, second.trait_name
                )));
            }
        };
        if row.vector.len() != width {
            let (vector, found) = (name(row), row.vector.len());
            return Err(Error::Mismatch(format!(
                "the vector {vector} has {found} values and the model's residual stream {width}: it is of another model"
            ))
            .into());
        }
        let measurement = Measurement::Projection { site: *site, direction: row.direction()? };
        let measured = Measured { unit: measurement.unit(), raises: measurement.sign(), vector: name(row) };
        Ok((measurement, measured))
    }
}

/// Those of the chosen modules that the measurement depends on: what stands behind its site has no gradient.
///
/// # Errors
/// [`Error::Input`] where none is left, and for a site that the model does not have.
pub(crate) fn reached(selection: Selection, measurement: &Measurement, outline: &Outline) -> Result<Selection> {
    let stream = measurement.stream(outline)?;
    if selection.modules().iter().all(|module| module.layer < stream) {
        return Ok(selection);
    }
    let names: Vec<String> =
        selection.modules().iter().filter(|module| module.layer < stream).map(|module| module.name.clone()).collect();
    if names.is_empty() {
        return Err(bad_input(format!(
            "no chosen module stands before site {stream}, where the projection is read: choose others by `modules`, or a \
             later site"
        )));
    }
    Selection::new(&Modules::Globs(names), outline.modules())
}
