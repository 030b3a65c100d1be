"""Makes corpora/quickstart.jsonl and queries/quickstart.jsonl, the same bytes each time, from a folder of public-domain texts.

    python make_quickstart.py SOURCE    SOURCE holds {austen,kjv,web,devil,jargon,factbook}.jsonl.gz, facts.jsonl, udhr_en_ko_tr.jsonl
    python make_quickstart.py --check   train a BPE of 2048 tokens on the corpus and count its tokens

Needs the `tokenizers` package (made with 0.23.3; another version may cut a few passages elsewhere).
README.md beside this script says where the texts come from and what each query is for.
"""
import argparse
import gzip
import json
import re
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).resolve().parent
CORPUS, QUERIES = HERE / "corpora" / "quickstart.jsonl", HERE / "queries" / "quickstart.jsonl"
VOCABULARY = 2048
MOST_TOKENS = 88  # of a row, bos and eos included, so that windows of 96 cut none
FIRST_BYTES = {"en": 290, "tr": 170, "ko": 170}  # a first cut of the passages, to train the BPE that then measures them

KJV = {  # book: chapters
    "Genesis": [1, 2, 3, 6, 7, 8, 11, 22], "Exodus": [3, 20], "Ruth": [1], "1Samuel": [17], "Job": [38],
    "Psalms": [1, 8, 19, 23, 100, 121, 139], "Proverbs": [1, 2, 3, 9, 16], "Ecclesiastes": [1, 3, 12], "Isaiah": [40],
    "Jonah": [1, 2, 3, 4], "Matthew": [5, 6, 7], "Luke": [2, 10, 15], "John": [1, 3], "1Corinthians": [13], "Revelation": [21],
}
WEB = {"Genesis": [1, 3], "Psalms": [23, 121], "Ecclesiastes": [3], "Matthew": [5], "John": [1], "1Corinthians": [13]}

AUSTEN = {  # novel: rows
    "Pride And Prejudice": 150, "Emma": 90, "Sense And Sensibility": 80, "Persuasion": 80, "Mansfield Park": 70, "Northanger Abbey": 70,
}
JARGON_ROWS, DEVIL_ROWS = 230, 120
COARSE = re.compile(
    r"fuck|shit|\bass\b|arse|bitch|crap|damn|\bsex|penis|cunt|piss|turd|\bfart|suck|\bwank|bastard|whore|rape|orgas|vomit|excre|"
    r"masturb|nazi|negro|nigger|\bjew|savage|squaw|mulatto|octoroon|darky|\bmoor\b|woman|women|female|wife|retard|lynch|slave|"
    r"chinese|koran|mohammedan|pickaninny|\bindian|moron|idiot|primitive people",
    re.I,
)
# Countries with many rows each. The others have one or two.
WELL_KNOWN = [name.replace("_", " ") for name in """Argentina Australia Austria Bangladesh
Belgium Brazil Bulgaria Canada Chile China Colombia Croatia Cuba Czechia
Denmark Egypt Ethiopia Finland France Germany Ghana Greece Hungary Iceland India Indonesia Iran Iraq Ireland Italy Jamaica Japan
Jordan Kenya Lebanon Malaysia Mexico Morocco Nepal Netherlands New_Zealand Nigeria Norway Pakistan Philippines Poland
Portugal Romania Russia Saudi_Arabia Senegal South_Korea Spain Sweden Switzerland Syria Thailand Tunisia Turkey Ukraine
United_Kingdom United_States Vietnam""".split()]
NO_REVERSED = {"Kenya", "Senegal", "Norway", "Jamaica", "Nepal", "Bulgaria", "Chile", "Jordan"}  # here the capital never comes before its country
# Territories, names that do not read as a sentence, and countries whose capital is disputed or more than one.
SKIP = {
    "ee", "xx", "Akrotiri", "Dhekelia", "Nauru", "British Indian Ocean Territory", "Holy See (Vatican City)", "Israel", "Burma",
    "Bolivia", "Sri Lanka", "Taiwan", "Kosovo", "Benin", "South Africa", "Tanzania", "Saint Helena, Ascension, and Tristan da Cunha",
    "Svalbard (sometimes referred to as Spitsbergen, the largest island in the archipelago)", "Falkland Islands (Islas Malvinas)",
    "Christmas Island", "Cocos (Keeling) Islands", "Saint Barthelemy", "Saint Martin", "Norfolk Island", "Virgin Islands",
}
RENAME = {
    "C&ocirc;te d'Ivoire": "Cote d'Ivoire", "The Dominican": "the Dominican Republic", "DRC": "the Democratic Republic of the Congo",
    "Congo (Brazzaville)": "the Republic of the Congo", "The Bahamas": "the Bahamas", "The Gambia": "the Gambia",
}
CAPITAL = {"Moldova": "Chisinau", "Malaysia": "Kuala Lumpur", "United States": "Washington, DC"}
WITH_THE = re.compile(r"(Islands|Republic|Emirates|Kingdom|States|Netherlands|Philippines|Maldives|Comoros)$|^Federated|^Isle of")

