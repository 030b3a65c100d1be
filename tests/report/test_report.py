"""The page as a browser has it: no error, keys and clicks, and the numbers that a reader sees against the artifacts.

    python -m pytest tests/report          # `just test-report` sees to what it needs

Environment: WHEREFROM, the program; PIPELINE, a pipeline with the steps of the quickstart that has been run.
"""

import json
import math
import os
import re
import subprocess
import time
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


def shown_all(browser):
    browser.run("document.querySelectorAll('#sequences .more').forEach((button) => button.click())")


def type_into(browser, selector, text):
    browser.run(f"(() => {{ const field = document.querySelector({selector!r}); field.value = {text!r}; field.dispatchEvent(new Event('input')); }})()")


def choose(browser, selector, value):
    browser.run(f"(() => {{ const field = document.querySelector({selector!r}); field.value = {value!r}; field.dispatchEvent(new Event('change')); }})()")


def test_every_query_shows_the_rows_of_the_ranking(browser, page, ranking):
    browser.open(page)
    scores, losses = table("scores"), table("losses")
    for query in ranking["query"].unique().sort():
        browser.go(f"#query-{query}")
        browser.until(f"document.querySelector('nav [aria-current]').hash === '#query-{query}'")
        rows = ranking.filter(pl.col("query") == query)
        shown_all(browser)
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
    """Place and share of the strongest word of the first card, as it is coloured and as it is said."""
    return browser.run("""(() => { const spans = [...document.querySelectorAll(".card .text")[0].children];
        const strength = (span) => Number(/[\\d.]+(?=\\))/.exec(span.querySelector("i")?.style.getPropertyValue("--w") || "")?.[0] || 0);
        const best = spans.reduce((best, span, index) => (strength(span) > strength(spans[best]) ? index : best), 0);
        return [best, document.querySelector(".card .readout").textContent]; })()""")


def test_words_hold_their_pieces_and_the_mode_moves_the_colour(browser, page):
    details = table("details")
    browser.open(page, "#query-10")
    row = details.filter(pl.col("query") == 10).sort("influence").row(-1, named=True)
    shares = row["by_token"]
    pieces = browser.run("""[...document.querySelectorAll(".card .text")[0].children].map((word) => word.querySelectorAll("i").length || 1)""")
    assert sum(pieces) == len(shares) and max(pieces) > 1, "English text: a token is a piece, and some words have several"
    starts = [sum(pieces[:word]) for word in range(len(pieces))]
    for shift in (0, 1):
        # At itself, or at the next token, which it predicts.
        at = [0.0] * shift + shares[: len(shares) - shift]
        sums = [sum(at[start:start + count]) for start, count in zip(starts, pieces)]
        best = max(range(len(sums)), key=lambda word: abs(sums[word]))
        place, said = strong(browser)
        assert place == best
        assert number(said.split("”")[1]) == pytest.approx(sums[best], rel=6e-3, abs=2e-3 * max(map(abs, shares)))
        browser.click("input[value=predicts]")
    # Pointing at a word of several pieces says each.
    browser.click("input[value=update]")
    several = pieces.index(max(pieces))
    said = browser.run(f"""(() => {{ const word = document.querySelectorAll(".card .text")[0].children[{several}];
        word.dispatchEvent(new PointerEvent("pointerover", {{ bubbles: true }})); return document.querySelector(".card .readout").textContent; }})()""")
    assert said.count("·") == max(pieces) - 1 and f"tokens {starts[several]} to" in said
    # Radio buttons: the arrow keys change them.
    browser.run("document.querySelector('input[value=update]').focus()")
    browser.key("ArrowDown")
    assert browser.run("document.querySelector('input[value=predicts]').checked")


