//! The whole run: phase after phase, each in a process of its own.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::de::DeserializeOwned;

use crate::Arguments;
use crate::ceilings::Ceilings;
use crate::machine::Machine;
use crate::measure::Measured;
use crate::peers::Peers;
use crate::place::{self, Place};
use crate::results::Results;
use crate::table;
use crate::work::{Subject, Work};

/// Measures what was asked for, prints it as it comes, and writes it down: as JSON, and if it is everything, in the page.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let wanted = |subject: Subject, work: Work| {
        let name = format!("{}/{}", subject.name(), work.name());
        arguments.words.iter().all(|word| name.contains(&word[..]))
    };
    let all = arguments.words.is_empty();
    let peers = Peers::find().filter(|_| !arguments.no_peers);
    let why = if arguments.no_peers { "asked to" } else { "`just peers` makes their virtual environment" };
    let mut results = Results { machine: Some(Machine::this()), ..Results::default() };
    if peers.is_none() {
        println!("torch and kronfluence are left out: {why}");
        results.without_peers = Some(why.into());
    }
    (results.one_thread, results.all_threads) = (child("ceilings", true)?, child("ceilings", false)?);
    if all {
        results.eigen_seconds = child("eigen", false)?;
    }
    println!("{}", results.ceilings());
    for subject in Subject::ALL {
        let place = Place::new(subject);
        for work in subject.phases().into_iter().filter(|&work| wanted(subject, work)) {
            for need in work.needs(subject) {
                ensure_made(&place, need)?;
            }
            let measured: Measured = child(&format!("{}/{}", subject.name(), work.name()), work == Work::TapsAlone)?;
            // Right after ours, so that both find the machine in like state.
            let peer = match &peers {
                Some(peers) if Peers::have(work) => {
                    ensure_made(&place, Work::Tokens(subject.sequences()))?;
                    ensure_made(&place, Work::Queries)?;
                    Some(peers.measure(&place, work)?)
                }
                _ => None,
            };
            results.add(&place, work, measured, peer)?;
            println!("{}", results.last_line());
        }
    }
    // Once more: what other processes took at the start they may have left by now.
    results.one_thread = results.one_thread.max(child("ceilings", true)?);
    results.all_threads = results.all_threads.max(child::<Ceilings>("ceilings", false)?);
    results.derive();
    println!("{}", results.save(&place::folder(), &arguments.words)?.display());
    let table = table::markdown(&results)?;
    if !all {
        println!("\n{table}");
        return Ok(());
    }
    table::put(&place::root().join("docs/performance.md"), &table)
}

/// Makes an artifact that is missing, and before it what it needs.
fn ensure_made(place: &Place, work: Work) -> Result<()> {
    if place.has(work) {
        return Ok(());
    }
    for need in work.needs(place.subject) {
        ensure_made(place, need)?;
    }
    let name = format!("{}/{}", place.subject.name(), work.name());
    let _made: serde_json::Value = child(&name, false)?;
    Ok(())
}

/// What this program says of a phase, started again for it alone.
fn child<T: DeserializeOwned>(phase: &str, one_thread: bool) -> Result<T> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--phase", phase]).stderr(Stdio::inherit());
    if one_thread {
        command.env("RAYON_NUM_THREADS", "1");
    }
    let output = command.output().with_context(|| format!("start {phase}"))?;
    ensure!(output.status.success(), "{phase} ended with {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.trim()).with_context(|| format!("{phase} says {text}"))
}
