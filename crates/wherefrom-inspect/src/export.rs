//! Artifacts in the formats of other tools: JSON lines, safetensors.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use safetensors::tensor::{Dtype, TensorView};
use wherefrom_artifact::{Export, Kind, Lineage, Manifest, Store, Tensors, bad_input, open_any, replace};

/// Writes the artifact in `folder` to the file `output`.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a kind that has no other form than its own.
pub fn export(store: &Store, folder: &Path, output: &Path) -> Result<()> {
    let manifest = open_any(folder)?;
    match manifest.kind.export() {
        Export::Lines(lines) => {
            let lines = lines(folder, &Lineage::new(store, &BTreeMap::new()))?;
            replace(output, |into| lines.iter().try_for_each(|line| writeln!(into, "{line}").context("write a line")))
        }
        Export::Tensors(tensors) => write(&tensors(folder)?, &manifest, output),
        Export::None => Err(bad_input(format!(
            "{} has no other form to export: a {} becomes JSON lines; {} become safetensors; what is Parquet can be read as it \
             is (FORMAT.md)",
            manifest.kind.name(),
            names(|export| matches!(export, Export::Lines(_))),
            names(|export| matches!(export, Export::Tensors(_))),
        ))),
    }
}

/// `one, two and three`.
fn names(which: impl Fn(Export) -> bool) -> String {
    let names: Vec<_> = Kind::ALL.into_iter().filter(|kind| which(kind.export())).map(Kind::name).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

fn write(tensors: &Tensors, manifest: &Manifest, output: &Path) -> Result<()> {
    let mut metadata = tensors.metadata.clone();
    for (name, text) in [
        ("kind", manifest.kind.name().into()),
        ("key", manifest.key.clone()),
        ("recipe", serde_json::to_string(&manifest.recipe)?),
    ] {
        metadata.insert(format!("wherefrom.{name}"), text);
    }
    let little_endian = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let bytes: Vec<_> = tensors.values.iter().map(|(_, _, values)| little_endian(values)).collect();
    let views = (tensors.values.iter().zip(&bytes))
        .map(|((name, shape, _), bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    let file = safetensors::serialize(views, Some(metadata))?;
    replace(output, |into| Ok(into.write_all(&file)?))
}
