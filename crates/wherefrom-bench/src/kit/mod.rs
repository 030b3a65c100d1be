//! `just gpu-kit`: everything that is to be known of a card, within minutes, from one program that was carried there.
//!
//! Each piece runs in a process of its own that is stopped when its time is up; after each the report is written anew, so
//! that whatever ends the run, what was measured stays.

mod look;
mod plan;
mod process;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use serde::de::DeserializeOwned;
use wherefrom_model::{Precision, choose_adapter};
use wherefrom_stage::Device;

use self::look::{Listed, Parts, Seen};
use self::report::{Report, Torch};
use crate::card::Card;
use crate::golden::Golden;
use crate::machine::Machine;
use crate::measure::Measured;
use crate::place::Place;
use crate::work::{Subject, Work};
use crate::{named, one};

/// How a card is measured.
#[derive(Args, Clone)]
pub(crate) struct Options {
    /// Of --gpu-kit: the folder of the golden fixtures.
    #[arg(long, value_name = "FOLDER", requires = "gpu_kit", hide = true)]
    golden: Option<PathBuf>,
    /// Of --gpu-kit: gpu, gpu:N or cpu; without it the first hardware adapter, else a software one.
    #[arg(long, value_name = "NAME", requires = "gpu_kit", hide = true)]
    device: Option<String>,
    /// Of --gpu-kit: minutes that it may take.
    #[arg(long, value_name = "NUMBER", default_value_t = 10.0, hide = true)]
    minutes: f64,
    /// Of --gpu-kit: bytes of the card's memory, where neither the adapter nor nvidia-smi says.
    #[arg(long, value_name = "BYTES", hide = true)]
    memory: Option<u64>,
}

/// Exit code where there is nothing to measure, or what came out is wrong: the user's to mend.
const REFUSED: u8 = 2;

