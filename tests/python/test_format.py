"""Artifacts are what FORMAT.md says they are, for readers that know nothing of wherefrom."""

import ast
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import document

TABLES = {"train": "tokens", "losses": "losses", "candidates": "candidates", "scores": "scores", "details": "details",
          "ranking": "ranking", "coordinates": "coordinates", "index-scores": "scores",
          "judgements": "judgements", "along": "projections"}  # fmt: skip
MATRICES = {"covariances": "covariances", "basis": "eigenbasis", "lambda": "lambda", "gradients": "gradients",
            "ihvp": "preconditioned", "ihvp-full": "preconditioned", "index": "index", "activations": "activations",
            "projections": "projected-gradients", "vectors": "vectors"}  # fmt: skip

VERSIONS = {"tokens": 3, "covariances": 2, "eigenbasis": 2, "ranking": 2}  # The others are of version 1.


def schema(part):
    return pq.read_schema(part) if part.suffix == ".parquet" else pa.ipc.open_file(part).schema


def table(study, step):
    """Every row of a step's artifact."""
    parts = study.parts(step)
    read = pq.read_table if parts[0].suffix == ".parquet" else lambda part: pa.ipc.open_file(part).read_all()
    return pa.concat_tables(read(part) for part in parts)


def matrix(row, values, shape="shape"):
    return np.array(row[values], dtype=np.float64).reshape(row[shape])


@pytest.mark.parametrize("step, kind", [*TABLES.items(), *MATRICES.items()])
def test_parts_and_manifest_are_as_documented(study, step, kind):
    manifest, rows = study.manifest(step), 0
    assert (manifest["kind"], manifest["version"], manifest["key"]) == (kind, VERSIONS.get(kind, 1), study.folder(step).name)
    assert set(manifest["summary"]) == document.summary(kind)
    for part, entry in zip(study.parts(step), manifest["parts"], strict=True):
        found = schema(part)
        assert {field.name: field.type for field in found} == document.columns(kind)
        assert found.names == list(document.columns(kind))
        assert {name.decode() for name in found.metadata} == document.metadata(kind)
        assert found.metadata[b"wherefrom.kind"].decode() == kind
        assert found.metadata[b"wherefrom.key"].decode() == manifest["key"]
        assert part.stat().st_size == entry["bytes"]
        rows += entry["rows"]
    whole = table(study, step)
    assert whole.num_rows == rows > 0
    assert all(column.null_count == 0 for column in whole.columns)


def test_fields_of_the_manifest_are_documented(study):
    manifest = study.manifest("details")
    fields = (set(manifest) - {"recipe"}) | {f"recipe.{field}" for field in manifest["recipe"]}
    assert {field for field in fields if f"\n| {field} | " not in document.TEXT} == set()
    assert study.wherefrom("verify").returncode == 0


def evaluate(line, folder):
    """The value of a line's last expression."""
    *before, last = ast.parse(line.replace("FOLDER", str(folder))).body
    names = {}
    exec(compile(ast.Module(before, []), line, "exec"), names)
    return eval(compile(ast.Expression(last.value), line, "eval"), names)


def check_one_liner(line, study, step, kind):
    found = evaluate(line, study.folder(step))
    names = found.column_names if hasattr(found, "column_names") else found.columns
    parts = study.manifest(step)["parts"]
    assert list(names) == list(document.columns(kind))
    assert found.shape[0] == sum(part["rows"] for part in (parts if "*" in line else parts[:1]))


@pytest.mark.parametrize("line", document.one_liners("parquet"))
@pytest.mark.parametrize("step", ["scores", "ranking", "train", "details"])
def test_one_liners_read_tables(study, step, line):
    check_one_liner(line, study, step, TABLES[step])


@pytest.mark.parametrize("line", document.one_liners("arrow"))
@pytest.mark.parametrize("step", ["basis", "gradients", "ihvp"])
def test_one_liners_read_matrices(study, step, line):
    check_one_liner(line, study, step, MATRICES[step])


def test_one_liners_cover_every_tool():
    for ending in ["parquet", "arrow"]:
        lines = "\n".join(document.one_liners(ending))
        assert [tool for tool in ["duckdb", "polars", "pandas", "pyarrow", "datasets"] if tool not in lines] == []


def test_a_study_has_several_parts(study):
    assert len(study.parts("scores")) > 1, "or the one-liners would not be seen to read them all"


