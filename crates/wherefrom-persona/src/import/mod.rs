//! Vectors that other programs have written: `.pt` of the originals, safetensors, and the GGUF of control vectors.
//!
//! A reader of a format takes bytes and says what is wrong with them; the file's name is put before it here. Nothing of a file is
//! run, and no size that it states is believed before its bytes are there.

mod archive;
mod gguf;
mod pickle;
mod safetensors;
mod torch;

use std::path::Path;

use anyhow::Result;
use wherefrom_artifact::{Draft, Over, TraitVector, Vectors, bad_input, foreign};
use wherefrom_model::Site;

/// Bytes of a file at most.
const FILE: u64 = 256 << 20;
/// Values of a file at most: 128 sites of a stream of 131,072.
const VALUES: usize = 1 << 24;
/// Sites of a file at most.
const SITES: usize = 4096;

/// What is said of a file that does not say it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Said<'a> {
    /// The trait.
    pub name: Option<&'a str>,
    /// Which tokens of an answer the vectors were averaged over.
    pub over: Option<Over>,
    /// Of GGUF, the site of `direction.N` less N: 1 where N is the block whose output it is (repeng, and llama.cpp as it loads
    /// them), 0 where it is one more than that (what llama.cpp's own generator writes).
    pub offset: Option<usize>,
}

/// One vector, with what the file says of it.
struct Found {
    name: Option<String>,
    over: Option<Over>,
    site: Site,
    /// Blocks before the site.
    layer: usize,
    pairs: u32,
    values: Vec<f32>,
}

/// Whether the ending of a file's name is that of a file of vectors.
pub fn is_known(ending: &str) -> bool {
    matches!(ending, "pt" | "safetensors" | "gguf")
}

/// The vectors of a file, in the order of its sites.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] with the file's name, for what is no such file and for what neither the file nor `said`
/// tells.
pub fn read(path: &Path, said: Said<'_>) -> Result<Vec<TraitVector>> {
    let refuse = |what: String| bad_input(format!("{}: {what}", path.display()));
    let length = std::fs::metadata(path).map_or(0, |file| file.len());
    if length > FILE {
        return Err(refuse(format!("has {length} bytes; a file of vectors has at most {FILE}")));
    }
    let bytes = wherefrom_artifact::read(path).map_err(|error| refuse(format!("cannot be read ({error})")))?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    if said.offset.is_some() && ending != "gguf" {
        return Err(refuse("--offset is of GGUF files alone; leave it out".into()));
    }
    let found = foreign(path, || {
        match &*ending {
            "pt" => torch::read(&bytes, &stem),
            "gguf" => gguf::read(&bytes, said.offset.unwrap_or(1)),
            _ => safetensors::read(&bytes),
        }
        .map_err(refuse)
    })?;
    let rows: Vec<TraitVector> = found.into_iter().map(|one| row(one, said).map_err(refuse)).collect::<Result<_>>()?;
    for (place, row) in rows.iter().enumerate() {
        let same = |other: &TraitVector| {
            (&other.trait_name, other.over, &other.site) == (&row.trait_name, row.over, &row.site)
        };
        if rows[..place].iter().any(same) {
            return Err(refuse(format!(
                "has two vectors of {} over {} at site {}",
                row.trait_name, row.over, row.site
            )));
        }
        if row.vector.len() != rows[0].vector.len() {
            return Err(refuse(format!(
                "has vectors of {} and of {} values; those of one model are equally long",
                rows[0].vector.len(),
                row.vector.len()
            )));
        }
    }
    Ok(rows)
}

fn row(found: Found, said: Said<'_>) -> Result<TraitVector, String> {
    let Found { name, over, site, layer, pairs, values } = found;
    let name = said.name.map(String::from).or(name);
    let trait_name = name.filter(|name| !name.is_empty()).ok_or("does not say of which trait it is: --name NAME")?;
    let over = said.over.or(over).ok_or_else(|| {
        let known = Over::ALL.map(Over::name).join(", ");
        format!("does not say over which tokens its vectors were averaged: --over WORD, one of {known}")
    })?;
    if let Some(wrong) = values.iter().find(|value| !value.is_finite()) {
        return Err(format!("has {wrong} in the vector of site {site}; vectors are finite"));
    }
    let norm = values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt() as f32;
    if !norm.is_finite() {
        return Err(format!("has a vector at site {site} that is longer than a float32 can say"));
    }
    Ok(TraitVector {
        trait_name,
        over,
        site: site.to_string(),
        layer: layer as u32,
        vector: values,
        positive: Vec::new(),
        negative: Vec::new(),
        deviation: f32::NAN,
        norm,
        median_norm: f32::NAN,
        pairs,
    })
}

/// The rows of a matrix [sites, width], of which the last is either behind the last block or behind the final norm.
fn rows_of(width: usize, values: &[f32], last: Last, pairs: u32, name: &str, over: Option<Over>) -> Vec<Found> {
    let blocks = values.len() / width - 1;
    let site = |row: usize| if row == blocks && last == Last::PostNorm { Site::PostNorm } else { Site::Stream(row) };
    let found = |(layer, values): (usize, &[f32])| Found {
        name: (!name.is_empty()).then(|| name.into()),
        over,
        site: site(layer),
        layer,
        pairs,
        values: values.to_vec(),
    };
    values.chunks_exact(width).enumerate().map(found).collect()
}

/// Where the last row of a matrix is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    /// Before the final norm.
    Stream,
    /// After it: `hidden_states[L]` of transformers, as the originals have it.
    PostNorm,
}

/// The two dimensions of a matrix, if it may be one of vectors.
fn matrix(shape: &[usize]) -> Result<[usize; 2], String> {
    match *shape {
        [sites, width] if sites > 1 && width > 0 && sites <= SITES && width <= VALUES / sites => Ok([sites, width]),
        _ => Err(format!(
            "has the shape {shape:?}; vectors are [sites, width], two sites or more and at most {VALUES} values"
        )),
    }
}

/// `response-avg` or, as the originals write it, `response_avg`.
fn over(word: &str) -> Option<Over> {
    word.replace('_', "-").parse().ok()
}

/// Writes the artifact.
///
/// # Errors
/// Those of the disk.
pub fn write(rows: &[TraitVector], draft: &mut Draft) -> Result<()> {
    let mut sites: Vec<&str> = rows.iter().map(|row| &row.site[..]).collect();
    let mut seen = std::collections::HashSet::new();
    sites.retain(|site| seen.insert(*site));
    draft.summary("trait", &rows[0].trait_name)?;
    draft.summary("sites", sites)?;
    draft.summary("pairs", rows[0].pairs)?;
    draft.write_rows::<Vectors, _>(0, rows)
}
