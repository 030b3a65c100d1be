//! External stages: a command that fills a folder of the draft.
//!
//! `command... --config c.json --input role=DIR --output FOLDER [--model DIR [--adapter DIR]... [--attribute WORD]]`,
//! where c.json holds
//! `{kind, version, key, config}`. What it leaves in FOLDER is checked and sealed as any other artifact. It runs in the
//! folder of the pipeline, and all paths that it is given are absolute.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use wherefrom_artifact::{Draft, Kind, bad_input};
use wherefrom_stage::{Configured, Cost, Exec, Given, Input, Machine, Planned};

use crate::stage::without;

/// What the roles of a command's files begin with.
pub(crate) const COMMAND: &str = "command.";

/// The role of the file that word `index` of a command names.
pub(crate) fn role(index: usize) -> String {
    format!("{COMMAND}{index}")
}

/// A command with its knobs.
#[derive(Debug)]
pub(crate) struct Program {
    /// Every knob but its version.
    config: Value,
    writes: Kind,
}

impl Program {
    /// # Errors
    /// `writes` names no kind.
    pub(crate) fn new(knobs: &Value) -> serde_json::Result<Self> {
        Ok(Self { config: without(knobs, "version"), writes: serde_json::from_value(knobs["writes"].clone())? })
    }
}

impl Configured for Program {
    fn config(&self) -> &Value {
        &self.config
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn writes(&self) -> Kind {
        self.writes
    }

    fn inputs(&self) -> Option<Vec<Input>> {
        None
    }

    fn makes_model(&self) -> Option<Value> {
        None
    }

    fn cost(&self, _planned: &Planned, _machine: &Machine) -> Cost {
        Cost::new(0.0, 0.0, 0.0)
    }

    fn run(&self, given: &Given, _exec: &Exec, draft: &mut Draft) -> Result<()> {
        run(&self.config, given, draft)
    }
}

/// Waits for a line on its standard input, which the process that started it holds. Where that process is gone before it
/// said so, all of the watch's process group ends.
const WATCH: &str = "read -r done || kill -s KILL 0";

/// Runs the command of `config` into `draft`.
fn run(config: &Value, given: &Given, draft: &mut Draft) -> Result<()> {
    let words: Vec<String> =
        serde_json::from_value(config["command"].clone()).context("the command of an external step")?;
    // Words that are files stand in the configuration by their names.
    let place = |(index, word): (usize, &String)| -> Result<PathBuf> {
        Ok(match given.inputs.get(&role(index)) {
            Some(file) => std::path::absolute(file)?,
            None => word.into(),
        })
    };
    let placed = words.iter().enumerate().map(place).collect::<Result<Vec<_>>>()?;
    let Some((program, arguments)) = placed.split_first() else { bail!("the command is empty") };
    // A program that was stopped may have left half a file: it knows nothing of resuming.
    let folder = draft.attempt()?;
    let own = without(&without(config, "command"), "writes");
    let request = json!({
        "kind": draft.kind().name(), "version": draft.kind().version(), "key": draft.key(), "config": own,
    });
    let file = folder.with_extension("json");
    std::fs::write(&file, serde_json::to_vec_pretty(&request)?).with_context(|| format!("write {}", file.display()))?;

    let absolute = |path: &Path| std::path::absolute(path).with_context(|| format!("look up {}", path.display()));
    let mut command = Command::new(program);
    command.args(arguments).arg("--config").arg(absolute(&file)?);
    for (role, path) in given.inputs.iter().filter(|(role, _)| !role.starts_with(COMMAND)) {
        let mut input = OsString::from(format!("{role}="));
        input.push(absolute(path)?);
        command.arg("--input").arg(input);
    }
    command.arg("--output").arg(absolute(&folder)?);
    if let Some(model) = &given.model {
        command.arg("--model").arg(absolute(&model.folder)?);
        for adapter in &model.adapters {
            command.arg("--adapter").arg(absolute(adapter)?);
        }
        if !model.adapters.is_empty() {
            command.arg("--attribute").arg(&model.attribute);
        }
    }
    if let Some(folder) = &given.folder {
        command.current_dir(folder);
    }
    // What it says goes where wherefrom reports progress; stdout is for results alone.
    command.stdin(Stdio::null()).stdout(std::io::stderr());
    let status = watched(&mut command);
    let status = status
        .map_err(|error| bad_input(format!("cannot start `{}` ({error}); check `command`", program.display())))?;
    if !status.success() {
        bail!("`{}` ended with {status}; what it said is above", words.join(" "));
    }
    draft.take(&folder)
}

/// Runs a command to its end. It does not outlive this process, nor does what it starts in its process group, however this
/// process ends. Promised where there is a `sh`; elsewhere a program that goes on writes where nobody looks.
fn watched(command: &mut Command) -> std::io::Result<ExitStatus> {
    let watch = watch();
    // The program begins its life in the group of the watch: there is no moment in which it is there and nobody watches.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, watch.as_ref().map_or(0, |watch| watch.id() as i32));
    let status = command.status();
    if let Some(mut watch) = watch {
        // A program may have ended its whole group, the watch with it.
        let _gone = watch.stdin.take().map(|mut to| writeln!(to, "done"));
        let _ended = watch.wait();
    }
    status
}

/// The watch, which begins a process group: what is sent to ours does not reach it.
fn watch() -> Option<Child> {
    if !cfg!(unix) {
        return None;
    }
    let mut command = Command::new("sh");
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let silent = command.args(["-c", WATCH]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    silent.spawn().ok()
}
