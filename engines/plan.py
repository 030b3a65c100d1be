"""What `wherefrom plan --shards N --json` says, for the drivers beside this file."""

import json
import shlex
import subprocess
import sys


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
