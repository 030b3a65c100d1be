"""examples/study: DuckDB and Polars give the same answers, and they are those of the artifacts."""

import importlib.util

import duckdb
import polars as pl
import pytest

from conftest import REPOSITORY

STEPS = ("ranking", "details", "scores", "train", "losses")
EXAMPLES = REPOSITORY / "examples/study"


@pytest.fixture(scope="module")
def folders(study):
    return [str(study.wherefrom.folder / study.folder(step)) for step in STEPS]


@pytest.fixture(scope="module")
def answers(folders):
    spec = importlib.util.spec_from_file_location("questions", EXAMPLES / "questions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.questions(*folders)


@pytest.fixture(scope="module")
def database(folders):
    connection = duckdb.connect()
    text = (EXAMPLES / "questions.sql").read_text()
    # getenv is a function of the DuckDB shell.
    for name, folder in zip(("RANKING", "DETAILS", "SCORES", "TRAIN", "LOSSES"), folders):
        text = text.replace(f"getenv('{name}')", f"'{folder}'")
    connection.execute(text)
    return connection


@pytest.mark.parametrize("name", ["strongest", "concentration", "shared", "modules", "few_tokens"])
def test_both_answer_the_same(name, answers, database):
    polars = answers[name]
    duck = database.execute(f"select {', '.join(polars.columns)} from {name}").fetchall()
    assert len(duck) == len(polars)
    assert duck or name == "few_tokens"
    for left, right in zip(duck, polars.rows()):
        for one, other in zip(left, right):
            if isinstance(one, float):
                assert one == pytest.approx(other, abs=0.11 if abs(one) > 30 else 0.0011), (left, right)
            else:
                assert one == other, (left, right)


def test_the_answers_are_those_of_the_tables(answers, folders):
    ranking, scores = (pl.read_parquet(folder + "/*.parquet") for folder in (folders[0], folders[2]))
    best = scores.group_by("query").agg(pl.col("influence").max()).sort("query")
    assert answers["strongest"]["influence"].to_list() == pytest.approx(best["influence"].to_list(), abs=6e-4)
    for query, share, _ in answers["concentration"].rows():
        positive = sorted((value for value in scores.filter(pl.col("query") == query)["influence"] if value > 0), reverse=True)
        top = positive[: -(-len(positive) // 100)]
        assert share == pytest.approx(sum(top) / sum(positive), abs=1e-3)
    for doc, queries, which, _ in answers["shared"].rows():
        assert queries == len(which) == len(ranking.filter(pl.col("doc") == doc, pl.col("sign") == "positive"))
    totals = answers["modules"].group_by("query").agg(pl.col("share").sum())["share"]
    assert all(total == pytest.approx(1, abs=2e-3) for total in totals)