def test_tokens_are_whole(study):
    for row in table(study, "queries").to_pylist():
        assert len(row["input_ids"]) == len(row["target_mask"])
        assert any(row["target_mask"]) and not row["target_mask"][0]
    assert table(study, "train")["example"].to_pylist() == list(range(study.manifest("train")["summary"]["examples"]))


def test_a_trait_and_its_judgements_are_whole(study):
    sides = [json.loads((study.folder("character") / name).read_text()) for name in ["extract.json", "eval.json"]]
    assert [len(side["questions"]) for side in sides] == [1, 1] and sides[0]["eval_prompt"] == sides[1]["eval_prompt"]
    assert set(study.manifest("character")["summary"]) == document.summary("trait")
    examples = study.manifest("queries")["summary"]["examples"]
    rows = table(study, "judgements").to_pylist()
    assert [(row["example"], row["metric"]) for row in rows] == [(n, m) for n in range(examples) for m in ["loud", "coherence"]]
    assert all((row["score"] != row["score"]) == (row["status"] in ["refusal", "empty"]) for row in rows)


def test_vectors_are_differences_of_means_and_projections_are_on_their_directions(study):
    vectors = table(study, "vectors").to_pylist()
    for row in vectors:
        v = np.array(row["vector"])
        assert np.allclose(v, np.subtract(row["positive"], row["negative"]), atol=1e-5)
        assert row["norm"] == pytest.approx(np.linalg.norm(v), rel=1e-5)
    chosen = [row for row in vectors if row["over"] == "response-avg"]
    means = {row["example"]: row for row in table(study, "activations").to_pylist()}
    rows = table(study, "along").to_pylist()
    assert len(rows) == len(chosen) * len(means)
    for row in rows:
        direction = np.array(chosen[row["query"]]["vector"])
        stream = matrix(means[row["example"]], "target_mean")[row["query"]]
        assert row["projection"] == pytest.approx(stream @ direction / np.linalg.norm(direction), rel=1e-4, abs=1e-5)


def test_losses_sum_over_tokens(study):
    queries = table(study, "queries").to_pylist()
    for row, query in zip(table(study, "losses").to_pylist(), queries, strict=True):
        starts = query["segments"] or [0]
        weights = np.repeat(query["weights"] or [1.0], np.diff([*starts, len(query["input_ids"])]))
        assert row["loss"] == pytest.approx(weights @ row["by_token"], rel=1e-6)
        assert [loss > 0 for loss in row["by_token"]] == query["target_mask"]


def test_eigenbasis_is_that_of_the_covariances(study):
    covariances = table(study, "covariances").to_pylist()
    for row, basis in zip(covariances, table(study, "basis").to_pylist(), strict=True):
        for name in ["module", "side", "shared_with"]:
            assert row[name] == basis[name]
        gate = row["side"] == "activation" and row["module"].endswith("gate_proj")
        assert row["shared_with"] == ([row["module"].replace("gate", "up")] if gate else [])
        mean, vectors = matrix(row, "matrix") / row["count"], matrix(basis, "vectors")
        assert basis["values"] == sorted(basis["values"])
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(vectors)), atol=1e-5)
        np.testing.assert_allclose(vectors * basis["values"] @ vectors.T, mean, atol=1e-5 * abs(mean).max())


def test_factors_have_their_shapes(study):
    shapes = {row["module"]: row["shape"] for row in table(study, "lambda").to_pylist()}
    tokens = {row["example"]: len(row["input_ids"]) for row in table(study, "queries").to_pylist()}
    for step in ["gradients", "ihvp", "ihvp-full"]:
        for row in table(study, step).to_pylist():
            out_features, in_features = shapes[row["module"]]
            rank = {"gradients": tokens.get(row.get("example")), "ihvp": 32, "ihvp-full": 0}[step]
            whole = rank == 0
            assert row["rank"] == rank
            assert row["left_shape"] == [out_features, in_features if whole else rank]
            assert row["right_shape"] == ([0, 0] if whole else [in_features, rank])
            assert len(row["left"]) == np.prod(row["left_shape"])
            assert len(row["right"]) == np.prod(row["right_shape"])


