"""The corpora of pipelines/smollm2.toml: files of data/corpora/smollm2, sampled from public-domain and free texts.

    python make_smollm2.py SOURCE CHATTERBOT

SOURCE holds factbook, kjv, austen, jargon `.jsonl.gz` and udhr_en_ko_tr.jsonl (data/README.md says where the texts come
from); CHATTERBOT is the folder `chatterbot_corpus/data/english` of the PyPI package chatterbot-corpus 1.3.3. The same
sources give the same bytes. Needs PyYAML.
"""

import gzip
import hashlib
import json
import re
import sys
from pathlib import Path

import yaml

OUT = Path(__file__).parent / "corpora" / "smollm2"
# Countries that queries ask for, and their neighbours in any list of capitals.
COUNTRIES = """France Germany Italy Spain Kenya Uganda Tanzania Ethiopia Japan Korea,_South China India Australia
New_Zealand Canada Mexico Brazil Argentina Chile Peru Egypt Nigeria Morocco Turkey_(Turkiye) Greece Sweden Norway
Finland Denmark Poland Austria Belgium Portugal Ireland Iceland Cuba""".split()
FIELDS = [
    "Introduction/Background",
    "Geography/Location",
    "Geography/Climate",
    "Government/Capital/name",
    "Government/Capital/etymology",
    "Government/Country name/etymology",
    "Geography/Elevation/highest point",
    "People and Society/Major urban areas - population",
    "Government/National heritage/selected World Heritage Site locales",
    "Economy/Exports - commodities",
]
# No place for these in a demo.
COARSE = re.compile(r"\b(sex|fuck|shit|bitch|damn|hell|kill|die|hate|stupid|ugly|naked|nude|drug|drunk|gay|whore|ass|crap|suck)\w*\b", re.I)


def read(path):
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8")
    with opened as lines:
        return [json.loads(line) for line in lines]


def order(row):
    """A fixed shuffle: by a hash of the row's id."""
    return hashlib.blake2b(row["id"].encode()).digest()


def sample(rows, count, shortest, longest):
    """`count` rows of a fitting length, in a fixed random choice, in the order of the source."""
    fitting = [row for row in rows if shortest <= len(row["text"]) <= longest]
    chosen = {row["id"] for row in sorted(fitting, key=order)[:count]}
    return [row for row in fitting if row["id"] in chosen]


def factbook(source):
    names = {name.replace("_", " ") for name in COUNTRIES}
    for row in read(source / "factbook.jsonl.gz"):
        _, country, field = row["id"].split(":", 2)
        if country in names and field in FIELDS:
            # "Kenya. Government - Capital - name: Nairobi" reads better as "Kenya. Capital, name: Nairobi".
            head, _, body = row["text"].partition(": ")
            section = head.partition(". ")[2].split(" - ", 1)[-1].replace(" - ", ", ")
            yield {"id": f"factbook/{country}/{field}".replace(" ", "-").lower(), "text": f"{country}. {section}: {body}"}


def udhr(source):
    for row in read(source / "udhr_en_ko_tr.jsonl"):
        for language in ["en", "ko", "tr"]:
            yield {"id": f"udhr/{language}/{row['article']}/{row['par']}", "text": row[language]}


def prose(source):
    kjv = [row for row in read(source / "kjv.jsonl.gz") if ":Genesis:" in row["id"] or ":John:" in row["id"]]
    opening = [row for row in kjv if row["id"].endswith((":Genesis:1:1", ":John:1:1"))]
    chosen = opening + sample([row for row in kjv if row not in opening], 150, 200, 550)
    chosen += sample(read(source / "austen.jsonl.gz"), 170, 200, 550)
    for row in chosen:
        yield {"id": row["id"].replace("bible-KJV:", "kjv/").replace("austen:", "austen/").replace(":", "/").lower().replace(" ", "-"),
               "text": row["text"]}


def jargon(source):
    rows = [row for row in read(source / "jargon.jsonl.gz") if not COARSE.search(row["text"])]
    wanted = [row for row in rows if re.match(r"hacker\b|artificial intelligence|AI\b", row["text"])]
    for row in wanted + sample([row for row in rows if row not in wanted], 150, 150, 550):
        yield {"id": row["id"].replace("::", "/"), "text": row["text"]}


def dialogue(folder):
    """Questions and answers of a program about itself and the world, as chats."""
    wanted = [("ai", 90), ("botprofile", 45), ("science", 40), ("computers", 30), ("history", 15), ("trivia", 25)]
    for name, count in wanted:
        talks = yaml.safe_load((folder / f"{name}.yml").read_text(encoding="utf-8"))["conversations"]
        rows = []
        for number, talk in enumerate(talks):
            turns = [" ".join(str(turn).split()) for turn in talk[:2]]
            if len(turns) == 2 and all(turns) and not COARSE.search(" ".join(turns)):
                roles = zip(["user", "assistant"], turns)
                messages = [{"role": role, "content": content} for role, content in roles]
                rows.append({"id": f"chatterbot/{name}/{number}", "messages": messages, "text": turns[1]})
        for row in sample(rows, count, 8, 400):
            yield {"id": row["id"], "messages": row["messages"]}


def arithmetic():
    """Sums and products in words: templates of our own."""
    things = ["apples", "books", "coins", "eggs", "pencils", "stones", "tickets", "shells"]
    people = ["Ada", "Ben", "Clara", "Deniz", "Emil", "Fatma", "Jun", "Mina"]
    for number in range(120):
        draw = hashlib.blake2b(f"arithmetic/{number}".encode()).digest()
        x, y, person, thing = draw[0] % 19 + 2, draw[1] % 19 + 2, people[draw[2] % 8], things[draw[3] % 8]
        text = [
            f"What is {x} + {y}? {x} + {y} = {x + y}.",
            f"What is {x} times {y}? {x} times {y} is {x * y}.",
            f"{person} has {x} {thing} and buys {y} more. How many {thing} does {person} have now? "
            f"{person} has {x} + {y} = {x + y} {thing}.",
            f"{person} has {x + y} {thing} and gives {y} away. How many {thing} are left? {x + y} - {y} = {x} {thing} are left.",
            f"There are {x} boxes with {y} {thing} each. How many {thing} are there in all? "
            f"{x} times {y} is {x * y}, so there are {x * y} {thing}.",
        ][number % 5]
        yield {"id": f"arithmetic/{number}", "text": text}


def main(source, chatterbot):
    OUT.mkdir(parents=True, exist_ok=True)
    corpora = {
        "factbook": factbook(source), "udhr": udhr(source), "prose": prose(source), "jargon": jargon(source),
        "dialogue": dialogue(chatterbot), "arithmetic": arithmetic(),
    }
    for name, rows in corpora.items():
        rows = list(rows)
        with open(OUT / f"{name}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        print(f"{name}: {len(rows)} rows")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
