//! `just bench`: what the machine can do, what the stages make of it, and what other tools make of the same work.
//!
//! Every phase runs in a process of its own, so that its peak of memory is its own: this program starts itself again with
//! `--phase SUBJECT/PHASE` and reads one line of JSON.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod card;
mod ceilings;
mod clock;
mod flops;
mod goals;
mod golden;
mod kit;
mod machine;
mod measure;
mod peers;
mod place;
mod random;
mod results;
mod shape;
mod stages;
mod suite;
mod table;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;

use crate::ceilings::Ceilings;
use crate::place::Place;
use crate::work::{Subject, Work};

/// Measures this machine, the stages of wherefrom on it, and other tools on the same work.
#[derive(Parser)]
pub(crate) struct Arguments {
    /// Only phases whose name `SUBJECT/PHASE` has every one of these words in it.
    words: Vec<String>,
    /// Leave out the other tools.
    #[arg(long)]
    no_peers: bool,
    /// Measure a GPU in place of this machine's CPU, and write report.json and report.md into this folder.
    #[arg(long, value_name = "FOLDER")]
    gpu_kit: Option<PathBuf>,
    #[command(flatten)]
    kit: kit::Options,
    /// In a process of its own: one phase, as a line of JSON.
    #[arg(long, hide = true)]
    phase: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match (&arguments.phase, &arguments.gpu_kit) {
        (Some(phase), None) => child(phase),
        (Some(phase), Some(folder)) => kit::child(phase, folder, &arguments.kit),
        (None, Some(folder)) => return kit::run(folder, &arguments.kit),
        (None, None) => suite::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn child(phase: &str) -> Result<()> {
    let line = match phase {
        "ceilings" => serde_json::to_string(&Ceilings::measure()?)?,
        "eigen" => serde_json::to_string(&ceilings::eigen(&[128, 352, 576, 1536])?)?,
        _ => {
            let (subject, work) = named(phase)?;
            one(&Place::new(subject), work)?
        }
    };
    println!("{line}");
    Ok(())
}

/// The subject and the work of `SUBJECT/PHASE`.
fn named(phase: &str) -> Result<(Subject, Work)> {
    let (subject, name) = phase.split_once('/').context("a phase is SUBJECT/PHASE")?;
    let subject = Subject::named(subject).context("no such subject")?;
    Ok((subject, Work::parse(name, subject).with_context(|| format!("no phase {name}"))?))
}

/// Does the work; what was measured as a line of JSON.
fn one(place: &Place, work: Work) -> Result<String> {
    if place.subject.phases().contains(&work) {
        return Ok(serde_json::to_string(&measure::measure(place, work)?)?);
    }
    measure::make(place, work)?;
    Ok("{}".into())
}
