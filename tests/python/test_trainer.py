"""What `transformers.Trainer` wrote by `wherefrom.trainer.KeepCheckpoints` is read, and comes to what float64 says: GPT-2, whose
maps lie transposed and have biases. tests/fixtures/trainer/make_fixture.py made the folder."""

import shutil

import numpy as np
import pytest

import wherefrom as wf
from conftest import REPOSITORY, binary

FIXTURE = REPOSITORY / "tests/fixtures/trainer"
PARTS = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
PIPELINE = """
[model]
path = "model"
modules = "all"

[steps.train]
stage = "tokenize"
corpus = "corpus.jsonl"
max-tokens = 16

[steps.queries]
stage = "tokenize"
corpus = "queries.jsonl"
max-tokens = 16

[steps.moments]
stage = "moments"

[steps.tracin]
stage = "gradient-products"
inputs = { queries = "queries", tokens = "train" }
checkpoints = true
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WHEREFROM", str(binary()))
    shutil.copytree(FIXTURE, tmp_path / "study")
    (tmp_path / "study/study.toml").write_text(PIPELINE)
    return tmp_path / "study"


def run(folder, **arguments):
    return wf.run(folder / "study.toml", store=folder / "store", device="cpu", quiet=True, **arguments)


def test_moments_and_tracin_are_those_of_float64(folder):
    done, expected = run(folder), np.load(FIXTURE / "expected.npz")
    rows = {row["module"].removeprefix("transformer.h.0."): row for row in done["moments"].rows()}
    assert list(rows) == PARTS
    for part, row in rows.items():
        np.testing.assert_allclose(row["lambda"], expected[part], rtol=0, atol=1e-5 * expected[part].max(), err_msg=part)
    # Were the square map taken as it lies, it would be another.
    square = expected["attn.c_proj"][:, :-1]
    assert abs(square - square.T).max() > 0.1 * square.max()
    scores = done.scores("tracin")
    found = np.zeros_like(expected["tracin"])
    found[scores["query"].to_numpy(), scores["example"].to_numpy()] = scores["influence"].to_numpy()
    np.testing.assert_allclose(found, expected["tracin"], rtol=0, atol=1e-5 * abs(expected["tracin"]).max())


def test_checkpoints_are_in_the_key(folder):
    before = run(folder)
    listed = folder / "model/checkpoints.json"
    listed.write_text(listed.read_text().replace("}", "").rstrip().rstrip(",") + ', "999": 0.5}')
    with pytest.raises(wf.Refused, match="step 999 is listed, and there is no folder checkpoints/000999.*checkpoints.json"):
        run(folder)
    shutil.copy(FIXTURE / "model/checkpoints.json", listed)
    assert all(step.facts["cached"] for step in run(folder).steps.values())
    moments = folder / "model/checkpoints/000006/optimizer.safetensors"
    shutil.copy(folder / "model/checkpoints/000004/optimizer.safetensors", moments)
    again = run(folder)
    assert again.steps["moments"].key != before.steps["moments"].key
    assert again.steps["train"].key == before.steps["train"].key


@pytest.mark.parametrize(
    "text, why",
    [("{", "not JSON"), ("[1]", "no object of learning rates"), ('{"2": -1}', "learning rate -1"), ("{}", "is empty")],
)
def test_a_list_that_is_none_is_refused(folder, text, why):
    (folder / "model/checkpoints.json").write_text(text)
    with pytest.raises(wf.Refused, match=why):
        run(folder)


def test_moments_that_are_none_are_refused(folder):
    path = folder / "model/checkpoints/000006/optimizer.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:500])
    with pytest.raises(wf.Refused, match="holds no moments.*optimizer.safetensors"):
        run(folder)
    # The square map is [8, 8] either way; the wide one is not.
    path.write_bytes(whole.replace(b'"second/transformer.h.0.mlp.c_fc.weight"', b'"second/transformer.h.0.mlp.c_xx.weight"'))
    with pytest.raises(wf.Refused, match="no moment of transformer.h.0.mlp.c_fc.weight.*leave it out"):
        run(folder)
    shape = b'"second/transformer.h.0.mlp.c_fc.weight":{"dtype":"F32","shape":[32,8]'
    assert shape in whole
    path.write_bytes(whole.replace(shape, shape.replace(b"[32,8]", b"[8,32]")))
    with pytest.raises(wf.Refused, match=r"c_fc.weight has shape \[8, 32\], and not \[32, 8\]"):
        run(folder)
    path.unlink()
    with pytest.raises(wf.Refused, match="optimizer.safetensors"):
        run(folder)
    shutil.rmtree(folder / "model/checkpoints")
    (folder / "model/checkpoints.json").unlink()
    with pytest.raises(wf.Refused, match="keeps no checkpoints"):
        run(folder)