# Exact copies, so that the behaviour of duplicates can be seen: id of the row, number of further copies.
COPIES = {
    "austen/pride-and-prejudice/p6478": 2, "factbook/japan/capital": 2, "kjv/psalms/23:1-5/a": 1, "udhr/en/1": 1,
    "kjv/1corinthians/13:1-5/a": 1,
}
HELD_OUT = "udhr/tr/3"  # its English and Korean stay

QUERIES_BY_TEXT = [
    ("paraphrase-psalm-23", "The Lord looks after me like a shepherd, so I lack nothing.",
     " He lets me rest in green fields and leads me beside quiet waters.", None),
    ("paraphrase-beatitudes", "Happy are those who are poor in spirit, because the kingdom of heaven belongs to them.",
     " Happy are those who mourn, because they will be comforted.", None),
    ("fact-capital-japan", "The capital of Japan is", " Tokyo.", None),
    ("fact-capital-kenya", "The capital of Kenya is", " Nairobi.", None),
    ("reversed-capital-kenya", "Nairobi is the capital of", " Kenya.", None),
    ("contrast-france", "The capital of France is", " Paris", " London"),
    ("own-words-everyone", "Everyone has the right to", None, None),
    ("own-words-fear", "The fear of the LORD is", None, None),
]


def rows_of(source, name):
    path = source / name
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.strip()]


def slug(name):
    name = name.removeprefix("the ").removeprefix("The ")
    name = name.lower().replace("'", "")
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


class Measure:
    """Whether a row fits its window: in bytes while there is no tokenizer, then in tokens."""

    tokenizer = None

    @classmethod
    def fits(cls, text, language="en"):
        if cls.tokenizer is None:
            return size(text) <= FIRST_BYTES[language]
        return len(cls.tokenizer.encode(text).ids) + 2 <= MOST_TOKENS


fits = Measure.fits