/// Measures, and writes report.json and report.md into the folder.
pub(crate) fn run(folder: &Path, options: &Options) -> ExitCode {
    let done = fs::create_dir_all(folder).context("the folder of the report").and_then(|()| {
        let mut kit = Kit::new(folder, options);
        let found = kit.look()?;
        if let Some((index, seen)) = found {
            kit.measure(index, &seen)?;
        }
        kit.report.seconds = kit.start.elapsed().as_secs_f64();
        kit.save()?;
        // Gigabytes of random weights.
        let _nothing_there = fs::remove_dir_all(folder.join("store"));
        println!("{}", folder.join("report.md").display());
        Ok(kit.report.failures())
    });
    match done {
        Ok(failures) if failures.is_empty() => ExitCode::SUCCESS,
        Ok(failures) => {
            failures.iter().for_each(|failure| eprintln!("error: {failure}"));
            ExitCode::from(REFUSED)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One piece, in a process of its own, as a line of JSON.
pub(crate) fn child(phase: &str, folder: &Path, options: &Options) -> Result<()> {
    let device = || -> Result<Device> {
        Ok(match choose_adapter(options.device.as_deref().unwrap_or("cpu"))? {
            None => Device::cpu(),
            Some((index, adapter)) => {
                Device::Gpu { index, name: adapter.name, memory: options.memory.or(adapter.memory) }
            }
        })
    };
    let line = match phase.split_once('/') {
        None => serde_json::to_string(&Listed::here())?,
        Some(("ceilings", most)) => serde_json::to_string(&Card::measure(device()?.gpu(), most.parse()?)?)?,
        Some(("golden", name)) => {
            let precision = Precision::ALL.into_iter().find(|precision| precision.name() == name);
            let golden = options.golden.as_deref().context("golden fixtures")?;
            let precision = precision.with_context(|| format!("no precision {name}"))?;
            serde_json::to_string(&Golden::study(golden, &folder.join("store"), device()?, precision)?)?
        }
        Some(_) => {
            let (subject, work) = named(phase)?;
            one(&Place::at(subject, folder, device()?), work)?
        }
    };
    println!("{line}");
    Ok(())
}

/// A run.
struct Kit<'a> {
    folder: &'a Path,
    options: &'a Options,
    start: Instant,
    report: Report,
    /// Of what is started: where the Vulkan loader finds a driver.
    variables: Vec<(&'static str, PathBuf)>,
    python: Option<String>,
}

impl<'a> Kit<'a> {
    fn new(folder: &'a Path, options: &'a Options) -> Self {
        let report = Report { machine: Some(Machine::this()), ..Report::default() };
        Self { folder, options, start: Instant::now(), report, variables: Vec::new(), python: None }
    }

    /// What there is; the adapter to measure and its number, none for the CPU.
    fn look(&mut self) -> Result<Option<(Option<usize>, Seen)>> {
        let parts = Parts::here();
        self.report.nvidia_smi = look::nvidia_smi();
        let mut listed = self.listed()?;
        for (name, text) in parts.others() {
            if listed.has_hardware() {
                break;
            }
            let file = std::path::absolute(self.folder.join(name))?;
            fs::write(&file, text)?;
            let before = std::mem::replace(
                &mut self.variables,
                ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"].map(|variable| (variable, file.clone())).into(),
            );
            match self.listed()? {
                found if found.has_hardware() => {
                    self.report.icd_file = Some(file);
                    listed = found;
                }
                _ => self.variables = before,
            }
        }
        if !listed.has_hardware() {
            let smi = self.report.nvidia_smi.as_ref().is_some_and(|cards| !cards.is_empty());
            self.report.missing = parts.missing(smi);
        }
        if let Some(why) = &listed.uncertain {
            self.report.failed("the assigned GPU", why);
        }
        self.report.adapters = listed.adapters;
        self.report.parts = parts;
        self.report.looked_seconds = self.start.elapsed().as_secs_f64();
        println!("{}", report::seen(&self.report));
        self.find_torch();
        self.save()?;
        let adapters = &self.report.adapters;
        let chosen = match &self.options.device {
            Some(name) if name == "cpu" => return Ok(Some((None, Seen { name: "the CPU".into(), ..Seen::default() }))),
            Some(name) => {
                let index = name.strip_prefix("gpu").map(|rest| rest.strip_prefix(':').map_or(Ok(0), str::parse));
                Some(index.with_context(|| format!("no device `{name}`: use gpu, gpu:N or cpu"))??)
            }
            None => listed.chosen,
        };
        Ok(chosen.and_then(|index| Some((Some(index), adapters.get(index)?.clone()))))
    }

    fn listed(&self) -> Result<Listed> {
        let said = process::output(self.program("adapters"), Duration::from_secs(30), &self.log())?;
        serde_json::from_str(said.trim()).with_context(|| format!("adapters: {said}"))
    }

    fn measure(&mut self, adapter: Option<usize>, seen: &Seen) -> Result<()> {
        let device = adapter.map_or("cpu".into(), |index| format!("gpu:{index}"));
        let small = !seen.hardware;
        self.report.device = Some(device.clone());
        self.report.small = small;
        let smi = self.report.nvidia_smi.as_ref().and_then(|cards| look::memory(cards.first()?));
        let memory = self.options.memory.or(seen.memory_bytes).or(smi);
        let plan =
            plan::plan(small, memory, seen.largest_tensor_bytes, plan::free(self.folder), self.report.torch.is_some());
        println!("{}", plan.words());
        self.report.plan = plan.words();
        for precision in ["f32", "f16"] {
            if adapter.is_some() && !seen.precisions.iter().any(|name| name == precision) {
                self.report.failed(&format!("golden/{precision}"), "the adapter does not compute in it");
                continue;
            }
            if let Some(golden) = self.piece::<Golden>(&format!("golden/{precision}"), &device, plan.golden) {
                self.report.golden.push(golden);
                self.save()?;
            }
        }
        self.report.ceilings = self.piece(&format!("ceilings/{}", plan.matrices), &device, plan.ceilings);
        self.save()?;
        if self.report.torch.is_some() {
            self.torch(&plan)?;
        }
        for (subject, most) in &plan.shapes {
            let place = Place::at(*subject, self.folder, Device::cpu());
            for work in subject.phases() {
                let name = format!("{}/{}", subject.name(), work.name());
                let half = work.precision().1 == Precision::F16;
                if half && adapter.is_some() && !seen.precisions.iter().any(|name| name == "f16") {
                    continue;
                }
                if !work.needs(*subject).into_iter().all(|need| self.ensure_made(&place, need, &device, *most)) {
                    match self.is_over() {
                        true => self.report.left_out.push(name),
                        false => self.report.failed(&name, "what it reads was not made"),
                    }
                    continue;
                }
                if let Some(measured) = self.piece::<Measured>(&name, &device, *most) {
                    self.report.add(&place, work, measured)?;
                    self.save()?;
                }
            }
            // The next shape needs the room.
            let _nothing_there = fs::remove_dir_all(self.folder.join("store"));
        }
        Ok(())
    }

    /// Makes an artifact that is missing, and before it what it needs.
    fn ensure_made(&mut self, place: &Place, work: Work, device: &str, most: Duration) -> bool {
        if place.has(work) {
            return true;
        }
        let name = format!("{}/{}", place.subject.name(), work.name());
        let needs = work.needs(place.subject);
        // What has failed once is not tried for every phase that reads it.
        !self.is_over()
            && !self.report.failed.contains_key(&name)
            && needs.into_iter().all(|need| self.ensure_made(place, need, device, most))
            && self.piece::<serde_json::Value>(&name, device, most).is_some()
    }

    /// Whether there is no time for another piece.
    fn is_over(&self) -> bool {
        self.left() < Duration::from_secs(1)
    }

    /// What a piece says; a failure, and that time is up, goes into the report.
    fn piece<T: DeserializeOwned>(&mut self, phase: &str, device: &str, most: Duration) -> Option<T> {
        if self.is_over() {
            self.report.left_out.push(phase.into());
            return None;
        }
        let mut command = self.program(phase);
        command.args(["--device", device]);
        if let Some(golden) = &self.options.golden {
            command.arg("--golden").arg(golden);
        }
        if let Some(memory) = self.report.memory(self.options.memory) {
            command.args(["--memory", &memory.to_string()]);
        }
        let start = Instant::now();
        let said = process::output(command, most.min(self.left()), &self.log())
            .and_then(|said| serde_json::from_str(said.trim()).with_context(|| format!("{phase} says {said}")));
        println!("{phase:32} {:7.1} s", start.elapsed().as_secs_f64());
        match said {
            Ok(said) => Some(said),
            Err(error) => {
                self.report.failed(phase, &format!("{error:#}"));
                None
            }
        }
    }

    /// This program, for one piece.
    fn program(&self, phase: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap_or_else(|_| "wherefrom-bench".into()));
        command.args(["--phase", phase, "--gpu-kit"]).arg(self.folder);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log.txt")
    }

    fn left(&self) -> Duration {
        Duration::from_secs_f64(60.0 * self.options.minutes).saturating_sub(self.start.elapsed())
    }

    fn save(&self) -> Result<()> {
        fs::write(self.folder.join("report.json"), serde_json::to_string_pretty(&self.report)?)?;
        fs::write(self.folder.join("report.md"), report::markdown(&self.report)?)?;
        Ok(())
    }

    /// torch, by the first Python that has it.
    fn find_torch(&mut self) {
        let given = std::env::var("PYTHON").ok();
        for python in given.into_iter().chain(["python3".into(), "python".into()]) {
            let said = self.python(&python, &[], Duration::from_secs(60));
            if let Some(about) = said.ok().and_then(|said| serde_json::from_str(said.trim()).ok()) {
                self.report.torch = Some(Torch { about, ..Torch::default() });
                self.python = Some(python);
                return;
            }
        }
    }

    fn python(&self, python: &str, words: &[&str], most: Duration) -> Result<String> {
        let mut command = Command::new(python);
        command.args(["-c", include_str!("torch.py")]).args(words);
        process::output(command, most.min(self.left()), &self.log())
    }

    /// torch's own ceilings and passes.
    fn torch(&mut self, plan: &plan::Plan) -> Result<()> {
        let Some(python) = self.python.clone() else { return Ok(()) };
        let most = plan.matrices.to_string();
        let mut pieces = vec![("ceilings".to_string(), vec!["ceilings".to_string(), most])];
        for (subject, _) in &plan.shapes {
            let Subject::Shape(shape) = subject else { continue };
            let numbers = [shape.batch_tokens, shape.sequences, Subject::LENGTH].map(|number| number.to_string());
            for precision in ["f32", "f16"] {
                let mut words = vec!["shape".to_string(), shape.config().to_string()];
                words.extend(numbers.clone());
                words.push(precision.into());
                pieces.push((format!("{}/{precision}", shape.name), words));
            }
        }
        for (name, words) in pieces {
            let words: Vec<_> = words.iter().map(|word| &word[..]).collect();
            let said = self.python(&python, &words, plan.torch);
            let said = said.and_then(|said| Ok(serde_json::from_str::<serde_json::Value>(said.trim())?));
            match said {
                Ok(value) => {
                    if let Some(torch) = &mut self.report.torch {
                        torch.measured.insert(name, value);
                    }
                }
                Err(error) => self.report.failed(&format!("torch {name}"), &format!("{error:#}")),
            }
            self.save()?;
        }
        Ok(())
    }
}
