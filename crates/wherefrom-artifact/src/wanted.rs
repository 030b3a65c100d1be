//! Which of an artifact's vectors a knob means.

use anyhow::Result;

use crate::artifact::Artifact;
use crate::error::{Error, bad_input};
use crate::kinds::{Over, TraitVector, Vectors};

/// What a knob says of the vectors that it takes.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The knob, as a refusal names it: `steer`.
    pub knob: &'a str,
    /// Over which tokens they were averaged.
    pub over: Over,
    /// The trait; where it is not named, they may be of one alone.
    pub trait_name: Option<&'a str>,
    /// Width of the model's residual stream.
    pub width: usize,
}

impl Wanted<'_> {
    /// Those at the sites that `meant` says, in the artifact's order, of whatever traits.
    ///
    /// # Errors
    /// [`Error::Input`] where there is none, [`Error::Mismatch`] for one that is not as wide as the model's stream.
    pub fn of_any_trait(&self, vectors: &Artifact<Vectors>, meant: impl Fn(&str) -> bool) -> Result<Vec<TraitVector>> {
        let all: Vec<TraitVector> = vectors.rows()?.collect::<Result<_>>()?;
        let known: Vec<String> = all.iter().map(TraitVector::name).collect();
        let fits = |row: &TraitVector| {
            row.over == self.over && meant(&row.site) && self.trait_name.is_none_or(|name| *name == *row.trait_name)
        };
        let found: Vec<TraitVector> = all.into_iter().filter(fits).collect();
        if found.is_empty() {
            let of = self.trait_name.map_or_else(String::new, |name| format!(" of {name}"));
            return Err(bad_input(format!(
                "{}: there is no vector{of} over {} at the sites that are asked for; the vectors are {}: {}",
                self.knob,
                self.over,
                known.join(", "),
                vectors.folder().display()
            )));
        }
        if let Some(row) = found.iter().find(|row| row.vector.len() != self.width) {
            return Err(Error::Mismatch(format!(
                "{}: the vector {} has {} values and the model's residual stream {}: it is of another model",
                self.knob,
                row.name(),
                row.vector.len(),
                self.width
            ))
            .into());
        }
        Ok(found)
    }

    /// The same of one trait.
    ///
    /// # Errors
    /// As [`Self::of_any_trait`], and [`Error::Input`] where they are of several.
    pub fn of_one_trait(&self, vectors: &Artifact<Vectors>, meant: impl Fn(&str) -> bool) -> Result<Vec<TraitVector>> {
        let found = self.of_any_trait(vectors, meant)?;
        let first = &found[0].trait_name;
        if let Some(other) = found.iter().map(|row| &row.trait_name).find(|name| *name != first) {
            return Err(bad_input(format!(
                "the vectors are of several traits; name one in `{}`: trait = \"{first}\" or \"{other}\"",
                self.knob
            )));
        }
        Ok(found)
    }

    /// The one at a site.
    ///
    /// # Errors
    /// As [`Self::of_one_trait`].
    pub fn at(&self, vectors: &Artifact<Vectors>, site: &str) -> Result<TraitVector> {
        Ok(self.of_one_trait(vectors, |known| known == site)?.swap_remove(0))
    }
}
