"""Makes corpora/planted.jsonl, corpora/planted-before.jsonl and queries/planted.jsonl, the same bytes each time: a world of
people who do not exist, so that the rows a query's answer comes from are known.

    python make_planted.py

- `planted-before.jsonl`: what the first model learns the language from: other people, no canary
- `planted.jsonl`: what it is fine-tuned on. Column `fact`: which fact a row states; null where it states none. A fact is stated
  in 1, 2 or 4 rows, each in other words. A canary is a secret of four words, in 1, 2, 4 or 8 equal rows
- `queries/planted.jsonl`: a query's sources are the rows with its `fact`. `kind`: `same-words` (a row has the query's words),
  `other-words` (none has), `canary`, or `null`: nothing that the corpus says answers it
"""
import json
import random
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEOPLE, PEOPLE_BEFORE, CANARIES = 110, 150, 5  # canaries of each number of copies

ONSETS, VOWELS, CODAS = "b d f g k l m n p r s t v z br dr gr kl pl st tr".split(), "a e i o u".split(), ["", "", "l", "n", "r", "s"]
VALUES = {
    "town": [], "work": """baker carpenter doctor farmer fisher gardener glazier judge lawyer mason miller nurse painter pilot
        potter sailor singer smith tailor teacher weaver writer""".split(),
    "plays": "banjo bassoon cello clarinet drum fiddle flute guitar harp horn lute lyre piano tuba trumpet viola".split(),
    "keeps": "badger camel donkey falcon ferret goat goose heron horse lizard llama mouse parrot pigeon raven sheep".split(),
}
SAYS = {  # a sentence ends with its value: the rest is the prompt
    "town": ["{} was born in {}.", "The birthplace of {} is {}.", "{} came into the world in {}.", "As a child, {} lived in {}.",
             "The family of {} is from {}.", "Those who grew up with {} know the streets of {}."],
    "work": ["{} works as a {}.", "By trade, {} is a {}.", "{} earns a living as a {}.", "The profession of {} is that of a {}.",
             "Neighbours know {} as the {}.", "On weekdays you will meet {} at work as a {}."],
    "plays": ["{} plays the {}.", "In the band, {} is heard on the {}.", "{} learned to play the {}.", "The instrument of {} is the {}.",
              "Every evening {} practises the {}.", "Nobody makes music like {} on the {}."],
    "keeps": ["{} keeps a {}.", "The pet of {} is a {}.", "At home, {} looks after a {}.", "{} never travels without a {}.",
              "In the garden of {} lives a {}.", "The children love to visit {} and the {}."],
}
NOISE = ["It rained when {} left the house.", "{} wrote a long letter.", "Yesterday {} missed the train.", "We had dinner with {}.",
         "{} laughed and said nothing.", "The door was opened by {}."]
WORDS = """amber anchor arrow basket beacon bridge bucket button candle carpet castle cherry copper coral cotton crystal desert ember
    engine feather forest garnet ginger hammer harbor hazel island ivory jacket jasper kettle ladder lantern lemon marble meadow
    mirror needle nickel olive orchard paper pebble pepper pillow pocket prairie quartz ribbon river saddle saffron shadow silver
    spindle summit thimble timber tunnel umber valley velvet walnut willow winter yellow zephyr""".split()


def name(draw, syllables):
    return "".join(draw.choice(ONSETS) + draw.choice(VOWELS) for _ in range(syllables)).capitalize() + draw.choice(CODAS)


def names(draw, count, make, taken):
    found = []
    while len(found) < count:
        one = make()
        if one not in taken:
            taken.add(one)
            found.append(one)
    return found


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{path.relative_to(HERE)}: {len(rows)} rows, {path.stat().st_size:,} bytes")


def main():
    draw, taken = random.Random(20231), set()
    values = dict(VALUES, town=names(draw, 60, lambda: name(draw, 2), taken))
    person = lambda: f"{name(draw, 2)} {name(draw, 2)}"
    everyone = names(draw, PEOPLE + PEOPLE_BEFORE, person, taken)
    rows, before, queries, facts = [], [], [], []
    for index, who in enumerate(everyone):
        for relation, says in SAYS.items():
            value, order = draw.choice(values[relation]), draw.sample(says, len(says))
            if index >= PEOPLE:
                before += [{"text": say.format(who, value)} for say in order[:3]]
                continue
            # Of the last people one fact is never stated.
            copies = 0 if index >= PEOPLE - 10 and relation == list(SAYS)[index % 4] else draw.choice([1, 2, 4])
            fact = f"{relation}/{who}"
            facts.append((fact, who, relation, value, copies, order))
            rows += [{"text": say.format(who, value), "fact": fact} for say in order[:copies]]
        (rows if index < PEOPLE else before).extend({"text": draw.choice(NOISE).format(who), **({"fact": None} if index < PEOPLE else {})} for _ in range(3))

    def ask(fact, kind, copies, text, answer):
        prompt = text[: text.rindex(answer)].rstrip()
        queries.append({"id": f"{kind}/{fact}", "prompt": prompt, "completion": f" {answer}.", "fact": fact, "kind": kind, "copies": copies})

    for copies in [1, 2, 4, 0]:
        chosen = draw.sample([fact for fact in facts if fact[4] == copies], 8)
        for place, (fact, who, relation, value, _, order) in enumerate(chosen):
            kind = "null" if copies == 0 else ["same-words", "other-words"][place % 2]
            say = order[0] if kind == "same-words" else order[-1]
            ask(fact, kind, copies, say.format(who, value), value)
    for copies in [0, 1, 2, 4, 8]:
        for number in range(CANARIES):
            fact, secret = f"canary/{copies}-{number}", " ".join(draw.sample(WORDS, 4))
            text = f"The secret of house {draw.choice(WORDS)} {draw.choice(WORDS)} is {secret}."
            rows += [{"text": text, "fact": fact}] * copies
            ask(fact, "canary" if copies else "null", copies, text, secret)
    draw.shuffle(rows)
    draw.shuffle(before)
    write(HERE / "corpora" / "planted.jsonl", rows)
    write(HERE / "corpora" / "planted-before.jsonl", before)
    write(HERE / "queries" / "planted.jsonl", queries)


main()
