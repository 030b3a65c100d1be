"""`python -m wherefrom …` is `wherefrom …`."""

import os
import subprocess
import sys

from wherefrom._binary import find_binary


def main() -> int:
    command = [str(find_binary()), *sys.argv[1:]]
    if os.name == "nt":
        # exec would give the prompt back while the program runs on.
        return subprocess.call(command)
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
