"""The page as a browser has it: no error, keys and clicks, and the numbers that a reader sees against the artifacts.

    python -m pytest tests/report          # `just test-report` sees to what it needs

Environment: WHEREFROM, the program; PIPELINE, a pipeline with the steps of the quickstart that has been run.
"""

import json
import math
import os
import re
import subprocess
from pathlib import Path

import polars as pl
import pytest

from browser import Browser, program

REPOSITORY = Path(__file__).resolve().parents[2]
PIPELINE = os.environ.get("PIPELINE", "pipelines/quickstart.toml")
assert program(), "no Chromium here: apt install chromium"


def folder(step):
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    command = [os.environ.get("WHEREFROM", target / "release/wherefrom"), "path", PIPELINE, step]
    return REPOSITORY / subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.strip()


def table(step):
    return pl.read_parquet(folder(step) / "*.parquet")


@pytest.fixture(scope="module")
def page():
    return folder("report") / "index.html"


@pytest.fixture(scope="module")
def ranking():
    return table("final")


@pytest.fixture
def browser():
    with Browser() as browser:
        yield browser
        assert browser.problems == []


def number(text):
    return float(re.search(r"[+−-]?[\d.,]+(e[+−-]?\d+)?", text)[0].replace("−", "-").replace(",", ""))


def shown(browser, selector):
    return browser.run(f"[...document.querySelectorAll({selector!r})].map((element) => element.textContent)")


def cards(browser):
    return browser.run("""[...document.querySelectorAll(".card")].map((card) => ({
        label: card.dataset.sequence, example: Number(card.dataset.example), doc: card.querySelector(".doc").textContent,
        influence: card.querySelector(".influence").textContent, share: card.querySelector(".share")?.textContent,
        text: [...card.querySelectorAll(".text > span")].map((span) => span.textContent).join("") }))""")


def test_every_query_shows_the_rows_of_the_ranking(browser, page, ranking):
    browser.open(page)
    scores, losses = table("scores"), table("losses")
    for query in ranking["query"].unique().sort():
        browser.go(f"#query-{query}")
        browser.until(f"document.querySelector('nav [aria-current]').hash === '#query-{query}'")
        rows = ranking.filter(pl.col("query") == query)
        found = cards(browser)
        expected = [row for sign in ("positive", "negative")
                    for row in rows.filter(pl.col("sign") == sign, pl.col("rank") <= 50).sort("rank").rows(named=True)]
        assert len(found) == len(expected) > 0
        sums = {sign: value for sign, value in [
            ("positive", scores.filter(pl.col("query") == query, pl.col("influence") > 0)["influence"].cast(pl.Float64).sum()),
            ("negative", -scores.filter(pl.col("query") == query, pl.col("influence") < 0)["influence"].cast(pl.Float64).sum())]}
        for card, row in zip(found, expected):
            sign = "+" if row["sign"] == "positive" else "−"
            assert (card["label"], card["example"], card["doc"]) == (f"{sign}{row['rank']}", row["example"], row["doc"])
            assert number(card["influence"]) == pytest.approx(row["influence"], rel=6e-4)
            assert number(card["share"]) == pytest.approx(100 * abs(row["influence"]) / sums[row["sign"]], rel=0.06, abs=0.5)
            assert row["text"] in card["text"]
        loss = losses.filter(pl.col("example") == query).row(0, named=True)
        under = [number(text) for text in shown(browser, ".asked rt")]
        assert sum(under) == pytest.approx(-sum(loss["by_token"]), abs=0.006 * (len(under) + 1))
        exact = sorted(value for value in scores.filter(pl.col("query") == query, pl.col("influence") > 0)["influence"])
        top = exact[-math.ceil(len(exact) / 100):]
        percents = shown(browser, ".shares tbody tr:nth-child(2) td:last-child")
        assert number(percents[0]) == pytest.approx(100 * sum(top) / sum(exact), abs=0.06)


def test_the_table_of_all_queries_agrees(browser, page, ranking):
    browser.open(page, "#all")
    losses = table("losses")
    rows = browser.run("[...document.querySelectorAll('.queries tbody tr')].map((row) => [row.dataset.query, ...[...row.cells].map((cell) => cell.textContent)])")
    assert len(rows) == ranking["query"].n_unique()
    for query, _, log_p, positive, negative, *_ in rows:
        mine = ranking.filter(pl.col("query") == int(query), pl.col("rank") == 1)
        assert number(log_p) == pytest.approx(-losses.filter(pl.col("example") == int(query))["loss"][0], abs=0.006)
        for sign, text in (("positive", positive), ("negative", negative)):
            assert number(text) == pytest.approx(mine.filter(pl.col("sign") == sign)["influence"][0], rel=6e-4)


