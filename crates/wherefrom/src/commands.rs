//! The verbs: each a few calls of the pipeline crate, and lines on stdout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use clap::CommandFactory as _;
use serde_json::json;
use wherefrom_artifact::{State, bad_input, bytes};
use wherefrom_check::{Check, Verdict};
use wherefrom_pipeline::{Done, Import, Init, Plan, Precision, Single};
use wherefrom_stage::{Device, Exec};

use crate::output::{note, say, say_json, say_path};
use crate::progress::Progress;
use crate::{Cli, Command, ending, planned, store};

/// Runs the command.
pub(crate) fn run(cli: Cli) -> Result<()> {
    let (store, why_store) = wherefrom_pipeline::store(cli.store.as_deref(), cli.command.pipeline());
    let store = match cli.command {
        Command::Run { .. } | Command::Plan { .. } | Command::Push { .. } => {
            store.with_remote(wherefrom_pipeline::remote(cli.remote.as_deref())?)
        }
        _ => store,
    };
    // `run` knows whether one is wanted when it has read its pipeline.
    let wanted = matches!(
        cli.command,
        Command::Init { .. } | Command::Plan { .. } | Command::Check { .. } | Command::Stage { .. }
    );
    let device = if wanted { wherefrom_pipeline::device(&cli.device)? } else { Device::cpu() };
    let mut exec = Exec { device, memory: cli.memory, reporter: Arc::new(Progress::new()), ..Exec::default() };
    match cli.command {
        Command::Run { pipeline, to: Some(to), set, shard: Some(share), again, .. } => {
            #[cfg(unix)]
            crate::interrupt::again(again);
            let plan = Plan::read(&pipeline, &set, store)?;
            exec.device = plan.device(Some(&to), &cli.device)?;
            let sealed = plan.run_share(&to, share, &exec)?;
            let what = if sealed { "is sealed: nothing to do" } else { "is done" };
            say(&format!("share {share} of {to} {what}"))
        }
        Command::Run { pipeline, to, set, json, .. } => {
            #[cfg(unix)]
            crate::interrupt::resumable();
            let mut plan = Plan::read(&pipeline, &set, store.clone())?;
            if plan.fetch(to.as_deref(), &*exec.reporter)? {
                plan = Plan::read(&pipeline, &set, store)?;
            }
            exec.device = plan.device(to.as_deref(), &cli.device)?;
            make(&plan, to.as_deref(), json, &exec)
        }
        Command::Init { model, adapter: adapters, corpus, query: queries, column: columns, chat, output } => {
            let column = |text: &String| {
                let (role, name) = text.split_once('=').unwrap_or(("text", text));
                (role.to_string(), name.to_string())
            };
            let columns = columns.iter().map(column).collect();
            let init = Init { model, adapters, corpus, queries, columns, chat: chat.map(|chat| chat == "yes"), output };
            let written = wherefrom_pipeline::init(&init, &exec)?;
            written.iter().try_for_each(|path| say(&format!("wrote {}", path.display())))?;
            let output = init.output.display().to_string();
            let plain = |c: char| c.is_alphanumeric() || "/._-".contains(c);
            let output = if output.chars().all(plain) { output } else { format!("'{output}'") };
            say(&format!("now: wherefrom plan {output}, then wherefrom run {output}"))
        }
        Command::Plan { pipeline, why, shards, machine, set, json } => {
            let given = set.clone();
            let mut plan = Plan::read(&pipeline, &set, store.clone())?;
            if plan.ask(&*exec.reporter) {
                plan = Plan::read(&pipeline, &set, store)?;
            }
            match why {
                Some(step) => planned::preimage(plan.find(&step)?, json),
                None if json => {
                    let shards = shards.map(|count| planned::Shards { count: count as usize, set: &given });
                    planned::json(&plan, why_store, machine.as_ref(), shards, &exec)
                }
                None => planned::table(&plan, why_store, machine.as_ref(), &exec),
            }
        }
        Command::Push { pipeline, to, set } => {
            let plan = Plan::read(&pipeline, &set, store)?;
            let width = plan.steps.iter().map(|step| step.name.len()).max().unwrap_or(0);
            plan.push(to.as_deref(), &*exec.reporter, |step, sent| {
                say(&format!("{:<width$}  {sent:<11}  {}", step.name, step.key().unwrap_or_default()))
            })
        }
        Command::Path { pipeline, step, set } => {
            if step.contains('@') {
                let named = store::Named { pipeline: Some(pipeline), set };
                return say_path(&named.folder(&store, &step)?);
            }
            path(&Plan::read(&pipeline, &set, store)?, &step)
        }
        Command::Show { artifact, named, json } => {
            let folder = named.folder(&store, &artifact)?;
            if json {
                return say_json(&json!({ "folder": folder, "manifest": wherefrom_artifact::open_any(&folder)? }));
            }
            say(&wherefrom_inspect::show(&store, &folder)?)
        }
        Command::Export { artifact, group_by, output, named } => {
            let folder = named.folder(&store, &artifact)?;
            let left = wherefrom_inspect::export(&store, &folder, group_by.as_deref(), &output)?;
            left.iter().for_each(note);
            say_path(&output)
        }
        Command::Import { file, name, tokenizer, over, offset } => {
            let made = Import { file, name, tokenizer, over, offset }.run(&store, &exec)?;
            made.iter().try_for_each(|(kind, folder)| say(&format!("{} {}", kind.name(), folder.display())))
        }
        Command::Ls { runs, by, pipeline, json } => {
            // Nothing is there yet: nothing is listed. What was named and is not there was meant otherwise.
            let named = matches!(why_store, wherefrom_pipeline::Why::Named | wherefrom_pipeline::Why::Variable);
            store.check_folder()?;
            if named && !store.root().is_dir() {
                return Err(bad_input(format!(
                    "there is no store {}, {why_store}; give the folder that has artifacts",
                    store.root().display()
                )));
            }
            match runs {
                true => store::runs(&store, pipeline.as_deref(), json),
                false => store::list(&store, by, pipeline.as_deref(), json),
            }
        }
        Command::Gc { pipelines, keep_runs, yes } => {
            for pipeline in &pipelines {
                let (own, _) = wherefrom_pipeline::store(cli.store.as_deref(), Some(pipeline));
                if own.root() != store.root() {
                    let [own, other] = [&own, &store].map(|store| store.root().display());
                    let shown = pipeline.display();
                    return Err(bad_input(format!("{shown} has the store {own}, and not {other}: give --store")));
                }
            }
            store::collect(&store, &pipelines, keep_runs, yes)
        }
        Command::Compare { a, b, named, top, json } => {
            let [a, b] = [a, b].map(|name| named.folder(&store, &name));
            let (a, b) = (a?, b?);
            if let Some(traits) = wherefrom_inspect::traits(&store, &a, &b)? {
                return if json { say_json(&serde_json::to_value(&traits)?) } else { say(&traits.to_string()) };
            }
            let compared = wherefrom_inspect::compare(&store, &a, &b, top)?;
            if json { say_json(&serde_json::to_value(&compared)?) } else { say(&compared.to_string()) }
        }
        Command::Rm { artifact, named } => {
            let folder = named.any_folder(&store, &artifact)?;
            store.writable()?;
            store.remove(&folder, &*exec.reporter)?;
            say(&format!("removed {}", folder.display()))
        }
        Command::Check { model, adapter: adapters, attribute, corpus, modules, rows, precision } => {
            let wanted = |name: &Precision| precision == "all" || precision == name.name();
            let mut precisions = vec![Precision::F16, Precision::Bf16];
            precisions.retain(wanted);
            checked(&wherefrom_check::check(
                &Check { model, adapters, attribute, corpus, modules, rows, precisions },
                &exec,
            )?)
        }
        Command::Schema => say(&serde_json::to_string_pretty(&wherefrom_pipeline::schema())?),
        Command::Devices => devices(),
        Command::Verify { artifact, named } => {
            let folders = match artifact {
                Some(name) => vec![named.folder(&store, &name)?],
                None => named.all(&store)?,
            };
            verify(&folders)
        }
        Command::Stage { name, config, input, output, model, adapter: adapters, attribute } => {
            let inputs = input.iter().map(|input| wire(input)).collect::<Result<_>>()?;
            let single = Single { stage: name, config, inputs, output, model, adapters, attribute };
            let folder = wherefrom_pipeline::run_stage(&single, &exec)?;
            say_path(&folder)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "wherefrom", &mut script);
            say(&String::from_utf8(script)?)
        }
        Command::Man { folder } => manual(&folder),
    }
}

