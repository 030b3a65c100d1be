//! `just bench`: what the machine can do, what the stages make of it, and what other tools make of the same work.
//!
//! Every phase runs in a process of its own, so that its peak of memory is its own: this program starts itself again with
//! `--phase SUBJECT/PHASE` and reads one line of JSON.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod ceilings;
mod clock;
mod flops;
mod goals;
mod machine;
mod measure;
mod peers;
mod place;
mod random;
mod results;
mod stages;
mod suite;
mod table;
mod work;

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
    /// In a process of its own: one phase, as a line of JSON.
    #[arg(long, hide = true)]
    phase: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.phase {
        Some(phase) => child(phase),
        None => suite::run(&arguments),
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
            let (subject, name) = phase.split_once('/').context("a phase is SUBJECT/PHASE")?;
            let subject = Subject::ALL.into_iter().find(|known| known.name() == subject).context("no such subject")?;
            let work = Work::parse(name, subject).with_context(|| format!("no phase {name}"))?;
            let place = Place::new(subject);
            if subject.phases().contains(&work) {
                serde_json::to_string(&measure::measure(&place, work)?)?
            } else {
                measure::make(&place, work)?;
                "{}".into()
            }
        }
    };
    println!("{line}");
    Ok(())
}
