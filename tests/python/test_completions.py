"""Shells complete what the program takes, and man shows it."""

import re
import shutil
import subprocess

import pytest

from conftest import binary

COMMANDS = ["init", "run", "plan", "path", "show", "export", "ls", "rm", "gc", "compare", "verify", "check", "schema", "devices",
            "stage", "completions", "man"]  # fmt: skip


def said(*arguments):
    return subprocess.run([binary(), *arguments], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("words, among", [("ru", {"run"}), ("run x.toml --se", {"--set"}), ("completions zs", {"zsh"}), ("ls --by k", {"kind"})])
def test_bash_completes(tmp_path, words, among):
    (tmp_path / "wherefrom.bash").write_text(said("completions", "bash"))
    words = ["wherefrom", *words.split()]
    script = f"""
        source {tmp_path}/wherefrom.bash
        COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}
        _wherefrom wherefrom {words[-1]} {words[-2]}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert among <= set(done.stdout.split()), done


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell", "elvish"])
def test_every_shell_is_told_every_command(tmp_path, shell):
    script = said("completions", shell)
    assert [name for name in COMMANDS if not re.search(rf"\b{name}\b", script)] == []
    if shell in ("bash", "zsh", "fish") and shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)


def test_an_unknown_shell_is_refused_with_those_that_are_known():
    done = subprocess.run([binary(), "completions", "tcsh"], capture_output=True, text=True)
    assert done.returncode == 2 and "fish" in done.stderr


def test_man_pages_are_written_for_every_command(tmp_path):
    assert said("man", tmp_path / "man1") == f"wrote {tmp_path}/man1/wherefrom*.1\n"
    pages = {path.name: path.read_text() for path in (tmp_path / "man1").iterdir()}
    assert {"wherefrom.1", *(f"wherefrom-{name}.1" for name in COMMANDS)} <= set(pages)
    assert all(re.search(r"^\.TH wherefrom", page, re.MULTILINE) for page in pages.values())
    assert "refused" in pages["wherefrom.1"] and r"\-\-set" in pages["wherefrom-run.1"]
    if shutil.which("groff"):
        for name in pages:
            done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", tmp_path / "man1" / name], capture_output=True, text=True)
            assert done.returncode == 0 and done.stderr == "", f"{name}: {done.stderr}"


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").touch()
    done = subprocess.run([binary(), "man", tmp_path / "file"], capture_output=True, text=True)
    assert done.returncode == 2 and "give another folder" in done.stderr