fn wire(input: &str) -> Result<(String, PathBuf)> {
    match input.split_once('=') {
        Some((role, path)) if !role.is_empty() && !path.is_empty() => Ok((role.into(), path.into())),
        _ => Err(bad_input(format!("--input {input}: write ROLE=DIR"))),
    }
}

fn make(plan: &Plan, to: Option<&str>, json: bool, exec: &Exec) -> Result<()> {
    plan.thin_coverage().iter().chain(&plan.uncompleted()).for_each(|warning| exec.reporter.warn(warning));
    if json {
        return ending::json(plan, &plan.run(to, exec, |_| Ok(()))?, exec);
    }
    let width = plan.steps.iter().map(|step| step.name.len()).max().unwrap_or(0);
    say(&format!("{:<width$}  {}", "device", exec.device))?;
    let done = plan.run(to, exec, |done: &Done| {
        let fetched = plan.find(&done.name)?.state == State::Remote;
        let state = if fetched {
            "fetched"
        } else if done.cached {
            "cached"
        } else {
            "made"
        };
        say(&format!("{:<width$}  {state:<7}  {:>7.1} s  {}", done.name, done.seconds, done.folder.display()))
    })?;
    ending::text(plan, &done)
}

fn path(plan: &Plan, name: &str) -> Result<()> {
    if let ("report", Some(lines)) = (name, plan.report_lines()) {
        let path = plan.path.display();
        return Err(bad_input(format!(
            "no step `report` in {path}; to make one, add\n\n{lines}\n\nand run it: {}",
            plan.command("run", None)
        )));
    }
    say_path(&made(plan, name)?)
}

