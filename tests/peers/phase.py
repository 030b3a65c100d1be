"""One phase of another tool in a process of its own, as a line of JSON: what `wherefrom-bench` starts."""

import argparse
import json
import platform
import resource
import sys
from importlib.metadata import version

import torch

import kron
import plain


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("phase")
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tool = plain if arguments.phase.startswith("forward") else kron
    phase = arguments.phase.removesuffix("-bf16")
    said = tool.run(phase, torch.float32 if phase == arguments.phase else torch.bfloat16, arguments)
    said["tool"] = "torch" if tool is plain else "kronfluence"
    kibibyte = 1 if sys.platform == "darwin" else 1024
    said["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kibibyte
    said["versions"] = {
        "Python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "kronfluence")},
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