def test_scores_are_inner_products_over_n(study):
    """influence = (1/N) sum over modules of <P(G_q), G_z>, with the queries as the corpus."""
    influence = {(row["query"], row["example"]): row["influence"] for row in table(study, "self").to_pylist()}
    rows = {"gradients": {}, "ihvp-full": {}}
    for step, number in [("gradients", "example"), ("ihvp-full", "query")]:
        for row in table(study, step).to_pylist():
            whole = matrix(row, "left", "left_shape")
            if row["rank"]:
                whole = whole @ matrix(row, "right", "right_shape").T
            rows[step].setdefault(row[number], []).append(whole.ravel())
    examples, queries = ([np.concatenate(parts) for _, parts in sorted(side.items())] for side in rows.values())
    expected = np.array(queries) @ np.array(examples).T / len(examples)
    found = np.array([[influence[q, z] for z in range(len(examples))] for q in range(len(queries))])
    np.testing.assert_allclose(found, expected, atol=1e-5 * abs(expected).max())


def test_an_index_has_the_signs_of_the_gradients(study):
    """x = Q_S^T G Q_A at the coordinates is about c sigma s; influence = (1/N) c sum of y sigma s / (Lambda + damping)."""
    basis = {
        (module, row["side"]): matrix(row, "vectors")
        for row in table(study, "basis").to_pylist()
        for module in [row["module"], *row["shared_with"]]
    }
    fitted = {row["module"]: matrix(row, "lambda") / row["count"] for row in table(study, "lambda").to_pylist()}
    rotated = {}
    for row in table(study, "gradients").to_pylist():
        gradient = matrix(row, "left", "left_shape") @ matrix(row, "right", "right_shape").T
        sides = [basis[row["module"], side] for side in ["gradient", "activation"]]
        rotated[row["example"], row["module"]] = sides[0].T @ gradient @ sides[1]
    coordinates = table(study, "coordinates").to_pylist()
    at = [(row["module"], row["row"], row["column"]) for row in coordinates]
    deviation = np.array([row["deviation"] for row in coordinates])
    damped = np.array([fitted[module][i, j] + 0.1 * fitted[module].mean() for module, i, j in at])
    np.testing.assert_allclose(deviation**2, [fitted[module][i, j] for module, i, j in at], rtol=1e-5)
    index = table(study, "index")
    values = np.array([[rotated[z, module][i, j] for module, i, j in at] for z in index["example"].to_pylist()])
    bits = [np.unpackbits(np.frombuffer(row.as_py(), np.uint8), bitorder="little") for row in index["signs"]]
    signs, scales = 1.0 - 2.0 * np.array(bits)[:, : len(at)], index["scale"].to_numpy()
    clear = abs(values) > 1e-5 * abs(values).max()
    assert (signs[clear] == np.sign(values[clear])).all() and clear.mean() > 0.9
    np.testing.assert_allclose(scales, abs(values / deviation).mean(axis=1), rtol=1e-4)
    expected = (values * deviation / damped) @ (signs * scales[:, None]).T / len(values)
    found = {(row["query"], row["example"]): row["influence"] for row in table(study, "index-scores").to_pylist()}
    found = np.array([[found[q, z] for z in range(len(values))] for q in range(len(values))])
    np.testing.assert_allclose(found, expected, atol=2e-3 * abs(expected).max())


def test_modules_and_tokens_sum_to_influence(study):
    tokens = {row["example"]: len(row["input_ids"]) for row in table(study, "train").to_pylist()}
    for part in study.parts("details"):
        rows = pq.read_table(part)
        modules = json.loads(rows.schema.metadata[b"wherefrom.modules"])
        assert rows.schema.metadata[b"wherefrom.unit"] == b"nats per added copy"
        for row in rows.to_pylist():
            assert len(row["by_module"]) == len(modules)
            assert len(row["by_token"]) == tokens[row["example"]]
            # float32 adds up to the size of its largest terms, which cancel.
            for axis in ["by_module", "by_token"]:
                slack = 1e-5 * sum(map(abs, row[axis]))
                assert sum(row[axis]) == pytest.approx(row["influence"], abs=slack)


def test_rows_come_in_order(study):
    for step in ["scores", "details"]:
        for part in study.parts(step):
            pairs = [(row["query"], row["example"]) for row in pq.read_table(part).to_pylist()]
            assert pairs == sorted(set(pairs))
    ranking = table(study, "ranking").to_pylist()
    order = [(row["query"], row["sign"] == "negative", row["rank"]) for row in ranking]
    assert order == sorted(set(order))
    assert all((row["influence"] > 0) == (row["sign"] == "positive") for row in ranking)
    by_strength = sorted(ranking, key=lambda row: (row["query"], row["sign"] == "negative", -abs(row["influence"])))
    assert by_strength == ranking
