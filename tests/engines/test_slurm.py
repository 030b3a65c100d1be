"""A study on three nodes of Slurm, one of which is lost in the middle, is the study of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import cluster

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("WHEREFROM", ROOT / "target/release/wherefrom"))
SUBMIT = ROOT / "engines/slurm/submit.py"
PIPELINE = ROOT / "pipelines/quickstart.toml"
SHARDS = 9


def submit(store, *words, environment=None):
    command = [sys.executable, SUBMIT, PIPELINE, "--shards", str(SHARDS), "--store", store, "--wherefrom", PROGRAM, *words]
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert said.returncode == 0, said.stderr
    return said.stdout.splitlines()


def ranking(store):
    """The ranking of the study in a store, by query, sign and rank."""
    command = [PROGRAM, "path", PIPELINE, "final", "--store", store]
    folder = Path(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
    rows = pq.read_table(sorted(folder.glob("*.parquet"))).to_pylist()
    return {(row["query"], row["sign"], row["rank"]): (row["example"], row["influence"]) for row in rows}


def test_a_dry_run_prints_arrays_chained_by_dependencies(tmp_path):
    lines = submit(tmp_path / "store", "--dry-run", "--partition", "all", "--sbatch=--account=a")
    jobs = [line for line in lines if line.startswith("sbatch ")]
    arrays = [line for line in jobs if f"--array=0-{SHARDS - 1}" in line]
    assert arrays and len(jobs) > len(arrays)
    for line in jobs:
        assert "--requeue" in line and "--kill-on-invalid-dep=yes" in line and "--partition=all" in line and "--account=a" in line
    scan = [line for line in jobs if "--job-name=wherefrom-scores" in line]
    assert len(scan) == 2 and all("--dependency=afterok:" in line for line in scan), scan
    assert all("SLURM_ARRAY_TASK_ID" in line for line in arrays)


@pytest.mark.skipif(bool(cluster.missing()), reason="needs Slurm (Debian, Ubuntu: apt install slurm-wlm munge)")
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="the nodes' daemons run as root")
def test_a_node_is_lost_and_the_study_is_that_of_one_process(tmp_path):
    slurm = cluster.Cluster(tmp_path)
    store = tmp_path / "store"
    try:
        # A process of a node has its one processor.
        environment = {**slurm.environment, "RAYON_NUM_THREADS": "1"}
        submit(store, environment=environment)
        # A shard of the scan runs on a node that is lost, whichever it is.
        found = []
        slurm.until(lambda: found.append(cluster.running("scores")) or found[-1], 240)
        job, node = found[-1]
        slurm.lose(node)
        slurm.until(lambda: job in slurm.jobs("PENDING"), 30)
        slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
        slurm.until(lambda: not slurm.jobs("PENDING,RUNNING,COMPLETING"), 240)
        assert submit(store, environment=environment) == ["nothing is missing"]
    finally:
        slurm.stop()
    one = tmp_path / "one"
    subprocess.run([PROGRAM, "run", PIPELINE, "--store", one], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    many, one = ranking(store), ranking(one)
    assert many.keys() == one.keys() and len(one) > 100
    largest = max(abs(influence) for _, influence in one.values())
    for place, (example, influence) in one.items():
        assert many[place][0] == example, place
        assert abs(many[place][1] - influence) <= 1e-6 * largest
