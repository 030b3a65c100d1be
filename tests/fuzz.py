"""Runs the tests named `fuzz_…` of every crate, each in a process of its own: so many random inputs, a limit of memory.

    python3 tests/fuzz.py RUNS [WORD...]      # `just fuzz RUNS WORD...`; words choose targets by part of their names

Targets that run the hub client or stages get a hundredth of RUNS. A target fails if it panics, aborts, outlasts its time, or holds
512 MB or more. Prints a table in Markdown; exit code 1 if a target has failed.
"""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PEAK = 512e6  # bytes that a target may hold
ADDRESSES = 8 << 30  # bytes it may address: what grows without bound ends there
SECONDS = 4 * 3600  # for one target
SLOW = ("wherefrom-hub fuzz_a_hub", "wherefrom-pipeline fuzz_equal_keys")  # those that run a client, or stages


def targets(words):
    """Crate, name, program and working folder of each target that is meant."""
    meant = {}
    for source in Path("crates").rglob("*.rs"):
        crate = source.parts[1]
        for name in re.findall(r"fn (fuzz_\w+)", source.read_text()):
            if not words or any(word in f"{crate} {name}" for word in words):
                meant.setdefault(crate, set()).add(name)
    if not meant:
        sys.exit("no such target")
    # As `just test` builds them: with the features of all crates.
    command = ["cargo", "test", "--release", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]
    for line in subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines():
        message = json.loads(line)
        if not message.get("executable") or not message["profile"]["test"]:
            continue
        program, folder = message["executable"], os.path.dirname(message["manifest_path"])
        listed = subprocess.run([program, "--list"], cwd=folder, capture_output=True, text=True, check=True).stdout
        for name in re.findall(r"^(\S+): test$", listed, re.M):
            if name.split("::")[-1] in meant.get(os.path.basename(folder), ()):
                yield os.path.basename(folder), name, program, folder


def limited():
    try:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError):
        pass  # not on every system


def run(name, program, folder, runs):
    """Seconds, peak bytes, and what went wrong or an empty text."""
    environment = dict(os.environ, WHEREFROM_FUZZ_RUNS=str(runs), MALLOC_ARENA_MAX="2")
    with tempfile.TemporaryFile() as said:
        start = time.monotonic()
        child = subprocess.Popen([program, name, "--exact", "--nocapture"], cwd=folder, env=environment, stdout=said, stderr=said, preexec_fn=limited)
        late = threading.Timer(SECONDS, child.kill)
        late.start()
        _, status, used = os.wait4(child.pid, 0)
        late.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - start
        said.seek(0)
        text = said.read().decode(errors="backslashreplace")
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    wrong = ""
    if child.returncode or "1 passed" not in text:
        wrong = "outlasted its time" if seconds >= SECONDS else f"ended with {child.returncode}"
        print(text[-4000:], file=sys.stderr)
    elif peak >= PEAK:
        wrong = f"held {PEAK / 1e6:.0f} MB or more"
    return seconds, peak, wrong


def main():
    os.chdir(Path(__file__).parent.parent)
    try:
        runs, words = int(sys.argv[1]), sys.argv[2:]
    except (IndexError, ValueError):
        sys.exit(__doc__)
    print("| crate | target | runs | seconds | peak MB | |\n|---|---|---|---|---|---|")
    failed = 0
    for crate, name, program, folder in targets(words):
        own = max(1, runs // 100) if f"{crate} {name.split('::')[-1]}".startswith(SLOW) else runs
        seconds, peak, wrong = run(name, program, folder, own)
        failed += bool(wrong)
        print(f"| {crate.removeprefix('wherefrom-')} | `{name.split('::')[-1]}` | {own:,} | {seconds:.0f} | {peak / 1e6:.0f} | {wrong or 'passed'} |", flush=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
