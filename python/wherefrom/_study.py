"""A pipeline's steps, planned or run."""

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from wherefrom._artifact import Artifact, Report, open
from wherefrom._errors import Refused
from wherefrom._program import call, call_json, options

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Step:
    """A step of a pipeline."""

    name: str
    kind: str
    """What it writes."""
    key: str | None
    """The digest of how it is made; None while a file that it hangs on is not there."""
    folder: Path | None
    """Where its artifact lies, or will lie."""
    facts: Mapping[str, Any]
    """All that the program says of it (FORMAT.md, "JSON and exit codes")."""


class _Study:
    """Steps by name, and what they wrote."""

    def __init__(self, facts: dict[str, Any]):
        self.facts = facts
        """All that the program printed."""
        self.pipeline = Path(facts["pipeline"])
        self.steps: dict[str, Step] = {}
        """By name, in the order in which they run."""
        for step in facts["steps"]:
            folder = None if step["folder"] is None else Path(step["folder"])
            self.steps[step["name"]] = Step(step["name"], step["kind"], step["key"], folder, step)

    def __getitem__(self, step: str) -> Artifact:
        """What a step wrote.

        Raises:
            Refused: there is no such step, or it is not made yet.
        """
        if step not in self.steps:
            raise Refused(f"no step `{step}` in {self.pipeline}; its steps are {', '.join(self.steps)}")
        folder = self.steps[step].folder
        if folder is None or not (folder / "manifest.json").exists():
            raise Refused(f'step `{step}` of {self.pipeline} is not made yet; wherefrom.run("{self.pipeline}", to="{step}") makes it')
        return open(folder)

    def of_kind(self, kind: str, step: str | None = None) -> Artifact:
        """What a step of that kind wrote: the one named, or the only one; of several rankings and reports the last, which a
        run ends with.

        Raises:
            Refused: there is none, there are several, or the step writes something else.
        """
        names = [name for name, step in self.steps.items() if step.kind == kind]
        if step is not None:
            if step in self.steps and step not in names:
                raise Refused(f"step `{step}` of {self.pipeline} writes {self.steps[step].kind}, not {kind}")
            return self[step]
        if not names:
            raise Refused(f"no step of {self.pipeline} writes {kind}")
        if len(names) > 1 and kind not in ("ranking", "report"):
            raise Refused(f"several steps of {self.pipeline} write {kind}; name one of {', '.join(names)}")
        return self[names[-1]]

    def scores(self, step: str | None = None, **reading: Any) -> pa.Table:
        """The influence of every pair of query and example; arguments as those of `Artifact.table`."""
        return self.of_kind("scores", step).table(**reading)

    def details(self, step: str | None = None, **reading: Any) -> pa.Table:
        """The influence of the strongest pairs by module and by token."""
        return self.of_kind("details", step).table(**reading)

    def ranking(self, step: str | None = None, **reading: Any) -> pa.Table:
        """The strongest examples of each query, with their texts."""
        return self.of_kind("ranking", step).table(**reading)

    def tokens(self, step: str | None = None, **reading: Any) -> pa.Table:
        """The tokens of a corpus or of queries, with their texts."""
        return self.of_kind("tokens", step).table(**reading)

    @property
    def report(self) -> Report:
        """The page. In a notebook it is shown as a cell's last line."""
        return Report(self.of_kind("report").folder / "index.html")

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()} of {self.pipeline}: {', '.join(self.steps)}>"