def strong(browser):
    """Place and share of the strongest token of the first card, as it is coloured and as it is said."""
    return browser.run("""(() => { const spans = [...document.querySelectorAll(".card .text")[0].children];
        const strength = (span) => Number(span.style.getPropertyValue("--s") || 0);
        const best = spans.reduce((best, span, index) => (strength(span) > strength(spans[best]) ? index : best), 0);
        return [best, document.querySelector(".card .readout").textContent]; })()""")


def test_the_token_mode_moves_the_colour_to_the_next_token(browser, page):
    details = table("details")
    browser.open(page, "#query-10")
    query = details.filter(pl.col("query") == 10)
    shares = query.sort("influence").row(-1, named=True)["by_token"]
    place = max(range(len(shares)), key=lambda token: abs(shares[token]))
    before, said = strong(browser)
    assert number(said.split("”")[1]) == pytest.approx(shares[place], rel=6e-3)
    assert before == place, "English text: a token is a span"
    browser.click("input[value=predicts]")
    after, said = strong(browser)
    assert after == place + 1
    assert number(said.split("”")[1]) == pytest.approx(shares[place], rel=6e-3)
    # Radio buttons: the arrow keys change them.
    browser.run("document.querySelector('input[value=predicts]').focus()")
    browser.key("ArrowUp")
    assert browser.run("document.querySelector('input[value=update]').checked")
    assert strong(browser)[0] == place


def test_queries_are_switched_by_click_and_key(browser, page):
    browser.open(page)
    title = lambda: browser.run("document.querySelector('#query-title').textContent")
    first = title()
    browser.key("n")
    browser.until(f"document.querySelector('#query-title').textContent !== {first!r}")
    second = title()
    browser.key("p")
    browser.until(f"document.querySelector('#query-title').textContent === {first!r}")
    browser.click("nav a:nth-of-type(3)")
    browser.until(f"document.querySelector('#query-title').textContent === {second!r}")
    browser.click("nav a:nth-of-type(1)")
    browser.until("!document.querySelector('#study').hidden && document.querySelector('#query').hidden")


def test_tokens_and_columns_are_walked_by_key(browser, page):
    browser.open(page, "#query-0")
    browser.run("document.querySelector('.card .text').focus()")
    browser.key("ArrowRight")
    browser.key("ArrowRight")
    assert shown(browser, ".card .text .here") == [browser.run("document.querySelectorAll('.card .text > span')[1].textContent")]
    assert ", token 1" in shown(browser, ".card .readout")[0]
    browser.run("document.querySelector('#layers svg[tabindex]').focus()")
    browser.key("ArrowRight")
    browser.key("ArrowRight")
    said = shown(browser, "#layers .readout")[0]
    assert "centre at layer" in said
    browser.key("Enter")
    label = said.split()[0]
    assert browser.run("document.activeElement.closest('.card')?.dataset.sequence") == label


@pytest.mark.parametrize("width", [390, 800, 1360])
def test_nothing_is_wider_than_the_window(browser, page, width):
    browser.size(width, 900)
    for place in ("#query-0", "#query-3", "#all"):
        browser.open(page, place)
        assert browser.run("document.documentElement.scrollWidth") <= width, place


def test_plots_say_what_they_show(browser, page):
    browser.open(page, "#query-0")
    labels = browser.run("[...document.querySelectorAll('#query svg')].map((svg) => svg.getAttribute('aria-label'))")
    assert len(labels) >= 5 and all(labels)


def test_the_policy_lets_the_page_do_its_own_and_nothing_else(page, tmp_path):
    """Colours and side files work from disk; what a text might have brought in would not run."""
    html = page.read_text()
    data = re.search(r'<script type="application/json" id="data-query-1">(.*?)</script>', html, re.S)
    study = re.search(r'id="data-study">(.*?)</script>', html, re.S)[1]
    summary = json.loads(study)
    next(entry for entry in summary["queries"] if entry["query"] == 1)["file"] = "query-00001.js"
    beside = html.replace(data[0], "").replace(study, json.dumps(summary).replace("<", "\\u003c"))
    forged = '<script>window.forged = true</script><img src="x" onerror="window.forged = true"><style>body { display: none }</style>'
    (tmp_path / "index.html").write_text(beside.replace("</body>", f"{forged}</body>"))
    (tmp_path / "query-00001.js").write_text(f"wherefromQuery(1, {data[1]});\n")
    with Browser() as browser:
        browser.open(tmp_path / "index.html", "#query-1")
        browser.until("document.querySelectorAll('.card').length > 0")
        assert strong(browser)[1].startswith("strongest")
        assert browser.run("getComputedStyle(document.body).display") != "none"
        assert browser.run("window.forged === undefined")
        told = [str(problem) for problem in browser.problems]
        assert told and all("Content Security Policy" in problem for problem in told), told
