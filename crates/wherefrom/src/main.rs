//! `wherefrom`: which training examples made the model say this.

mod commands;
mod ending;
#[cfg(unix)]
mod interrupt;
mod output;
mod planned;
mod progress;
mod store;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use clap_complete::Shell;
use wherefrom_artifact::Over;

/// What the end of a command means.
const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed, through no fault of the input; for `check`, beyond its thresholds
  2    refused: a file, row, knob or word of the command line that the message names
  75   of a share (--shard) only: in the way of another process, ended by SIGTERM or SIGUSR1, or a file system failed; try again
       (--again gives another number)
  130  interrupted (Ctrl-C); the same command goes on from there";

/// Training-data attribution: from a corpus, a model and queries to the examples that matter.
#[derive(Parser)]
#[command(version, about, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The folder of artifacts; by default WHEREFROM_STORE, or the nearest data/store at or above the pipeline's folder (without
    /// a pipeline, the current directory), or data/store beside it.
    #[arg(long, global = true, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Where others keep sealed artifacts, which `run` fetches in place of making them and `push` sends: a folder, s3://, gs:// or az://, or
    /// an https:// that is read; by default WHEREFROM_REMOTE, or none.
    #[arg(long, global = true, value_name = "ADDRESS")]
    remote: Option<String>,
    /// Where models run: auto, cpu, gpu or gpu:N (see `wherefrom devices`).
    #[arg(long, global = true, default_value = "auto")]
    device: String,
    /// Memory that may be held at once (`6GB`); by default what is free. The curvature is fitted in as many passes as that
    /// takes.
    #[arg(long, global = true, value_name = "BYTES", value_parser = wherefrom_artifact::parse_bytes)]
    memory: Option<u64>,
}

impl Command {
    /// The exit code of what may be tried again.
    fn again(&self) -> Option<u8> {
        if let Self::Run { shard: Some(_), again, .. } = self { Some(*again) } else { None }
    }

    /// The pipeline that it is about.
    fn pipeline(&self) -> Option<&Path> {
        match self {
            Self::Run { pipeline, .. }
            | Self::Plan { pipeline, .. }
            | Self::Push { pipeline, .. }
            | Self::Path { pipeline, .. } => Some(pipeline),
            Self::Show { named, .. }
            | Self::Export { named, .. }
            | Self::Rm { named, .. }
            | Self::Verify { named, .. }
            | Self::Compare { named, .. } => named.pipeline.as_deref(),
            Self::Ls { pipeline, .. } => pipeline.as_deref(),
            Self::Gc { pipelines, .. } => pipelines.first().map(PathBuf::as_path),
            _ => None,
        }
    }
}

