"""The documents keep their word: their commands run, their links lead somewhere, their times agree.

Every line of every ```sh block is run, in the order of its document, in a copy of the repository where the quickstart has been
run, unless NOT_RUN names it with a reason. What is not run is parsed: by the program, and by `just`. A ```python block is run
where it stands; a ```text block right below it is what it prints. A ```text block with queries is what a run prints. A block whose first line is `# NAME` is a file of that name.
"""

import math
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from conftest import REPOSITORY, binary

FOLDERS = ["", "data", "docs", "pipelines", "tests/fixtures/golden"]
DOCUMENTS = [path.relative_to(REPOSITORY) for folder in FOLDERS for path in sorted((REPOSITORY / folder).glob("*.md"))]

# What a command has in it, and why it is not run here.
NOT_RUN = {
    r"^cargo install": "fetches and builds",
    r"^just (wheel|test-wheel|test-trainer)$": "builds a wheel, or fetches torch",
    r"^pip install": "wants the wheel; `just test-wheel` installs it",
    r"^just (test|test-python|test-smollm2)$": "builds, and runs every test",
    r"^just (fetch-)?smollm2$": "fetches a model of 94 MB",
    r"^just persona": "fetches that model and lets it write for minutes, or trains a small one",
    r"persona-paper\.toml|OPENAI_API_KEY": "asks an endpoint, and a model of 7B parameters",
    r"^just (slurm|ray|test-slurm)": "wants the program on the path of nodes, or Slurm and Ray",
    r"^just evaluate": "retrains a small model some hundred times",
    r"^just checkpoint$": "trains for 150 s, and replaces a file of the repository",
    r"train-quickstart\.toml|copies\.toml|=\"\$MODEL\"": "trains for 150 s or longer",
    r"external\.toml": "takes about a minute; test_external.py runs the same program",
    r"model\.modules=all": "fits the curvature anew: about a minute",
    r"steps\.(coordinates\.dimensions|top\.top)=": "a larger index, or three times the pairs: about a minute",
    r"evil[._]|export KEY": "names vectors of yours, or of others",
    r"corpus=FILE": "FILE stands for one of yours",
}

FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def text(document):
    return (REPOSITORY / document).read_text()


def blocks(document):
    """(language, text) of each fenced block, in order."""
    return [(language, textwrap.dedent(body)) for _, language, body in FENCE.findall(text(document))]


def commands_of(block):
    """Every command of a ```sh block, without its comment."""
    bare = re.sub(r"(^|\s+)#.*", "", block, flags=re.MULTILINE)
    return [command for line in bare.splitlines() for command in line.strip().split(" && ") if command]


def commands(document):
    """Every command of a document."""
    return [command for language, block in blocks(document) if language == "sh" for command in commands_of(block)]


def reason(command):
    """Why it is not run, or None."""
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, command)), None)


def is_listing(language, body):
    """Whether a block is what a run of the quickstart prints at its end."""
    return language == "text" and bool(re.search(r"^query \d+  ", body, re.MULTILINE))


