//! The same work in other tools: the scripts of `tests/peers`, in their own virtual environment.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;
use wherefrom_artifact::{Artifact, Example, Tokens};

use crate::measure::median;
use crate::place::{Place, folder, root};
use crate::work::{Rounded, Subject, Work};

/// What another tool made of a phase.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) tool: String,
    /// As `Measured` has it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) tokens_per_second: Option<f64>,
    /// Real tokens and seconds of each batch.
    pub(crate) pieces: Vec<(u64, f64)>,
    /// Gradient and preconditioning of a query.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) query_seconds: Option<f64>,
    /// Of the whole phase, where it is one call.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) seconds: Option<f64>,
    pub(crate) peak_bytes: u64,
    pub(crate) versions: BTreeMap<String, String>,
}

/// The virtual environment that `just peers` makes.
pub(crate) struct Peers {
    python: PathBuf,
}

impl Peers {
    /// None where it has not been made.
    pub(crate) fn find() -> Option<Self> {
        let python = root().join(".venv-peers/bin/python");
        python.exists().then_some(Self { python })
    }

    /// Whether another tool does this work, too.
    pub(crate) fn have(work: Work) -> bool {
        let (work, _) = work.precision();
        let fits = [Work::Covariance, Work::Eigenbasis, Work::Lambda, Work::Scan(Subject::QUERIES), Work::ScanFull];
        matches!(work, Work::Forward | Work::Taps) || fits.contains(&work)
    }

    /// Does the work, and before it what it reads, where that is missing.
    pub(crate) fn measure(&self, place: &Place, work: Work) -> Result<Peer> {
        let before = match work {
            Work::Eigenbasis => Some(Work::Covariance),
            Work::Lambda | Work::Bf16(Rounded::Lambda) => Some(Work::Eigenbasis),
            Work::Scan(_) | Work::ScanFull | Work::Bf16(Rounded::Scan) => Some(Work::Lambda),
            _ => None,
        };
        let work_folder = folder().join("peers").join(place.subject.name());
        fs::create_dir_all(&work_folder)?;
        let done = |work: Work| work_folder.join(format!("{}.done", work.name()));
        if let Some(before) = before.filter(|&before| !done(before).exists()) {
            self.measure(place, before)?;
        }
        let mut peer = self.phase(place, work, &work_folder)?;
        fs::write(done(work), "")?;
        let warm = &peer.pieces[usize::from(peer.pieces.len() > 1)..];
        let rates: Vec<f64> = match place.subject {
            Subject::Smollm2 | Subject::Shape(_) => {
                warm.iter().map(|(tokens, seconds)| *tokens as f64 / seconds).collect()
            }
            Subject::Quickstart if warm.is_empty() => Vec::new(),
            Subject::Quickstart => {
                let (tokens, seconds) = warm.iter().fold((0, 0.0), |sum, piece| (sum.0 + piece.0, sum.1 + piece.1));
                vec![tokens as f64 / seconds]
            }
        };
        peer.tokens_per_second = median(&rates);
        Ok(peer)
    }

    fn phase(&self, place: &Place, work: Work, work_folder: &Path) -> Result<Peer> {
        let batch = match place.subject {
            Subject::Quickstart => 32,
            Subject::Smollm2 | Subject::Shape(_) => place.subject.batch_tokens(Work::Taps) / Subject::LENGTH,
        };
        let mut command = Command::new(&self.python);
        command.arg(root().join("tests/peers/phase.py")).arg(work.name());
        command.arg("--model").arg(place.model()?).arg("--tokens").arg(tokens(place, work_folder)?);
        command.arg("--work").arg(work_folder).args(["--batch", &batch.to_string()]);
        command.args(["--threads", &std::thread::available_parallelism()?.to_string()]);
        // Models are folders here: no tool has to ask a hub.
        let output = command.env("HF_HUB_OFFLINE", "1").stderr(Stdio::piped()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tests/peers/phase.py {}: {said}", work.name());
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().last().context("tests/peers/phase.py says nothing")?;
        serde_json::from_str(line).with_context(|| format!("tests/peers/phase.py says {line}"))
    }
}

/// The file with the sequences and queries that wherefrom's own phases read.
fn tokens(place: &Place, work_folder: &Path) -> Result<PathBuf> {
    let rows = |work: Work| -> Result<Vec<_>> {
        let artifact: Artifact<Tokens> = place.open(work)?;
        let row = |row: Example| json!({ "input_ids": row.input_ids, "target_mask": row.target_mask });
        artifact.rows::<Example>()?.map(|example| example.map(row)).collect()
    };
    let path = work_folder.join("tokens.json");
    let content = json!({ "train": rows(Work::Tokens(place.subject.sequences()))?, "queries": rows(Work::Queries)? });
    fs::write(&path, content.to_string())?;
    Ok(path)
}
