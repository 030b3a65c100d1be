"""Runs pipelines/evaluate.toml and pipelines/planted.toml, sweeps the damping, and writes what came out into docs/fidelity.md.

    python pipelines/evaluate.py WHEREFROM [--sweep] [--made]

Every number comes from an artifact. What is there is not made again, so that the pipelines can grow (more subsets, more seeds,
another model) and the page with them. Text between `<!-- NAME -->` and `<!-- end -->` is replaced; all else of the page is
written by hand. `--made` makes nothing and writes what is there. `--sweep` tries the dampings: some minutes for a method that solves.
"""
import argparse
import json
import subprocess
from pathlib import Path

import pyarrow.parquet

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
METHODS = {  # step `scores-NAME`: what it is, in order of the ladder
    "random": "random",
    "bm25": "BM25",
    "activations": "similarity of activations",
    "identity": "gradient product",
    "cosine": "gradient cosine",
    "tracin": "gradient products over checkpoints (TracIn)",
    "adam": "gradient product, by Adam's second moments",
    "trak": "projected gradients and their Gauss-Newton (TRAK)",
    "trackstar": "the same, as cosines (TrackStar)",
    "diagonal": "diagonal",
    "kfac": "K-FAC",
    "shampoo": "eigenvalue-corrected Shampoo",
    "ekfac-mlp": "EK-FAC, MLP maps alone",
    "ekfac": "EK-FAC",
    "neumann": "stochastic Neumann steps (LiSSA), damping 1",
    "solve": "conjugate gradients on the Gauss-Newton system",
    "solve-damped": "the same, damping 1",
    "metagradient": "metagradient through the training run",
}
DAMPED = {  # which step has the damping
    "adam": "ihvp-adam", "trak": "scores-trak", "diagonal": "ihvp-diagonal", "kfac": "ihvp-kfac", "shampoo": "ihvp-shampoo",
    "ekfac": "ihvp-ekfac", "solve": "ihvp-solve",
}
DAMPINGS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10]
OVER_CORPUS = {"covariance", "lambda", "score", "self-influence", "index", "gradient-products", "project-gradients", "activations"}  # stages that run the model over all training tokens


class Study:
    """One pipeline: its steps, and the artifacts they made."""

    def __init__(self, program, pipeline, changes=()):
        self.program, self.pipeline = program, ROOT / "pipelines" / pipeline
        self.changes = [word for change in changes for word in ("--set", change)]
        self.steps = self.plan()

    def plan(self):
        said = self.call("plan", "--json").stdout
        return {step["name"]: step for step in json.loads(said)["steps"]}

    def call(self, verb, *words):
        command = [self.program, verb, self.pipeline, *words, *self.changes]
        return subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE)

    def make(self, *ends):
        for end in ends or [None]:
            self.call("run", *(["--to", end] if end else []))
        self.steps = self.plan()
        return self

    def has(self, step):
        """Whether the pipeline has the step, and it has been made."""
        return step in self.steps and (self.folder(step) / "manifest.json").exists()

    def folder(self, step):
        return ROOT / self.steps[step]["folder"]

    def manifest(self, step):
        return json.loads((self.folder(step) / "manifest.json").read_text())

    def summary(self, step):
        return self.manifest(step)["summary"]

    def rows(self, step):
        return [row for part in sorted(self.folder(step).glob("*.parquet")) for row in pyarrow.parquet.read_table(part).to_pylist()]

    def cost(self, step, trained):
        """Seconds and passes over the corpus of the steps behind `step`, without what every method needs: the trained model and its tokens."""
        seen, seconds, passes = set(), 0.0, 0
        waiting = [step]
        while waiting:
            name = waiting.pop()
            if name in seen or name in trained:
                continue
            seen.add(name)
            waiting += [given["step"] for given in self.steps[name]["inputs"].values() if "step" in given]
            seconds += self.manifest(name)["provenance"]["wall_seconds"]
            inputs = [given.get("step") for given in self.steps[name]["inputs"].values()]
            passes += self.steps[name]["stage"] in OVER_CORPUS and "passages" in inputs
        return seconds, passes


def number(value, digits=2):
    return f"{value:.{digits}f}".replace("-", "−")


def interval(values, digits=2):
    """A mean with the ends of its interval."""
    if not values:
        return "–"
    mean, low, high = (number(value, digits) for value in values)
    return f"{mean} ({low} to {high})"


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def replaced(page, name, text):
    start = f"<!-- {name} -->\n"
    before, rest = page.split(start)
    _, after = rest.split("<!-- end -->", 1)
    return f"{before}{start}{text}\n<!-- end -->{after}"


