"""Studies in many shares of which some are lost, killed or done twice, in any order, are the study of one process.

Minutes: of the quickstart three steps of 512 processes each. `SHARES=64` makes it shorter.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("WHEREFROM", ROOT / "target/release/wherefrom"))
PIPELINE = ROOT / "pipelines/quickstart.toml"
SHARES = int(os.environ.get("SHARES", "512"))
STEPS = ("covariances", "lambda", "scores")
LOST, KILLED, TWICE = 0.1, 0.1, 0.1


def run(*words):
    environment = {**os.environ, "RAYON_NUM_THREADS": "1"}
    said = subprocess.run([PROGRAM, *words], env=environment, capture_output=True, text=True)
    assert said.returncode == 0, (words, said.stderr)
    return said.stdout


def shards(store, step, pipeline=PIPELINE, count=SHARES):
    """What an engine is told of a step; nothing if it is sealed."""
    plan = json.loads(run("plan", pipeline, "--shards", str(count), "--json", "--store", store))
    return next(found for found in plan["steps"] if found["name"] == step)["shards"]


def killed(command, seconds):
    child = subprocess.Popen(command, env={**os.environ, "RAYON_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def folder(store, step, pipeline=PIPELINE):
    return Path(run("path", pipeline, step, "--store", store).strip())


def ranking(store, pipeline=PIPELINE):
    rows = pq.read_table(sorted(folder(store, "final", pipeline).glob("*.parquet"))).to_pylist()
    return {(row["query"], row["sign"], row["rank"]): (row["example"], row["influence"]) for row in rows}


def agree(expected, found):
    """The same ranking, but for two that are closer than influences are compared."""
    assert expected.keys() == found.keys()
    largest = max(abs(influence) for _, influence in expected.values())
    differences = [abs(found[place][1] - influence) / largest for place, (_, influence) in expected.items()]
    others = [place for place, (example, _) in expected.items() if found[place][0] != example]
    print(f"{len(expected)} rows, largest difference {max(differences):.1e} of the largest influence, {len(others)} of another example")
    assert max(differences) < 1e-6
    assert all(abs(expected[place][1] - found[place][1]) < 1e-6 * largest for place in others)


def test_nothing_is_lost_or_counted_twice(tmp_path):
    chance = random.Random(512)
    one, many = tmp_path / "one", tmp_path / "many"
    run("run", PIPELINE, "--to", "final", "--store", one)
    counts = {}
    for step in STEPS:
        told = shards(many, step)
        for before in told["waits_for"]:
            run("run", PIPELINE, "--to", before, "--store", many)
        rounds, processes = 0, 0
        while missing := shards(many, step)["missing"]:
            jobs = []
            for share in missing:
                command = [PROGRAM, *(word.replace("{K}", str(share)) for word in told["share"][1:])]
                fate = chance.random()
                if fate < LOST:
                    continue
                if fate < LOST + KILLED:
                    jobs.append(lambda command=command, seconds=chance.uniform(0, 0.3): killed(command, seconds))
                    continue
                times = 2 if fate < LOST + KILLED + TWICE else 1
                jobs += [lambda command=command: run(*command[1:])] * times
            chance.shuffle(jobs)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                [done.result() for done in [pool.submit(job) for job in jobs]]
            rounds, processes = rounds + 1, processes + len(jobs)
            assert rounds < 20
        run("run", PIPELINE, "--to", step, "--store", many)
        counts[step] = {"rounds": rounds, "processes": processes}
    run("run", PIPELINE, "--to", "final", "--store", many)
    print(json.dumps(counts))
    agree(ranking(one), ranking(many))


# A program that writes a corpus in so many parts, each of which is a unit of work whatever the number of shares.
WRITER = """
import argparse, json, random
import pyarrow as pa, pyarrow.parquet as pq

parser = argparse.ArgumentParser()
parser.add_argument("--config")
parser.add_argument("--output")
given = parser.parse_args()
request = json.load(open(given.config))
config, metadata = request["config"], {f"wherefrom.{name}": str(request[name]) for name in ("kind", "version", "key")}
chance = random.Random(config["seed"])
for part in range(config["units"]):
    numbers = range(part * config["rows"], (part + 1) * config["rows"])
    ids = [[chance.randrange(config["vocabulary"]) for _ in range(chance.randrange(8, 24))] for _ in numbers]
    table = pa.table({
        "example": pa.array(numbers, pa.uint64()), "docs": pa.array([[f"row {number}"] for number in numbers]),
        "doc_starts": pa.array([[0] for _ in numbers], pa.list_(pa.uint32())), "input_ids": pa.array(ids, pa.list_(pa.uint32())),
        "target_mask": pa.array([[False] + [True] * (len(row) - 1) for row in ids]), "text": pa.array([f"row {number}" for number in numbers]),
    })
    pq.write_table(table.replace_schema_metadata(metadata), f"{given.output}/part-{part:05}.parquet", compression="zstd")