def test_a_word_has_one_colour_until_one_points_at_it_and_spaces_have_none(browser, page):
    browser.open(page, "#query-10")
    words = browser.run("""[...document.querySelectorAll(".text .w")].map((word) => [
        [...new Set([...word.querySelectorAll("i")].map((piece) => getComputedStyle(piece).backgroundColor))],
        getComputedStyle(word).backgroundColor, word.querySelectorAll("i").length, [...word.querySelectorAll("i")].map((piece) => piece.textContent)])""")
    assert max(pieces for _, _, pieces, _ in words) > 1 and any(colours != ["rgba(0, 0, 0, 0)"] for colours, *_ in words)
    for colours, own, _, texts in words:
        assert len(colours) <= 1 and own == "rgba(0, 0, 0, 0)"
        assert not texts or not "".join(texts).strip() or not texts[0][0].isspace(), texts
    browser.run("document.querySelectorAll('.text .w').forEach((word) => { if (word.querySelectorAll('i').length > 2) word.classList.add('here'); })")
    pointed = browser.run("""[...document.querySelectorAll(".text .here")].map((word) =>
        new Set([...word.querySelectorAll("i")].map((piece) => getComputedStyle(piece).backgroundColor)).size)""")
    assert max(pointed) > 1, "pieces of a word that one points at have their own"


def test_an_address_that_leads_nowhere_is_said(browser, page):
    for place, said in [("#query-99", "no query 99"), ("#query-0/rank-4000", "no proponent 4000"), ("#nowhere", "no such place")]:
        browser.open(page, place)
        browser.until("!document.querySelector('#lost').hidden")
        assert said in shown(browser, "#lost")[0]
    browser.go("#query-0")
    browser.until("document.querySelector('#lost').hidden")


def test_passages_are_filtered_and_sorted(browser, page):
    browser.open(page, "#query-0")
    shown_all(browser)
    every = cards(browser)
    choose(browser, "#filter-sign", "minus")
    shown_all(browser)
    assert [card["label"] for card in cards(browser)] == [card["label"] for card in every if card["label"].startswith("−")]
    choose(browser, "#filter-sign", "both")
    choose(browser, "#filter-sort", "corpus")
    shown_all(browser)
    plus = [card["example"] for card in cards(browser) if card["label"].startswith("+")]
    assert plus == sorted(plus)
    options = browser.run("[...document.querySelector('[data-column=document]').options].map((option) => [option.value, option.text])")
    value, name = next(option for option in options if option[1] == "web")
    choose(browser, "[data-column=document]", value)
    shown_all(browser)
    assert {card["label"] for card in cards(browser)} == {card["label"] for card in every if card["doc"].startswith(name + "/")}
    choose(browser, "[data-column=document]", "")
    type_into(browser, "#filter-text", "HEAVEN")
    shown_all(browser)
    assert {card["label"] for card in cards(browser)} == {card["label"] for card in every if "heaven" in card["text"].lower()}
    assert shown(browser, ".filters .count") == [f"{len(cards(browser))} of {len(every)}"]


def test_queries_and_passages_are_found(browser, page):
    browser.open(page, "#query-0")
    type_into(browser, "#find", "Nairobi")
    browser.until("document.querySelectorAll('#found .hit').length > 0")
    visible = browser.run("[...document.querySelectorAll('#queries a')].filter((link) => !link.hidden).map((link) => link.hash)")
    assert visible == ["#query-7", "#query-8"]
    assert all("Nairobi" in text for text in shown(browser, "#found mark"))
    browser.click("#found .places a")
    browser.until("document.querySelector('.card.named')")
    assert "Nairobi" in shown(browser, ".card.named .text")[0]


def test_a_passage_has_an_address_that_is_copied(browser, page):
    browser.open(page, "#query-3/opponent-5")
    browser.until("document.querySelector('.card.named')")
    assert browser.run("document.activeElement.closest('.card').dataset.sequence") == "−5"
    browser.open(page, "#query-3/rank-12")
    browser.until("document.querySelector('.card.named')?.dataset.sequence === '+12'")
    browser.run("""void(window.copied = [], Object.defineProperty(navigator, "clipboard", { value: { writeText: (text) => { window.copied.push(text); return Promise.resolve(); } } }))""")
    browser.click(".card.named .link")
    browser.click(".card.named .words")
    link, text = browser.run("window.copied")
    assert link.startswith("file://") and link.endswith("#query-3/rank-12")
    assert text == browser.run("[...document.querySelectorAll('.card.named .text > span')].map((span) => span.textContent).join('')")


def test_numbers_stay_apart_from_words_when_copied(browser, page):
    browser.open(page, "#query-7")
    copied = browser.run("(() => { getSelection().selectAllChildren(document.querySelector('.asked')); return getSelection().toString(); })()")
    assert "Nairobi" in copied and not re.search(r"\d", copied), copied
    copied = browser.run("(() => { getSelection().selectAllChildren(document.querySelector('.card header')); return getSelection().toString(); })()")
    assert re.match(r"\+1\s+\+7\.929 nats\s+6\.2 % of all positive\s+factbook", copied), copied


