//! Artifacts in the formats of other tools, by the ending of the file: CSV, JSON lines, safetensors, GGUF.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use safetensors::tensor::{Dtype, TensorView};
use wherefrom_artifact::{
    Export, Format, Kind, Lineage, Manifest, Store, TableFormat, Tensors, bad_input, export_groups, export_pairs,
    open_any, replace,
};

use crate::{csv, gguf};

/// Writes the artifact in the folder `artifact` to the file `output`; with `group_by` the influence of groups. What there is to say of
/// the file that it does not say itself.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for a kind that has no other form than its own.
pub fn export(store: &Store, artifact: &Path, group_by: Option<&str>, output: &Path) -> Result<Option<String>> {
    let manifest = open_any(artifact)?;
    let ending = output.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let (kind, shown) = (manifest.kind.name(), output.display());
    let pairs = matches!(manifest.kind, Kind::Scores | Kind::Details) || group_by.is_some();
    let table = TableFormat::of(output).filter(|_| pairs);
    let fits = match (&ending[..], manifest.kind.export()) {
        _ if pairs => table.is_some(),
        ("csv", _) => manifest.kind.format() == Format::Parquet || manifest.kind == Kind::Vectors,
        ("gguf", _) => manifest.kind == Kind::Vectors,
        ("jsonl" | "ndjson" | "json", export) => !matches!(export, Export::Tensors(_)),
        ("safetensors", export) => !matches!(export, Export::Lines(_)),
        // Without an ending, what the kind has.
        (ending, _) => ending.is_empty(),
    };
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
    if output.is_dir() {
        return Err(bad_input(format!("{shown} is a folder; give the name of a file in it")));
    }
    replaceable(output)?;
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        return Err(bad_input(format!("{shown}: there is no folder {}; make it, or give another", folder.display())));
    }
    if !fits {
        let table = match manifest.kind.format() {
            _ if pairs => ".csv, .jsonl and .parquet",
            Format::Parquet => ".csv",
            _ if manifest.kind == Kind::Vectors => ".csv, .gguf",
            _ => "",
        };
        let other = match manifest.kind.export() {
            Export::Lines(_) => ".jsonl",
            Export::Tensors(_) => ".safetensors",
            Export::None => "",
        };
        let known: Vec<_> = [table, other].into_iter().filter(|ending| !ending.is_empty()).collect();
        let known = if known.is_empty() { "no other form".into() } else { known.join(" and ") };
        return Err(bad_input(format!(
            "{shown}: {kind} is not exported as .{ending}: it has {known}; its parts can be read as they are (FORMAT.md)"
        )));
    }
    if ending == "gguf" {
        return gguf::write(artifact, output).map(Some);
    }
    written(store, artifact, &manifest, group_by, table, output).map(|()| None)
}

/// Refuses to write over anything but a file that may be written.
fn replaceable(output: &Path) -> Result<()> {
    let (shown, Ok(there)) = (output.display(), std::fs::symlink_metadata(output)) else { return Ok(()) };
    if there.is_symlink() {
        return Err(bad_input(format!("{shown} is a link, and is not written over; give the file that it leads to")));
    }
    if !there.is_file() {
        return Err(bad_input(format!("{shown} is no file, and is not written over; give another name")));
    }
    if there.permissions().readonly() {
        return Err(bad_input(format!("{shown} is read-only, and is not written over; give another name")));
    }
    Ok(())
}

fn written(
    store: &Store,
    artifact: &Path,
    manifest: &Manifest,
    group_by: Option<&str>,
    table: Option<TableFormat>,
    output: &Path,
) -> Result<()> {
    if let Some(format) = table {
        return match group_by {
            Some(column) => export_groups(store, artifact, column, format, output),
            None => export_pairs(store, artifact, format, output),
        };
    }
    let kind = manifest.kind.name();
    match manifest.kind.export() {
        _ if output.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("csv")) => {
            csv::write(artifact, output)
        }
        Export::Lines(lines) => {
            let lines = lines(artifact, &Lineage::new(store, &BTreeMap::new()))?;
            replace(output, |into| lines.iter().try_for_each(|line| writeln!(into, "{line}").context("write a line")))
        }
        Export::Tensors(tensors) => write(&tensors(artifact)?, manifest, output),
        Export::None => Err(bad_input(format!(
            "{kind} has no other form to export{}: a {} becomes JSON lines; {} become safetensors; what is Parquet can be read \
             as it is (FORMAT.md)",
            if manifest.kind.format() == Format::Parquet { " than .csv" } else { "" },
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
