"""The quickstart's curvature sent to an S3 server on loopback by one person and fetched by another."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import boto3
import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("WHEREFROM", ROOT / "target/release/wherefrom"))
PIPELINE = ROOT / "pipelines/quickstart.toml"
STEP = "lambda"
STEPS = ("covariances", "basis", "lambda")
SECRET = "a-key-that-nobody-may-read"


@pytest.fixture(scope="module")
def server():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    moto = subprocess.Popen([Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as there:
                if not there.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        moto.kill()
        moto.wait()


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A store in which the study is made up to its curvature."""
    store = tmp_path_factory.mktemp("first") / "store"
    subprocess.run([PROGRAM, "run", PIPELINE, "--to", STEP, "--store", store], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return store


class Bucket:
    def __init__(self, endpoint, name):
        self.name = name
        self.client = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id="me", aws_secret_access_key=SECRET, region_name="us-east-1")
        self.client.create_bucket(Bucket=name)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            "AWS_ENDPOINT": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": SECRET, "WHEREFROM_REMOTE": f"s3://{name}/studies",
        }  # fmt: skip

    def command(self, verb, store):
        return [PROGRAM, verb, PIPELINE, "--to", STEP, "--store", store]

    def wherefrom(self, verb, store):
        said = subprocess.run(self.command(verb, store), env=self.environment, capture_output=True, text=True)
        assert SECRET not in said.stdout + said.stderr
        return said

    def start(self, verb, store):
        return subprocess.Popen(self.command(verb, store), env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def keys(self):
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return sorted(found["Key"] for page in pages for found in page.get("Contents", []))


@pytest.fixture
def bucket(server, request):
    return Bucket(server, request.node.name.replace("_", "-")[:60].strip("-"))


def contents(store):
    """Every file of what is sealed, by its place in the store."""
    inside = [path for path in store.rglob("*") if path.is_file() and path.suffix != ".lock"]
    kinds = [path for path in inside if "-v" in path.relative_to(store).parts[0]]
    return {path.relative_to(store): path.read_bytes() for path in kinds}


def test_what_one_has_sent_another_fetches(bucket, first, tmp_path):
    said = bucket.wherefrom("push", first)
    assert said.returncode == 0, said.stderr
    assert all("  sent  " in line for line in said.stdout.splitlines())
    assert not [key for key in bucket.keys() if "probe" in key]
    second = tmp_path / "store"
    fetched = bucket.wherefrom("run", second)
    assert fetched.returncode == 0, fetched.stderr
    assert "  made  " not in fetched.stdout
    for step in STEPS:
        assert any(line.startswith(step) and "  fetched  " in line for line in fetched.stdout.splitlines()), fetched.stdout
    assert contents(second) == contents(first)
    again = bucket.wherefrom("push", second)
    assert all("  there  " in line for line in again.stdout.splitlines()), again.stdout


def test_killed_while_sending_and_while_fetching(bucket, first, tmp_path):
    for delay in (0.05, 0.2, 0.5):
        push = bucket.start("push", first)
        time.sleep(delay)
        push.send_signal(signal.SIGKILL)
        push.wait()
    assert bucket.wherefrom("push", first).returncode == 0
    second = tmp_path / "store"
    for delay in (0.05, 0.2, 0.5):
        pull = bucket.start("run", second)
        time.sleep(delay)
        pull.send_signal(signal.SIGKILL)
        pull.wait()
    fetched = bucket.wherefrom("run", second)
    assert fetched.returncode == 0 and "  made  " not in fetched.stdout, fetched.stderr
    assert contents(second) == contents(first)


def test_other_bytes_are_refused(bucket, first, tmp_path):
    assert bucket.wherefrom("push", first).returncode == 0
    part = next(key for key in bucket.keys() if "/lambda-v" in key and not key.endswith("manifest.json"))
    body = bytearray(bucket.client.get_object(Bucket=bucket.name, Key=part)["Body"].read())
    body[9] ^= 1
    bucket.client.put_object(Bucket=bucket.name, Key=part, Body=bytes(body))
    refused = bucket.wherefrom("run", tmp_path / "store")
    assert refused.returncode == 2, refused.stderr
    assert "step `lambda`" in refused.stderr and "another digest" in refused.stderr


def test_two_who_send_at_once(bucket, first, tmp_path):
    own = tmp_path / "own"
    subprocess.run([PROGRAM, "run", PIPELINE, "--to", STEP, "--store", own], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    said = {}
    sending = [threading.Thread(target=lambda store=store: said.update({store: bucket.wherefrom("push", store)})) for store in (first, own)]
    [thread.start() for thread in sending]
    [thread.join() for thread in sending]
    assert [answer.returncode for answer in said.values()] == [0, 0], [answer.stderr for answer in said.values()]
    third = tmp_path / "third"
    fetched = bucket.wherefrom("run", third)
    assert fetched.returncode == 0 and "  made  " not in fetched.stdout, fetched.stderr
    manifests = {path: text for path, text in contents(third).items() if path.name == "manifest.json"}
    assert manifests and all(text in (contents(first)[path], contents(own)[path]) for path, text in manifests.items())


# Twelve megabytes that cannot be packed, in one part: it is sent and fetched in several requests.
LARGE = """
import argparse, json, os
import pyarrow as pa, pyarrow.parquet as pq

parser = argparse.ArgumentParser()
parser.add_argument("--config")
parser.add_argument("--output")
given = parser.parse_args()
request = json.load(open(given.config))
rows, length = 300, 10_000
numbers = pa.Array.from_buffers(pa.uint32(), rows * length, [None, pa.py_buffer(os.urandom(4 * rows * length))])
starts = pa.array(range(0, (rows + 1) * length, length), pa.int32())
table = pa.table({
    "example": pa.array(range(rows), pa.uint64()), "docs": pa.array([["row"]] * rows), "doc_starts": pa.array([[0]] * rows, pa.list_(pa.uint32())),
    "input_ids": pa.ListArray.from_arrays(starts, numbers), "target_mask": pa.array([[False] + [True] * (length - 1)] * rows),
    "text": pa.array(["row"] * rows),
})
metadata = {f"wherefrom.{name}": str(request[name]) for name in ("kind", "version", "key")}
pq.write_table(table.replace_schema_metadata(metadata), given.output + "/part-00000.parquet", compression="zstd")
"""


def test_a_large_file_goes_in_pieces(bucket, tmp_path):
    (tmp_path / "large.py").write_text(LARGE)
    pipeline = tmp_path / "large.toml"
    pipeline.write_text(f'[steps.large]\nstage = "external"\ncommand = ["{sys.executable}", "large.py"]\nwrites = "tokens"\nversion = 1\n')
    first, second = tmp_path / "first", tmp_path / "second"
    subprocess.run([PROGRAM, "run", pipeline, "--store", first], check=True, stdout=subprocess.DEVNULL)
    for verb, store in (("push", first), ("run", second)):
        said = subprocess.run([PROGRAM, verb, pipeline, "--store", store], env=bucket.environment, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
    assert "  fetched  " in said.stdout
    assert contents(second) == contents(first)
    assert max(len(content) for content in contents(first).values()) > 12_000_000


def test_a_bucket_that_is_not_there_and_a_wrong_key(bucket, first, server):
    bucket.environment["WHEREFROM_REMOTE"] = "s3://nobody-made-this/x"
    said = bucket.wherefrom("push", first)
    assert said.returncode != 0 and "nobody-made-this" in said.stderr, said.stderr
