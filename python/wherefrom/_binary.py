"""Where the program is."""

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from wherefrom._errors import NotInstalled

NAME = "wherefrom.exe" if os.name == "nt" else "wherefrom"
VARIABLE = "WHEREFROM"


def find_binary() -> Path:
    """The program: `$WHEREFROM`, else the one that was installed with this package, else the one on the path.

    Raises:
        NotInstalled: it is in none of these places.
    """
    if named := os.environ.get(VARIABLE):
        if Path(named).is_file():
            return Path(named)
        raise NotInstalled(f"{VARIABLE}={named} is no file; unset it, or name the program")
    looked = list(dict.fromkeys(_folders()))
    for folder in looked:
        if (folder / NAME).is_file():
            return folder / NAME
    if found := shutil.which(NAME):
        return Path(found)
    places = "".join(f"\n  {folder}" for folder in looked)
    raise NotInstalled(
        f"the program {NAME} is not there; install the wheel, or set {VARIABLE} to it. Looked for in{places}\nand on the path"
    )


def _folders() -> Iterator[Path]:
    """Folders that an installer may have put it in, the likeliest first."""
    package = Path(__file__).resolve().parent
    scripts = "Scripts" if os.name == "nt" else "bin"
    # --target has its scripts beside the package; --prefix, and uv's overlays, some levels up.
    yield package.parent / scripts
    levels = 2 if os.name == "nt" else 3
    if package.parent.name in ("site-packages", "dist-packages") and len(package.parents) > levels:
        yield package.parents[levels] / scripts
    yield Path(sysconfig.get_path("scripts"))
    yield Path(sysconfig.get_path("scripts", vars={"base": sys.base_prefix}))
    yield Path(sysconfig.get_path("scripts", scheme=sysconfig.get_preferred_scheme("user")))