def ladder(study):
    """LDS of every method, and what it cost."""
    rows, points = [], []
    trained = {"tuned", "base", "passages", "prompts", "vocabulary", "half"}
    for name, title in METHODS.items():
        if not study.has(f"agreement-{name}"):
            continue
        found = study.summary(f"agreement-{name}")
        seeds = f"agreement-{name}-seeds"
        half = f"agreement-{name}-half"
        seconds, passes = study.cost(f"scores-{name}", trained)
        rows.append([
            title, interval(found["lds"]), interval(study.summary(seeds)["lds"]) if study.has(seeds) else "–",
            interval(study.summary(half)["lds"]) if study.has(half) else "–", passes, number(seconds, 0 if seconds >= 10 else 1),
        ])
        points.append((title, found["lds"], seconds))
    head = ["method", "LDS, 1 % removed, one seed", "LDS, 1 %, 5 seeds", "LDS, 50 %, 5 seeds", "passes", "seconds"]
    return table(head, rows), points


def ceiling(study):
    """How well one half of the orders foretells the other."""
    said = []
    for step, what in [("agreement-ekfac-seeds", "1 %"), ("agreement-ekfac-half", "half")]:
        if study.has(step):
            found = study.summary(step)["ceiling"]
            said.append(f"Without {what} of the passages, two halves of the five orders agree with each other at {interval(found)}.")
    line = study.summary("agreement-ekfac")
    said.append(f"Nats are not calibrated: a retraining moves a query by {number(line['slope'][0])} of what EK-FAC says, so scores rank, and are no amounts.")
    return " ".join(said)


def queries():
    return [json.loads(line)["id"] for line in (ROOT / "data/queries/evaluate.jsonl").read_text().splitlines()]


def sizes(study):
    """One more copy of each query's strongest passage: foretold by each method, and measured."""
    methods = [name for name in ("ekfac", "solve", "solve-damped", "proximal", "metagradient") if study.has(f"copies-{name}")]
    by_method = {name: {row["query"]: row for row in study.rows(f"copies-{name}")} for name in methods}
    runs = study.rows("bank-copies")
    seeds = sorted({row["seed"] for row in runs})
    loss = {(row["subset"], row["seed"]): row["loss"] for row in runs}
    # A response that has not converged has no score, and foretells nothing.
    found = {name: [row["predicted"][0] or None for _, row in sorted(by_method[name].items())] for name in methods}
    found |= {seed: [loss[0, seed][query] - loss[query + 1, seed][query] for query in range(len(queries()))] for seed in seeds}
    whole = [query for query in range(len(queries())) if all(values[query] is not None for values in found.values())]
    shown = lambda value: "–" if value is None else number(value)
    rows = [[title, *(shown(values[query]) for values in found.values())] for query, title in enumerate(queries())]
    rows.append([f"mean of {len(whole)}", *(number(sum(values[query] for query in whole) / len(whole)) for values in found.values())])
    head = ["query", *(METHODS.get(name, "proximal Bregman response") for name in methods), *(f"retrained, order {seed}" for seed in seeds)]
    return table(head, rows)


def responses(study):
    """Whether influences foretell proximal Bregman responses: Pearson's correlation of each query over the sequences that have one."""
    from statistics import correlation, mean

    found = {(row["query"], row["example"]): row["influence"] for row in study.rows("scores-proximal")}
    examples = sorted({example for _, example in found})
    rows = []
    for name in ("ekfac", "solve", "solve-damped"):
        if not study.has(f"scores-{name}"):
            continue
        scores = {(row["query"], row["example"]): row["influence"] for row in study.rows(f"scores-{name}") if (row["query"], row["example"]) in found}
        of = lambda values, query: [values[query, example] for example in examples]
        each = [correlation(of(scores, query), of(found, query)) for query in range(len(queries()))]
        slope = [sum(x * y for x, y in zip(of(scores, query), of(found, query))) / sum(x * x for x in of(scores, query)) for query in range(len(queries()))]
        rows.append([METHODS[name], number(mean(each), 3), number(min(each), 3), number(max(each), 3), number(mean(slope))])
    seconds = study.manifest("scores-proximal")["provenance"]["wall_seconds"]
    head = ["influence", "Pearson, mean of the queries", "least", "most", "response for one nat of influence"]
    return f"{table(head, rows)}\n\n{len(examples)} sequences × {len(queries())} queries, {seconds:.0f} s."


def calibrations(study):
    """What one nat of EK-FAC is in nats of a retraining, and how often the interval holds."""
    rows = []
    for step, of in (("calibration", "1 % removed, a line a query"), ("calibration-copies", "one more copy, one line for all")):
        if study.has(step):
            said = study.summary(step)
            rows.append([of, interval(said["slope"], 3), number(said["held"]), said["checked"], number(said["width"]), said["beyond"]])
    head = ["fitted on", "nats measured for one foretold", "share within the interval", "of", "mean width, nats", "ranked beyond what was measured"]
    return table(head, rows)