@pytest.fixture(scope="session")
def desk(tmp_path_factory):
    """A copy of what a reader has, the quickstart run in it, and the program on the path."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ["data/corpora", "data/models/quickstart", "data/queries", "data/traits", "pipelines", "examples", "justfile", "tests/fixtures/golden"]:
        source, target = REPOSITORY / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    (folder / "data/store").mkdir()
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").touch()  # python3 is the interpreter of the tests
    # What a reader brings: README.md asks `init` for a pipeline of it, docs/studies.md has one that is complete.
    [complete] = [body for language, body in blocks("docs/studies.md") if language == "toml" and "mine.jsonl" in body]
    (folder / "pipelines/complete.toml").write_text(complete)
    (folder / "data/models/mine").symlink_to("quickstart")
    for kind, rows in [("corpora", 200), ("queries", 2)]:
        lines = (folder / f"data/{kind}/quickstart.jsonl").read_text().splitlines(keepends=True)[:rows]
        (folder / f"data/{kind}/mine.jsonl").write_text("".join(lines))

    program = binary()
    script(folder / "bin/wherefrom", f'exec {program} "$@"')
    script(folder / "bin/python3", f'exec {sys.executable} "$@"')
    # `just` runs its recipes as they are; what they build is there.
    script(folder / "bin/cargo", 'while [ "$1" != -- ]; do [ $# != 0 ]; shift; done; shift; exec wherefrom "$@"')
    # With --help the program takes the arguments apart, refuses what it does not know, and does nothing.
    script(folder / "parse/wherefrom", f'{program} "$@" --help >&2')
    script(folder / "parse/cargo", "true")
    script(folder / "parse/pip", "true")
    script(folder / "parse/just", f"""
        recipe=$({shutil.which("just")} --dry-run "$@" 2>&1) || {{ echo "$recipe" >&2; exit 1; }}
        echo "$recipe" | sed -n 's/^cargo run .* -- //p' | while read -r line; do eval "wherefrom $line" || exit 1; done""")
    done = run(folder, "bin", "wherefrom run pipelines/quickstart.toml && wherefrom run pipelines/complete.toml")
    assert done.returncode == 0, done.stderr
    return folder


def script(path, body):
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/usr/bin/env bash\nset -e\n" + textwrap.dedent(body) + "\n")
    path.chmod(0o755)


def run(folder, programs, body):
    """Runs shell commands in the folder; they stop at the first that fails."""
    start = f'set -eo pipefail; export PATH="{folder}/{programs}:$PATH" OPENBLAS_NUM_THREADS=1 PYTHONPATH="{REPOSITORY}/python"; unset WHEREFROM_STORE\n'
    return subprocess.run(["bash", "-c", start + body], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if any(not reason(c) for c in commands(d))], ids=str)
def test_commands_run(desk, document):
    body, expected = "", []
    pairs = blocks(document)
    for place, (language, block) in enumerate(pairs):
        if named := re.match(r"# ([\w./-]+\.(?:toml|py|jsonl))\n", block):
            (desk / named[1]).write_text(block)
        elif language == "sh":
            for command in commands_of(block):
                if not reason(command):
                    body += f"echo {quoted(command)} >&2\n{{ {command}; }} > {desk}/out\n"
        elif language == "python" and document.name != "FORMAT.md":
            (desk / f"block-{place}.py").write_text(block)
            body += f"echo 'python, block {place}' >&2\npython3 block-{place}.py > {desk}/printed-{place}\n"
            if pairs[place + 1 : place + 2] and pairs[place + 1][0] == "text":
                expected.append((desk / f"printed-{place}", pairs[place + 1][1]))
    done = run(desk, "bin", body)
    assert done.returncode == 0, done.stderr[-2000:]
    for path, printed in expected:
        assert path.read_text() == printed


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if any(reason(c) for c in commands(d))], ids=str)
def test_commands_that_are_not_run_are_parsed(desk, document):
    for command in commands(document):
        if reason(command):
            done = run(desk, "parse", command)
            assert done.returncode == 0, f"{command}: {done.stderr[-1000:]}"


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if any(is_listing(*block) for block in blocks(d))], ids=str)
def test_listings_are_what_a_run_prints(desk, document):
    done = run(desk, "bin", "wherefrom run pipelines/quickstart.toml")
    assert done.returncode == 0, done.stderr
    printed, of_query = {}, None
    for line in done.stdout.splitlines():
        of_query = line if line.startswith("query ") else of_query
        printed.setdefault(of_query, []).append(line)
    shown, of_query = 0, None
    for line in "".join(body for language, body in blocks(document) if is_listing(language, body)).splitlines():
        of_query = line if line.startswith("query ") else of_query
        assert any(same(line, other) for other in printed[of_query]), f"{line!r} is not among {printed[of_query]}"
        shown += bool(rank(line))
    assert shown > 0


def rank(line):
    """Of a passage's line its rank, its influence, and the rest; or None."""
    return re.match(r" *([+-]\d+) +([+-][\d.e+-]+) +(.*)", line)


def same(line, other):
    """Whether a document's line is one that was printed, or its beginning and `…`; machines differ in an influence's last figure."""
    ours, theirs = rank(line), rank(other)
    if ours and theirs:
        line, other = f"{ours[1]} {ours[3]}", f"{theirs[1]} {theirs[3]}"
        if not math.isclose(float(ours[2]), float(theirs[2]), rel_tol=0.002):
            return False
    return line == other or line.endswith("…") and other.startswith(line.removesuffix("…"))


def quoted(command):
    return "'" + command.replace("'", "'\\''") + "'"


def test_every_reason_is_needed():
    found = [command for document in DOCUMENTS for command in commands(document)]
    assert [pattern for pattern in NOT_RUN if not any(re.search(pattern, command) for command in found)] == []


def anchors(document):
    """What GitHub makes of the headings."""
    found = []
    for heading in re.findall(r"^#{1,6} (.*)$", FENCE.sub("", text(document)), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_somewhere(document):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text(document))):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (REPOSITORY / document.parent / path) if path else REPOSITORY / document
        if not place.exists() or (anchor and anchor not in anchors(place.resolve().relative_to(REPOSITORY))):
            broken.append(target)
    assert broken == []


def test_times_are_those_of_the_list_of_pipelines():
    listed = text("pipelines/README.md")
    times = dict(re.findall(r"^\| \[([\w-]+)\]\([\w-]+\.md\) \| .* \| (.*) \|$", listed, re.MULTILINE))
    assert len(times) == len(list((REPOSITORY / "pipelines").glob("*.md"))) - 1
    for name, time in times.items():
        assert time in text(f"pipelines/{name}.md"), f"pipelines/{name}.md does not say {time}"
    allowed = " ".join([*times.values(), re.search(r"first build takes (.*)\. ", listed)[1]])
    for document in [*(d for d in DOCUMENTS if d.name != "CHANGELOG.md"), Path("justfile")]:
        for time in re.findall(r"((?:\d+ to )?\d+ (?:s|min|minutes|seconds))\b[^.\d]{0,20} on 2 cores", text(document)):
            assert time in allowed, f"{document} says {time}, and pipelines/README.md {allowed}"
