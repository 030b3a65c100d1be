"""The Python package `wherefrom`: what it returns is what the program wrote, and what goes wrong is an exception by kind."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import wherefrom as wf
from conftest import GOLDEN, REPOSITORY, binary
from wherefrom._program import changes, toml


@pytest.fixture(autouse=True)
def program(monkeypatch):
    monkeypatch.setenv("WHEREFROM", str(binary()))


@pytest.fixture
def made(study):
    """The study of conftest.py, run already: everything is there."""
    with pytest.warns(wf.WherefromWarning, match="parameters outside the embeddings are attributed"):
        return wf.run(study.pipeline, store=study.wherefrom.store, device="cpu", quiet=True)


def test_a_run_has_its_steps_and_what_was_attributed(study, made):
    assert all(step.facts["cached"] for step in made.steps.values())
    assert made.steps["basis"].folder == study.folder("basis")
    assert made.pipeline == study.pipeline and "cpu" in made.device
    assert 0 < made.coverage["attributed"] < made.coverage["total"]


@pytest.mark.parametrize("kind, step", [("scores", "scores"), ("details", "details"), ("ranking", "ranking"), ("tokens", "train")])
def test_tables_are_the_parts(study, made, kind, step):
    expected = pa.concat_tables(pq.read_table(part) for part in study.parts(step))
    store = study.wherefrom.store
    for table in [getattr(made, kind)(step), getattr(wf, kind)(study.pipeline, step, store=store), made[step].table()]:
        assert table.equals(expected)
    assert made[step].kind == kind and made[step].key == study.folder(step).name


def test_columns_and_filters_choose(study, made):
    whole = made.scores("scores")
    few = made.scores("scores", columns=["example", "influence"], filters=pc.field("query") == 3)
    assert few.column_names == ["example", "influence"]
    assert few.num_rows == pc.sum(pc.equal(whole["query"], 3)).as_py() > 0
    assert made["lambda"].table(columns=["module"], filters=[("count", ">", 0)]).column_names == ["module"]
    assert made["lambda"].table(filters=pc.field("count") < 0).num_rows == 0


def test_tables_go_on_to_pandas_polars_and_datasets(made):
    import datasets
    import polars as pl

    ranking = made.ranking("ranking")
    first = ranking["influence"][0].as_py()
    assert ranking.to_pandas()["influence"].iloc[0] == pl.from_arrow(ranking)["influence"][0] == datasets.Dataset(ranking)[0]["influence"] == first


def test_what_is_not_named_is_the_only_one_or_the_last(study, made):
    store = study.wherefrom.store
    assert made.ranking().equals(made.ranking("ranking-external"))
    with pytest.raises(wf.Refused, match="several steps .* write scores; name one of scores, scores-external"):
        wf.scores(study.pipeline, store=store)
    with pytest.raises(wf.Refused, match="`ranking` .* writes ranking, not scores"):
        wf.scores(study.pipeline, "ranking", store=store)
    with pytest.raises(wf.Refused, match="`ranking` .* writes ranking, not scores"):
        made.scores("ranking")
    with pytest.raises(wf.Refused, match="no step .* writes report"):
        wf.report(study.pipeline, store=store)
    with pytest.raises(wf.Refused, match="no step `score`.*known are|no step `score`.*scores"):
        wf.path(study.pipeline, "score", store=store)


def test_metadata_name_the_modules(made):
    metadata = made["details"].metadata
    modules = json.loads(metadata["modules"])
    assert metadata["unit"] == "nats per added copy"
    assert all(len(row) == len(modules) for row in made.details("details")["by_module"].to_pylist())


def test_factors_are_views_of_mapped_files(study, made):
    rows = list(wf.factors(study.pipeline, "basis", store=study.wherefrom.store).rows())
    table = made["basis"].table().to_pylist()
    assert len(rows) == len(table)
    for row, expected in zip(rows, table, strict=True):
        assert [row[name] for name in ["module", "side", "shared_with"]] == [expected[name] for name in ["module", "side", "shared_with"]]
        np.testing.assert_array_equal(row["vectors"].ravel(), np.float32(expected["vectors"]))
        assert row["vectors"].shape == tuple(expected["shape"]) and row["values"].shape == (expected["shape"][0],)
        assert not row["vectors"].flags.owndata and not row["vectors"].flags.writeable


def test_rows_are_chosen_by_module_and_number(made):
    # The up projection reads what the gate projection reads, and has its covariance.
    [shared] = made["covariances"].rows(module="model.layers.3.mlp.up_proj", side="activation")
    assert shared["module"] == "model.layers.3.mlp.up_proj" or shared["shared_with"] == ["model.layers.3.mlp.up_proj"]
    [fitted] = made["lambda"].rows(module="model.layers.3.mlp.up_proj")
    assert fitted["lambda"].shape == (352, 128)
    gradients = list(made["gradients"].rows(example=2))
    assert len(gradients) == len(made["lambda"].table())
    assert all(row["left"].shape[1] == row["right"].shape[1] == row["rank"] for row in gradients)
    [whole] = made["ihvp-full"].rows(query=0, module="model.layers.3.mlp.up_proj")
    assert whole["left"].shape == (352, 128) and whole["right"].size == 0
    streams = next(made["activations"].rows())
    assert streams["all_mean"].shape == tuple(streams["shape"])
    with pytest.raises(wf.Refused, match="lambda has no column `moduel`"):
        list(made["lambda"].rows(moduel="x"))
    with pytest.raises(wf.Refused, match="`basic`.*its steps are .*basis"):
        made["basic"]


def test_reduced_factors_come_widened(study, made):
    with pytest.warns(wf.WherefromWarning):
        halved = wf.run(
            study.pipeline, to="lambda", store=study.wherefrom.store, device="cpu", quiet=True, steps={"lambda": {"store": "f16"}}
        )
    for row, exact in zip(halved["lambda"].rows(), made["lambda"].rows(), strict=True):
        assert row["lambda"].dtype == np.float32 and row["lambda"].shape == exact["lambda"].shape
        np.testing.assert_allclose(row["lambda"], exact["lambda"], rtol=1e-3, atol=1e-6 * exact["lambda"].max())


def test_knobs_are_changed_as_the_file_has_them():
    nested = {"steps": {"ihvp": {"damping": 0.01, "inputs": {"lambda": "other"}}}, "model": {"modules": ["a.*", "b"]}}
    assert changes(nested) == [
        ("steps.ihvp.damping", 0.01),
        ("steps.ihvp.inputs.lambda", "other"),
        ("model.modules", ["a.*", "b"]),
    ]
    assert changes({"steps.ihvp.damping": {"relative": 0.1}}) == [("steps.ihvp.damping", {"relative": 0.1})]


@pytest.mark.parametrize(
    "value", [True, 3, -0.5, 1e-30, "a \"quoted\" \\ 한국어 \n \x7f", ["x", 1], {"relative": 0.1, "a b": [True]}, Path("/a b"), np.float32(0.25)]
)
def test_values_are_toml(value):
    import tomllib

    read = tomllib.loads(f"value = {toml(value)}")["value"]
    assert read == (str(value) if isinstance(value, Path) else value)


def test_a_value_that_toml_lacks_is_refused():
    with pytest.raises(wf.Refused, match="None"):
        toml({"a": None})


def test_a_plan_says_what_is_missing(study):
    store = study.wherefrom.store
    plan = wf.plan(study.pipeline, store=store, device="cpu", steps={"ihvp": {"damping": 0.7}})
    assert plan.steps["lambda"].facts["state"] == "cached"
    assert plan.steps["scores"].facts["state"] == "missing"
    with pytest.raises(wf.Refused, match=r"`scores` .* not made yet; wherefrom.run\("):
        plan["scores"]
    with pytest.raises(wf.Refused, match="`scores` is not made yet"):
        wf.path(study.pipeline, "scores", store=store, steps={"ihvp": {"damping": 0.7}})
    page = plan._repr_html_()
    assert page.count("<tr>") == len(plan.steps) + 1 and "tex2jax_ignore" in page


def test_what_is_refused_is_a_value_error_with_the_programs_words(study, tmp_path):
    with pytest.raises(ValueError, match="cannot read the pipeline .*nowhere.toml") as caught:
        wf.run(tmp_path / "nowhere.toml")
    assert isinstance(caught.value, wf.Refused) and not str(caught.value).startswith("error")
    with pytest.raises(wf.Refused, match="damping -1 is out of range"):
        wf.plan(study.pipeline, store=study.wherefrom.store, steps={"ihvp": {"damping": -1}})
    with pytest.raises(wf.Refused):
        wf.run(study.pipeline, memory="much")
    with pytest.raises(wf.Refused):
        wf.open(tmp_path)


def test_a_failure_and_another_format_are_told_from_refusals(monkeypatch, tmp_path):
    def stand_in(body):
        program = tmp_path / "stand-in"
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        monkeypatch.setenv("WHEREFROM", str(program))

    stand_in('echo "error: earlier" >&2; echo progress >&2; echo "error: the last" >&2; echo "  and its lines" >&2; exit 1')
    with pytest.raises(wf.Failed, match="^the last\n  and its lines$") as caught:
        wf.run("x.toml")
    assert not isinstance(caught.value, ValueError)
    stand_in("kill -9 $$")
    with pytest.raises(wf.Failed, match="SIGKILL.*memory"):
        wf.run("x.toml")
    stand_in("exit 130")
    with pytest.raises(KeyboardInterrupt):
        wf.run("x.toml")
    stand_in("echo '{\"format\": 2}'")
    with pytest.raises(wf.Failed, match="format 2"):
        wf.run("x.toml")


def test_progress_is_python_s_output_and_warnings_are_warnings(monkeypatch, tmp_path, capsys):
    program = tmp_path / "stand-in"
    program.write_text('#!/bin/sh\necho "step 1 of 2" >&2\necho "warning: thin" >&2\necho \'{"format":1,"pipeline":"x","steps":[]}\'\n')
    program.chmod(0o755)
    monkeypatch.setenv("WHEREFROM", str(program))
    with pytest.warns(wf.WherefromWarning, match="^thin$") as caught:
        wf.run("x.toml")
    assert capsys.readouterr().err == "step 1 of 2\n"
    assert caught[0].filename == __file__, "it points at the caller"
    with pytest.warns(wf.WherefromWarning):
        wf.run("x.toml", quiet=True)
    assert capsys.readouterr().err == ""


def test_an_interrupt_reaches_the_program(tmp_path):
    program = tmp_path / "stand-in"
    program.write_text(f"#!/bin/sh\ntrap 'echo stopped > {tmp_path}/said; exit 130' INT\necho started >&2\nwhile :; do sleep 0.05; done\n")
    program.chmod(0o755)
    environment = os.environ | {"WHEREFROM": str(program), "PYTHONPATH": str(REPOSITORY / "python")}
    code = "import wherefrom\ntry: wherefrom.run('x.toml')\nexcept KeyboardInterrupt: print('interrupted')"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    # As a notebook does: the signal goes to Python alone.
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes) as python:
        assert python.stderr.readline() == "started\n"
        python.send_signal(signal.SIGINT)
        assert python.stdout.read() == "interrupted\n"
    assert (tmp_path / "said").read_text() == "stopped\n"


def test_the_program_is_found_where_installers_put_it(monkeypatch, tmp_path):
    """In a virtual environment, below --prefix and --target; then on the path."""
    monkeypatch.delenv("WHEREFROM")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for package, scripts in [(f"prefix/lib/{version}/site-packages", "prefix/bin"), ("target", "target/bin"), ("alone", "path")]:
        shutil.copytree(REPOSITORY / "python/wherefrom", tmp_path / package / "wherefrom")
        program = tmp_path / scripts / "wherefrom"
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\necho found \"$@\"\n")
        program.chmod(0o755)
        path = f"{tmp_path}/path:/usr/bin:/bin" if scripts == "path" else "/usr/bin:/bin"
        environment = {"PYTHONPATH": str(tmp_path / package), "PATH": path}
        code = "import wherefrom; print(wherefrom.find_binary())"
        found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert found.stdout.strip() == str(program)
        done = subprocess.run([sys.executable, "-m", "wherefrom", "a", "b c"], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == "found a b c\n"
    code = "import wherefrom\ntry: wherefrom.find_binary()\nexcept wherefrom.NotInstalled as error: print(error)"
    environment = {"PYTHONPATH": str(tmp_path / "alone"), "PATH": "/usr/bin:/bin"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "install the wheel" in found.stdout and str(tmp_path / "alone/bin") in found.stdout
    monkeypatch.setenv("WHEREFROM", "/nowhere/wherefrom")
    with pytest.raises(wf.NotInstalled, match="WHEREFROM=/nowhere/wherefrom is no file"):
        wf.find_binary()


def test_a_report_is_shown_in_a_frame(tmp_path):
    page = tmp_path / "index.html"
    page.write_text('<!DOCTYPE html><html><head><title>a "b" & $x$</title></head></html>', encoding="utf-8")
    report = wf.Report(page)
    frame = report._repr_html_()
    assert frame.startswith("<iframe srcdoc=\"") and "&quot;b&quot; &amp; $x$" in frame and "<title>" not in frame
    assert os.fspath(report) == str(page) and "open" not in frame.split("</iframe>")[1]
    (tmp_path / "query-00001.js").touch()
    assert str(page) in report._repr_html_().split("</iframe>")[1]


def test_kinds_without_rows_say_where_their_files_are(tmp_path):
    artifact = wf.Artifact(tmp_path, {"kind": "model", "key": "0" * 32, "parts": [{"name": "model.safetensors"}], "summary": {}})
    with pytest.raises(wf.Refused, match="model is no table but files in"):
        artifact.table()


def test_the_package_has_the_version_of_the_program():
    import tomllib

    said = subprocess.run([binary(), "--version"], capture_output=True, text=True, check=True).stdout
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    # maturin takes it from Cargo.toml.
    assert "version" in project["dynamic"] and said == f"wherefrom {tomllib.loads((REPOSITORY / 'Cargo.toml').read_text())['workspace']['package']['version']}\n"
