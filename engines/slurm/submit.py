#!/usr/bin/env python3
"""A study as Slurm jobs: an array of shares and a seal for each step that is missing, chained by `afterok`.

    engines/slurm/submit.py PIPELINE --shards 16 [--dry-run] [--partition P] [--gres gpu:1] [--sbatch=--account=A] [--set KEY=VALUE]

The store has to be on a file system that every node sees. Memory and time come from the plan. A share that may be tried again leaves
with 75: where the site requeues that number (`RequeueExit=75`), nothing is to be done; elsewhere run this again, which submits the
shares that are missing and nothing else.
"""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plan as engine  # noqa: E402

ARRAY = 1000  # tasks of an array, where a site has not raised MaxArraySize
MEMORY = 1.25  # of the plan's figure: what a process holds besides
TIME = 4.0  # of the plan's figure for a share
LEAST_MINUTES = 15


def main():
    parser = engine.parser(__doc__, "nodes")
    parser.add_argument("--partition")
    parser.add_argument("--gres", default="gpu:1", help="of steps that run a model on a GPU")
    parser.add_argument("--minutes", type=int, help="the time limit of each job, in place of the plan's")
    parser.add_argument("--sbatch", action="append", default=[], help="a further option of sbatch: --sbatch=--account=A")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and submit nothing")
    args = parser.parse_args()

    _, steps = engine.read(args.wherefrom, args.pipeline, args.shards, args.set, args.store)
    if not steps:
        print("nothing is missing")
        return
    seals, number = {}, 0
    for step in steps:
        shards, waits = step["shards"], [seals[name] for name in step["shards"]["waits_for"]]
        if shards["share"] and shards["missing"]:
            waits = [submit(args, step, waits, chunk, f"j{number}-{place}") for place, chunk in enumerate(chunks(shards["missing"]))]
        seals[step["name"]] = submit(args, step, waits, None, f"j{number}-seal")
        number += 1
    print(f"submitted {len(steps)} steps; the last is job {seals[steps[-1]['name']]}" if not args.dry_run else "submitted nothing")
    print(f"if a share fails: mend what it says, and run this again: {engine.shown(sys.argv)}")


def chunks(shares):
    """Shares of one array: numbers below ARRAY after a common offset."""
    by_offset = {}
    for share in shares:
        by_offset.setdefault(share // ARRAY * ARRAY, []).append(share)
    return sorted(by_offset.items())


def ranges(numbers):
    """`0-3,7`."""
    runs = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def submit(args, step, waits, chunk, name):
    """Submits shares, or the seal; the number of the job."""
    shards, cost, time = step["shards"], step["cost"] or {}, step["time"] or {}
    words = ["sbatch", "--parsable", "--requeue", "--kill-on-invalid-dep=yes", f"--job-name=wherefrom-{step['name']}"]
    # The program takes the shell's place, and the signal before the limit reaches it.
    words += ["--signal=B:USR1@120"]
    if waits:
        words.append("--dependency=afterok:" + ":".join(waits))
    if args.partition:
        words.append(f"--partition={args.partition}")
    if memory := cost.get("memory_bytes"):
        words.append(f"--mem={int(MEMORY * memory / 1e6) + 256}M")
    shares = shards["count"] if chunk else 1
    minutes = args.minutes or LEAST_MINUTES + int(TIME * (time.get("seconds") or 0) / 60 / shares)
    words.append(f"--time={minutes}")
    if shards["gpu"]:
        words.append(f"--gres={args.gres}")
    words += args.sbatch
    if chunk:
        offset, numbers = chunk
        words.append("--array=" + ranges([number - offset for number in numbers]))
        command = engine.command(args.wherefrom, shards["share"])
        line = engine.shown(command).replace("{K}", "'$((SLURM_ARRAY_TASK_ID + %d))'" % offset)
    else:
        line = engine.shown(engine.command(args.wherefrom, shards["seal"]))
    words.append(f"--wrap=exec {line}")
    print(engine.shown(words))
    if args.dry_run:
        return name
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip().split(";")[0]


if __name__ == "__main__":
    main()
