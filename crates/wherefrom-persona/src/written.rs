//! A trait that somebody wrote into a file: the originals' pair of JSON files, or one file of our own, JSON or TOML.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Deserialize;
use wherefrom_artifact::{Description, Elicitation, Instruction, Labelled, Persona, bad_input};

use crate::description::both;

/// The originals' folders, one for each half of the questions.
const ORIGINALS: [&str; 2] = ["trait_data_extract", "trait_data_eval"];
/// The same two files in one folder.
const SPLITS: [&str; 2] = ["extract.json", "eval.json"];
/// Largest file; those of the originals have some 20 kB.
const LARGEST: u64 = 16 << 20;

/// A file of a trait. Those of the originals have `instruction`, `questions` and `eval_prompt`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    negative: Option<String>,
    instruction: Vec<Pair>,
    questions: Vec<String>,
    #[serde(default)]
    eval_prompt: String,
    #[serde(default)]
    labelled: Vec<Labelled>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    pos: String,
    neg: String,
}

/// The trait at `path`: a file, one of the originals' `trait_data_extract` with its like in `trait_data_eval`, or a folder that
/// has `extract.json` and `eval.json`. Questions of one file are all on the side that extracts.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] with the file's name.
pub(crate) fn read(path: &Path) -> Result<Persona> {
    let mut files = files(path)?.into_iter().map(|(_, path)| written(&path));
    let first = files.next().ok_or_else(|| bad_input(format!("{}: has no trait", path.display())))??;
    let of = |written: &Written| Elicitation {
        instruction: written
            .instruction
            .iter()
            .map(|Pair { pos, neg }| Instruction { pos: pos.clone(), neg: neg.clone() })
            .collect(),
        questions: written.questions.clone(),
        eval_prompt: written.eval_prompt.clone(),
    };
    let [extract, eval] = match files.next() {
        Some(second) => [of(&first), of(&second?)],
        None => both(of(&first)),
    };
    // The originals call a trait by its file.
    let original = path.parent().and_then(Path::file_name).is_some_and(|folder| folder == ORIGINALS[0]);
    let stem = path.file_stem().filter(|_| original && first.name.is_empty());
    let name = stem.map_or(first.name, |stem| stem.to_string_lossy().into_owned());
    let negative = first.negative.unwrap_or_else(|| "helpful".into());
    let about = Description { name, description: first.description, negative, labelled: first.labelled };
    Ok(Persona { about, extract, eval })
}

/// The files that are read, by name.
///
/// # Errors
/// [`wherefrom_artifact::Error::Input`] for one that is not there.
pub(crate) fn files(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    let missing = |path: &Path| {
        bad_input(format!(
            "{}: there is no such file; give a trait's file, a folder with extract.json and eval.json, or one of the originals' \
             trait_data_extract that has its like in trait_data_eval",
            path.display()
        ))
    };
    let name = path.file_name().unwrap_or_default();
    let folder = path.parent().unwrap_or(Path::new(""));
    let found: Vec<(String, PathBuf)> = if path.is_dir() {
        SPLITS.map(|name| (name.to_string(), path.join(name))).into()
    } else if folder.file_name().is_some_and(|folder| folder == ORIGINALS[0]) {
        let eval = folder.with_file_name(ORIGINALS[1]).join(name);
        vec![(SPLITS[0].into(), path.into()), (SPLITS[1].into(), eval)]
    } else {
        vec![(String::new(), path.into())]
    };
    match found.iter().find(|(_, path)| !path.is_file()) {
        Some((_, path)) => Err(missing(path)),
        None => Ok(found),
    }
}

fn written(path: &Path) -> Result<Written> {
    let refuse =
        |what: &dyn std::fmt::Display| bad_input(format!("{}: is no file of a trait ({what})", path.display()));
    let bytes = std::fs::metadata(path).map_err(|error| refuse(&error))?.len();
    if bytes > LARGEST {
        return Err(refuse(&format!("it has {bytes} bytes, more than {LARGEST}")));
    }
    let text = wherefrom_artifact::read_text(path).map_err(|error| refuse(&error))?;
    if path.extension().is_some_and(|ending| ending == "toml") {
        return toml::from_str(&text).map_err(|error| refuse(&error.to_string().trim()));
    }
    serde_json::from_str(&text).map_err(|error| refuse(&error))
}