/// The folder of a step's artifact.
pub(crate) fn made(plan: &Plan, name: &str) -> Result<PathBuf> {
    let step = plan.find(name)?;
    match step.folder(&plan.store) {
        Some(folder) if step.state == State::Cached => Ok(folder),
        _ => Err(bad_input(format!(
            "step `{name}` is not made yet ({}); run `{}`",
            step.why,
            plan.command("run", Some(name))
        ))),
    }
}

/// Man pages of all commands.
fn manual(folder: &Path) -> Result<()> {
    let written = std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(Cli::command(), folder));
    match written {
        Ok(()) => say(&format!("wrote {}", folder.join("wherefrom*.1").display())),
        Err(error) => {
            Err(bad_input(format!("cannot write man pages into {} ({error}); give another folder", folder.display())))
        }
    }
}

/// The tables, and an error that names what failed.
fn checked(verdict: &Verdict) -> Result<()> {
    say(&verdict.text)?;
    if verdict.failures.is_empty() {
        return say("\nall within the thresholds");
    }
    Err(anyhow::anyhow!("the check failed\n{}", verdict.failures.join("\n")))
}

fn devices() -> Result<()> {
    let named = |gpu: Option<usize>| gpu.map_or("cpu".to_string(), |index| format!("gpu:{index}"));
    let row = |adapter: Option<usize>, what: &str, limits: &str| {
        let name = named(adapter);
        let precisions = match wherefrom_pipeline::precisions(adapter) {
            Ok(precisions) => precisions.iter().map(|precision| precision.name()).collect::<Vec<_>>().join(", "),
            Err(error) => format!("{error:#}"),
        };
        say(&format!("{name:<6}  {what:<48}  {limits:<22}  {precisions}"))
    };
    for (index, adapter) in wherefrom_pipeline::adapters().iter().enumerate() {
        let kind = if adapter.hardware { "hardware" } else { "software" };
        let limits = adapter.largest_tensor.map_or_else(String::new, |n| format!("tensors to {}", bytes(n as f64)));
        row(Some(index), &format!("{}, {}, {kind}", adapter.name, adapter.api), &limits)?;
    }
    let automatic = wherefrom_pipeline::device("auto")?;
    row(None, Device::cpu().to_string().trim_start_matches("cpu, "), "")?;
    let why = match (wherefrom_pipeline::has_gpu_support(), automatic.gpu()) {
        (false, _) => {
            " (built without GPU support: cargo build --release -p wherefrom --features wgpu, or cuda, rocm, metal, vulkan)"
        }
        (true, None) => " (there is no hardware GPU, and a software adapter is slower than the CPU)",
        (true, Some(_)) => "",
    };
    let automatic = named(automatic.gpu());
    say(&format!("auto    {automatic}{why}"))
}

fn verify(folders: &[PathBuf]) -> Result<()> {
    let mut failed = BTreeMap::new();
    for folder in folders {
        match wherefrom_artifact::verify(folder) {
            Ok(kind) => say(&format!("ok       {:<14}  {}", kind.name(), name(folder)))?,
            Err(error) => {
                say(&format!("corrupt  {}: {error:#}", folder.display()))?;
                failed.insert(folder, format!("{error:#}"));
            }
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = failed.into_values().collect();
    Err(bad_input(lines.join("\n")))
}

fn name(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
