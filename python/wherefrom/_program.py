"""Runs the program: its lines where Python's go, its errors as exceptions, its JSON as objects."""

import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wherefrom._binary import find_binary
from wherefrom._errors import Failed, Refused, WherefromWarning

FORMAT = 1
"""The version of the JSON that this package reads (FORMAT.md, "JSON and exit codes")."""


def call(arguments: Sequence[str | os.PathLike[str]], quiet: bool = False) -> str:
    """What `wherefrom ARGUMENTS` prints. Progress goes to `sys.stderr` line by line, so that a notebook has it in the cell.

    Raises:
        Refused: exit code 2. Failed: any other, and a signal. KeyboardInterrupt: the program is interrupted, too.
    """
    command = [str(find_binary()), *(os.fspath(word) for word in arguments)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        errors="surrogateescape",
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    printed: list[str] = []
    reader = threading.Thread(target=lambda out: printed.append(out.read()), args=(process.stdout,), daemon=True)
    reader.start()
    lines: list[str] = []
    noted: list[str] = []
    failing = False
    try:
        for line in process.stderr:
            lines.append(line)
            failing = failing or line.startswith("error: ")
            if line.startswith("warning: "):
                noted.append(line.removeprefix("warning: ").rstrip())
            elif not quiet and not failing:
                print(line, end="", file=sys.stderr, flush=True)
        code = process.wait()
    except BaseException:
        # A notebook's interrupt reaches Python alone; a terminal's has reached both.
        process.send_signal(signal.SIGINT if os.name != "nt" else signal.SIGTERM)
        process.wait()
        raise
    reader.join()
    for text in noted:
        warnings.warn(text, WherefromWarning, stacklevel=4)
    if code == 0:
        return printed[0]
    raise _error(code, "".join(lines))


def _error(code: int, said: str) -> BaseException:
    """What an exit code means, with what was said after `error: `."""
    _, found, message = ("\n" + said).rpartition("\nerror: ")
    message = message.strip() if found else said.strip()
    if code == 2:
        return Refused(message)
    if code in (130, -signal.SIGINT):
        return KeyboardInterrupt(message)
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        killed = '; the system kills what takes more memory than there is: give memory="4GB" or less'
        return Failed(f"wherefrom was ended by {name}{killed if name == 'SIGKILL' else ''}")
    return Failed(message)


def call_json(arguments: Sequence[str | os.PathLike[str]], quiet: bool = False) -> dict[str, Any]:
    """The object that `wherefrom ARGUMENTS --json` prints."""
    document: dict[str, Any] = json.loads(call([*arguments, "--json"], quiet))
    if document.get("format") != FORMAT:
        raise Failed(
            f"{find_binary()} prints JSON of format {document.get('format')}, and this package reads format {FORMAT}; "
            "install the program and the package of one version"
        )
    return document


def options(
    store: str | os.PathLike[str] | None, device: str | None, memory: str | int | None, sets: Mapping[str, Any]
) -> list[str]:
    """The options that say where, on what, and with which knobs changed."""
    given = {"--store": store, "--device": device, "--memory": memory}
    words: list[str] = []
    for name, value in given.items():
        if value is not None:
            words += [name, os.fspath(value) if isinstance(value, os.PathLike) else str(value)]
    for place, value in changes(sets):
        words += ["--set", f"{place}={toml(value)}"]
    return words


def changes(sets: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """`steps={"ihvp": {"damping": 0.01}}` and `**{"steps.ihvp.damping": 0.01}` as places and values."""
    found: list[tuple[str, Any]] = []

    def descend(place: str, value: Any, levels: int) -> None:
        if levels > 0 and isinstance(value, Mapping):
            for name, inner in value.items():
                # The wires of a step are changed one by one.
                descend(f"{place}.{name}", inner, levels - 1 if (levels, name) != (1, "inputs") else 1)
        else:
            found.append((place, value))

    for name, value in sets.items():
        # [steps.STEP] has two levels above its knobs, [model] one; a name with dots is a place as `--set` has it.
        descend(name, value, 0 if "." in name else 2 if name == "steps" else 1)
    return found


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if hasattr(value, "item") and not isinstance(value, (list, tuple)):  # numpy's scalars
        value = value.item()
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str() | Path():
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
        case Mapping():
            return "{ " + ", ".join(f"{toml(str(name))} = {toml(inner)}" for name, inner in value.items()) + " }"
        case list() | tuple():
            return "[" + ", ".join(map(toml, value)) + "]"
    raise Refused(f"{value!r} ({type(value).__name__}) is no value of a knob; give a number, text, bool, list or dict")
