"""examples/quickstart.ipynb runs from its first cell to its last, and shows what it says it does."""

import os

import nbclient
import nbformat
import pytest

from conftest import REPOSITORY, binary
from test_documents import desk  # noqa: F401  the quickstart has been run in it

NOTEBOOK = "examples/quickstart.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(REPOSITORY / NOTEBOOK, as_version=4)


def test_the_notebook_has_no_outputs(notebook):
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells and all(cell.outputs == [] and cell.execution_count is None for cell in cells)


def test_the_notebook_runs(desk, notebook, monkeypatch):  # noqa: F811
    monkeypatch.setenv("WHEREFROM", str(binary()))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "python"))
    monkeypatch.delenv("WHEREFROM_STORE", raising=False)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    client = nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(desk / "examples")}})
    client.execute()
    said = [
        "".join(output.get("text", "") + "".join(output.get("data", {}).get(kind, "") for kind in ("text/plain", "text/html")) for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    for number, words in [
        (0, "<run of ../pipelines/quickstart.toml: train, "),
        (1, "factbook/kenya/capital"),
        (2, "nats per added copy (38987, 3)"),
        (3, "%  model.layers.3.mlp.down_proj"),
        (4, "(352, 352)"),
        (5, "damping changed"),
        (6, " of the ten strongest stay"),
        (7, "unknown"),
        (8, "<iframe srcdoc="),
    ]:
        assert words in said[number], f"cell {number}: {said[number][:2000]}"