def strongest(study):
    """The strongest passage of each query: its influence, what the calibrations make of it, and what training with a copy did."""
    calibrated = {step: {row["query"]: row for row in study.rows(step)} for step in ("calibration", "calibration-copies")}
    measured = {row["query"]: row["measured"][0] for row in study.rows("copies-ekfac")}
    rows, held = [], {step: 0 for step in calibrated}
    for query, title in enumerate(queries()):
        line = [title]
        for step, by_query in calibrated.items():
            row = by_query[query]
            best = max(range(len(row["influence"])), key=lambda place: row["influence"][place])
            line += [number(row["influence"][best])] if len(line) == 1 else []
            low, high = row["low"][best], row["high"][best]
            held[step] += low <= measured[query] <= high
            line.append(interval([row["nats"][best], low, high]))
        rows.append([*line, number(measured[query])])
    rows.append(["within the interval", "", *(f"{count} of {len(queries())}" for count in held.values()), ""])
    return table(["query", "EK-FAC", "calibrated by 1 % removed", "calibrated by copies", "retrained"], rows)


def falls(study):
    """What a query loses without the 1 % that a method ranks highest."""
    rows = []
    for name, title in METHODS.items():
        step = f"fall-{name}"
        if study.has(step):
            rows.append([title, interval([-value for value in [study.summary(step)["change"][place] for place in (0, 2, 1)]])])
    random = study.summary("agreement-ekfac")["change"]
    rows.append(["a random 1 %", interval([-random[0], -random[2], -random[1]], 3)])
    return table(["removed", "fall of log p, nats"], rows)


def sweep(program, pipeline, made):
    """LDS at each damping: chosen on the subsets of odd number, reported on those of even number."""
    rows = []
    for name, step in DAMPED.items():
        lds = {}
        for damping in DAMPINGS:
            for subsets in ("odd", "even"):
                changes = [f"steps.{step}.damping={damping}", f"steps.agreement-{name}.subsets={subsets}"]
                study = Study(program, pipeline, changes)
                if step not in study.steps:
                    break
                if not made:
                    study.make(f"agreement-{name}")
                if study.has(f"agreement-{name}"):
                    lds[damping, subsets] = study.summary(f"agreement-{name}")["lds"]
        tried = [damping for damping in DAMPINGS if (damping, "odd") in lds and (damping, "even") in lds]
        if tried:
            best = max(tried, key=lambda damping: lds[damping, "odd"][0])
            shown = (number(lds[damping, "even"][0]) if damping in tried else "–" for damping in DAMPINGS)
            rows.append([METHODS[name], *shown, best, interval(lds[best, "even"])])
    return table(["method", *map(str, DAMPINGS), "chosen", "LDS there"], rows)


def planted(study):
    """Where the known sources rank."""
    rows = []
    for name, title in METHODS.items():
        if not study.has(f"retrieval-{name}"):
            continue
        found, own = study.summary(f"retrieval-{name}"), f"agreement-{name}"
        pooled = number(study.summary(own)["pooled_pearson"]) if study.has(own) and study.summary(own)["pooled_pearson"] is not None else "–"
        rows.append([title, interval(found["mean_reciprocal_rank"]), interval(found["recall_at_1"]), interval(found["recall_at_10"]), pooled])
    return table(["method", "mean reciprocal rank", "recall at 1", "recall at 10", "Pearson, effect of the sources"], rows)


def canaries(study, name="ekfac"):
    """What the sources of a query say, by kind and copies: foretold and measured."""
    asked = {row["example"]: row for row in study.rows("asked")}
    found = {row["query"]: row for row in study.rows(f"retrieval-{name}")}
    agreed = {row["query"]: row for row in study.rows(f"agreement-{name}")}
    groups = {}
    for query, row in found.items():
        own = agreed.get(query, {})
        measured = -own["measured"][0] if own.get("measured") else None
        groups.setdefault((asked[query]["kind"], asked[query]["copies"]), []).append((row, measured))
    rows = []
    for (kind, copies), members in sorted(groups.items()):
        mean = lambda values: number(sum(values) / len(values), 2) if values else "–"
        measured = [value for _, value in members if value is not None]
        rows.append([
            kind, copies, len(members), mean([row["reciprocal_rank"] for row, _ in members]) if copies else "–",
            mean([row["influence"] for row, _ in members]) if copies else "–", mean([row["strongest"] for row, _ in members]), mean(measured),
        ])
    return table(["query", "copies", "queries", "mean reciprocal rank", "influence of the sources", "strongest influence", "fall without the sources, nats"], rows)