class Plan(_Study):
    """What a run would do."""

    @property
    def seconds(self) -> float | None:
        """What is missing would take about so long; None where that is not known."""
        seconds: float | None = self.facts["seconds"]
        return seconds

    @property
    def warnings(self) -> list[str]:
        """What one should know before."""
        return list(self.facts["warnings"])

    def _repr_html_(self) -> str:
        def row(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        def cells(step: Step) -> list[str]:
            seconds = (step.facts["time"] or {}).get("seconds")
            shown = "" if seconds is None or step.facts["state"] == "cached" else f"{seconds:.0f} s"
            return [step.name, step.facts["stage"], step.facts["state"], shown, step.facts["why"] or ""]

        rows = [row(["step", "stage", "state", "time", "why"], "th"), *(row(cells(step), "td") for step in self.steps.values())]
        # Notebooks take what stands between dollar signs for mathematics.
        return f'<table class="tex2jax_ignore mathjax_ignore">{"".join(rows)}</table>'


class Run(_Study):
    """What a run has made."""

    @property
    def device(self) -> str:
        """What it ran on."""
        return str(self.facts["device"])

    @property
    def coverage(self) -> dict[str, Any] | None:
        """`attributed` of `total` parameters, and the `modules` that were asked for."""
        coverage: dict[str, Any] | None = self.facts["coverage"]
        return coverage


def run(
    pipeline: PathLike,
    *,
    to: str | None = None,
    store: PathLike | None = None,
    device: str | None = None,
    memory: str | int | None = None,
    quiet: bool = False,
    **sets: Any,
) -> Run:
    """Makes what is missing of a pipeline, up to the step `to`. Interrupted, the same call goes on from there.

    `sets` change knobs for this run: `steps={"ihvp": {"damping": 0.01}}`, `model={"modules": "all"}`, or
    `**{"steps.ihvp.damping": 0.01}`. `store`, `device` and `memory` are the options of these names.

    Raises:
        Refused: of something in the pipeline, its files or the arguments, which the message names. Failed: otherwise.
    """
    until = [] if to is None else ["--to", to]
    return Run(call_json(["run", pipeline, *until, *options(store, device, memory, sets)], quiet))


def plan(
    pipeline: PathLike,
    *,
    store: PathLike | None = None,
    device: str | None = None,
    memory: str | int | None = None,
    quiet: bool = True,
    **sets: Any,
) -> Plan:
    """What `run` would do, step by step, and what it would cost. Arguments as those of `run`."""
    return Plan(call_json(["plan", pipeline, *options(store, device, memory, sets)], quiet))


def path(pipeline: PathLike, step: str, *, store: PathLike | None = None, **sets: Any) -> Path:
    """The folder of a step's artifact.

    Raises:
        Refused: it is not made yet, or there is no such step.
    """
    return Path(call(["path", pipeline, step, *options(store, None, None, sets)], quiet=True).removesuffix("\n"))


def _of_kind(kind: str, pipeline: PathLike, step: str | None, store: PathLike | None, sets: Mapping[str, Any]) -> Artifact:
    if step is None:
        return plan(pipeline, store=store, **sets).of_kind(kind)
    found = open(path(pipeline, step, store=store, **sets))
    if found.kind != kind:
        raise Refused(f"step `{step}` of {os.fspath(pipeline)} writes {found.kind}, not {kind}")
    return found


def scores(
    pipeline: PathLike,
    step: str | None = None,
    *,
    store: PathLike | None = None,
    columns: Sequence[str] | None = None,
    filters: Any = None,
    **sets: Any,
) -> pa.Table:
    """The influence of every pair of query and example, of a study that was run; `columns` and `filters` as those of
    `Artifact.table`. Without `step` it is that of the only step that writes scores.

    Raises:
        Refused: it is not made yet, or several steps write scores.
    """
    return _of_kind("scores", pipeline, step, store, sets).table(columns, filters)


def details(
    pipeline: PathLike,
    step: str | None = None,
    *,
    store: PathLike | None = None,
    columns: Sequence[str] | None = None,
    filters: Any = None,
    **sets: Any,
) -> pa.Table:
    """The influence of the strongest pairs by module and by token. As `scores`."""
    return _of_kind("details", pipeline, step, store, sets).table(columns, filters)


def ranking(
    pipeline: PathLike,
    step: str | None = None,
    *,
    store: PathLike | None = None,
    columns: Sequence[str] | None = None,
    filters: Any = None,
    **sets: Any,
) -> pa.Table:
    """The strongest examples of each query, with their texts. As `scores`; of several rankings the last."""
    return _of_kind("ranking", pipeline, step, store, sets).table(columns, filters)


def tokens(
    pipeline: PathLike,
    step: str | None = None,
    *,
    store: PathLike | None = None,
    columns: Sequence[str] | None = None,
    filters: Any = None,
    **sets: Any,
) -> pa.Table:
    """Token ids, targets and texts of a corpus or of queries. As `scores`."""
    return _of_kind("tokens", pipeline, step, store, sets).table(columns, filters)


def factors(pipeline: PathLike, step: str, *, store: PathLike | None = None, **sets: Any) -> Artifact:
    """What a step wrote, to go over by `rows`: covariances, an eigenbasis, lambda, gradients, as mapped numpy arrays.

    Raises:
        Refused: it is not made yet, or there is no such step.
    """
    return open(path(pipeline, step, store=store, **sets))


def report(pipeline: PathLike, *, store: PathLike | None = None, **sets: Any) -> Report:
    """The page of a study that was run. In a notebook it is shown as a cell's last line.

    Raises:
        Refused: it is not made yet, or no step writes one.
    """
    return Report(_of_kind("report", pipeline, None, store, sets).folder / "index.html")
