//! The name means the program, and nothing else, in the shells that people type it in.

use std::path::Path;
use std::process::Command;

#[test]
fn every_shell_starts_the_program_by_its_name() {
    let program = Path::new(env!("CARGO_BIN_EXE_wherefrom"));
    let version = format!("wherefrom {}\n", env!("CARGO_PKG_VERSION"));
    let mut path = program.parent().unwrap().as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut tried = 0;
    for shell in [&["bash"][..], &["zsh", "-f"], &["dash"], &["ksh"], &["sh"]] {
        let found =
            Command::new(shell[0]).args(&shell[1..]).args(["-c", "wherefrom --version"]).env("PATH", &path).output();
        // Not every machine has every shell.
        let Ok(output) = found else { continue };
        assert_eq!(String::from_utf8_lossy(&output.stdout), version, "{shell:?}");
        tried += 1;
    }
    assert!(tried > 0, "no shell was found");
}
