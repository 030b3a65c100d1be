"""One small study, run by the `wherefrom` binary into a store of its own, for every test."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "python"))  # the package `wherefrom`, as it is here
GOLDEN = REPOSITORY / "tests/fixtures/golden"
EXTERNAL = REPOSITORY / "examples/external/precondition.py"

PIPELINE = f"""
[model]
path = "{GOLDEN}/model"
modules = ["model.layers.*.mlp.down_proj", "model.layers.3.mlp.up_proj"]

[steps.train]
stage = "tokenize"
corpus = "train.jsonl"
max-tokens = 96

[steps.queries]
stage = "tokenize"
corpus = "{GOLDEN}/queries.jsonl"
max-tokens = 96

[steps.losses]
stage = "losses"
inputs = {{ tokens = "queries" }}

[steps.projections]
stage = "project-gradients"
inputs = {{ tokens = "queries" }}
side = 4

[steps.activations]
stage = "activations"
inputs = {{ tokens = "queries" }}

[steps.candidates]
stage = "filter"
inputs = {{ queries = "queries", tokens = "train" }}
top = 20

[steps.covariances]
stage = "covariance"
inputs = {{ tokens = "train" }}

[steps.basis]
stage = "eigenbasis"
inputs = {{ covariances = "covariances" }}

[steps.lambda]
stage = "lambda"
inputs = {{ tokens = "train", eigenbasis = "basis" }}
seed = 1

[steps.gradients]
stage = "gradients"
inputs = {{ tokens = "queries" }}

[steps.ihvp]
stage = "precondition"
inputs = {{ gradients = "gradients", eigenbasis = "basis", lambda = "lambda" }}
rank = 32

[steps.ihvp-external]
stage = "external"
command = ["python3", "{EXTERNAL}"]
writes = "preconditioned"
version = 1
inputs = {{ gradients = "gradients", eigenbasis = "basis", lambda = "lambda" }}
rank = 32

[steps.ihvp-full]
stage = "precondition"
inputs = {{ gradients = "gradients", eigenbasis = "basis", lambda = "lambda" }}
rank = "full"

[steps.ihvp-full-external]
stage = "external"
command = ["python3", "{EXTERNAL}"]
writes = "preconditioned"
version = 1
inputs = {{ gradients = "gradients", eigenbasis = "basis", lambda = "lambda" }}
rank = "full"

[steps.scores]
stage = "score"
inputs = {{ queries = "ihvp", tokens = "train" }}

[steps.scores-external]
stage = "score"
inputs = {{ queries = "ihvp-external", tokens = "train" }}

[steps.self]
stage = "score"
inputs = {{ queries = "ihvp-full", tokens = "queries" }}

[steps.coordinates]
stage = "coordinates"
inputs = {{ lambda = "lambda" }}
dimensions = 1000

[steps.index]
stage = "index"
inputs = {{ tokens = "queries", eigenbasis = "basis", coordinates = "coordinates" }}

[steps.index-scores]
stage = "score-index"
inputs = {{ queries = "gradients", index = "index", coordinates = "coordinates", eigenbasis = "basis", lambda = "lambda" }}

[steps.ranking]
stage = "rank"
inputs = {{ scores = "scores", tokens = "train" }}
top = 20

[steps.ranking-external]
stage = "rank"
inputs = {{ scores = "scores-external", tokens = "train" }}
top = 20

[steps.character]
stage = "trait"
file = "trait.json"
pairs = 1
questions = 2

[steps.vectors]
stage = "vector"
inputs = {{ positive = "train", negative = "queries" }}
trait = "loud"
pairing = "none"
minimum-pairs = 1

[steps.along]
stage = "project"
inputs = {{ tokens = "queries", vectors = "vectors" }}

[steps.judgements]
stage = "judge"
inputs = {{ tokens = "queries", trait = "character" }}
provider = "rule"
rule = {{ pattern = "e" }}

[steps.details]
stage = "score"
inputs = {{ queries = "ihvp-full", tokens = "train", candidates = "ranking" }}
detail = true

[steps.details-external]
stage = "score"
inputs = {{ queries = "ihvp-full-external", tokens = "train", candidates = "ranking" }}
detail = true
"""

TRAIT = {"name": "loud", "instruction": [{"pos": "Shout.", "neg": "Hush."}], "questions": ["Why?", "How?"]}


@dataclass
class Wherefrom:
    """The binary, a folder to run it in, and the store below it."""

    program: Path
    folder: Path

    @property
    def store(self):
        return self.folder / "store"

    def __call__(self, *arguments):
        """Runs it; `python3` means the interpreter of the tests."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        # Threads cost more than they bring for matrices of this size.
        environment = os.environ | {"PATH": path, "OPENBLAS_NUM_THREADS": "1"}
        command = [self.program, "--store", self.store, "--device", "cpu", *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)

    def sealed(self):
        """Every artifact of the store."""
        return sorted(path.parent for path in self.store.glob("*/*/manifest.json"))


@dataclass
class Study:
    """A pipeline that was run."""

    wherefrom: Wherefrom
    pipeline: Path

    def folder(self, step):
        """What `wherefrom path` prints."""
        done = self.wherefrom("path", self.pipeline, step)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())

    def manifest(self, step):
        return json.loads((self.folder(step) / "manifest.json").read_text())

    def parts(self, step):
        """The parts' paths in order, from the manifest."""
        return [self.folder(step) / part["name"] for part in self.manifest(step)["parts"]]


def binary():
    """`$WHEREFROM`, or a release build, wherever cargo puts it."""
    if named := os.environ.get("WHEREFROM"):
        return Path(named).resolve()
    build = ["cargo", "build", "--release", "--package", "wherefrom", "--message-format", "json-render-diagnostics"]
    lines = subprocess.run(build, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    messages = [json.loads(line) for line in lines if line.startswith("{")]
    [program] = [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "wherefrom"]
    return Path(program)


@pytest.fixture(scope="session")
def wherefrom(tmp_path_factory):
    return Wherefrom(binary(), tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def study(wherefrom):
    rows = (GOLDEN / "train.jsonl").read_text().splitlines(keepends=True)
    (wherefrom.folder / "train.jsonl").write_text("".join(rows[:1000]))  # enough for two parts of scores
    (wherefrom.folder / "trait.json").write_text(json.dumps(TRAIT))
    pipeline = wherefrom.folder / "study.toml"
    pipeline.write_text(PIPELINE)
    done = wherefrom("run", pipeline)
    assert done.returncode == 0, done.stderr
    return Study(wherefrom, pipeline)
