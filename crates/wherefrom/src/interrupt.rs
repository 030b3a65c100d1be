//! What Ctrl-C says.

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use wherefrom_pipeline::quoted;

use crate::output::note;

/// The code that shells know an interrupted program by.
const CODE: i32 = 130;

/// From now on Ctrl-C ends the program and says how it is taken up again. Nothing is cleaned up: a kill loses no more.
pub(crate) fn resumable() {
    // Whoever started it in the background, or below nohup, has interrupts ignored, and they stay so.
    if is_ignored() {
        return;
    }
    let Ok(mut signals) = Signals::new([SIGINT]) else { return };
    let words: Vec<String> = std::env::args().skip(1).map(|word| quoted(&word)).collect();
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            // Behind the bar, or the terminal's ^C.
            note(format_args!(
                "\ninterrupted; what is finished is kept, and the same command goes on from there:\n  wherefrom {}",
                words.join(" ")
            ));
            std::process::exit(CODE);
        }
    });
}

/// From now on SIGTERM and SIGUSR1, which schedulers send before a limit or to make room, end the program with `code`: the unit
/// under way is dropped, and what is finished is kept.
pub(crate) fn again(code: u8) {
    let Ok(mut signals) = Signals::new([SIGTERM, SIGUSR1]) else { return };
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            let name = if signal == SIGTERM { "SIGTERM" } else { "SIGUSR1" };
            note(format_args!("\nended by {name}; what is finished is kept, and the same share goes on from there"));
            std::process::exit(code.into());
        }
    });
}

/// Whether this process was started with interrupts ignored, where the system says.
fn is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & 1 << (SIGINT - 1) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_given_back_as_a_shell_reads_it() {
        let words = ["run", "my study/p.toml", "--set", "steps.a.b='x'", ""];
        let shown = words.map(quoted);
        assert_eq!(shown, ["run", "'my study/p.toml'", "--set", "'steps.a.b='\\''x'\\'''", "''"]);
    }
}