"""
STUDY = """
[model]
path = "{model}"
modules = "mlp"
[steps.train]
stage = "external"
command = ["{python}", "write.py"]
writes = "tokens"
version = 1
units = {units}
rows = {rows}
vocabulary = {vocabulary}
seed = 1
[steps.queries]
stage = "external"
command = ["{python}", "write.py"]
writes = "tokens"
version = 1
units = 4
rows = 1
vocabulary = {vocabulary}
seed = 2
[steps.losses]
stage = "losses"
inputs = {{ tokens = "train" }}
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
[steps.query-gradients]
stage = "gradients"
inputs = {{ tokens = "queries" }}
[steps.ihvp]
stage = "precondition"
inputs = {{ gradients = "query-gradients", eigenbasis = "basis", lambda = "lambda" }}
rank = 32
[steps.scores]
stage = "score"
inputs = {{ queries = "ihvp", tokens = "train" }}
[steps.final]
stage = "rank"
inputs = {{ scores = "scores", queries = "queries", tokens = "train" }}
"""
UNITS = 2000


def by_shares(pipeline, store, count, chance):
    """Each step by so many shares in shuffled order, one of them killed and one done twice before all are done."""
    plan = json.loads(run("plan", pipeline, "--shards", str(count), "--json", "--store", store))
    for step in [step for step in plan["steps"] if step["shards"]]:
        told = step["shards"]
        if told["share"]:
            assert told["count"] == count
            order = chance.sample(range(count), count)
            words = [[PROGRAM, *(word.replace("{K}", str(share)) for word in told["share"][1:])] for share in order]
            killed(words[-1], chance.uniform(0.05, 0.5))
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(lambda command: run(*command[1:]), [words[0], *words]))
            assert shards(store, step["name"], pipeline, count)["missing"] == []
        run(*told["seal"][1:])


def study(folder, units, rows):
    """The pipeline of a corpus of so many units, each of so many rows."""
    model = ROOT / "data/models/quickstart"
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    (folder / "write.py").write_text(WRITER)
    pipeline = folder / "study.toml"
    pipeline.write_text(STUDY.format(model=model, python=sys.executable, units=units, rows=rows, vocabulary=vocabulary))
    return pipeline


def test_two_thousand_units_by_one_three_and_seven_shares(tmp_path):
    pipeline, given = study(tmp_path, UNITS, 1), tmp_path / "given"
    for step in ("train", "queries"):
        run("run", pipeline, "--to", step, "--store", given)
    stores = {count: tmp_path / f"by-{count}" for count in (1, 3, 7)}
    for count, store in stores.items():
        shutil.copytree(given, store)
        by_shares(pipeline, store, count, random.Random(count))
    manifests = [json.loads((folder(store, "losses", pipeline) / "manifest.json").read_text()) for store in stores.values()]
    assert len(manifests[0]["parts"]) == UNITS
    assert all(manifest["parts"] == manifests[0]["parts"] for manifest in manifests), "the same bytes whoever made them"
    scores = [json.loads((folder(store, "scores", pipeline) / "manifest.json").read_text())["parts"] for store in stores.values()]
    assert all(len(parts) == UNITS for parts in scores)
    expected = ranking(stores[1], pipeline)
    for count in (3, 7):
        agree(expected, ranking(stores[count], pipeline))


def seconds(*words):
    """Processor seconds of a command: what it would take alone on one processor."""
    child = subprocess.Popen([PROGRAM, *words], env={**os.environ, "RAYON_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    assert status == 0, words
    return used.ru_utime + used.ru_stime


def test_two_workers_take_half_of_the_time_of_one(tmp_path):
    pipeline, one, two = study(tmp_path, 40, 200), tmp_path / "one", tmp_path / "two"
    run("run", pipeline, "--to", "train", "--store", one)
    shutil.copytree(one, two)
    scan = ("run", pipeline, "--to", "losses", "--store")
    alone = seconds(*scan, one)
    shares = [seconds(*scan, two, "--shard", f"{share}/2") for share in (0, 1)]
    seal = seconds(*scan, two)
    speed = alone / (max(shares) + seal)
    print(f"40 units: {alone:.1f} s of one process; {shares[0]:.1f} and {shares[1]:.1f} s of two shares, {seal:.1f} s of the seal: {speed:.2f} times")
    parts = [json.loads((folder(store, "losses", pipeline) / "manifest.json").read_text())["parts"] for store in (one, two)]
    assert len(parts[0]) == 40 and parts[0] == parts[1]
    assert speed >= 1.8
