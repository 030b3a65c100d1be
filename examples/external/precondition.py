"""The stage `precondition` (method `ekfac`) as a program of its own, in numpy and pyarrow.

For every query gradient V = left right^T, [out, in], of every module (Grosse et al. 2023, arXiv 2308.03296, Eq. 21):

    P(V) = Q_S [ (Q_S^T V Q_A) / (Lambda + damping) ] Q_A^T

reads   gradients, eigenbasis, lambda
writes  preconditioned
knobs   damping = { relative = 0.1 } or { absolute = 1e-6 }, rank = 32 or "full"

A pipeline step with `stage = "external"` runs it; `pipelines/external.toml` is one. FORMAT.md has the columns.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa

UINT32S, FLOATS = pa.list_(pa.uint32()), pa.list_(pa.float32())
COLUMNS = {
    "query": pa.uint32(), "module": pa.string(), "rank": pa.uint32(),
    "left_shape": UINT32S, "left": FLOATS, "right_shape": UINT32S, "right": FLOATS,
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    parser.add_argument("--input", action="append", default=[], metavar="ROLE=DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args()
    request = json.loads(arguments.config.read_text())
    inputs = {role: Path(folder) for role, folder in (wire.split("=", 1) for wire in arguments.input)}
    knobs = {"damping": {"relative": 0.1}, "rank": 32}
    for known, given, what in [
        ({"preconditioned"}, {request["kind"]}, "`writes`"),
        ({"gradients", "eigenbasis", "lambda"}, set(inputs), "inputs"),
        (set(knobs), set(knobs) | set(request["config"]), "knobs"),
    ]:
        if known != given:
            raise SystemExit(f"precondition.py: {what} must be {sorted(known)}, not {sorted(given)}")
    knobs |= request["config"]

    curvature = load_curvature(inputs["eigenbasis"], inputs["lambda"], knobs["damping"])
    metadata = {
        "wherefrom.kind": request["kind"],
        "wherefrom.version": str(request["version"]),
        "wherefrom.key": request["key"],
        "wherefrom.method": "ekfac",
        "wherefrom.damping": json.dumps(knobs["damping"], separators=(",", ":")),
        "wherefrom.rank": json.dumps(knobs["rank"]),
    }
    for part in parts(inputs["gradients"]):
        write(arguments.output / part.name, metadata, (
            [precondition(row, *curvature[row["module"].as_py()], knobs["rank"]) for row in batch]
            for batch in batches(part)
        ))  # fmt: skip


def precondition(gradient, q_s, q_a, inverse, rank):
    """One row of `gradients` -> one row of `preconditioned`. q_s [out, out], q_a [in, in], inverse [out, in]."""
    left, right = matrix(gradient, "left", "left_shape"), matrix(gradient, "right", "right_shape")
    rotated = (q_s.T @ left) @ (q_a.T @ right).T
    product = q_s @ (rotated * inverse) @ q_a.T
    row = {"query": gradient["example"].as_py(), "module": gradient["module"].as_py()}
    if rank == "full" or rank >= min(product.shape):
        return row | {"rank": 0, **factor("left", product), **factor("right", np.empty((0, 0)))}
    u, s, vt = np.linalg.svd(product, full_matrices=False)  # the best approximation of this rank: u s v^T
    return row | {"rank": rank, **factor("left", u[:, :rank] * s[:rank]), **factor("right", vt[:rank].T)}


def load_curvature(eigenbasis, fitted, damping):
    """Module -> Q_S, Q_A and 1 / (Lambda + damping); zero where Lambda is zero: such a module contributes nothing."""
    basis = {
        (module, row["side"].as_py()): matrix(row, "vectors")
        for row in rows(eigenbasis)
        for module in [row["module"].as_py(), *row["shared_with"].as_py()]  # gate and up read the same input
    }
    curvature = {}
    for row in rows(fitted):
        module = row["module"].as_py()
        mean = matrix(row, "lambda") / row["count"].as_py()  # the file holds the sum over examples
        added = damping["absolute"] if "absolute" in damping else damping["relative"] * mean.mean()
        inverse = 1 / (mean + added) if mean.any() else np.zeros_like(mean)
        curvature[module] = basis[module, "gradient"], basis[module, "activation"], inverse
    return curvature


def parts(folder):
    """The parts of an artifact, in order."""
    return sorted(folder.glob("part-*.arrow"))


def batches(part):
    """Each record batch of a part as a list of rows; a row is a dict, column name -> Arrow scalar."""
    with pa.memory_map(str(part)) as file, pa.ipc.open_file(file) as reader:
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            yield [{name: batch.column(name)[i] for name in batch.schema.names} for i in range(batch.num_rows)]


def rows(folder):
    """The rows of every part."""
    return (row for part in parts(folder) for batch in batches(part) for row in batch)


def matrix(row, values, shape="shape"):
    """Row-major values and their shape -> a float64 matrix."""
    return row[values].values.to_numpy().reshape(row[shape].as_py()).astype(np.float64)


def factor(name, values):
    """A matrix -> its two columns."""
    return {f"{name}_shape": values.shape, name: values.astype(np.float32).ravel()}


def write(path, metadata, batches):
    """Writes a part: a temporary name first, so that a part that exists is complete."""
    schema = pa.schema(COLUMNS).with_metadata(metadata)
    temporary = path.with_name(path.name + ".tmp")
    with pa.ipc.new_file(str(temporary), schema) as file:
        for rows in batches:
            columns = [pa.array([row[name] for row in rows], type) for name, type in COLUMNS.items()]
            file.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
