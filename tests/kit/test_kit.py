"""The GPU kit that `just gpu-kit` made: on software Vulkan, and where there is no driver at all."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

KIT = Path(os.environ.get("KIT", Path(__file__).parents[2] / "target/gpu-kit"))


def run(folder, *words, **variables):
    start = time.monotonic()
    done = subprocess.run(
        [KIT / "run.sh", folder, *words],
        env={**os.environ, "CUBECL_AUTOTUNE_LEVEL": "minimal", "PYTHON": "false", **variables},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    report = json.loads((folder / "report.json").read_text())
    return done, report, time.monotonic() - start


def test_it_is_small_and_whole():
    # Without what a start has unpacked.
    files = [path for path in KIT.rglob("*") if path.is_file() and path.name != "wherefrom-bench"]
    assert sum(path.stat().st_size for path in files) < 60e6
    names = {path.relative_to(KIT).as_posix() for path in files}
    assert {"run.sh", "README.md", "commit.txt", "lib/libvulkan.so.1", "lib/LICENSE-APACHE", "golden/train.jsonl"} <= names
    assert "Apache" in (KIT / "lib/COPYRIGHT").read_text()


def test_without_a_driver_it_says_what_is_missing(tmp_path):
    # Unpacked by the first start; the second is timed.
    for _ in range(2):
        done, report, _ = run(tmp_path / "report", VK_DRIVER_FILES="/nowhere.json", VK_ICD_FILENAMES="/nowhere.json")
    assert done.returncode == 2
    assert report["adapters"] == [] and report["device"] is None
    assert "missing: a driver's ICD file" in done.stdout
    assert report["looked_seconds"] < 1
    assert "nvidia_smi" in report and "torch" in report
    assert "missing" in (tmp_path / "report/report.md").read_text()


def test_in_a_container_for_computing_it_says_which_capability_is_missing(tmp_path):
    smi = tmp_path / "bin/nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho 'NVIDIA H100, GPU-1, 00000000:5D:00.0, 550.54, 96, 81559 MiB, 1 MiB, 9.0'\n")
    smi.chmod(0o755)
    path = f"{smi.parent}:{os.environ['PATH']}"
    nowhere = {"VK_DRIVER_FILES": "/nowhere.json", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    done, report, _ = run(tmp_path / "report", PATH=path, **nowhere)
    assert done.returncode == 2
    assert "NVIDIA_DRIVER_CAPABILITIES=all" in done.stdout and "now: compute,utility" in done.stdout
    assert report["nvidia_smi"][0]["name"] == "NVIDIA H100"
    assert "81559 MiB" in (tmp_path / "report/report.md").read_text()


def test_where_the_program_does_not_start_it_says_so(tmp_path):
    kit = tmp_path / "kit"
    kit.mkdir()
    for name in ["run.sh", "needs.txt", "commit.txt"]:
        (kit / name).write_bytes((KIT / name).read_bytes())
    (kit / "wherefrom-bench").write_text("#!/bin/sh\necho GLIBC_9.9 not found >&2\nexit 1\n")
    for name in ["run.sh", "wherefrom-bench"]:
        (kit / name).chmod(0o755)
    done = subprocess.run([kit / "run.sh", tmp_path / "report"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "GLIBC_9.9 not found" in done.stderr and (KIT / "needs.txt").read_text().strip() in done.stderr
    assert (tmp_path / "report/log.txt").exists()


def test_on_a_software_adapter_all_of_it_runs_small(tmp_path):
    done, report, seconds = run(tmp_path / "report", "--minutes", "25")
    if not report["adapters"]:
        pytest.skip("needs software Vulkan (Debian: apt install mesa-vulkan-drivers)")
    assert done.returncode == 0, done.stderr + json.dumps(report["failed"])
    assert report["small"] and report["device"] == "gpu:0"
    adapter = report["adapters"][0]
    assert adapter["precisions"][0] == "f32" and adapter["features"]
    by_name = {golden["precision"]: golden for golden in report["golden"]}
    assert set(by_name) == {"f32", "f16"} & set(adapter["precisions"])
    for golden in by_name.values():
        assert 0 < golden["full"] <= golden["bound"] and golden["correlation"] > 0.999
    assert report["ceilings"]["f32"]["flops"] > 1e6
    phases = {phase["phase"]: phase for phase in report["phases"]}
    assert {"forward", "covariance", "lambda", "scan-8", "gradients", "details", "losses", "self-influence"} <= set(phases)
    for name in ["forward", "covariance", "lambda", "scan-8"]:
        assert phases[name]["tokens_per_second"] > 0 and phases[name]["device_bytes"] > 0, name
    page = (tmp_path / "report/report.md").read_text()
    assert "no figure here says anything of a card" in page and "| `scan-8` |" in page
    assert not (tmp_path / "report/store").exists()
    print(f"{seconds:.0f} s")