#[derive(Subcommand)]
enum Command {
    /// Write a pipeline for a model and a corpus of yours: commented, and ending in a report.
    Init {
        /// The checkpoint's folder, or hf:OWNER/NAME@REVISION.
        #[arg(long, value_name = "DIR")]
        model: PathBuf,
        /// An adapter on it, in the form of PEFT: a folder or hf:OWNER/NAME@REVISION; as often as there are adapters, in order.
        #[arg(long, value_name = "DIR")]
        adapter: Vec<PathBuf>,
        /// The rows that it was trained on: a file, a folder, a glob, or hf:datasets/OWNER/NAME@REVISION/PATH.
        #[arg(long, value_name = "FILE")]
        corpus: PathBuf,
        /// What the model said, as often as you like; a new word begins with its space: "The capital of Kenya is| Nairobi."
        #[arg(long, value_name = "PROMPT|COMPLETION")]
        query: Vec<String>,
        /// The column of the text, or ROLE=NAME (prompt=question), where they have no known name.
        #[arg(long, value_name = "NAME")]
        column: Vec<String>,
        /// Whether prompts and completions were a user's words and the model's answer, by its chat template.
        #[arg(long, value_parser = ["yes", "no"])]
        chat: Option<String>,
        /// The file to write; it must not be there.
        #[arg(long, default_value = "study.toml", value_name = "FILE")]
        output: PathBuf,
    },
    /// Make what is missing of a pipeline.
    Run {
        /// The pipeline file.
        pipeline: PathBuf,
        /// Stop after this step.
        #[arg(long, value_name = "STEP")]
        to: Option<String>,
        /// Do share K of N of that step, K from 0 to N - 1, and nothing else: what several processes do beside each other, on one machine
        /// or on many that see the store. `run` without it then joins and seals.
        #[arg(long, value_name = "K/N", requires = "to", conflicts_with = "json")]
        shard: Option<wherefrom_artifact::Share>,
        /// The exit code of a share that may be tried again.
        #[arg(long, value_name = "CODE", default_value_t = 75, requires = "shard")]
        again: u8,
        /// Change a knob: steps.STEP.KNOB=VALUE.
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,
        /// One JSON document on stdout (FORMAT.md).
        #[arg(long)]
        json: bool,
    },
    /// Say what `run` would do, and what it would cost.
    Plan {
        /// The pipeline file.
        pipeline: PathBuf,
        /// Print what this step's key is made of.
        #[arg(long, value_name = "STEP")]
        why: Option<String>,
        /// Say, with --json, what to run where N processes do a share of each step.
        #[arg(long, value_name = "N", requires = "json", value_parser = clap::value_parser!(u32).range(1..))]
        shards: Option<u32>,
        /// What it would cost on so many GPUs with so much memory each: 8x80GB.
        #[arg(long, value_name = "GPUSxMEMORY", value_parser = wherefrom_pipeline::parse_machine)]
        machine: Option<wherefrom_pipeline::Machine>,
        /// Change a knob: steps.STEP.KNOB=VALUE.
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,
        /// One JSON document on stdout (FORMAT.md).
        #[arg(long)]
        json: bool,
    },
    /// Send what a pipeline has made to the remote, for others to fetch.
    Push {
        /// The pipeline file.
        pipeline: PathBuf,
        /// What this step needs, and itself.
        #[arg(long, value_name = "STEP")]
        to: Option<String>,
        /// Change a knob: steps.STEP.KNOB=VALUE.
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
    /// Print the folder of a step's artifact.
    Path {
        /// The pipeline file.
        pipeline: PathBuf,
        /// The step.
        step: String,
        /// Change a knob: steps.STEP.KNOB=VALUE.
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
    /// Print an artifact's manifest and first rows.
    Show {
        /// A key, its beginning, a folder, or with --pipeline a step.
        artifact: String,
        #[command(flatten)]
        named: store::Named,
        /// One JSON document on stdout (FORMAT.md).
        #[arg(long)]
        json: bool,
    },
    /// Write an artifact in another tool's format: tables as CSV, scores also as JSON lines or Parquet with names, a ranking
    /// as JSON lines, factors as safetensors, vectors of a trait as safetensors, CSV or GGUF.
    Export {
        /// A key, its beginning, a folder, or with --pipeline a step.
        artifact: String,
        /// Sum the influence of scores by a kept column, or by `document`: the beginnings of document names.
        #[arg(long, value_name = "COLUMN")]
        group_by: Option<String>,
        /// The file to write; its ending says how: .csv, .jsonl, .parquet, .safetensors, .gguf.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        #[command(flatten)]
        named: store::Named,
    },
    /// Take in what another program has written: a trait (a TOML or JSON file, or the originals' JSON), answers with their
    /// judgements (the originals' CSV), or vectors (.pt, .safetensors, .gguf). Prints the kind and the folder of each artifact that it makes.
    Import {
        /// The file, or a folder with extract.json and eval.json.
        file: PathBuf,
        /// The trait's name, where the file does not say it; of a CSV file the name of its column.
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// The tokenizer.json that texts of a CSV file are encoded by.
        #[arg(long, value_name = "FILE")]
        tokenizer: Option<PathBuf>,
        /// Over which tokens of an answer vectors were averaged, where the file does not say it: response-avg, prompt-avg,
        /// prompt-last.
        #[arg(long, value_name = "WORD")]
        over: Option<Over>,
        /// Of a GGUF file, the site of direction.N less N: 1 as repeng numbers blocks (the default), 0 as llama.cpp's generator.
        #[arg(long, value_name = "N")]
        offset: Option<usize>,
    },
    /// List the artifacts of the store: whose they are, since when, and how large.
    Ls {
        /// Add up by kind or by pipeline.
        #[arg(long)]
        by: Option<store::By>,
        /// List the runs that are recorded, the last first.
        #[arg(long, conflicts_with = "by")]
        runs: bool,
        /// Only what runs of this pipeline needed.
        #[arg(long, value_name = "FILE")]
        pipeline: Option<PathBuf>,
        /// As JSON.
        #[arg(long, conflicts_with = "by")]
        json: bool,
    },
    /// Remove an artifact.
    Rm {
        /// A key, its beginning, a folder, or with --pipeline a step.
        artifact: String,
        #[command(flatten)]
        named: store::Named,
    },
    /// List what nobody needs: no pipeline named here, and none of the last runs; with --yes remove it.
    Gc {
        /// Pipelines whose artifacts are kept.
        pipelines: Vec<PathBuf>,
        /// How many of the last runs keep their artifacts.
        #[arg(long, default_value_t = 10, value_name = "N")]
        keep_runs: usize,
        /// Remove what is listed.
        #[arg(long)]
        yes: bool,
    },
    /// Compare two rankings, or two scores: how much of the top they share, their rank correlation, and what moved most. Of traits:
    /// vectors with their controls, projections of two sides, judgements of steered answers, and where known sources rank.
    Compare {
        /// A ranking, scores, vectors, projections or judgements: a key, a folder, or with --pipeline STEP, STEP@N in its Nth last run, or @N.
        a: String,
        /// The other.
        b: String,
        #[command(flatten)]
        named: store::Named,
        /// How many of the strongest of each sign are the top.
        #[arg(long, default_value_t = 10, value_name = "K")]
        top: usize,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check the digests of an artifact, of all that a pipeline has made, or of all.
    Verify {
        /// A key, its beginning, a folder, or with --pipeline a step.
        artifact: Option<String>,
        #[command(flatten)]
        named: store::Named,
    },
    /// Compare reduced precision with float32, and batches with single rows, on a model of yours.
    Check {
        /// A checkpoint folder, or hf:owner/name.
        model: String,
        /// An adapter on it, in the form of PEFT: a folder or hf:owner/name; as often as there are adapters, in order.
        #[arg(long, value_name = "DIR")]
        adapter: Vec<String>,
        /// What is attributed of a model with adapters: adapter, merged or base.
        #[arg(long, value_name = "WORD")]
        attribute: Option<String>,
        /// Rows of yours; otherwise a few sentences.
        #[arg(long, value_name = "FILE")]
        corpus: Option<PathBuf>,
        /// `mlp`, `all`, or globs, separated by commas.
        #[arg(long, value_delimiter = ',', default_value = "mlp")]
        modules: Vec<String>,
        /// How many rows, from the beginning.
        #[arg(long, default_value_t = 8, value_name = "N")]
        rows: usize,
        /// What to compare with f32.
        #[arg(long, default_value = "all", value_parser = ["f16", "bf16", "all"])]
        precision: String,
    },
    /// Print a JSON schema of pipeline files, for editors that read one: `#:schema ./pipeline.schema.json` on the first line.
    Schema,
    /// List the GPUs that this build can reach, and what `--device auto` chooses.
    Devices,
    /// Run one stage on its own.
    Stage {
        /// The stage.
        name: String,
        /// Its configuration, JSON or TOML.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// An input.
        #[arg(long, value_name = "ROLE=DIR")]
        input: Vec<String>,
        /// Where the artifact goes.
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
        /// The checkpoint, for stages that run one: a folder or hf:OWNER/NAME@REVISION.
        #[arg(long, value_name = "DIR")]
        model: Option<PathBuf>,
        /// An adapter on it, in the form of PEFT: a folder or hf:OWNER/NAME@REVISION; as often as there are adapters, in order.
        #[arg(long, value_name = "DIR")]
        adapter: Vec<PathBuf>,
        /// What is attributed of a model with adapters: adapter, merged or base.
        #[arg(long, value_name = "WORD")]
        attribute: Option<String>,
    },
    /// Print what a shell completes commands and options by: for bash, `wherefrom completions bash >
    /// ~/.local/share/bash-completion/completions/wherefrom`.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write a man page for the program and for each command, wherefrom.1, wherefrom-run.1 and so on.
    Man {
        /// The folder, which is made: ~/.local/share/man/man1, to read them by `man wherefrom-run`.
        folder: PathBuf,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // What was typed may have come from elsewhere: a glob that met a strange file.
        Err(error) if error.use_stderr() => {
            output::note(error.to_string().trim_end());
            return ExitCode::from(2);
        }
        Err(help) => help.exit(),
    };
    let again = cli.command.again();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough.
        Err(error) if pipe_closed(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let remedy = if full(&error) { "; make room there, and run again: what was finished is kept" } else { "" };
            output::note(format_args!("error: {error:#}{remedy}"));
            match again.filter(|_| passing(&error)) {
                Some(code) => ExitCode::from(code),
                None => ExitCode::from(if users(&error) { 2 } else { 1 }),
            }
        }
    }
}

/// Whether it may pass: another process in the way, or what a shared file system does to whoever asks too early.
fn passing(error: &anyhow::Error) -> bool {
    let kinds = [
        ErrorKind::StaleNetworkFileHandle,
        ErrorKind::ResourceBusy,
        ErrorKind::TimedOut,
        ErrorKind::Interrupted,
        ErrorKind::WouldBlock,
        ErrorKind::ConnectionReset,
        ErrorKind::HostUnreachable,
        ErrorKind::NetworkUnreachable,
        ErrorKind::NetworkDown,
    ];
    error.chain().any(|cause| match cause.downcast_ref::<std::io::Error>() {
        Some(error) => kinds.contains(&error.kind()),
        None => matches!(cause.downcast_ref(), Some(wherefrom_artifact::Error::Busy(_))),
    })
}

/// Whether the user can mend it.
fn users(error: &anyhow::Error) -> bool {
    let typed = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<wherefrom_artifact::Error>() || cause.is::<wherefrom_pipeline::BadInput>()
    };
    full(error) || error.chain().any(typed)
}

/// Whether a disk, or what its user may have of it, is full.
fn full(error: &anyhow::Error) -> bool {
    let kinds = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded];
    error.chain().any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(|error| kinds.contains(&error.kind())))
}

fn pipe_closed(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<output::Unheard>().is_some_and(|unheard| unheard.0.kind() == ErrorKind::BrokenPipe)
    })
}
