"""A program can stand in for a stage, and is refused when it does not do what it says."""

import textwrap

import numpy as np
import pyarrow.parquet as pq
import pytest

import document
from conftest import GOLDEN


def ranking(study, step):
    [part] = study.parts(step)
    return pq.read_table(part).to_pylist()


def influences(study, step):
    """[queries, examples]"""
    rows = [row for part in study.parts(step) for row in pq.read_table(part).to_pylist()]
    rows.sort(key=lambda row: (row["query"], row["example"]))
    return np.array([row["influence"] for row in rows]).reshape(rows[-1]["query"] + 1, -1)


def test_the_external_step_gives_the_same_ranking(study):
    pairs = list(zip(ranking(study, "ranking"), ranking(study, "ranking-external"), strict=True))
    assert len(pairs) > 500
    for own, external in pairs:
        assert {**own, "influence": 0} == {**external, "influence": 0}
        assert external["influence"] == pytest.approx(own["influence"], rel=1e-5)


@pytest.mark.parametrize("own, external", [("scores", "scores-external"), ("details", "details-external")])
def test_the_external_step_gives_the_same_influences(study, own, external):
    own, external = influences(study, own), influences(study, external)
    # Relative to the query's strongest: weak influences are small differences of large terms.
    assert (abs(own - external) <= 1e-5 * abs(own).max(axis=1, keepdims=True)).all()


def test_the_example_of_the_document_runs(study):
    [program] = [block for block in document.blocks("python") if block.startswith("# every.py")]
    [step] = document.blocks("toml")
    (study.wherefrom.folder / "every.py").write_text(program)
    scored = '[steps.scored]\nstage = "score"\ninputs = { queries = "ihvp", tokens = "train", candidates = "some" }\n'
    pipeline = study.wherefrom.folder / "every.toml"
    pipeline.write_text(study.pipeline.read_text() + step + scored)
    done = study.wherefrom("run", pipeline, "--to", "scored")
    assert done.returncode == 0, done.stderr
    examples = study.manifest("train")["summary"]["examples"]
    queries = study.manifest("queries")["summary"]["examples"]
    path = study.wherefrom("path", pipeline, "scored").stdout.strip()
    found = {(row["query"], row["example"]) for row in pq.read_table(f"{path}/part-00000.parquet").to_pylist()}
    every_tenth = {(query, example) for query in range(queries) for example in range(0, examples, 10)}
    assert found and found <= every_tenth


def write(columns, name="part-00000.parquet", **metadata):
    """A program that writes a table."""
    return f"""
        import sys, pyarrow as pa, pyarrow.parquet as pq
        table = pa.table({{{columns}}}).replace_schema_metadata({metadata!r})
        pq.write_table(table, sys.argv[sys.argv.index("--output") + 1] + "/{name}", compression="zstd")
    """


PAIRS = '"query": pa.array([0], pa.uint32()), "example": pa.array([1], pa.uint64())'
SCORE, SOURCE = ', "score": pa.array([1], pa.float32())', ', "source": pa.array(["me"])'

REFUSED = {
    "it fails": (1, "no candidate today", 'raise SystemExit("no candidate today")'),
    "it is killed": (1, "signal", "import os; os.kill(os.getpid(), 9)"),
    "it writes nothing": (2, "nothing was written", "pass"),
    "a value is null": (2, "has nulls", write(PAIRS + SCORE + ', "source": pa.array([None], pa.string())')),
    "a column is missing": (2, "needs a column `score`", write(PAIRS + SOURCE)),
    "a column has another type": (2, "`score` is Int64", write(PAIRS + SOURCE + ', "score": pa.array([1])')),
    "it writes another kind": (2, "wherefrom.kind is `scores`", write(PAIRS + SCORE + SOURCE, **{"wherefrom.kind": "scores"})),
    "it writes no table": (2, "cannot be read", 'import sys; open(sys.argv[-1] + "/part-00000.parquet", "w").write("?")'),
}


def pipeline(study, tmp_path, program):
    """A pipeline with one external step."""
    (tmp_path / "program.py").write_text(textwrap.dedent(program))
    path = tmp_path / "study.toml"
    path.write_text(f"""
        [steps.queries]
        stage = "tokenize"
        corpus = "{GOLDEN}/queries.jsonl"
        tokenizer = "{GOLDEN}/model/tokenizer.json"
        max-tokens = 96
        [steps.some]
        stage = "external"
        command = ["python3", "{tmp_path}/program.py"]
        writes = "candidates"
        version = 1
        inputs = {{ queries = "queries" }}
    """)
    return path


@pytest.mark.parametrize("code, message, program", REFUSED.values(), ids=REFUSED.keys())
def test_a_program_is_refused_when(study, tmp_path, code, message, program):
    path, before = pipeline(study, tmp_path, program), study.wherefrom.sealed()
    done = study.wherefrom("run", path)
    assert message in done.stderr
    assert done.returncode == code
    assert "panicked" not in done.stderr
    assert study.wherefrom.sealed() == before
    assert study.wherefrom("path", path, "some").returncode == 2


def test_a_mended_program_is_run_again(study, tmp_path):
    path = pipeline(study, tmp_path, "raise SystemExit('not yet')")
    assert study.wherefrom("run", path).returncode == 1
    (tmp_path / "program.py").write_text(textwrap.dedent(write(PAIRS + SCORE + SOURCE)))
    done = study.wherefrom("run", path)
    assert done.returncode == 0, done.stderr
    assert study.wherefrom("run", path).stdout.splitlines()[2].split()[:2] == ["some", "cached"]


def test_a_command_that_is_not_there_is_refused(study, tmp_path):
    path = pipeline(study, tmp_path, "")
    path.write_text(path.read_text().replace('"python3"', '"no-such-program"'))
    done = study.wherefrom("run", path)
    assert (done.returncode, "no-such-program" in done.stderr) == (2, True)
