//! A process that has so much time and no more.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Between two looks at a process.
const LOOK: Duration = Duration::from_millis(20);
/// Of what a process said last, in an error.
const LAST: usize = 600;

/// What a process prints, which is killed after `time`; what it says of errors goes into the file `log`.
pub(super) fn output(mut command: Command, time: Duration, log: &PathBuf) -> Result<String> {
    let file = File::options().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
    let before = file.metadata()?.len();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file).spawn()?;
    let mut pipe = child.stdout.take().context("a pipe")?;
    // Read beside, so that a long answer fills no pipe.
    let reader = std::thread::spawn(move || {
        let mut said = Vec::new();
        pipe.read_to_end(&mut said).map(|_| said)
    });
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() >= time {
            child.kill()?;
            child.wait()?;
            bail!("stopped after {:.0} s", time.as_secs_f64());
        }
        std::thread::sleep(LOOK);
    };
    let said = reader.join().map_err(|_| anyhow::anyhow!("a pipe broke"))??;
    if !status.success() {
        let text = std::fs::read(log)?;
        let text = String::from_utf8_lossy(text.get(before as usize..).unwrap_or_default()).trim().to_string();
        let from = text.char_indices().rev().nth(LAST).map_or(0, |(place, _)| place);
        bail!("{status}: {}", &text[from..]);
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, time: f64) -> Result<String, String> {
        let log = std::env::temp_dir().join(format!("wherefrom-bench-{}.log", wherefrom_artifact::unique()));
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let said = output(command, Duration::from_secs_f64(time), &log).map_err(|error| error.to_string());
        std::fs::remove_file(&log).unwrap();
        said
    }

    #[test]
    fn a_process_answers_fails_or_is_stopped() {
        assert_eq!(run("echo 1", 10.0), Ok("1\n".into()));
        let failed = run("echo why >&2; exit 3", 10.0).unwrap_err();
        assert!(failed.contains('3') && failed.ends_with("why"), "{failed}");
        assert_eq!(run("exec sleep 20", 0.1), Err("stopped after 0 s".into()));
        // More than a pipe holds.
        assert_eq!(run("head -c 300000 /dev/zero | tr '\\0' x", 10.0).map(|said| said.len()), Ok(300_000));
    }
}
