"""FORMAT.md as data: its code, and the columns of every kind."""

import re
from pathlib import Path

import pyarrow as pa

TEXT = (Path(__file__).resolve().parents[2] / "FORMAT.md").read_text()

TYPES = {"u32": pa.uint32(), "u64": pa.uint64(), "f32": pa.float32(), "utf8": pa.string(), "bool": pa.bool_(),
         "binary": pa.binary()}  # fmt: skip


def blocks(language):
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def one_liners(ending):
    """The lines that read `FOLDER/….ENDING`."""
    return [line for block in blocks("python") for line in block.splitlines() if re.search(rf"FOLDER/.*\.{ending}", line)]


def section(kind):
    """What FORMAT.md says below `### kind`."""
    return re.search(rf"^### {kind}\n(.*?)(?=^##)", TEXT, re.MULTILINE | re.DOTALL)[1]


def columns(kind):
    """Column name -> Arrow type, in order."""
    rows = re.findall(r"^\| (\w+) \| ([\w<>]+) \| ", section(kind), re.MULTILINE)
    return {name: arrow_type(name_of_type) for name, name_of_type in rows if name_of_type != "type"}


def arrow_type(name):
    inside = re.fullmatch(r"list<(\w+)>", name)
    return pa.list_(TYPES[inside[1]]) if inside else TYPES[name]


def metadata(kind):
    """The metadata keys of the kind's parts."""
    listed = "".join(re.findall(r"Metadata:(.*?)(?:Summary:|\n\n|\Z)", section(kind), re.DOTALL))
    return {"wherefrom.kind", "wherefrom.version", "wherefrom.key"} | set(re.findall(r"`(wherefrom\.\w+)`", listed))


def summary(kind):
    """The names of the manifest's summary."""
    listed = "".join(re.findall(r"Summary:(.*?)(?:\n\n|\Z)", section(kind), re.DOTALL))
    return set(re.findall(r"`(\w+)`", listed))