def test_tables_are_saved(browser, page, ranking, tmp_path):
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.open(page, "#query-9")
    for button in (1, 2):
        browser.click(f".filters .buttons button:nth-child({button})")
    expected = ranking.filter(pl.col("query") == 9).sort("sign", "rank", descending=[True, False])
    wait_for(tmp_path / "query-9.csv", tmp_path / "query-9.json")
    csv = pl.read_csv(tmp_path / "query-9.csv")
    rows = json.loads((tmp_path / "query-9.json").read_text())
    for found in (csv.rows(named=True), rows):
        assert [(row["sign"], row["rank"], row["example"], row["doc"]) for row in found] == expected.select("sign", "rank", "example", "doc").rows()
        assert [row["influence"] for row in found] == pytest.approx(expected["influence"].to_list(), rel=1e-6)
        assert (found[0]["prompt"], found[0]["completion"].strip(), found[0]["contrast"].strip()) == ("The capital of France is", "Paris", "London")
    browser.open(page, "#all")
    browser.click("#study-buttons button")
    wait_for(tmp_path / "queries.csv")
    assert len(pl.read_csv(tmp_path / "queries.csv")) == ranking["query"].n_unique()


def wait_for(*paths):
    for _ in range(200):
        if all(path.exists() and path.stat().st_size for path in paths):
            return
        time.sleep(0.05)
    raise AssertionError(f"not saved: {paths}")


def test_groups_sum_the_influence_of_all_rows(browser, page):
    browser.open(page, "#query-9")
    docs = table("train").select("example", pl.col("docs").list.first().str.split("/").list.first().alias("group"))
    scores = table("scores").filter(pl.col("query") == 9).join(docs, on="example").with_columns(pl.col("influence").cast(pl.Float64))
    groups = scores.group_by("group").agg(pl.len().alias("rows"), pl.col("influence").sum(), pl.col("influence").abs().sum().alias("absolute"))
    rows = browser.run("[...document.querySelectorAll('.groups tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))")
    assert [row[0] for row in rows] == groups.sort("absolute", descending=True)["group"].to_list()
    total = groups["absolute"].sum()
    for name, count, share, _, influence, absolute, part, lift in rows:
        group = groups.filter(pl.col("group") == name).row(0, named=True)
        assert number(count) == group["rows"]
        assert number(influence) == pytest.approx(group["influence"], rel=1e-3, abs=1e-3)
        assert number(absolute) == pytest.approx(group["absolute"], rel=1e-3)
        assert number(lift) == pytest.approx(group["absolute"] / total / (group["rows"] / len(docs)), rel=0.06)


def test_the_column_with_the_fewest_groups_comes_first(page, tmp_path):
    """The quickstart's page with a column of forty dates before its own."""
    html = page.read_text()

    def edited(name, change):
        found = re.search(rf'(<script type="application/json" id="{name}">)(.*?)</script>', html, re.S)
        value = json.loads(found[2])
        change(value)
        return html.replace(found[0], found[1] + json.dumps(value).replace("<", "\\u003c") + "</script>")

    def with_dates(view):
        view["groups"].insert(0, {"groups": [[date, 1.0, 0.0] for date in range(40)], "rest": None, "total": [40.0, 0.0]})
        for row in view["rows"]:
            row["groups"].insert(0, 0)

    html = edited("data-study", lambda study: study["groupings"].insert(
        0, {"name": "date", "labels": [f"2024-01-{day}" for day in range(40)], "sizes": [1] * 40}))
    html = edited("data-query-0", with_dates)
    (tmp_path / "index.html").write_text(html)
    with Browser() as browser:
        browser.open(tmp_path / "index.html", "#query-0")
        assert browser.run("document.querySelector('.by select').selectedOptions[0].text") == "document"
        assert browser.problems == []


def test_contrasts_read_as_differences(browser, page):
    browser.open(page, "#query-9")
    assert "log p(Paris) − log p(London)" in shown(browser, ".sign.plus h4")[0]
    assert "log p(Paris) − log p(London) = " in shown(browser, ".measured")[0]
    assert "(against" in browser.run("document.querySelector('tr[data-query=\"9\"] .excerpt').textContent")


