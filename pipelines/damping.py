"""The damping of a method, chosen on the odd subsets of its agreement with a bank of retrainings and reported on the even ones.

    python3 pipelines/damping.py pipelines/evaluate.toml METHOD...

METHOD is the end of the names of two steps: `agreement-METHOD`, and `ihvp-METHOD` or `scores-METHOD`, which has the knob `damping`, a
share of the mean of Lambda. Curvature and bank are made once, so each damping costs one pass over the corpus. WHEREFROM names the
program (`wherefrom`). Prints JSON lines: {method, lds: {damping: on the odd subsets}, damping, even: [LDS, low, high]}.
"""

import json
import os
import shlex
import subprocess
import sys
import tomllib

DAMPINGS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10]
PROGRAM = shlex.split(os.environ.get("WHEREFROM", "wherefrom"))


def lds(pipeline, method, step, damping, subsets):
    """The LDS of a method with this damping, and the ends of its interval."""
    agreement = f"agreement-{method}"
    knobs = ["--set", f"steps.{step}.damping={damping}", "--set", f"steps.{agreement}.subsets={subsets}"]
    subprocess.run([*PROGRAM, "run", pipeline, "--to", agreement, *knobs], check=True, stdout=subprocess.DEVNULL)
    shown = [*PROGRAM, "show", agreement, "--pipeline", pipeline, "--json", *knobs]
    return json.loads(subprocess.run(shown, check=True, stdout=subprocess.PIPE).stdout)["manifest"]["summary"]["lds"]


def main(pipeline, *methods):
    with open(pipeline, "rb") as file:
        steps = tomllib.load(file)["steps"]
    for method in methods:
        [step] = [name for name in (f"ihvp-{method}", f"scores-{method}") if "damping" in steps.get(name, {})]
        odd = {damping: lds(pipeline, method, step, damping, "odd")[0] for damping in DAMPINGS}
        best = max(odd, key=odd.get)
        even = lds(pipeline, method, step, best, "even")
        print(json.dumps({"method": method, "lds": odd, "damping": best, "even": even}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
