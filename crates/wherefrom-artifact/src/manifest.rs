//! `manifest.json`: what an artifact is, where it came from, and the digests of its parts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;
use crate::kinds::{Format, Kind};
use crate::origin::Origin;
use crate::recipe::{Recipe, canonical_json};
use crate::store::disk::write_atomically;

/// The file that makes a folder an artifact.
pub const MANIFEST: &str = "manifest.json";

/// One file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// File name inside the folder.
    pub name: String,
    /// Rows, 0 where the file is no table.
    pub rows: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// BLAKE3 of the content, hexadecimal.
    pub blake3: String,
}

/// The file of a part of a table.
pub(crate) fn part_name(kind: Kind, part: usize) -> String {
    format!("part-{part:05}.{}", kind.format().extension())
}

/// The whole manifest. `seal` is the BLAKE3 of the canonical JSON of every other field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// What the artifact holds.
    pub kind: Kind,
    /// Version of the kind's format.
    pub version: u32,
    /// Identity: the digest of `recipe`.
    pub key: String,
    /// How it was made: the whole key preimage.
    pub recipe: Recipe,
    /// What it goes back to, for whoever wires it beside others.
    #[serde(default, skip_serializing_if = "Origin::is_empty")]
    pub origin: Origin,
    /// Parts in order.
    pub parts: Vec<Part>,
    /// Facts about the content (examples, tokens, coverage, loss curve), equal for equal keys.
    pub summary: BTreeMap<String, Value>,
    /// How this run went (device, seconds, memory): differs between runs.
    pub provenance: BTreeMap<String, Value>,
    /// BLAKE3 of all of the above.
    #[serde(default)]
    pub seal: String,
}

impl Manifest {
    fn digest(&self) -> Result<String> {
        let mut value = serde_json::to_value(self)?;
        value.as_object_mut().context("a manifest is an object")?.remove("seal");
        Ok(blake3::hash(canonical_json(&value).as_bytes()).to_hex().to_string())
    }

    /// Writes the manifest into `folder`, sealed, by rename.
    pub fn write(mut self, folder: &Path) -> Result<()> {
        self.seal = self.digest()?;
        write_atomically(&folder.join(MANIFEST), serde_json::to_string_pretty(&self)?.as_bytes())
    }

    /// Reads the manifest of `folder` and checks seal, key and version.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        match crate::read(&path) {
            Ok(text) => Self::parse(&path, &text),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                Err(Error::Missing { path: folder.into() }.into())
            }
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// The manifest that `text`, of the file `path`, is, checked as by [`Manifest::read`].
    pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let folder = path.parent().unwrap_or(path);
        let corrupt = |what: &str| Error::Corrupt { path: path.into(), what: what.into() };
        let value: Value = serde_json::from_slice(text).map_err(|_| corrupt("the manifest is not JSON"))?;
        // A manifest of another format version may not parse as ours: say so rather than calling it corrupt.
        if let (Some(kind), Some(found)) = (value["kind"].as_str().and_then(Kind::from_name), value["version"].as_u64())
            && u64::from(kind.version()) != found
        {
            return Err(Error::Version {
                path: folder.into(),
                expected: kind.version(),
                found: u32::try_from(found).unwrap_or(u32::MAX),
            }
            .into());
        }
        let manifest: Self = serde_json::from_value(value)
            .map_err(|error| corrupt(&format!("the manifest does not parse ({error})")))?;
        if manifest.digest()? != manifest.seal {
            return Err(corrupt("the manifest's digest differs from its seal").into());
        }
        if manifest.recipe.key() != manifest.key {
            return Err(corrupt("the key is not the digest of the recipe").into());
        }
        manifest.check_parts().map_err(|what| corrupt(&what))?;
        Ok(manifest)
    }

    /// Parts of a table are numbered from 0; files of a folder lie inside it, each once.
    fn check_parts(&self) -> Result<(), String> {
        if self.parts.is_empty() {
            return Err("the manifest names no part".into());
        }
        let mut names = BTreeSet::new();
        for (number, part) in self.parts.iter().enumerate() {
            let inside = |step: Component<'_>| matches!(step, Component::Normal(_));
            let fine = match self.kind.format() {
                Format::Folder => Path::new(&part.name).components().all(inside) && !part.name.is_empty(),
                _ => part.name == part_name(self.kind, number),
            };
            if !fine || part.name == MANIFEST {
                return Err(format!("part {number} of the manifest is `{}`, which is no part of it", part.name));
            }
            if !names.insert(&part.name) {
                return Err(format!("the manifest names part {} twice", part.name));
            }
        }
        Ok(())
    }

    /// Sum of the parts' bytes.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).fold(0, u64::saturating_add)
    }

    /// Sum of the parts' rows.
    pub fn rows(&self) -> u64 {
        self.parts.iter().map(|part| part.rows).fold(0, u64::saturating_add)
    }

    /// A whole number of the summary, if it is there.
    pub fn count(&self, name: &str) -> Option<u64> {
        self.summary.get(name)?.as_u64()
    }
}
