//! External stages: a command that fills the draft's folder.
//!
//! `command... --config c.json --input role=DIR --output FOLDER [--model DIR]`, where c.json holds
//! `{kind, version, key, config}`. What it leaves in FOLDER is checked and sealed as any other artifact.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use wherefrom_artifact::{Draft, bad_input};

use crate::stage::{Given, without};

/// Runs the command of `config` into `draft`.
pub(crate) fn run(config: &Value, given: &Given, draft: &mut Draft) -> Result<()> {
    let words: Vec<String> =
        serde_json::from_value(config["command"].clone()).context("the command of an external step")?;
    let Some((program, arguments)) = words.split_first() else { bail!("the command is empty") };
    // A program that was stopped may have left half a file: it knows nothing of resuming.
    draft.clear()?;
    let own = without(&without(config, "command"), "writes");
    let request = json!({
        "kind": draft.kind().name(), "version": draft.kind().version(), "key": draft.key(), "config": own,
    });
    let file = std::env::temp_dir().join(format!("wherefrom-{}-{}.json", draft.key(), std::process::id()));
    std::fs::write(&file, serde_json::to_vec_pretty(&request)?).with_context(|| format!("write {}", file.display()))?;

    let mut command = Command::new(program);
    command.args(arguments).arg("--config").arg(&file);
    for (role, path) in given.inputs.iter().filter(|(role, _)| !role.starts_with("command.")) {
        command.arg("--input").arg(format!("{role}={}", path.display()));
    }
    command.arg("--output").arg(draft.folder());
    if let Some(model) = &given.model {
        command.arg("--model").arg(model);
    }
    // What it says goes where wherefrom reports progress; stdout is for results alone.
    let status = command.stdin(Stdio::null()).stdout(std::io::stderr()).status();
    let _left = std::fs::remove_file(&file);
    let status = status.map_err(|error| bad_input(format!("cannot start `{program}` ({error}); check `command`")))?;
    if !status.success() {
        bail!("`{}` ended with {status}; what it said is above", words.join(" "));
    }
    Ok(())
}
