#!/usr/bin/env python3
"""A study on a Ray cluster: a task for each share, then the seal, step after step.

    engines/ray/drive.py PIPELINE --shards 16 [--address auto] [--cpus 1] [--set KEY=VALUE]

Every node sees the store and has the program. Works below `ray job submit` as well. A share that leaves with 75 is tried again, and so is one
whose node is lost; any other failure ends the run, and the same command goes on from what is finished.
"""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plan as engine  # noqa: E402

AGAIN = 75


class TryAgain(RuntimeError):
    """A share that may be done again: Ray retries what is named, and nothing else."""


def work(words, folder, variables):
    """Runs a command on a worker; its last words, if it fails."""
    environment = {**os.environ, **variables}
    said = subprocess.run(words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if said.returncode == AGAIN:
        raise TryAgain(said.stdout[-2000:])
    return said.returncode, said.stdout[-2000:]


def main():
    parser = engine.parser(__doc__, "workers")
    parser.add_argument("--address", default="auto")
    parser.add_argument("--cpus", type=float, default=1, help="of each task")
    parser.add_argument("--retries", type=int, default=5)
    args = parser.parse_args()

    import ray

    # Variables of the driver do not reach workers by themselves.
    variables = {name: value for name, value in os.environ.items() if name.startswith(("WHEREFROM_", "HF_", "RAYON_"))}
    ray.init(address=args.address, log_to_driver=False)
    plan, steps = engine.read(args.wherefrom, args.pipeline, args.shards, args.set, args.store)
    store = str(Path(plan["store"]["path"]).resolve())
    folder = os.getcwd()
    for step in steps:
        shards = step["shards"]
        needs = {"num_cpus": args.cpus, "num_gpus": 1 if shards["gpu"] else 0, "memory": int((step["cost"] or {}).get("memory_bytes") or 0)}
        task = ray.remote(work).options(max_retries=args.retries, retry_exceptions=[TryAgain], **needs)
        if shards["share"]:
            print(f"{step['name']}: {len(shards['missing'])} of {shards['count']} shares", flush=True)
            commands = [engine.command(args.wherefrom, shards["share"], share) for share in shards["missing"]]
            ended([task.remote(in_store(words, store), folder, variables) for words in commands])
        ended([task.remote(in_store(engine.command(args.wherefrom, shards["seal"]), store), folder, variables)])
        print(f"{step['name']}: made", flush=True)


def in_store(words, store):
    """The store by its whole path: a worker may stand elsewhere."""
    words[words.index("--store") + 1] = store
    return words


def ended(tasks):
    """Waits for commands, and ends the run where one has failed, or could not be done however often it was tried."""
    import ray

    for task in tasks:
        try:
            code, text = ray.get(task)
        except TryAgain as error:
            code, text = AGAIN, str(error)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            code, text = AGAIN, str(error)
        if code:
            sys.stderr.write(f"{text}\nended with {code}; mend it, and run this again: {engine.shown(sys.argv)}\n")
            sys.exit(code)


if __name__ == "__main__":
    main()
