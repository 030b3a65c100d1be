"""Artifacts as tables, matrices and pages."""

import html
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wherefrom._errors import Refused
from wherefrom._program import call_json

# Columns that are matrices by the column `shape` beside them; `left` and `right` have shapes of their own.
SHAPED = {"matrix", "vectors", "lambda", "all_mean", "target_mean", "prompt_last"}


def open(folder: str | os.PathLike[str]) -> "Artifact":
    """The artifact in a folder.

    Raises:
        Refused: there is none, or its manifest is not what was sealed.
    """
    shown = call_json(["show", folder], quiet=True)
    return Artifact(Path(shown["folder"]), shown["manifest"])


class Artifact:
    """A folder that a step wrote. FORMAT.md has the columns of every kind."""

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder = folder
        """Where it lies."""
        self.manifest = manifest
        """manifest.json: how it was made, and a summary."""

    @property
    def kind(self) -> str:
        """What it holds: `scores`, `lambda` and so on."""
        return str(self.manifest["kind"])

    @property
    def key(self) -> str:
        """The digest of how it was made."""
        return str(self.manifest["key"])

    @property
    def summary(self) -> dict[str, Any]:
        """Facts about the content."""
        return dict(self.manifest["summary"])

    @property
    def parts(self) -> list[Path]:
        """Its files in order."""
        return [self.folder / part["name"] for part in self.manifest["parts"]]

    @property
    def metadata(self) -> dict[str, str]:
        """What its parts say of themselves: `unit`, `sign`, `method`, `modules` and others, by kind."""
        entries = (self._first_schema().metadata or {}).items()
        return {name.decode().removeprefix("wherefrom."): value.decode() for name, value in entries if name.startswith(b"wherefrom.")}

    def _first_schema(self) -> pa.Schema:
        first = self._tables()[0]
        return pq.read_schema(first) if first.suffix == ".parquet" else pa.ipc.open_file(pa.memory_map(str(first))).schema

    def table(self, columns: Sequence[str] | None = None, filters: Any = None) -> pa.Table:
        """Every row, or those of `filters`: an expression of pyarrow, or tuples as `pyarrow.parquet.read_table` takes them.
        Of Arrow parts the values are mapped, not read.

        Raises:
            Refused: of a kind that is no table (model, tokenizer, report).
        """
        parts = self._tables()
        if parts[0].suffix == ".parquet":
            return pq.read_table(parts, columns=columns and list(columns), filters=filters)
        # The program checks what it writes: parts of one artifact have one schema.
        table = pa.concat_tables(pa.ipc.open_file(pa.memory_map(str(part))).read_all() for part in parts)
        if filters is not None:
            table = table.filter(filters if isinstance(filters, pc.Expression) else pq.filters_to_expression(filters))
        return table if columns is None else table.select(list(columns))

    def rows(self, **where: Any) -> Iterator[dict[str, Any]]:
        """Row by row, texts and numbers as Python has them and lists of numbers as numpy arrays: views of mapped files,
        read-only, matrices in their shapes. `where` chooses: `module="…", side="gradient"`, `query=3`; a module is found
        also where it shares another's covariance. float16 with a scale comes as float32, which is a copy.
        """
        for part in self._tables():
            arrow = part.suffix == ".arrow"
            batches = pa.ipc.open_file(pa.memory_map(str(part))) if arrow else pq.ParquetFile(part)
            for name in where:
                if name not in (batches.schema.names if arrow else batches.schema_arrow.names):
                    raise Refused(f"{self.kind} has no column `{name}`: {self.folder}")
            several = (batches.get_batch(number) for number in range(batches.num_record_batches)) if arrow else batches.iter_batches()
            for batch in several:
                for number in range(batch.num_rows):
                    if all(_chosen(batch, number, name, value) for name, value in where.items()):
                        yield _row(batch, number)

    def _tables(self) -> list[Path]:
        if any(part.suffix not in (".parquet", ".arrow") for part in self.parts):
            raise Refused(f"{self.kind} is no table but files in {self.folder}")
        return self.parts

    def __repr__(self) -> str:
        return f"<{self.kind} {self.key[:12]} in {self.folder}>"


def _chosen(batch: pa.RecordBatch, number: int, name: str, value: Any) -> bool:
    found = batch.column(name)[number].as_py()
    shared = batch.column("shared_with")[number].as_py() if name == "module" and "shared_with" in batch.schema.names else []
    # What is shared is the input's side; of the output's each module has its own.
    return found == value or value in shared


def _row(batch: pa.RecordBatch, number: int) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for field, column in zip(batch.schema, batch.columns, strict=True):
        value = column[number]
        numbers = pa.types.is_list(field.type) and pa.types.is_primitive(field.type.value_type)
        if numbers and not pa.types.is_boolean(field.type.value_type):
            row[field.name] = value.values.to_numpy(zero_copy_only=True)
        elif numbers:
            row[field.name] = value.values.to_numpy(zero_copy_only=False)
        else:
            row[field.name] = value.as_py()
    for name in list(row):
        if (scale := row.get(f"{name}_scale")) is not None:
            row[name] = row[name].astype(np.float32) * np.float32(scale)
        shape = row.get(f"{name}_shape", row.get("shape") if name in SHAPED else None)
        if shape is not None and row[name].size == np.prod(shape, dtype=np.int64):
            row[name] = row[name].reshape(shape)
    return row


class Report:
    """The page of a study. As the last line of a notebook's cell it is shown there."""

    def __init__(self, page: Path, height: int = 720):
        self.page = page
        """index.html."""
        self.height = height
        """Of the frame in a notebook, in pixels."""

    def _repr_html_(self) -> str:
        # A frame has the address of the page that it is in, and the report's links are within itself.
        text = self.page.read_text(encoding="utf-8").replace("<head>", '<head><base href="about:srcdoc">', 1)
        beside = any(self.page.parent.glob("query-*.js"))
        # The frame has no folder, and so none of the files beside the page.
        note = f"<p>Queries that lie beside the page are not shown here: open {html.escape(str(self.page))}</p>" if beside else ""
        return (
            f'<iframe srcdoc="{html.escape(text)}" sandbox="allow-scripts allow-downloads allow-popups" '
            f'style="width: 100%; height: {self.height}px; border: 0"></iframe>{note}'
        )

    def __fspath__(self) -> str:
        return str(self.page)

    def __repr__(self) -> str:
        return f"<report {self.page}>"
