"""A study on three raylets of Ray, one of which is lost in the middle, is the study of one process."""

import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

# Ray's workers have a niceness of 15, and so has what they run: beside other work the test would take for ever.
os.environ.setdefault("RAY_worker_niceness", "0")
ray = pytest.importorskip("ray", reason="needs Ray (pip install ray)")
from ray.cluster_utils import Cluster  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("WHEREFROM", ROOT / "target/release/wherefrom"))
DRIVE = ROOT / "engines/ray/drive.py"
PIPELINE = ROOT / "pipelines/quickstart.toml"
SHARDS = 9
LOOPBACK = "127.0.0.1"
# A process of Ray takes seconds to start, of a busy machine half a minute.
PATIENCE = 900
NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000
UP, SET_FLAGS = 1, 0x8914


@pytest.fixture(scope="module")
def network():
    """A network that holds this process and its children alone: Ray listens on every interface, whatever it is told."""
    kernel = ctypes.CDLL(None, use_errno=True)
    if kernel.unshare(NEW_NETWORK if os.geteuid() == 0 else NEW_USER | NEW_NETWORK):
        pytest.skip(f"no network of its own: {os.strerror(ctypes.get_errno())}")
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh22x", b"lo", UP))


def drive(store, address):
    command = [sys.executable, DRIVE, PIPELINE, "--shards", str(SHARDS), "--store", store, "--wherefrom", PROGRAM, "--address", address]
    # A process of a node has its one processor.
    environment = {**os.environ, "RAYON_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def processes():
    """What runs: number, parent, words."""
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit():
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                yield int(folder.name), parent, (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue


def below(root):
    """The processes that one has started, and those that these have."""
    found, parents = {root}, {process: parent for process, parent, _ in processes()}
    while more := {process for process, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def share_of(nodes, step, driver):
    """Stops a share of a step while it runs on one of these nodes; the node's processes."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and driver.poll() is None:
        running = [process for process, _, words in processes() if words[0] == bytes(PROGRAM) and step in words and b"--shard" in words]
        for process in running:
            for node in nodes:
                if process in (all_of := below(node)):
                    os.kill(process, signal.SIGSTOP)
                    return all_of
        time.sleep(0.05)
    driver.kill()
    raise TimeoutError(f"no share of {step} ran: {driver.communicate()[0]}")


def ranking(store):
    """The ranking of the study in a store, by query, sign and rank."""
    command = [PROGRAM, "path", PIPELINE, "final", "--store", store]
    folder = Path(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
    rows = pq.read_table(sorted(folder.glob("*.parquet"))).to_pylist()
    return {(row["query"], row["sign"], row["rank"]): (row["example"], row["influence"]) for row in rows}


def test_a_node_is_lost_and_the_study_is_that_of_one_process(network, tmp_path):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "node_ip_address": LOOPBACK, "include_dashboard": False})
    store = tmp_path / "store"
    try:
        nodes = [cluster.add_node(num_cpus=1, node_ip_address=LOOPBACK) for _ in range(3)]
        cluster.wait_for_nodes()
        raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
        driver = drive(store, cluster.address)
        try:
            lost = share_of(raylets, b"scores", driver)
            for process in lost:
                os.kill(process, signal.SIGKILL)
            said, _ = driver.communicate(timeout=PATIENCE)
        finally:
            driver.kill()
        assert driver.returncode == 0, said
        assert f"scores: {SHARDS} of {SHARDS} shares" in said and "scores: made" in said, said
        again = drive(store, cluster.address)
        said, _ = again.communicate(timeout=PATIENCE)
        assert again.returncode == 0 and "made" not in said, said
    finally:
        cluster.shutdown()
    one = tmp_path / "one"
    subprocess.run([PROGRAM, "run", PIPELINE, "--store", one], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    many, one = ranking(store), ranking(one)
    assert many.keys() == one.keys() and len(one) > 100
    largest = max(abs(influence) for _, influence in one.values())
    for place, (example, influence) in one.items():
        assert many[place][0] == example, place
        assert abs(many[place][1] - influence) <= 1e-6 * largest
