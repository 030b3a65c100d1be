"""What `wherefrom plan --shards N --json` says, for the drivers beside this file."""

import argparse
import json
import shlex
import subprocess
import sys


def parser(about, workers):
    """The options that every driver has."""
    options = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("pipeline")
    options.add_argument("--shards", type=int, required=True)
    options.add_argument("--store")
    options.add_argument("--set", action="append", default=[])
    options.add_argument("--wherefrom", default="wherefrom", help=f"the program, as the {workers} see it")
    return options


def read(program, pipeline, shards, sets=(), store=None):
    """The plan, and the steps that are to be made, in order."""
    command = [program, "plan", pipeline, "--shards", str(shards), "--json"]
    command += [word for value in sets for word in ("--set", value)]
    command += ["--store", store] if store else []
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if said.returncode:
        sys.exit(said.returncode)
    plan = json.loads(said.stdout)
    return plan, [step for step in plan["steps"] if step["shards"]]


def command(program, words, share=None):
    """The words of a command, by the program that is meant; of a share by its number."""
    words = [program, *words[1:]]
    return words if share is None else [word.replace("{K}", str(share)) for word in words]


def shown(words):
    return shlex.join(words)