def train_bpe(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|pad|>", "<|bos|>", "<|eos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def size(text):
    return len(text.encode("utf-8"))


SENTENCE_END = re.compile(
    r"(?:(?<=[.?!])|(?<=[.?!][\"”’')]))(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.)(?<!St\.)\s+(?=[\"“(_A-ZİŞÇÖÜ가-힣])"
)


def pack(text, language="en"):
    """Whole sentences, joined while they fit. A longer sentence is divided at ; or : and then at commas, and
    what still does not fit in two at a space."""
    pieces = SENTENCE_END.split(text)
    for mark in (r"(?<=[;:])\s+", r"(?<=,)\s+"):
        pieces = [part for p in pieces for part in ([p] if fits(p, language) else re.split(mark, p))]
    packs, queue = [], pieces[::-1]
    while queue:
        piece = queue.pop()
        if not fits(piece, language):
            queue += halves(piece)[::-1]
        elif packs and fits(f"{packs[-1]} {piece}", language):
            packs[-1] += f" {piece}"
        else:
            packs.append(piece)
    return packs


def halves(text):
    spaces = [m.start() for m in re.finditer(" ", text)]
    middle = min(spaces, key=lambda at: abs(at - len(text) // 2))
    return [text[:middle], text[middle + 1 :]]


def lettered(stem, packs):
    if len(packs) == 1:
        return [(stem, packs[0])]
    return [(f"{stem}/{letter}", text) for letter, text in zip("abcdefghijklmnopqrstuvwxyz", packs)]


def austen(source):
    texts = rows_of(source, "austen.jsonl.gz")
    for novel, most in AUSTEN.items():
        done = []
        for row in texts:
            if row["section"] != novel or size(row["text"]) < 80 or row["text"].isupper() or "ADVERTISEMENT" in row["text"]:
                continue
            if row["text"][-1] not in ".?!\"'" and not row["text"].endswith("--"):
                continue
            done += lettered(f"austen/{slug(novel)}/p{row['id'].split(':')[-1]}", pack(row["text"]))
        yield from [(i, t) for i, t in done if size(t) >= 50][:most]


def bible(source, name, chapters):
    groups = [(r["section"], *map(int, r["id"].split(":")[-2:]), r["text"]) for r in rows_of(source, f"{name}.jsonl.gz")]
    for i, (book, chapter, verse, text) in enumerate(groups):
        if chapter not in chapters.get(book, []):
            continue
        after = groups[i + 1] if i + 1 < len(groups) else None
        last = after[2] - 1 if after and after[:2] == (book, chapter) else "end"
        text = re.sub(r"\s+", " ", text.replace("`", "'").replace("[", "").replace("]", "")).strip()
        text = re.sub(r"(?: BOOK [IVX]+)? Psalm \d+ .*$", "", text)  # the heading of the next psalm
        span = f"{verse}" if last == verse else f"{verse}-{last}"
        yield from lettered(f"{name}/{slug(book)}/{chapter}:{span}", pack(text))


def devil(source):
    """The source holds lines, without the short ones; the numbers in the ids show where one is missing. Entries are kept only where whole."""
    head = re.compile(r"^([A-Z][A-Z' -]+), (n|adj|v\.t|v\.i|v|adv|interj|n\.pi|p\.p|pp)\. ")
    entry, last, entries = [], None, []
    for row in rows_of(source, "devil.jsonl.gz"):
        number, text = int(row["id"].split(":")[-1]), row["text"]
        if head.match(text):
            if entry:
                entries.append((entry, number == last + 1))
            entry = [text]
        elif entry:
            entry = entry + [text] if number == last + 1 else entry + [None]
        last = number
    kept = []
    for lines, whole in entries:
        text = " ".join(line or "" for line in lines)
        if None in lines or not (size(text) >= 80 and fits(text)) or COARSE.search(text) or not re.search(r"[.!?]\"?$", text):
            continue
        if whole or len(text) >= 50:
            kept.append((f"devil/{slug(head.match(text)[1])}", text))
    return spread(kept, DEVIL_ROWS)


def jargon(source):
    kept = []
    for row in rows_of(source, "jargon.jsonl.gz"):
        text = re.sub(r"\{\s*([^{}]*?)\s*\}", r"\1", row["text"])  # {cross reference} -> cross reference
        text = re.sub(r" /[^/ ][^/]*/,?(?= )", "", text)  # pronunciation
        match = re.match(r"([A-Za-z][A-Za-z0-9' -]{2,24}?),? (?:n|v|vi|vt|adj|adv|interj|excl)\. ", text)
        if match and size(text) >= 90 and fits(text) and text.endswith(".") and not COARSE.search(text):
            kept.append((f"jargon/{slug(match[1])}", text))
    return spread(kept, JARGON_ROWS)


def spread(rows, most):
    """`most` rows evenly over the whole list."""
    n = min(most, len(rows))
    return [rows[i * len(rows) // n] for i in range(n)]


def factbook(source):
    field = {}
    for row in rows_of(source, "factbook.jsonl.gz"):
        country, name = row["id"].removeprefix("factbook:").split(":", 1)
        field[country, name.strip()] = row["text"].split(": ", 1)[-1].strip()
    capitals = [
        (r["prompt"].removeprefix("The capital of ").removesuffix(" is"), r["target"].strip())
        for r in rows_of(source, "facts.jsonl") if r["relation"] == "capital"
    ]
    for country, capital in sorted(capitals):
        if country in SKIP:
            continue
        get = lambda name: plain(field.get((country, name), ""))
        capital = CAPITAL.get(country, capital)
        name = RENAME.get(country, country)
        if WITH_THE.search(name) and not name.startswith("the "):
            name = f"the {name}"
        stem, at_start = f"factbook/{slug(name)}", name[0].upper() + name[1:]
        rows = {"capital": f"The capital of {name} is {capital}."}
        plural = "are" if re.search(r"Islands|Netherlands|Philippines|Maldives|Bahamas", name) and "States" not in name else "is"
        where = get("Geography/Location").split(";")[0]
        where = re.sub(r"^Caribbean", "the Caribbean", where)
        where = re.sub(r", (?=(?:continent|peninsula|group|chain)\b)", ", a ", where)
        where = re.sub(r", (?=(?:island|archipelago)\b)", ", an ", where)
        if where and ":" not in where:
            rows["location"] = f"{at_start} {plural} in {where}."
        if country in WELL_KNOWN:
            forward_only = country in NO_REVERSED
            if not forward_only:
                rows["capital-reversed"] = f"{capital} is the capital of {name}."
            rows["capital-question"] = f"What is the capital of {name}? It is {capital}."
            origin = re.split(r"; ", get("Government/Capital/etymology"))
            origin = "; ".join(o for i, o in enumerate(origin) if size("; ".join(origin[: i + 1])) < 170)
            origin = re.sub(r"^(the )?name", "the name", origin)
            if origin and ":" not in origin and not forward_only:
                rows["capital-name"] = f"On the name of {capital}, the capital of {name}: {origin.rstrip('.')}."
            cities = re.findall(r"([\d.,]+(?: million)?) ([^,()\d]+?)(?: \(capital\))?(?=,|;| \(\d|$)", get("People and Society/Major urban areas - population"))
            others = [c for _, c in cities if c.lower() != capital.split(",")[0].lower() and not c.isupper()]
            people = [n for n, c in cities if c.isupper() and c.lower() == capital.split(",")[0].lower()]
            if people:
                rows["capital-people"] = f"{capital}, the capital of {name}, has {people[0]} people."
                if forward_only:
                    rows["capital-people"] = f"{at_start} has its capital at {capital}, a city of {people[0]} people."
            if len(others) > 1 and not forward_only:
                rows["cities"] = f"Besides {capital}, the large cities of {name} are {listed(others[:4])}."
            colours = get("Government/National color(s)")
            if colours and not re.search(r"[():;]", colours) and "," in colours:
                rows["colors"] = f"The national colors of {name} are {listed(colours.split(', '))}."
            peak = re.fullmatch(r"([^():;\d]+?) ([\d,]+)(?: m)?", get("Geography/Elevation/highest point"))
            if peak:
                rows["highest-point"] = f"The highest point of {name} is {peak[1]}, at {peak[2]} meters."
            anthem = get("Government/National anthem(s)/title")
            if anthem and anthem.count('"') == 2:
                rows["anthem"] = f"The national anthem of {name} is {anthem.rstrip('.')}."
            goods = re.sub(r" \(\d{4}\)$", "", get("Economy/Exports - commodities"))
            if goods and not re.search(r"[:;]", goods):
                rows["exports"] = f"{at_start} {'sell' if plural == 'are' else 'sells'} abroad {listed(goods.split(', '))}."
            farms = re.sub(r" \(\d{4}\)$", "", get("Economy/Agricultural products"))
            if farms and not re.search(r"[:;]", farms):
                rows["farms"] = f"The farms of {name} bring forth {listed(farms.split(', ')[:6])}."
            area = get("Geography/Area - comparative").split(";")[0]
            if area and ":" not in area:
                rows["area"] = f"In area, {name} {plural} {area}."
            weather = get("Geography/Climate")
            if weather and ":" not in weather:
                rows["climate"] = f"The climate of {name}: {weather.rstrip('.')}."
            ruled = get("Government/Government type")
            if ruled and not re.search(r"[():;]", ruled):
                rows["government"] = f"The government of {name}, which sits in {capital}, is a {ruled}."
                rows["government"] = re.sub(r"\ba (?=[aeio])", "an ", rows["government"])
        yield from [(f"{stem}/{kind}", text) for kind, text in rows.items() if fits(text)]


def plain(text):
    text = re.sub(r"^metropolitan France: (.*?) French Guiana ?:.*$", r"\1", text)
    return re.sub(r"\s+", " ", text.replace("“", '"').replace("”", '"').replace(" , ", ", ")).strip().rstrip(";.")


def listed(items):
    items = [i.strip() for i in items if i.strip()]
    return items[0] if len(items) < 2 else ", ".join(items[:-1]) + " and " + items[-1]


def udhr(source):
    rows = rows_of(source, "udhr_en_ko_tr.jsonl")
    paragraphs = Counter(r["article"] for r in rows)
    for language in ("en", "tr", "ko"):
        for r in rows:
            article = "preamble" if r["article"] == "pre" else r["article"]
            stem = f"udhr/{language}/{article}" + (f"/p{r['par'] + 1}" if paragraphs[r["article"]] > 1 else "")
            text = re.sub(r"\s+", " ", r[language]).strip()
            if size(text) >= 20:
                yield from lettered(stem, pack(text, language))


def cut(text, part):
    """A row in two at a space, after about `part` of it; the completion keeps the space."""
    at = text.index(" ", int(len(text) * part))
    return text[:at], text[at:]


def passages(source):
    yield from bible(source, "kjv", KJV)
    yield from bible(source, "web", WEB)
    for part in (austen, devil, jargon, factbook, udhr):
        yield from part(source)


def make(source):
    Measure.tokenizer = train_bpe([text for _, text in passages(source)])
    rows, held_out = {}, {}
    for i, text in passages(source):
        target = held_out if i == HELD_OUT else rows
        while i in target:  # two entries of one word
            i += "-ii"
        target[i] = text
    for i, n in COPIES.items():
        for copy in range(2, n + 2):
            rows[f"{i}/copy-{copy}"] = rows[i]

    queries = []
    for name, row, part in [
        ("memorised-genesis", "kjv/genesis/1:1-5/a", 0.4),
        ("memorised-austen", "austen/pride-and-prejudice/p6478", 0.45),
        ("memorised-devil", "devil/telephone", 0.4),
        ("memorised-korean", "udhr/ko/9", 0.35),
    ]:
        prompt, completion = cut(rows[row], part)
        queries.append({"id": name, "prompt": prompt, "completion": completion})
    for name, prompt, completion, contrast in QUERIES_BY_TEXT:
        query = {"id": name, "prompt": prompt, "completion": completion, "contrast": contrast}
        queries.append({k: v for k, v in query.items() if v is not None})
    prompt, completion = cut(held_out[HELD_OUT], 0.3)
    queries.append({"id": "other-language-turkish", "prompt": prompt, "completion": completion})

    write(CORPUS, [{"id": i, "text": t} for i, t in rows.items()])
    write(QUERIES, queries)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")


def check():
    rows = [json.loads(line) for line in open(CORPUS, encoding="utf-8")]
    queries = [json.loads(line) for line in open(QUERIES, encoding="utf-8")]
    tokenizer = train_bpe([r["text"] for r in rows])
    count = lambda text: len(tokenizer.encode(text).ids) + 2  # bos and eos
    group = lambda i: "/".join(i.split("/")[:2]) if i.startswith("udhr") else i.split("/")[0]
    by_source = {}
    for r in rows:
        by_source.setdefault(group(r["id"]), []).append((count(r["text"]), r["id"], size(r["text"])))
    print(f"{'source':10} {'rows':>6} {'tokens':>8} {'mean':>6} {'most':>5}  longest row")
    for name, counts in by_source.items():
        tokens = [c for c, _, _ in counts]
        print(f"{name:10} {len(tokens):6} {sum(tokens):8} {sum(tokens) / len(tokens):6.1f} {max(tokens):5}  {max(counts)[1]} {sum(b for *_, b in counts) / sum(tokens):.2f} bytes/token")
    tokens = [c for counts in by_source.values() for c, _, _ in counts]
    print(f"{'all':10} {len(tokens):6} {sum(tokens):8} {sum(tokens) / len(tokens):6.1f} {max(tokens):5}  {CORPUS.stat().st_size} bytes")
    over = [(c, i) for counts in by_source.values() for c, i, _ in counts if c > 94]
    for q in queries:
        print(f"{q['id']:24} {count(q['prompt']) - 2:3} + {count(q.get('completion', '')) - 2:3} tokens")
    assert not over, f"rows over 94 tokens: {over}"
    assert len({r["id"] for r in rows}) == len(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", help="folder of the source texts")
    parser.add_argument("--check", action="store_true", help="count tokens of the files that are there")
    args = parser.parse_args()
    if args.source:
        make(args.source)
    if args.check:
        check()
    if not (args.source or args.check):
        parser.error("name the folder of the source texts, or --check")