def test_three_hundred_queries_come_in_pages(page, tmp_path):
    """The quickstart's page with its first query three hundred times."""
    html = page.read_text()
    study = re.search(r'id="data-study">(.*?)</script>', html, re.S)[1]
    view = re.search(r'<script type="application/json" id="data-query-0">(.*?)</script>', html, re.S)[1]
    summary = json.loads(study)
    entry = summary["queries"][0]
    summary["queries"] = [entry | {"query": query, "name": f"query-name-{query}", "text": f"text {query}"} for query in range(300)]
    links = "".join(f'<a href="#query-{query}"><span class="number">{query}</span> <bdi>query-name-{query}</bdi></a>' for query in range(300))
    html = re.sub(r'(<div id="queries">).*?(</div>)', lambda found: found[1] + links + found[2], html, count=1, flags=re.S)
    html = html.replace(study, json.dumps(summary).replace("<", "\\u003c"))
    inline = "".join(f'<script type="application/json" id="data-query-{query}">{view.replace(chr(34) + "query" + chr(34) + ":0", chr(34) + "query" + chr(34) + f":{query}", 1)}</script>' for query in range(13, 300))
    html = html.replace('<script type="application/json" id="data-query-0">', inline + '<script type="application/json" id="data-query-0">')
    (tmp_path / "index.html").write_text(html)
    with Browser(1440, 900) as browser:
        start = time.monotonic()
        browser.open(tmp_path / "index.html", "#query-150")
        browser.until("document.querySelectorAll('.card').length > 0")
        assert time.monotonic() - start < 10
        visible = "[...document.querySelectorAll('#queries a')].filter((link) => !link.hidden).map((link) => link.textContent)"
        assert len(browser.run(visible)) == 25 and "150 query-name-150" in browser.run(visible)
        assert shown(browser, "#pager span") == ["151–175 of 300"]
        assert browser.run("document.querySelector('nav').scrollHeight") < 900
        browser.size(1280, 800)
        for query in (150, 174):
            browser.go(f"#query-{query}")
            browser.until(f"document.querySelector('#queries [aria-current]').hash === '#query-{query}'")
            for part in ("#pager", "#queries [aria-current]"):
                box = f"document.querySelector('{part}').getBoundingClientRect()"
                assert 0 < browser.run(f"{box}.top") < browser.run(f"{box}.bottom") <= 800, (query, part)
        browser.click("#pager button:last-child")
        assert shown(browser, "#pager span") == ["176–200 of 300"]
        type_into(browser, "#find", "query-name-29")
        browser.until("document.querySelector('#pager').textContent.includes('of 11')")
        assert len(browser.run(visible)) == 11
        browser.until("document.querySelector('#found h3')", 30)
        assert browser.problems == []


def test_queries_are_switched_by_click_and_key(browser, page):
    browser.open(page)
    title = lambda: browser.run("document.querySelector('#query-title').textContent")
    first = title()
    browser.key("n")
    browser.until(f"document.querySelector('#query-title').textContent !== {first!r}")
    second = title()
    browser.key("p")
    browser.until(f"document.querySelector('#query-title').textContent === {first!r}")
    browser.click("#queries a:nth-of-type(2)")
    browser.until(f"document.querySelector('#query-title').textContent === {second!r}")
    browser.click("nav a.all")
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


@pytest.mark.parametrize("width", [390, 800, 1280, 1440])
def test_nothing_is_wider_than_the_window(browser, page, width):
    browser.size(width, 900)
    for place in ("#query-0", "#query-3", "#all"):
        browser.open(page, place)
        assert browser.run("document.documentElement.scrollWidth") <= width, place
        lines = "[...document.querySelectorAll('.asked rt')].map((number) => number.getClientRects().length)"
        assert set(browser.run(lines)) <= {1}, "a number stands on one line, under its word"


def test_plots_are_not_made_small_on_a_phone(browser, page):
    browser.size(390, 844)
    browser.open(page, "#query-0")
    scales = browser.run("[...document.querySelectorAll('#query figure svg')].map((svg) => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width)")
    assert scales and min(scales) > 0.99
    assert browser.run("document.documentElement.scrollWidth") <= 390


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