def picture(points, path):
    """LDS with its interval against cost in seconds, as SVG."""
    import math

    width, height, left, top = 860, 26 * len(points) + 60, 420, 20
    least, most = min(0.0, min(lds[1] for _, lds, _ in points)), 1.0
    x = lambda value: left + (value - least) / (most - least) * (width - left - 90)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
             f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for tick in [value / 5 for value in range(math.ceil(least * 5), 6)]:
        lines.append(f'<path d="M{x(tick):.1f} {top}V{height - 34}" stroke="#ddd"/><text x="{x(tick):.1f}" y="{height - 18}" text-anchor="middle" fill="#555">{number(tick, 1)}</text>')
    for place, (title, (mean, low, high), seconds) in enumerate(points):
        y = top + 13 + 26 * place
        cost = f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
        lines.append(f'<text x="{left - 12}" y="{y + 4}" text-anchor="end" fill="#222">{title}</text>'
                     f'<path d="M{x(low):.1f} {y}H{x(high):.1f}" stroke="#7a9cc6" stroke-width="3"/><circle cx="{x(mean):.1f}" cy="{y}" r="5" fill="#1f4e8c"/>'
                     f'<text x="{width - 8}" y="{y + 4}" text-anchor="end" fill="#555">{cost}</text>')
    lines.append(f'<text x="8" y="{height - 4}" fill="#555">LDS, 1 % removed, one seed, with its 95 % interval; right: seconds</text></svg>')
    path.write_text("\n".join(lines) + "\n")


def scatter(study, name, path, most=6):
    """Predicted against measured changes of the first queries, a point a retraining."""
    rows = [row for row in study.rows(f"agreement-{name}") if row["spearman"]][:most]
    size, gap, columns = 200, 46, 3
    width, height = columns * (size + gap) + 20, -(-len(rows) // columns) * (size + gap + 16) + 10
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
             f'<rect width="{width}" height="{height}" fill="#fff"/>']
    ids = queries()
    for place, row in enumerate(rows):
        left, top = 40 + place % columns * (size + gap), 26 + place // columns * (size + gap + 16)
        lines.append(f'<rect x="{left}" y="{top}" width="{size}" height="{size}" fill="none" stroke="#ccc"/>'
                     f'<text x="{left}" y="{top - 8}" fill="#222">{ids[row["query"]]}: {number(row["spearman"][0])}</text>')
        scale = lambda values: (min(values), (max(values) - min(values)) or 1.0)
        (x0, dx), (y0, dy) = scale(row["predicted"]), scale(row["measured"])
        for predicted, measured in zip(row["predicted"], row["measured"]):
            x, y = left + 8 + (predicted - x0) / dx * (size - 16), top + size - 8 - (measured - y0) / dy * (size - 16)
            lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="#1f4e8c" fill-opacity="0.7"/>')
        for anchor, x, value in (("start", left, x0), ("end", left + size, x0 + dx)):
            lines.append(f'<text x="{x}" y="{top + size + 14}" text-anchor="{anchor}" fill="#555">{number(value, 1)}</text>')
        for y, value in ((top + size, y0), (top + 10, y0 + dy)):
            lines.append(f'<text x="{left - 4}" y="{y}" text-anchor="end" fill="#555">{number(value, 1)}</text>')
    lines.append("</svg>")
    path.write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wherefrom")
    parser.add_argument("--sweep", action="store_true", help="try nine dampings")
    parser.add_argument("--made", action="store_true", help="make nothing, write what is there")
    given = parser.parse_args()
    document = DOCS / "fidelity.md"
    study = Study(given.wherefrom, "evaluate.toml")
    study = study if given.made else study.make()
    page = document.read_text()
    rungs, points = ladder(study)
    page = replaced(page, "ladder", rungs)
    page = replaced(page, "falls", falls(study))
    page = replaced(page, "ceiling", ceiling(study))
    if study.has("bank-copies"):
        page = replaced(page, "sizes", sizes(study))
    if study.has("scores-proximal"):
        page = replaced(page, "responses", responses(study))
    if study.has("calibration"):
        page = replaced(page, "calibration", calibrations(study))
    if study.has("calibration") and study.has("calibration-copies"):
        page = replaced(page, "strongest", strongest(study))
    picture(points, DOCS / "fidelity-ladder.svg")
    scatter(study, "ekfac", DOCS / "fidelity-predicted.svg")
    world = Study(given.wherefrom, "planted.toml")
    world = world if given.made else world.make()
    page = replaced(page, "planted", planted(world))
    page = replaced(page, "sources", canaries(world))
    if given.sweep:
        page = replaced(page, "sweep", sweep(given.wherefrom, "evaluate.toml", given.made))
    document.write_text(page)


main()
