"""The lines that wherefrom gives for what it does not read: they run as they are, and what they write is read.

Not run here are those that need torch: of pickled weights (`.bin`, `.pt`), and of adapters (PEFT).
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pandas as pd
import pytest
from conftest import GOLDEN

# What a reader of numbers and nulls would take for something else stands there as text.
ROWS = [{"text": "In the beginning", "id": "007", "source": "NA"}, {"text": "and the earth,\n\"void\"", "id": "1e5", "source": ""}]
TABLE = pd.DataFrame(ROWS)


def saved_to_disk(path):
    datasets.Dataset.from_pandas(TABLE).save_to_disk(path.parent / "saved")
    (path.parent / "saved").rename(path.parent / "it's saved")
    return next((path.parent / "it's saved").glob("*.arrow"))


WRITERS = {
    "rows.csv": lambda path: TABLE.to_csv(path, index=False),
    "rows.csv.gz": lambda path: TABLE.to_csv(path, index=False),
    "rows.tsv": lambda path: TABLE.to_csv(path, sep="\t", index=False),
    "rows.xlsx": lambda path: TABLE.to_excel(path, index=False),
    "rows.pkl": lambda path: TABLE.to_pickle(path),
    "list.pickle": lambda path: pd.to_pickle(ROWS, path),
    "rows.orc": lambda path: TABLE.to_orc(path),
    "rows.feather": lambda path: TABLE.to_feather(path),
    "rows.arrow": lambda path: TABLE.to_feather(path),
    "saved.arrow": saved_to_disk,
}


@pytest.fixture
def plan(wherefrom, tmp_path):
    """The corpus' rows as tokens, and what is said of it."""

    def plan(corpus):
        pipeline = tmp_path / "p.toml"
        pipeline.write_text(
            f"[model]\npath = {json.dumps(str(GOLDEN / 'model'))}\n[steps.rows]\nstage = \"tokenize\"\nmax-tokens = 64\n"
            f"corpus = {json.dumps(str(corpus))}\n[steps.columns]\nstage = \"columns\"\nkeep = [\"source\"]\n"
            "inputs = { tokens = \"rows\" }\n"
        )
        return wherefrom("run", pipeline), wherefrom, pipeline

    return plan


@pytest.mark.parametrize("name", WRITERS)
def test_a_table_is_converted(plan, tmp_path, name):
    folder = tmp_path / "a reader's folder"
    folder.mkdir()
    path = WRITERS[name](folder / name) or folder / name  # where it lies, if that is elsewhere
    # What has the name already is not written over.
    taken = path.parent / "rows.jsonl"
    taken.write_text("mine")
    refused, *_ = plan(path)
    assert refused.returncode == 2 and " is not read; " in refused.stderr, refused.stderr
    there = re.search(r"and give (.*?): (python3 -c .*)$", refused.stderr, re.MULTILINE)
    converted, line = there[1], there[2]
    line = line.replace("python3", sys.executable, 1)
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == 0, f"{line}: {done.stderr}"
    assert taken.read_text() == "mine"
    made, wherefrom, pipeline = plan(converted)
    assert made.returncode == 0, made.stderr
    for step, column, expected in [("rows", "text", "text"), ("columns", "doc", "id"), ("columns", "source", "source")]:
        [part] = Path(wherefrom("path", pipeline, step).stdout.strip()).glob("*.parquet")
        table = pd.read_parquet(part)
        assert list(table[column].map(lambda cell: cell if isinstance(cell, str) else cell[0])) == [row[expected] for row in ROWS]


@pytest.mark.parametrize(
    ("content", "tool"),
    [
        (json.dumps(ROWS, indent=1).encode(), "jq"),
        (("\n".join(json.dumps(row, indent=1) for row in ROWS)).encode(), "jq"),
        ("\n".join(json.dumps(row) for row in ROWS).encode("utf-16"), "iconv"),
        ("\r".join(json.dumps(row) for row in ROWS).encode(), "tr"),
    ],
)
def test_a_text_file_is_converted(plan, tmp_path, content, tool):
    if not shutil.which(tool):
        pytest.skip(f"there is no {tool}")
    path, to = tmp_path / "rows.jsonl", tmp_path / "converted.jsonl"
    path.write_bytes(content)
    refused, *_ = plan(path)
    line = next(line for line in re.findall(r"`(.*?)`", refused.stderr) if line.startswith(f"{tool} "))
    done = subprocess.run(["bash", "-c", f"{line} < {path} > {to}"], capture_output=True, text=True)
    assert done.returncode == 0, f"{line}: {done.stderr}"
    made, *_ = plan(to)
    assert made.returncode == 0, made.stderr
