"""The quickstart in 512 shares of which many are lost, killed or done twice, in any order, is the study of one process.

Minutes: three steps of 512 processes each. `SHARES=64` makes it shorter.
"""

import json
import os
import random
import subprocess
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


def shards(store, step):
    """What an engine is told of a step; nothing if it is sealed."""
    plan = json.loads(run("plan", PIPELINE, "--shards", str(SHARES), "--json", "--store", store))
    return next(found for found in plan["steps"] if found["name"] == step)["shards"]


def killed(command, seconds):
    child = subprocess.Popen(command, env={**os.environ, "RAYON_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def ranking(store):
    folder = Path(run("path", PIPELINE, "final", "--store", store).strip())
    rows = pq.read_table(sorted(folder.glob("*.parquet"))).to_pylist()
    return {(row["query"], row["sign"], row["rank"]): (row["example"], row["influence"]) for row in rows}


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
    expected, found = ranking(one), ranking(many)
    assert expected.keys() == found.keys()
    largest = max(abs(influence) for _, influence in expected.values())
    differences = [abs(found[place][1] - influence) / largest for place, (_, influence) in expected.items()]
    others = [place for place, (example, _) in expected.items() if found[place][0] != example]
    print(f"{len(expected)} rows, largest difference {max(differences):.1e} of the largest influence, {len(others)} of another example")
    assert max(differences) < 1e-6
    # Two that are closer than that may change places.
    assert all(abs(expected[place][1] - found[place][1]) < 1e-6 * largest for place in others)
